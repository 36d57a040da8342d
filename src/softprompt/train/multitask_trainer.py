"""The training loop of several tasks: the trainers of the tasks take turns on one shared prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from softprompt.data.few_rows import count_rows
from softprompt.errors import TrainingError
from softprompt.methods.multitask_prompt_tuning import MultitaskPromptTuningMethod
from softprompt.prompt import InputPrompt
from softprompt.train.accelerator import prepare_only
from softprompt.train.events import (
    Evaluation,
    Event,
    Finished,
    PhaseStarted,
    Step,
    TrainingWarning,
)
from softprompt.train.optimizers import build_lr_scheduler, build_optimizer
from softprompt.train.trainer import Trainer, compute_selection_score

# Far more rounds than a run has, so that no two seeds share an order.
_MAX_ROUNDS = 1_000_003
# The parts of a trainer's state that all tasks share.
SHARED_STATE = ("optimizer", "schedule", "scaler")


@dataclass(frozen=True, eq=False)
class BestShared:
    """The shared prompt at the validations with the best mean score so far.

    Args:
        vectors: on the CPU.
        score: the mean of the tasks' scores; higher is better.
        step: of the validations.
    """

    vectors: Tensor
    score: float
    step: int


class MultitaskTrainer:
    """Trains a shared prompt, and the matrix and the head of each task.

    Each step is one of one task's trainer: a batch of its rows, whose gradient changes the shared
    prompt and what belongs to the task. One optimizer holds the parameters of all tasks, so that
    the shared prompt has one state in it. A round has as many steps as the batches of all rows; it
    is divided among the tasks (`divide_steps`) and shuffled by the seed and its number.

    All tasks validate before the first step, then after each round or every ``eval_every_steps``
    steps, and after the last one. Each keeps its own best prompt. The run ends after its last step,
    or when each task has had ``early_stopping_patience`` validations without a better one.

    Args:
        trainers: of each task by its name, at the start, with the method
            `MultitaskPromptTuning`. Their shared prompts are replaced by that of the first one.
        temperature: of the division of steps.

    Raises:
        TrainingError: the shared prompts of the tasks differ at the start.
    """

    def __init__(self, trainers: Mapping[str, Trainer], *, temperature: float) -> None:
        self.trainers = dict(trainers)
        first = next(iter(self.trainers.values()))
        self.accelerator, self.training = first.accelerator, first.training
        self.shared = share_prompt(self.trainers)
        self.counts = divide_steps(
            {name: len(trainer.batches) for name, trainer in self.trainers.items()}, temperature
        )
        self.round_steps = sum(self.counts.values())
        steps = self.training.epochs * self.round_steps
        self.total = min(steps, self.training.max_steps or steps)
        self.step = 0
        # Of the last validation of each task; the mean decides about the shared prompt.
        self.scores: dict[str, float] = {}
        self.best_shared: BestShared | None = None
        self.turns: list[str] | None = None  # of the present round, once it is drawn
        self._share_optimizer()

    def _share_optimizer(self) -> None:
        """Give all trainers one optimizer and one schedule, of all steps."""
        trainers = self.trainers.values()
        # The shared prompt comes once.
        prompts = dict.fromkeys(p for trainer in trainers for p in trainer.method.parameters())
        heads = [
            p
            for trainer in trainers
            if trainer.task.head is not None
            for p in trainer.task.head.parameters()
        ]
        optimizer = build_optimizer(prompts, heads, training=self.training)
        schedule = build_lr_scheduler(optimizer, training=self.training, steps=self.total)
        prepared = prepare_only(optimizer, self.accelerator)
        for trainer in trainers:
            trainer.optimizer, trainer.schedule, trainer.total = prepared, schedule, self.total

    def iterate(self) -> Iterator[Event]:
        """Train from the current position to the end.

        Yields:
            The events, with the step of the whole run and the name of the task.

        Raises:
            TrainingError: a loss or a gradient is NaN or infinite.
            RecipeError: there is no such metric to select by.
        """
        while True:
            waiting = self._find_waiting()
            if waiting is not None:
                yield from self._announce(waiting)
                yield self._follow(waiting)
            elif not self.is_finished():
                yield self._train_step()
            else:
                yield from self._finish()
                return

    def _find_waiting(self) -> str | None:
        """The first task with a warning or a validation to come."""
        return next(
            (name for name, t in self.trainers.items() if t.pending or t.validation_due), None
        )

    def _announce(self, name: str) -> Iterator[PhaseStarted]:
        trainer = self.trainers[name]
        if trainer.validation is not None and not trainer.pending:
            count = len(trainer.validation.examples)
            yield PhaseStarted("validating", f"{count_rows(count)} of {name}", count, self.step)

    def _follow(self, name: str) -> Event:
        """The next event of a task: a warning, a validation, or its end."""
        trainer = self.trainers[name]
        trainer.step = self.step
        event = next(trainer.run())
        if isinstance(event, Evaluation):
            metric = self.training.best_metric
            self.scores[name] = compute_selection_score(
                event.metrics, select=metric, step=self.step
            )
            if not any(other.validation_due for other in self.trainers.values()):
                self._keep_shared()
        return _name_task(event, name)

    def _train_step(self) -> Event:
        """One step of the task whose turn it is."""
        number, place = divmod(self.step, self.round_steps)
        if self.turns is None or not place:
            self.turns = self.draw_round(number)
        name = self.turns[place]
        trainer = self.trainers[name]
        trainer.step = self.step
        event = trainer.train_step()
        self.step = trainer.step
        interval = self.training.eval_every_steps or self.round_steps
        is_due = self.step % interval == 0 or self.step == self.total
        for each in self.trainers.values():
            each.validation_due = is_due and each.validation is not None
        return _name_task(event, name)

    def draw_round(self, number: int) -> list[str]:
        """Draw the order of the tasks in a round.

        Args:
            number: of the round, counted from 0.

        Returns:
            The name of the task of each step.
        """
        names = [name for name, count in self.counts.items() for _ in range(count)]
        seed = self.training.seed * _MAX_ROUNDS + number
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
        return [names[index] for index in order.tolist()]

    def is_finished(self) -> bool:
        """Whether all steps are done, or no task improves any more."""
        for trainer in self.trainers.values():
            trainer.step = self.step
        return all(trainer.stop_reason() is not None for trainer in self.trainers.values())

    def _finish(self) -> Iterator[Event]:
        """The warnings of the tasks that learned nothing, and the end."""
        for name in self.trainers:
            while not isinstance(event := self._follow(name), Finished):
                yield event
        patience = self.training.early_stopping_patience
        reason = f"no task improved in {patience} validations or more"
        if self.step == self.total:
            reason = f"all {self.step:,} steps done"
        yield Finished(self.step, reason)

    def _keep_shared(self) -> None:
        """Keep the shared prompt if the mean of the tasks' scores is the best so far."""
        mean = sum(self.scores.values()) / len(self.scores)
        if mean > (-inf if self.best_shared is None else self.best_shared.score):
            self.best_shared = BestShared(self._copy_shared(), mean, self.step)

    def _copy_shared(self) -> Tensor:
        return self.shared.detach().to("cpu", copy=True)

    def get_best_shared(self) -> tuple[InputPrompt, int]:
        """The best shared prompt by validation, or the current one without, and its step."""
        best, first = self.best_shared, next(iter(self.trainers.values()))
        layer = first.start.start_layer if isinstance(first.start, InputPrompt) else 0
        vectors = self._copy_shared() if best is None else best.vectors
        return InputPrompt(vectors, layer), self.step if best is None else best.step

    def count_validations(self) -> int:
        """The number of validations of all tasks that are still to come, at most."""
        interval = self.training.eval_every_steps or self.round_steps
        after_last = 1 if self.total % interval and self.step < self.total else 0
        rounds = self.total // interval - self.step // interval + after_last
        validating = [t for t in self.trainers.values() if t.validation is not None]
        return rounds * len(validating) + sum(t.validation_due for t in validating)

    def state_dict(self) -> dict[str, Any]:
        """The state that the rest of the run depends on, besides those of the trainers."""
        first, best = next(iter(self.trainers.values())).state_dict(), self.best_shared
        return {
            **{key: first[key] for key in SHARED_STATE},
            "step": self.step,
            "scores": dict(self.scores),
            "best_shared": None if best is None else [best.vectors, best.score, best.step],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned; the trainers have theirs."""
        self.step, self.scores, self.turns = state["step"], dict(state["scores"]), None
        best = state["best_shared"]
        self.best_shared = None if best is None else BestShared(*best)


def _name_task(event: Event, name: str) -> Event:
    match event:
        case Step() | Evaluation() | TrainingWarning():
            return replace(event, task=name)
        case _:
            return event


def share_prompt(trainers: Mapping[str, Trainer]) -> Tensor:
    """Make the shared prompt of the first trainer that of all.

    Args:
        trainers: by the names of their tasks.

    Returns:
        The shared prompt.

    Raises:
        TrainingError: they differ.
    """
    methods = {name: trainer.method for name, trainer in trainers.items()}
    shared: Tensor | None = None
    for name, method in methods.items():
        if not isinstance(method, MultitaskPromptTuningMethod):
            msg = f"the task {name!r} trains no shared prompt. Use multitask-prompt-tuning."
            raise TrainingError(msg)
        shared = method.shared if shared is None else shared
        if shared.shape != method.shared.shape or not torch.equal(shared, method.shared):
            shapes = f"{[*shared.shape]} and {[*method.shared.shape]}"
            msg = (
                f"the shared prompts of {next(iter(methods))!r} and {name!r} differ at the start "
                f"(shapes {shapes}), but the tasks train one. Give all templates the same number "
                "of soft tokens, and all tasks the same initialization."
            )
            raise TrainingError(msg)
        method.shared = shared
    assert shared is not None  # noqa: S101  # there are trainers
    return shared


def divide_steps(batches: Mapping[str, int], temperature: float) -> dict[str, int]:
    """Divide the steps of a round among the tasks.

    A task's share is proportional to its number of batches to the power of 1 / ``temperature``
    (1: each task gets its own batches). Each gets one step at least; remainders go to the largest
    fractions.

    Args:
        batches: the number of batches of each task.
        temperature: greater than 0.

    Returns:
        The number of steps of each task.

    Examples:
        >>> divide_steps({"large": 90, "small": 10}, 1.0)
        {'large': 90, 'small': 10}
        >>> divide_steps({"large": 90, "small": 10}, 2.0)
        {'large': 75, 'small': 25}
    """
    total = sum(batches.values())
    largest = max(batches.values())
    weights = {name: (count / largest) ** (1 / temperature) for name, count in batches.items()}
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    steps = {name: max(1, int(share)) for name, share in exact.items()}
    by_fraction = sorted(exact, key=lambda name: steps[name] - exact[name])
    for name in _repeat_names(by_fraction, max(0, total - sum(steps.values()))):
        steps[name] += 1
    return steps


def _repeat_names(names: Sequence[str], count: int) -> Iterator[str]:
    return (names[index % len(names)] for index in range(count))
