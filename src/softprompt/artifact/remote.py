"""What stands in a repository on the Hub, and whether an artifact may come from it or go there."""

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from softprompt.artifact.card import CARD
from softprompt.artifact.files import MANIFEST, TENSORS, few, looks_pickled
from softprompt.artifact.names import MAIN, is_commit
from softprompt.errors import HubError, unknown

# The largest files that are pushed or pulled, in bytes.
LIMITS = {MANIFEST: 8 * 2**20, TENSORS: 2**30, CARD: 2**20}
_PATIENCE = 30  # seconds, for the first answer
_BESIDE = {CARD, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt"}


def ensure(api: HfApi, name: str, *, private: bool) -> bool:
    """Make the repository if there is none; whether it was made."""
    try:
        info = api.model_info(name, timeout=_PATIENCE)
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:  # noqa: PLR2004  # HTTP's "not found"
            raise
        api.create_repo(name, private=private or None)
        return True
    if private and not info.private:
        msg = (
            f"{name} is there already and public, but --private was asked for. Nothing was pushed. "
            "Make it private in its settings on the Hub, or push to another name."
        )
        raise HubError(msg)
    return False


def at_branch(api: HfApi, name: str, *, goal: str) -> ModelInfo:
    """What stands at the branch; it is made from ``main`` if there is none.

    Raises:
        HubError: it is a tag.
    """
    if goal != MAIN:
        refs = api.list_repo_refs(name)
        if goal in {tag.name for tag in refs.tags}:
            msg = f"{goal!r} is a tag of {name}, which does not move. Name a branch to push to."
            raise HubError(msg)
        if goal not in {one.name for one in refs.branches}:
            api.create_branch(name, branch=goal)
    return api.model_info(name, revision=goal, timeout=_PATIENCE)


def check_own(info: ModelInfo, name: str) -> None:
    """Do not write over another thing's card."""
    names = [sibling.rfilename for sibling in info.siblings or ()]
    others = sorted({*names} - _BESIDE)
    if MANIFEST not in names and others:
        msg = (
            f"{name} holds something else ({few(others, 5)}), whose card would be replaced. Push "
            "to a repository of its own."
        )
        raise HubError(msg)


def check_there(info: ModelInfo, name: str) -> None:
    """Make sure that what was pushed has arrived: a repository can be told to ignore files."""
    names = {sibling.rfilename for sibling in info.siblings or ()}
    missing = [file for file in LIMITS if file not in names]
    if missing:
        msg = (
            f"{name} took the commit {info.sha} without {' and '.join(missing)}, so it cannot be "
            "pulled. Take these names out of the repository's .gitignore, and push again."
        )
        raise HubError(msg)


def at_revision(api: HfApi, name: str, *, revision: str | None) -> ModelInfo:
    """What stands at a revision, with the commit it is.

    Raises:
        HubError: there is no such revision.
    """
    try:
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=_PATIENCE)
    except RevisionNotFoundError as error:
        refs = api.list_repo_refs(name)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
        fault = unknown("revision", str(revision), options=known)
        msg = f"{name}: {fault} The whole name of a commit is possible too."
        raise HubError(msg) from error
    if not is_commit(str(info.sha)):
        msg = f"the Hub says that {name} is at {info.sha!r}, which is no commit. Check HF_ENDPOINT."
        raise HubError(msg)
    return info


def wanted(info: ModelInfo, name: str) -> tuple[str, ...]:
    """The files to fetch, if an artifact is there and not too large."""
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    missing = [file for file in (MANIFEST, TENSORS) if file not in sizes]
    if missing:
        others = sorted({*sizes} - _BESIDE)
        fact = f"{name} at commit {str(info.sha)[:12]} has no {' and no '.join(missing)}"
        pickled = [file for file in others if looks_pickled(file)]
        more = f" {pickled[0]} looks like a pickle, which is never fetched." if pickled else ""
        msg = (
            f"{fact}: it is no artifact of softprompt. It holds {few(others, 5)}.{more} "
            "Name a repository that `softprompt push` wrote."
        )
        raise HubError(msg)
    found = {file: sizes[file] for file in LIMITS if file in sizes}
    check_sizes(found, name)
    return tuple(found)


def check_sizes(sizes: dict[str, int | None], name: str) -> None:
    """Refuse files that are too large to be moved, or do not say how large they are."""
    for file, size in sizes.items():
        if size is None or size > LIMITS[file]:
            given = "of unknown size" if size is None else f"{size:,} bytes"
            msg = (
                f"{file} for {name} is {given}, but at most {LIMITS[file]:,} are moved. Share so "
                "large an artifact in another way."
            )
            raise HubError(msg)
