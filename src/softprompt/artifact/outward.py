"""What of a manifest may leave the machine: all of it but the folders that its files lay in."""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import cast

from softprompt.artifact.manifest import BackboneName, Manifest
from softprompt.artifact.names import is_id, is_local_backbone, is_path
from softprompt.backbone.builtin import PREFIX
from softprompt.errors import HubError

Where = tuple[str, ...]

# Where a recipe names files. A text elsewhere is taken for a path only if it begins as one.
_SOURCES = {("recipe", "data", split) for split in ("train", "validation", "test")}
_FILES = {("recipe", "method", "initialise", "path")}
# What the task says and the prompt began as: words, even where they look like a path.
_WORDS = {
    ("recipe", "task"),
    ("recipe", "data", "names"),
    ("recipe", "method", "initialise", "text"),
    ("recipe", "method", "initialise", "words"),
}
_PART = re.compile(r"(?P<source>.+?)(?P<split>\[[^\[\]]+\])?", re.DOTALL)
_TABLE = re.compile(r"\.(csv|tsv|json|jsonl|ndjson|parquet)(\.(gz|bz2|xz))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Change:
    """What a manifest says otherwise when it leaves the machine.

    Args:
        where: the key, with dots.
        before: what it says here.
        after: what others read.
    """

    where: str
    before: str
    after: str


def outward(manifest: Manifest, *, backbone: str | None) -> tuple[Manifest, tuple[Change, ...]]:
    """A manifest for others, and what is changed in it.

    Names of local files and folders are cut to their last part; the tensors, the task, the
    template and the fingerprint of the backbone stay as they are.

    Args:
        manifest: as it stands here.
        backbone: what others load, ``name`` or ``name@revision``; None for the same name.

    Raises:
        HubError: the backbone is a folder or a file of this machine and no other name is given,
            or the name is none that others could load.
    """
    own = manifest.backbone
    named = _named(own, backbone)
    changes: list[Change] = []
    recipe = _renamed(manifest.recipe, own["name"], named["name"])
    found = replace(
        manifest,
        backbone=named,
        recipe=cast("dict[str, object]", _cut(recipe, ("recipe",), changes)),
        data=cast("dict[str, object]", _cut(manifest.data, ("data",), changes)),
        metrics=cast("dict[str, object]", _cut(manifest.metrics, ("metrics",), changes)),
    )
    if named != own:
        before = own["name"] + (f"@{own['revision']}" if own["revision"] else "")
        after = named["name"] + (f"@{named['revision']}" if named["revision"] else "")
        changes.insert(0, Change("backbone.name", before, after))
    return found, tuple(changes)


def source_of(text: str) -> tuple[str, str | None]:
    """The name and the split of a data source such as ``glue:mrpc[train]``."""
    match = _PART.fullmatch(text)
    source, split = (match["source"], match["split"]) if match else (text, None)
    return source, split[1:-1] if split else None


def _named(own: BackboneName, given: str | None) -> BackboneName:
    """The backbone as others load it."""
    if given is None:
        if is_local_backbone(own["name"], revision=own["revision"]):
            msg = (
                f"the prompt was trained on {own['name']!r}, a folder or file of this machine that "
                "others do not have. Say what they should load: --backbone HUB_ID (backbone=… in "
                "Python), or HUB_ID@REVISION. It must be the same model: its fingerprint is "
                "compared when the prompt is used."
            )
            raise HubError(msg)
        return own
    name, _, revision = given.partition("@")
    if not is_id(name) and not name.startswith(PREFIX):
        msg = (
            f"--backbone {given!r} is no name that others could load. Give a Hub id, such as "
            "FacebookAI/roberta-large, with @REVISION behind it if need be."
        )
        raise HubError(msg)
    kept = own["revision"] if name == own["name"] else None
    return cast("BackboneName", {**own, "name": name, "revision": revision or kept})


def _renamed(recipe: dict[str, object], own: str, named: str) -> dict[str, object]:
    """The recipe with the backbone's other name, and without the revision of the old one."""
    table = recipe.get("backbone")
    if own == named or not isinstance(table, dict):
        return recipe
    kept = {key: value for key, value in table.items() if key != "revision"}
    return recipe | {"backbone": kept | {"name": named}}


def _cut(value: object, where: Where, changes: list[Change]) -> object:
    """A value in which paths are cut to their last part."""
    if where in _WORDS:
        return value
    match value:
        case dict():
            return {
                cast("str", _cut(key, (*where, "a key"), changes)): _cut(
                    inner, (*where, str(key)), changes
                )
                for key, inner in value.items()
            }
        case list():
            return [_cut(inner, (*where, str(at)), changes) for at, inner in enumerate(value)]
        case str():
            short = _short(value, where)
            if short != value:
                # A key may itself be such a path.
                name = ".".join(_last(part) if is_path(part) else part for part in where)
                changes.append(Change(name, value, short))
            return short
        case _:
            return value


def _short(text: str, where: Where) -> str:
    if where in _SOURCES:
        source, split = source_of(text)
        return _last(source) + (f"[{split}]" if split else "") if _is_file(source) else text
    return _last(text) if where in _FILES or is_path(text) else text


def _last(path: str) -> str:
    """The last part of a path of any system."""
    return PureWindowsPath(path).name or "unnamed"


def _is_file(source: str) -> bool:
    """Whether a data source is a file, by what stands there or by its name alone."""
    if source.startswith(PREFIX):
        return False
    parent = Path(source).expanduser().parent
    return (
        is_path(source)
        or bool(_TABLE.search(source))
        or "\\" in source
        or source.partition("@")[0].count("/") > 1
        or _stands(Path(source).expanduser())
        or (parent != Path() and _stands(parent))
    )


def _stands(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name that a file could have
        return False
