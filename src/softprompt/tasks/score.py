"""The loss of many scored tokens over a large vocabulary, without all logits at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from softprompt.backbone.head import Head

# Logits that exist at once: 64 MB of fp32.
LOGITS = 1 << 24


def summed_loss(
    head: Head, states: Float[Tensor, "S H"], *, wanted: Int[Tensor, " S"], vocabulary: int
) -> Float[Tensor, ""]:
    """Cross-entropy of the wanted tokens, summed.

    The states' gradient is made chunk by chunk together with the loss, so the logits of a chunk
    are gone before the next one's are made. (Known from fused losses such as Liger's, 2024; here
    the head is frozen, so nothing else has a gradient.)
    """
    size = max(1, LOGITS // vocabulary)
    if any(parameter.requires_grad for parameter in head.parameters()) or len(states) <= size:
        return F.cross_entropy(head(states).float(), wanted, reduction="sum")
    if torch.is_grad_enabled() and states.requires_grad:
        total: Tensor = _InChunks.apply((head, wanted, size), states)  # type: ignore[no-untyped-call]  # torch's own
        return total
    chunks = zip(states.split(size), wanted.split(size), strict=True)
    return torch.stack(
        [F.cross_entropy(head(s).float(), w, reduction="sum") for s, w in chunks]
    ).sum()


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        options: tuple[Head, Tensor, int],
        *tensors: Tensor,
    ) -> Tensor:
        head, wanted, size = options
        (states,) = tensors
        losses, slopes = [], []
        for chunk, targets in zip(states.split(size), wanted.split(size), strict=True):
            with torch.enable_grad():
                leaf = chunk.detach().requires_grad_()
                loss = F.cross_entropy(head(leaf).float(), targets, reduction="sum")
            slopes.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return None, slopes * grad
