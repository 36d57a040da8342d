"""Make a backbone's own weights trainable: all of them, or low-rank changes of them.

Prompts never need this; it is what they are compared with. The backbone is changed for good, so
it must be one that nobody else uses.
"""

from importlib.util import find_spec

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from softprompt.backbone.measure import body_of
from softprompt.backbone.model import Backbone
from softprompt.errors import BackboneError, MissingPackageError


def thaw(backbone: Backbone, *, head: bool) -> list[nn.Parameter]:
    """Make all weights that an answer is made of trainable.

    Args:
        head: whether the language-model head is among them; not where a trained head answers.

    Raises:
        BackboneError: they are quantised, which leaves nothing to take a gradient of.
    """
    model = backbone.model
    owner = model if head else body_of(model, backbone.geometry.kind)
    parameters = [*owner.parameters()]
    if not all(p.is_floating_point() and type(p) is nn.Parameter for p in parameters):
        msg = (
            f"the weights of {backbone.name!r} are quantised, and cannot be fine-tuned. Leave "
            "fine-tuning out, or backbone.quantization."
        )
        raise BackboneError(msg)
    for parameter in parameters:
        parameter.requires_grad = True
    return parameters


def add_lora(backbone: Backbone, *, rank: int, alpha: int, seed: int) -> list[nn.Parameter]:
    """Put low-rank changes beside every linear layer of the body, through PEFT; they are fp32.

    Source: Hu et al. 2022, "LoRA", section 4; on all linear layers as in Dettmers et al. 2023.

    Args:
        rank: r; a change is ``B A`` with A ``[r, in]`` and B ``[out, r]``, which starts at zero.
        alpha: the change is multiplied by ``alpha / rank``.
        seed: of A.

    Raises:
        MissingPackageError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        msg = "LoRA needs the package peft. Install it: pip install 'softprompt[peft]'"
        raise MissingPackageError(msg)
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  # an extra

    body = body_of(backbone.model, backbone.geometry.kind)
    scores = backbone.model.get_output_embeddings()
    parts = {n: m for n, m in body.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[name for name, part in parts.items() if part is not scores],
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in parts.values()),
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
