"""Whatever a run saves, loss and gradient are those of whole rows: drawn at random."""

from dataclasses import dataclass
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from softprompt.recipe import make_recipe
from softprompt.tasks import base, generation
from softprompt.train import make_trainer, setup_run
from softprompt.train.accelerator import make_accelerator, use_gradient_checkpointing
from softprompt.train.gradients import accumulate_gradients
from softprompt.train.summary import prepare_caches

CAUSAL = ("llama", "gpt2", "gemma3", "qwen3", "opt")
ENCODERS = ("bert", "roberta", "albert")
SEQ2SEQ = ("t5", "bart")
WITH_SOFT = ("prompt-tuning", "p-tuning")
WORDS = {"negative": " bad", "positive": " good"}
LONG = {"negative": " terrible boring", "positive": " wonderful"}


@dataclass(frozen=True)
class Case:
    """A recipe, a batch, in how many parts it is run, and how many logits there are at once."""

    data: dict[str, Any]
    texts: tuple[str, ...]
    parts: int
    logits: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    family = draw(st.sampled_from((*CAUSAL, *ENCODERS, *SEQ2SEQ)))
    method = draw(st.sampled_from(("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2")))
    kinds = ["words", "long words"]
    kinds += [] if family in SEQ2SEQ else ["head"]
    kinds += [] if family in ENCODERS else ["text"]
    kind = draw(st.sampled_from(kinds))
    pieces = ["{text}", *draw(st.permutations(["the film ", " it was"]))]
    if method in WITH_SOFT:
        for count in draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)):
            pieces.insert(draw(st.integers(0, len(pieces))), f"{{soft:{count}}}")
    masked = family in ENCODERS and kind in {"words", "long words"}
    template = "".join(pieces) + (" {mask}" if masked else "")
    own: dict[str, Any] = {"kind": "classify", "template": template}
    if kind == "text":
        own |= {"kind": "generate", "target_column": "answer", "max_new_tokens": 4}
    elif kind != "head":
        own |= {"verbalizer": WORDS if kind == "words" else LONG}
    late = draw(st.booleans())
    small = {"encoder_hidden_size": 8} if method in {"p-tuning", "prefix-tuning"} else {}
    small |= {} if method in WITH_SOFT else {"length": draw(st.integers(1, 4))}
    word = st.sampled_from(("good", "bad", "film", "the", "a", "very", "boring", "movie", "plot"))
    text = st.lists(word, min_size=1, max_size=9).map(" ".join)
    return Case(
        {
            "seed": draw(st.integers(0, 99)),
            "backbone": {"name": family, "device": "cpu", "dtype": "float32"},
            "data": {
                "train": "memory",
                "split_sizes": {"train": 1.0, "validation": 0.0, "test": 0.0},
            },
            "task": own,
            "method": {"name": method, **small, **({"layers": "1:"} if late else {})},
            "train": {
                "batch_size": 4,
                "epochs": 2,
                "gradient_checkpointing": family != "albert" and draw(st.booleans()),
            },
            # In files, in memory, or nowhere.
            "cache": draw(
                st.sampled_from([{}, {"disk_gb": 0.0}, {"disk_gb": 0.0, "memory_gb": 0.0}])
            ),
        },
        tuple(draw(st.lists(text, min_size=2, max_size=6))),
        draw(st.integers(1, 3)),
        draw(st.sampled_from((1, 1000, generation.LOGITS))),
    )


def found(task, method, examples, accelerator, *, parts):
    method.zero_grad()
    if task.head is not None:
        task.head.zero_grad()
    loss, _ = accumulate_gradients(
        task, method, batch=examples, parts=parts, accelerator=accelerator
    )
    return loss, [parameter.grad.clone() for parameter in method.parameters()]


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_loss_and_gradient_are_those_of_whole_rows(case, backbone):
    recipe = make_recipe(case.data)
    rows = [
        {"text": text, "label": sorted(WORDS)[at % 2], "answer": text.split()[0]}
        for at, text in enumerate(case.texts)
    ]
    own = backbone(recipe.backbone.name)
    prepared = setup_run(recipe, backbone=own, tables={"train": Dataset.from_list(rows)})
    accelerator = make_accelerator(recipe.train, cpu=True, folder=None)
    examples = prepared.rows["train"].examples
    with use_gradient_checkpointing(own, wanted=recipe.train.gradient_checkpointing):
        trainer = make_trainer(prepared, accelerator)
        for _ in prepare_caches(trainer, prepared):
            pass
        trainer._set_train_mode(enabled=True)
        more = {"accelerator": accelerator, "parts": case.parts}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(generation, "LOGITS", case.logits)
            saving, slopes = found(trainer.task, prepared.method, examples, **more)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(base, "plan_split", lambda *_args, **_more: None)
            whole, expected = found(prepared.task, prepared.method, examples, **more)
    assert saving == pytest.approx(whole, rel=1e-5, abs=1e-6)
    scale = max(float(slope.abs().max()) for slope in expected)
    assert scale > 0
    for slope, wanted in zip(slopes, expected, strict=True):
        assert_close(slope, wanted, rtol=1e-3, atol=1e-5 * scale)
