"""Fingerprints that identify a model, whatever precision it is loaded in."""

import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

_SAMPLES = 512
_PROBE = "A soft prompt, 0123 tokens \u2013 für alle!\n\tEnd."


def compute_fingerprint(body: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The fingerprint of a model and its tokenizer: two hashes, ``stable-weights``.

    Both hash the signs of evenly spaced entries: rounding from fp32 to bf16 or fp16 does not
    change them, and any fine-tuning flips some of them. ``weights`` covers the matrices; for a
    quantized model it is the word ``quantized``. ``stable`` covers everything that quantization
    does not change: the other parameters, the input embedding table and the tokenizer.
    """
    stable, weights = hashlib.sha256(), hashlib.sha256()
    probe: list[int] = tokenizer(_PROBE)["input_ids"]
    stable.update(repr(probe).encode())
    table = body.get_input_embeddings().weight
    quantized = False
    for name, parameter in sorted(body.named_parameters(), key=lambda item: item[0]):
        floating = parameter.is_floating_point() and type(parameter) is nn.Parameter
        quantized = quantized or not floating
        if floating and (parameter.ndim == 1 or parameter is table or "embed" in name):
            stable.update(f"{name}{tuple(parameter.shape)}".encode() + _sample_signs(parameter))
        elif floating:
            weights.update(f"{name}{tuple(parameter.shape)}".encode() + _sample_signs(parameter))
    return f"{stable.hexdigest()[:16]}-{'quantized' if quantized else weights.hexdigest()[:16]}"


def digest_weights(model: PreTrainedModel) -> str:
    """A hash of all weights of a model and of its configuration except for its name."""
    digest = hashlib.blake2b(digest_size=16)
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    digest.update(repr(sorted(config.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        for part in _iterate_plain_tensors(tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that the ids of a fast tokenizer depend on."""
    content = tokenizer.backend_tokenizer.to_str(), sorted(tokenizer.special_tokens_map.items())
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


def _iterate_plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor itself, or the tensors inside a quantized one."""
    if not isinstance(tensor, torch.Tensor):
        return
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.detach()
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _iterate_plain_tensors(getattr(tensor, name))


def _sample_signs(parameter: torch.Tensor) -> bytes:
    flat = parameter.detach().flatten()
    index = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64)
    # fp16 rounds smaller numbers to 0, so their sign is ignored in every precision.
    samples = flat[index.long().to(flat.device)].to(torch.float16)
    return (samples > 0).to("cpu", torch.uint8).numpy().tobytes()
