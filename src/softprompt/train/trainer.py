"""The training loop: it yields steps, and touches no file, no clock and no terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from softprompt.data.batch import like_length
from softprompt.errors import RecipeError, TrainingError, unknown
from softprompt.evaluate.predict import Judged, judge, report
from softprompt.methods import Method
from softprompt.prompt import Prompt, detached
from softprompt.tasks import Example, Task
from softprompt.train.best import Best, restored, snapshot, with_tensors
from softprompt.train.events import Evaluation, Event, Finished, Step, Warned
from softprompt.train.optimise import optimiser, schedule
from softprompt.train.rows import Rows
from softprompt.train.settings import Training
from softprompt.train.watch import distance, warnings


class Trainer:
    """One run: a method and perhaps a head, trained on one task.

    Iterate over :meth:`run`; between two events the run can be saved and, in another process,
    loaded and continued, with the same numbers to the end.

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
        self.task, self.training, self.accelerator = task, training, accelerator
        self.rows, self.validation = rows, validation
        self.method = method.to(task.backbone.device)
        self.start = detached(method())
        self.modules = nn.ModuleDict({"method": self.method})
        if task.head is not None:
            self.modules["head"] = task.head
        self.lengths = [e.length for e in rows.examples]
        self.total = self._count_steps()
        head = [] if task.head is None else list(task.head.parameters())
        plain = optimiser(self.method.parameters(), head, training=training)
        self.schedule = schedule(plain, training=training, steps=self.total)
        self.optimizer = accelerator.prepare(plain)
        self.step, self.epoch, self.at = 0, 0, 0
        self.seen_loss, self.seen_count = 0.0, 0
        self.best: Best | None = None
        self.stale = 0
        self.told: set[str] = set()

    def run(self) -> Iterator[Event]:
        """Train to the end, from wherever the run is.

        Raises:
            TrainingError: the loss or the gradient is no number.
        """
        if self.step == 0:
            yield from self._validate(0.0)
        reason = f"all {self.training.epochs} epochs done"
        while self.epoch < self.training.epochs and self.step < self.total:
            order = self._order(self.epoch)
            while self.at < len(order) and self.step < self.total:
                step = self._one_step(order)
                yield step
                if self._is_due(len(order)):
                    yield from self._validate(step.epoch)
                    if self._is_stale():
                        yield Finished(self.step, f"no better for {self.stale} validations")
                        return
            if self.at >= len(order):
                self.epoch, self.at = self.epoch + 1, 0
        if self.step == self.training.steps:
            reason = f"all {self.step} steps done"
        yield Finished(self.step, reason)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "modules": dict(self.modules.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "position": [self.step, self.epoch, self.at, self.stale, self.seen_count],
            "seen_loss": self.seen_loss,
            "told": sorted(self.told),
            "start": self.start.tensors(),
            "best": None if self.best is None else self.best.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.epoch, self.at, self.stale, self.seen_count = state["position"]
        self.seen_loss, self.told = state["seen_loss"], set(state["told"])
        self.start = with_tensors(self.start, state["start"])
        best = state["best"]
        self.best = None if best is None else restored(best, like=self.start)

    def prompt(self) -> Prompt:
        """The prompt as it is now, without dropout."""
        self.modules.eval()
        with torch.no_grad():
            return self.method()

    def chosen(self) -> Best:
        """The best prompt by validation, or the last one where nothing was validated."""
        return self.best or self._snapshot(math.nan, {})

    def _count_steps(self) -> int:
        most = self.training.steps
        epochs = self.training.epochs
        if self.training.token_budget is None:
            planned = epochs * math.ceil(len(self.lengths) / self.training.batch_size)
        else:
            planned = sum(len(self._order(epoch)) for epoch in range(epochs))
        return planned if most is None else min(planned, most)

    def _order(self, epoch: int) -> list[list[int]]:
        return like_length(
            self.lengths,
            size=self.training.batch_size,
            seed=self.training.seed * 1_000_003 + epoch,
            budget=self.training.token_budget,
        )

    def _one_step(self, order: Sequence[Sequence[int]]) -> Step:
        batch = order[self.at]
        loss, count = self._gradients(batch)
        norm = self._clipped()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            msg = (
                f"step {self.step + 1}: the loss is {loss} and its gradient's norm {norm}. The "
                f"learning rate {self.training.learning_rate:g} is too high, or the precision too "
                'low: try a third of the rate, or backbone.dtype = "float32".'
            )
            raise TrainingError(msg)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step, self.at = self.step + 1, self.at + 1
        self.seen_loss, self.seen_count = self.seen_loss + loss * count, self.seen_count + count
        epoch = self.epoch + self.at / len(order)
        return Step(self.step, epoch, loss, len(batch), rate, norm)

    def _gradients(self, batch: Sequence[int]) -> tuple[float, int]:
        """The gradient of the mean loss per scored token, whatever the split into parts.

        The count is known before anything runs, so each part is divided by the whole's.
        """
        workers, which = self.accelerator.num_processes, self.accelerator.process_index
        count = sum(_scored(self.rows.examples[i]) for i in batch)
        self.modules.train()
        total = torch.zeros((), device=self.accelerator.device)
        for part in _parts(batch[which::workers], self.training.accumulate):
            with self.accelerator.autocast():
                examples = [self.rows.examples[i] for i in part]
                loss = self.task.loss(examples, [self.method()])
            self.accelerator.backward(loss.total / count)
            total += loss.total.detach().to(total)
        return float(self._summed(total)) / count, count

    def _summed(self, total: Tensor) -> Tensor:
        """Add up losses and gradients of all processes: a prompt is small, so one message does."""
        if self.accelerator.num_processes == 1:
            return total
        given = [p for p in self.modules.parameters() if p.requires_grad]
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in given]
        message = torch.cat([total.reshape(1), *(g.flatten() for g in flat)])
        message = self.accelerator.reduce(message, "sum")
        begin = 1
        for parameter in given:
            end = begin + parameter.numel()
            parameter.grad = message[begin:end].view_as(parameter).clone()
            begin = end
        return message[0]

    def _clipped(self) -> float:
        limit = self.training.clip
        most = math.inf if limit is None else limit
        norm = self.accelerator.clip_grad_norm_(self.modules.parameters(), most)
        return float(norm)

    def _is_due(self, batches: int) -> bool:
        every = self.training.evaluate_every
        if self.validation is None:
            return False
        ended = self.at >= batches if every is None else self.step % every == 0
        return ended or self.step == self.total

    def _is_stale(self) -> bool:
        return self.training.patience is not None and self.stale >= self.training.patience

    def _validate(self, epoch: float) -> Iterator[Event]:
        if self.validation is None:
            return
        prompt = self.prompt()
        which, workers = self.accelerator.process_index, self.accelerator.num_processes
        mine = judge(
            self.task,
            self.validation.examples[which::workers],
            self.validation.truth[which::workers],
            prompt=prompt,
            batch_size=self.training.batch_size,
        )
        parts: list[Judged] = gather_object([mine])
        found = report(self.task, parts)
        better = self._keep(dict(found.metrics))
        norm, moved = distance(self.start, prompt)
        seen = self.seen_loss / self.seen_count if self.seen_count else None
        self.seen_loss, self.seen_count = 0.0, 0
        yield Evaluation(self.step, epoch, seen, found, better, norm, moved)
        if self.step:
            yield from self._warned(parts, moved, norm)

    def _warned(self, parts: Sequence[Judged], moved: float, norm: float) -> Iterator[Warned]:
        """Each kind of warning once."""
        t5 = self.task.backbone.geometry.family in {"t5", "mt5", "umt5"}
        found = warnings(parts, labels=self.task.labels, moved=moved, norm=norm, t5=t5)
        for kind, message in found:
            if kind not in self.told:
                self.told.add(kind)
                yield Warned(self.step, message)

    def _keep(self, metrics: dict[str, float]) -> bool:
        select = self.training.select
        if select not in metrics:
            raise RecipeError([f"train.select: {unknown('metric', select, options=metrics)}"])
        score = -metrics[select] if select == "loss" else metrics[select]
        if self.best is not None and not score > self.best.score:
            self.stale += 1
            return False
        self.stale = 0
        self.best = self._snapshot(score, metrics)
        return True

    def _snapshot(self, score: float, metrics: Mapping[str, float]) -> Best:
        return snapshot(self.prompt(), self.task.head, score=score, step=self.step, metrics=metrics)


def _scored(example: Example) -> int:
    return len(example.target) if isinstance(example.target, tuple) else 1


def _parts(batch: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    size = max(1, math.ceil(len(batch) / count))
    for begin in range(0, len(batch), size):
        yield batch[begin : begin + size]
