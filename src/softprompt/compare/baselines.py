"""The baselines of a comparison that take no training steps, each made when it is needed.

Fine-tuning and LoRA are baselines too, but they are trained like prompts: see
:func:`softprompt.compare.config.make_finetune_variants`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol as Interface

from softprompt.backbone.model import Backbone
from softprompt.compare.linear_probe import FeatureReader, fit_probe
from softprompt.compare.results import BaselineSkipped, Cost
from softprompt.data import Table
from softprompt.data.inputs import Row
from softprompt.inference import predict_without_prompt
from softprompt.recipe import Recipe
from softprompt.tasks import Classify, Task
from softprompt.train.datasets import find_labels, get_target_column
from softprompt.train.setup import setup_hard_prompt
from softprompt.train.templates import resolve_hard_template

_UNAVAILABLE = {
    "hard-prompt": "The task predicts with a trained head, which is random before training.",
    "linear-probe": "The task generates text, so there are no labels to classify.",
}


class Baseline(Interface):
    """Predicts test rows."""

    @property
    def cost(self) -> Cost | None:
        """Of its training; None where nothing was trained."""

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """One answer for each row."""


@dataclass(frozen=True)
class MajorityBaseline:
    """The most frequent answer of the training rows, for every row.

    Args:
        answer: the most frequent one.
    """

    answer: str
    cost: None = None

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The same for every row."""
        return [self.answer] * len(rows)


@dataclass(frozen=True, eq=False)
class HardPromptBaseline:
    """The backbone without a trained prompt.

    Args:
        task: whose template has no soft tokens.
    """

    task: Task
    cost: None = None

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The backbone's own answers."""
        return predict_without_prompt(self.task, rows)


def fit_majority(answers: Sequence[str]) -> MajorityBaseline:
    """The most frequent of these; of equally frequent ones the first in alphabetical order."""
    count = Counter(answers)
    return MajorityBaseline(min(count, key=lambda answer: (-count[answer], answer)))


@dataclass(frozen=True, eq=False)
class Baselines:
    """The baselines that take no training steps.

    Args:
        base: the recipe.
        backbone: that predicts.
        tables: rows by split.
    """

    base: Recipe
    backbone: Backbone
    tables: Mapping[str, Table]

    def select(self, names: Sequence[str]) -> dict[str, Callable[[], Baseline]]:
        """The named baselines that exist for the recipe, each made when it is called.

        A task with a trained head has no hard prompt: without training the head is random. A task
        that generates free text has no linear probe.
        """
        return {name: make for name, make in self._available().items() if name in names}

    def find_skipped(self, names: Sequence[str]) -> list[BaselineSkipped]:
        """The named baselines that do not exist for the recipe, with the reason."""
        available = self._available()
        return [
            BaselineSkipped(name, _UNAVAILABLE[name]) for name in names if name not in available
        ]

    def _available(self) -> dict[str, Callable[[], Baseline]]:
        settings = self.base.task_settings
        available: dict[str, Callable[[], Baseline]] = {"majority": self._majority}
        if not (isinstance(settings, Classify) and settings.verbalizer is None):
            available["hard-prompt"] = self._hard_prompt
        if find_labels(settings, self.tables["train"]):
            available["linear-probe"] = self._probe
        return available

    @property
    def _target(self) -> str:
        return get_target_column(self.base.task_settings)

    @property
    def _template(self) -> str:
        kind = self.backbone.geometry.architecture
        return resolve_hard_template(self.base, self.tables["train"], kind=kind).text

    def _majority(self) -> Baseline:
        return fit_majority([str(answer) for answer in self.tables["train"][self._target]])

    def _hard_prompt(self) -> Baseline:
        task = setup_hard_prompt(self.base, backbone=self.backbone, tables=self.tables)
        return HardPromptBaseline(task)

    def _probe(self) -> Baseline:
        start = perf_counter()
        reader = FeatureReader(self.backbone, self._template, self.base.data.max_length)
        train, validation = (self.tables[name].to_list() for name in ("train", "validation"))
        probe = fit_probe(reader, train=train, validation=validation, target=self._target)
        seconds = round(perf_counter() - start, 1)
        return replace(probe, cost=replace(probe.cost, seconds=seconds))
