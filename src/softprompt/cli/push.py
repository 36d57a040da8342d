"""``softprompt push``: put an artifact into a repository on the Hub, with a model card."""

from dataclasses import asdict
from typing import Annotated

import typer

from softprompt.cli.options import Artifact, AsJson
from softprompt.cli.say import listed, note, print_json, without_bars


def push(
    artifact: Artifact,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME; made if there is none.")],
    backbone: Annotated[
        str | None,
        typer.Option(metavar="HUB_ID", help="What others load, if yours is a local folder."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Only you see the repository; else the Hub decides.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to push to; main.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Share an artifact on the Hub, with a model card."""
    from softprompt.artifact.hub import push as send

    without_bars()
    done = send(
        artifact, repo, backbone=backbone, private=private, message=message, revision=revision
    )
    for change in done.changed:
        note(f"not as here: {change.where}: {change.before!r} is {change.after!r} for others")
    if as_json:
        print_json(asdict(done))
        return
    seen = "private" if done.private else "public"
    facts = {
        "repository": f"{done.repo} ({seen}{', new' if done.created else ''})",
        "branch": done.branch,
        "commit": done.commit,
        "page": done.url,
    }
    print(listed(facts))
    others = "" if done.branch == "main" else f" --revision {done.branch}"
    name = done.repo.partition("/")[2]
    note(f"\nOthers fetch it with:\n  softprompt pull {done.repo}{others} --output {name}")
