"""What the machine computes in best. The edge asks; the core is told."""

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def best_device() -> str:
    """The accelerator if there is one, else the processor."""
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return "cpu"


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies in bf16 in hardware; where not, bf16 is slower than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.startswith("cpu"):
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
    return False


def dtype_of(name: str, device: str) -> torch.dtype:
    """The precision that a recipe names; ``auto`` is bf16 where the hardware has it."""
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return DTYPES[name]
