"""The settings of text generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from softprompt.errors import RecipeError, format_unknown

CacheKind = Literal["dynamic", "static", "none"]
_SETTINGS = "the generation settings"
# More need more memory than any search is worth: each beam is a row of the batch.
_MAX_BEAMS = 1024


@dataclass(frozen=True)
class Decoding:
    """The settings of text generation.

    Args:
        max_new_tokens: the most tokens to generate.
        num_beams: the number of beams; 1 is greedy search (or sampling).
        do_sample: sample from the distribution instead of taking the most likely token.
        temperature: divides the logits when sampling.
        top_k: sample from the k most likely tokens only; 0 for all.
        top_p: sample from the smallest set of tokens with this probability.
        min_p: sample only tokens with at least this share of the likeliest token's probability.
        seed: the seed of sampling. A row's samples depend on it and on the row, not on the other
            rows of the batch.
        cache: transformers' kind of cache: ``dynamic``, ``static``, or ``none``.
        allowed_answers: the token ids of all allowed answers; None for any text.
        stop_token_ids: tokens that end a text as the backbone's end tokens do.

    Raises:
        RecipeError: values that are not possible, or not in combination; all of them at once.

    Examples:
        >>> Decoding(max_new_tokens=8, do_sample=True, top_p=0.9).num_beams
        1
        >>> Decoding(top_p=2.0)
        Traceback (most recent call last):
        softprompt.errors.RecipeError: 1 fault in the generation settings:
          - top_p = 2.0: more than 0 and at most 1.
    """

    max_new_tokens: int = 20
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    cache: CacheKind = "dynamic"
    allowed_answers: Sequence[Sequence[int]] | None = None
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.cache not in get_args(CacheKind):
            fault = format_unknown("cache", self.cache, options=get_args(CacheKind))
            raise RecipeError([fault], where=_SETTINGS)
        beams, top_p = self.num_beams, self.top_p
        possible = {
            f"max_new_tokens = {self.max_new_tokens}: at least 1.": self.max_new_tokens >= 1,
            f"num_beams = {beams}: at least 1, which is greedy search.": beams >= 1,
            f"num_beams = {beams}: at most {_MAX_BEAMS}.": beams <= _MAX_BEAMS,
            f"num_beams = {beams} and do_sample = true: beam search looks for the most likely "
            "text and sampling draws one. Choose one of them.": beams <= 1 or not self.do_sample,
            f"temperature = {self.temperature}: more than 0.": self.temperature > 0,
            f"top_k = {self.top_k}: at least 1, or 0 for all.": self.top_k >= 0,
            f"top_p = {top_p}: more than 0 and at most 1.": 0 < top_p <= 1,
            f"min_p = {self.min_p}: at least 0 and at most 1.": 0 <= self.min_p <= 1,
        }
        faults = [fault for fault, fine in possible.items() if not fine]
        if faults:
            raise RecipeError(faults, where=_SETTINGS)
