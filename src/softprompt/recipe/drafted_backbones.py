"""The facts about a backbone that a drafted recipe depends on."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from softprompt._paths import expand_user, is_present
from softprompt.backbone import Architecture, load_unverified
from softprompt.backbone.model import Backbone
from softprompt.data.chat_template import make_chat_template
from softprompt.data.messages import SYSTEM, USER
from softprompt.errors import DataError, SoftpromptError, TemplateError

DEFAULT_BACKBONE = "builtin:smollm2-135m-instruct"


@dataclass(frozen=True)
class BackboneInfo:
    """The facts about a backbone that a recipe depends on.

    Args:
        name: as the recipe names it.
        kind: its architecture.
        has_head: whether it has a language-model head.
        takes_prefixes: whether keys and values may be trained on it.
        turns: of a conversation that its chat template takes; empty if it has none.
    """

    name: str
    kind: Architecture
    has_head: bool
    takes_prefixes: bool = True
    turns: tuple[str, ...] = (SYSTEM, USER)


def name_file(folder: Path, source: str) -> str:
    """How a recipe in a folder names a file; a data set's or model's name stays as it is.

    Args:
        folder: of the recipe.
        source: the file.
    """
    path = expand_user(source)
    if not is_present(path):
        return source
    try:
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    except ValueError:  # another drive
        return str(path.resolve())


def inspect_backbone(folder: Path, name: str) -> tuple[BackboneInfo, list[str]]:
    """The facts about a backbone that a recipe depends on, and notes for the user.

    Args:
        folder: of the recipe.
        name: of the backbone.
    """
    source = name_file(folder, name)
    if name == DEFAULT_BACKBONE:  # known, and slow to load
        return BackboneInfo(source, "causal", has_head=True), []
    try:
        backbone = load_unverified(name)
    except SoftpromptError as error:
        note = f"could not load the backbone; assuming a causal language model: {error}"
        return BackboneInfo(source, "causal", has_head=True), [note]
    geometry, has_head = backbone.geometry, backbone.lm_head is not None
    takes_prefixes = geometry.limits.prefix is None
    turns = _list_turns(backbone)
    return BackboneInfo(source, geometry.architecture, has_head, takes_prefixes, turns), []


def _list_turns(backbone: Backbone) -> tuple[str, ...]:
    """The turns that a backbone's chat template takes."""
    try:
        chat = make_chat_template(backbone.tokenizer)
    except TemplateError:
        return ()
    for turns in ((SYSTEM, USER), (USER,)):
        with suppress(DataError):
            chat.divide(turns, continues=True)
            return turns
    return ()
