"""Names of repositories and branches, and what is no name of any but a path on somebody's disk."""

import re
from pathlib import Path

from softprompt.backbone.builtin import PREFIX
from softprompt.errors import HubError

MAIN = "main"
_WORD = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?:{_WORD}/)?{_WORD}", re.ASCII)
_BRANCH = re.compile(r"\w[\w./-]{0,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# As they begin on Unix, in a home folder, beside the working folder, on Windows and in a network.
_PATH = re.compile(r"/.|~[^/\s]*/|~$|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:", re.DOTALL)


def is_id(text: str) -> bool:
    """Whether a text can be the Hub's name of a model or data set."""
    return bool(_ID.fullmatch(text)) and not {"--", ".."} & {*_pairs(text)} and text[-4:] != ".git"


def is_path(text: str) -> bool:
    """Whether a text begins as only a path does, whatever stands there."""
    return bool(_PATH.match(text))


def is_local_backbone(name: str, *, revision: str | None) -> bool:
    """Whether a backbone is a folder or a file, which nobody else has.

    Args:
        name: how it was asked for.
        revision: the Hub commit, which tells that it did not come from a folder of that name.
    """
    if name.startswith(PREFIX):
        return False
    if not is_id(name) or name.endswith(".gguf"):
        return True
    return revision is None and Path(name).exists()


def is_commit(text: str) -> bool:
    """Whether a text is the whole name of a commit."""
    return bool(_COMMIT.fullmatch(text))


def repository(text: str) -> str:
    """The name of a repository, if it can be one.

    Raises:
        HubError: it cannot.
    """
    owner, slash, name = text.partition("/")
    if slash and owner and name and "/" not in name and is_id(text):
        return text
    if "://" in text or text.count("/") > 1:
        near = [part for part in text.split("/") if part][-2:]
        msg = f"{text!r} is an address or a path, not a repository's name. Write {'/'.join(near)}."
    elif not slash and is_id(text):
        msg = f"the repository {text!r} lacks its owner. Write OWNER/{text}, with your Hub name."
    else:
        msg = (
            f"{text!r} is no repository's name. It is OWNER/NAME, both of letters, digits, '-', "
            "'_' and '.', with one of the first three at the ends, no '--' or '..', and no "
            "'.git' behind."
        )
    raise HubError(msg)


def branch(text: str | None) -> str:
    """The name of a branch to push to; ``main`` if none is named.

    Raises:
        HubError: it cannot be one.
    """
    if text is None:
        return MAIN
    if is_commit(text):
        msg = f"{text} is a commit, which nothing can be added to. Name a branch to push to."
        raise HubError(msg)
    if not _BRANCH.fullmatch(text) or ".." in text or text.startswith("refs/"):
        msg = (
            f"{text!r} is no branch's name. It is of letters, digits, '-', '_', '.' and '/', such "
            "as main or v2."
        )
        raise HubError(msg)
    return text


def _pairs(text: str) -> list[str]:
    return [text[at : at + 2] for at in range(len(text) - 1)]
