"""A prompt that takes the first positions leaves fewer for the row, also at inference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from softprompt.artifact import load_artifact
from softprompt.errors import DataError, PromptError, TemplateError
from softprompt.inference import PromptModel
from softprompt.methods.initializers import FromPrompt
from softprompt.recipe import make_recipe
from softprompt.train import run_recipe, setup_run

KEYS = ("prefix-tuning", "p-tuning-v2")
LONG = " ".join(["good"] * 90)


@pytest.mark.parametrize("length", [64, 65, 900])
@pytest.mark.parametrize("method", KEYS)
def test_a_prompt_that_takes_all_positions_is_refused(parts, method, length):
    with pytest.raises(TemplateError) as caught:
        parts("bert", method, task="head", settings={"length": length, "shift_positions": True})
    assert str(caught.value) == (
        f"the prompt takes the first {length} positions, but 'bert' has 64, so none is left for a "
        "row. Make it shorter, leave method.shift_positions out, or name the backbone that it was "
        "trained for."
    )


@pytest.mark.parametrize("limit", [20, 61, 64])
def test_max_length_of_the_recipe_is_a_limit_too(backbone, recipe, limit):
    made = recipe("bert", "p-tuning-v2", task="head", settings={"shift_positions": True})
    made = made.model_copy(update={"data": made.data.model_copy(update={"max_length": limit})})
    rows = [{"text": LONG, "label": label} for label in ("negative", "positive")]
    tables = {"train": Dataset.from_list(rows * 4)}
    prepared = setup_run(made, backbone=backbone("bert"), tables=tables)
    assert longest(prepared) == min(limit, 61)


def longest(prepared) -> int:
    return max(len(example.variants[0].input_ids) for example in prepared.rows["train"].examples)


@pytest.mark.parametrize("method", KEYS)
@pytest.mark.parametrize(("family", "positions"), [("bert", 64), ("roberta", 62), ("gpt2", 64)])
def test_rows_are_truncated_to_the_budget(parts, family, positions, method):
    """At the last position nothing is out of range, and the gradient reaches the prompt."""
    tables = {"train": [{"text": LONG, "label": label} for label in ("negative", "positive")] * 4}
    plain = parts(family, method, task="head", tables=tables)
    moved = parts(family, method, task="head", tables=tables, settings={"shift_positions": True})
    assert (longest(plain), longest(moved)) == (positions, positions - 3)
    assert moved.rows["train"].truncated == len(moved.rows["train"].truth) == 8
    prompt = moved.method()
    assert prompt.shift_positions
    moved.task.compute_loss(moved.rows["train"].examples, [prompt]).total.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in moved.method.parameters())


@pytest.mark.parametrize("method", KEYS)
def test_the_message_has_the_limit_without_the_prompt_s_positions(parts, method):
    """Text that is the same in every row has 61 positions, and not one more."""
    fixed = " good" * 59
    for count, fits in ((59, True), (60, False)):
        template = " good" * count + "{text}"
        change = {"task": "head", "settings": {"shift_positions": True}}
        if fits:
            made = with_template(parts, template, method, change)
            assert longest(made) == 61
            continue
        with pytest.raises(TemplateError) as caught:
            with_template(parts, template, method, change)
        assert str(caught.value) == (
            "prompt (0 soft tokens) + fixed text (62 tokens) = 62 positions, but the backbone has "
            "61 for them. Shorten the template's own text to 61 tokens."
        )
    assert with_template(parts, fixed + "{text}", method, {"task": "head"}) is not None


def with_template(parts, template: str, method: str, change: dict[str, Any]):
    prepared = parts("bert", method, **change)
    table = prepared.recipe.model_dump(by_alias=True, exclude_none=True)
    table["task"]["template"] = template
    rows = [{"text": " good", "label": label} for label in ("negative", "positive")] * 4
    tables = {name: Dataset.from_list(rows) for name in ("train", "validation", "test")}
    return setup_run(make_recipe(table), backbone=prepared.backbone, tables=tables)


@pytest.mark.parametrize("family", ["t5", "bart", "deberta_v2"])
def test_positions_that_cannot_shift_are_refused_before_training(parts, family):
    """An encoder-decoder has such positions in its decoder only, and a prefix is on all layers.

    DeBERTa's positions are relative, and its scores by them depend on the prefix itself.
    """
    task = "head" if family == "deberta_v2" else "words"
    with pytest.raises(
        PromptError,
        match=r"only the decoder's self-attention can shift them"
        r"|has scores by relative position, which are not known for a prefix before the row",
    ):
        parts(family, "p-tuning-v2", task=task, settings={"shift_positions": True})


def wide(text: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {"train": [{"text": text, "answer": answer, "label": "negative"}] * 4}


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "t5"])
def test_a_target_text_has_the_positions_that_are_left(parts, family):
    """Of 64 positions the prompt takes three; the last generated token is never an input."""
    causal = family in {"gpt2", "llama"}
    layers = "all" if causal else {"bart": "2::2", "t5": "2::2"}[family]
    given = {"task": "generate", "settings": {"shift_positions": True, "layers": layers}}
    text = " ".join(["good"] * 50)
    row = longest(parts(family, "prefix-tuning", tables=wide(text, "bad"), **given))
    # the row, the answer and its end; a decoder writes into positions of its own
    words = 61 - 1 - (row if causal else 0)
    fits = parts(family, "prefix-tuning", tables=wide(text, " ".join(["bad"] * words)), **given)
    loss = fits.task.compute_loss(fits.rows["train"].examples, [fits.method()])
    assert loss.total.isfinite()
    if family == "t5":  # its relative positions have no limit
        return
    with pytest.raises(DataError) as caught:
        parts(family, "prefix-tuning", tables=wide(text, " ".join(["bad"] * (words + 1))), **given)
    assert f"has {words + 2} tokens, but {words + 1} positions are left for it" in str(caught.value)


def test_a_prompt_from_an_artifact_may_take_positions(parts, maker, backbone):
    """The recipe does not shift positions, but its initialization does."""
    own = backbone("bert")
    made = parts("bert", "p-tuning-v2", task="head")
    tables = {"train": Dataset.from_list(wide(LONG, "bad")["train"] * 2 + [made_row()])}
    start = FromPrompt(maker("bert").prefix(3, shift_positions=True))
    prepared = setup_run(made.recipe, backbone=own, tables=tables, init=start)
    assert prepared.method().shift_positions
    assert longest(prepared) == 61


def made_row() -> dict[str, str]:
    return {"text": "good", "answer": "good", "label": "positive"}


@pytest.mark.parametrize("method", KEYS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_artifact_shifts_positions_too(parts, tmp_path, family, method):
    """A row gets as many positions as in training, whatever else is in the batch."""
    prepared = parts(family, method, task="head", settings={"shift_positions": True})
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    artifact = load_artifact(tmp_path / "run")
    assert artifact.manifest.shift_positions is artifact.prompt.shift_positions is True
    assert artifact.manifest.max_length is None  # of the recipe
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    texts = [LONG, "bad", "a good film"]
    examples = [model.render(text) for text in texts]
    assert len(examples[0].variants[0].input_ids) == 61
    with torch.no_grad():
        together = model.task.compute_scores(examples, [model.prompt])
        for example, scores in zip(examples, together, strict=True):
            assert_close(
                model.task.compute_scores([example], [model.prompt])[0],
                scores,
                rtol=1e-5,
                atol=1e-5,
            )
        # Llama's positions are relative, so a shift changes little.
        unmoved = replace(model.prompt, shift_positions=False)
        changed = (model.task.compute_scores(examples, [unmoved]) - together).abs().max()
    assert changed > 1e-4 if family == "bert" else changed < 2e-1
