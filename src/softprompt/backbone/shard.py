"""The layers' weights shared out over the processes of a run, by torch's FSDP2.

Each process holds its share of every layer and fetches the others' while that layer runs. So all
of them must run the same layers in the same order, forward and backward, or they wait for each
other for ever; :func:`alike` lets them agree where that depends on their rows.
"""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from softprompt.backbone.model import Backbone
from softprompt.errors import BackboneError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def processes() -> int:
    """How many processes run together."""
    there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if there else 1


def shard(backbone: Backbone, *, device: str) -> Backbone:
    """Leave each process its share of the layers, and move it to its device.

    The input table, the head and whatever else stands outside the layers stay whole: they are
    looked at in other places than a forward pass.

    Args:
        backbone: whole, in memory; the same in all processes. Its model is changed.

    Raises:
        BackboneError: there is one process only, or its layers cannot be told.
    """
    if processes() == 1:
        msg = (
            f"backbone {backbone.name!r} cannot be sharded: there is one process. Start several "
            "(accelerate launch --multi_gpu --num_processes 2 …), or load it whole."
        )
        raise BackboneError(msg)
    # Here, because some builds of torch have none of it.
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    model, layers = backbone.model, _layers(backbone.model)
    if not layers:
        msg = (
            f"backbone {backbone.name!r} ({backbone.geometry.family}) cannot be sharded: it has no "
            "list of layers with weights of their own. Load it whole, or with device_map."
        )
        raise BackboneError(msg)
    mesh = init_device_mesh(torch.device(device).type, (processes(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for stack in _stacks(backbone):
        outside = {p for p in stack.parameters() if not isinstance(p, DTensor)}
        fully_shard(stack, mesh=mesh, ignored_params=outside)
    nn.Module.to(model, device)
    # GPT-2's output is a view, which must not be written into; nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return replace(backbone, sharded=True)


def alike(backbone: Backbone, choice: int) -> bool:
    """Whether all processes make the same choice. Each of them must ask.

    Without sharding each process is free to choose, and none is asked.
    """
    if not backbone.sharded:
        return True
    ends = torch.tensor([choice, -choice], device=backbone.device)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    most, least = ends.tolist()
    return bool(most == -least)


def fetch_for(backbone: Backbone, tensors: Iterable[Tensor]) -> None:
    """Have the last layer's weights there when a gradient reaches these tensors made in it.

    FSDP fetches a layer's weights when a gradient reaches its output. Keys and values that are
    taken out of the last layer, whose output nothing needs, get theirs another way.
    """
    if not backbone.sharded:
        return
    last = cast("FSDPModule", _layers(_stacks(backbone)[-1])[-1])

    def fetch(_: Tensor) -> None:
        last.unshard()

    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_hook(fetch)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules, which is where transformers has its layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    within = {id(inner) for found in lists for layer in found for inner in layer.modules()}
    return [layer for found in lists if id(found) not in within for layer in found]


def _stacks(backbone: Backbone) -> list[PreTrainedModel]:
    """What every pass enters first."""
    model = backbone.model
    if backbone.geometry.kind == "encoder-decoder":
        return [model.get_encoder(), model.get_decoder()]
    return [cast("PreTrainedModel", model.base_model)]
