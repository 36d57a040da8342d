"""Pushing and pulling: a repository contains the artifact's two files and a model card."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Protocol
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from softprompt._io import ErrorContext, write_atomically
from softprompt._paths import cache_folder
from softprompt.artifact.artifact import Artifact
from softprompt.artifact.store import (
    MANIFEST,
    TENSORS,
    abbreviate,
    check_replaceable,
    has_pickle_suffix,
    load_artifact,
    load_artifact_from,
    save_artifact,
)
from softprompt.errors import HubError, SoftpromptWarning, format_unknown
from softprompt.hub.errors import is_out_of_reach, translate_hub_errors
from softprompt.hub.model_card import CARD, make_model_card
from softprompt.hub.names import MAIN, check_branch, check_repo_id, is_commit, is_path
from softprompt.hub.redaction import Redaction, redact

# The largest sizes of files that are pushed or pulled, in bytes.
LIMITS = {MANIFEST: 8 * 2**20, TENSORS: 2**30, CARD: 2**20}
_TIMEOUT = 30  # seconds, for the first response
_OTHER_FILES = {CARD, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt"}


def ensure_repo(api: HfApi, name: str, *, private: bool) -> bool:
    """Create the repository if it does not exist; return whether it was created."""
    try:
        info = api.model_info(name, timeout=_TIMEOUT)
    except RepositoryNotFoundError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise
        api.create_repo(name, private=private or None)
        return True
    if private and not info.private:
        msg = (
            f"{name} exists and is public, but --private (private=True in Python) was given. "
            "Nothing was pushed. Make it private in its settings on the Hub, or push to another "
            "name."
        )
        raise HubError(msg)
    return False


def fetch_branch_info(api: HfApi, name: str, *, branch: str) -> ModelInfo:
    """Fetch the state of a branch, which is created from ``main`` if it does not exist.

    Raises:
        HubError: the name is that of a tag.
    """
    if branch != MAIN:
        refs = api.list_repo_refs(name)
        if branch in {ref.name for ref in refs.tags}:
            msg = (
                f"{branch!r} is a tag of {name}, which cannot be changed. Name a branch to push to."
            )
            raise HubError(msg)
        if branch not in {ref.name for ref in refs.branches}:
            api.create_branch(name, branch=branch)
    return api.model_info(name, revision=branch, timeout=_TIMEOUT)


def check_overwritable(info: ModelInfo, name: str) -> None:
    """Check that a repository contains an artifact or nothing, so that its card may be replaced."""
    names = [sibling.rfilename for sibling in info.siblings or ()]
    others = sorted({*names} - _OTHER_FILES)
    if MANIFEST not in names and others:
        msg = (
            f"{name} contains other files ({abbreviate(others, 5)}), whose model card would be "
            "replaced. Push to another repository."
        )
        raise HubError(msg)


def check_files_arrived(info: ModelInfo, name: str) -> None:
    """Check that all pushed files have arrived: a repository's .gitignore can exclude files."""
    names = {sibling.rfilename for sibling in info.siblings or ()}
    missing = [file for file in LIMITS if file not in names]
    if missing:
        msg = (
            f"{name} accepted the commit {info.sha} without {' and '.join(missing)}, so it cannot "
            "be pulled. Remove these names from the repository's .gitignore, and push again."
        )
        raise HubError(msg)


def fetch_revision_info(api: HfApi, name: str, *, revision: str | None) -> ModelInfo:
    """Fetch the state of a revision, with its commit.

    Raises:
        HubError: the revision does not exist.
    """
    try:
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except RevisionNotFoundError as error:
        refs = api.list_repo_refs(name)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
        fault = format_unknown("revision", str(revision), options=known)
        msg = f"{name}: {fault} The full name of a commit is possible too."
        raise HubError(msg) from error
    if not is_commit(str(info.sha)):
        msg = f"the Hub reports {info.sha!r} for {name}, which is not a commit. Check HF_ENDPOINT."
        raise HubError(msg)
    return info


def select_files(info: ModelInfo, name: str) -> tuple[str, ...]:
    """The files to fetch: those of an artifact that is complete and not too large."""
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    missing = [file for file in (MANIFEST, TENSORS) if file not in sizes]
    if missing:
        others = sorted({*sizes} - _OTHER_FILES)
        fact = f"{name} at commit {str(info.sha)[:12]} has no {' and no '.join(missing)}"
        pickled = [file for file in others if has_pickle_suffix(file)]
        more = f" {pickled[0]} looks like a pickle, which is never fetched." if pickled else ""
        msg = (
            f"{fact}: it is not an artifact of softprompt. It has {abbreviate(others, 5)}.{more} "
            "Name a repository that `softprompt push` wrote."
        )
        raise HubError(msg)
    files = {file: sizes[file] for file in LIMITS if file in sizes}
    check_sizes(files, name)
    return tuple(files)


def check_sizes(sizes: dict[str, int | None], name: str) -> None:
    """Check that files are not too large, and that their sizes are known."""
    for file, size in sizes.items():
        if size is None or size > LIMITS[file]:
            fact = "has an unknown size" if size is None else f"has {size:,} bytes"
            msg = (
                f"{file} for {name} {fact}, but at most {LIMITS[file]:,} are transferred. Share "
                "such a large artifact in another way."
            )
            raise HubError(msg)


@dataclass(frozen=True)
class PushResult:
    """The result of a push.

    Args:
        repo: the repository, ``OWNER/NAME``.
        branch: the branch that was pushed to.
        commit: the new commit of the branch.
        url: the page of the commit.
        private: whether the repository is private.
        created: whether the repository was created.
        changed: the values of the manifest that are redacted in the pushed copy.

    Examples:
        >>> result = PushResult(
        ...     repo="ada/reviews",
        ...     branch="main",
        ...     commit="0" * 40,
        ...     url="https://huggingface.co/ada/reviews",
        ...     private=False,
        ...     created=True,
        ...     changed=(),
        ... )
        >>> result.repo, result.created
        ('ada/reviews', True)
    """

    repo: str
    branch: str
    commit: str
    url: str
    private: bool
    created: bool
    changed: tuple[Redaction, ...]


@dataclass(frozen=True)
class PullResult:
    """The result of a pull.

    Args:
        folder: the folder of the artifact.
        repo: the repository, ``OWNER/NAME``.
        commit: the commit; as ``revision`` it always gives the same artifact.
        files: the files that were fetched.

    Examples:
        >>> result = PullResult(Path("reviews"), "ada/reviews", "0" * 40, ("manifest.json",))
        >>> result.repo, result.files
        ('ada/reviews', ('manifest.json',))
    """

    folder: Path
    repo: str
    commit: str
    files: tuple[str, ...]


class HasArtifact(Protocol):
    """A model that was made from an artifact."""

    @property
    def artifact(self) -> Artifact:
        """The artifact."""
        ...


def push(
    artifact: Artifact | HasArtifact | str | Path,
    repo: str,
    *,
    backbone: str | None = None,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
) -> PushResult:
    """Push an artifact and a model card to a repository on the Hub, in one commit.

    Local folders are removed from the names of files in the manifest; the result lists the
    changes. The token is that of ``HF_TOKEN`` or ``hf auth login``.

    Args:
        artifact: an artifact, a model with one, its folder, or a run directory with one.
        repo: the repository, ``OWNER/NAME``; it is created if it does not exist.
        backbone: the published Hub id of the backbone, ``name`` or ``name@revision``; needed if
            the backbone is a local folder.
        private: create a private repository; an existing one must be private already.
        message: the message of the commit.
        revision: the branch to push to, created if it does not exist; ``main`` by default.

    Returns:
        The commit, and the changes to the manifest.

    Raises:
        ArtifactError: the artifact is not complete.
        HubError: the repository cannot be written to, or the backbone is a local folder.

    Examples:
        The name of the repository is checked before anything is sent:

        >>> push("runs/reviews", "reviews")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.HubError: the repository 'reviews' lacks its owner. ...
    """
    name, branch = check_repo_id(repo), check_branch(revision)
    local = _get_artifact(artifact)
    manifest, changed = redact(local.manifest, backbone=backbone)
    with TemporaryDirectory() as temporary:
        folder = save_artifact(replace(local, manifest=manifest), Path(temporary) / "artifact")
        size = (folder / TENSORS).stat().st_size
        (folder / CARD).write_text(
            make_model_card(manifest, repo=name, size=size), encoding="utf-8"
        )
        check_sizes({file: (folder / file).stat().st_size for file in LIMITS}, name)
        with translate_hub_errors(name, action="written to"):
            _check_token(name)
            api = _make_api()
            created = ensure_repo(api, name, private=private)
            info = fetch_branch_info(api, name, branch=branch)
            check_overwritable(info, name)
            commit = api.create_commit(
                name,
                [CommitOperationAdd(file, str(folder / file)) for file in LIMITS],
                commit_message=message or f"Soft prompt by softprompt {version('softprompt')}",
                revision=branch,
                parent_commit=info.sha,
            )
            check_files_arrived(api.model_info(name, revision=commit.oid), name)
    is_private = bool(info.private)
    return PushResult(name, branch, commit.oid, commit.commit_url, is_private, created, changed)


def pull(repo: str, folder: str | Path, *, revision: str | None = None) -> PullResult:
    """Pull an artifact and its model card from the Hub, at one commit, and check it.

    No other files of the repository are fetched. The folder changes only if the check succeeds.

    Args:
        repo: the repository, ``OWNER/NAME``.
        folder: where to write; an existing artifact is replaced.
        revision: a branch, tag or commit; ``main`` by default.

    Returns:
        The folder, the commit and the files.

    Raises:
        ArtifactError: the repository has no complete artifact, or the folder has other files.
        HubError: the repository or the revision is missing, not accessible or cannot be reached.

    Examples:
        >>> pull("ada/reviews/main", "reviews")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.HubError: 'ada/reviews/main' is an address or a path, not a ...
    """
    name, target = check_repo_id(repo), Path(folder)
    # A README.md without an artifact is not a model card of softprompt, and is not replaced.
    check_replaceable(target, also={CARD} if (target / MANIFEST).exists() else ())
    with translate_hub_errors(name, action="read"):
        api = _make_api()
        info = fetch_revision_info(api, name, revision=revision)
        commit = str(info.sha)
        files = select_files(info, name)
        source = ErrorContext(
            f"{name} at commit {commit[:12]}",
            f"{target} is unchanged. Pull another revision (--revision, or revision=… in Python), "
            f"or ask {name.partition('/')[0]}.",
        )
        with write_atomically(target) as fresh:
            _fetch(api, files, name=name, commit=commit, folder=fresh)
            _check_backbone(load_artifact_from(fresh, source=source), source)
    return PullResult(target, name, commit, files)


def pull_to_cache(repo: str, *, revision: str | None = None) -> Path:
    """Pull an artifact from the Hub into the cache, unless this commit is in the cache.

    Without a connection, the commit of the revision's last fetch is used.

    Args:
        repo: the repository, ``OWNER/NAME``.
        revision: a branch, tag or commit; ``main`` by default.

    Returns:
        The artifact's folder in the cache; do not change it.

    Raises:
        ArtifactError: the repository has no complete artifact.
        HubError: the repository or the revision is missing, not accessible, or cannot be reached
            and was never fetched.
    """
    name, revision = check_repo_id(repo), revision or MAIN
    cache = cache_folder() / "hub" / name.replace("/", "--")
    commit = revision if is_commit(revision) else _resolve_commit(name, revision, cache / "refs")
    folder = cache / commit
    if not (folder / MANIFEST).is_file():
        pull(name, folder, revision=commit)
    return folder


def _resolve_commit(name: str, revision: str, refs: Path) -> str:
    """The commit of a branch or tag; without a connection, that of its last fetch."""
    cached = refs / quote(revision, safe="")
    try:
        with translate_hub_errors(name, action="read"):
            commit = str(fetch_revision_info(_make_api(), name, revision=revision).sha)
    except HubError as error:
        if not is_out_of_reach(error) or not cached.is_file():
            raise
        commit = cached.read_text("utf-8").strip()
        msg = f"the Hub cannot be reached, so the cached commit {commit[:12]} of {name} is used"
        warnings.warn(msg, SoftpromptWarning, stacklevel=4)
        return commit
    refs.mkdir(parents=True, exist_ok=True)
    cached.write_text(commit, "utf-8")
    return commit


def _get_artifact(source: Artifact | HasArtifact | str | Path) -> Artifact:
    match source:
        case Artifact():
            return source
        case str() | Path():
            return load_artifact(Path(source))
        case _:
            return source.artifact


def _make_api() -> HfApi:
    return HfApi(library_name="softprompt", library_version=version("softprompt"))


def _check_token(name: str) -> None:
    if get_token() is None:
        msg = (
            f"you are not logged in, so {name} cannot be written to. Run `hf auth login` with a "
            "token that has write permission, or set HF_TOKEN."
        )
        raise HubError(msg)


def _fetch(api: HfApi, files: Iterable[str], *, name: str, commit: str, folder: Path) -> None:
    """Fetch files into a folder, without the metadata files of the client."""
    download = folder / "download"
    for file in files:
        api.hf_hub_download(name, file, revision=commit, local_dir=download)
        (download / file).rename(folder / file)
    rmtree(download)


def _check_backbone(artifact: Artifact, source: ErrorContext) -> None:
    """Refuse a manifest whose backbone is a path: it could point to any local file."""
    name = artifact.manifest.backbone["name"]
    if is_path(name) or name.endswith(".gguf") or ".." in name or "\\" in name:
        msg = f"its backbone is {name!r}, a path on its author's machine, not a name on the Hub."
        raise source.make_error(msg)
