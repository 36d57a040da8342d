"""The baselines of a comparison that take no training steps, each made when it is needed.

Fine-tuning and LoRA are baselines too, but they are trained like prompts: see
:func:`softprompt.compare.config.make_finetune_variants`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Protocol as Interface
from typing import TypeAlias

from softprompt.backbone.model import Backbone
from softprompt.compare.linear_probe import (
    FeatureReader,
    Probe,
    TagProbe,
    fit_probe,
    fit_tag_probe,
)
from softprompt.compare.option_probe import OptionProbe, fit_option_probe
from softprompt.compare.results import BaselineSkipped, Cost
from softprompt.compare.span_probe import SpanProbe, fit_span_probe
from softprompt.data import Table
from softprompt.data.inputs import Row
from softprompt.errors import FaultCollector
from softprompt.inference import predict_without_prompt
from softprompt.recipe import Recipe
from softprompt.tasks import Choose, Classify, Extract, Objective, Regress, Tag, Task
from softprompt.tasks.choices import choose_by_place
from softprompt.tasks.config import has_trained_head
from softprompt.tasks.extractor import Extractor
from softprompt.tasks.label_sets import LabelSets
from softprompt.tasks.objectives import ScoreObjective, SingleLabel, find_commonest
from softprompt.tasks.option_cells import read_choice_rows, read_options
from softprompt.tasks.pooling import resolve_pooling
from softprompt.tasks.regression import Numbers, WordNumbers
from softprompt.tasks.tag_cells import read_row_words
from softprompt.tasks.tag_sequences import TagSequences, format_tags
from softprompt.tasks.targets import read_targets, resolve_target_settings
from softprompt.train.setup import setup_hard_prompt
from softprompt.train.stages import HARD_PROMPT_STAGES, Parts, render_rows, run_stages
from softprompt.train.task_settings import build_objective
from softprompt.train.templates import resolve_hard_template

_UNAVAILABLE = {
    "hard-prompt": "The task predicts with a trained head, which is random before training.",
    "linear-probe": "The task generates text, which a linear model cannot.",
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
    """The best answer that is the same for every row: the most frequent one, or the mean.

    Args:
        answer: the answer.
    """

    answer: str
    cost: None = None

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The same for every row."""
        return [self.answer] * len(rows)


@dataclass(frozen=True)
class CommonestTagBaseline:
    """The tag that each word has most often in the training rows.

    Args:
        tags: by word.
        otherwise: the tag of other words: the most frequent one.
        column: of the words.
    """

    tags: Mapping[str, str]
    otherwise: str
    column: str
    cost: None = None

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The tags of each row's words, as text."""
        words = [read_row_words(row[self.column], self.column).list_words() for row in rows]
        return [
            format_tags([self.tags.get(word, self.otherwise) for word in of_row])
            for of_row in words
        ]


@dataclass(frozen=True)
class CommonestPlaceBaseline:
    """The option at the place where the right one stands most often in the training rows.

    Where options are in no order it is right as often as chance, the mean of 1 / their number.

    Args:
        places: of the right options of the training rows.
        settings: of the task.
    """

    places: tuple[int, ...]
    settings: Choose
    cost: None = None

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The option of each row at that place, or at the commonest that it has."""
        options = [read_options(row, self.settings).texts for row in rows]
        chosen = choose_by_place(self.places, [len(texts) for texts in options])
        return [texts[at] for texts, at in zip(options, chosen, strict=True)]


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


def fit_majority(answers: Sequence[str], objective: Objective) -> MajorityBaseline:
    """Make the baseline of the best answer that is the same for every row.

    Args:
        answers: of the training rows.
        objective: of the task.
    """
    return MajorityBaseline(objective.choose_constant(answers))


def fit_commonest_tags(
    train: Table, settings: Tag, *, objective: TagSequences
) -> CommonestTagBaseline:
    """Make the baseline of the tag that each word has most often.

    Args:
        train: the training rows.
        settings: of the task.
        objective: of the task.
    """
    counts: dict[str, Counter[str]] = {}
    truth, column = read_targets(train, settings, split="train"), settings.words_column
    for cell, text in zip(train[column][:], truth, strict=True):
        words = read_row_words(cell, column).list_words()
        for word, tag in zip(words, objective.read_truth(text), strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    tags = {word: find_commonest([*count.elements()]) for word, count in counts.items()}
    return CommonestTagBaseline(tags, objective.choose_constant(truth), column)


def fit_commonest_place(train: Table, settings: Choose) -> CommonestPlaceBaseline:
    """Make the baseline of the place where the right option stands most often.

    Args:
        train: the training rows.
        settings: of the task.
    """
    known = resolve_target_settings(settings, train)
    assert isinstance(known, Choose)  # noqa: S101  # of the same kind
    rows = read_choice_rows(train, known, split="train")
    return CommonestPlaceBaseline(tuple(choice for _, choice in rows), known)


_Probe: TypeAlias = Probe | TagProbe | SpanProbe | OptionProbe


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
        if not has_trained_head(settings):
            available["hard-prompt"] = self._make_hard_prompt
        if (fit := self._find_probe()) is not None:
            available["linear-probe"] = partial(_time_probe, fit)
        return available

    def _find_probe(self) -> Callable[[], _Probe] | None:
        """What fits the linear probe of the task; None where there is none."""
        match self.base.task_settings:
            case Tag():
                return partial(fit_tag_probe, self.base, backbone=self.backbone, tables=self.tables)
            case Extract():
                return self._fit_span_probe
            case Choose():
                return partial(
                    fit_option_probe, self.base, backbone=self.backbone, tables=self.tables
                )
            case _:
                has_one = _make_probe_objective(self._objective) is not None
                return self._fit_probe if has_one else None

    @property
    def _objective(self) -> Objective:
        return build_objective(self.base.task_settings, self.tables["train"])

    def _fit_majority(self) -> Baseline:
        settings, objective, train = self.base.task_settings, self._objective, self.tables["train"]
        if isinstance(settings, Tag) and isinstance(objective, TagSequences):
            return fit_commonest_tags(train, settings, objective=objective)
        if isinstance(settings, Choose):
            return fit_commonest_place(train, settings)
        return fit_majority(read_targets(train, settings), objective)

    def _make_hard_prompt(self) -> Baseline:
        task = setup_hard_prompt(self.base, backbone=self.backbone, tables=self.tables)
        return HardPromptBaseline(task)

    def _fit_probe(self) -> Probe:
        kind = self.backbone.geometry.architecture
        template = resolve_hard_template(self.base, self.tables["train"], kind=kind).text
        settings, pooling = self.base.task_settings, None
        if isinstance(settings, Classify | Regress) and has_trained_head(settings):
            pooling = (
                None if settings.pooling == "auto" else resolve_pooling(settings.pooling, kind)
            )
        reader = FeatureReader(
            self.backbone, template, self.base.data.max_length, pooling, self.base.task_settings
        )
        objective = _make_probe_objective(self._objective)
        assert objective is not None  # noqa: S101  # else it is not available
        parts = [self.tables[name] for name in ("train", "validation")]
        return fit_probe(
            reader,
            train=parts[0].to_list(),
            validation=parts[1].to_list(),
            truth=[read_targets(part, settings) for part in parts],
            objective=objective,
        )

    def _fit_span_probe(self) -> SpanProbe:
        parts = Parts(self.base, self.backbone, self.tables)
        run_stages((*HARD_PROMPT_STAGES, render_rows), parts, collector=FaultCollector())
        task = parts.task
        assert isinstance(task, Extractor)  # noqa: S101  # that of the settings
        validation = parts.rows["validation"]
        return fit_span_probe(
            task,
            train=parts.rows["train"].examples,
            validation=validation.examples,
            truth=validation.truth,
        )


def _time_probe(fit: Callable[[], _Probe]) -> Baseline:
    """Fit a probe, whose cost gets the seconds that this takes."""
    start = perf_counter()
    probe = fit()
    seconds = round(perf_counter() - start, 1)
    return replace(probe, cost=replace(probe.cost, seconds=seconds))


def _make_probe_objective(objective: Objective) -> ScoreObjective | None:
    """The objective of a probe; None if no linear model has one."""
    match objective:
        case SingleLabel() | LabelSets() | Numbers():
            return objective
        case WordNumbers(numbers=numbers):
            return numbers
        case _:
            return SingleLabel(objective.labels) if objective.labels else None
