"""Frozen pretrained models: loaded, measured, fingerprinted, with a seam for prompts."""

from softprompt.backbone.builtin import BUILTIN, cache_folder
from softprompt.backbone.fingerprint import same_model
from softprompt.backbone.load import Loading, open_backbone
from softprompt.backbone.model import Backbone, Geometry, Inputs, Kind
from softprompt.backbone.wrap import example, wrap

__all__ = [
    "BUILTIN",
    "Backbone",
    "Geometry",
    "Inputs",
    "Kind",
    "Loading",
    "cache_folder",
    "example",
    "open_backbone",
    "same_model",
    "wrap",
]
