"""Names of repositories and branches, and how to distinguish them from local paths."""

import re

from softprompt._paths import is_present
from softprompt.backbone.builtin import PREFIX
from softprompt.errors import HubError

MAIN = "main"
_WORD = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?:{_WORD}/)?{_WORD}", re.ASCII)
_BRANCH = re.compile(r"\w[\w./-]{0,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Paths on Unix, in a home folder, relative to the working folder, on Windows and in a network.
_PATH = re.compile(r"/.|~[^/\s]*/|~$|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:", re.DOTALL)


def is_repo_id(text: str) -> bool:
    """Whether a text can be the name of a model or data set on the Hub."""
    return bool(_ID.fullmatch(text)) and not {"--", ".."} & {*_pairs(text)} and text[-4:] != ".git"


def is_path(text: str) -> bool:
    """Whether a text begins like a path, whether or not the path exists."""
    return bool(_PATH.match(text))


def is_local_backbone(name: str, *, revision: str | None) -> bool:
    """Whether a backbone is a local folder or file.

    Args:
        name: the name it was loaded by.
        revision: the Hub commit; with one, it did not come from a folder of that name.
    """
    if name.startswith(PREFIX):
        return False
    if not is_repo_id(name) or name.endswith(".gguf"):
        return True
    return revision is None and is_present(name)


def is_commit(text: str) -> bool:
    """Whether a text is the full name of a commit."""
    return bool(_COMMIT.fullmatch(text))


def check_repo_id(text: str) -> str:
    """Check the name of a repository, and return it.

    Raises:
        HubError: it is not a valid name.
    """
    owner, slash, name = text.partition("/")
    if slash and owner and name and "/" not in name and is_repo_id(text):
        return text
    if "://" in text or text.count("/") > 1:
        last = [part for part in text.split("/") if part][-2:]
        msg = f"{text!r} is an address or a path, not a repository's name. Write {'/'.join(last)}."
    elif not slash and is_repo_id(text):
        msg = f"the repository {text!r} lacks its owner. Write OWNER/{text}, with your Hub name."
    else:
        msg = (
            f"{text!r} is not a valid name of a repository. It is OWNER/NAME; both consist of "
            "letters, digits, '-', '_' and '.', begin with a letter or digit, and end with a "
            "letter, a digit or '_'. '--', '..' and a final '.git' are not possible."
        )
    raise HubError(msg)


def check_branch(text: str | None) -> str:
    """Check the name of a branch to push to, and return it; ``main`` for None.

    Raises:
        HubError: it is not a valid name.
    """
    if text is None:
        return MAIN
    if is_commit(text):
        msg = f"{text} is a commit, which cannot be changed. Name a branch to push to."
        raise HubError(msg)
    if not _BRANCH.fullmatch(text) or ".." in text or text.startswith("refs/"):
        msg = (
            f"{text!r} is not a valid name of a branch. It consists of letters, digits, '-', '_', "
            "'.' and '/', such as main or v2."
        )
        raise HubError(msg)
    return text


def _pairs(text: str) -> list[str]:
    return [text[at : at + 2] for at in range(len(text) - 1)]
