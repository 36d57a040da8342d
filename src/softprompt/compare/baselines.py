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
from softprompt.data.table import to_text
from softprompt.inference import predict_without_prompt
from softprompt.recipe import Recipe
from softprompt.tasks import Classify, Task
from softprompt.tasks.pooling import resolve_pooling
from softprompt.train.datasets import find_labels, get_target_column
from softprompt.train.label_weights import weigh_labels
from softprompt.train.setup import setup_hard_prompt
from softprompt.train.templates import resolve_hard_template

_UNAVAILABLE = {
    "hard-prompt": "The task predicts with a trained head, which is random before training.",
    "linear-probe": "The task generates text, so there are no labels to classify.",
}


class Baseline(Interface):
    """A baseline that is ready to predict test rows."""

    @property
    def cost(self) -> Cost | None:
        """The cost of its training; None where nothing was trained."""

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
    """Make the baseline of the most frequent answer; the alphabet decides ties."""
    count = Counter(answers)
    return MajorityBaseline(min(count, key=lambda answer: (-count[answer], answer)))


@dataclass(frozen=True, eq=False)
class Baselines:
    """The baselines that take no training steps.

    Args:
        base: the recipe.
        backbone: frozen, without a prompt.
        tables: rows by split.
    """

    base: Recipe
    backbone: Backbone
    tables: Mapping[str, Table]

    def select(self, names: Sequence[str]) -> dict[str, Callable[[], Baseline]]:
        """Functions that make the named baselines, of those that exist for the recipe."""
        return {name: make for name, make in self._available().items() if name in names}

    def find_skipped(self, names: Sequence[str]) -> list[BaselineSkipped]:
        """The named baselines that do not exist for the recipe, with the reason."""
        available = self._available()
        return [
            BaselineSkipped(name, _UNAVAILABLE[name]) for name in names if name not in available
        ]

    def _available(self) -> dict[str, Callable[[], Baseline]]:
        settings = self.base.task_settings
        available: dict[str, Callable[[], Baseline]] = {"majority": self._fit_majority}
        if not (isinstance(settings, Classify) and settings.verbalizer is None):
            available["hard-prompt"] = self._make_hard_prompt
        if find_labels(settings, self.tables["train"]):
            available["linear-probe"] = self._fit_probe
        return available

    @property
    def _target(self) -> str:
        return get_target_column(self.base.task_settings)

    def _fit_majority(self) -> Baseline:
        return fit_majority([*map(to_text, self.tables["train"][self._target])])

    def _make_hard_prompt(self) -> Baseline:
        task = setup_hard_prompt(self.base, backbone=self.backbone, tables=self.tables)
        return HardPromptBaseline(task)

    def _weigh_labels(self) -> Mapping[str, float] | None:
        """How much a row of each label counts."""
        settings, train = self.base.task_settings, self.tables["train"]
        weighed = weigh_labels(settings, train, labels=find_labels(settings, train))
        weights = weighed.class_weights if isinstance(weighed, Classify) else None
        return weights if isinstance(weights, Mapping) else None

    def _fit_probe(self) -> Baseline:
        start = perf_counter()
        kind = self.backbone.geometry.architecture
        template = resolve_hard_template(self.base, self.tables["train"], kind=kind).text
        settings, pooling = self.base.task_settings, None
        if isinstance(settings, Classify) and settings.verbalizer is None:
            pooling = (
                None if settings.pooling == "auto" else resolve_pooling(settings.pooling, kind)
            )
        reader = FeatureReader(self.backbone, template, self.base.data.max_length, pooling)
        train, validation = (self.tables[name].to_list() for name in ("train", "validation"))
        probe = fit_probe(
            reader,
            train=train,
            validation=validation,
            target=self._target,
            class_weights=self._weigh_labels(),
        )
        seconds = round(perf_counter() - start, 1)
        return replace(probe, cost=replace(probe.cost, seconds=seconds))
