"""``softprompt import``: a prompt from another library becomes an artifact."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.options import AsJson
from softprompt.cli.say import listed, note, print_json

if TYPE_CHECKING:
    from softprompt.evaluate import Model
    from softprompt.recipe import BackboneSection

Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="The file or folder to read.")]
Form = Annotated[
    str, typer.Argument(metavar="FORMAT", help="peft, npy, p-tuning-v2 or safetensors.")
]


def import_(
    form: Form,
    source: Source,
    output: Annotated[Path, typer.Option("--output", help="The artifact's folder.")],
    backbone: Annotated[
        str | None, typer.Option(help="What it was trained on, if the files do not say.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the backbone on the Hub.")] = None,
    pick: Annotated[
        str | None, typer.Option(help="Of several prompts, such as task-1; all if left out.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=C",
            help="Of tables task and backbone: task.template, task.labels, task.verbalizer …",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an artifact of a prompt that another library trained."""
    from softprompt.evaluate import import_prompts
    from softprompt.recipe import read_parts
    from softprompt.train.prepare import open_section

    named = _backbone(form, source, backbone, revision)
    section, task = read_parts(changes or (), backbone=named)
    models = import_prompts(form, source, backbone=open_section(section), task=task)
    chosen = _chosen(models, pick)
    places = {name: output / name if name else output for name in chosen}
    for name, model in chosen.items():
        _loaded_as(section, model).save(places[name])
    _tell({place: chosen[name] for name, place in places.items()}, as_json=as_json)


def _backbone(
    form: str, source: Path, name: str | None, revision: str | None
) -> dict[str, str | None]:
    from softprompt.artifact.formats import base_of
    from softprompt.errors import ArtifactError

    said = base_of(form, source)
    if name is None and said.name is None:
        msg = (
            f"{source} does not say which backbone its prompt was trained on. Name it: "
            "--backbone HUB_ID, a folder, or a builtin: name."
        )
        raise ArtifactError(msg)
    if name not in {None, said.name} and said.name is not None:
        note(f"the files name the backbone {said.name!r}; taking {name!r} as asked.")
    own = name or said.name or ""
    return {"name": own, "revision": revision or (said.revision if own == said.name else None)}


def _loaded_as(section: "BackboneSection", model: "Model") -> "Model":
    """What is to be known to load the backbone so again."""
    table = section.model_dump(include={"name", "dtype", "device_map", "quantization"})
    manifest = model.artifact.manifest
    told = replace(manifest, recipe={**manifest.recipe, "backbone": table})
    return replace(model, artifact=replace(model.artifact, manifest=told))


def _chosen(models: Mapping[str, "Model"], pick: str | None) -> dict[str, "Model"]:
    from softprompt.errors import ArtifactError, unknown

    if pick is None:
        return {"" if len(models) == 1 else name: model for name, model in models.items()}
    if pick not in models:
        if "" in models:
            msg = f"there is a single prompt, so there is no {pick!r}. Leave --pick out."
            raise ArtifactError(msg)
        raise ArtifactError(unknown("prompt", pick, options=models))
    return {"": models[pick]}


def _tell(saved: Mapping[Path, "Model"], *, as_json: bool) -> None:
    facts = []
    for place, model in saved.items():
        manifest = model.artifact.manifest
        facts.append(
            {
                "artifact": str(place),
                "backbone": manifest.backbone["name"],
                "kind": manifest.kind,
                "length": manifest.length,
                "shifted": manifest.shifted,
                "template": manifest.template,
                "task": manifest.task["kind"],
                "labels": manifest.labels,
            }
        )
    if as_json:
        print_json({"imported": facts})
        return
    for one in facts:
        print(listed({name: _said(value) for name, value in one.items() if value is not None}))
    note(f'\nNext:\n  softprompt predict {facts[0]["artifact"]} "some text"')


def _said(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
