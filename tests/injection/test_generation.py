"""Guarantees 2 and 3: generated text depends on neither batch, padding, cache nor the loop."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from softprompt.backbone import BatchInputs, wrap_model
from softprompt.errors import PromptError, RecipeError
from softprompt.injection import Decoding, forward, generate
from support.parametrize import for_each

NEW = 6
DECODINGS = {
    "greedy": Decoding(max_new_tokens=NEW),
    "static cache": Decoding(max_new_tokens=NEW, cache="static"),
    "no cache": Decoding(max_new_tokens=NEW, cache="none"),
    "beams": Decoding(max_new_tokens=NEW, num_beams=3),
    "beams, static cache": Decoding(max_new_tokens=NEW, num_beams=3, cache="static"),
    "sampling": Decoding(max_new_tokens=NEW, do_sample=True, temperature=3.0, top_k=50, top_p=0.9),
}


def side_of(make) -> str:
    return "right" if make.decodes else "left"


def manual(own, inputs: BatchInputs, prompts) -> list[list[int]]:
    """Greedy decoding by hand: the whole row is run again for every token."""
    done = [[] for _ in inputs.input_ids]
    for _ in range(NEW):
        states = forward(own, inputs, prompts=prompts)
        best = own.lm_head(states[:, -1]).argmax(dim=-1, keepdim=True)
        for row, token in zip(done, best.flatten().tolist(), strict=True):
            if not {*row} & {*own.eos_token_ids}:
                row.append(token)
        if inputs.decoder_input_ids is not None:
            decoder = torch.cat([inputs.decoder_input_ids, best], dim=1)
            inputs = BatchInputs(inputs.input_ids, inputs.attention_mask, decoder_input_ids=decoder)
        else:
            ids = torch.cat([inputs.input_ids, best], dim=1)
            inputs = BatchInputs(
                ids, torch.cat([inputs.attention_mask, torch.ones_like(best)], dim=1)
            )
    return [[token for token in row if token not in own.eos_token_ids] for row in done]


def started(own, inputs: BatchInputs) -> BatchInputs:
    """The inputs with only the start token in the decoder, as generation begins."""
    if inputs.decoder_input_ids is None:
        return inputs
    start = torch.full((len(inputs.input_ids), 1), own.decoder_start_token_id)
    return BatchInputs(inputs.input_ids, inputs.attention_mask, decoder_input_ids=start)


@pytest.mark.parametrize("how", DECODINGS)
@for_each("shape", "writer")
def test_batched_is_single_and_padded_is_unpadded(backbone, maker, shape, writer, how):
    own, make = backbone(writer), maker(writer)
    prompts, rows = [make.prompt(shape)], make.rows(shape, 9, 6)
    batch = make.batch(*rows, side=side_of(make), extra=2)
    together = generate(own, batch, prompts=prompts, decoding=DECODINGS[how])
    single = [
        generate(own, make.batch(row), prompts=prompts, decoding=DECODINGS[how])[0] for row in rows
    ]
    assert together == single


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@for_each("shape", "writer")
def test_generate_is_a_loop_of_forwards(backbone, maker, shape, writer, cache):
    own, make = backbone(writer), maker(writer)
    prompts = [make.prompt(shape)]
    inputs = make.batch(*make.rows(shape, 9, 6), side=side_of(make))
    decoding = Decoding(max_new_tokens=NEW, cache=cache)
    by_hand = manual(own, started(own, inputs), prompts)
    assert generate(own, inputs, prompts=prompts, decoding=decoding) == by_hand


@for_each("shape", "writer")
def test_the_prompt_changes_what_is_written(backbone, maker, shape, writer):
    own, make = backbone(writer), maker(writer)
    inputs = make.batch(*make.rows(shape, 9, 8), side=side_of(make))
    answers = [
        generate(own, inputs, prompts=[maker(writer, seed).prompt(shape)]) for seed in range(4)
    ]
    assert any(answer != answers[0] for answer in answers)


@for_each("writer")
def test_rows_with_different_prompts_write_as_if_alone(backbone, maker, writer):
    own, make = backbone(writer), maker(writer)
    cases = [
        (make.input_prompt(3), make.rows("input", 8)[0]),
        (None, make.words(5)),
        (make.input_prompt(1), make.rows("input", 6, length=1)[0]),
    ]
    if own.geometry.num_attention_sites:
        cases += [
            (make.prefix(4), make.rows("kv", 7)[0]),
            (make.prefix(2, layers=(1,)), make.words(4)),
        ]
    prompts, rows = zip(*cases, strict=True)
    inputs = make.batch(*rows, side=side_of(make))
    for beams in (1, 3):
        decoding = Decoding(max_new_tokens=NEW, num_beams=beams)
        which = torch.arange(len(rows))
        together = generate(own, inputs, prompts=prompts, rows=which, decoding=decoding)
        alone = [
            generate(own, make.batch(row), prompts=[prompt], decoding=decoding)[0]
            for prompt, row in cases
        ]
        assert together == alone


@for_each("shape", "causal")
def test_a_second_turn_with_the_cache_of_the_first(backbone, maker, shape, causal):
    own, make = backbone(causal), maker(causal)
    prompts, decoding = [make.prompt(shape)], Decoding(max_new_tokens=4)
    first = make.batch(*make.rows(shape, 7))
    cache = DynamicCache(config=own.model.config)
    answer = generate(own, first, prompts=prompts, decoding=decoding, past=cache)[0]
    assert cache.get_seq_length() > 0
    more = maker(causal, 5).words(3)
    second = make.batch(
        torch.cat([first.input_ids[0], torch.tensor(answer, dtype=torch.long), more])
    )
    kept = generate(own, second, prompts=prompts, decoding=decoding, past=cache)
    assert kept == generate(own, second, prompts=prompts, decoding=decoding)


def test_a_seed_decides_a_sample(backbone, maker):
    own, make = backbone("llama"), maker("llama")
    inputs = make.batch(make.words(6))

    def drawn(seed: int) -> list[list[int]]:
        decoding = Decoding(max_new_tokens=NEW, do_sample=True, temperature=3.0, seed=seed)
        return generate(own, inputs, prompts=[None], decoding=decoding)

    torch.manual_seed(1)
    first = drawn(0)
    torch.manual_seed(2)
    assert drawn(0) == first
    assert len({str(drawn(seed)) for seed in range(8)}) > 1


def test_samples_follow_the_models_distribution(backbone, maker):
    """Frequencies of the first token against the softmax of the logits."""
    own, make = backbone("gpt2"), maker("gpt2")
    inputs = make.batch(make.words(6))
    logits = own.lm_head(forward(own, inputs, prompts=[None])[0, -1])
    likely = (logits / 1.5).softmax(-1)
    count = 200
    drawn = torch.zeros_like(likely)
    for seed in range(count):
        decoding = Decoding(max_new_tokens=1, do_sample=True, temperature=1.5, seed=seed)
        written = generate(own, inputs, prompts=[None], decoding=decoding)[0]
        drawn[written[0] if written else own.eos_token_ids[0]] += 1
    top = likely.topk(8).indices
    spread = (likely[top] * (1 - likely[top]) / count).sqrt()
    assert ((drawn[top] / count - likely[top]).abs() < 4 * spread).all()


@pytest.mark.parametrize("beams", [1, 3])
@for_each("shape", "writer")
def test_only_the_allowed_answers_come_out(backbone, maker, shape, writer, beams):
    own, make = backbone(writer), maker(writer)
    allowed = [(30, 31), (30, 32, 33), (30,), (50, 51, 52, 53)]
    decoding = Decoding(max_new_tokens=8, allowed_answers=allowed, num_beams=beams)
    inputs = make.batch(*make.rows(shape, 9, 6, 8, 7), side=side_of(make))
    written = generate(own, inputs, prompts=[make.prompt(shape)], decoding=decoding)
    assert {tuple(answer) for answer in written} <= {*allowed}


@for_each("writer")
def test_the_best_allowed_answer_wins_with_enough_beams(backbone, maker, writer):
    """Four beams keep all four answers; the best has the highest mean log-probability."""
    own, make = backbone(writer), maker(writer)
    allowed = [(30, 31), (40, 32), (60, 33), (50, 51)]
    end = own.eos_token_ids[0]
    row = make.words(7)
    decoding = Decoding(max_new_tokens=4, allowed_answers=allowed, num_beams=4)
    inputs = make.batch(row)
    written = tuple(generate(own, inputs, prompts=[None], decoding=decoding)[0])

    def score(answer) -> float:
        whole = torch.tensor([*answer, end])
        if make.decodes:
            decoder = torch.tensor([[own.decoder_start_token_id, *answer]])
            states = forward(
                own,
                BatchInputs(inputs.input_ids, inputs.attention_mask, decoder_input_ids=decoder),
                prompts=[None],
            )
            logits = own.lm_head(states[0])
        else:
            states = forward(own, make.batch(torch.cat([row, whole[:-1]])), prompts=[None])
            logits = own.lm_head(states[0, 6:])
        return logits.log_softmax(-1)[range(3), whole].sum().item()

    assert written == max(allowed, key=score)


@pytest.mark.parametrize("writer", ["llama", "t5"])
def test_a_checkpoints_generation_config_is_ignored(new_model, tokenizer, backbone, maker, writer):
    """Transformers takes settings that are not given from the model's generation config."""
    make = maker(writer)
    model = new_model(writer)
    model.generation_config = GenerationConfig(
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        do_sample=True,
        temperature=9.0,
        top_k=3,
        min_length=20,
        eos_token_id=2,
        suppress_tokens=list(range(5, 300)),
    )
    kind = backbone(writer).geometry.architecture
    configured = wrap_model(writer, model, tokenizer=tokenizer(kind), kind=kind)
    inputs = make.batch(make.words(6))
    assert configured.eos_token_ids == (2,)
    for decoding in DECODINGS.values():
        assert generate(configured, inputs, prompts=[None], decoding=decoding) == generate(
            backbone(writer), inputs, prompts=[None], decoding=decoding
        )


def test_padding_on_the_right_is_refused(backbone, maker):
    make = maker("llama")
    with pytest.raises(PromptError) as error:
        generate(backbone("llama"), make.batch(make.words(4), make.words(3)), prompts=[None])
    assert str(error.value) == (
        "a row to continue is padded on the right. Pad on the left: collate(side='left')."
    )


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0: at least 1."),
        ({"num_beams": 0}, "num_beams = 0: at least 1, which is greedy search."),
        (
            {"num_beams": 3, "do_sample": True},
            "num_beams = 3 and do_sample = true: beam search looks for the most likely",
        ),
        ({"temperature": 0.0}, "temperature = 0.0: more than 0."),
        ({"top_k": -1}, "top_k = -1: at least 1, or 0 for all."),
        ({"top_p": 0.0}, "top_p = 0.0: more than 0 and at most 1."),
        ({"top_p": 1.5}, "top_p = 1.5: more than 0 and at most 1."),
    ],
)
def test_decoding_that_is_not_possible(settings, fault):
    with pytest.raises(RecipeError) as error:
        Decoding(**settings)
    assert [found[: len(fault)] for found in error.value.faults] == [fault]


def test_all_faults_of_decoding_at_once():
    with pytest.raises(RecipeError) as error:
        Decoding(num_beams=0, top_p=2.0, max_new_tokens=-1)
    assert len(error.value.faults) == 3
    assert str(error.value).startswith("3 faults in the generation settings:\n")
