"""Text generation with prompts: greedy, beam search, sampling, or constrained to answers."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from softprompt.backbone.model import Backbone, BatchInputs
from softprompt.decoding import Decoding
from softprompt.errors import PromptError
from softprompt.injection.forward import (
    compute_position_ids,
    inject_prompts,
    split_by_length,
)
from softprompt.prompt import InputPrompt, Prompt

NOT_NUMBERS = (
    "the backbone's scores are not numbers (NaN): its states overflow with this prompt, or its "
    "files are damaged. Load it in float32, train the prompt with a lower learning rate, or fetch "
    "the backbone again."
)


class _NumberCheck(LogitsProcessor):
    """Refuses scores that are not numbers, of which any token is the likeliest."""

    def __call__(
        self, _ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """Check the scores of one step."""
        if bool(scores.isnan().any()):
            raise PromptError(NOT_NUMBERS)
        return scores


class _GumbelNoise(LogitsProcessor):
    """Gumbel noise: the arg-max of its output is a sample from the softmax of its input.

    Each row has its own generator, so its samples do not depend on the other rows of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(
        self, _ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """Add the noise of one step."""
        noise = [
            torch.rand(scores.shape[1], generator=g).clamp_(min=1e-20).log_().neg_().log_().neg_()
            for g in self.generators
        ]
        return scores.float() + torch.stack(noise).to(scores.device)


@torch.no_grad()
def generate(
    backbone: Backbone,
    inputs: BatchInputs,
    *,
    prompts: Sequence[Prompt | None],
    rows: Int[Tensor, " B"] | None = None,
    decoding: Decoding | None = None,
    past: Cache | None = None,
) -> list[list[int]]:
    """Generate text for each row: its continuation, or the output of an encoder-decoder.

    Args:
        backbone: the backbone.
        inputs: the rows, in whose ids soft token k is ``V + k``; for a causal backbone padded on
            the left.
        prompts: the prompts; None for rows without a prompt.
        rows: the index of each row's prompt; may be left out if there is only one.
        decoding: the settings; greedy search by default.
        past: the cache of an earlier turn, for the tokens at the rows' beginning. It is extended
            in place.

    Returns:
        The new ids of each row, up to the end token.

    Raises:
        PromptError: a prompt does not fit the backbone or its rows, a row of a causal backbone is
            padded on the right, a prompt enters at a later layer of a backbone with a sliding
            window, or the scores of a token are not numbers.

    Examples:
        >>> prompt = InputPrompt(backbone.embed(torch.tensor([5, 6])))
        >>> soft = torch.arange(2) + backbone.geometry.vocab_size
        >>> text = torch.tensor(backbone.tokenizer("a fine film")["input_ids"])
        >>> inputs = backbone.make_single_row(torch.cat([soft, text]))
        >>> [ids] = generate(
        ...     backbone, inputs, prompts=[prompt], decoding=Decoding(max_new_tokens=3)
        ... )
        >>> len(ids) <= 3
        True
    """
    decoding = decoding or Decoding()
    check_start_layers(backbone, prompts)
    causal = backbone.geometry.architecture == "causal"
    if causal and not bool(inputs.attention_mask[:, -1].all()):
        msg = "a row to continue is padded on the right. Pad on the left: collate(side='left')."
        raise PromptError(msg)
    if backbone.geometry.limits.padding is not None and not bool(inputs.attention_mask.all()):
        return _generate_by_length(backbone, inputs, prompts, rows, decoding, past)
    # A decoder's output begins with its start token.
    begin = inputs.input_ids.shape[1] if causal else 1
    model: Any = backbone.model
    with inject_prompts(backbone, inputs, prompts=prompts, rows=rows) as hook:
        positions = compute_position_ids(backbone, inputs, hook=hook) if causal else None
        optional = {"position_ids": positions, "past_key_values": past}
        generated = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            generation_config=_make_generation_config(backbone, decoding),
            logits_processor=make_logits_processors(
                backbone, decoding, seeds=_derive_seeds(inputs, decoding.seed), begin=begin
            ),
            **{name: value for name, value in optional.items() if value is not None},
        )
    ends = _list_ends(backbone, decoding)
    return [_cut_at_end(row[begin:].tolist(), ends) for row in generated]


def _list_ends(backbone: Backbone, decoding: Decoding) -> tuple[int, ...]:
    """The tokens that end a text, those of the settings first."""
    return tuple(dict.fromkeys((*decoding.stop_token_ids, *backbone.eos_token_ids)))


def _generate_by_length(
    backbone: Backbone,
    inputs: BatchInputs,
    prompts: Sequence[Prompt | None],
    rows: Tensor | None,
    decoding: Decoding,
    past: Cache | None,
) -> list[list[int]]:
    """Generate for rows of equal length together."""
    if past is not None:
        msg = (
            f"{backbone.geometry.model_type} {backbone.geometry.limits.padding}, so rows of "
            "different lengths cannot continue one cache. Generate for one row at a time."
        )
        raise PromptError(msg)
    generated: dict[int, list[int]] = {}
    for group, which in split_by_length(inputs):
        own = None if rows is None else rows[which]
        texts = generate(backbone, group, prompts=prompts, rows=own, decoding=decoding)
        generated |= dict(zip(which.tolist(), texts, strict=True))
    return [generated[row] for row in range(len(generated))]


def check_start_layers(backbone: Backbone, prompts: Sequence[Prompt | None]) -> None:
    """Check that a backbone can generate with prompts that enter at a later layer.

    Raises:
        PromptError: it has a sliding window.
    """
    window = backbone.geometry.sliding_window
    if window is not None and any(isinstance(p, InputPrompt) and p.start_layer for p in prompts):
        msg = (
            f"{backbone.geometry.model_type} has a sliding window of {window}, whose cache does "
            "not store the places of soft tokens that enter at a later layer, so it cannot "
            'generate with them. Use layers = "all", or keys and values: prefix-tuning or '
            "p-tuning-v2."
        )
        raise PromptError(msg)


def _make_generation_config(backbone: Backbone, decoding: Decoding) -> GenerationConfig:
    """Only these settings, without a checkpoint's own, such as Qwen's repetition penalty."""
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.num_beams,
        do_sample=False,
        use_cache=decoding.cache != "none",
        cache_implementation="static" if decoding.cache == "static" else None,
        eos_token_id=list(_list_ends(backbone, decoding)) or None,
        pad_token_id=backbone.pad_token_id,
        bos_token_id=backbone.tokenizer.bos_token_id,
        decoder_start_token_id=backbone.decoder_start_token_id,
    )


def make_logits_processors(
    backbone: Backbone, decoding: Decoding, *, seeds: Sequence[int], begin: int
) -> LogitsProcessorList:
    """Make the processors that constrain or sample the tokens from column ``begin`` on.

    Args:
        backbone: the backbone.
        decoding: the settings.
        seeds: of each row, as `derive_seed` makes them.
        begin: the column of the first generated token.

    Returns:
        The processors, after all of which the highest score is that of the token to take. They
        remember how many tokens were sampled.
    """
    chain = LogitsProcessorList([_NumberCheck()])
    if decoding.allowed_answers is not None:
        trie = _Trie(
            decoding.allowed_answers,
            begin=begin,
            ends=_list_ends(backbone, decoding) or (backbone.pad_token_id,),
        )
        chain.append(PrefixConstrainedLogitsProcessor(trie, decoding.num_beams))
    if decoding.do_sample:
        chain.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k:
            chain.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            chain.append(TopPLogitsWarper(decoding.top_p))
        if decoding.min_p:
            chain.append(MinPLogitsWarper(decoding.min_p))
        chain.append(_GumbelNoise(seeds))
    return chain


def _derive_seeds(inputs: BatchInputs, seed: int) -> list[int]:
    pairs = zip(inputs.input_ids.tolist(), inputs.attention_mask.tolist(), strict=True)
    real = [[i for i, is_real in zip(ids, mask, strict=True) if is_real] for ids, mask in pairs]
    return [derive_seed(row, seed) for row in real]


def derive_seed(ids: Sequence[int], seed: int) -> int:
    """The seed of a row, from the common seed and its real tokens."""
    return crc32(repr((seed, list(ids))).encode())


class _Trie:
    """The tokens that may come next so that the text becomes one of the answers."""

    def __init__(
        self, answers: Sequence[Sequence[int]], *, begin: int, ends: Sequence[int]
    ) -> None:
        self.begin = begin
        self.ends = list(ends)
        self.next: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            for count, token in enumerate((*answer, self.ends[0])):
                self.next.setdefault(tuple(answer[:count]), set()).add(token)

    def __call__(self, _row: int, ids: Int[Tensor, " T"]) -> list[int]:
        """The tokens allowed after those generated so far."""
        return sorted(self.next.get(tuple(ids[self.begin :].tolist()), set(self.ends)))


def _cut_at_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end token."""
    end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return ids[:end]
