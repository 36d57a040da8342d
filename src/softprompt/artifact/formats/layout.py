"""Keys and values in one row a soft token: ``[P, L·2·N·D]``, as PEFT and P-tuning v2 keep them."""

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError
from softprompt.prompt import KVPrefix


def unpacked(flat: Float[Tensor, "P F"], backbone: Backbone) -> KVPrefix:
    """Keys and values of all layers: the first one's keys, its values, the second one's keys.

    Raises:
        ArtifactError: there are not as many numbers as the backbone's layers take.
    """
    geometry = backbone.geometry
    sites = own_sites(backbone)
    wanted = len(sites) * 2 * geometry.heads * geometry.head_size
    if not sites:
        msg = (
            f"the prompt is keys and values, but {geometry.family} has an attention of its own, "
            "which they cannot enter. Only vectors among the inputs can be used with it."
        )
        raise ArtifactError(msg)
    if flat.shape[1] != wanted:
        msg = (
            f"each soft token has {flat.shape[1]} numbers, but {backbone.name!r} takes {wanted} "
            f"(2 x {len(sites)} layers x {geometry.heads} heads x {geometry.head_size}). The "
            "prompt belongs to another backbone: name it with --backbone."
        )
        raise ArtifactError(msg)
    length = flat.shape[0]
    pairs = flat.view(length, len(sites), 2, geometry.heads, geometry.head_size)
    keys, values = pairs.permute(2, 1, 3, 0, 4)
    return KVPrefix(keys.contiguous(), values.contiguous(), sites, shifted=True)


def packed(prefix: KVPrefix) -> Float[Tensor, "P F"]:
    """The other way round."""
    pairs = torch.stack([prefix.keys, prefix.values])  # [2, L, N, P, D]
    return pairs.permute(3, 1, 0, 2, 4).reshape(prefix.length, -1).contiguous()


def own_sites(backbone: Backbone) -> tuple[int, ...]:
    """The attention sites that a prefix is for: of an encoder-decoder, the decoder's own."""
    return tuple(range(backbone.geometry.sites))
