"""The loop that trains the backbone itself: what prompts are compared with.

The order of rows, the losses, the validations and the choice of the best are those of
:class:`softprompt.train.trainer.Trainer`. Nothing is saved on the way: weights are large, and a run
that was stopped begins again.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompt.errors import TrainingError
from softprompt.evaluate.predict import Report, report
from softprompt.train.best import score_of
from softprompt.train.events import Evaluation, Finished, Step
from softprompt.train.gradient import check_step, gradients, seeded
from softprompt.train.optimise import advance, optimiser, schedule
from softprompt.train.order import Order
from softprompt.train.rows import Rows
from softprompt.train.tuning import Tuned
from softprompt.train.validate import judged


@dataclass(frozen=True, eq=False)
class Chosen:
    """The best weights by validation.

    Args:
        tensors: of everything that is trained, in order.
        score: the higher, the better.
        metrics: on the validation rows.
        step: after which step.
    """

    tensors: Sequence[Tensor]
    score: float
    metrics: Mapping[str, float]
    step: int


class Tuner:
    """One run; iterate over :meth:`run` to its end, then ask for what was chosen.

    Args:
        parts: of the run.
        accelerator: device and precision, in one process.
    """

    def __init__(self, parts: Tuned, accelerator: Accelerator) -> None:
        self.parts, self.accelerator = parts, accelerator
        training, head = parts.training, parts.task.head
        self.order = Order([e.length for e in parts.rows.examples], training)
        self.total, self.step = self.order.steps(), 0
        own = [] if head is None else [*head.parameters()]
        plain = optimiser(parts.weights, own, training=training)
        self.schedule = schedule(plain, training=training, steps=self.total)
        self.optimizer = accelerator.prepare(plain)
        self.best: Chosen | None = None

    def run(self) -> Iterator[Step | Evaluation | Finished]:
        """Train to the end.

        Raises:
            TrainingError: a loss or a gradient is no number.
        """
        epoch, stale, patience = 0, 0, self.parts.training.patience
        yield self._validate(0.0)
        while self.step < self.total:
            batches = self.order.batches(epoch)
            for at, batch in enumerate(batches, start=1):
                done = epoch + at / len(batches)
                yield self._step(batch, done)
                every = self.parts.training.evaluate_every
                due = at == len(batches) if every is None else self.step % every == 0
                if due or self.step == self.total:
                    found = self._validate(done)
                    yield found
                    stale = 0 if found.best else stale + 1
                if self.step == self.total or (patience is not None and stale >= patience):
                    yield Finished(self.step, f"after {self.step} steps")
                    return
            epoch += 1

    def take_best(self) -> Chosen:
        """Put the best weights in the backbone and the head; after the end of the run."""
        if self.best is None:
            msg = "nothing was validated, so nothing can be chosen. Run to the end first."
            raise TrainingError(msg)
        with torch.no_grad():
            for parameter, tensor in zip(self.parts.trained, self.best.tensors, strict=True):
                parameter.copy_(tensor)
        return self.best

    def _step(self, batch: Sequence[int], epoch: float) -> Step:
        task, training = self.parts.task, self.parts.training
        self._wake(awake=True)
        with seeded(training.seed, step=self.step, process=0, device=task.backbone.device):
            loss, _ = gradients(
                task,
                None,
                batch=[self.parts.rows.examples[i] for i in batch],
                parts=training.accumulate,
                accelerator=self.accelerator,
            )
        limit = math.inf if training.clip is None else training.clip
        norm = float(self.accelerator.clip_grad_norm_(self.parts.trained, limit))
        check_step(
            self.step + 1, loss, norm=norm, training=training, scaler=self.accelerator.scaler
        )
        rate = advance(self.optimizer, self.schedule)
        self.step += 1
        return Step(self.step, epoch, loss, len(batch), rate, norm)

    def judge(self, rows: Rows) -> Report:
        """What the weights as they are now are worth on some rows."""
        task, size, asked = self.parts.task, self.parts.training.batch_size, self.accelerator
        self._wake(awake=False)
        with asked.autocast():
            parts = judged(task, rows, prompt=None, batch_size=size, accelerator=asked)
        return report(task, parts)

    def _validate(self, epoch: float) -> Evaluation:
        training = self.parts.training
        found = self.judge(self.parts.validation)
        score = score_of(found.metrics, select=training.select, step=self.step)
        better = self.best is None or score > self.best.score
        if better:
            tensors = [p.detach().cpu().clone() for p in self.parts.trained]
            self.best = Chosen(tensors, score, dict(found.metrics), self.step)
        return Evaluation(self.step, epoch, None, found, better)

    def _wake(self, *, awake: bool) -> None:
        if self.parts.training.awake:
            self.parts.task.backbone.model.train(awake)
