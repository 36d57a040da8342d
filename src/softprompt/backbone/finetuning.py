"""Fine-tuning of a backbone: all of its weights, or LoRA.

Prompt tuning never needs this; it is for the baselines of a comparison. The backbone is changed
permanently, so nothing else may use it.
"""

from importlib.util import find_spec

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from softprompt.backbone.model import Backbone
from softprompt.errors import BackboneError, MissingPackageError


def unfreeze(backbone: Backbone, *, head: bool) -> list[nn.Parameter]:
    """Make all weights that the prediction depends on trainable.

    Args:
        backbone: the backbone; it is changed.
        head: whether to include the language-model head; not if a trained head is used instead.

    Returns:
        The trainable parameters.

    Raises:
        BackboneError: the weights are quantized, so they have no gradient.
    """
    model = backbone.model
    trained = model if head else backbone.body
    parameters = [*trained.parameters()]
    if not all(p.is_floating_point() and type(p) is nn.Parameter for p in parameters):
        msg = (
            f"the weights of {backbone.name!r} are quantized, and cannot be fine-tuned. Leave "
            "fine-tuning out, or backbone.quantization_config."
        )
        raise BackboneError(msg)
    for parameter in parameters:
        parameter.requires_grad = True
    return parameters


def add_lora(backbone: Backbone, *, rank: int, alpha: int, seed: int) -> list[nn.Parameter]:
    """Add LoRA in fp32 to every linear layer of the body, with PEFT.

    Source: Hu et al. 2022, "LoRA", section 4; on all linear layers as in Dettmers et al. 2023.

    Args:
        backbone: the backbone; it is changed.
        rank: r; the update is ``B A`` with A ``[r, in]`` and B ``[out, r]``, which starts at zero.
        alpha: the update is multiplied by ``alpha / rank``.
        seed: the seed of A.

    Returns:
        The trainable parameters.

    Raises:
        MissingPackageError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        msg = "LoRA needs the package peft. Install it: pip install 'softprompt[peft]'"
        raise MissingPackageError(msg)
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  # an extra

    body = backbone.body
    head = backbone.model.get_output_embeddings()
    linears = {n: m for n, m in body.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[name for name, module in linears.items() if module is not head],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linears.values()),
    )
    device = backbone.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, body)
    added = [p for name, p in body.named_parameters() if "lora_" in name]
    for parameter in added:
        parameter.data = parameter.data.float()
        parameter.requires_grad = True
    return added
