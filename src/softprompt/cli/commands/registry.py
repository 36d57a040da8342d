"""``softprompt publish``, ``unpublish`` and ``registry``: named prompts in immutable versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.console import format_columns, format_fields, print_json, print_status
from softprompt.cli.options import ArtifactPath, AsJson

if TYPE_CHECKING:
    from softprompt.serve.registry import PublishedPrompt

RegistryFolder = Annotated[
    Path,
    typer.Option(
        "--registry",
        metavar="DIR",
        envvar="SOFTPROMPT_REGISTRY",
        help="The folder of the registry.",
    ),
]
PromptReference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A prompt, or one version of it.")
]
# The digits of a digest that a table shows.
_DIGITS = 12
_DEFAULT = Path("registry")


def publish(
    artifact: ArtifactPath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the prompt.")],
    registry: RegistryFolder = _DEFAULT,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="The most bytes that the artifact may have.")
    ] = 1 << 30,
    as_json: AsJson = False,
) -> None:
    """Publish an artifact under a name, as its newest version."""
    from softprompt.serve.registry import Registry

    published = Registry(registry, max_bytes=max_bytes).publish(artifact, name)
    if as_json:
        print_json(published.as_data())
        return
    fields = {
        "prompt": published.version,
        "digest": f"sha256:{published.digest}",
        "bytes": f"{published.bytes:,}",
        "backbone": published.backbone,
    }
    print(format_fields({key: str(value) for key, value in fields.items()}))
    if not published.is_current:
        print_status(f"\n{name} is pinned to another version. To change that:")
        print_status(f"  softprompt registry pin {name} {published.version.number}")


def unpublish(
    reference: PromptReference, registry: RegistryFolder = _DEFAULT, as_json: AsJson = False
) -> None:
    """Withdraw a version of a prompt, or all of them."""
    from softprompt.serve.registry import Registry

    gone = [str(version) for version in Registry(registry).unpublish(reference)]
    if as_json:
        print_json({"unpublished": gone})
        return
    print("\n".join(gone))


def list_prompts(registry: RegistryFolder = _DEFAULT, as_json: AsJson = False) -> None:
    """List the prompts of a registry with their versions."""
    from softprompt.serve.registry import Registry

    prompts = Registry(registry).list_prompts()
    if as_json:
        print_json({"registry": str(registry), "prompts": [one.as_data() for one in prompts]})
        return
    if not prompts:
        print_status(f"{registry} has no prompts. Publish one: softprompt publish ARTIFACT NAME")
        return
    head = ["prompt", "", "digest", "bytes", "task", "backbone"]
    print(format_columns([head, *(_make_cells(one) for one in prompts)]))


def pin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the prompt.")],
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="A number, or newest to remove the pin.")
    ],
    registry: RegistryFolder = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say which version the name alone means."""
    from softprompt.serve.registry import Registry

    if version != "newest" and not (version.isascii() and version.isdigit()):
        msg = f"VERSION is {version!r}. Give a number such as 3, or newest."
        raise typer.BadParameter(msg)
    folder = Registry(registry)
    folder.pin(name, None if version == "newest" else int(version))
    current = str(folder.resolve(name))
    if as_json:
        print_json({"name": name, "current": current})
        return
    print(f"{name} is {current}")


def _make_cells(prompt: "PublishedPrompt") -> list[str]:
    state = "pinned" if prompt.is_pinned else "current" if prompt.is_current else ""
    return [
        str(prompt.version),
        state,
        prompt.digest[:_DIGITS],
        f"{prompt.bytes:,}",
        prompt.task,
        prompt.backbone,
    ]
