"""Families whose mechanisms differ from those of the tiny backbones: right, or limited by name.

The same checks as of `scripts/bench families`, on one family for each mechanism; each compares with
transformers' own eager model of the same weights.
"""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from softprompt import forward, load_backbone

HERE = Path(__file__).parents[2] / "benchmarks" / "families"

# family: its limits. A family without any is right in all checks.
LIMITS = {
    # attention beside convolutions or state spaces, which hand on more than keys and values
    "lfm2": {"late", "split"},
    "falcon_h1": {"late", "split"},
    "qwen3_next": {"late", "split"},
    # no attention at all; its padding on the left is not masked
    "mamba": {"prefix"},
    "rwkv": {"padding", "prefix"},
    # a cap or a sink among the scores
    "gemma2": set(),
    "gpt_oss": set(),
    # masks of its own, because it does not support torch's kernel
    "pegasus_x": set(),
    # keys and values of different widths; layers of different shapes
    "deepseek_v3": set(),
    "gemma4_text": {"late", "words"},
    # attention of their own, to which a hook of ours belongs: alibi, relative positions
    "falcon": set(),
    "mpt": set(),
    "deberta-v2": set(),
    # attention that selects keys by their index
    "glm_moe_dsa": {"prefix"},
    # most of its passes have no gradient
    "hrm_text": {"prefix"},
    # routers look up token ids; several tokens share keys and values
    "deepseek_v4": {"padding", "split"},
    # token types would add the embedding of token 0
    "xlm": {"prefix"},
    # a mixture of experts, whose head reads the routers
    "mixtral": set(),
    # tokens beside a token change it
    "convbert": {"padding", "prefix"},
    # a second table looks up token ids
    "gemma3n_text": {"words"},
    # the base model is not where its name says
    "llama4_text": set(),
    # layers that do not forward keyword arguments
    "stablelm": set(),
    # sparse attention that switches itself off for good
    "big_bird": {"prefix"},
}


@pytest.fixture(scope="module")
def families():
    """The modules of the benchmark."""
    sys.path.insert(0, str(HERE))
    try:
        yield import_module("build"), import_module("checks")
    finally:
        sys.path.remove(str(HERE))


@pytest.mark.parametrize("family", LIMITS)
@pytest.mark.filterwarnings("ignore")
def test_a_family_is_right_or_limited_by_name(families, family, tmp_path):
    build, checks = families
    build.build(family).save_pretrained(tmp_path)
    build.make_tokenizer().save_pretrained(tmp_path)
    outcomes = dict(checks.check(tmp_path, lambda: build.load_plain(family, tmp_path)))
    unclear = {k: v for k, v in outcomes.items() if not v.startswith(("right", "refused: it "))}
    assert unclear == {}
    limits = load_backbone(tmp_path, dtype="float32", device="cpu").geometry.limits
    assert {k for k, v in vars(limits).items() if v is not None} == LIMITS[family]


def test_token_types_are_left_out_where_they_name_tokens(families, tmp_path):
    """XLM adds the embedding of token 0 or 1 to every token for its type."""
    build, _ = families
    build.build("xlm").save_pretrained(tmp_path)
    build.make_tokenizer().save_pretrained(tmp_path)
    own, ids = load_backbone(tmp_path, dtype="float32", device="cpu"), torch.arange(60, 69)
    row = own.make_single_row(ids)
    plain = build.load_plain("xlm", tmp_path).transformer(ids[None]).last_hidden_state
    typed = forward(own, replace(row, token_type_ids=row.input_ids % 2), prompts=[None])
    assert_close(typed, plain, rtol=1e-4, atol=1e-5)
