"""What a manifest and the tensors beside it must agree on."""

from collections.abc import Iterator, Mapping
from typing import assert_never

import torch
from torch import Tensor

from softprompt.artifact.manifest import Manifest

PROMPT = "prompt."
HEAD = "head."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_Axes = tuple[int | None, ...]


def contradictions(manifest: Manifest) -> list[str]:
    """What in a manifest of the right form cannot be true all at once."""
    found = [*_kind_faults(manifest), *_shape_faults(manifest)]
    if manifest.length < 1:
        found.append(f"length is {manifest.length}; a prompt has one soft token or more.")
    if manifest.max_length is not None and manifest.max_length < 1:
        found.append(f"max_length is {manifest.max_length}; it must be null or at least 1.")
    if manifest.dtype not in DTYPES:
        found.append(f"dtype is {manifest.dtype!r}; it must be one of {', '.join(DTYPES)}.")
    return found


def disagreements(manifest: Manifest, tensors: Mapping[str, Tensor]) -> list[str]:
    """What about the tensors is not as the manifest says, or cannot be computed with.

    Args:
        manifest: free of `contradictions`.
        tensors: by their names in the file.
    """
    missing = sorted(manifest.shapes.keys() - tensors.keys())
    extra = sorted(tensors.keys() - manifest.shapes.keys())
    found = [f"the tensor {name!r} is missing." for name in missing]
    found += [f"the tensor {name!r} is not in the manifest." for name in extra]
    for name in sorted(tensors.keys() & manifest.shapes.keys()):
        found += _tensor_faults(name, tensors[name], manifest)
    return found


def _kind_faults(manifest: Manifest) -> Iterator[str]:
    layers = manifest.layers
    match manifest.kind:
        case "input":
            if manifest.shifted is not None:
                yield (
                    f"shifted is {manifest.shifted}; positions of an input prompt are not moved: "
                    "it must be null."
                )
            if layers is not None and (len(layers) != 1 or layers[0] < 1):
                yield f"layers are {layers}; an input prompt enters at one, from 1 up, or at null."
        case "kv":
            if layers is None or manifest.shifted is None:
                yield "kind is 'kv', which needs layers and shifted: neither may be null."
            elif min(layers, default=-1) < 0 or len({*layers}) != len(layers):
                yield f"layers are {layers}; there must be at least one, each from 0 up and once."
        case unreachable:
            assert_never(unreachable)


def _axes(manifest: Manifest) -> dict[str, _Axes]:
    """For each tensor of the prompt its axes; None where any size will do."""
    match manifest.kind:
        case "input":
            return {f"{PROMPT}vectors": (manifest.length, None)}
        case "kv":
            axes = (len(manifest.layers or ()), None, manifest.length, None)
            return {f"{PROMPT}keys": axes, f"{PROMPT}values": axes}
        case unreachable:
            assert_never(unreachable)


def _shape_faults(manifest: Manifest) -> Iterator[str]:
    wanted = _axes(manifest)
    heads = {name for name in manifest.shapes if name.startswith(HEAD)}
    if manifest.shapes.keys() - heads != wanted.keys():
        given = ", ".join(sorted(manifest.shapes)) or "nothing"
        yield (
            f"shapes name {given}; kind {manifest.kind!r} has {', '.join(wanted)}, and beside "
            f"them only names in {HEAD!r}."
        )
        return
    for name, shape in sorted(manifest.shapes.items()):
        axes = wanted.get(name, (None,) * len(shape))
        fits = [size >= 1 and axis in {None, size} for size, axis in zip(shape, axes, strict=False)]
        if len(shape) != len(axes) or not all(fits):
            shown = ", ".join("at least 1" if axis is None else str(axis) for axis in axes)
            yield f"shapes say {shape} for {name}, but it must be [{shown}]."
    if len({tuple(manifest.shapes[name]) for name in wanted}) > 1:
        yield "shapes of keys and values differ; they must be the same."


def _tensor_faults(name: str, tensor: Tensor, manifest: Manifest) -> Iterator[str]:
    shape, wanted = [*tensor.shape], manifest.shapes[name]
    if shape != wanted:
        yield f"{name} has the shape {shape}, but the manifest says {wanted}."
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        yield f"{name} is {dtype}; a tensor must be one of {', '.join(DTYPES)}."
        return
    if name.startswith(PROMPT) and dtype != manifest.dtype:
        yield f"{name} is {dtype}, but the manifest says {manifest.dtype}."
    strange = int((~tensor.isfinite()).sum())
    if strange:
        yield f"{name}: {strange} of its {tensor.numel()} values are NaN or infinite."
