"""Load the backbone that a recipe names."""

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from softprompt._paths import is_present
from softprompt.backbone.builtin import PREFIX
from softprompt.backbone.devices import select_device
from softprompt.backbone.model import Backbone
from softprompt.backbone.sharding import get_world_size
from softprompt.injection.verify import load_backbone
from softprompt.recipe import BackboneConfig


def choose_device(section: BackboneConfig) -> str:
    """Return the device that a recipe names, or the best one of this machine."""
    return select_device() if section.device == "auto" else section.device


def load_recipe_backbone(section: BackboneConfig) -> Backbone:
    """Load the backbone that a recipe names.

    Args:
        section: the recipe's table ``[backbone]``. Device and precision are by default the best of
            this machine.

    Returns:
        The verified backbone.

    Raises:
        BackboneError: it cannot be loaded, or prompts have no effect on it.
    """
    return load_backbone(
        section.name,
        dtype=section.dtype,
        device=section.device,
        revision=section.revision,
        quantization_config=section.quantization_config,
        device_map=section.device_map,
        keep_dropout=section.keep_dropout,
        trust_remote_code=section.trust_remote_code,
        # A single process, such as one that checks the recipe, cannot shard it.
        shard=section.shard and get_world_size() > 1,
    )


def is_remote(section: BackboneConfig) -> bool:
    """Whether the backbone would have to be downloaded from the Hub."""
    name = section.name
    if name.startswith((PREFIX, ".", "/", "~")) or name.endswith(".gguf") or is_present(name):
        return False
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=section.revision)
    except HFValidationError:
        return False
    return not isinstance(cached, str)
