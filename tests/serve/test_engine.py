"""The engine: answers equal `predict`; bad rows, cancelled and late requests harm no others."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.rendering import RenderedRow
from softprompt.inference.generated_row import GenerationRequest
from softprompt.inference.mixed import PromptedRow, predict_mixed
from softprompt.serve.admission import EngineLimits
from softprompt.serve.batches import divide_by_length
from softprompt.serve.fair_queue import FairQueue
from softprompt.serve.faults import ServingError
from softprompt.tasks import Example, Prediction
from support.models import ROWS

TEXTS = [row["text"] for row in ROWS]
CLASSIFIERS = ("mood", "tone", "rating")


def make_rows(model, texts: Sequence[str] = TEXTS) -> list[PromptedRow]:
    return [PromptedRow(model.task, model.render(text), model.prompt) for text in texts]


def make_request(model, text: str, **options) -> GenerationRequest:
    task = model.task
    return GenerationRequest(task, model.render(text), model.prompt, task.decoding, **options)


def assert_equal(found, expected: Sequence[Prediction]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert isinstance(one, Prediction), one
        assert one.label == two.label
        assert dict(one.probabilities) == pytest.approx(dict(two.probabilities), abs=2e-6)


class Gate:
    """A `predict` that waits until it is opened, and records its batches."""

    def __init__(self, predict: Callable = predict_mixed) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[PromptedRow]] = []
        self._predict = predict

    def __call__(self, rows: Sequence[PromptedRow]) -> list[Prediction]:
        self.entered.set()
        assert self.opened.wait(30)
        self.batches.append(list(rows))
        return self._predict(rows)


def test_answers_are_those_of_predict(models, start) -> None:
    engine = start(limits=EngineLimits(batch_rows=5, batch_tokens=120))
    tickets = {name: engine.submit(name, make_rows(models[name])) for name in CLASSIFIERS}
    texts = {
        (name, text): engine.submit_text(
            name, make_request(models[name], text), on_event=lambda _event: None
        )
        for name in ("reply", "pick")
        for text in TEXTS[:3]
    }
    for name, ticket in tickets.items():
        assert_equal(ticket.future.result(30), models[name].predict(TEXTS))
    for (name, text), ticket in texts.items():
        assert_equal(ticket.future.result(30), models[name].predict(text))


def test_a_batch_holds_rows_of_several_prompts_within_its_budget(models, start) -> None:
    gate = Gate()
    engine = start(limits=EngineLimits(batch_rows=8, batch_tokens=10_000), predict=gate)
    engine.submit("mood", make_rows(models["mood"], TEXTS[:1]))
    assert gate.entered.wait(30)
    tickets = [engine.submit(name, make_rows(models[name])) for name in CLASSIFIERS]
    gate.opened.set()
    for ticket in tickets:
        ticket.future.result(30)
    first, second, *_ = gate.batches
    assert len(first) == 1
    assert {id(row.task) for row in second} == {id(models[name].task) for name in CLASSIFIERS}
    assert max(map(len, gate.batches)) <= 8


def test_a_row_that_raises_fails_alone(models, start) -> None:
    def predict(rows: Sequence[PromptedRow]) -> list[Prediction]:
        if any(row.task is models["tone"].task for row in rows):
            msg = "broken prompt"
            raise ValueError(msg)
        return predict_mixed(rows)

    gate = Gate(predict)
    engine = start(predict=gate)
    good, bad, other = (engine.submit(n, make_rows(models[n])) for n in CLASSIFIERS)
    gate.opened.set()
    assert_equal(good.future.result(30), models["mood"].predict(TEXTS))
    assert_equal(other.future.result(30), models["rating"].predict(TEXTS))
    for outcome in bad.future.result(30):
        assert isinstance(outcome, ServingError)
        assert (outcome.kind, "broken prompt" in str(outcome)) == ("failed", True)
    assert engine.counts.failed == len(TEXTS)


def test_too_little_memory_halves_the_batch(models, start) -> None:
    def predict(rows: Sequence[PromptedRow]) -> list[Prediction]:
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return predict_mixed(rows)

    engine = start(predict=predict)
    ticket = engine.submit("mood", make_rows(models["mood"]))
    assert_equal(ticket.future.result(30), models["mood"].predict(TEXTS))


def test_scores_that_are_not_numbers_fail_their_row_only(models, start) -> None:
    def predict(rows: Sequence[PromptedRow]) -> list[Prediction]:
        first, *others = predict_mixed(rows)
        return [Prediction(first.label, dict.fromkeys(first.probabilities, float("nan"))), *others]

    engine = start(predict=predict, pass_tokens=1000)  # all rows in one batch
    outcomes = engine.submit("mood", make_rows(models["mood"])).future.result(30)
    assert sum(isinstance(one, ServingError) for one in outcomes) == 1


def test_a_cancelled_or_late_request_is_not_run(models, start) -> None:
    gate = Gate()
    now = [100.0]
    engine = start(predict=gate, clock=lambda: now[0], pass_tokens=1000)
    first = engine.submit("mood", make_rows(models["mood"], TEXTS[:1]))
    assert gate.entered.wait(30)
    cancelled = engine.submit("mood", make_rows(models["mood"]))
    late = engine.submit("tone", make_rows(models["tone"]), deadline=101.0)
    kept = engine.submit("rating", make_rows(models["rating"]), deadline=200.0)
    cancelled.cancel()
    now[0] = 102.0
    gate.opened.set()
    assert_equal(first.future.result(30), models["mood"].predict(TEXTS[:1]))
    assert_equal(kept.future.result(30), models["rating"].predict(TEXTS))
    assert {one.kind for one in late.future.result(30)} == {"expired"}
    assert len(cancelled.future.result(30)) == len(TEXTS)
    assert [len(batch) for batch in gate.batches] == [1, len(TEXTS)]


def test_what_is_cancelled_between_two_batches_is_not_run(models, start) -> None:
    gate = Gate()
    engine = start(predict=gate, pass_tokens=0)  # a batch for each length
    tickets = [engine.submit("mood", make_rows(models["mood"], [text])) for text in TEXTS]
    assert gate.entered.wait(30)
    for ticket in tickets:
        ticket.cancel()
    gate.opened.set()
    outcomes = [ticket.future.result(30)[0] for ticket in tickets]
    assert sum(isinstance(one, Prediction) for one in outcomes) == sum(map(len, gate.batches))
    assert len(gate.batches) == 1


def make_row(model, length: int) -> PromptedRow:
    """A row of so many tokens, for a `predict` that does not look at them."""
    rendered = RenderedRow((5,) * length, (0,) * length, (), truncated=False)
    return PromptedRow(model.task, Example((rendered,), ((0,),), None), None)


def run_queue(model, start, lengths: Sequence[int], **options) -> list[list[PromptedRow]]:
    """The batches in which rows are run that all wait when the first begins."""
    gate = Gate(lambda rows: [Prediction("bad", {"bad": 1.0})] * len(rows))
    engine = start(predict=gate, **options)
    engine.submit("mood", [make_row(model, 1)])
    assert gate.entered.wait(30)
    tickets = [engine.submit("mood", [make_row(model, length)]) for length in lengths]
    gate.opened.set()
    for ticket in tickets:
        ticket.future.result(30)
    return gate.batches[1:]


@pytest.mark.parametrize("rows", [64, 100, 128, 500])
def test_passes_are_full_while_a_queue_of_like_rows_stands(models, start, rows: int) -> None:
    batches = run_queue(models["mood"], start, [30] * rows)
    assert len(batches) == -(-rows // EngineLimits().batch_rows)


def test_rows_of_like_length_share_a_pass_wherever_they_wait(models, start) -> None:
    """Where passes cost nothing, only rows of the same length are worth a common pass."""
    lengths = [10, 40, 20] * 8
    batches = run_queue(models["mood"], start, lengths, pass_tokens=1)
    assert [{row.width for row in batch} for batch in batches] == [{10}, {40}, {20}]


@pytest.mark.parametrize("batch_rows", [4, 16, 64])
def test_a_standing_queue_is_run_in_passes_of_many_rows_and_little_padding(
    models, start, batch_rows: int
) -> None:
    """Against rows that are taken in turn and padded to the longest, and against single rows."""
    lengths = [random.Random(n).randint(10, 60) for n in range(400)]  # noqa: S311
    batches = run_queue(
        models["mood"], start, lengths, limits=EngineLimits(batch_rows=batch_rows), pass_tokens=64
    )
    assert max(map(len, batches)) <= batch_rows
    assert len(batches) <= 1.5 * len(lengths) / min(batch_rows, 20)
    padded = sum(len(batch) * max(row.width for row in batch) for batch in batches)
    starts = range(0, len(lengths), batch_rows)
    turns = [lengths[at : at + batch_rows] for at in starts]
    in_turn = sum(64 + len(turn) * max(turn) for turn in turns)
    alone = 64 * len(lengths) + sum(lengths)
    assert 64 * len(batches) + padded < min(in_turn, alone)


def test_no_row_waits_for_rows_that_fit_better(models, start) -> None:
    """Every pass has the row that has waited longest, so that a row of a rare length is run."""
    lengths = [random.Random(n).randint(1, 60) for n in range(300)]  # noqa: S311
    lengths[100] = 2000
    batches = run_queue(models["mood"], start, lengths, limits=EngineLimits(batch_rows=8))
    place = next(n for n, batch in enumerate(batches) if any(row.width == 2000 for row in batch))
    # Those before it, and at most those that a batch is chosen among.
    assert sum(map(len, batches[:place])) <= 100 + 2 * 8


def test_a_long_queue_of_one_prompt_does_not_delay_another(models, start) -> None:
    """A row of another prompt waits for the rows that batches are chosen among, not for all."""
    model, order = models["mood"], list[Sequence[PromptedRow]]()
    quiet = make_row(model, 50)

    def predict(rows: Sequence[PromptedRow]) -> list[Prediction]:
        order.append(rows)
        if len(order) == 5:
            engine.submit("quiet", [quiet])
        return [Prediction("bad", {"bad": 1.0})] * len(rows)

    gate = Gate(predict)
    engine = start(predict=gate, limits=EngineLimits(batch_rows=8))
    engine.submit("loud", [make_row(model, 1)])
    assert gate.entered.wait(30)
    loud = engine.submit("loud", [make_row(model, 10 + n % 40) for n in range(800)])
    gate.opened.set()
    loud.future.result(30)
    place = next(n for n, batch in enumerate(order) if any(row is quiet for row in batch))
    assert sum(map(len, order[5:place])) <= 2 * 8


def test_a_row_that_comes_while_a_pass_runs_joins_the_next_of_its_length(models, start) -> None:
    model, sizes = models["mood"], list[list[int]]()

    def predict(rows: Sequence[PromptedRow]) -> list[Prediction]:
        sizes.append([row.width for row in rows])
        if len(sizes) == 2:  # the short rows run; a long one comes
            late.append(engine.submit("tone", [make_row(model, 50)]))
        return [Prediction("bad", {"bad": 1.0})] * len(rows)

    gate, late = Gate(predict), []
    engine = start(predict=gate, pass_tokens=8)
    engine.submit("mood", [make_row(model, 1)])
    assert gate.entered.wait(30)
    rows = [make_row(model, length) for length in (10, 50, 10, 50, 10)]
    ticket = engine.submit("mood", rows)
    gate.opened.set()
    ticket.future.result(30)
    late[0].future.result(30)
    assert sizes == [[1], [10, 10, 10], [50, 50, 50]]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=1, max_size=9),
    st.integers(0, 100),
    st.integers(1, 400),
    st.integers(1, 9),
)
def test_the_division_into_batches_is_the_cheapest(
    rows, pass_tokens: int, most: int, most_rows: int
) -> None:
    """Compared with all divisions of the rows in the order of their lengths."""
    lengths, counts = zip(*rows, strict=True)
    found = divide_by_length(
        lengths, counts=counts, max_rows=most_rows, max_tokens=most, pass_tokens=pass_tokens
    )
    assert sorted(index for batch in found for index in batch) == [*range(len(rows))]

    def cost(batches: Sequence[Sequence[int]]) -> float:
        total = 0.0
        for batch in batches:
            tokens = max(lengths[i] for i in batch) * sum(counts[i] for i in batch)
            fits = len(batch) == 1 or (tokens <= most and len(batch) <= most_rows)
            total += pass_tokens + tokens if fits else float("inf")
        return total

    order = sorted(range(len(rows)), key=lengths.__getitem__)
    inner = range(1, len(rows))
    divisions = (cuts for n in range(len(rows)) for cuts in combinations(inner, n))
    best = min(cost([order[a:b] for a, b in pairwise([0, *cuts, len(rows)])]) for cuts in divisions)
    assert cost(found) == best


def test_maintenance_is_done_between_batches_and_its_faults_stop_no_one(models, start) -> None:
    done = threading.Event()

    def maintain() -> None:
        done.set()
        msg = "broken"
        raise ValueError(msg)

    engine = start(maintain=maintain)
    engine.wake()
    assert done.wait(30)
    ticket = engine.submit("mood", make_rows(models["mood"]))
    assert_equal(ticket.future.result(30), models["mood"].predict(TEXTS))


def test_a_caller_that_has_gone_stops_no_one(models, start) -> None:
    """A future that was cancelled by its caller cannot be set; the loop lives on."""
    gate = Gate()
    engine = start(predict=gate)
    gone = engine.submit("mood", make_rows(models["mood"]))
    gone.future.cancel()
    mate = engine.submit("tone", make_rows(models["tone"]))
    gate.opened.set()
    assert_equal(mate.future.result(30), models["tone"].predict(TEXTS))


def test_generation_streams_and_can_be_cancelled(models, start) -> None:
    engine = start()
    pieces: list[str] = []
    model = models["reply"]
    ticket = engine.submit_text(
        "reply", make_request(model, TEXTS[0]), on_event=lambda event: pieces.append(event.text)
    )
    [prediction] = ticket.future.result(30)
    assert "".join(pieces) == prediction.label == model.predict(TEXTS[0])[0].label

    def raise_error(_event: object) -> None:
        raise RuntimeError

    gone = engine.submit_text("reply", make_request(model, TEXTS[1]), on_event=raise_error)
    mate = engine.submit_text("reply", make_request(model, TEXTS[2]), on_event=lambda _e: None)
    assert_equal(mate.future.result(30), model.predict(TEXTS[2]))
    [outcome] = gone.future.result(30)
    assert isinstance(outcome, ServingError | Prediction)


def test_a_step_of_generation_that_fails_is_not_the_end(models, backbone) -> None:
    from softprompt.inference.continuous import GenerationBatch
    from softprompt.serve.engine import ServingEngine

    made = []

    class Fragile(GenerationBatch):
        def step(self):
            if len(made) == 1:
                msg = "lost"
                raise RuntimeError(msg)
            return super().step()

    def make() -> GenerationBatch:
        made.append(1)
        return Fragile(backbone("llama"), max_rows=8, max_tokens=4096)

    engine = ServingEngine(make)
    engine.start()
    model = models["reply"]
    request = make_request(model, TEXTS[0])
    [first] = engine.submit_text("reply", request, on_event=lambda _e: None).future.result(30)
    assert isinstance(first, ServingError)
    again = engine.submit_text("reply", request, on_event=lambda _e: None)
    assert_equal(again.future.result(30), model.predict(TEXTS[0]))
    engine.stop(timeout=30)


def test_admission_is_bounded_in_all_and_for_each_prompt(models, start) -> None:
    gate = Gate()
    engine = start(predict=gate, limits=EngineLimits(queued_rows=20))
    rows = make_rows(models["mood"])  # 7 rows
    engine.submit("mood", rows)
    assert gate.entered.wait(30)
    for name, count, kind, fact in [
        ("mood", 7, "limited", "one prompt may take 50%"),
        ("tone", 21, "too_large", "Divide it into several"),
        ("tone", 14, "full", "7 of 20 rows"),
    ]:
        with pytest.raises(ServingError, match=fact) as error:
            engine.submit(name, (rows * 3)[:count])
        assert error.value.kind == kind
        assert (error.value.retry_after is None) == (kind == "too_large")
    last = engine.submit("tone", rows[:6])
    gate.opened.set()
    assert len(last.future.result(30)) == 6


def test_stopping_finishes_what_was_accepted(models, start) -> None:
    gate = Gate()
    engine = start(predict=gate)
    ticket = engine.submit("mood", make_rows(models["mood"]))
    assert gate.entered.wait(30)
    stopping = threading.Thread(target=lambda: engine.stop(timeout=30))
    stopping.start()
    while not engine._is_stopping:
        time.sleep(0.001)
    with pytest.raises(ServingError, match="is stopping"):
        engine.submit("tone", make_rows(models["tone"]))
    gate.opened.set()
    stopping.join()
    assert_equal(ticket.future.result(30), models["mood"].predict(TEXTS))


def test_a_stalled_step_is_noticed(models, start) -> None:
    gate = Gate()
    now = [0.0]
    engine = start(predict=gate, clock=lambda: now[0])
    assert engine.is_running
    ticket = engine.submit("mood", make_rows(models["mood"]))
    assert gate.entered.wait(30)
    now[0] = 1000.0
    assert not engine.is_running
    gate.opened.set()
    ticket.future.result(30)


def test_no_key_starves_another() -> None:
    """One key with a thousand items delays another by one item, not by a thousand."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for n in range(1000):
        queue.add("loud", ("loud", n), cost=10)
    for _ in range(500):
        queue.take()
    queue.add("quiet", ("quiet", 0), cost=10)
    queue.add("quiet", ("quiet", 1), cost=10)
    taken = [queue.take()[0] for _ in range(6)]
    assert taken.count("quiet") == 2
    assert taken.index("quiet") <= 1
    even = queue.remove(lambda item: item[1] % 2 == 0)
    left = [queue.take() for _ in range(len(queue))]
    assert {n % 2 for _, n in even} == {0}
    assert left == [("loud", n) for n in range(505, 1000, 2)]


def test_shares_are_by_cost() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.add("long", "long", cost=30)
        queue.add("short", "short", cost=10)
    taken = [queue.take() for _ in range(80)]
    assert taken.count("short") == pytest.approx(3 * taken.count("long"), abs=3)


def test_new_keys_without_end_starve_no_one() -> None:
    """A key that was served waits for those that wait with it, not for all that ever come."""
    queue: FairQueue[str] = FairQueue()
    for n in range(20):
        queue.add(f"new {n}", "new", cost=10)
    queue.add("served", "first", cost=10)
    while queue.take() != "first":
        pass
    queue.add("served", "second", cost=10)
    for n in range(100):
        queue.add(f"newer {n}", "newer", cost=10)
        if queue.take() == "second":
            break
    else:
        pytest.fail("it was never served again")


def test_served_keys_are_forgotten_in_time() -> None:
    queue: FairQueue[int] = FairQueue()
    for n in range(50_000):
        queue.add(n, n, cost=10)
        assert queue.take() == n
    assert len(queue._ends) < 10_000
