"""Redaction of a manifest before it is published: local folders are removed from it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import cast

from softprompt._paths import expand_user, is_present
from softprompt.artifact.manifest import BackboneRef, Manifest
from softprompt.backbone.builtin import PREFIX
from softprompt.errors import HubError
from softprompt.hub.names import is_local_backbone, is_path, is_repo_id

Key = tuple[str, ...]  # the keys from the top of the manifest to a value

# The keys of a recipe that name files. Other texts are treated as paths only if they look like one.
_SOURCE_KEYS = {("recipe", "data", split) for split in ("train", "validation", "test")}
_FILE_KEYS = {("recipe", "method", "init", "path")}
# The beginnings of the keys whose texts name files, in lists.
_FILE_LISTS = (("recipe", "method", "init", "paths"), ("metrics", "start_choice"))
# The keys whose texts are words, even if they look like a path.
_TEXT_KEYS = {
    ("recipe", "task"),
    ("recipe", "data", "value_map"),
    ("recipe", "method", "init", "text"),
    ("recipe", "method", "init", "words"),
}
_PART = re.compile(r"(?P<source>.+?)(?P<split>\[[^\[\]]+\])?", re.DOTALL)
_TABLE = re.compile(
    r"\.(csv|tsv|json|jsonl|ndjson|parquet|xlsx|conllu?|iob2?|bio)(\.(gz|bz2|xz))?$", re.IGNORECASE
)


@dataclass(frozen=True)
class Redaction:
    """A value of a manifest that is changed in the published copy.

    Args:
        where: the key, with dots.
        before: the local value.
        after: the published value.
    """

    where: str
    before: str
    after: str


def redact(manifest: Manifest, *, backbone: str | None) -> tuple[Manifest, tuple[Redaction, ...]]:
    """Make the published copy of a manifest.

    Paths of local files and folders are shortened to their last part; the tensors, the task, the
    template and the fingerprint of the backbone stay as they are.

    Args:
        manifest: the local manifest.
        backbone: the published name of the backbone, ``name`` or ``name@revision``; None for the
            local name.

    Returns:
        The copy, and its changes.

    Raises:
        HubError: the backbone is a local folder or file and no published name is given, or the
            published name is not a valid one.
    """
    local = manifest.backbone
    public = _published_backbone(local, backbone)
    changes: list[Redaction] = []
    recipe = _replace_backbone(manifest.recipe, local["name"], public["name"])
    copy = replace(
        manifest,
        backbone=public,
        recipe=cast("dict[str, object]", _shorten(recipe, ("recipe",), changes)),
        data=cast("dict[str, object]", _shorten(manifest.data, ("data",), changes)),
        metrics=cast("dict[str, object]", _shorten(manifest.metrics, ("metrics",), changes)),
    )
    if public != local:
        before = local["name"] + (f"@{local['revision']}" if local["revision"] else "")
        after = public["name"] + (f"@{public['revision']}" if public["revision"] else "")
        changes.insert(0, Redaction("backbone.name", before, after))
    return copy, tuple(changes)


def split_source(text: str) -> tuple[str, str | None]:
    """The name and the split of a data source such as ``glue:mrpc[train]``."""
    match = _PART.fullmatch(text)
    source, split = (match["source"], match["split"]) if match else (text, None)
    return source, split[1:-1] if split else None


def _published_backbone(local: BackboneRef, name_at_revision: str | None) -> BackboneRef:
    """The reference to the backbone in the published copy."""
    if name_at_revision is None:
        if is_local_backbone(local["name"], revision=local["revision"]):
            msg = (
                f"the prompt was trained on {local['name']!r}, a local folder or file that other "
                "people do not have. Name the Hub model that they should load: --backbone HUB_ID "
                "(backbone=… in Python), or HUB_ID@REVISION. It must be the same model: its "
                "fingerprint is compared when the prompt is used."
            )
            raise HubError(msg)
        return local
    name, _, revision = name_at_revision.partition("@")
    if not is_repo_id(name) and not name.startswith(PREFIX):
        msg = (
            f"the backbone {name_at_revision!r} is not a valid name on the Hub. Give a Hub id, "
            "such as FacebookAI/roberta-large, followed by @REVISION if necessary."
        )
        raise HubError(msg)
    if not revision and name == local["name"]:
        return local
    return cast("BackboneRef", {**local, "name": name, "revision": revision or None})


def _replace_backbone(recipe: dict[str, object], local: str, public: str) -> dict[str, object]:
    """Replace the backbone's name in a recipe, and remove the revision of the old one."""
    table = recipe.get("backbone")
    if local == public or not isinstance(table, dict):
        return recipe
    others = {key: value for key, value in table.items() if key != "revision"}
    return recipe | {"backbone": others | {"name": public}}


def _shorten(value: object, key: Key, changes: list[Redaction]) -> object:
    """A value in which paths are shortened to their last part; the changes are recorded."""
    if key in _TEXT_KEYS:
        return value
    match value:
        case dict():
            return {
                cast("str", _shorten(name, (*key, "a key"), changes)): _shorten(
                    inner, (*key, str(name)), changes
                )
                for name, inner in value.items()
            }
        case list():
            return [_shorten(inner, (*key, str(at)), changes) for at, inner in enumerate(value)]
        case str():
            short = _shorten_text(value, key)
            if short != value:
                # A key may be a path too.
                where = ".".join(_get_file_name(part) if is_path(part) else part for part in key)
                changes.append(Redaction(where, value, short))
            return short
        case _:
            return value


def _shorten_text(text: str, key: Key) -> str:
    if key in _SOURCE_KEYS:
        source, split = split_source(text)
        if not _is_file(source):
            return text
        return _get_file_name(source) + (f"[{split}]" if split else "")
    is_named = key in _FILE_KEYS or any(key[: len(part)] == part for part in _FILE_LISTS)
    return _get_file_name(text) if is_named or is_path(text) else text


def _get_file_name(path: str) -> str:
    """The last part of a path of any operating system."""
    return PureWindowsPath(path).name or "unnamed"


def _is_file(source: str) -> bool:
    """Whether a data source is a file: it exists, or its name looks like one."""
    if source.startswith(PREFIX):
        return False
    parent = expand_user(source).parent
    return (
        is_path(source)
        or bool(_TABLE.search(source))
        or "\\" in source
        or source.partition("@")[0].count("/") > 1
        or is_present(expand_user(source))
        or (parent != Path() and is_present(parent))
    )
