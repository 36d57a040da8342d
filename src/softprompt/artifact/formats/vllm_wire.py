"""Vectors as vLLM takes them in a request: the only place where something is pickled.

vLLM reads ``prompt_embeds`` with ``torch.load(weights_only=True)``, so what is sent must be an
archive of ``torch.save``. It is written here, of one dense tensor, and read nowhere.
"""

import base64
import io

import torch
from jaxtyping import Float
from torch import Tensor


def wired(embeds: Float[Tensor, "T H"]) -> str:
    """The field ``prompt_embeds``: base64 of an archive that holds this tensor and nothing else.

    The copy has storage of its own; of a slice, torch would write the whole that it is cut from.
    """
    made = io.BytesIO()
    torch.save(embeds.detach().cpu().contiguous().clone(), made)
    return base64.b64encode(made.getvalue()).decode("ascii")
