"""Loading a backbone, and verifying that prompts change its output and receive a gradient."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from softprompt.backbone.devices import AUTO, resolve_device, resolve_dtype
from softprompt.backbone.introspection import make_example_inputs
from softprompt.backbone.loading import (
    LoadOptions,
    QuantizationConfig,
    explain_failures,
    load_unverified,
    read_quantization,
)
from softprompt.backbone.model import Backbone
from softprompt.errors import BackboneError
from softprompt.injection.forward import forward
from softprompt.injection.limits import measure_limits
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

_log = logging.getLogger(__name__)


def load_backbone(  # noqa: PLR0913  # the keys of a recipe's [backbone]
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = AUTO,
    device: str | torch.device = AUTO,
    revision: str | None = None,
    quantization_config: QuantizationConfig | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    keep_dropout: bool = False,
    trust_remote_code: bool = False,
    shard: bool = False,
) -> Backbone:
    """Load and freeze a backbone, and verify that prompts have an effect on it.

    The arguments are the keys of a recipe's ``[backbone]``, with the same defaults.

    Args:
        name: a Hub id, a folder, a ``.gguf`` file, or ``builtin:minilm`` and the like.
        dtype: the dtype to compute in: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch
            dtype; ``"auto"`` is bfloat16 if the device has it in hardware, else float32; None is
            the dtype of the checkpoint.
        device: such as ``"cpu"`` or ``"cuda:1"``; ``"auto"`` is the accelerator if there is one.
            With ``device_map`` it only determines what ``"auto"`` means for ``dtype``.
        revision: a branch, tag or commit on the Hub.
        quantization_config: a quantization configuration of transformers, as an object or as a
            table such as ``{"load_in_8bit": True}``.
        device_map: passed to transformers, to spread a large model over several devices.
        keep_dropout: keep the backbone's own dropout in training (default: none, which is better
            and faster for classification; SuperPos-Prompt 2024, OpenPrompt's ``plm_eval_mode``).
        trust_remote_code: run code that comes with the checkpoint.
        shard: divide the layers' weights among the processes of ``accelerate launch``, all of
            which must load and run the backbone in the same way.

    Returns:
        The frozen model with its tokenizer and its geometry.

    Raises:
        BackboneError: it cannot be loaded, a prompt has no effect on it, or the dtype or device is
            unknown.
        MissingPackageError: the package of a ``builtin:`` name or of a quantization is not
            installed.

    Examples:
        ```python
        backbone = load_backbone("builtin:smollm2-135m-instruct", dtype="float32", device="cpu")
        ```

        >>> load_backbone("builtin:minilm", dtype="float31")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.BackboneError: unknown dtype 'float31'. Options: auto, bfloat16, ...
    """
    target = resolve_device(device)
    options = LoadOptions(
        revision=revision,
        dtype=resolve_dtype(dtype, target),
        device=target,
        device_map=device_map,
        quantization_config=(
            None if quantization_config is None else read_quantization(quantization_config)
        ),
        shard=shard,
        keep_dropout=keep_dropout,
        trust_remote_code=trust_remote_code,
    )
    backbone = load_unverified(str(name), options)
    with explain_failures(str(name)):
        backbone = measure_limits(verify_backbone(backbone))
    _log.info(
        "loaded %s (%s, %s) in %s on %s",
        name,
        backbone.geometry.model_type,
        backbone.geometry.architecture,
        backbone.dtype,
        backbone.device,
    )
    return backbone


@torch.enable_grad()
def verify_backbone(backbone: Backbone) -> Backbone:
    """Verify that prompts change the output of a backbone and receive a gradient from it.

    Args:
        backbone: the backbone.

    Returns:
        The backbone; without prefixes, if some part of a prefix has no effect or no gradient.

    Raises:
        BackboneError: some part of an input prompt has no effect on the output, or no gradient; or
            the states of a few tokens are not finite.
    """
    geometry = backbone.geometry
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        sample = torch.randn(*shape, generator=generator)
        return sample.to(backbone.device).requires_grad_()

    scale = geometry.embedding_rms or 1.0
    vectors = draw(2, geometry.embedding_size)
    fault = _find_fault(backbone, InputPrompt(vectors * scale), {"vectors": vectors})
    if fault is not None:
        msg = (
            f"backbone {backbone.name!r} ({geometry.model_type}) failed verification: a random "
            f"InputPrompt {fault}, so training could not work. Choose another backbone, or report "
            "its family."
        )
        raise BackboneError(msg)
    if geometry.num_attention_sites:
        shape = (geometry.num_attention_sites, geometry.num_kv_heads, 2, geometry.head_dim)
        keys, values = draw(*shape), draw(*shape)
        prefix = KVPrefix(keys, values, tuple(range(geometry.num_attention_sites)))
        fault = _find_fault(backbone, prefix, {"keys": keys, "values": values})
    return backbone if fault is None else _refuse_prefixes(backbone, fault)


def _refuse_prefixes(backbone: Backbone, fault: str) -> Backbone:
    """The backbone without attention sites, as one whose attention takes no prefix."""
    reason = f"has attention layers in which a prefix {fault}"
    geometry = replace(
        backbone.geometry,
        num_attention_sites=0,
        num_kv_heads=0,
        head_dim=0,
        self_attention_sites=(),
        site_shapes=(),
        limits=replace(backbone.geometry.limits, prefix=reason),
    )
    return replace(backbone, geometry=geometry, site_of={})


def _find_fault(backbone: Backbone, prompt: Prompt, leaves: Mapping[str, Tensor]) -> str | None:
    """What is wrong with a random prompt, as a verb phrase; None if nothing is."""
    inputs = make_example_inputs(backbone)
    bare = forward(backbone, inputs, prompts=[None])
    if not bool(bare.isfinite().all()):
        raise BackboneError(_explain_overflow(backbone))
    if isinstance(prompt, InputPrompt):
        soft = (
            torch.arange(prompt.length, device=inputs.input_ids.device)
            + backbone.geometry.vocab_size
        )
        inputs.input_ids[0, : prompt.length] = soft
    states = forward(backbone, inputs, prompts=[prompt])
    if torch.equal(states, bare):
        return "does not change the output"
    gradients = _compute_gradients(states, list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is None or not bool(gradient.flatten(1).any(dim=1).all()):
            return f"receives no gradient at its {name}"
    return None


def _compute_gradients(states: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradients of a weighted sum; a sum of squares is constant after a normalization."""
    if not states.requires_grad:
        return [None for _ in leaves]
    weights = torch.linspace(-1, 1, states.shape[-1], device=states.device)
    return torch.autograd.grad((states.float() * weights).sum(), leaves, allow_unused=True)


def _explain_overflow(backbone: Backbone) -> str:
    dtype = str(backbone.dtype).removeprefix("torch.")
    return (
        f"backbone {backbone.name!r} ({backbone.geometry.model_type}) computes states that are NaN "
        f"or infinite from a few tokens, in {dtype}. Load it in another dtype "
        '(backbone.dtype = "float32" in a recipe). If they are not finite there either, its files '
        "are damaged: fetch it again."
    )
