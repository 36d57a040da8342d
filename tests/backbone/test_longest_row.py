"""Rope that depends on the longest row of a batch: rows end where it is the same for all."""

from collections.abc import Callable

import pytest
import transformers as tf
from torch.testing import assert_close

from softprompt.backbone import Backbone, wrap_model
from softprompt.injection import forward
from softprompt.tasks import Classify, build_task
from support.prompts import Maker
from support.tiny_models import CAUSAL_CONFIGS, draw_model, make_tokenizer

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ORIGINAL = 16
ROPES = {
    "longrope": (
        "phi3",
        {
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 4.0, 9.0, 20.0],
            "factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
        64,
    ),
    "dynamic": ("llama", {"factor": 4.0}, ORIGINAL),
}


@pytest.fixture
def stretched() -> Callable[[str], Backbone]:
    """A backbone that was trained with 16 positions and takes more."""

    def make(rope: str) -> Backbone:
        family, options, positions = ROPES[rope]
        options = {"rope_type": rope, "rope_theta": 10000.0, **options}
        more = {"original_max_position_embeddings": ORIGINAL} if positions > ORIGINAL else {}
        config = CAUSAL_CONFIGS[family](
            rope_parameters=options, max_position_embeddings=positions, **more
        )
        model = draw_model(tf.AutoModelForCausalLM, config).eval()
        return wrap_model(family, model, tokenizer=make_tokenizer("causal"), kind="causal")

    return make


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("rope", ROPES)
def test_a_row_does_not_depend_on_the_longest(stretched, rope, side):
    own = stretched(rope)
    assert own.geometry.max_positions == ORIGINAL
    make = Maker(own)
    short, long = make.rows("input", 6, ORIGINAL)
    prompt = make.input_prompt()
    together = forward(own, make.batch(short, long, side=side), prompts=[prompt])
    real = slice(0, 6) if side == "right" else slice(-6, None)
    assert_close(together[0][real], forward(own, make.batch(short), prompts=[prompt])[0], **CLOSE)


@pytest.mark.parametrize("rope", ROPES)
def test_beyond_that_length_it_would(stretched, rope):
    """Otherwise the limit would not be needed."""
    own = stretched(rope)
    make = Maker(own)
    short, long = make.words(6), Maker(own, 1).words(3 * ORIGINAL)
    together = forward(own, make.batch(short, long), prompts=[None])
    alone = forward(own, make.batch(short), prompts=[None])
    assert (together[0][:6] - alone[0]).abs().max() > 1e-2


@pytest.mark.parametrize("rope", ROPES)
def test_longer_rows_are_truncated(stretched, rope):
    own = stretched(rope)
    settings = Classify(verbalizer={"up": " good", "down": " bad"})
    task = build_task(settings, own, template="{soft:3}{text} it was")
    rows = [{"text": "good"}, {"text": "the movie was a bad film and " * 9}]
    examples = [task.make_example(row, target=False) for row in rows]
    longest = max(len(variant.input_ids) for e in examples for variant in e.variants)
    assert longest == ORIGINAL - 1  # the label word has a position too
    prompt = Maker(own).input_prompt()
    together = task.compute_scores(examples, [prompt])
    for example, scores in zip(examples, together, strict=True):
        assert_close(task.compute_scores([example], [prompt])[0], scores, **CLOSE)
