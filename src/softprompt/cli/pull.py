"""``softprompt pull``: fetch an artifact from a repository on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import AsJson
from softprompt.cli.say import listed, note, print_json, without_bars


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="The artifact's folder.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit; main.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch an artifact from the Hub, checked, at one commit."""
    from softprompt.artifact.hub import pull as fetch

    without_bars()
    done = fetch(repo, output, revision=revision)
    if as_json:
        facts = {"artifact": str(done.folder), "repo": done.repo, "commit": done.commit}
        print_json({**facts, "files": list(done.files)})
        return
    print(listed({"artifact": str(done.folder), "commit": done.commit}))
    note(
        "\nTo fetch the very same again:\n"
        f"  softprompt pull {done.repo} --revision {done.commit} --output {done.folder}"
    )
