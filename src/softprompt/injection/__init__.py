"""How prompts enter a backbone: among the embeddings, and at the attention interface."""

from softprompt.injection.capture import bake, capture
from softprompt.injection.generate import Decoding, generate
from softprompt.injection.load import load_backbone, prove
from softprompt.injection.run import injected, run

__all__ = [
    "Decoding",
    "bake",
    "capture",
    "generate",
    "injected",
    "load_backbone",
    "prove",
    "run",
]
