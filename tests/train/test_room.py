"""A prompt that takes the row's first positions leaves it fewer, in training and ever after."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.artifact import load
from softprompt.errors import PromptError, TemplateError
from softprompt.evaluate import load_model
from softprompt.recipe import make_recipe
from softprompt.train import prepare, train
from softprompt.train.room import longest_row

KEYS = ("prefix-tuning", "p-tuning-v2")
LONG = " ".join(["good"] * 90)


@pytest.fixture
def room(backbone, recipe):
    def of(family: str, method: str, *, limit: int | None = None, **settings: Any) -> int | None:
        made = recipe(family, method, task="head", settings=settings)
        made = made.model_copy(update={"data": made.data.model_copy(update={"max_length": limit})})
        return longest_row(made, backbone(family).geometry)

    return of


@pytest.mark.parametrize("method", KEYS)
@pytest.mark.parametrize(("family", "positions"), [("bert", 64), ("roberta", 62), ("llama", 64)])
def test_the_limit_is_lower_by_the_prompts_length(room, family, positions, method):
    for length in (1, 7, positions - 1):
        assert room(family, method, length=length, shifted=True) == positions - length
        assert room(family, method, length=length, shifted=False) is None
        assert room(family, method, length=length, shifted=False, limit=20) == 20
    assert room(family, method, length=7, shifted=True, limit=20) == 20
    assert room(family, method, length=7, shifted=True, limit=60) == positions - 7


@pytest.mark.parametrize("method", KEYS)
def test_relative_positions_have_no_end(room, method):
    assert room("t5", method, shifted=True) is None
    assert room("bloom", method, shifted=True, limit=9) == 9


@pytest.mark.parametrize("length", [64, 65, 900])
@pytest.mark.parametrize("method", KEYS)
def test_a_prompt_that_takes_them_all(room, method, length):
    with pytest.raises(TemplateError) as caught:
        room("bert", method, length=length, shifted=True)
    assert str(caught.value) == (
        f"method.shifted gives the first {length} positions to the prompt, but the backbone has "
        "64, so none is left for a row. Lower method.length to less than 64, or leave "
        "method.shifted out."
    )


def longest(prepared) -> int:
    return max(len(example.variants[0].ids) for example in prepared.rows["train"].examples)


@pytest.mark.parametrize("method", KEYS)
@pytest.mark.parametrize(("family", "positions"), [("bert", 64), ("roberta", 62), ("gpt2", 64)])
def test_rows_are_cut_to_it(parts, family, positions, method):
    """At the last position nothing is out of range, and the gradient reaches the prompt."""
    tables = {"train": [{"text": LONG, "label": label} for label in ("negative", "positive")] * 4}
    plain = parts(family, method, task="head", tables=tables)
    moved = parts(family, method, task="head", tables=tables, settings={"shifted": True})
    assert (longest(plain), longest(moved)) == (positions, positions - 3)
    assert moved.rows["train"].cut == len(moved.rows["train"].truth) == 8
    prompt = moved.method()
    assert prompt.shifted
    moved.task.loss(moved.rows["train"].examples, [prompt]).total.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in moved.method.parameters())


@pytest.mark.parametrize("method", KEYS)
def test_at_the_limit_the_message_has_the_lower_one(parts, method):
    """Text that is the same in every row has 61 positions, and not one more."""
    fixed = " good" * 59
    for count, fits in ((59, True), (60, False)):
        template = " good" * count + "{text}"
        change = {"task": "head", "settings": {"shifted": True}}
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
    rows = [{"text": "", "label": label} for label in ("negative", "positive")] * 4
    from datasets import Dataset

    tables = {name: Dataset.from_list(rows) for name in ("train", "validation", "test")}
    return prepare(make_recipe(table), backbone=prepared.backbone, tables=tables)


@pytest.mark.parametrize("family", ["t5", "bart", "deberta_v2"])
def test_positions_that_cannot_move_are_told(parts, family):
    task = "head" if family == "deberta_v2" else "words"
    with pytest.raises(PromptError):
        parts(family, "p-tuning-v2", task=task, settings={"shifted": True})


@pytest.mark.parametrize("method", KEYS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_artifact_keeps_both(parts, tmp_path, monkeypatch, family, method):
    """That positions are moved, and how long a row may be; its answers are the run's."""
    monkeypatch.setattr("softprompt.train.run.draw", lambda *_args, **_kwargs: None)
    prepared = parts(family, method, task="head", settings={"shifted": True})
    train(prepared.recipe, tmp_path / "run", prepared=prepared)
    artifact = load(tmp_path / "run")
    assert artifact.manifest.shifted is artifact.prompt.shifted is True
    assert artifact.manifest.max_length == 61
    model = load_model(tmp_path / "run", prepared.backbone)
    texts = [LONG, "bad", "a good film"]
    examples = [model.example(text) for text in texts]
    assert len(examples[0].variants[0].ids) == 61
    with torch.no_grad():
        together = model.task.scores(examples, [model.prompt])
        for example, scores in zip(examples, together, strict=True):
            assert_close(
                model.task.scores([example], [model.prompt])[0], scores, rtol=1e-5, atol=1e-5
            )
        # Llama's positions are relative: the same distance is the same answer, moved or not.
        unmoved = replace(model.prompt, shifted=False)
        changed = (model.task.scores(examples, [unmoved]) - together).abs().max()
    assert changed > 1e-4 if family == "bert" else changed < 2e-1
