"""One readout for all of a comparison: chosen once, and recorded in its folder."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from softprompt._io import replace_file
from softprompt.backbone.model import Backbone
from softprompt.compare.config import Variant
from softprompt.data import Table, Template, parse_template
from softprompt.recipe import Recipe
from softprompt.tasks import Classify, Regress
from softprompt.tasks.binding import make_plain_renderer
from softprompt.tasks.config import get_target_column, has_trained_head
from softprompt.tasks.objectives import ScoreObjective
from softprompt.tasks.pooling import Pooling, list_poolings
from softprompt.tasks.targets import read_truth
from softprompt.train.readout import MAX_PROBED_ROWS, ReadoutChoice, TargetedTexts, choose_readout
from softprompt.train.task_settings import build_objective
from softprompt.train.templates import make_soft_template, resolve_hard_template

_FILE = "readout.json"


def choose_common_readout(
    base: Recipe,
    variants: Sequence[Variant],
    *,
    backbone: Backbone,
    tables: Mapping[str, Table],
    folder: Path,
) -> ReadoutChoice | None:
    """Choose the readout of all trained heads of a comparison, by training and validation rows.

    Args:
        base: the recipe that all variants share.
        variants: each of which must be able to learn with it.
        backbone: without a prompt.
        tables: rows by split.
        folder: of the comparison, which keeps the choice for its next call.

    Returns:
        The choice; None if there are no trained heads, or the recipe names their readout.
    """
    if not _is_open(base):
        return None
    path = folder / _FILE
    with suppress(OSError, ValueError, KeyError, TypeError):
        return ReadoutChoice.from_data(json.loads(path.read_text(encoding="utf-8")))
    kind = backbone.geometry.architecture
    hard = resolve_hard_template(base, tables["train"], kind=kind)
    poolings = list_poolings(kind, hard)
    for variant in variants:
        template = _get_template(variant.recipe, tables["train"], backbone)
        poolings = tuple(name for name in poolings if name in list_poolings(kind, template))
    texts = {
        name: _render(base, hard, backbone=backbone, table=tables[name])
        for name in ("train", "validation")
    }
    objective = build_objective(base.task_settings, tables["train"])
    if not isinstance(objective, ScoreObjective):
        return None
    choice = choose_readout(backbone, poolings, objective=objective, **texts)
    with replace_file(path) as fresh:
        fresh.write_text(json.dumps(choice.as_data(), indent=2) + "\n", encoding="utf-8")
    return choice


def settle_common_readout(
    base: Recipe,
    variants: Sequence[Variant],
    *,
    backbone: Backbone,
    tables: Mapping[str, Table],
    folder: Path,
) -> tuple[Recipe, list[Variant], ReadoutChoice | None]:
    """The recipe and the variants with the readout that `choose_common_readout` chooses for them.

    Args:
        base: as in `choose_common_readout`, like the others.
        variants: of the comparison.
        backbone: without a prompt.
        tables: rows by split.
        folder: of the comparison.
    """
    choice = choose_common_readout(base, variants, backbone=backbone, tables=tables, folder=folder)
    if choice is None:
        return base, [*variants], None
    return with_readout(base, choice.pooling), settle_variants(variants, choice.pooling), choice


def with_readout(recipe: Recipe, pooling: Pooling) -> Recipe:
    """A recipe with a readout of its trained head, unless it names one or trains none.

    Args:
        recipe: of a comparison.
        pooling: the readout.
    """
    if not _is_open(recipe):
        return recipe
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"pooling": pooling})})


def settle_variants(variants: Sequence[Variant], pooling: Pooling) -> list[Variant]:
    """The variants with a readout of their trained heads.

    Args:
        variants: of a comparison.
        pooling: the readout.
    """
    return [replace(variant, recipe=with_readout(variant.recipe, pooling)) for variant in variants]


def _is_open(recipe: Recipe) -> bool:
    settings = recipe.task_settings
    return (
        has_trained_head(settings)
        and isinstance(settings, Classify | Regress)
        and settings.pooling == "auto"
    )


def _get_template(recipe: Recipe, train: Table, backbone: Backbone) -> Template:
    text, kind = recipe.task_settings.template, backbone.geometry.architecture
    return make_soft_template(recipe, train, kind=kind) if text is None else parse_template(text)


def _render(base: Recipe, template: Template, *, backbone: Backbone, table: Table) -> TargetedTexts:
    """A sample of a split's rows, and their labels."""
    length, target = base.data.max_length, get_target_column(base.task_settings)
    renderer = make_plain_renderer(
        backbone, template.text, max_length=length, settings=base.task_settings
    )
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = table.select(sorted(order[:MAX_PROBED_ROWS]))
    rows, truth = chosen.to_list(), read_truth(chosen, target)
    rendered = [(renderer.render(row), text) for row, text in zip(rows, truth, strict=True)]
    kept = [(text, label) for text, label in rendered if text.input_ids]
    return [text for text, _ in kept], [label for _, label in kept]
