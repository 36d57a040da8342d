"""fp16's loss scaler, which works on any device, but without fp16."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator


def use_loss_scale(accelerator: Accelerator, scale: float) -> Accelerator:
    """Make an accelerator scale losses as with fp16, and compute as before."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    accelerator.autocast = nullcontext
    return accelerator
