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
    sites = geometry.own_sites
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
    pairs = pairs[:, _read_by(len(sites), backbone)]
    keys, values = pairs.permute(2, 1, 3, 0, 4)
    return KVPrefix(keys.contiguous(), values.contiguous(), sites, shifted=True)


def packed(prefix: KVPrefix, backbone: Backbone) -> Float[Tensor, "P F"]:
    """The other way round; what is never read is zero.

    Raises:
        ArtifactError: two layers would have to read the same place, and differ.
    """
    pairs = torch.stack([prefix.keys, prefix.values])  # [2, L, N, P, D]
    where = _read_by(pairs.shape[1], backbone)
    placed = torch.zeros_like(pairs)
    placed[:, where] = pairs
    if not torch.equal(placed[:, where], pairs):
        msg = (
            f"PEFT gives {backbone.geometry.family}'s decoder layers 0 and {len(where) // 2} the "
            "same keys and values, and so on, since it has an even number of layers, but the "
            "prefix has different ones. Train vectors for use in PEFT, or keep the artifact."
        )
        raise ArtifactError(msg)
    return placed.permute(3, 1, 0, 2, 4).reshape(prefix.length, -1).contiguous()


def _read_by(layers: int, backbone: Backbone) -> list[int]:
    """Which pair each layer reads: its own, but for the decoders that PEFT prompts.

    It lays the pairs out twice and cuts them in fours, for a decoder's self-attention and its
    cross-attention, of which only the first has a prefix. So layer i reads pair 2·i, counted round.
    """
    twice = backbone.geometry.kind == "encoder-decoder"
    return [(2 * at if twice else at) % layers for at in range(layers)]
