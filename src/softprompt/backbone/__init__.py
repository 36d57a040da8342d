"""Frozen pretrained models: loading, geometry, fingerprint, and hooks for prompts."""

from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
    from softprompt.backbone.builtin import BUILTIN
    from softprompt.backbone.introspection import make_example_inputs, wrap_model
    from softprompt.backbone.loading import LoadOptions, load_unverified
    from softprompt.backbone.model import Backbone, BatchInputs, Geometry, Limits
    from softprompt.backbone.references import Architecture, is_same_model

__all__ = [
    "BUILTIN",
    "Architecture",
    "Backbone",
    "BatchInputs",
    "Geometry",
    "Limits",
    "LoadOptions",
    "is_same_model",
    "load_unverified",
    "make_example_inputs",
    "wrap_model",
]

__getattr__, __dir__ = gather_lazily(
    __name__,
    {
        "softprompt.backbone.builtin": ("BUILTIN",),
        "softprompt.backbone.introspection": ("make_example_inputs", "wrap_model"),
        "softprompt.backbone.loading": ("LoadOptions", "load_unverified"),
        "softprompt.backbone.model": (
            "Backbone",
            "BatchInputs",
            "Geometry",
            "Limits",
        ),
        "softprompt.backbone.references": ("Architecture", "is_same_model"),
    },
)
