"""Running rows: a trial shows what a backbone can do, and prefixes in the cache change nothing."""

import pytest
import torch
import transformers as tf

from softprompt.backbone import wrap_model
from softprompt.injection import running_rows
from softprompt.injection.running_rows import (
    NewRow,
    RunningRows,
    can_store_prefixes,
    explain_no_joining,
)
from support.parametrize import for_each


@for_each("writer")
def test_every_family_here_passes_the_trial(backbone, writer):
    own = backbone(writer)
    before = own.model.config.to_dict()
    assert explain_no_joining(own) is None
    assert can_store_prefixes(own) == (own.geometry.architecture == "causal")
    assert own.model.config.to_dict() == before
    windows = {vars(module).get("sliding_window") for module in own.model.modules()}
    assert windows <= {None, own.geometry.sliding_window}


def test_the_trial_finds_positions_that_are_not_the_rows_own(backbone, monkeypatch):
    monkeypatch.setattr(
        running_rows._LaggingRows,
        "get_position_shift",
        lambda self, batch: self.prompts.get_position_shift(batch),
    )
    reason = "computes other scores for rows that join"
    assert explain_no_joining(backbone("bart")) == reason
    # It has no positions, but distances.
    assert explain_no_joining(backbone("t5")) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_the_trial_finds_columns_that_are_not_hidden(backbone, monkeypatch, family):
    original = running_rows.RunningRows._make_step

    def forget(self, tokens):
        step = original(self, tokens)
        return step | {"attention_mask": torch.ones_like(step["attention_mask"])}

    monkeypatch.setattr(running_rows.RunningRows, "_make_step", forget)
    assert explain_no_joining(backbone(family)) is not None


def test_a_window_that_cannot_be_tested_is_not_trusted(backbone, monkeypatch):
    monkeypatch.setattr(running_rows, "_WINDOW", backbone("mistral").geometry.sliding_window)
    assert explain_no_joining(backbone("mistral")) == (
        "has a sliding window that rows of a few tokens cannot test"
    )
    assert not can_store_prefixes(backbone("mistral"))
    assert explain_no_joining(backbone("llama")) is None


def test_a_window_of_another_name_is_not_trusted(drawn, tokenizer):
    """GPT-Neo's hides a prefix in the cache, but not one that is put before it."""
    config = tf.GPTNeoConfig(
        vocab_size=366,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
    )
    model = drawn(tf.AutoModelForCausalLM, config).eval()
    own = wrap_model("gpt_neo", model, tokenizer=tokenizer("causal"), kind="causal")
    assert explain_no_joining(own) == (
        "has a window of attention that rows of a few tokens cannot test"
    )
    assert not can_store_prefixes(own)


@for_each("causal")
def test_a_prefix_in_the_cache_acts_like_one_before_it(backbone, maker, causal):
    own, make = backbone(causal), maker(causal)
    prompts = [make.prefix(3), make.prefix(4, shift_positions=True), None, make.prefix(2)]
    rows = [
        NewRow(tuple(maker(causal, seed).words(4 + seed).tolist()), prompt)
        for seed, prompt in enumerate(prompts)
    ]
    scores = []
    for store in (False, True):
        running = RunningRows(own, store_prefixes=store)
        found = [running.join(rows[:2]), running.advance([7, 8]), running.join(rows[2:])]
        found += [running.advance([20 + step] * 4) for step in range(12)]
        running.drop(0)
        scores.append(torch.cat([*found, running.advance([9, 10, 11])]))
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-4)
