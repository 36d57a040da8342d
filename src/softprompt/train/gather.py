"""All faults of a recipe that can be told apart: what one hides, the others do not wait for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ParamSpec, TypeVar

from softprompt.backbone.model import Backbone
from softprompt.data import Rows as Table
from softprompt.data import Template, check_columns, check_fields, parse
from softprompt.errors import RecipeError, SoftpromptError, UnreachableError
from softprompt.methods import Method, build_method
from softprompt.methods.defaults import defaults
from softprompt.recipe import Recipe
from softprompt.tasks import Classify, Room, Task, bind
from softprompt.tasks.words import read_words
from softprompt.train.prepare import check_soft, fitting_template, initial
from softprompt.train.room import room_of
from softprompt.train.rows import (
    check_tables,
    complete,
    find_labels,
    read_source,
    render,
    target_column,
)

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")
Labels = tuple[str, ...]


class Findings:
    """Faults so far, and what could not be looked at, each once."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []

    def attempt(
        self, step: Callable[_Given, _Made], *args: _Given.args, **kwargs: _Given.kwargs
    ) -> _Made | None:
        """What a step makes; None if it fails, and its faults are noted.

        Raises:
            UnreachableError: not being online is no fault of the recipe.
        """
        try:
            return step(*args, **kwargs)
        except UnreachableError:
            raise
        except SoftpromptError as error:
            self.add(error)
        return None

    def add(self, error: SoftpromptError) -> None:
        """Note an error's faults."""
        told = error.faults if isinstance(error, RecipeError) else (str(error),)
        self.faults += [fault for fault in told if fault not in self.faults]

    def note(self, text: str) -> None:
        """Note what could not be looked at."""
        if text not in self.notes:
            self.notes.append(text)


def gather(recipe: Recipe, backbone: Backbone | None, *, found: Findings) -> None:
    """Find the faults of data, template, task and method, stage by stage.

    Args:
        backbone: None if it cannot be had; what depends on it is then left out.
        found: where to note them.
    """
    tables = _tables(recipe, found)
    labels, sound = _labels(recipe, tables, found)
    template = _template(recipe, tables, backbone, found)
    if backbone is None or template is None:
        return
    method = _method(recipe, backbone, template, labels or (), found)
    room = Room(recipe.data.max_length) if method is None else room_of(recipe, method)
    task = _task(recipe, backbone, template, labels, room=room, found=found)
    if task is not None:
        whole = {n: t for n, t in sound.items() if {*template.fields} <= {*t.column_names}}
        for name, table in whole.items():
            found.attempt(render, task, table, where=f"the {name} data")


def _tables(recipe: Recipe, found: Findings) -> Mapping[str, Table]:
    """The tables that can be read; split as in training if all can."""
    data = recipe.data
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    sources = {name: source for name, source in named.items() if source is not None}
    there = dict(_read(sources, found))
    if len(there) < len(sources):
        return there
    return found.attempt(complete, there, data, seed=recipe.seed) or there


def _read(sources: Mapping[str, str], found: Findings) -> Iterator[tuple[str, Table]]:
    """What can be read; a data set that is out of reach is asked for once, for it takes long."""
    far: set[str] = set()
    for name, source in sources.items():
        data_set = source.partition("[")[0]
        if data_set in far:
            continue
        try:
            table = found.attempt(read_source, source)
        except UnreachableError:
            far.add(data_set)
            found.note(
                f"not checked: the data set {data_set!r} and what depends on it. The Hub cannot be "
                "reached and nothing is cached on this machine; training would fetch it from there."
            )
            continue
        if table is not None:
            yield name, table


def _labels(
    recipe: Recipe, tables: Mapping[str, Table], found: Findings
) -> tuple[Labels | None, Mapping[str, Table]]:
    """The labels, if they can be known; and the tables that agree with them."""
    settings, labels = recipe.task_settings, None
    if "train" in tables:
        labels = found.attempt(find_labels, settings, tables["train"])
    if labels is None:
        _check_columns(tables, [target_column(settings)], found)
        return None, {}
    sound = {}
    for name, table in tables.items():
        before = len(found.faults)
        found.attempt(check_tables, {name: table}, settings, labels=labels)
        if len(found.faults) == before:
            sound[name] = table
    return labels, sound


def _check_columns(tables: Mapping[str, Table], names: Sequence[str], found: Findings) -> None:
    """Check the tables but for the training data; what is wrong with that is told elsewhere."""
    train = tables.get("train")
    told = [] if train is None else [name for name in names if name not in train.column_names]
    left = [name for name in names if name not in told]
    for split in (name for name in tables if name != "train"):
        found.attempt(check_columns, tables[split], left, where=f"the {split} data")


def _template(
    recipe: Recipe, tables: Mapping[str, Table], backbone: Backbone | None, found: Findings
) -> Template | None:
    """The template, if it can be read; and whether method and tables agree with it."""
    text, method = recipe.task_settings.template, recipe.method_settings
    if text is None:
        if backbone is None or "train" not in tables:
            return None
        return found.attempt(fitting_template, recipe, backbone, table=tables["train"])
    template = found.attempt(parse, text)
    if template is None:
        return None
    found.attempt(check_soft, template, method.name, soft=method.shape == "input")
    if "train" in tables:
        found.attempt(check_fields, template, tables["train"].column_names)
    _check_columns(tables, template.fields, found)
    return template


def _task(
    recipe: Recipe,
    backbone: Backbone,
    template: Template,
    labels: Labels | None,
    *,
    room: Room,
    found: Findings,
) -> Task | None:
    """The task; if it cannot be bound, its label words are looked at all the same."""
    settings = recipe.task_settings
    task = found.attempt(
        bind,
        settings,
        backbone,
        template=template.text,
        labels=("no", "yes") if labels is None else labels,  # any two, where they are not known
        room=room,
    )
    if task is None and isinstance(settings, Classify) and settings.verbalizer and backbone.head:
        kind = backbone.geometry.kind
        end = backbone.ends[0] if backbone.ends and kind != "encoder" else None
        answers = kind == "encoder-decoder"
        words: Mapping[str, Sequence[str]] = settings.words()
        found.attempt(read_words, backbone.tokenizer, words, end=end, always_end=answers)
    return task


def _method(
    recipe: Recipe, backbone: Backbone, template: Template, labels: Labels, found: Findings
) -> Method | None:
    """The method, if it can be built, once soft tokens are where it needs them."""
    settings = recipe.method_settings
    usual = defaults(recipe.method.name, backbone.geometry)
    start = found.attempt(initial, recipe, labels=labels, usual=usual)
    if start is None or (template.soft_length > 0) != (settings.shape == "input"):
        return None
    return found.attempt(
        build_method,
        backbone,
        settings,
        soft_length=template.soft_length,
        initial=start,
        seed=recipe.seed,
    )
