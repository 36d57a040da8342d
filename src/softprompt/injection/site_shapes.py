"""Keys and values of attention sites that differ in shape, in one tensor for all sites.

A prefix has the most heads and the largest size of all sites; each site reads its own part of it.
The values of latent attention (DeepSeek) are narrower than its keys, and Gemma 4's global layers
have wider heads than its local ones.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.model import Geometry
from softprompt.prompt import KVPrefix


def cut_to_site(
    geometry: Geometry, site: int, *, keys: Float[Tensor, "*B N P D"], values: Tensor
) -> tuple[Tensor, Tensor]:
    """The part of keys and values of all sites' shape that one site reads."""
    if not geometry.site_shapes:
        return keys, values
    heads, *sizes = geometry.site_shapes[site]
    pair = zip((keys, values), sizes, strict=True)
    cut_keys, cut_values = (t[..., :heads, :, :size] for t, size in pair)
    return cut_keys, cut_values


def pad_to_prefix(geometry: Geometry, tensor: Float[Tensor, "*B n P d"]) -> Tensor:
    """Keys or values of one site in the shape of all sites, with zeros where the site has none."""
    if not geometry.site_shapes:
        return tensor
    heads, _, size = tensor.shape[-3:]
    missing = geometry.head_dim - size, geometry.num_kv_heads - heads
    return F.pad(tensor, (0, missing[0], 0, 0, 0, missing[1]))


def clear_unread(geometry: Geometry, prefix: KVPrefix) -> KVPrefix:
    """Set to zero what no site reads."""
    rows = zip(prefix.sites, prefix.keys, prefix.values, strict=True)
    pairs = [cut_to_site(geometry, site, keys=keys, values=values) for site, keys, values in rows]
    whole = [[pad_to_prefix(geometry, t) for t in pair] for pair in pairs]
    keys, values = (torch.stack(tensors) for tensors in zip(*whole, strict=True))
    return replace(prefix, keys=keys, values=values)
