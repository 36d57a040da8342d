"""From a recipe to all the parts of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompt.artifact import load
from softprompt.backbone.load import Loading
from softprompt.backbone.model import Backbone, Kind
from softprompt.backbone.precision import best_device, dtype_of
from softprompt.backbone.shard import processes
from softprompt.data import Rows as Table
from softprompt.data import Template, check_columns, check_fields, parse
from softprompt.errors import TemplateError
from softprompt.initialise import (
    FromLabels,
    FromPrompt,
    FromRandom,
    FromText,
    FromVocabulary,
    Initial,
)
from softprompt.injection.load import load_backbone
from softprompt.methods import Method, build_method
from softprompt.methods.defaults import Defaults, defaults
from softprompt.recipe import BackboneSection, Recipe
from softprompt.tasks import Classify, Task, TaskSettings, bind
from softprompt.train.rendered import rendered
from softprompt.train.room import room_of
from softprompt.train.rows import (
    Rows,
    check_tables,
    complete,
    digest,
    find_labels,
    read_sources,
    target_column,
)
from softprompt.train.settings import Training, resolve

SOFT_TOKENS = 20


@dataclass(frozen=True, eq=False)
class Prepared:
    """All the parts of a run.

    Args:
        recipe: as given.
        template: as used, also where the recipe leaves it to its default.
        training: settings with nothing left open.
        usual: the defaults that filled them, with their source.
        rows: rendered, by split.
        hashes: of each split's contents.
    """

    recipe: Recipe
    backbone: Backbone
    task: Task
    method: Method
    template: str
    training: Training
    usual: Defaults
    rows: Mapping[str, Rows]
    hashes: Mapping[str, str]


def prepare(
    recipe: Recipe,
    *,
    backbone: Backbone | None = None,
    tables: Mapping[str, Table] | None = None,
    start: Initial | None = None,
) -> Prepared:
    """Read, load, check and build everything that a run needs.

    Args:
        backbone: if it is loaded already.
        tables: rows by split, if they are in memory; missing splits are split off.
        start: what the prompt starts from, if the recipe does not say it.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
    """
    settings = recipe.task_settings
    given = read_sources(recipe.data) if tables is None else tables
    tables = complete(given, recipe.data, seed=recipe.seed)
    labels = find_labels(settings, tables["train"])
    check_tables(tables, settings, labels=labels)
    if backbone is None:
        backbone = open_section(recipe.backbone)
    template = fitting_template(recipe, backbone, table=tables["train"])
    usual = defaults(recipe.method.name, backbone.geometry)
    method = build_method(
        backbone,
        recipe.method_settings,
        soft_length=template.soft_length,
        initial=start or initial(recipe, labels=labels, usual=usual),
        seed=recipe.seed,
    )
    room = room_of(recipe, method)
    task = bind(
        settings, backbone, template=template.text, labels=labels, room=room, seed=recipe.seed
    )
    columns = [*task.columns, task.target_column]
    for name, table in tables.items():
        check_columns(table, columns, where=f"the {name} data")
    hashes = {name: digest(table, columns) for name, table in tables.items()}
    return Prepared(
        recipe=recipe,
        backbone=backbone,
        task=task,
        method=method,
        template=template.text,
        training=resolve(recipe, usual),
        usual=usual,
        rows=rendered(
            tables, task, recipe=recipe, room=room, template=template.text, hashes=hashes
        ),
        hashes=hashes,
    )


def device_of(section: BackboneSection) -> str:
    """The device that a recipe names, or the best that there is."""
    return best_device() if section.device == "auto" else section.device


def open_section(section: BackboneSection) -> Backbone:
    """Load the backbone that a recipe names, on the best device and in the best precision."""
    device = device_of(section)
    loading = Loading(
        revision=section.revision,
        dtype=dtype_of(section.dtype, device),
        device=device,
        device_map=section.device_map,
        quantization=section.quantization,
        # One process alone (to check the recipe, say) has nobody to share with.
        shard=section.shard and processes() > 1,
        dropout=section.dropout,
        trust_remote_code=section.trust_remote_code,
    )
    return load_backbone(section.name, loading)


def fitting_template(recipe: Recipe, backbone: Backbone, *, table: Table) -> Template:
    """The recipe's template or the default one, checked against method and columns.

    Raises:
        TemplateError: soft tokens are missing or too many, or a field is no column.
    """
    settings, method = recipe.task_settings, recipe.method_settings
    text = settings.template
    if text is None:
        text = default_template(table, settings, kind=backbone.geometry.kind)
        text = (f"{{soft:{SOFT_TOKENS}}}" if method.shape == "input" else "") + text
    template = parse(text)
    check_soft(template, method.name, soft=method.shape == "input")
    check_fields(template, table.column_names)
    return template


def check_soft(template: Template, method: str, *, soft: bool) -> None:
    """Check that soft tokens are there if the method trains them, and are not if it does not."""
    if soft and not template.soft_length:
        msg = (
            f"the template has no soft tokens, but {method} trains them. Write {{soft:10}} where "
            "they shall stand."
        )
        raise TemplateError(msg)
    if template.soft_length and not soft:
        msg = (
            f"the template has {template.soft_length} soft tokens, but {method} trains keys and "
            "values and none of them. Take {soft:N} out, and set method.length instead."
        )
        raise TemplateError(msg)


def default_template(table: Table, settings: TaskSettings, *, kind: Kind) -> str:
    """The text columns, one or two, in the data's order.

    Raises:
        TemplateError: there is no such column, or more than two.
    """
    target = target_column(settings)
    texts = [
        name
        for name in table.column_names
        if name != target and "string" in {*str(table.data.schema.field(name).type).split("_")}
    ]
    if len(texts) not in {1, 2}:
        example = f"{{{(texts or ['text'])[0]}}}"
        msg = (
            f"without a template there must be one or two text columns beside {target!r}, but "
            f"there are {len(texts)}: {texts}. Write task.template, such as {example!r}."
        )
        raise TemplateError(msg)
    join = "{sep}" if kind == "encoder" else "\n"
    return join.join(f"{{{name}}}" for name in texts)


def initial(recipe: Recipe, *, labels: tuple[str, ...], usual: Defaults) -> Initial:
    """What the prompt starts from: the recipe's word, else label words, else the default."""
    words, settings = labels, recipe.task_settings
    if isinstance(settings, Classify) and settings.verbalizer is not None:
        words = tuple(word for of_label in settings.words().values() for word in of_label)
    section = recipe.method.initialise
    if section is None:
        sampled = isinstance(usual.initial, FromVocabulary)
        return FromLabels(words) if sampled and words else usual.initial
    match section.source:
        case "vocabulary":
            return FromVocabulary()
        case "labels":
            return FromLabels(tuple(section.words or words))
        case "text":
            return FromText(section.text or "")
        case "random":
            return FromRandom()
        case "artifact":
            return FromPrompt(load(Path(section.path or "")).prompt)
