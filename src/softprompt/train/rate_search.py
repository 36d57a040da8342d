"""``learning_rate = "auto"``: short runs from the same start choose a multiple of the usual rate.

All rates are tried for a few steps, a range test, and the better ones for twice as many more
(successive halving: Jamieson & Talwalkar 2016). The validation loss decides; where there are folds,
it is that of two of them, or of as many as the search has steps for. The runs read the same cached
states as the run itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from accelerate import Accelerator

from softprompt.data.few_rows import count_rows
from softprompt.errors import TrainingError
from softprompt.train.datasets import choose_judges
from softprompt.train.events import Callback, PhaseStarted, SearchProgress
from softprompt.train.folds import make_fold
from softprompt.train.kept import read_kept, write_kept
from softprompt.train.precompute import share_cached_states
from softprompt.train.run_dir import RunDir
from softprompt.train.sampler import BatchSampler
from softprompt.train.setup import RunSetup, make_trainer, restore_start, settle_fold_readouts
from softprompt.train.stages import notify
from softprompt.train.trainer import Trainer

# The multiples of the usual rate, from the middle outwards; of equals the first is taken.
MULTIPLIERS = (1.0, 3.0, 1 / 3, 9.0, 1 / 9)
# How many rates are left for each round, and its steps in units of the first round's.
_ROUNDS = ((5, 1), (2, 2))
# The steps of all rounds, in units of the first round's, for each split.
_UNITS = sum(count * length for count, length in _ROUNDS)
# Of all trainings of the run, the fraction of their steps that a search may make in addition; the
# fewest of the first round, and the fewest folds.
_SHARE, _FEWEST_STEPS, _FEWEST_FOLDS = 0.2, 8, 2


@dataclass(frozen=True)
class RateSearch:
    """The rates that were tried, and the one that was chosen.

    Args:
        multiplier: of the usual rate, of the chosen one.
        losses: the last validation loss of each multiplier; infinite where training failed.
        steps: of the whole search.
        judge: the rows that decided.
    """

    multiplier: float
    losses: Mapping[float, float]
    steps: int
    judge: str

    def as_data(self) -> dict[str, Any]:
        """The search as JSON has it."""
        losses = [[m, loss if isfinite(loss) else None] for m, loss in self.losses.items()]
        return {
            "multiplier": self.multiplier,
            "losses": losses,
            "steps": self.steps,
            "judge": self.judge,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "RateSearch":
        """The search that `as_data` returned."""
        losses = {m: inf if loss is None else loss for m, loss in data["losses"]}
        return cls(data["multiplier"], losses, data["steps"], data["judge"])


def settle_learning_rate(
    prepared: RunSetup,
    accelerator: Accelerator,
    *,
    callbacks: Sequence[Callback],
    folder: RunDir | None = None,
) -> RunSetup:
    """Choose the learning rate, if the recipe says ``"auto"``.

    Args:
        prepared: the parts of the run, which are as before afterwards.
        accelerator: of the run.
        callbacks: called with a `SearchProgress` at each step.
        folder: of the run, which keeps the choice for a resumed run; None to keep it in memory.

    Returns:
        The parts with the rate.

    Raises:
        ArtifactError: the folder has the choice of another recipe or other rows.
        TrainingError: training failed with every rate.
    """
    if prepared.recipe.train.learning_rate != "auto":
        return prepared
    search = None
    if folder is not None:
        search = read_kept(folder, "learning-rate", prepared=prepared, parse=RateSearch.from_data)
    if search is None:
        prepared = settle_fold_readouts(prepared)
        prepared = share_cached_states(prepared, accelerator, callbacks=callbacks)
        search = try_learning_rates(prepared, accelerator, callbacks=callbacks)
        if folder is not None and accelerator.is_main_process:
            write_kept(folder, "learning-rate", prepared=prepared, value=search.as_data())
    return use_learning_rate(prepared, search)


def use_learning_rate(prepared: RunSetup, search: RateSearch) -> RunSetup:
    """The parts with the rate that a search chose; a head's rate is multiplied too."""
    changed = multiply_rates(prepared, search.multiplier)
    note = (
        f"learning rate: {changed.training.learning_rate:.2g}, {search.multiplier:.2g} times the "
        f"usual one, chosen in {search.steps:,} steps by the loss on {search.judge}"
    )
    return replace(changed, rate_search=search.as_data(), notes=(*prepared.notes, note))


def try_learning_rates(
    prepared: RunSetup, accelerator: Accelerator, *, callbacks: Sequence[Callback]
) -> RateSearch:
    """Try several learning rates from the start of a run.

    Args:
        prepared: the parts of the run, which are as before afterwards.
        accelerator: of the run.
        callbacks: called with a `SearchProgress` at each step.

    Raises:
        TrainingError: training failed with every rate.
    """
    splits, judge = _choose_splits(prepared)
    steps = _count_steps(prepared, splits)
    total = steps * len(splits) * sum(count * length for count, length in _ROUNDS)
    notify(callbacks, PhaseStarted("searching", f"the learning rate, {total:,} steps"))
    trials = [_Trial(multiplier) for multiplier in MULTIPLIERS]
    left, done = trials, 0
    for count, length in _ROUNDS:
        left = sorted(left, key=lambda trial: trial.loss)[:count]
        for trial in left:
            for _ in trial.advance(splits, accelerator, steps=steps * length):
                done += 1
                notify(callbacks, SearchProgress(trial.multiplier, done, total))
    best = min(left, key=lambda trial: trial.loss)
    if not isfinite(best.loss):
        msg = (
            "training failed with every learning rate that was tried. Give one yourself "
            "(train.learning_rate), or use another precision or optimizer."
        )
        raise TrainingError(msg)
    return RateSearch(best.multiplier, {t.multiplier: t.loss for t in trials}, done, judge)


class _Trial:
    """The short runs of one rate, one for each split, which can continue in the next round.

    Args:
        multiplier: of the usual rate.

    Attributes:
        loss: the mean over the rows that judge; infinite where training failed.
    """

    def __init__(self, multiplier: float) -> None:
        self.multiplier, self.loss = multiplier, 0.0
        # Of each split, from which its run continues.
        self._states: dict[int, Mapping[str, Any]] = {}

    def advance(
        self, splits: Sequence[RunSetup], accelerator: Accelerator, *, steps: int
    ) -> Iterator[None]:
        """Make steps on each split, and measure the loss after them; a failed trial ends."""
        losses: list[float] = []
        for number, split in enumerate(splits):
            judges = split.rows["validation"]
            with restore_start(split):
                trainer = self._make_trainer(split, accelerator)
                if number in self._states:
                    trainer.load_state_dict(self._states[number])
                try:
                    for _ in range(steps):
                        trainer.train_step()
                        yield
                    losses.append(trainer.evaluate(judges).metrics["loss"] * len(judges.truth))
                except TrainingError:  # a loss or a gradient is not finite
                    losses.append(inf)
                self._states[number] = deepcopy(trainer.state_dict())
        mean = sum(losses) / sum(len(split.rows["validation"].truth) for split in splits)
        self.loss = mean if isfinite(mean) else inf

    def _make_trainer(self, split: RunSetup, accelerator: Accelerator) -> Trainer:
        searched = multiply_rates(split, self.multiplier)
        training = replace(
            searched.training,
            lr_scheduler="constant",
            warmup_ratio=0.0,
            max_eval_rows=None,
            eval_train_rows=None,
        )
        rows = {"train": split.rows["train"]}
        return make_trainer(replace(split, training=training, rows=rows), accelerator)


def multiply_rates(prepared: RunSetup, factor: float) -> RunSetup:
    """The parts with other learning rates; that of a head stays if the recipe names it.

    Args:
        prepared: the parts of a run.
        factor: of the usual rates.
    """
    training = prepared.training
    is_named = prepared.recipe.train.head_learning_rate is not None
    changed = replace(
        training,
        learning_rate=training.learning_rate * factor,
        head_learning_rate=training.head_learning_rate * (1 if is_named else factor),
    )
    return replace(prepared, training=changed)


def _choose_splits(prepared: RunSetup) -> tuple[list[RunSetup], str]:
    """The parts to train and to judge by, once or for some folds, and the name of the judges."""
    if prepared.folds:
        used = _count_folds(prepared)
        splits = [make_fold(prepared, number + 1) for number in range(used)]
        judged = sum(len(split.rows["validation"].truth) for split in splits)
        of = "" if used == len(prepared.folds) else f" of {len(prepared.folds)}"
        return splits, f"{count_rows(judged)} in {used}{of} folds"
    judges, name = choose_judges(prepared.rows)
    return [replace(prepared, rows={"train": prepared.rows["train"], "validation": judges})], name


def _count_folds(prepared: RunSetup) -> int:
    """The folds to judge rates by: two, or as many as the search has steps for."""
    affordable = round(_count_affordable_steps(prepared) / (_UNITS * _FEWEST_STEPS))
    return min(len(prepared.folds), max(_FEWEST_FOLDS, affordable))


def _count_affordable_steps(prepared: RunSetup) -> float:
    """The share of the steps of all trainings that a search may make."""
    trainings = len(prepared.folds) + 1
    return _SHARE * trainings * _count_run_steps(prepared)


def _count_run_steps(prepared: RunSetup) -> int:
    lengths = [example.length for example in prepared.rows["train"].examples]
    return BatchSampler(lengths, prepared.training).count_steps()


def _count_steps(prepared: RunSetup, splits: Sequence[RunSetup]) -> int:
    """The steps of the first round, for each rate and split."""
    wanted = round(_count_affordable_steps(prepared) / (_UNITS * len(splits)))
    longest = sum(length for _, length in _ROUNDS)  # no longer than the run
    return max(1, min(max(_FEWEST_STEPS, wanted), _count_run_steps(prepared) // longest))
