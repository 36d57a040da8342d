"""Log-probabilities of tokens, as the backbone gives them before any setting of generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.prompt import Prompt
from softprompt.tasks import Example
from softprompt.tasks.generation import LOGITS, TextGenerator


@dataclass(frozen=True)
class TokenScores:
    """The log-probabilities at one token.

    They are those of the backbone itself: before temperature, top_k, top_p, min_p and choices.

    Args:
        token: the token that is there.
        logprob: its own; None for the first token of a row, which nothing precedes.
        top: the likeliest tokens with theirs, the likeliest first.
        also: those of further tokens that were asked for.
    """

    token: int
    logprob: float | None
    top: Mapping[int, float] = field(default_factory=dict)
    also: Mapping[int, float] = field(default_factory=dict)


def read_scores(
    logits: Float[Tensor, "S V"], tokens: Sequence[int], *, top: int, also: Sequence[int] = ()
) -> tuple[TokenScores, ...]:
    """The log-probabilities at some tokens.

    Args:
        logits: that predict the tokens.
        tokens: one for each row of the logits.
        top: how many of the likeliest tokens.
        also: further tokens.

    Returns:
        A value for each token.

    Examples:
        >>> import torch
        >>> [one] = read_scores(torch.zeros(1, 4), [2], top=1)
        >>> round(one.logprob, 4), len(one.top)
        (-1.3863, 1)
    """
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    best = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    further = logprobs[:, list(also)]
    rows = zip(
        tokens, own.tolist(), best.indices.tolist(), best.values.tolist(), further.tolist(),
        strict=True,
    )  # fmt: skip
    return tuple(
        TokenScores(
            token,
            value,
            dict(zip(ids, values, strict=True)),
            dict(zip(also, more, strict=True)),
        )
        for token, value, ids, values, more in rows
    )


@torch.no_grad()
def score_row(
    task: TextGenerator, example: Example, *, prompt: Prompt | None, top: int
) -> tuple[TokenScores, ...]:
    """The log-probabilities of the real tokens of a row, each after all that precedes it.

    Args:
        task: of a causal backbone, that made the example.
        example: the row, in which soft tokens stand.
        prompt: of the row.
        top: how many of the likeliest tokens.

    Returns:
        A value for each token that is not a soft token.
    """
    ids, vocabulary = example.variants[0].input_ids, task.backbone.geometry.vocab_size
    places = [at for at in range(1, len(ids)) if ids[at] < vocabulary]
    first = (TokenScores(ids[0], None),) if ids[0] < vocabulary else ()
    if not places:
        return first
    states = task.compute_states_at(
        example.variants,
        positions=[[at - 1 for at in places]],
        prompts=[prompt],
        prompt_index=None,
    )
    size = max(1, LOGITS // vocabulary)
    parts = zip(
        states.split(size),
        (places[at : at + size] for at in range(0, len(places), size)),
        strict=True,
    )
    scored = [
        one
        for part, of_part in parts
        for one in read_scores(task.compute_logits(part), [ids[at] for at in of_part], top=top)
    ]
    return (*first, *scored)
