"""Let a backbone write on, with prompts: greedy, beams, sampling, or held to given answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from zlib import crc32

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from softprompt.backbone.model import Backbone, Inputs
from softprompt.errors import PromptError, RecipeError, unknown
from softprompt.injection.run import injected, positions
from softprompt.prompt import InputPrompt, Prompt

CacheKind = Literal["dynamic", "static", "none"]


@dataclass(frozen=True)
class Decoding:
    """How text is generated.

    Args:
        max_new_tokens: at most so many.
        beams: 1 is greedy (or sampling).
        sample: draw from the distribution instead of taking the best.
        temperature: divides the logits when sampling.
        top_k: sample from the k likeliest only; 0 for all.
        top_p: sample from the smallest set with this probability.
        seed: of the sampling. A row's draws depend on it and on the row, not on its batch mates.
        cache: transformers' cache kind: ``dynamic``, ``static``, or ``none``.
        answers: token ids of all the answers that are allowed; None for any text.

    Raises:
        RecipeError: numbers that are not possible, or not together; all of them at once.
    """

    max_new_tokens: int = 20
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    cache: CacheKind = "dynamic"
    answers: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.cache not in get_args(CacheKind):
            raise RecipeError([unknown("cache", self.cache, options=get_args(CacheKind))])
        beams, top_p = self.beams, self.top_p
        possible = {
            f"max_new_tokens = {self.max_new_tokens}: at least 1.": self.max_new_tokens >= 1,
            f"beams = {beams}: 1 is greedy, more are a search.": beams >= 1,
            f"beams = {beams} and sample = true: beams look for the likeliest text and sampling "
            "draws one. Choose one of them.": beams <= 1 or not self.sample,
            f"temperature = {self.temperature}: more than 0.": self.temperature > 0,
            f"top_k = {self.top_k}: at least 1, or 0 for all.": self.top_k >= 0,
            f"top_p = {top_p}: more than 0 and at most 1.": 0 < top_p <= 1,
        }
        faults = [fault for fault, fine in possible.items() if not fine]
        if faults:
            raise RecipeError(faults)


class _Noise(LogitsProcessor):
    """Gumbel noise: the arg-max of what it returns is a sample of the softmax of what it is given.

    Each row draws from a generator of its own, so its sample does not depend on its batch mates.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(
        self, _ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """Add the noise of one step."""
        drawn = [
            torch.rand(scores.shape[1], generator=g).clamp_(min=1e-20).log_().neg_().log_().neg_()
            for g in self.generators
        ]
        return scores.float() + torch.stack(drawn).to(scores.device)


@torch.no_grad()
def generate(
    backbone: Backbone,
    inputs: Inputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
    decoding: Decoding | None = None,
    past: Cache | None = None,
) -> list[list[int]]:
    """Continue each row, or answer it where the backbone has a decoder.

    Args:
        inputs: causal rows padded on the left; soft tokens as ids.
        rows: for each row the index of its prompt.
        decoding: greedy by default.
        past: a cache of what stands at the rows' head already, as an earlier turn left it. It is
            extended in place.

    Returns:
        The new ids of each row, without the end token and what follows it.

    Raises:
        PromptError: a causal row is padded on the right, or a prompt enters late in a backbone
            with a sliding window.
    """
    decoding = decoding or Decoding()
    _check_late(backbone, prompts)
    causal = backbone.geometry.kind == "causal"
    if causal and not bool(inputs.mask[:, -1].all()):
        msg = "a row to be continued is padded on the right. Pad on the left: collate(side='left')."
        raise PromptError(msg)
    begin = inputs.ids.shape[1] if causal else 1
    writer: Any = backbone.model
    with injected(backbone, inputs, prompts=prompts, rows=rows) as given:
        written = writer.generate(
            input_ids=inputs.ids,
            attention_mask=inputs.mask,
            generation_config=_configuration(backbone, decoding),
            logits_processor=_processors(backbone, inputs, decoding),
            **_extra(positions(backbone, inputs, given=given) if causal else None, past),
        )
    return [_until(row[begin:].tolist(), backbone.ends) for row in written]


def _check_late(backbone: Backbone, prompts: Sequence[Prompt | None]) -> None:
    window = backbone.geometry.window
    if window is not None and any(isinstance(p, InputPrompt) and p.layer for p in prompts):
        msg = (
            f"{backbone.geometry.family} has a sliding window of {window}, whose cache forgets "
            "where soft tokens stand that enter at a later layer, so it cannot write with them. "
            'Use layers = "all", or keys and values: prefix-tuning or p-tuning-v2.'
        )
        raise PromptError(msg)


def _extra(explicit: Tensor | None, past: Cache | None) -> dict[str, Any]:
    extra = {"position_ids": explicit, "past_key_values": past}
    return {name: value for name, value in extra.items() if value is not None}


def _configuration(backbone: Backbone, decoding: Decoding) -> GenerationConfig:
    """Ours alone: a checkpoint's own defaults (Qwen's repetition penalty) do not slip in."""
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        do_sample=False,
        use_cache=decoding.cache != "none",
        cache_implementation="static" if decoding.cache == "static" else None,
        eos_token_id=list(backbone.ends) or None,
        pad_token_id=backbone.pad,
        bos_token_id=backbone.tokenizer.bos_token_id,
        decoder_start_token_id=backbone.decoder_start,
    )


def _processors(backbone: Backbone, inputs: Inputs, decoding: Decoding) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if decoding.answers is not None:
        begin = inputs.ids.shape[1] if backbone.geometry.kind == "causal" else 1
        trie = _Trie(decoding.answers, begin=begin, ends=backbone.ends or (backbone.pad,))
        chain.append(PrefixConstrainedLogitsProcessor(trie, decoding.beams))
    if decoding.sample:
        chain.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k:
            chain.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            chain.append(TopPLogitsWarper(decoding.top_p))
        chain.append(_Noise(_seeds(inputs, decoding.seed)))
    return chain


def _seeds(inputs: Inputs, seed: int) -> list[int]:
    """A row's own seed, from the run's and from the row's real tokens."""
    pairs = zip(inputs.ids.tolist(), inputs.mask.tolist(), strict=True)
    real = [[i for i, keep in zip(ids, mask, strict=True) if keep] for ids, mask in pairs]
    return [crc32(repr((seed, row)).encode()) for row in real]


class _Trie:
    """Which tokens may come next if the text is to end as one of the answers."""

    def __init__(
        self, answers: Sequence[Sequence[int]], *, begin: int, ends: Sequence[int]
    ) -> None:
        self.begin = begin
        self.ends = list(ends)
        self.next: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            for at, token in enumerate((*answer, self.ends[0])):
                self.next.setdefault(tuple(answer[:at]), set()).add(token)

    def __call__(self, _row: int, ids: Int[Tensor, " T"]) -> list[int]:
        """The tokens allowed after what was written so far."""
        return sorted(self.next.get(tuple(ids[self.begin :].tolist()), set(self.ends)))


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    found = [at for at, token in enumerate(ids) if token in ends]
    return ids[: found[0]] if found else ids
