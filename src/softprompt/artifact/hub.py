"""Share artifacts: a repository on the Hub holds the two files and a model card, and nothing else.

Nothing here is imported by ``softprompt.artifact``: what works offline does not load a client.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from softprompt.artifact.aside import aside
from softprompt.artifact.card import CARD, card_of
from softprompt.artifact.files import MANIFEST, TENSORS
from softprompt.artifact.names import branch, is_path, repository
from softprompt.artifact.outward import Change, outward
from softprompt.artifact.reach import reached
from softprompt.artifact.remote import (
    LIMITS,
    at_branch,
    at_revision,
    check_own,
    check_sizes,
    check_there,
    ensure,
    wanted,
)
from softprompt.artifact.source import Source
from softprompt.artifact.store import check_replaceable, load, load_from, save
from softprompt.artifact.value import Artifact
from softprompt.errors import HubError

_ASIDE = "download"


@dataclass(frozen=True)
class Pushed:
    """What came of a push.

    Args:
        repo: ``OWNER/NAME``.
        branch: that it went to.
        commit: that the branch is at now.
        url: of that commit's page.
        private: whether only its owner sees the repository.
        created: whether there was no such repository before.
        changed: what the pushed manifest says otherwise than the one here.
    """

    repo: str
    branch: str
    commit: str
    url: str
    private: bool
    created: bool
    changed: tuple[Change, ...]


@dataclass(frozen=True)
class Pulled:
    """What came of a pull.

    Args:
        folder: where the artifact is.
        repo: ``OWNER/NAME``.
        commit: that it was at; as ``revision`` it gives the same artifact for ever.
        files: that were fetched.
    """

    folder: Path
    repo: str
    commit: str
    files: tuple[str, ...]


def push(
    artifact: Artifact | str | Path,
    repo: str,
    *,
    backbone: str | None = None,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
) -> Pushed:
    """Put an artifact and a model card into a repository on the Hub, in one commit.

    Local folders are cut from the names of files in the manifest; what is changed so is told in
    the result. The token is that of ``HF_TOKEN`` or ``hf auth login``.

    Args:
        artifact: it, its folder, or the run's that holds one.
        repo: ``OWNER/NAME``; made if there is none.
        backbone: the Hub id, perhaps with ``@revision``, that others load; needed where the
            backbone is a local folder.
        private: make a private repository; one that is there must be private already.
        message: of the commit.
        revision: the branch to push to, made if there is none; ``main`` if left out.

    Raises:
        ArtifactError: the artifact is not whole.
        HubError: the repository cannot be written to, or the backbone is one that others lack.
    """
    name, goal = repository(repo), branch(revision)
    loaded = artifact if isinstance(artifact, Artifact) else load(Path(artifact))
    manifest, changed = outward(loaded.manifest, backbone=backbone)
    with TemporaryDirectory() as place:
        folder = save(replace(loaded, manifest=manifest), Path(place) / "artifact")
        size = (folder / TENSORS).stat().st_size
        (folder / CARD).write_text(card_of(manifest, repo=name, size=size), encoding="utf-8")
        check_sizes({file: (folder / file).stat().st_size for file in LIMITS}, name)
        with reached(name, doing="written to"):
            _check_token(name)
            api = _api()
            created = ensure(api, name, private=private)
            info = at_branch(api, name, goal=goal)
            check_own(info, name)
            done = api.create_commit(
                name,
                [CommitOperationAdd(file, str(folder / file)) for file in LIMITS],
                commit_message=message or f"Soft prompt by softprompt {version('softprompt')}",
                revision=goal,
                parent_commit=info.sha,
            )
            check_there(api.model_info(name, revision=done.oid), name)
    is_private = bool(info.private)
    return Pushed(name, goal, done.oid, done.commit_url, is_private, created, changed)


def pull(repo: str, folder: str | Path, *, revision: str | None = None) -> Pulled:
    """Fetch an artifact and its model card from the Hub, at one commit, and check it.

    No other file of the repository is fetched. The folder changes only if all is well.

    Args:
        repo: ``OWNER/NAME``.
        folder: where to; an artifact that stands there is replaced.
        revision: a branch, tag or commit; ``main`` if left out.

    Raises:
        ArtifactError: what is there is no whole artifact, or the folder holds other files.
        HubError: the repository or the revision is not there, not open or cannot be reached.
    """
    name, goal = repository(repo), Path(folder)
    # A card without an artifact beside it is somebody's own page.
    check_replaceable(goal, besides={CARD} if (goal / MANIFEST).exists() else ())
    with reached(name, doing="read"):
        api = _api()
        info = at_revision(api, name, revision=revision)
        commit = str(info.sha)
        files = wanted(info, name)
        with aside(goal) as fresh:
            _fetch(api, files, name=name, commit=commit, folder=fresh)
            where = Source(
                f"{name} at commit {commit[:12]}",
                f"{goal} is as it was. Pull another --revision, or tell {name.partition('/')[0]}.",
            )
            _check_backbone(load_from(fresh, source=where), where)
    return Pulled(goal, name, commit, files)


def _api() -> HfApi:
    return HfApi(library_name="softprompt", library_version=version("softprompt"))


def _check_token(name: str) -> None:
    if get_token() is None:
        msg = (
            f"nobody is logged in, so {name} cannot be written to. Run `hf auth login` with a "
            "token that may write, or set HF_TOKEN."
        )
        raise HubError(msg)


def _fetch(api: HfApi, files: Iterable[str], *, name: str, commit: str, folder: Path) -> None:
    """Bring files into a folder, and nothing of what the client keeps beside them."""
    place = folder / _ASIDE
    for file in files:
        api.hf_hub_download(name, file, revision=commit, local_dir=place)
        (place / file).rename(folder / file)
    rmtree(place)


def _check_backbone(artifact: Artifact, source: Source) -> None:
    """Refuse a backbone that would be read from wherever a stranger's manifest points."""
    name = artifact.manifest.backbone["name"]
    if is_path(name) or name.endswith(".gguf") or ".." in name or "\\" in name:
        msg = f"its backbone is {name!r}, a path on somebody's machine and no name on the Hub."
        raise source.fault(msg)
