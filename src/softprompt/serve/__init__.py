"""Serving: named prompts on one copy of a backbone, mixed in one batch, over HTTP.

A `Registry` holds published prompts. `make_site` puts a server together from a backbone and a
source of prompts (`FolderSource`, `RegistrySource`); `make_app` is its application for any ASGI
server, and `run_server` runs it until a signal ends it. `run_on_ray` does so with replicas.
"""

from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
    from softprompt.serve.admission import EngineLimits
    from softprompt.serve.engine import ServingEngine
    from softprompt.serve.faults import ServingError
    from softprompt.serve.keys import ApiKey, load_keys
    from softprompt.serve.prompts import FolderSource, PromptSource, PromptStore, RegistrySource
    from softprompt.serve.ray_app import RaySettings, ReplicaPlan, make_ray_app, run_on_ray
    from softprompt.serve.registry import PromptVersion, PublishedPrompt, Registry
    from softprompt.serve.server import ServerSettings, make_app, make_site, run_server
    from softprompt.serve.site import Site, SiteSettings
    from softprompt.serve.upstream import UpstreamSettings

__all__ = [
    "ApiKey",
    "EngineLimits",
    "FolderSource",
    "PromptSource",
    "PromptStore",
    "PromptVersion",
    "PublishedPrompt",
    "RaySettings",
    "Registry",
    "RegistrySource",
    "ReplicaPlan",
    "ServerSettings",
    "ServingEngine",
    "ServingError",
    "Site",
    "SiteSettings",
    "UpstreamSettings",
    "load_keys",
    "make_app",
    "make_ray_app",
    "make_site",
    "run_on_ray",
    "run_server",
]

__getattr__, __dir__ = gather_lazily(
    __name__,
    {
        "softprompt.serve.admission": ("EngineLimits",),
        "softprompt.serve.engine": ("ServingEngine",),
        "softprompt.serve.faults": ("ServingError",),
        "softprompt.serve.keys": ("ApiKey", "load_keys"),
        "softprompt.serve.prompts": (
            "FolderSource",
            "PromptSource",
            "PromptStore",
            "RegistrySource",
        ),
        "softprompt.serve.ray_app": (
            "RaySettings",
            "ReplicaPlan",
            "make_ray_app",
            "run_on_ray",
        ),
        "softprompt.serve.registry": ("PromptVersion", "PublishedPrompt", "Registry"),
        "softprompt.serve.server": ("ServerSettings", "make_app", "make_site", "run_server"),
        "softprompt.serve.site": ("Site", "SiteSettings"),
        "softprompt.serve.upstream": ("UpstreamSettings",),
    },
)
