"""``softprompt serve``: named prompts over HTTP."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.console import MISTAKE, print_json, print_progress, print_status
from softprompt.cli.options import AsJson, PromptBackbone

if TYPE_CHECKING:
    from softprompt.serve.server import ServerSettings
    from softprompt.serve.site import Site


def _print_key(name: str | None) -> None:
    if name is None:
        return
    from softprompt.serve.keys import make_key

    secret, lines = make_key(name)
    print_status("The key, which is not stored anywhere:")
    print(secret)
    print_status("\nFor the file of keys (--keys FILE):")
    print(lines, end="")
    raise typer.Exit


Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FOLDER]...", help="Artifacts or runs, named by their folders."),
]
ServedRegistry = Annotated[
    Path | None, typer.Option("--registry", metavar="DIR", help="Serve the prompts of a registry.")
]
Host = Annotated[str, typer.Option(help="The address to bind.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any free one.")]
KeysFile = Annotated[
    Path | None, typer.Option("--keys", metavar="FILE", help="A TOML file of hashed keys.")
]
NewKey = Annotated[
    str | None,
    typer.Option(
        "--make-key",
        metavar="NAME",
        is_eager=True,
        callback=_print_key,
        help="Print a new key and its hash, and exit.",
    ),
]
Certificate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The certificate, for HTTPS.")
]
CertificateKey = Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds until a request expires.")]
Drain = Annotated[float, typer.Option(min=0, help="Seconds for accepted requests after SIGTERM.")]
MaxBodyBytes = Annotated[int, typer.Option(min=1024, help="The most bytes of a request.")]
MaxRows = Annotated[int, typer.Option(min=1, help="The most rows of a request.")]
QueueRows = Annotated[int, typer.Option(min=1, help="The most rows that wait.")]
BatchRows = Annotated[int, typer.Option(min=1, help="The most rows of a batch.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="The most tokens of a batch.")]
PromptMemory = Annotated[
    int, typer.Option(metavar="BYTES", min=1, help="For the prompts in memory.")
]
Playground = Annotated[
    bool, typer.Option("--playground/--no-playground", help="Show a page to try prompts on.")
]
CheckOnly = Annotated[
    bool, typer.Option("--check", help="Load every prompt, say what is wrong, and exit.")
]
# The most prompts that the start names.
_MAX_NAMES = 8


def serve(
    folders: Folders = None,
    registry: ServedRegistry = None,
    backbone: PromptBackbone = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    keys: KeysFile = None,
    _make_key: NewKey = None,
    tls_certificate: Certificate = None,
    tls_key: CertificateKey = None,
    timeout: Timeout = 60.0,
    drain: Drain = 30.0,
    max_body_bytes: MaxBodyBytes = 4 << 20,
    max_rows: MaxRows = 1024,
    queue_rows: QueueRows = 2048,
    batch_rows: BatchRows = 64,
    batch_tokens: BatchTokens = 8192,
    prompt_memory: PromptMemory = 1 << 30,
    playground: Playground = True,
    check: CheckOnly = False,
    as_json: AsJson = False,
) -> None:
    """Serve named prompts over HTTP."""
    from softprompt.serve.engine import EngineLimits
    from softprompt.serve.server import ServerSettings
    from softprompt.serve.site import SiteSettings

    requests = SiteSettings(max_body_bytes, max_rows, timeout, playground)
    engine = EngineLimits(batch_rows, batch_tokens, queue_rows)
    tls = (tls_certificate, tls_key)
    settings = ServerSettings(host, port, *tls, drain, prompt_memory, requests, engine)
    site, settings = _open_site(folders or [], registry, backbone, keys, settings)
    if check:
        _check(site, as_json=as_json)
    else:
        _run(site, settings)


def _open_site(
    folders: list[Path],
    registry: Path | None,
    backbone: str | None,
    keys: Path | None,
    settings: "ServerSettings",
) -> "tuple[Site, ServerSettings]":
    """Check the settings, load the backbone and put the parts together."""
    from softprompt.serve.keys import load_keys
    from softprompt.serve.server import (
        check_settings,
        load_first_backbone,
        make_site,
        open_source,
    )

    known = load_keys(keys)
    can_publish = registry is not None and bool(known)
    settings = replace(settings, site=replace(settings.site, can_publish=can_publish))
    check_settings(settings, known)
    source = open_source(folders, registry)
    print_progress("loading the backbone …")
    loaded = load_first_backbone(source, backbone)
    return make_site(loaded, source, keys=known, settings=settings), settings


def _check(site: "Site", *, as_json: bool) -> None:
    """Load every prompt, and exit with an error if one cannot be served."""
    from softprompt.serve.server import check_prompts

    store = site.service.store
    faults = check_prompts(store)
    names = store.source.list_names()
    if as_json:
        backbone = store.backbone.name
        print_json({"backbone": backbone, "prompts": list(names), "faults": faults})
    else:
        for name in names:
            print(f"{name}: {faults.get(name, 'ok')}")
    site.service.engine.stop(timeout=1.0)
    if faults:
        raise typer.Exit(MISTAKE)


def _run(site: "Site", settings: "ServerSettings") -> None:
    from softprompt.serve.server import run_server
    from softprompt.serve.site import ACCESS_LOG

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ACCESS_LOG.addHandler(handler)
    ACCESS_LOG.setLevel(logging.INFO)

    def tell(port: int) -> None:
        scheme = "http" if settings.certificate is None else "https"
        address = f"{scheme}://{settings.host}:{port}"
        names = site.service.store.source.list_names()
        shown = ", ".join(names[:_MAX_NAMES]) + (" …" if len(names) > _MAX_NAMES else "")
        print_status(f"backbone    {site.service.base_name}")
        print_status(f"prompts     {len(names)}: {shown}")
        if settings.site.has_playground:
            print_status(f"playground  {address}/")
        print_status(f"API         {address}/v1")

    try:
        run_server(site, settings, on_started=tell)
    finally:
        ACCESS_LOG.removeHandler(handler)
    print_status("stopped")
