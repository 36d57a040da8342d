"""Conversations from rows to answers: what is learned, batches, stored prompts, refused data."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from softprompt import Classify, Generate, PTuningV2, TrainingConfig, fit
from softprompt.analysis import explain_prediction
from softprompt.errors import ArtifactError, DataError, PromptError, TemplateError
from softprompt.hub.model_card import make_model_card
from softprompt.inference import PromptModel
from softprompt.inference.mixed import find_head
from softprompt.interop import export_prompt
from softprompt.prompt import InputPrompt
from softprompt.recipe import make_recipe
from softprompt.tasks import LengthBudget, base, build_task
from softprompt.train import run_recipe, setup_run
from softprompt.train.datasets import list_row_warnings, render_table
from softprompt.train.packing import pack_examples, unpack_examples
from softprompt.train.validation import check_recipe
from support.chats import (
    CONVERSATIONS,
    GIVEN,
    LONG,
    SHORT,
    TEMPLATES,
    WITH_DEFAULT,
    WITHOUT_DEFAULT,
    make_chat_backbone,
    say,
)
from support.recipes import check_resumed, make_recipe_data
from support.reviews import write_rows
from support.tiny_models import END, MASK

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
WORDS = "<mask><mask>"
PLACES = {
    "system": "{soft:2}{messages:system}{messages}",
    "user": "{messages}{soft:2}{messages:user}",
    "answer": "{messages}{soft:2}",
}
ROWS = [{"messages": messages} for messages in CONVERSATIONS]


@pytest.fixture(scope="module")
def own():
    return make_chat_backbone()


def make_task(own, text, **more):
    settings = Generate(text, messages_column="messages", **{"max_new_tokens": 8} | more)
    return build_task(settings, own, template=text)


def use_words(own):
    """A prompt whose soft tokens are a special token, as a word of the chat template."""
    return InputPrompt(own.embed(torch.tensor([MASK, MASK])))


def put_words(messages, place):
    """The conversation with the words of the soft tokens in their place."""
    words, last = [*messages], len(messages) - 2
    match place:
        case "system":
            given = messages[0]["role"] == "system"
            text = WORDS + (messages[0]["content"] if given else "")
            return [{"role": "system", "content": text}, *messages[given:]]
        case "user":
            words[last] = {"role": "user", "content": WORDS + messages[last]["content"]}
    return words


def list_learned(own, messages, *, all_turns, place):
    """Rows of ids, and of each the marks of the tokens that are learned: transformers' own."""
    found = []
    ends = [n for n, m in enumerate(messages, 1) if m["role"] == "assistant"]
    for end in ends if all_turns else ends[-1:]:
        said = put_words(messages[:end], place)
        whole = own.tokenizer.apply_chat_template(
            said, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, marks = whole["input_ids"], whole["assistant_masks"]
        begin = len(
            own.tokenizer.apply_chat_template(said[:-1], add_generation_prompt=True)["input_ids"]
        )
        marks = [mark if at >= begin else 0 for at, mark in enumerate(marks)]
        if place == "answer":
            ids = [*ids[:begin], MASK, MASK, *ids[begin:]]
            marks = [*marks[:begin], 0, 0, *marks[begin:]]
        found.append((ids, marks))
    return found


@torch.no_grad()
def compute_plain_loss(plain, pairs):
    """The summed cross-entropy of the marked tokens, and their number, without softprompt."""
    total, count = torch.zeros(()), 0
    for ids, marks in pairs:
        said = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
        chosen = [at for at, mark in enumerate(marks) if mark]
        total -= said[[at - 1 for at in chosen], [ids[at] for at in chosen]].sum()
        count += len(chosen)
    return total, count


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("train_on", ["last", "all"])
@pytest.mark.parametrize("is_split", [True, False], ids=["split", "whole"])
def test_the_loss_is_that_of_the_assistants_tokens(own, monkeypatch, place, train_on, is_split):
    """All rows together, with the tokens that they share run once, and without that."""
    if not is_split:
        monkeypatch.setattr(base, "plan_split", lambda *_args, **_more: None)
    task = make_task(own, PLACES[place], train_on=train_on)
    pairs = [
        pair
        for messages in CONVERSATIONS
        for pair in list_learned(own, messages, all_turns=train_on == "all", place=place)
    ]
    plain = own.model
    total, count = compute_plain_loss(plain, pairs)
    loss = task.compute_loss([task.make_example(row) for row in ROWS], [use_words(own)])
    assert loss.count == count
    assert_close(loss.total, total, **CLOSE)


def make_examples(own, text):
    return [make_task(own, text, train_on="all").make_example(row) for row in ROWS]


def test_turns_of_one_row_are_run_in_one_row_where_that_is_the_same(own) -> None:
    """Before the last user turn, and behind everything, soft tokens are elsewhere for each turn."""
    count = {
        place: [len(example.variants) for example in make_examples(own, text)]
        for place, text in PLACES.items()
    }
    assert count == {"system": [1, 1, 1], "user": [1, 3, 2], "answer": [1, 3, 2]}


@pytest.mark.parametrize("place", PLACES)
def test_rows_lose_and_answer_in_a_batch_as_alone(own, place) -> None:
    task, prompt = make_task(own, PLACES[place], train_on="all"), use_words(own)
    examples = [task.make_example(row) for row in ROWS]
    whole = task.compute_loss(examples, [prompt])
    parts = [task.compute_loss([example], [prompt]) for example in examples]
    assert whole.count == sum(part.count for part in parts)
    assert_close(whole.total, sum(part.total for part in parts), **CLOSE)
    together = task.predict(examples, [prompt])
    for example, found in zip(examples, together, strict=True):
        (alone,) = task.predict([example], [prompt])
        assert alone.token_ids == found.token_ids


@pytest.mark.parametrize("name", ["with default", "pairs"])
@pytest.mark.parametrize("cache", ["dynamic", "none"])
def test_answers_are_those_of_the_chat_template(monkeypatch, name, cache) -> None:
    """Transformers' own greedy search over the words; with a cache, or the whole each time."""
    own = make_chat_backbone(TEMPLATES[name])
    task = make_task(own, PLACES["system"])
    monkeypatch.setattr(task, "_decoding", replace(task.decoding, cache=cache))
    found = task.predict([task.make_example(row) for row in ROWS], [use_words(own)])
    for messages, prediction in zip(CONVERSATIONS, found, strict=True):
        ids = own.tokenizer.apply_chat_template(
            put_words(messages, "system")[:-1], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        expected = own.model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=END)
        kept = [token for token in expected[0, ids.shape[1] :].tolist() if token != END]
        assert [*prediction.token_ids] == kept


def test_a_turn_ends_with_the_chat_templates_own_token() -> None:
    """It may be another one than the backbone's end token; both end an answer."""
    template = WITHOUT_DEFAULT.replace("</s>", "<unk>")
    own = make_chat_backbone(template)
    task = make_task(own, "{messages}{soft:2}")
    unknown = own.tokenizer.unk_token_id
    assert task.make_example(ROWS[0]).target[-1] == unknown
    assert task.decoding.stop_token_ids == (unknown,)
    bias = torch.full((own.geometry.vocab_size,), -1e4)
    bias[unknown] = 0.0
    found = task.predict([task.make_example(ROWS[0])], [use_words(own)])
    assert unknown not in found[0].token_ids


def make_rows(count):
    """Short conversations, some with a system turn and some of several turns."""
    words = ["good", "bad", "great", "fresh", "no"]
    rows = []
    for n in range(count):
        a, b = words[n % 5], words[n % 4]
        system = "the film" if n % 3 == 0 else None
        texts = (f"was it {a}?", f"it was {a}") + ((f"{b}?", f"yes {b}") if n % 2 else ())
        rows.append({"messages": say(*texts, system=system), "mood": "up" if n % 5 else "down"})
    return rows


def make_data(method="prompt-tuning", task=None, **train):
    data = make_recipe_data("llama", method, **train)
    template = PLACES["system"] if method == "prompt-tuning" else "{messages}"
    data["task"] = {
        "kind": "generate", "template": template, "messages_column": "messages",
        "train_on": "all", "max_new_tokens": 4,
    } if task is None else task  # fmt: skip
    return data


@pytest.fixture
def prepare(own):
    def make(method="prompt-tuning", *, task=None, **train):
        sizes = zip(("train", "validation", "test"), (13, 6, 5), strict=True)
        tables = {split: Dataset.from_list(make_rows(count)) for split, count in sizes}
        recipe = make_recipe(make_data(method, task, **train))
        return setup_run(recipe, backbone=own, tables=tables)

    return make


CLASSIFY = {
    "kind": "classify", "template": "{soft:2}{messages:system}{messages}{soft:1}",
    "messages_column": "messages", "label_column": "mood",
    "verbalizer": {"up": " good", "down": " bad"},
}  # fmt: skip
HEAD = {n: v for n, v in CLASSIFY.items() if n != "verbalizer"}
CASES = {
    "input": ("prompt-tuning", None),
    "prefix": ("p-tuning-v2", None),
    "words": ("prompt-tuning", CLASSIFY),
    "head": ("prompt-tuning", HEAD),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_saved_and_answers_alike(prepare, tmp_path, case) -> None:
    method, task = CASES[case]
    prepared = prepare(method, task=task)
    trained = run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    model = PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone)
    rows = make_rows(7)
    together = model.predict(rows)
    assert together == trained.predict(rows), "what is loaded is what was trained"
    for row, prediction in zip(rows, together, strict=True):
        (alone,) = model.predict([row])
        assert alone.label == prediction.label
    report = model.evaluate(rows)
    if task is None:
        answers = [row["messages"][-1]["content"] for row in rows]
        hits = sum(p.label == answer for p, answer in zip(together, answers, strict=True))
        assert report.metrics["exact_match"] == pytest.approx(hits / len(rows))
        assert model.predict([{"messages": row["messages"][:-1]} for row in rows]) == together
    else:
        hits = sum(p.label == row["mood"] for p, row in zip(together, rows, strict=True))
        assert report.metrics["accuracy"] == pytest.approx(hits / len(rows))
    assert "test" in json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.parametrize("case", ["input", "prefix"])
def test_a_resumed_run_is_the_uninterrupted_one(prepare, tmp_path, case) -> None:
    method, _ = CASES[case]
    check_resumed(lambda: prepare(method), tmp_path)


def test_training_learns_answers() -> None:
    """A random backbone can be made to say a word; the artifact says how rows are read."""
    own = make_chat_backbone(WITHOUT_DEFAULT)
    task = Generate(PLACES["answer"], messages_column="messages", max_new_tokens=6, train_on="all")
    rows = [{"messages": say(f"{word}?", "no")} for word in ("good", "bad", "it", "no")]
    short, model = (
        fit(own, task, rows, validation=0, config=TrainingConfig(epochs=epochs, learning_rate=0.3))
        for epochs in (1, 60)
    )
    assert model.evaluate(rows).metrics["loss"] < 0.5 * short.evaluate(rows).metrics["loss"]
    assert all(prediction.label.startswith("no") for prediction in model.predict(rows))
    manifest = model.artifact.manifest.task
    assert manifest["messages_column"] == "messages"
    assert manifest["train_on"] == "all"


def test_examples_survive_the_cache(prepare) -> None:
    task = make_task(make_chat_backbone(), PLACES["user"], train_on="all")
    examples = [task.make_example(row) for row in ROWS]
    assert unpack_examples(pack_examples(examples)) == examples


def test_rows_that_are_run_several_times_are_announced(own) -> None:
    table = Dataset.from_list(ROWS)
    for place, is_said in (("system", False), ("user", True)):
        task = make_task(own, PLACES[place], train_on="all")
        rows = {"train": render_table(task, table, where="the train data")}
        said = list_row_warnings(
            {"train": table}, rows, fields=task.columns, objective=task.objective
        )
        assert any("are run as" in line for line in said) is is_said, said


def test_choices_are_the_only_answers(own) -> None:
    text, names = PLACES["answer"], ("it was good", "no", "yes it was")
    settings = Generate(text, messages_column="messages", choices=names, max_new_tokens=8)
    task = build_task(settings, own, template=text, labels=names)
    found = task.predict([task.make_example(row) for row in ROWS], [use_words(own)])
    assert all(prediction.label in names for prediction in found)


def test_the_shared_beginning_is_that_of_conversations_with_and_without_a_system_turn(own) -> None:
    """What a server bakes: the tokens before all that differs between conversations."""
    head = find_head(make_task(own, PLACES["system"]))
    rows = [make_task(own, PLACES["system"]).make_example(r).variants[0].input_ids for r in ROWS]
    assert head is not None
    assert all(row[: len(head)] == head for row in rows)
    assert find_head(make_task(own, PLACES["user"])) is None
    assert find_head(make_task(own, PLACES["answer"])) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (say("a", "b", "c"), r"row 2 .* column 'messages': the last message has the role 'user'"),
        (say("a", ""), r"row 2 .*: message 1 .* is empty"),
        ([{"role": "judge", "content": "a"}], r"row 2 .*: message 0 .*: unknown role 'judge'"),
    ],
)
def test_data_faults_name_their_row(own, changed, message) -> None:
    rows = make_rows(6)
    rows[2] = rows[2] | {"messages": changed}
    task = Generate("{messages}{soft:2}", messages_column="messages")
    with pytest.raises(DataError, match=message):
        fit(own, task, rows, validation=0, progress=False)


def test_a_row_that_the_chat_template_refuses_is_named() -> None:
    own = make_chat_backbone(TEMPLATES["without system"])
    task = Generate("{messages}{soft:2}", messages_column="messages")
    rows = [{"messages": SHORT}, {"messages": GIVEN}]
    with pytest.raises(DataError, match=r"row 1 .* no system turn\. Change the messages"):
        fit(own, task, rows, validation=0, progress=False)


def test_backbones_without_a_chat_template_are_refused(backbone) -> None:
    task = Generate("{messages}{soft:2}", messages_column="messages")
    with pytest.raises(TemplateError, match=r"no chat template.*Choose one"):
        fit(backbone("llama"), task, ROWS, validation=0, progress=False)
    with pytest.raises(TemplateError, match=r"t5 is not a causal backbone.*Choose one"):
        fit(backbone("t5"), task, ROWS, validation=0, progress=False)
    mood = Classify("{messages}{soft:2}", label_column="mood", messages_column="messages")
    with pytest.raises(TemplateError, match=r"bert is not a causal backbone.*Choose one"):
        fit(backbone("bert"), mood, make_rows(6), validation=0, progress=False)


def test_an_answer_that_does_not_fit_says_what_can_be_changed(own) -> None:
    text = "{messages}{soft:2}"
    settings = Generate(text, messages_column="messages", max_new_tokens=8)
    task = build_task(settings, own, template=text, budget=LengthBudget(40))
    with pytest.raises(DataError, match=r"272 tokens, but .* Set max_target_length"):
        task.make_example({"messages": say("a", "a good film " * 90)})


def test_a_long_conversation_loses_its_oldest_turns_and_is_counted(own) -> None:
    text = PLACES["system"]
    settings = Generate(text, messages_column="messages", max_new_tokens=8)
    whole = build_task(settings, own, template=text).make_example({"messages": LONG})
    most = len(whole.variants[0].input_ids) - 1
    task = build_task(settings, own, template=text, budget=LengthBudget(most))
    example = task.make_example({"messages": LONG})
    assert example.truncated
    assert len(example.variants[0].input_ids) <= most
    shorter = task.make_example({"messages": LONG[2:]})
    assert example.variants[0].input_ids == shorter.variants[0].input_ids
    assert example.target == shorter.target


def test_check_says_what_the_chat_template_adds(saved, tmp_path) -> None:
    folder = saved("llama")
    tokenizer = make_chat_backbone(WITH_DEFAULT).tokenizer
    tokenizer.save_pretrained(folder)
    data = make_data()
    data["backbone"]["name"] = str(folder)
    data["data"]["train"] = str(write_rows(tmp_path / "train.jsonl", make_rows(6)))
    for template, words in (
        ("{messages}{soft:2}", "adds a system turn where a conversation has none: 'a good film'"),
        ("the film{messages}{soft:2}", "which is in no turn of the conversation. Write"),
    ):
        data["task"]["template"] = template
        report = check_recipe(data)
        assert not report.faults
        assert words in " ".join(report.notes)
    data["task"]["template"] = PLACES["system"]
    assert not any("system turn" in note for note in check_recipe(data).notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"chat_template_kwargs": {"a": True}},
            "task.chat_template_kwargs: means nothing without task.messages_column",
        ),
        ({"train_on": "all"}, r"task.train_on: means nothing without .*or take it out"),
        (
            {"messages_column": "messages", "target_column": "x"},
            r"task.target_column: means nothing with .* Take it out",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(own, changes, message) -> None:
    settings = Generate("{messages}{soft:2}", **changes)
    with pytest.raises(TemplateError, match=message):
        build_task(settings, own, template="{messages}{soft:2}")


def test_words_of_conversations_are_not_explained(own) -> None:
    task = Generate(PLACES["system"], messages_column="messages", max_new_tokens=4)
    config = TrainingConfig(epochs=1)
    model = fit(own, task, ROWS, validation=0, config=config, progress=False)
    with pytest.raises(PromptError, match=r"words of conversations .* Explain a prompt whose rows"):
        explain_prediction(model, ROWS[0])


@pytest.fixture(scope="module")
def trained():
    """A prompt of vectors, and one of keys and values."""
    own, found = make_chat_backbone(WITHOUT_DEFAULT), {}
    more = {"config": TrainingConfig(epochs=1), "validation": 0, "progress": False}
    methods = ("prompt-tuning", PTuningV2(length=3, shift_positions=True))
    for method, text in zip(methods, (PLACES["system"], "{messages}"), strict=True):
        task = Generate(text, messages_column="messages", max_new_tokens=4)
        found[str(method)[:3]] = fit(own, task, ROWS, method=method, **more)
    return found


def test_exports_that_would_put_soft_tokens_elsewhere_are_refused(trained, tmp_path) -> None:
    for form, message in (("peft", "Train keys and values"), ("vllm", "Serve the prompt by")):
        with pytest.raises(ArtifactError, match=message):
            export_prompt(form, trained["pro"], output=tmp_path / form)
    export_prompt("peft", trained["PTu"], output=tmp_path / "prefix")


def test_the_model_card_shows_a_conversation(trained) -> None:
    card = make_model_card(trained["pro"].artifact.manifest, repo="a/b", size=1)
    assert "It answers conversations" in card
    assert '[{"messages": [{"role": "user", "content": "A text to answer."}]}]' in card
