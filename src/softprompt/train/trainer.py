"""The training loop: it yields steps, and touches no file, no clock and no terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from softprompt.data.few_rows import count_rows
from softprompt.errors import RecipeError, TrainingError, format_unknown
from softprompt.inference.loops import EvaluatedRows, EvaluationReport, evaluate_rows, make_report
from softprompt.prompt import InputPrompt, KVPrefix, Prompt, detach_copy, to
from softprompt.tasks import Classifier, Task
from softprompt.tasks.objectives import MINIMIZED
from softprompt.train.accelerator import prepare_only
from softprompt.train.config import ResolvedTraining, check_validation_settings
from softprompt.train.datasets import RenderedRows, sample_rows
from softprompt.train.events import Evaluation, Event, Finished, PhaseStarted, Step, TrainingWarning
from softprompt.train.gradients import (
    accumulate_gradients,
    check_finite_step,
    draw_visible_columns,
    list_trainable_parameters,
    use_step_rng,
)
from softprompt.train.monitors import find_warnings, measure_distance
from softprompt.train.optimizers import (
    build_lr_scheduler,
    build_optimizer,
    observe_validation,
    refresh_learning_rates,
    update_parameters,
)
from softprompt.train.sampler import BatchSampler


@dataclass(frozen=True, eq=False)
class Best:
    """The trained state, copied to the CPU at the validation with the best score so far.

    Args:
        prompt: as inference needs it, without its method; None where no prompt is trained.
        head: the trained head's tensors; empty without one.
        score: on the validation rows; higher is better.
        step: of the validation.
        metrics: on the validation rows.
        weights: the backbone's trained weights; empty where a prompt is trained.
    """

    prompt: Prompt | None
    head: Mapping[str, Tensor]
    score: float
    step: int
    metrics: Mapping[str, float]
    weights: Mapping[str, Tensor]

    def state_dict(self) -> dict[str, Any]:
        """The state as a checkpoint stores it."""
        state = {
            "prompt": {} if self.prompt is None else self.prompt.to_tensors(),
            "head": dict(self.head),
            "score": self.score,
            "step": self.step,
            "metrics": dict(self.metrics),
        }
        return state | ({"weights": dict(self.weights)} if self.weights else {})


class Trainer:
    """The training loop: steps, validations between them, and the selection of the best state.

    It trains the parameters of one module, ``method``, and those of the task's head if it has one.
    In each step ``method()`` gives the prompt that a batch of rows is run with:

    * A :class:`softprompt.methods.Method` gives a prompt. The backbone stays frozen.
    * :class:`softprompt.train.finetune.BackboneWeights` holds the backbone's own weights, or those
      of LoRA, and gives None: the rows are run without a prompt.

    The rest is the same for both. The run validates before the first step, then after each epoch or
    every ``eval_every_steps`` steps, and after the last step. It keeps the state with the best
    validation metric (``best_metric``), and ends after ``early_stopping_patience`` validations
    without a better one.

    Iterate over :meth:`run`; at every event the run can be saved (:meth:`state_dict`) and, in
    another process, loaded (:meth:`load_state_dict`) and continued, with the same events.

    Args:
        task: bound to its backbone.
        method: at its initialization, on the backbone's device.
        rows: to train on.
        validation: the rows to select the best state by; None keeps the last one.
        training: all settings.
        accelerator: device, precision and processes.

    Raises:
        TrainingError: there are no training rows.
        RecipeError: the optimizer's name or options are wrong, or settings of validations are given
            without validation rows.
    """

    def __init__(
        self,
        task: Task,
        method: nn.Module,
        *,
        rows: RenderedRows,
        validation: RenderedRows | None,
        training: ResolvedTraining,
        accelerator: Accelerator,
    ) -> None:
        if not rows.examples:
            msg = "there are no rows to train on. Give a training split that has some."
            raise TrainingError(msg)
        check_validation_settings(training, has_validation=validation is not None)
        self.task, self.method, self.rows = task, method, rows
        self.training, self.accelerator = training, accelerator
        max_rows, train_rows = training.max_eval_rows, training.eval_train_rows
        self.validation = None if validation is None else sample_rows(validation, max_rows)
        self.train_sample = None if train_rows is None else sample_rows(rows, train_rows)
        self.modules = nn.ModuleDict({"method": method})
        if task.head is not None:
            self.modules["head"] = task.head
        self.sampler = BatchSampler([e.length for e in rows.examples], training)
        self.total = round(training.end * (steps := self.sampler.count_steps()))
        head = [] if task.head is None else task.head.parameters()
        optimizer = build_optimizer(method.parameters(), head, training=training)
        self.schedule = build_lr_scheduler(optimizer, training=training, steps=steps)
        self.optimizer = prepare_only(optimizer, accelerator)
        # The position: finished steps, finished epochs, and the next batch of this epoch.
        self.step, self.epoch, self.batch_index = 0, 0, 0
        self.batches = self.sampler.draw_batches(0)
        self.validation_due = validation is not None
        # The summed training loss since the last validation, and the number of scored tokens.
        self.seen_loss, self.seen_count = 0.0, 0
        self.start = _copy_prompt(self.prompt())
        self.best: Best | None = None
        self.bad_validations = 0  # since the best one
        # The kinds of warnings so far, and the warnings that are not yet yielded.
        self.warned: set[str] = set()
        self.pending: list[TrainingWarning] = []

    def run(self) -> Iterator[Event]:
        """Train from the current position to the end.

        Raises:
            TrainingError: a loss or a gradient is NaN or infinite.
            RecipeError: there is no such metric to select by.
        """
        while not isinstance(event := self._next(), Finished):
            yield event
        yield event

    def _next(self) -> Event:
        if self.pending:
            return self.pending.pop(0)
        if self.validation_due and self.validation is not None:
            return self._validate(self.validation)
        reason = self.stop_reason()
        if reason is None:
            return self.train_step()
        self._warn_if_untrained()
        return self.pending.pop(0) if self.pending else Finished(self.step, reason)

    def iterate(self) -> Iterator[Event]:
        """As :meth:`run`, and before each validation a `PhaseStarted`."""
        events = self.run()
        while True:
            rows = self.validation if self.validation_due and not self.pending else None
            if rows is not None:
                count = len(rows.examples)
                yield PhaseStarted("validating", count_rows(count), count, self.step)
            event = next(events, None)
            if event is None:
                return
            yield event

    def count_validations(self) -> int:
        """The number of validations that are still to come, at most."""
        if self.validation is None:
            return 0
        interval, total = self.training.eval_every_steps or len(self.batches), self.total
        after_last = 1 if total % interval and self.step < total else 0
        return total // interval - self.step // interval + after_last + self.validation_due

    def stop_reason(self) -> str | None:
        """Why the run has finished; None if it has not."""
        patience = self.training.early_stopping_patience
        if patience is not None and self.bad_validations >= patience:
            return f"no improvement in {self.bad_validations} validations"
        if self.step < self.total:
            return None
        if self.training.end < 1:
            return (
                f"{self.step} steps done, {self.training.end:.0%} of all, as was best in the folds"
            )
        at_max_steps = self.step == self.training.max_steps
        return f"all {self.step} steps done" if at_max_steps else f"all {self.epoch} epochs done"

    def train_step(self) -> Step:
        """One optimizer step on the next batch."""
        batch = [self.rows.examples[i] for i in self.batches[self.batch_index]]
        process, device = self.accelerator.process_index, self.task.backbone.device
        self._set_train_mode(enabled=True)
        visible = draw_visible_columns(
            batch,
            0 if self.start is None else self.start.length,
            dropout=self.training.token_dropout,
            seed=self.training.seed,
            step=self.step,
        )
        with use_step_rng(self.training.seed, step=self.step, process=process, device=device):
            loss, count = accumulate_gradients(
                self.task,
                self.method,
                batch=batch,
                parts=self.training.gradient_accumulation_steps,
                accelerator=self.accelerator,
                visible=visible,
            )
        norm = self._clip_gradients()
        check_finite_step(
            self.step + 1, loss, norm=norm, training=self.training, scaler=self.accelerator.scaler
        )
        rate = update_parameters(self.optimizer, self.schedule)
        self.seen_loss, self.seen_count = self.seen_loss + loss * count, self.seen_count + count
        self._advance()
        return Step(self.step, self._epochs, loss, len(batch), rate, norm)

    def _clip_gradients(self) -> float:
        """Clip the gradient, and return its norm before clipping."""
        limit = math.inf if self.training.max_grad_norm is None else self.training.max_grad_norm
        parameters = list_trainable_parameters(self.task, self.method)
        return float(self.accelerator.clip_grad_norm_(parameters, limit))

    def _advance(self) -> None:
        """Move to the next batch, and decide whether a validation is due before it."""
        self.step, self.batch_index = self.step + 1, self.batch_index + 1
        epoch_ended = self.batch_index == len(self.batches)
        interval = self.training.eval_every_steps
        is_due = epoch_ended if interval is None else self.step % interval == 0
        self.validation_due = self.validation is not None and (is_due or self.step == self.total)
        if epoch_ended:
            self.epoch, self.batch_index = self.epoch + 1, 0
            self.batches = self.sampler.draw_batches(self.epoch)

    def _validate(self, rows: RenderedRows) -> Evaluation:
        prompt = self.prompt()
        parts = self.evaluate_parts(prompt, rows)
        report = make_report(self.task, parts)
        train = None if self.train_sample is None else self.evaluate(self.train_sample)
        is_best = self._keep_if_best(prompt, report.metrics)
        norm, moved = None, None
        if prompt is not None and self.start is not None:
            norm, moved = measure_distance(self.start, prompt)
        train_loss = self.seen_loss / self.seen_count if self.seen_count else None
        self.seen_loss, self.seen_count, self.validation_due = 0.0, 0, False
        if self.step:
            self._add_warnings(parts, moved, norm)
        return Evaluation(self.step, self._epochs, train_loss, report, is_best, norm, moved, train)

    @property
    def _epochs(self) -> float:
        """Epochs so far, with the fraction of this one."""
        return self.epoch + self.batch_index / len(self.batches)

    def _keep_if_best(self, prompt: Prompt | None, metrics: Mapping[str, float]) -> bool:
        """Keep the validated state if it is the best so far; return whether it is."""
        score = compute_selection_score(metrics, select=self.training.best_metric, step=self.step)
        observe_validation(self.schedule, score)
        if self.best is not None and score <= self.best.score:
            self.bad_validations += 1
            return False
        self.bad_validations = 0
        self.best = self._snapshot(prompt, score, metrics)
        return True

    def _add_warnings(
        self, parts: Sequence[EvaluatedRows], moved: float | None, norm: float | None
    ) -> None:
        """Add the warnings of a validation, each kind once per run."""
        for kind, message in find_warnings(
            parts,
            labels=self.task.labels,
            moved=moved,
            norm=norm,
            family=self.task.backbone.geometry.model_type,
        ):
            if kind not in self.warned:
                self.warned.add(kind)
                self.pending.append(TrainingWarning(self.step, message))

    def _warn_if_untrained(self) -> None:
        """Add a warning if no step was better than the start, once per run."""
        best = self.best
        if best is None or best.step or not self.step or "untrained" in self.warned:
            return
        self.warned.add("untrained")
        self.pending.append(
            TrainingWarning(self.step, describe_untrained(best, self.training.best_metric))
        )

    def prompt(self) -> Prompt | None:
        """The current prompt, without dropout; None if no prompt is trained."""
        self._set_train_mode(enabled=False)
        with torch.no_grad():
            prompt: Prompt | None = self.method()
        return prompt

    def evaluate(self, rows: RenderedRows) -> EvaluationReport:
        """The loss and the metrics of the current state on some rows."""
        return make_report(self.task, self.evaluate_parts(self.prompt(), rows))

    def evaluate_parts(self, prompt: Prompt | None, rows: RenderedRows) -> list[EvaluatedRows]:
        """Evaluate rows in all processes, each of which gets the parts of all of them.

        Args:
            prompt: to run them with; None where the backbone is trained.
            rows: to evaluate.
        """
        # A saved prompt is used without autocast. A backbone that is trained in fp32, so that small
        # updates are not lost, is used with it.
        with self.accelerator.autocast() if prompt is None else nullcontext():
            return evaluate_split(
                self.task,
                rows,
                prompt=prompt,
                batch_size=self.training.batch_size,
                accelerator=self.accelerator,
            )

    def _set_train_mode(self, *, enabled: bool) -> None:
        """Switch the trained modules, and the backbone if needed, to training or eval mode."""
        self.modules.train(enabled)
        if self.training.is_backbone_in_train_mode:
            self.task.backbone.model.train(enabled)

    def get_best(self) -> Best:
        """The best state by validation, or the current one without validations."""
        return self.best or self._snapshot(self.prompt(), math.nan, {})

    def _snapshot(self, prompt: Prompt | None, score: float, metrics: Mapping[str, float]) -> Best:
        head = {} if self.task.head is None else _copy_tensors(self.task.head)
        weights = _copy_tensors(self.method) if prompt is None else {}
        return Best(_copy_prompt(prompt), head, score, self.step, dict(metrics), weights)

    def state_dict(self) -> dict[str, Any]:
        """The state that the rest of the run depends on."""
        scaler = self.accelerator.scaler
        return {
            "modules": dict(self.modules.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
            "position": [self.step, self.epoch, self.batch_index, self.validation_due],
            "progress": [self.bad_validations, self.seen_count, self.seen_loss],
            "warned": sorted(self.warned),
            "pending": [[warned.step, warned.message] for warned in self.pending],
            "start": {} if self.start is None else self.start.to_tensors(),
            "best": None if self.best is None else self.best.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned."""
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        refresh_learning_rates(self.optimizer, self.schedule)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.batch_index, self.validation_due = state["position"]
        self.bad_validations, self.seen_count, self.seen_loss = state["progress"]
        self.batches = self.sampler.draw_batches(self.epoch)
        self.warned = set(state["warned"])
        self.pending = [TrainingWarning(step, message) for step, message in state["pending"]]
        if self.start is not None:
            self.start = with_tensors(self.start, state["start"])
        best = state["best"]
        self.best = None if best is None else restore_best(best, like=self.start)


def describe_untrained(best: Best, metric: str) -> str:
    """Describe a run whose best state is its start.

    Args:
        best: of the run.
        metric: that it was selected by.
    """
    what = "backbone" if best.prompt is None else "prompt"
    head = ", and so is its head" if best.head else ""
    return (
        f"nothing was learned: the best validation {metric}, {best.metrics[metric]:.4f}, is that "
        f"of the start, before the first step. The {what} of this run is the untrained one{head}. "
        "Try another learning rate, three times as high or a third, more epochs, or more "
        "validation rows."
    )


def compute_selection_score(metrics: Mapping[str, float], *, select: str, step: int) -> float:
    """The score to select by, higher is better: a metric, or the negative loss or error.

    Args:
        metrics: of a validation.
        select: the name of the metric.
        step: of the validation, for messages.

    Raises:
        RecipeError: there is no such metric.
        TrainingError: it is NaN.
    """
    if select not in metrics:
        raise RecipeError(
            [f"train.best_metric: {format_unknown('metric', select, options=metrics)}"]
        )
    if math.isnan(metrics[select]):
        msg = (
            f"validation after step {step}: {select} is NaN, so the best step cannot be selected. "
            'The precision may be too low: try backbone.dtype = "float32".'
        )
        raise TrainingError(msg)
    return -metrics[select] if select in MINIMIZED else metrics[select]


def restore_best(state: Mapping[str, Any], *, like: Prompt | None) -> Best:
    """Restore what :meth:`Best.state_dict` stored.

    Args:
        state: as stored.
        like: a prompt of the same kind; None where no prompt is trained.
    """
    prompt = None if like is None else with_tensors(like, state["prompt"])
    score, step, metrics = state["score"], state["step"], state["metrics"]
    return Best(prompt, state["head"], score, step, metrics, state.get("weights", {}))


def with_tensors(like: Prompt, tensors: Mapping[str, Tensor]) -> Prompt:
    """A prompt of the same kind with other tensors."""
    match like:
        case InputPrompt():
            return replace(like, vectors=tensors["vectors"])
        case KVPrefix():
            return replace(like, keys=tensors["keys"], values=tensors["values"])
        case _:
            assert_never(like)


def evaluate_split(
    task: Task,
    rows: RenderedRows,
    *,
    prompt: Prompt | None,
    batch_size: int,
    accelerator: Accelerator,
) -> list[EvaluatedRows]:
    """Evaluate rows in all processes, each of which gets the parts of all of them.

    Args:
        task: bound to the backbone.
        rows: to evaluate.
        prompt: to run them with; None for the backbone without one.
        batch_size: rows per batch.
        accelerator: of the run.

    Returns:
        The evaluated rows of each process; the same list in all processes.
    """
    total, processes = len(rows.examples), accelerator.num_processes
    # All processes must run a sharded backbone equally often. So each gets the same number of rows,
    # and all run the remaining ones; generated texts differ in length, so all generate all of them.
    distributed = total
    if task.backbone.sharded:
        distributed = total - total % processes if isinstance(task, Classifier) else 0

    def evaluate(part: slice) -> list[EvaluatedRows]:
        examples, truth = rows.examples[part], rows.truth[part]
        return [evaluate_rows(task, examples, truth=truth, prompt=prompt, batch_size=batch_size)]

    evaluated: list[EvaluatedRows] = []
    if distributed:
        share = slice(accelerator.process_index, distributed, processes)
        evaluated += gather_object(evaluate(share))
    if distributed < total:
        evaluated += evaluate(slice(distributed, total))
    return evaluated


def _copy_prompt(prompt: Prompt | None) -> Prompt | None:
    return None if prompt is None else to(detach_copy(prompt), device="cpu")


def _copy_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, copied to the CPU."""
    return {n: t.detach().to("cpu", copy=True) for n, t in module.state_dict().items()}
