"""Keys and values read off a backbone: of a prompt (bake), or of a text (to start from)."""

import torch
from jaxtyping import Int
from torch import Tensor

from softprompt.backbone.model import Backbone
from softprompt.errors import PromptError
from softprompt.injection.check import unmovable
from softprompt.injection.kept import keys_and_values
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


@torch.no_grad()
def capture(
    backbone: Backbone, ids: Int[Tensor, " P"], *, prompt: Prompt | None = None
) -> KVPrefix:
    """The keys and values that every attention site computes for one row of ids, in fp32.

    An encoder-decoder's decoder is fed the same ids.

    Raises:
        PromptError: the backbone has an attention of its own.
    """
    if not backbone.geometry.sites:
        msg = (
            f"{backbone.geometry.family} has an attention of its own, whose keys and values cannot "
            "be read. Use prompt-tuning or p-tuning."
        )
        raise PromptError(msg)
    found = keys_and_values(backbone, backbone.one_row(ids), prompt=prompt)
    keys = torch.cat([keys.float() for keys, _ in found])
    values = torch.cat([values.float() for _, values in found])
    return KVPrefix(keys, values, tuple(range(len(found))))


def bake(backbone: Backbone, prompt: InputPrompt, *, head: Int[Tensor, " P"]) -> KVPrefix:
    """Turn what all rows share at their head into keys and values, computed once.

    Rows are then run without their head, and answer as before. In a causal backbone nothing after
    the head changes what the head computes; in any other it does. Sliding windows forget the head
    as they would its tokens.

    Args:
        prompt: the trained prompt.
        head: the ids that every row begins with, soft ones included, specials too.

    Returns:
        A prefix as long as the head, with ``shifted`` set.

    Raises:
        PromptError: the backbone is not causal, or rows cannot begin behind a head in it.
    """
    geometry = backbone.geometry
    if prompt.layer:
        msg = (
            f"a prompt that enters at layer {prompt.layer} cannot be baked: below it there are no "
            "keys and values of it. Run it with its soft tokens."
        )
        raise PromptError(msg)
    if geometry.kind != "causal":
        msg = (
            f"a prompt for {geometry.family} cannot be baked: its tokens see what comes after "
            "them, so their keys and values differ from row to row. Run it with its soft tokens."
        )
        raise PromptError(msg)
    reason = unmovable(geometry)
    if reason is not None:
        msg = (
            f"a prompt for {geometry.family} cannot be baked: it {reason}, so rows cannot begin "
            "behind the head. Run it with its soft tokens."
        )
        raise PromptError(msg)
    captured = capture(backbone, head, prompt=prompt)
    return KVPrefix(captured.keys, captured.values, captured.layers, shifted=True)
