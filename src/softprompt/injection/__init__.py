"""Running a backbone with prompts: among the embeddings, and at the attention interface."""

from softprompt.decoding import Decoding
from softprompt.injection.capture import capture_keys_and_values, to_kv_prefix
from softprompt.injection.forward import forward, inject_prompts
from softprompt.injection.generation import generate
from softprompt.injection.verify import load_backbone, verify_backbone

__all__ = [
    "Decoding",
    "capture_keys_and_values",
    "forward",
    "generate",
    "inject_prompts",
    "load_backbone",
    "to_kv_prefix",
    "verify_backbone",
]
