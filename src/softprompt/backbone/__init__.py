"""Frozen pretrained models: loading, geometry, fingerprint, and hooks for prompts."""

from softprompt.backbone.fingerprint import is_same_model
from softprompt.backbone.introspection import make_example_inputs, wrap_model
from softprompt.backbone.loading import BUILTIN, LoadOptions, load_unverified
from softprompt.backbone.model import Architecture, Backbone, BatchInputs, Geometry, Limits

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
