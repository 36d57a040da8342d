"""Sharding: the layers' weights divided among the processes of a run, by torch's FSDP2.

Each process has its shard of every layer and fetches the others' while that layer runs. So all
processes must run the same layers in the same order, forward and backward, or they wait for each
other forever; with :func:`check_ranks_agree` they agree where that depends on their rows.
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


def get_world_size() -> int:
    """The number of processes of this run."""
    is_distributed = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if is_distributed else 1


def shard_backbone(backbone: Backbone, *, device: str) -> Backbone:
    """Keep only this process's shard of the layers, and move the model to a device.

    The input embedding table, the head and everything else outside the layers stay whole, because
    they are also used outside a forward pass.

    Args:
        backbone: the whole backbone, the same in all processes. Its model is changed.
        device: the device of this process.

    Returns:
        The sharded backbone.

    Raises:
        BackboneError: there is only one process, or the model has no list of layers.
    """
    if get_world_size() == 1:
        msg = (
            f"backbone {backbone.name!r} cannot be sharded: there is one process. Start several "
            "(accelerate launch --multi_gpu --num_processes 2 …), or leave out shard."
        )
        raise BackboneError(msg)
    # Imported here, because some builds of torch lack these modules.
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    model, layers = backbone.model, _list_layers(backbone.model)
    if not layers:
        msg = (
            f"backbone {backbone.name!r} ({backbone.geometry.model_type}) cannot be sharded: it "
            "has no list of layers with weights of their own. Leave out shard, or use device_map."
        )
        raise BackboneError(msg)
    mesh = init_device_mesh(torch.device(device).type, (get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for stack in _list_stacks(backbone):
        outside = {p for p in stack.parameters() if not isinstance(p, DTensor)}
        fully_shard(stack, mesh=mesh, ignored_params=outside)
    nn.Module.to(model, device)
    # GPT-2's output is a view, which must not be modified in place; nothing here does that.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return replace(backbone, sharded=True)


def check_ranks_agree(backbone: Backbone, choice: int) -> bool:
    """Whether all processes make the same choice. All of them must call this.

    Without sharding the processes are independent, and the result is always True.
    """
    if not backbone.sharded:
        return True
    extremes = torch.tensor([choice, -choice], device=backbone.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    highest, negated_lowest = extremes.tolist()
    return bool(highest == -negated_lowest)


def prefetch_last_layer(backbone: Backbone, tensors: Iterable[Tensor]) -> None:
    """Fetch the last layer's weights when a gradient reaches tensors that were computed in it.

    FSDP fetches a layer's weights when a gradient reaches the layer's output. Keys and values are
    read from inside the last layer, and its output is not used, so they need this hook.
    """
    if not backbone.sharded:
        return
    last = cast("FSDPModule", _list_layers(_list_stacks(backbone)[-1])[-1])

    def fetch(_: Tensor) -> None:
        last.unshard()

    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_hook(fetch)


def _list_layers(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists, where transformers has its layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    nested = {id(inner) for outer in lists for layer in outer for inner in layer.modules()}
    return [layer for outer in lists if id(outer) not in nested for layer in outer]


def _list_stacks(backbone: Backbone) -> list[PreTrainedModel]:
    """The modules that every forward pass enters first."""
    model = backbone.model
    if backbone.geometry.architecture == "encoder-decoder":
        return [model.get_encoder(), model.get_decoder()]
    return [backbone.body]
