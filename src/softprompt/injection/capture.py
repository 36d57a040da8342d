"""Keys and values read off a backbone: of a prompt (bake), or of a text (to start from)."""

import torch
from jaxtyping import Int
from torch import Tensor

from softprompt.backbone.model import Backbone
from softprompt.errors import PromptError
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


def bake(
    backbone: Backbone, prompt: InputPrompt, *, head: Int[Tensor, " P"], longest: int
) -> KVPrefix:
    """Turn what all rows share at their head into keys and values, computed once.

    Rows are then run without their head, and answer as before. In a causal backbone nothing after
    the head changes what the head computes; in any other it does.

    Args:
        prompt: the trained prompt.
        head: the ids that every row begins with, soft ones included, specials too.
        longest: the tokens of the longest row that will follow it.

    Returns:
        A prefix as long as the head, with ``shifted`` set.

    Raises:
        PromptError: the backbone is not causal, takes no position ids, or forgets the head in a
            sliding window before the row ends.
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
    if geometry.position_offset is None:
        msg = (
            f"a prompt for {geometry.family} cannot be baked: it takes no position ids, so rows "
            "cannot begin behind the head. Run it with its soft tokens."
        )
        raise PromptError(msg)
    if geometry.window is not None and len(head) + longest > geometry.window:
        msg = (
            f"head ({len(head)} tokens) + row ({longest}) = {len(head) + longest} tokens, but "
            f"{geometry.family} has a sliding window of {geometry.window}, which would forget the "
            "head. Run it with its soft tokens, or with shorter rows."
        )
        raise PromptError(msg)
    captured = capture(backbone, head, prompt=prompt)
    return KVPrefix(captured.keys, captured.values, captured.layers, shifted=True)
