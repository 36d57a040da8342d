"""The device and the dtype to compute with: by name, or the best of this machine."""

import torch

from softprompt.errors import BackboneError, format_unknown

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
AUTO = "auto"


def select_device() -> str:
    """The accelerator if there is one, else the CPU."""
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return "cpu"


def has_bfloat16(device: str) -> bool:
    """Whether a device has bf16 in hardware; without it, bf16 is slower than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.startswith("cpu"):
        features = torch.cpu.get_capabilities()
        return any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def choose_dtype(name: str, device: str) -> torch.dtype:
    """The dtype of a name; ``auto`` is bf16 if the hardware supports it, else fp32."""
    if name == AUTO:
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return DTYPES[name]


def resolve_device(device: str | torch.device) -> str:
    """Check the name of a device, and resolve ``"auto"``.

    Args:
        device: such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; ``"auto"`` is the accelerator if
            there is one, else the CPU.

    Returns:
        The name of the device.

    Raises:
        BackboneError: the device is unknown, or this machine does not have it.

    Examples:
        >>> resolve_device("cpu")
        'cpu'
    """
    if device == AUTO:
        return select_device()
    options = [AUTO, "cpu", *_list_accelerators()]
    try:
        requested = torch.device(device)
    except RuntimeError as error:
        raise BackboneError(format_unknown("device", str(device), options=options)) from error
    if requested.type != "cpu" and str(requested) not in options:
        msg = (
            f"device {str(device)!r} is not on this machine. It has: "
            f"{', '.join(options[1:])}. Give one of these, or 'auto'."
        )
        raise BackboneError(msg)
    return str(requested)


def resolve_dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype | None:
    """Check a dtype or its name, and resolve ``"auto"``.

    Args:
        dtype: a torch dtype, ``"float32"``, ``"bfloat16"`` or ``"float16"``; ``"auto"`` is
            bfloat16 if the device has it in hardware, else float32; None stays None.
        device: the device that computes.

    Returns:
        The dtype; None for that of the checkpoint.

    Raises:
        BackboneError: the dtype is unknown or not a floating-point type.

    Examples:
        >>> resolve_dtype("bfloat16", "cpu")
        torch.bfloat16
    """
    if dtype is None:
        return None
    if isinstance(dtype, torch.dtype):
        if dtype.is_floating_point:
            return dtype
        name = str(dtype).removeprefix("torch.")
        raise BackboneError(format_unknown("dtype", name, options=[AUTO, *DTYPES]))
    name = dtype.removeprefix("torch.")
    if name != AUTO and name not in DTYPES:
        raise BackboneError(format_unknown("dtype", dtype, options=[AUTO, *DTYPES]))
    return choose_dtype(name, device)


def _list_accelerators() -> list[str]:
    """The names of this machine's accelerators, with and without a number."""
    if not torch.accelerator.is_available():
        return []
    kind = torch.device(select_device()).type
    count = torch.accelerator.device_count()
    return [kind, *(f"{kind}:{number}" for number in range(count))]
