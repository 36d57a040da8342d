"""Load a backbone and let it prove that it listens to prompts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from softprompt.backbone.load import Loading, open_backbone
from softprompt.backbone.model import Backbone
from softprompt.backbone.wrap import example
from softprompt.errors import BackboneError
from softprompt.injection.run import run
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


def load_backbone(name: str, loading: Loading | None = None) -> Backbone:
    """Load, freeze, measure and prove a backbone.

    Args:
        name: a Hub id, a folder, a ``.gguf`` file, or ``builtin:minilm`` and the like.
        loading: revision, precision, device and so on.

    Raises:
        BackboneError: it cannot be loaded, or does not listen to prompts.
        MissingPackageError: the package of a ``builtin:`` name is not installed.
    """
    backbone = open_backbone(name, loading)
    prove(backbone)
    return backbone


@torch.enable_grad()
def prove(backbone: Backbone) -> None:
    """Show that prompts have an effect on the backbone and get a gradient from it.

    Raises:
        BackboneError: some part of a prompt does not reach the output, or gets no gradient.
    """
    geometry = backbone.geometry
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.to(backbone.device).requires_grad_()

    scale = geometry.embedding_rms or 1.0
    vectors = noise(2, geometry.embedding_size)
    _prove_one(backbone, InputPrompt(vectors * scale), {"vectors": vectors})
    if geometry.sites:
        shape = (geometry.sites, geometry.heads, 2, geometry.head_size)
        keys, values = noise(*shape), noise(*shape)
        prefix = KVPrefix(keys, values, tuple(range(geometry.sites)))
        _prove_one(backbone, prefix, {"keys": keys, "values": values})


def _prove_one(backbone: Backbone, prompt: Prompt, leaves: Mapping[str, Tensor]) -> None:
    inputs = example(backbone)
    bare = run(backbone, inputs, prompts=[None])
    if isinstance(prompt, InputPrompt):
        soft = torch.arange(prompt.length, device=inputs.ids.device) + backbone.geometry.vocabulary
        inputs.ids[0, : prompt.length] = soft
    states = run(backbone, inputs, prompts=[prompt])
    if torch.equal(states, bare):
        raise BackboneError(_deaf(backbone, prompt, "changes nothing in its output"))
    gradients = _gradients(states, list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is None or not bool(gradient.flatten(1).any(dim=1).all()):
            raise BackboneError(_deaf(backbone, prompt, f"gets no gradient at its {name}"))


def _gradients(states: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of a weighted sum: of squares, nothing but rounding is left behind a normalisation."""
    if not states.requires_grad:
        return [None for _ in leaves]
    weights = torch.linspace(-1, 1, states.shape[-1], device=states.device)
    return torch.autograd.grad((states.float() * weights).sum(), leaves, allow_unused=True)


def _deaf(backbone: Backbone, prompt: Prompt, fact: str) -> str:
    return (
        f"backbone {backbone.name!r} ({backbone.geometry.family}) does not listen: a random "
        f"{type(prompt).__name__} {fact}, so training could not work. Choose another backbone, or "
        "report its family."
    )


__all__ = ["Loading", "load_backbone", "prove"]
