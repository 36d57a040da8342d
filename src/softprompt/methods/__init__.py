"""Methods: how a prompt is parametrised while it is trained, and what it starts from.

This is the only list of methods. To add one, write its module and add it here; the contract tests
then cover it. Its settings are a frozen dataclass with

- ``name``: the method's name in recipes;
- ``prompt_kind``: the kind of its prompt, ``input`` or ``kv``;
- ``is_direct``: whether it starts at the initial prompt as it is built; an encoder is fitted to it;
- ``build``, which makes the `Method`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from softprompt.backbone.model import Backbone, Geometry
from softprompt.errors import PromptError, RecipeError, summarize_error
from softprompt.injection.compatibility import (
    check_layer_exists,
    check_prompt_fits,
    explain_no_late_entry,
)
from softprompt.methods.base import Method, warm_start
from softprompt.methods.initializers import (
    FromRandom,
    FromVocabulary,
    Initializer,
    initialize_prompt,
)
from softprompt.methods.multitask_prompt_tuning import MultitaskPromptTuning
from softprompt.methods.p_tuning import PTuning
from softprompt.methods.p_tuning_v2 import PTuningV2
from softprompt.methods.prefix_tuning import PrefixTuning
from softprompt.methods.prompt_tuning import PromptTuning
from softprompt.prompt import KVPrefix

MethodSettings = PromptTuning | PTuning | PrefixTuning | PTuningV2 | MultitaskPromptTuning

# torch says it in words only where it is not `torch.OutOfMemoryError`.
_NO_MEMORY = re.compile(r"allocate|out of memory|overflow", re.IGNORECASE)

METHODS: dict[str, type[Any]] = {
    settings.name: settings
    for settings in (PromptTuning, PTuning, PrefixTuning, PTuningV2, MultitaskPromptTuning)
}


def build_method(
    backbone: Backbone,
    settings: MethodSettings,
    *,
    soft_length: int,
    init: Initializer,
    seed: int,
) -> Method:
    """Build a method with its initial parameters, for a backbone.

    Args:
        backbone: the backbone to train on.
        settings: the settings of the method.
        soft_length: the number of soft tokens in the template (0 for keys and values).
        init: the initialization. Methods with an encoder are fitted to it, except to
            ``FromRandom``, which leaves them as the papers initialize them.
        seed: the seed of everything random; the same seed gives the same method on every machine.

    Raises:
        PromptError: the method does not fit the backbone, the initial value or the memory.
        RecipeError: a size is not possible.
    """
    _check_sizes(settings)
    generator = torch.Generator().manual_seed(seed)
    geometry = backbone.geometry
    _check_prefixes_enter(settings, geometry)
    match settings:
        case PrefixTuning() | PTuningV2():
            length = settings.length
            layers = parse_layers(settings.layers, geometry.num_attention_sites)
            shift_positions = settings.shift_positions
        case PromptTuning() | PTuning() | MultitaskPromptTuning():
            length, layers = soft_length, _parse_upper_layers(settings.layers, geometry)
            shift_positions = False
    with _explain_allocation(settings, length):
        draw = partial(
            initialize_prompt,
            backbone,
            kind=settings.prompt_kind,
            layers=layers,
            generator=generator,
        )
        start = draw(init, length=length)
        if isinstance(start, KVPrefix) and shift_positions:
            start = replace(start, shift_positions=True)
        check_prompt_fits(geometry, start)
        words = {}
        if isinstance(settings, PromptTuning) and settings.sampled_words:
            words["words"] = draw(FromVocabulary(), length=settings.sampled_words)
        method: Method = settings.build(geometry, start, generator=generator, **words)  # type: ignore[arg-type]  # `kind` pairs them
        if not settings.is_direct and not isinstance(init, FromRandom):
            warm_start(method, start)
    return method


def _check_prefixes_enter(settings: MethodSettings, geometry: Geometry) -> None:
    """Raise a PromptError for keys and values on a backbone that accepts none."""
    if settings.prompt_kind == "kv" and geometry.limits.prefix is not None:
        msg = (
            f"{settings.name} trains keys and values, but {geometry.model_type} "
            f"{geometry.limits.prefix}, so it accepts no key/value prefixes. Use prompt-tuning or "
            "p-tuning, or another backbone."
        )
        raise PromptError(msg)


# Far more than any paper has; more would be a slip, and more than memory.
_MOST = {
    "length": 100_000,
    "encoder_hidden_size": 1 << 16,
    "encoder_num_layers": 100,
    "bottleneck_size": 1 << 16,
    "num_words": 100_000,
    "num_ranks": 1 << 10,
}
# The reparametrization that each of these settings belongs to.
_REPARAMETRIZATION_OF = {
    "bottleneck_size": "residual",
    "mlp_per_token": "residual",
    "num_words": "superposition",
}


def _check_sizes(settings: MethodSettings) -> None:
    """Check that the sizes of a method are possible.

    Raises:
        RecipeError: with all faults.
    """
    values = asdict(settings)
    faults = [
        f"{name} = {values[name]}: from 1 to {most:,}."
        for name, most in _MOST.items()
        if values.get(name) is not None and not 1 <= values[name] <= most
    ]
    faults += [
        f"{name} = {rate}: at least 0 and less than 1."
        for name in ("encoder_dropout", "token_dropout")
        if not 0 <= (rate := values.get(name) or 0) < 1
    ]
    faults += [
        f"{name} = {values[name]}: means nothing with reparametrization = "
        f"{values['reparametrization']!r}. Take it out, or set reparametrization = {owner!r}."
        for name, owner in _REPARAMETRIZATION_OF.items()
        if values.get(name) is not None and values["reparametrization"] != owner
    ]
    if faults:
        raise RecipeError(faults, where=f"the settings of {settings.name}")


@contextmanager
def _explain_allocation(settings: MethodSettings, length: int) -> Iterator[None]:
    """Raise a PromptError for parameters that memory cannot hold."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        msg = (
            f"the parameters of {settings.name} with {length:,} soft tokens do not fit into memory "
            f"({summarize_error(error)}). Use fewer soft tokens, or a smaller encoder."
        )
        raise PromptError(msg) from error


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """The attention sites that ``"all"``, ``"12:"``, ``":6"``, ``"3:9"`` or ``"4::2"`` selects.

    Args:
        text: ``"all"`` or a slice.
        count: the number of sites.

    Returns:
        The numbers of the sites, in ascending order.

    Raises:
        PromptError: it is neither, or selects no site.
    """
    bounds = (":" if text == "all" else text).split(":")
    try:
        selected = tuple(range(count))[slice(*map(_parse_bound, bounds))] if len(bounds) > 1 else ()
    except (ValueError, TypeError):  # not numbers, or more than three
        selected = ()
    if not selected or selected[0] > selected[-1]:
        msg = (
            f'layers = {text!r} names none of the {count} layers of this backbone. Write "all", '
            f'or a slice from 0 to {count}, such as "{count // 2}:".'
        )
        raise PromptError(msg)
    return selected


def _parse_upper_layers(text: str, geometry: Geometry) -> tuple[int, ...]:
    """The layers that see soft tokens: one layer and all later ones; empty for all.

    Raises:
        PromptError: later layers are left out, or soft tokens cannot enter at a later layer.
    """
    if text == "all":
        return ()
    if explain_no_late_entry(geometry) is not None:
        check_layer_exists(geometry, 1)
    selected = parse_layers(text, geometry.num_layers)
    if selected != tuple(range(selected[0], geometry.num_layers)):
        msg = (
            f"layers = {text!r} leaves out some of the backbone's {geometry.num_layers} layers "
            "after the first that it selects, but soft tokens pass through all later layers. "
            f'Write "{selected[0]}:".'
        )
        raise PromptError(msg)
    return selected


def _parse_bound(text: str) -> int | None:
    return int(text) if text else None


__all__ = [
    "METHODS",
    "Method",
    "MethodSettings",
    "MultitaskPromptTuning",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "PromptTuning",
    "build_method",
    "parse_layers",
    "warm_start",
]
