"""``softprompt serve``: named prompts over HTTP."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from softprompt.cli.console import MISTAKE, print_json, print_progress, print_status
from softprompt.cli.options import AsJson, PromptBackbone

if TYPE_CHECKING:
    from softprompt.serve.ray_app import RaySettings, ReplicaPlan
    from softprompt.serve.server import ServerSettings
    from softprompt.serve.site import Site
    from softprompt.serve.upstream import UpstreamSettings


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
UpstreamURL = Annotated[
    str | None,
    typer.Option("--upstream", metavar="URL", help="Let a vLLM server run the rows, as vectors."),
]
UpstreamModel = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its name of the backbone; the first by default.")
]
UpstreamTimeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds without a byte of its answer.")
]
EngineName = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="This process, or replicas on Ray.")
]
RayOptions = Annotated[
    list[str] | None,
    typer.Option("--ray", metavar="NAME=VALUE", help="A setting of --engine ray; may be repeated."),
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
    upstream: UpstreamURL = None,
    upstream_model: UpstreamModel = None,
    upstream_timeout: UpstreamTimeout = 30.0,
    engine: EngineName = "local",
    ray: RayOptions = None,
    check: CheckOnly = False,
    as_json: AsJson = False,
) -> None:
    """Serve named prompts over HTTP."""
    from softprompt.serve import EngineLimits, ServerSettings, SiteSettings

    requests = SiteSettings(max_body_bytes, max_rows, timeout, playground)
    limits = EngineLimits(batch_rows, batch_tokens, queue_rows)
    tls = (tls_certificate, tls_key)
    vllm = _describe_upstream(upstream, upstream_model, upstream_timeout)
    settings = ServerSettings(host, port, *tls, drain, prompt_memory, requests, limits, vllm)
    cluster = _read_cluster(engine, ray or [])
    plan = _make_plan(folders or [], registry, backbone, keys, settings)
    _start(plan, cluster, is_check=check, as_json=as_json)


def _start(
    plan: "ReplicaPlan", cluster: "RaySettings | None", *, is_check: bool, as_json: bool
) -> None:
    if cluster is not None and not is_check:
        _run_on_ray(plan, cluster)
    elif is_check:
        _check(_open_site(plan), as_json=as_json)
    else:
        _run(_open_site(plan), plan.settings)


def _describe_upstream(
    url: str | None, model: str | None, timeout: float
) -> "UpstreamSettings | None":
    """The vLLM server; its key comes from the environment."""
    from softprompt.serve.upstream import UpstreamSettings

    if url is None:
        return None
    return UpstreamSettings(url, model, os.environ.get("SOFTPROMPT_UPSTREAM_KEY"), timeout)


def _read_cluster(engine: str, options: Sequence[str]) -> "RaySettings | None":
    """The replicas on Ray; None for this process."""
    from softprompt.errors import DataError
    from softprompt.serve.ray_app import read_ray_settings

    if engine == "ray":
        return read_ray_settings(options)
    if options:
        msg = (
            f"--ray {options[0]} is for replicas on Ray, but the engine is local. Add --engine ray."
        )
        raise DataError(msg)
    return None


def _make_plan(
    folders: list[Path],
    registry: Path | None,
    backbone: str | None,
    keys: Path | None,
    settings: "ServerSettings",
) -> "ReplicaPlan":
    """Check the settings, and name what the server is made of."""
    from softprompt.serve.keys import load_keys
    from softprompt.serve.ray_app import ReplicaPlan
    from softprompt.serve.server import check_settings, open_source

    known = load_keys(keys)
    can_publish = registry is not None and bool(known)
    settings = replace(settings, site=replace(settings.site, can_publish=can_publish))
    check_settings(settings, known)
    open_source(folders, registry)
    # Workers of Ray have another working directory.
    places = tuple(folder.resolve() for folder in folders)
    where = None if registry is None else registry.resolve()
    if backbone is not None and Path(backbone).exists():
        backbone = str(Path(backbone).resolve())
    return ReplicaPlan(places, where, backbone, known, settings)


def _open_site(plan: "ReplicaPlan") -> "Site":
    """Load the backbone and put the parts together."""
    from softprompt.serve.server import load_first_backbone, make_site, open_source

    source = open_source(plan.folders, plan.registry)
    print_progress("loading the backbone …")
    backbone = load_first_backbone(source, plan.backbone)
    return make_site(backbone, source, keys=plan.keys, settings=plan.settings)


def _run_on_ray(plan: "ReplicaPlan", cluster: "RaySettings") -> None:
    from softprompt.serve.ray_app import run_on_ray
    from softprompt.serve.server import open_source

    def tell(port: int) -> None:
        names = open_source(plan.folders, plan.registry).list_names()
        print_status(f"replicas    {cluster.min_replicas} to {cluster.max_replicas}, on Ray")
        _tell_address(plan.settings, port, names=names)

    print_progress("starting the replicas …")
    run_on_ray(plan, cluster, on_started=tell)
    print_status("stopped")


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
    site.close()
    if faults:
        raise typer.Exit(MISTAKE)


def _run(site: "Site", settings: "ServerSettings") -> None:
    from softprompt.serve.server import check_prompts, run_server
    from softprompt.serve.site import ACCESS_LOG, show_access_log

    if site.upstream is not None:
        for name, fault in check_prompts(site.service.store).items():
            print_status(f"warning: {name} cannot be served there: {fault}")
    handler = show_access_log()

    def tell(port: int) -> None:
        print_status(f"backbone    {site.service.base_name}")
        if site.upstream is not None:
            print_status(f"upstream    {site.upstream.settings.url}, {site.upstream.model}")
        _tell_address(settings, port, names=site.service.store.source.list_names())

    try:
        run_server(site, settings, on_started=tell)
    finally:
        ACCESS_LOG.removeHandler(handler)
    print_status("stopped")


def _tell_address(settings: "ServerSettings", port: int, *, names: Sequence[str]) -> None:
    scheme = "http" if settings.certificate is None else "https"
    address = f"{scheme}://{settings.host}:{port}"
    shown = ", ".join(names[:_MAX_NAMES]) + (" …" if len(names) > _MAX_NAMES else "")
    print_status(f"prompts     {len(names)}: {shown}")
    if settings.site.has_playground:
        print_status(f"playground  {address}/")
    print_status(f"API         {address}/v1")
