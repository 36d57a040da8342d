"""``softprompt export``: an artifact becomes what another library loads."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import Artifact, AsJson
from softprompt.cli.say import print_json

Form = Annotated[
    str, typer.Argument(metavar="FORMAT", help="peft, vllm, npy, p-tuning-v2 or safetensors.")
]


def export(
    form: Form,
    artifact: Artifact,
    output: Annotated[Path, typer.Option("--output", help="A folder, new or empty.")],
    as_json: AsJson = False,
) -> None:
    """Write an artifact as another library loads it."""
    from softprompt.artifact.formats import writer
    from softprompt.evaluate import export_prompt, load_model

    writer(form)  # a misspelt format is told before a backbone is loaded
    folder = export_prompt(form, load_model(artifact), output=output)
    names = sorted(path.name for path in folder.iterdir())
    if as_json:
        print_json({"format": form, "folder": str(folder), "files": names})
        return
    for name in names:
        print(folder / name)
