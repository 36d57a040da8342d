"""The list of methods: the only place that names them all.

A method costs its file and one line here; the contract tests pick it up by themselves.
"""

from dataclasses import replace
from typing import Any

import torch

from softprompt.backbone.model import Backbone, Geometry
from softprompt.errors import PromptError
from softprompt.initialise import FromRandom, Initial, initial_prompt
from softprompt.injection.check import check, check_layer
from softprompt.methods.base import Method, fit
from softprompt.methods.p_tuning import PTuning
from softprompt.methods.p_tuning_v2 import PTuningV2
from softprompt.methods.prefix_tuning import PrefixTuning
from softprompt.methods.prompt_tuning import PromptTuning
from softprompt.prompt import KVPrefix

MethodSettings = PromptTuning | PTuning | PrefixTuning | PTuningV2

METHODS: dict[str, type[Any]] = {
    settings.name: settings for settings in (PromptTuning, PTuning, PrefixTuning, PTuningV2)
}


def build_method(
    backbone: Backbone,
    settings: MethodSettings,
    *,
    soft_length: int,
    initial: Initial,
    seed: int,
) -> Method:
    """A method at its start, for a backbone.

    Args:
        soft_length: how many soft tokens the template has (0 for keys and values).
        initial: what the prompt is before its first step. Methods with an encoder are fitted to
            it, except to ``FromRandom``, which leaves them as the papers draw them.
        seed: decides everything random, on every machine.

    Raises:
        PromptError: the method does not fit the backbone or the initial value.
    """
    generator = torch.Generator().manual_seed(seed)
    if settings.shape == "kv" and not backbone.geometry.sites:
        _refuse(backbone, settings.name)
    geometry = backbone.geometry
    match settings:
        case PrefixTuning() | PTuningV2():
            length, layers = settings.length, sites(settings.layers, geometry.sites)
            shifted = settings.shifted
        case PromptTuning() | PTuning():
            length, layers = soft_length, _from(settings.layers, geometry)
            shifted = False
    start = initial_prompt(
        backbone,
        initial,
        shape=settings.shape,
        length=length,
        layers=layers,
        generator=generator,
    )
    if isinstance(start, KVPrefix) and shifted:
        start = replace(start, shifted=True)
    check(geometry, start)
    method: Method = settings.build(geometry, start, generator=generator)  # type: ignore[arg-type]  # `shape` pairs them
    if not settings.direct and not isinstance(initial, FromRandom):
        fit(method, start)
    return method


def sites(text: str, count: int) -> tuple[int, ...]:
    """The attention sites that ``"all"``, ``"12:"``, ``":6"``, ``"3:9"`` or ``"4::2"`` names.

    Raises:
        PromptError: it is no such thing, or names none of the ``count`` sites.
    """
    bounds = (":" if text == "all" else text).split(":")
    try:
        chosen = tuple(range(count))[slice(*map(_bound, bounds))] if len(bounds) > 1 else ()
    except (ValueError, TypeError):  # no numbers, or more than three
        chosen = ()
    if not chosen or chosen[0] > chosen[-1]:
        msg = (
            f'layers = {text!r} names none of the {count} layers of this backbone. Write "all", '
            f'or a slice from 0 to {count}, such as "{count // 2}:".'
        )
        raise PromptError(msg)
    return chosen


def _from(text: str, geometry: Geometry) -> tuple[int, ...]:
    """The layers that see soft tokens: all from one on.

    Raises:
        PromptError: it leaves the last ones out, or they cannot enter late.
    """
    if text == "all":
        return ()
    if not geometry.blocks:
        check_layer(geometry, 1)
    chosen = sites(text, geometry.blocks)
    if chosen != tuple(range(chosen[0], geometry.blocks)):
        msg = (
            f"layers = {text!r} leaves out some of the {geometry.blocks} layers that come after "
            f'its first, but soft tokens stay once they have entered. Write "{chosen[0]}:".'
        )
        raise PromptError(msg)
    return chosen


def _bound(text: str) -> int | None:
    return int(text) if text else None


def _refuse(backbone: Backbone, method: str) -> None:
    msg = (
        f"{method} trains keys and values, but {backbone.geometry.family} has an attention of its "
        "own, which they cannot enter. Use prompt-tuning or p-tuning, or another backbone."
    )
    raise PromptError(msg)


__all__ = [
    "METHODS",
    "Method",
    "MethodSettings",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "PromptTuning",
    "build_method",
    "fit",
    "sites",
]
