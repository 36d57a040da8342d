"""Serving: named prompts on one copy of a backbone, mixed in one batch, over HTTP.

A `Registry` holds published prompts. `make_site` puts a server together from a backbone and a
source of prompts (`FolderSource`, `RegistrySource`); `make_app` is its application for any ASGI
server, and `run_server` runs it until a signal ends it.
"""

from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
    from softprompt.serve.engine import EngineLimits, ServingEngine
    from softprompt.serve.faults import ServingError
    from softprompt.serve.keys import ApiKey, load_keys
    from softprompt.serve.prompts import FolderSource, PromptSource, PromptStore, RegistrySource
    from softprompt.serve.registry import PromptVersion, PublishedPrompt, Registry
    from softprompt.serve.server import ServerSettings, make_app, make_site, run_server
    from softprompt.serve.site import Site, SiteSettings

__all__ = [
    "ApiKey",
    "EngineLimits",
    "FolderSource",
    "PromptSource",
    "PromptStore",
    "PromptVersion",
    "PublishedPrompt",
    "Registry",
    "RegistrySource",
    "ServerSettings",
    "ServingEngine",
    "ServingError",
    "Site",
    "SiteSettings",
    "load_keys",
    "make_app",
    "make_site",
    "run_server",
]

__getattr__, __dir__ = gather_lazily(
    __name__,
    {
        "softprompt.serve.engine": ("ServingEngine", "EngineLimits"),
        "softprompt.serve.faults": ("ServingError",),
        "softprompt.serve.keys": ("ApiKey", "load_keys"),
        "softprompt.serve.prompts": (
            "FolderSource",
            "PromptSource",
            "PromptStore",
            "RegistrySource",
        ),
        "softprompt.serve.registry": ("PromptVersion", "PublishedPrompt", "Registry"),
        "softprompt.serve.server": ("ServerSettings", "make_app", "make_site", "run_server"),
        "softprompt.serve.site": ("Site", "SiteSettings"),
    },
)
