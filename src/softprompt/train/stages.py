"""The stages that set up a run, in order: each makes one part of it from those before.

A stage is skipped if a part that it needs is missing. This only happens if the collector keeps
going after a fault, and then the reason why the part is missing is already recorded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from softprompt.artifact import Artifact, load_artifact
from softprompt.backbone.model import Backbone
from softprompt.data import Table, Template, check_columns, check_fields, parse_template
from softprompt.data.few_rows import count_rows
from softprompt.data.loading import (
    complete_splits,
    digest_rows,
    find_strata,
    list_sources,
    read_sources,
    split_off,
)
from softprompt.data.splits import divide_into_folds
from softprompt.errors import FaultCollector
from softprompt.methods import Method, build_method
from softprompt.methods.defaults import Defaults
from softprompt.methods.initializers import FromDemonstrations, FromPrompt
from softprompt.recipe import Recipe
from softprompt.tasks import Choose, Classify, LengthBudget, Task, TaskSettings, build_task
from softprompt.tasks.binding import read_label_words
from softprompt.tasks.config import (
    OPTION_FIELD,
    get_target_column,
    list_flexible_columns,
    list_row_columns,
)
from softprompt.tasks.targets import check_tables, find_labels, resolve_target_settings
from softprompt.train.datasets import (
    RenderedRows,
    check_no_validation,
    check_training_rows,
    check_validation_of_seeds,
    get_task_columns,
    list_row_warnings,
    render_splits,
)
from softprompt.train.demonstrations import (
    Demonstrations,
    build_from_demonstrations,
    check_demonstrations_fit,
    choose_demonstrations,
)
from softprompt.train.events import Callback, Event, PhaseStarted
from softprompt.train.heads import (
    check_plain_head_fits,
    check_pooling,
    find_foreign_starts,
    take_head,
)
from softprompt.train.initialization import (
    InitLike,
    choose_run_defaults,
    is_from_demonstrations,
    read_candidates,
    resolve_initializer,
)
from softprompt.train.readout import ReadoutChoice
from softprompt.train.recipe_backbone import is_remote, load_recipe_backbone
from softprompt.train.task_settings import complete_task_settings
from softprompt.train.templates import check_soft_tokens, make_soft_template, resolve_hard_template

LabelNames = tuple[str, ...]

_Part = TypeVar("_Part")
# If the labels are not known, the rest of task and method is checked with these.
_PLACEHOLDER_LABELS: LabelNames = ("no", "yes")


class MissingPartError(Exception):
    """A stage needs a part that an earlier stage could not make."""


@dataclass(eq=False)
class Parts:
    """The parts of a run that the stages have made so far.

    Args:
        recipe: of the run.
        backbone: loaded by its stage, unless it is passed.
        memory_tables: the rows by split that are in memory, used unchanged; None to read the
            recipe's.
        init: the initialization, instead of the recipe's.
        candidates: the artifacts of which one is chosen as the initialization.
        tables: the rows by split; a table that cannot be read is missing.
        labels: of the task; empty if it generates free text.
        valid_tables: the tables that agree with the labels.
        template: with soft tokens, or of the hard prompt.
        defaults: of the method.
        method: at its initialization.
        demonstrations: the rows that the method starts from, if it does.
        budget: the length budget that the prompt leaves for a row.
        task: bound to the backbone.
        hashes: of the rows' contents, by split.
        rows: rendered, by split.
        warnings: about the rows and the initialization.
        notes: on what the initialization took from an artifact, and on folds.
        folds: the indices of the training rows of each.
        readout: that of the artifact whose head is taken.
        takes_head: whether it is taken.
    """

    recipe: Recipe
    backbone: Backbone | None = None
    memory_tables: Mapping[str, Table] | None = None
    init: InitLike | None = None
    candidates: dict[str, Artifact] = field(default_factory=dict)
    tables: Mapping[str, Table] | None = None
    labels: LabelNames | None = None
    valid_tables: dict[str, Table] = field(default_factory=dict)
    template: Template | None = None
    defaults: Defaults | None = None
    method: Method | None = None
    demonstrations: Demonstrations | None = None
    budget: LengthBudget | None = None
    task: Task | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    rows: dict[str, RenderedRows] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folds: tuple[tuple[int, ...], ...] = ()
    readout: ReadoutChoice | None = None
    takes_head: bool = False


Stage = Callable[[Parts, FaultCollector], None]


def run_stages(
    stages: Sequence[Stage],
    parts: Parts,
    *,
    collector: FaultCollector,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run the stages in order, without those that need a missing part.

    Args:
        stages: to run.
        parts: of the run so far; the stages add theirs.
        collector: of faults.
        callbacks: called with the phases that may take a while, as they start.

    Raises:
        SoftpromptError: a stage failed, and the collector does not keep going.
    """
    for stage in stages:
        with suppress(MissingPartError):
            phase = _describe_phase(stage, parts) if callbacks else None
            if phase is not None:
                notify(callbacks, phase)
            stage(parts, collector)


def _describe_phase(stage: Stage, parts: Parts) -> PhaseStarted | None:
    """The phase that a stage is; None if it takes no time."""
    if stage is read_tables and parts.memory_tables is None:
        sources = dict.fromkeys(list_sources(parts.recipe.data).values())
        return PhaseStarted("reading", ", ".join(sources))
    if stage is open_backbone and parts.backbone is None:
        return PhaseStarted("loading", parts.recipe.backbone.name)
    if stage is render_rows:
        rows = sum(len(table) for table in parts.valid_tables.values())
        return PhaseStarted("tokenizing", count_rows(rows), rows)
    return None


def notify(callbacks: Sequence[Callback], event: Event) -> None:
    """Call the callbacks in order."""
    for callback in callbacks:
        callback(event)


def require(part: _Part | None) -> _Part:
    """Return a part that a stage cannot do without.

    Raises:
        MissingPartError: the part could not be made.
    """
    if part is None:
        raise MissingPartError
    return part


def read_tables(parts: Parts, collector: FaultCollector) -> None:
    """Read the recipe's data, if no tables are in memory."""
    if parts.memory_tables is None:
        parts.tables = read_sources(parts.recipe.data, collector)
    elif collector.check(check_training_rows, [*parts.memory_tables]):
        parts.tables = parts.memory_tables


def split_tables(parts: Parts, collector: FaultCollector) -> None:
    """Split off missing splits; in tables that were read, also rename values and limit rows."""
    data, seed, tables = parts.recipe.data, parts.recipe.seed, require(parts.tables)
    columns = get_task_columns(parts.recipe.task_settings)
    if parts.memory_tables is None:
        parts.tables = complete_splits(
            tables, data, seed=seed, columns=columns, collector=collector
        )
        return
    split = collector.attempt(
        split_off, tables["train"], data, seed=seed, splits=[*tables], columns=columns
    )
    parts.tables = {**tables, **require(split)}


def choose_labels(parts: Parts, collector: FaultCollector) -> None:
    """Find the labels, and the tables that agree with them."""
    settings, tables = parts.recipe.task_settings, require(parts.tables)
    if "train" in tables:
        parts.labels = collector.attempt(find_labels, settings, tables["train"])
    if parts.labels is None:
        others = {name: table for name, table in tables.items() if name != "train"}
        flexible = list_flexible_columns(settings)
        target = _select_known({get_target_column(settings)}.difference(flexible), tables)
        _check_columns(others, target, collector=collector)
        return
    settings = resolve_target_settings(settings, tables["train"])
    for name, table in tables.items():
        if collector.check(check_tables, {name: table}, settings, labels=parts.labels):
            parts.valid_tables[name] = table


def open_backbone(parts: Parts, collector: FaultCollector) -> None:
    """Load the backbone, if none is passed; only training downloads one."""
    section = parts.recipe.backbone
    if parts.backbone is not None:
        return
    if collector.keep_going and is_remote(section):
        collector.add_note(
            f"not checked: the backbone {section.name!r} and everything that depends on it. It is "
            "not a local folder and not in the local cache; training would download it from the "
            "Hub."
        )
        return
    parts.backbone = collector.attempt(load_recipe_backbone, section)


def choose_template(parts: Parts, collector: FaultCollector) -> None:
    """Take the recipe's template or the default one; method and tables must agree with it."""
    recipe, text = parts.recipe, parts.recipe.task_settings.template
    method = recipe.method_settings
    if text is None:
        kind, train = require(parts.backbone).geometry.architecture, _get_train_table(parts)
        parts.template = collector.attempt(make_soft_template, recipe, train, kind=kind)
    else:
        parts.template = collector.attempt(parse_template, text)
    template, soft = require(parts.template), method.prompt_kind == "input"
    collector.check(check_soft_tokens, template, method.name, soft=soft)
    _check_fields(parts, collector)


def choose_hard_template(parts: Parts, collector: FaultCollector) -> None:
    """Take the template of the hard prompt; tables must agree with it."""
    kind, train = require(parts.backbone).geometry.architecture, _get_train_table(parts)
    parts.template = collector.attempt(resolve_hard_template, parts.recipe, train, kind=kind)
    _check_fields(parts, collector)


def load_candidates(parts: Parts, collector: FaultCollector) -> None:
    """Load the artifacts of which one is chosen before the first step."""
    parts.candidates = read_candidates(parts.recipe, parts.init, collector=collector)
    if parts.candidates:
        parts.init = next(iter(parts.candidates.values()))
        backbone = require(parts.backbone)
        parts.warnings += dict.fromkeys(find_foreign_starts(parts.candidates.values(), backbone))


def make_method(parts: Parts, collector: FaultCollector) -> None:
    """Build the method at its initialization, if the template has soft tokens as it needs them."""
    recipe, settings = parts.recipe, parts.recipe.method_settings
    backbone, template = require(parts.backbone), require(parts.template)
    shown = is_from_demonstrations(recipe, parts.init)
    parts.defaults = choose_run_defaults(settings, backbone.geometry, from_demonstrations=shown)
    labels = _PLACEHOLDER_LABELS if parts.labels is None else parts.labels
    init = parts.init or collector.attempt(
        resolve_initializer, recipe, labels=labels, defaults=parts.defaults
    )
    if isinstance(init, Artifact):
        init = FromPrompt(init.prompt)
    assert not isinstance(init, Sequence)  # noqa: S101  # `load_candidates` has taken the first
    if (template.soft_length > 0) != (settings.prompt_kind == "input"):
        return
    if isinstance(init, FromDemonstrations):
        parts.method = collector.attempt(_start_from_demonstrations, parts, init)
    else:
        parts.method = collector.attempt(
            build_method,
            backbone,
            settings,
            soft_length=template.soft_length,
            # If the initialization cannot be made, the rest is checked with the default.
            init=init or parts.defaults.init,
            seed=recipe.seed,
        )
    if parts.method is not None:
        parts.budget = _compute_budget(recipe, parts.method)


def _start_from_demonstrations(parts: Parts, init: FromDemonstrations) -> Method:
    """Choose the rows to start from, and build the method at their keys and values."""
    recipe, backbone = parts.recipe, require(parts.backbone)
    check_demonstrations_fit(backbone.geometry)
    task = build_task(
        complete_task_settings(recipe.task_settings, None, labels=None),
        backbone,
        template=require(parts.template).text,
        labels=require(parts.labels),
        budget=LengthBudget(recipe.data.max_length),
        seed=recipe.seed,
    )
    table = require(parts.valid_tables.get("train"))
    columns, flexible = [*task.columns, task.target_column], task.flexible_columns
    check_columns(table, columns, where="the train data", flexible=flexible)
    if parts.demonstrations is None:
        parts.demonstrations = choose_demonstrations(init, table, task=task, recipe=recipe)
        parts.notes.append(str(parts.demonstrations))
    return build_from_demonstrations(
        backbone, recipe.method_settings, demonstrations=parts.demonstrations, seed=recipe.seed
    )


def bind_task(parts: Parts, collector: FaultCollector) -> None:
    """Bind the task; if it cannot be bound, its label words are still checked."""
    recipe, backbone, template = parts.recipe, require(parts.backbone), require(parts.template)
    parts.budget = parts.budget or LengthBudget(recipe.data.max_length)
    labels, rows = parts.labels, parts.valid_tables.get("train")
    settings: TaskSettings | None = collector.attempt(
        lambda: complete_task_settings(recipe.task_settings, rows, labels=labels)
    )
    if settings is None:
        raise MissingPartError
    if isinstance(settings, Choose | Classify):
        collector.check(check_pooling, settings, backbone=backbone, template=template)
    parts.task = collector.attempt(
        build_task,
        settings,
        backbone,
        template=template.text,
        labels=_PLACEHOLDER_LABELS if labels is None else labels,
        budget=parts.budget,
        seed=recipe.seed,
    )
    is_open = parts.task is None and backbone.lm_head is not None
    if is_open and isinstance(settings, Classify) and settings.verbalizer:
        collector.attempt(read_label_words, settings, backbone)


def start_head(parts: Parts, collector: FaultCollector) -> None:
    """Start the task's head with that of the artifact that the prompt starts from."""
    task, init, artifact = require(parts.task), parts.recipe.method.init, parts.init
    if artifact is None and init is not None and init.source == "artifact":
        artifact = collector.attempt(load_artifact, Path(init.path or ""))
    if not isinstance(artifact, Artifact) or parts.candidates:
        return
    start = take_head(task, artifact, settings=parts.recipe.task_settings)
    parts.task, parts.readout, parts.takes_head = start.task, start.readout, start.takes_head
    parts.warnings += start.warnings
    parts.notes += start.notes


def render_rows(parts: Parts, collector: FaultCollector) -> None:
    """Render the rows of every table that agrees with labels and template."""
    task = require(parts.task)
    for name, table in parts.valid_tables.items():
        if {*task.columns} <= {*table.column_names}:
            collector.attempt(_render, parts, task, split=name)
    if parts.demonstrations is not None and "train" in parts.rows:
        parts.rows["train"] = parts.demonstrations.mark(parts.rows["train"])


def collect_row_warnings(parts: Parts, _collector: FaultCollector) -> None:
    """Collect what makes the scores of the run say less than they seem to."""
    task = require(parts.task)
    parts.warnings += list_row_warnings(
        parts.valid_tables, parts.rows, fields=task.columns, objective=task.objective
    )


def assign_folds(parts: Parts, collector: FaultCollector) -> None:
    """Divide the training rows into the folds of a cross-validation."""
    recipe, tables, count = parts.recipe, parts.valid_tables, parts.recipe.data.folds
    if count is None or "train" not in tables:
        return
    collector.check(check_no_validation, [*tables])
    train, data = tables["train"], recipe.data
    strata = find_strata(train, data, columns=get_task_columns(recipe.task_settings))
    folds = collector.attempt(
        divide_into_folds, train, count, seed=recipe.seed, group=data.group_by, stratify=strata
    )
    parts.folds = tuple(map(tuple, require(folds)))
    parts.notes.append(
        f"cross-validation: trains {len(parts.folds)} times on all rows but one fold, and then on "
        "all rows for as long as was best"
    )


def check_seeds(parts: Parts, collector: FaultCollector) -> None:
    """Check that there are rows to choose the best of several seeds by, if the recipe wants it."""
    train = parts.recipe.train
    if train.seeds > 1 and train.combine_seeds == "best" and parts.recipe.data.folds is None:
        collector.check(check_validation_of_seeds, [*parts.valid_tables])


def check_plain_head(parts: Parts, collector: FaultCollector) -> None:
    """Check that a plain head can stand in for the prompt, if the recipe wants that."""
    if parts.recipe.train.keep_plain_head:
        collector.check(check_plain_head_fits, parts.recipe.task_settings, require(parts.backbone))


# The stages that all setups share, those of a prompt, and those of the hard prompt.
FIRST_STAGES: tuple[Stage, ...] = (read_tables, split_tables, choose_labels, open_backbone)
PROMPT_STAGES = (
    *FIRST_STAGES,
    choose_template,
    load_candidates,
    make_method,
    bind_task,
    start_head,
    render_rows,
    collect_row_warnings,
    assign_folds,
    check_seeds,
    check_plain_head,
)
HARD_PROMPT_STAGES = (*FIRST_STAGES, choose_hard_template, bind_task)


def _get_train_table(parts: Parts) -> Table:
    return require(require(parts.tables).get("train"))


def _check_fields(parts: Parts, collector: FaultCollector) -> None:
    """Check that the template's fields are columns, with a value in every row."""
    template, tables = require(parts.template), require(parts.tables)
    settings = parts.recipe.task_settings
    if "train" in tables:
        options = [OPTION_FIELD] if isinstance(settings, Choose) else []
        collector.check(check_fields, template, [*tables["train"].column_names, *options])
    names = _select_known(list_row_columns(settings, template.fields), tables)
    _check_columns(tables, names, collector=collector, flexible=list_flexible_columns(settings))


def _select_known(names: Iterable[str], tables: Mapping[str, Table]) -> list[str]:
    """The columns that the training data has; the others are already reported."""
    return [n for n in names if "train" not in tables or n in tables["train"].column_names]


def _check_columns(
    tables: Mapping[str, Table],
    names: Sequence[str],
    *,
    collector: FaultCollector,
    flexible: Sequence[str] = (),
) -> None:
    for split, table in tables.items():
        where = f"the {split} data"
        collector.check(check_columns, table, names, where=where, flexible=flexible)


def _compute_budget(recipe: Recipe, method: Method) -> LengthBudget:
    """The recipe's limit of a row's length, and the positions that the method's prompt takes.

    The prompt itself decides whether it takes positions: one from an artifact may, whatever the
    recipe says.
    """
    training = method.training
    method.eval()  # its dropout would draw from the global generator
    with torch.no_grad():
        num_positions = method().num_positions
    method.train(training)
    return LengthBudget(recipe.data.max_length, num_positions)


def _render(parts: Parts, task: Task, *, split: str) -> None:
    table, columns = parts.valid_tables[split], [*task.columns, task.target_column]
    check_columns(table, columns, where=f"the {split} data", flexible=task.flexible_columns)
    parts.hashes[split] = digest_rows(table, columns)
    parts.rows |= render_splits(
        {split: table},
        task,
        recipe=parts.recipe,
        budget=require(parts.budget),
        template=require(parts.template).text,
        hashes=parts.hashes,
    )
