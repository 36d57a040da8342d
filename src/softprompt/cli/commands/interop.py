"""``softprompt import`` and ``softprompt export``: prompts in the formats of other libraries."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.console import format_fields, print_json, print_status
from softprompt.cli.options import ArtifactPath, AsJson, PromptBackbone

if TYPE_CHECKING:
    from softprompt.inference import PromptModel
    from softprompt.recipe import BackboneConfig


Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="The file or folder to read.")]
ImportFormat = Annotated[
    str, typer.Argument(metavar="FORMAT", help="peft, npy, p-tuning-v2 or safetensors.")
]


def import_(
    form: ImportFormat,
    source: Source,
    output: Annotated[Path, typer.Option("--output", help="The artifact's folder.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="The backbone it was trained on, if the files do not name it."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The backbone's revision on the Hub.")
    ] = None,
    pick: Annotated[
        str | None, typer.Option(help="One of several prompts, such as task-1 (default: all).")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=C",
            help="Override settings of [task] or [backbone], such as task.template.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a prompt of another library to an artifact."""
    from softprompt.interop.convert import import_prompts
    from softprompt.recipe import read_overrides
    from softprompt.train.recipe_backbone import load_recipe_backbone

    table = _choose_backbone(form, source, backbone, revision)
    section, task = read_overrides(changes or (), backbone=table)
    models = import_prompts(form, source, backbone=load_recipe_backbone(section), task=task)
    saved = {}
    for name, model in _select(models, pick).items():
        folder = output / name if name else output
        _record_backbone(section, model).save(folder)
        saved[folder] = model
    _print_imported(saved, as_json=as_json)


def _choose_backbone(
    form: str, source: Path, name: str | None, revision: str | None
) -> dict[str, str | None]:
    """The name and the revision of the backbone, from the options or the files."""
    from softprompt.errors import ArtifactError
    from softprompt.interop.registry import read_base_model

    recorded = read_base_model(form, source)
    if name is None and recorded.name is None:
        msg = (
            f"{source} does not name the backbone that its prompt was trained on. Give "
            "--backbone with a Hub id, a folder, or a builtin: name."
        )
        raise ArtifactError(msg)
    if name not in {None, recorded.name} and recorded.name is not None:
        print_status(f"the files name the backbone {recorded.name!r}; using {name!r} instead.")
    chosen = name or recorded.name or ""
    if revision is None and chosen == recorded.name:
        revision = recorded.revision
    return {"name": chosen, "revision": revision}


def _record_backbone(section: "BackboneConfig", model: "PromptModel") -> "PromptModel":
    """Record in the manifest how the backbone was loaded."""
    table = section.model_dump(include={"name", "dtype", "device_map", "quantization_config"})
    manifest = model.artifact.manifest
    changed = replace(manifest, recipe={**manifest.recipe, "backbone": table})
    return replace(model, artifact=replace(model.artifact, manifest=changed))


def _select(models: Mapping[str, "PromptModel"], pick: str | None) -> dict[str, "PromptModel"]:
    """The prompts to save by the names of their folders; a single one has no folder of its own."""
    from softprompt.interop.convert import pick_prompt

    if pick is None:
        return {"" if len(models) == 1 else name: model for name, model in models.items()}
    return {"": pick_prompt(models, pick)}


def _print_imported(saved: Mapping[Path, "PromptModel"], *, as_json: bool) -> None:
    facts = []
    for folder, model in saved.items():
        manifest = model.artifact.manifest
        facts.append(
            {
                "artifact": str(folder),
                "backbone": manifest.backbone["name"],
                "kind": manifest.kind,
                "length": manifest.length,
                "shift_positions": manifest.shift_positions,
                "template": manifest.template,
                "task": manifest.task["kind"],
                "labels": manifest.labels,
            }
        )
    if as_json:
        print_json({"imported": facts})
        return
    for fact in facts:
        fields = {name: _format(value) for name, value in fact.items() if value is not None}
        print(format_fields(fields))
    first = shlex.quote(str(facts[0]["artifact"]))
    print_status(f'\nNext:\n  softprompt predict {first} "some text"')


def _format(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


ExportFormat = Annotated[
    str, typer.Argument(metavar="FORMAT", help="peft, vllm, npy, p-tuning-v2 or safetensors.")
]


def export(
    form: ExportFormat,
    artifact: ArtifactPath,
    output: Annotated[Path, typer.Option("--output", help="A folder, new or empty.")],
    backbone: PromptBackbone = None,
    as_json: AsJson = False,
) -> None:
    """Write an artifact in the format of another library."""
    from softprompt.inference import PromptModel
    from softprompt.interop.convert import export_prompt
    from softprompt.interop.registry import get_writer

    get_writer(form)  # a misspelt format is reported before a backbone is loaded
    model = PromptModel.from_pretrained(artifact, backbone=backbone)
    folder = export_prompt(form, model, output=output)
    names = sorted(path.name for path in folder.iterdir())
    if as_json:
        print_json({"format": form, "folder": str(folder), "files": names})
        return
    for name in names:
        print(folder / name)
