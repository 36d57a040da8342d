"""Families whose mechanisms differ from those of the tiny backbones: right, or limited by name.

The same checks as of `scripts/bench families`, on one family for each mechanism; each compares with
transformers' own eager model of the same weights.
"""

import sys
from importlib import import_module
from pathlib import Path

import pytest

from softprompt import load_backbone

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
    # keys and values of different widths
    "deepseek_v3": {"prefix"},
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
