"""The training loop: it yields steps, and touches no file, no clock and no terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from softprompt.errors import TrainingError
from softprompt.evaluate.predict import Judged, report
from softprompt.methods import Method
from softprompt.prompt import Prompt, cast, detached
from softprompt.tasks import Task
from softprompt.train.best import Best, restored, score_of, snapshot, with_tensors
from softprompt.train.events import Evaluation, Event, Finished, Step, Warned
from softprompt.train.gradient import check_step, gradients, seeded, trained
from softprompt.train.optimise import advance, optimiser, schedule
from softprompt.train.order import Order
from softprompt.train.rows import Rows, sampled
from softprompt.train.settings import Training, check_judging
from softprompt.train.validate import judged
from softprompt.train.watch import distance, warnings


class Trainer:
    """One run: a method and perhaps a head, trained on one task.

    Iterate over :meth:`run`; at every event the run can be saved and, in another process, loaded
    and continued, with the same events to the end.

    Args:
        task: bound to its backbone.
        method: at its start.
        rows: to learn from.
        validation: to choose by; None keeps the last prompt.
        training: all settings.
        accelerator: device, precision and processes.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        *,
        rows: Rows,
        validation: Rows | None,
        training: Training,
        accelerator: Accelerator,
    ) -> None:
        if not rows.examples:
            msg = "there are no rows to train on. Give a training split that has some."
            raise TrainingError(msg)
        check_judging(training, validated=validation is not None)
        self.task, self.method = task, method.to(task.backbone.device)
        self.rows, self.validation = rows, validation
        self.training, self.accelerator = training, accelerator
        seen = training.evaluate_train
        if validation is not None:
            self.validation = sampled(validation, training.evaluate_rows)
        self.judged = None if seen is None else sampled(rows, seen)
        self.modules = nn.ModuleDict({"method": self.method})
        if task.head is not None:
            self.modules["head"] = task.head
        self.order = Order([e.length for e in rows.examples], training)
        self.total = self.order.steps()
        head = [] if task.head is None else task.head.parameters()
        plain = optimiser(self.method.parameters(), head, training=training)
        self.schedule = schedule(plain, training=training, steps=self.total)
        self.optimizer = accelerator.prepare(plain)
        self.step, self.epoch, self.at = 0, 0, 0
        self.batches = self.order.batches(0)
        self.seen_loss, self.seen_count = 0.0, 0
        self.start = cast(detached(self.prompt()), device="cpu")
        self.best: Best | None = None
        self.stale = 0
        self.due = validation is not None
        self.told: set[str] = set()
        self.pending: list[Warned] = []

    def run(self) -> Iterator[Event]:
        """Train to the end, from wherever the run is.

        Raises:
            TrainingError: a loss or a gradient is no number.
            RecipeError: there is no such metric to select by.
        """
        while not isinstance(event := self._next(), Finished):
            yield event
        yield event

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        scaler = self.accelerator.scaler
        return {
            "modules": dict(self.modules.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
            "position": [self.step, self.epoch, self.at, self.due],
            "since": [self.stale, self.seen_count, self.seen_loss],
            "told": sorted(self.told),
            "pending": [[warned.step, warned.message] for warned in self.pending],
            "start": self.start.tensors(),
            "best": None if self.best is None else self.best.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.at, self.due = state["position"]
        self.stale, self.seen_count, self.seen_loss = state["since"]
        self.batches = self.order.batches(self.epoch)
        self.told = set(state["told"])
        self.pending = [Warned(step, message) for step, message in state["pending"]]
        self.start = with_tensors(self.start, state["start"])
        best = state["best"]
        self.best = None if best is None else restored(best, like=self.start)

    def prompt(self) -> Prompt:
        """The prompt as it is now, without dropout."""
        self._wake(awake=False)
        with torch.no_grad():
            made: Prompt = self.method()
        return made

    def chosen(self) -> Best:
        """The best prompt by validation, or the last one where nothing was validated."""
        return self.best or self._snapshot(self.prompt(), math.nan, {})

    def _next(self) -> Event:
        if self.pending:
            return self.pending.pop(0)
        if self.due and self.validation is not None:
            return self._validate(self.validation)
        reason = self.ended()
        return self.one_step() if reason is None else Finished(self.step, reason)

    def ended(self) -> str | None:
        """Why the run is over, if it is."""
        patience = self.training.patience
        if patience is not None and self.stale >= patience:
            return f"no better for {self.stale} validations"
        if self.step < self.total:
            return None
        cut = self.step == self.training.steps
        return f"all {self.step} steps done" if cut else f"all {self.epoch} epochs done"

    def one_step(self) -> Step:
        """One optimiser step on the next batch."""
        batch = [self.rows.examples[i] for i in self.batches[self.at]]
        which, device = self.accelerator.process_index, self.task.backbone.device
        self._wake(awake=True)
        with seeded(self.training.seed, step=self.step, process=which, device=device):
            loss, count = gradients(
                self.task,
                self.method,
                batch=batch,
                parts=self.training.accumulate,
                accelerator=self.accelerator,
            )
        norm = self._clipped()
        check_step(
            self.step + 1, loss, norm=norm, training=self.training, scaler=self.accelerator.scaler
        )
        rate = advance(self.optimizer, self.schedule)
        self.seen_loss, self.seen_count = self.seen_loss + loss * count, self.seen_count + count
        self._advance()
        return Step(
            self.step, self.epoch + self.at / len(self.batches), loss, len(batch), rate, norm
        )

    def _advance(self) -> None:
        self.step, self.at = self.step + 1, self.at + 1
        ended = self.at == len(self.batches)
        every = self.training.evaluate_every
        regular = ended if every is None else self.step % every == 0
        self.due = self.validation is not None and (regular or self.step == self.total)
        if ended:
            self.epoch, self.at = self.epoch + 1, 0
            self.batches = self.order.batches(self.epoch)

    def _wake(self, *, awake: bool) -> None:
        """Put what is trained, and the backbone if it is to be, in training mode or out of it."""
        self.modules.train(awake)
        if self.training.awake:
            self.task.backbone.model.train(awake)

    def _clipped(self) -> float:
        limit = self.training.clip
        most = math.inf if limit is None else limit
        parameters = trained(self.task, self.method)
        norm = self.accelerator.clip_grad_norm_(parameters, most)
        return float(norm)

    def _validate(self, rows: Rows) -> Evaluation:
        prompt = self.prompt()
        parts = self._judge(prompt, rows)
        found = report(self.task, parts)
        train = None
        if self.judged is not None:
            train = report(self.task, self._judge(prompt, self.judged))
        better = self._keep(prompt, dict(found.metrics))
        norm, moved = distance(self.start, prompt)
        seen = self.seen_loss / self.seen_count if self.seen_count else None
        self.seen_loss, self.seen_count, self.due = 0.0, 0, False
        if self.step:
            self._warn(parts, moved, norm)
        epoch = self.epoch + self.at / len(self.batches)
        return Evaluation(self.step, epoch, seen, found, better, norm, moved, train)

    def _judge(self, prompt: Prompt, rows: Rows) -> list[Judged]:
        size, asked = self.training.batch_size, self.accelerator
        return judged(self.task, rows, prompt=prompt, batch_size=size, accelerator=asked)

    def _warn(self, parts: Sequence[Judged], moved: float, norm: float) -> None:
        """Each kind of warning once."""
        family = self.task.backbone.geometry.family
        found = warnings(parts, labels=self.task.labels, moved=moved, norm=norm, family=family)
        for kind, message in found:
            if kind not in self.told:
                self.told.add(kind)
                self.pending.append(Warned(self.step, message))

    def _keep(self, prompt: Prompt, metrics: Mapping[str, float]) -> bool:
        score = score_of(metrics, select=self.training.select, step=self.step)
        if self.best is not None and score <= self.best.score:
            self.stale += 1
            return False
        self.stale = 0
        self.best = self._snapshot(prompt, score, metrics)
        return True

    def _snapshot(self, prompt: Prompt, score: float, metrics: Mapping[str, float]) -> Best:
        return snapshot(prompt, self.task.head, score=score, step=self.step, metrics=metrics)
