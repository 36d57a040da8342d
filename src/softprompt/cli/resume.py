"""``softprompt resume``: go on with a run that was stopped."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import AsJson, Quiet
from softprompt.cli.say import note


def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the stopped run.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a stopped run, to the same numbers."""
    from softprompt.cli.running import conclude, run
    from softprompt.train import RunFolder

    stopped = RunFolder(folder)
    recipe = stopped.recipe()
    if stopped.metrics() is not None:
        note(f"the run in {folder} is finished already")
        conclude(stopped, as_json=as_json, quiet=quiet)
        return
    run(recipe, folder, resume=True, as_json=as_json, quiet=quiet)
