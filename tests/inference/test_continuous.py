"""Continuous batching: every row gets the answer that `predict` gives it alone."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.backbone import wrap_model
from softprompt.errors import DataError, PromptError
from softprompt.inference.continuous import GenerationBatch
from softprompt.inference.generated_row import GenerationEvent, GenerationRequest
from softprompt.inference.mixed import bake_prompts, find_head
from softprompt.injection.limits import measure_limits
from softprompt.injection.running_rows import RunningRows
from softprompt.prompt import InputPrompt
from softprompt.tasks import Generate, Prediction, build_task
from support.models import LABELS, ROWS
from support.parametrize import for_each

NEW = 6
TEXTS = [row["text"] for row in ROWS]
SHAPES = ("none", "input", "late", "kv", "shifted", "some layers")
BIG = {"max_rows": 16, "max_tokens": 4096}


def list_shapes(own) -> list[str]:
    """The kinds of prompt that a backbone generates with."""
    return [shape for shape in SHAPES if shape != "late" or own.geometry.sliding_window is None]


def make_prompt(own, make, shape: str, length: int):
    sites = own.geometry.self_attention_sites
    match shape:
        case "none":
            return None
        case "shifted":
            return make.prefix(length, layers=sites, shift_positions=True)
        case "some layers":
            return make.prefix(length, layers=sites[1:])
        case _:
            return make.prompt(shape, length)


def make_request(
    own, make, text: str, shape: str, *, choices: Sequence[str] = (), **changes
) -> GenerationRequest:
    """A request with a prompt of a shape; ``changes`` are settings of decoding."""
    length = 2 + len(text) % 3
    soft = f"{{soft:{length}}}" if shape in {"input", "late"} else ""
    own_changes = {k: changes.pop(k) for k in ("seed", "stop") if k in changes}
    task_settings = Generate(
        template=f"{{text}} is{soft}",
        max_new_tokens=20 if choices else NEW,
        choices=choices,
        target_column="label",
    )
    task = build_task(task_settings, own, template=task_settings.template, labels=choices)
    example = task.make_example({"text": text}, target=False)
    prompt = make_prompt(own, make, shape, length)
    return GenerationRequest(
        task, example, prompt, replace(task.decoding, **changes), **own_changes
    )


def predict(request: GenerationRequest) -> Prediction:
    """What `predict` returns for a request's row alone."""
    task = request.task
    task._decoding = request.seeded_decoding
    return task.predict([request.example], [request.prompt])[0]


def run(batch: GenerationBatch, *, steps: int = 300) -> dict[object, list[GenerationEvent]]:
    """Run until no row is left; the events of each."""
    events: dict[object, list[GenerationEvent]] = {}
    for _ in range(steps):
        collect(batch.step(), events)
        if not len(batch):
            break
    assert not len(batch)
    return events


def collect(new: Iterable[GenerationEvent], events: dict[object, list[GenerationEvent]]) -> None:
    for event in new:
        events.setdefault(event.key, []).append(event)


def run_all(own, requests: Sequence[GenerationRequest]) -> list[list[GenerationEvent]]:
    """The events of each of several requests that are there from the beginning."""
    batch = GenerationBatch(own, **BIG)
    for key, request in enumerate(requests):
        batch.add(key, request)
    events = run(batch)
    return [events[key] for key in range(len(requests))]


def check(request: GenerationRequest, events: Sequence[GenerationEvent]) -> None:
    """A row's events are those of the text that `predict` returns."""
    last = events[-1]
    assert last.error is None
    expected = predict(request)
    assert (last.prediction, last.prediction.token_ids) == (expected, expected.token_ids)
    assert "".join(event.text for event in events) == expected.label
    assert tuple(t for event in events for t in event.token_ids) == expected.token_ids
    assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    is_full = len(expected.token_ids) == request.decoding.max_new_tokens
    assert last.finish_reason == ("length" if is_full else "stop")


@for_each("writer")
def test_rows_that_join_at_every_step(backbone, maker, writer):
    own = backbone(writer)
    shapes = list_shapes(own)
    batch = GenerationBatch(own, **BIG)
    assert batch.separate_reason is None
    requests, events = {}, {}
    for number in range(2 * len(shapes)):
        text, shape = TEXTS[number % len(TEXTS)], shapes[number % len(shapes)]
        requests[number] = make_request(own, maker(writer, number % 4), text, shape)
        batch.add(number, requests[number])
        collect(batch.step(), events)
    for key, more in run(batch).items():
        events.setdefault(key, []).extend(more)
    for number, request in requests.items():
        check(request, events[number])


ROW = st.fixed_dictionaries(
    {
        "text": st.sampled_from(TEXTS),
        "shape": st.integers(0, 5),
        "seed": st.integers(0, 3),
        "pause": st.integers(0, 3),
        "max_new_tokens": st.integers(1, 9),
        "do_sample": st.booleans(),
        "lives": st.one_of(st.none(), st.integers(0, 4)),
    }
)


@pytest.mark.parametrize("writer", ["llama", "gemma3", "bloom", "gpt2", "t5", "bart"])
@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # they are made of the family
)
@given(rows=st.lists(ROW, min_size=1, max_size=9), max_rows=st.integers(1, 5))
def test_any_mix_of_rows_that_join_and_are_removed(backbone, maker, writer, rows, max_rows):
    own = backbone(writer)
    shapes = list_shapes(own)
    batch = GenerationBatch(own, max_rows=max_rows, max_tokens=64 * max_rows)
    requests, events, lives = {}, {}, {}

    def step() -> None:
        collect(batch.step(), events)
        assert batch.num_running <= max_rows
        for key in [key for key, left in lives.items() if left == 0]:
            batch.remove(key)
            del lives[key], requests[key]
        for key in lives:
            lives[key] -= 1

    for key, row in enumerate(rows):
        shape = shapes[row["shape"] % len(shapes)]
        changes = {"max_new_tokens": row["max_new_tokens"], "do_sample": row["do_sample"]}
        make = maker(writer, row["seed"])
        requests[key] = make_request(
            own, make, row["text"], shape, **changes, temperature=2.0, seed=row["seed"]
        )
        batch.add(key, requests[key])
        if row["lives"] is not None:
            lives[key] = row["lives"]
        for _ in range(row["pause"]):
            step()
    while len(batch):
        step()
    for key, request in requests.items():
        check(request, events[key])


@pytest.mark.parametrize("writer", ["llama", "t5"])
def test_a_removed_row_has_no_more_events(backbone, maker, writer):
    own = backbone(writer)
    requests = [make_request(own, maker(writer), text, "kv") for text in TEXTS[:3]]
    batch = GenerationBatch(own, max_rows=2, max_tokens=512)
    for key, request in enumerate(requests):
        batch.add(key, request)
    assert {event.key for event in batch.step()} == {0, 1}
    batch.remove(0)
    batch.remove("never added")
    assert len(batch) == 2
    events = run(batch)
    assert set(events) == {1, 2}
    check(requests[2], events[2])


@pytest.mark.parametrize("writer", ["llama", "mistral", "bart"])
def test_a_step_is_one_pass_and_rows_of_one_length_join_in_one(
    backbone, maker, writer, monkeypatch
):
    own, widths = backbone(writer), []
    requests = [make_request(own, maker(writer), TEXTS[0], shape) for shape in ("kv", "none")]
    batch = GenerationBatch(own, **BIG)
    decoder = own.model.get_decoder() if writer == "bart" else own.model
    forward = decoder.forward

    def count(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", count)
    for key, request in enumerate(requests):
        batch.add(key, request)
    batch.step()
    assert [batch for batch, _ in widths] == [2]
    widths.clear()
    batch.step()
    assert widths == [(2, 1)]


@pytest.mark.parametrize("writer", ["gpt2", "t5"])
def test_the_text_ends_before_a_stop_string(backbone, maker, writer):
    """The oracle is the text without stop strings, cut; borders of tokens do not matter."""
    own = backbone(writer)
    texts = [" the film was wonderful and great", " a terribly boring movie it was"]
    allowed = [tuple(own.tokenizer.encode(t, add_special_tokens=False)) for t in texts]
    free = make_request(
        own, maker(writer), TEXTS[1], "kv", max_new_tokens=40, allowed_answers=allowed
    )
    whole = predict(free)
    spelt = " " + whole.label
    assert spelt in texts
    for begin in range(len(spelt) - 3):
        stop = ("never there", spelt[begin : begin + 3])
        (events,) = run_all(own, [replace(free, stop=stop)])
        last, expected = events[-1], spelt.split(stop[1])[0].strip()
        assert (last.finish_reason, last.prediction.label) == ("stop", expected)
        assert "".join(event.text for event in events) == expected
        known = last.prediction.token_ids
        assert known == whole.token_ids[: len(known)]
        assert stop[1] in own.tokenizer.decode(list(known))
        assert stop[1] not in own.tokenizer.decode(list(known[:-1]))


@for_each("writer")
def test_held_choices_among_other_rows(backbone, maker, writer):
    own = backbone(writer)
    free = make_request(own, maker(writer), TEXTS[1], "none")
    held = [
        make_request(own, maker(writer, seed), text, "kv", choices=LABELS)
        for seed, text in enumerate(TEXTS[:4])
    ]
    all_events = run_all(own, [free, *held])
    check(free, all_events[0])
    for request, events in zip(held, all_events[1:], strict=True):
        check(request, events)
        assert events[-1].prediction.label in LABELS
        assert not any(event.text for event in events[:-1])


@pytest.mark.parametrize("writer", ["llama", "t5"])
def test_a_sample_follows_its_seed_and_not_its_mates(backbone, maker, writer):
    own = backbone(writer)
    options = {"do_sample": True, "temperature": 3.0, "top_k": 50, "top_p": 0.9}
    requests = [
        make_request(own, maker(writer), TEXTS[0], "kv", seed=seed, **options) for seed in range(6)
    ]
    together = run_all(own, requests)
    alone = [run_all(own, [request])[0] for request in requests]
    for request, events, single in zip(requests, together, alone, strict=True):
        check(request, events)
        assert events[-1].prediction.token_ids == single[-1].prediction.token_ids
    assert len({events[-1].prediction.token_ids for events in together}) > 1
    unseeded = replace(requests[3], seed=None, decoding=requests[3].seeded_decoding)
    assert predict(unseeded) == predict(requests[3])


def test_what_is_baked_does_not_decide_the_sample(backbone, maker):
    own = backbone("llama")
    prompt = maker("llama").prompt("input", 3)
    settings = Generate(template="{soft:3}{text} is", max_new_tokens=NEW)
    task = build_task(settings, own, template=settings.template)
    example = task.make_example({"text": TEXTS[0]}, target=False)
    (baked,) = bake_prompts(own, [prompt], heads=[find_head(task)])
    options = {"do_sample": True, "temperature": 3.0}
    for seed in range(4):
        decoding = replace(task.decoding, seed=seed, **options)
        whole = GenerationRequest(task, example, prompt, decoding)
        short = GenerationRequest(
            task, baked.cut(example), baked.prefix, decoding, whole_ids=whole.ids
        )
        texts = [run_all(own, [request])[0][-1].prediction.token_ids for request in (whole, short)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("writer", ["llama", "bart"])
def test_beams_run_whole_within_a_step(backbone, maker, writer):
    own = backbone(writer)
    beams = [
        make_request(own, maker(writer, seed), TEXTS[seed], shape, num_beams=3)
        for seed, shape in enumerate(("kv", "input", "none"))
    ]
    greedy = [make_request(own, maker(writer), text, "kv") for text in TEXTS[:3]]
    batch = GenerationBatch(own, max_rows=8, max_tokens=1024)
    events = {}
    for key, request in enumerate([greedy[0], *beams, *greedy[1:]]):
        batch.add(key, request)
    collect(batch.step(), events)
    assert [len(events.get(key, ())) for key in range(6)] == [1, 1, 1, 0, 0, 0]
    for key, more in run(batch).items():
        events.setdefault(key, []).extend(more)
    for key, request in enumerate([greedy[0], *beams, *greedy[1:]]):
        check(request, events[key])


@pytest.fixture(scope="module")
def mamba(drawn, tokenizer):
    """A backbone that hands on more than keys and values."""
    config = tf.MambaConfig(
        vocab_size=366, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=2
    )
    model = drawn(tf.AutoModelForCausalLM, config).eval()
    kind = "causal"
    return measure_limits(wrap_model("mamba", model, tokenizer=tokenizer(kind), kind=kind))


def test_rows_of_a_family_without_plain_keys_and_values_run_whole(mamba):
    batch = GenerationBatch(mamba, **BIG)
    assert batch.separate_reason is not None
    settings = Generate(template="{text} is{soft:2}", max_new_tokens=NEW)
    task = build_task(settings, mamba, template=settings.template, labels=())
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    requests = [
        GenerationRequest(
            task, task.make_example({"text": text}, target=False), prompt, task.decoding
        )
        for text, prompt in zip(
            TEXTS, [InputPrompt(vectors * n) for n in range(1, 5)], strict=False
        )
    ]
    for request, events in zip(requests, run_all(mamba, requests), strict=True):
        assert len(events) == 1
        check(request, events)


@pytest.mark.parametrize("writer", ["llama", "t5"])
def test_a_row_that_is_not_a_number_ends_alone(backbone, maker, writer):
    own = backbone(writer)
    requests = [make_request(own, maker(writer), text, "input") for text in TEXTS[:4]]
    vectors = torch.full_like(requests[1].prompt.vectors, torch.nan)
    requests[1] = replace(requests[1], prompt=InputPrompt(vectors))
    for number, events in enumerate(run_all(own, requests)):
        if number == 1:
            (event,) = events
            assert (event.finish_reason, event.prediction) == ("error", None)
            assert isinstance(event.error, PromptError)
        else:
            check(requests[number], events)


@pytest.mark.parametrize("when", ["joins", "runs"])
@pytest.mark.parametrize("writer", ["gemma3", "bart"])
def test_a_row_that_raises_ends_alone(backbone, maker, writer, when, monkeypatch):
    own = backbone(writer)
    requests = [make_request(own, maker(writer), text, "kv") for text in TEXTS[:4]]
    name = {"joins": "join", "runs": "advance"}[when]
    original = getattr(RunningRows, name)

    def fail(self, given):
        rows = given if when == "joins" else self._rows
        if any(row.ids == requests[2].ids for row in rows) and (when == "joins" or passes()):
            msg = "out of order"
            raise RuntimeError(msg)
        return original(self, given)

    taken = iter(range(100))

    def passes() -> bool:
        return next(taken) > 1

    monkeypatch.setattr(RunningRows, name, fail)
    for number, events in enumerate(run_all(own, requests)):
        if number == 2:
            assert (events[-1].finish_reason, str(events[-1].error)) == ("error", "out of order")
            assert len(events) == (1 if when == "joins" else 4)
        else:
            check(requests[number], events)


def test_a_pass_that_stops_half_way_is_repeated_without_the_row(backbone, maker, monkeypatch):
    """The first layer has appended its column when the second raises."""
    own = backbone("llama")
    requests = [make_request(own, maker("llama"), text, "kv") for text in TEXTS[:4]]
    layer = own.model.model.layers[1]
    forward, batch, failures = layer.forward, GenerationBatch(own, **BIG), []

    def fail(states, *args, **kwargs):
        if len(states) == 4 and states.shape[1] == 1 and not failures:
            failures.append(states)
            msg = "out of memory"
            raise RuntimeError(msg)
        return forward(states, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", fail)
    for key, request in enumerate(requests):
        batch.add(key, request)
    events = run(batch)
    errors = [key for key, of_row in events.items() if of_row[-1].error is not None]
    assert len(failures) == len(errors) == 1
    for key, request in enumerate(requests):
        if key not in errors:
            check(request, events[key])


def test_rows_wait_for_rows_and_for_tokens(backbone, maker):
    own = backbone("llama")
    requests = [make_request(own, maker("llama"), TEXTS[0], "none") for _ in range(7)]
    width = len(requests[0].ids) + NEW - 1
    for limits, most in (
        ({"max_rows": 3, "max_tokens": 4096}, 3),
        ({"max_rows": 8, "max_tokens": 2 * width + 1}, 2),
    ):
        batch, ended = GenerationBatch(own, **limits), []
        for key, request in enumerate(requests):
            batch.add(key, request)
        while len(batch):
            events = batch.step()
            assert batch.num_running <= most
            ended += [event.key for event in events if event.finish_reason]
        assert ended == sorted(ended)


def test_what_can_never_fit_is_refused(backbone, maker):
    own = backbone("gpt2")
    batch = GenerationBatch(own, max_rows=2, max_tokens=20)
    request = make_request(own, maker("gpt2"), TEXTS[2], "kv")
    count, length = len(request.ids), request.prompt.length
    width = count + length + NEW - 1

    def refuse(changed: GenerationRequest) -> str:
        with pytest.raises(DataError) as caught:
            batch.add("row", changed)
        assert not len(batch)
        return str(caught.value)

    assert refuse(request) == (
        f"a row of {count} tokens with its prompt and max_new_tokens = {NEW} can take {width} "
        "tokens, but a batch has room for 20 (max_tokens). Shorten the text, lower "
        "max_new_tokens, or raise max_tokens."
    )
    assert refuse(replace(request, decoding=replace(request.decoding, num_beams=3))) == (
        "num_beams = 3 needs 3 rows, but a batch has 2 (max_rows). Use fewer beams, or raise "
        "max_rows."
    )
    assert refuse(replace(request, decoding=replace(request.decoding, max_new_tokens=60))) == (
        f"a row of {count} tokens, 0 positions of its prompt and max_new_tokens = 60 need "
        f"{count + 59} positions, but gpt2 has 64. Shorten the text or lower max_new_tokens."
    )
    assert refuse(replace(request, stop=("a", ""))) == (
        "a stop string is empty, so no text could come before it. Leave it out."
    )
    assert refuse(replace(request, stop="ab")) == (
        "stop = 'ab' is one string. Give a tuple: stop=('ab',)."
    )
    other = make_request(backbone("llama"), maker("llama"), "a", "none")
    assert refuse(other) == (
        "the request's task is on another copy of a backbone ('llama') than the batch ('gpt2'). "
        "Build the task on the batch's backbone."
    )


def test_a_key_names_one_row(backbone, maker):
    own = backbone("llama")
    batch = GenerationBatch(own, **BIG)
    request = make_request(own, maker("llama"), TEXTS[0], "none")
    batch.add("a", request)
    with pytest.raises(DataError) as caught:
        batch.add("a", request)
    message = "there is a row with the key 'a' already. Give each row a key of its own."
    assert str(caught.value) == message
    run(batch)
    batch.add("a", request)
    assert len(batch) == 1


def test_a_prompt_that_does_not_fit_is_refused(backbone, maker):
    own = backbone("llama")
    batch = GenerationBatch(own, **BIG)
    request = make_request(own, maker("llama"), TEXTS[0], "input")
    with pytest.raises(PromptError, match="its prompt has 1 soft tokens"):
        batch.add("a", replace(request, prompt=maker("llama").input_prompt(1)))
    window = backbone("mistral")
    late = make_request(window, maker("mistral"), TEXTS[0], "late")
    with pytest.raises(PromptError, match="has a sliding window of 8"):
        GenerationBatch(window, **BIG).add("a", late)


@pytest.mark.parametrize(
    ("name", "other"), [("max_rows", "max_tokens"), ("max_tokens", "max_rows")]
)
def test_limits_are_positive(backbone, name, other):
    with pytest.raises(DataError) as caught:
        GenerationBatch(backbone("llama"), **{name: 0, other: 1})
    assert str(caught.value) == f"a batch with {name} = 0 is not possible. Give at least 1."
