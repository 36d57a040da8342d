"""Attention to a prompt, against transformers' own weights and against arithmetic."""

import pytest
import torch
from transformers import DynamicCache

from softprompt.analysis import compute_attention_shares
from softprompt.errors import DataError, PromptError
from softprompt.prompt import InputPrompt
from softprompt.tasks import Classify
from support.parametrize import for_each
from support.tiny_models import REFUSED

WORDS = {"negative": " bad", "positive": [" good", " great"]}
NAMES = {"row": "attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}


def template(own, soft: str) -> str:
    mask = " {mask}" if own.geometry.architecture == "encoder" else ""
    return f"so{soft}{{text}} is{mask}"


def eager(new_model, family: str, ids: torch.Tensor, own, **more):
    """What transformers' plain attention says of one row of words."""
    model = new_model(family)
    model.set_attn_implementation("eager")
    if own.geometry.architecture == "encoder-decoder":
        more["decoder_input_ids"] = torch.tensor([[own.decoder_start_token_id]])
    with torch.no_grad():
        return model(input_ids=ids[None], output_attentions=True, **more)


@for_each("kv")
def test_soft_tokens_of_words_get_the_words_attention(
    model, backbone, maker, rows, new_model, kv: str
) -> None:
    """Every family that accepts prefixes, rows of many lengths in one batch."""
    own = backbone(kv)
    words = maker(kv).words(3)
    settings = Classify(template(own, "{soft:3}"), verbalizer=WORDS)
    made = model((kv, "words", ""), settings=settings, prompt=InputPrompt(own.embed(words)))
    found = compute_attention_shares(made, rows)
    wanted = {(one.site, one.part): ([], []) for one in found}
    for row in rows:
        example = made.render(row)
        ids = torch.tensor(example.variants[0].input_ids)
        soft = ids >= own.geometry.vocab_size
        filled = ids.clone()
        filled[soft] = words
        said = eager(new_model, kv, filled, own)
        for (site, part), (each, scored) in wanted.items():
            if own.geometry.architecture != "encoder-decoder":
                weights = said.attentions[site]
            elif part == "row":
                weights = said.encoder_attentions[site]
            else:
                layer = (site - own.geometry.num_layers) // 2
                weights = said[NAMES[part]][layer]
            given = weights[0].mean(dim=0)[:, soft]
            each += [*(given if part != "row" else given[~soft])]
            if part == "cross":
                scored += [*given.sum(dim=1)]
            elif own.geometry.architecture != "encoder-decoder":
                scored += [*given[list(example.read_positions[0])].sum(dim=1)]
    decodes = own.geometry.architecture == "encoder-decoder"
    blocks = range(own.geometry.num_layers)
    sites = [("row", at) for at in blocks]
    sites += [("cross", own.geometry.num_layers + 2 * at + 1) for at in blocks] if decodes else []
    assert [(one.part, one.site) for one in found] == sites
    for one in found:
        each, scored = wanted[one.site, one.part]
        tokens = torch.stack(each).mean(dim=0)
        assert one.tokens == pytest.approx(tokens.tolist(), abs=1e-5)
        assert one.share == pytest.approx(float(tokens.sum()), abs=1e-5)
        if scored:
            assert one.at_readout == pytest.approx(float(torch.stack(scored).mean()), abs=1e-5)
        else:
            assert one.at_readout is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_prefix_gets_what_keys_of_the_past_get(
    model, backbone, maker, rows, new_model, family: str
) -> None:
    own, prefix = backbone(family), maker(family).prompt("kv", 4)
    settings = Classify(template(own, ""), verbalizer=WORDS)
    made = model((family, "words", ""), settings=settings, prompt=prefix)
    found = compute_attention_shares(made, rows[:1])
    ids = torch.tensor(made.render(rows[0]).variants[0].input_ids)
    past = DynamicCache()
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        past.update(keys[None], values[None], layer)
    where = torch.arange(len(ids))[None]
    mask = torch.ones(1, 4 + len(ids), dtype=torch.long)
    said = eager(
        new_model, family, ids, own, past_key_values=past, position_ids=where, attention_mask=mask
    )
    for one, weights in zip(found, said.attentions, strict=True):
        given = weights[0].mean(dim=0)[:, :4]
        assert one.tokens == pytest.approx(given.mean(dim=0).tolist(), abs=1e-5)
        assert one.at_readout == pytest.approx(float(given[-1].sum()), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_without_queries_attention_is_uniform(
    model, maker, rows, new_backbone, family: str
) -> None:
    """Without queries (and T5's bias), P of P + T visible positions are the prompt's share."""
    own = new_backbone(family)
    for name, parameter in own.model.named_parameters():
        if any(part in name for part in ("q_proj", "query", ".q.", "relative_attention_bias")):
            parameter.data.zero_()
    prefix = maker(family).prompt("kv", 4)
    settings = Classify(template(own, ""), verbalizer=WORDS)
    made = model((family, "words", ""), settings=settings, prompt=prefix, own=own)
    lengths = [len(made.render(row).variants[0].input_ids) for row in rows]
    causal = [4 / (4 + at + 1) for length in lengths for at in range(length)]
    every = [4 / (4 + length) for length in lengths for _ in range(length)]
    cross = [4 / (4 + length) for length in lengths]
    for one in compute_attention_shares(made, rows):
        match one.part:
            case "row":
                given = causal if family == "llama" else every
            case "decoder":
                given = [4 / 5]
            case "cross":
                given = cross
        assert one.share == pytest.approx(sum(given) / len(given), abs=1e-5)
        assert one.uniform == pytest.approx(one.share, abs=1e-5)
        assert one.tokens == pytest.approx([one.share / 4] * 4, abs=1e-5)
    assert len(compute_attention_shares(made, rows)) == own.geometry.num_attention_sites


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_only_sites_that_see_the_prompt_are_listed(model, backbone, maker, rows, family) -> None:
    own = backbone(family)
    late = Classify(template(own, "{soft:3}"), verbalizer=WORDS)
    prompt = maker(family).late_prompt()
    found = compute_attention_shares(
        model((family, "words", ""), settings=late, prompt=prompt), rows
    )
    assert found[0].site == 1
    assert all(0 < one.share < 1 for one in found)
    prefix = maker(family).prefix(2, layers=(1,))
    plain = Classify(template(own, ""), verbalizer=WORDS)
    (one,) = compute_attention_shares(
        model((family, "words", ""), settings=plain, prompt=prefix), rows
    )
    assert one.site == 1


@pytest.mark.parametrize("way", ["causal words", "head on [CLS]", "text", "text of a seq2seq"])
def test_batches_change_nothing(model, rows, way) -> None:
    own = model(way)
    whole, alone = (compute_attention_shares(own, rows, batch_size=size) for size in (16, 1))
    for one, other in zip(whole, alone, strict=True):
        assert one.tokens == pytest.approx(other.tokens, abs=1e-5)
        assert one.uniform == pytest.approx(other.uniform, abs=1e-6)
        assert (one.at_readout or 0) == pytest.approx(other.at_readout or 0, abs=1e-5)


def test_a_custom_attention_implementation_is_refused(model, backbone, maker, rows) -> None:
    family = REFUSED
    settings = Classify(template(backbone(family), "{soft:3}"), verbalizer=WORDS)
    own = model((family, "words", ""), settings=settings, prompt=maker(family).prompt("input"))
    with pytest.raises(
        PromptError, match="uses a custom attention implementation, so its attention weights"
    ):
        compute_attention_shares(own, rows)


def test_no_rows_are_refused(model) -> None:
    with pytest.raises(DataError, match="there are no rows to compute attention for"):
        compute_attention_shares(model("causal words"), [])
