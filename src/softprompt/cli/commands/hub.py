"""``softprompt push`` and ``softprompt pull``: artifacts on the Hub."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.console import format_fields, hide_progress_bars, print_json, print_status
from softprompt.cli.options import ArtifactPath, AsJson

if TYPE_CHECKING:
    from softprompt.hub.repository import PushResult


def push(
    artifact: ArtifactPath,
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="OWNER/NAME; created if it does not exist.")
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="HUB_ID", help="The model on the Hub to load, if yours is a local folder."
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Make the repository private (default: the Hub's setting)."),
    ] = False,
    message: Annotated[str | None, typer.Option(help="The commit message.")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to push to (default main).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Share an artifact on the Hub, with a model card."""
    from softprompt.hub.repository import push as send

    hide_progress_bars()
    result = send(
        artifact, repo, backbone=backbone, private=private, message=message, revision=revision
    )
    for change in result.changed:
        print_status(f"redacted: {change.where}: {change.before!r} → {change.after!r}")
    if as_json:
        print_json(asdict(result))
        return
    _print_push(result)


def _print_push(result: "PushResult") -> None:
    visibility = "private" if result.private else "public"
    fields = {
        "repository": f"{result.repo} ({visibility}{', new' if result.created else ''})",
        "branch": result.branch,
        "commit": result.commit,
        "page": result.url,
    }
    print(format_fields(fields))
    revision_option = "" if result.branch == "main" else f" --revision {result.branch}"
    name = result.repo.partition("/")[2]
    command = f"softprompt pull {result.repo}{revision_option} --output {name}"
    print_status(f"\nTo download it:\n  {command}")


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="The artifact's folder.")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit (default main).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download an artifact from the Hub, and check it."""
    from softprompt.hub.repository import pull as fetch

    hide_progress_bars()
    result = fetch(repo, output, revision=revision)
    folder = str(result.folder)
    if as_json:
        facts = {"artifact": folder, "repo": result.repo, "commit": result.commit}
        print_json({**facts, "files": list(result.files)})
        return
    print(format_fields({"artifact": folder, "commit": result.commit}))
    print_status(
        "\nTo download the same commit again:\n"
        f"  softprompt pull {result.repo} --revision {result.commit} "
        f"--output {shlex.quote(folder)}"
    )
