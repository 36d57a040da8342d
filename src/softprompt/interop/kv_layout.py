"""Keys and values as rows ``[P, L·2·N·D]``, one per soft token, as in PEFT and P-tuning v2."""

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError
from softprompt.prompt import KVPrefix


def unpack_kv(flat: Float[Tensor, "P F"], backbone: Backbone) -> KVPrefix:
    """Make a prefix of rows that have the keys and values of layer 0, those of layer 1, and so on.

    Args:
        flat: the rows.
        backbone: of the prefix.

    Returns:
        The prefix, on all layers with self-attention, with shifted positions.

    Raises:
        ArtifactError: the backbone does not accept prefixes, or needs rows of another size.
    """
    geometry = backbone.geometry
    sites = geometry.self_attention_sites
    width = len(sites) * 2 * geometry.num_kv_heads * geometry.head_dim
    if (limit := geometry.limits.prefix) is not None:
        msg = (
            f"the prompt is keys and values, but {geometry.model_type} {limit}, so it accepts no "
            "key/value prefixes. Only vectors among the input embeddings can be used with it."
        )
        raise ArtifactError(msg)
    _check_shapes(backbone)
    if flat.shape[1] != width:
        msg = (
            f"each soft token has {flat.shape[1]} numbers, but {backbone.name!r} takes {width} "
            f"(2 x {len(sites)} layers x {geometry.num_kv_heads} heads x {geometry.head_dim}). The "
            "prompt belongs to another backbone: name it with --backbone (backbone=… in Python)."
        )
        raise ArtifactError(msg)
    length = flat.shape[0]
    pairs = flat.view(length, len(sites), 2, geometry.num_kv_heads, geometry.head_dim)
    pairs = pairs[:, _list_pairs_read(len(sites), backbone)]
    keys, values = pairs.permute(2, 1, 3, 0, 4)
    return KVPrefix(keys.contiguous(), values.contiguous(), sites, shift_positions=True)


def pack_kv(prefix: KVPrefix, backbone: Backbone) -> Float[Tensor, "P F"]:
    """The rows of a prefix, in the same layout; numbers that are never read are zero.

    Args:
        prefix: on all layers.
        backbone: of the prefix.

    Raises:
        ArtifactError: two layers share a place in the rows, and the prefix differs between them;
            or the layers have keys and values of different shapes.
    """
    _check_shapes(backbone)
    pairs = torch.stack([prefix.keys, prefix.values])  # [2, L, N, P, D]
    read = _list_pairs_read(pairs.shape[1], backbone)
    packed = torch.zeros_like(pairs)
    packed[:, read] = pairs
    if not torch.equal(packed[:, read], pairs):
        msg = (
            f"PEFT gives {backbone.geometry.model_type}'s decoder layers 0 and {len(read) // 2} "
            "the same keys and values, and so on, since it has an even number of layers, but the "
            "prefix has different ones. Train vectors for use in PEFT, or keep the artifact."
        )
        raise ArtifactError(msg)
    return packed.permute(3, 1, 0, 2, 4).reshape(prefix.length, -1).contiguous()


def _list_pairs_read(layers: int, backbone: Backbone) -> list[int]:
    """Which pair of keys and values each layer reads: its own, except in an encoder-decoder.

    There PEFT repeats the pairs and splits them in groups of four tensors, for self-attention
    and cross-attention, of which only the first gets a prefix. So layer i reads pair 2·i, modulo
    the number of layers.
    """
    stride = 2 if backbone.geometry.architecture == "encoder-decoder" else 1
    return [stride * layer % layers for layer in range(layers)]


def _check_shapes(backbone: Backbone) -> None:
    if backbone.geometry.site_shapes:
        msg = (
            f"the keys and values of {backbone.geometry.model_type} differ in shape, but this "
            "format has one shape for all. Use softprompt's own artifact."
        )
        raise ArtifactError(msg)
