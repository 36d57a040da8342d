"""Text from outside becomes plain tokens of the table, and answers are compared by them."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from softprompt import TrainingConfig, fit
from softprompt.backbone import Backbone
from softprompt.data import parse_template
from softprompt.errors import DataError, FaultCollector, SoftpromptWarning, TemplateError
from softprompt.recipe import make_recipe
from softprompt.tasks import Classify, Generate
from softprompt.train import evaluate_hard_prompt, setup_run
from softprompt.train.setup import check_setup
from softprompt.train.templates import find_template_slips
from support.recipes import make_recipe_data
from support.tiny_models import ROWS, tokenize

BEYOND, SPECIAL = "zz59", "x</s>y"
# Where text becomes ids: the keys of the recipe that hold the text.
DOORS = {
    "a label word": lambda text: {
        "task": {"verbalizer": {"negative": " bad", "positive": text}},
    },
    "a further label word": lambda text: {
        "task": {"verbalizer": {"negative": " bad", "positive": [" good", text]}},
    },
    "a word to initialize from": lambda text: {
        "method": {"init": {"from": "labels", "words": [" good", text]}},
    },
    "a choice": lambda text: {
        "task": {"kind": "generate", "target_column": "target", "choices": ["good", "bad", text]},
    },
    "a target": lambda text: {"task": {"kind": "generate", "target_column": "text"}, "row": text},
    "a choice of the data": lambda text: {
        "task": {"kind": "generate", "target_column": "text", "choices": "from-data"},
        "row": text,
    },
}


def set_up(own: Backbone, family: str, changes: dict[str, Any]) -> Any:
    """The parts of a run whose recipe and rows hold a text at one door."""
    data = make_recipe_data(family)
    data["method"] |= changes.get("method", {})
    task = {"template": "{text}{soft:3} is"} | changes.get("task", {})
    data["task"] = task if "kind" in task else data["task"] | task
    rows = [
        {"text": "a good film", "label": "positive", "target": "good"},
        {"text": changes.get("row", "no"), "label": "negative", "target": "bad"},
    ]
    tables = {"train": Dataset.from_list(rows)}
    return {"recipe": make_recipe(data), "backbone": own, "tables": tables}


@pytest.fixture
def wide(new_backbone):
    """A backbone whose tokenizer has tokens that its table lacks."""

    def make(family: str) -> Backbone:
        own = new_backbone(family)
        own.tokenizer.add_tokens([f"zz{n}" for n in range(60)])
        assert max(tokenize(own, BEYOND)) >= ROWS
        return own

    return make


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("door", DOORS)
def test_ids_beyond_the_table_are_a_fault_before_training(wide, family, door):
    given = set_up(wide(family), family, DOORS[door](BEYOND))
    with pytest.raises(TemplateError, match=f"embedding table has {ROWS} rows"):
        setup_run(**given)
    collector = FaultCollector(keep_going=True)
    recipe = given.pop("recipe")
    check_setup(recipe, collector, **given)
    assert any(f"embedding table has {ROWS} rows" in fault for fault in collector.faults)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_a_text_to_initialize_from_is_in_the_table(wide, method):
    data = make_recipe_data("llama", method, settings={"init": {"from": "text", "text": BEYOND}})
    rows = [{"text": "a", "label": label} for label in ("negative", "positive")]
    with pytest.raises(TemplateError, match=f"embedding table has {ROWS} rows"):
        setup_run(
            make_recipe(data), backbone=wide("llama"), tables={"train": Dataset.from_list(rows)}
        )


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("door", DOORS)
def test_special_tokens_that_are_spelt_out_stay_text(backbone, family, door):
    own = backbone(family)
    prepared = setup_run(**set_up(own, family, DOORS[door](SPECIAL)))
    plain = own.tokenizer(SPECIAL, add_special_tokens=False, split_special_tokens=True)
    special, found = own.tokenizer.eos_token_id, tokenize(own, SPECIAL).tolist()
    assert special in found  # what the tokenizer alone makes of it
    assert special not in plain["input_ids"]
    match door:
        case "a label word" | "a further label word":
            (*ids, last) = prepared.task.words.tokens[1][-1]
            ids += [last] * (last != special)  # T5's words end with it
        case "a word to initialize from":
            ids = plain["input_ids"]
            mean = own.embed(torch.tensor(ids)).mean(dim=0)
            assert_close(prepared.method().vectors[1], mean)
        case "a choice":
            ids = prepared.task.decoding.allowed_answers[2]
        case _:
            *ids, _end = prepared.rows["train"].examples[1].target
    assert special not in ids
    assert own.tokenizer.decode(ids).strip() == SPECIAL


def test_special_tokens_in_a_text_to_initialize_from_are_special(backbone):
    """As in the template, since the recipe's author writes both."""
    own, text = backbone("llama"), "<s> a film"
    data = make_recipe_data("llama", settings={"init": {"from": "text", "text": text}})
    rows = [{"text": "a", "label": label} for label in ("negative", "positive")]
    tables = {"train": Dataset.from_list(rows)}
    prepared = setup_run(make_recipe(data), backbone=own, tables=tables)
    assert_close(prepared.method().vectors, own.embed(tokenize(own, text)))


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_space_behind_the_comma_of_a_csv_file_changes_no_score(
    tmp_path, backbone, family, constrained
):
    """Answers are compared as ids: the hard prompt has the same accuracy with either file."""
    texts = ["a good film", "a bad film", "it was great", "the movie was boring", "no"]
    found = []
    for name, space in {"plain": "", "spaced": " "}.items():
        lines = [f"{text},{space}{('good', 'bad')[n % 2]}" for n, text in enumerate(texts)]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["text,answer", *lines, ""]), "utf-8")
        data = make_recipe_data(family, task="text")
        data["data"]["train"] = str(path)
        data["task"] |= {"choices": "from-data", "constrained_decoding": constrained}
        report = evaluate_hard_prompt(make_recipe(data), split="train", backbone=backbone(family))
        found.append((report.metrics, report.confusion.counts))
    assert found[0] == found[1]
    if constrained:
        assert all(len(row) == 2 for row in found[0][1])
        assert found[0][0]["accuracy"] > 0


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_answer_that_is_not_a_choice_is_a_fault_before_training(backbone, split):
    data = make_recipe_data("llama", task="text")
    data["task"] |= {"choices": ["good", "bad"]}
    rows = [{"text": "a film", "answer": answer} for answer in ("good", "bad")]
    tables = {name: Dataset.from_list(rows) for name in ("train", "validation")}
    tables[split] = Dataset.from_list([*rows, {"text": "a film", "answer": "Good"}])
    with pytest.raises(DataError) as caught:
        setup_run(make_recipe(data), backbone=backbone("llama"), tables=tables)
    assert str(caught.value) == (
        f"column 'answer' of the {split} data has 'Good', but the choices are 'good', 'bad'. "
        "Correct them, leave those rows out, or list them in choices."
    )


WORDS = Classify(verbalizer={"up": " good", "down": ["bad", " dull"]})
UNSPACED = Classify(verbalizer={"up": "good", "down": "bad"})
ADDED = "the template {} with {!r}, which the tokenizer adds anyway, so every row has it twice. Remove it from the template."  # noqa: E501
SPACE = "the template ends in a space, and {} begins with one, so there are two. Remove the space at the end of the template."  # noqa: E501


@pytest.mark.parametrize(
    ("family", "template", "settings", "expected"),
    [
        ("llama", "<s>{text} is", WORDS, [ADDED.format("begins", "<s>")]),
        ("llama", "{soft:3} <s> Review: {text}", WORDS, [ADDED.format("begins", "<s>")]),
        ("llama", "{text}</s>", Generate(), []),
        ("llama", "</s>{text}<s>", Generate(), []),
        ("bert", "<s> {text}", Classify(), [ADDED.format("begins", "<s>")]),
        ("bert", "{soft:3}{text} {mask} </s>", WORDS, [ADDED.format("ends", "</s>")]),
        ("bert", "{text} </s> {mask}", WORDS, []),
        (
            "bert",
            "<s>{text}{sep}{text}</s>",
            Classify(),
            [ADDED.format("begins", "<s>"), ADDED.format("ends", "</s>")],
        ),
        ("t5", "{text}</s>{soft:3}", Generate(), [ADDED.format("ends", "</s>")]),
        ("t5", "{text} it was ", Generate(), []),
        ("llama", "{text} it was ", WORDS, [SPACE.format("the label word ' good'")]),
        ("llama", "{text} it was ", Generate(), [SPACE.format("each answer")]),
        ("llama", "{text} it was{soft:3} ", Generate(), [SPACE.format("each answer")]),
        ("llama", "{text} it was ", UNSPACED, []),
        ("llama", "{text} it was ", Classify(), []),
        ("llama", "{text} it was\n", WORDS, []),
        ("llama", "{text} it was {soft:3}", WORDS, []),
        ("bert", "{text} it was {mask} ", WORDS, []),
    ],
)
def test_what_a_template_has_twice(backbone, family, template, settings, expected):
    found = find_template_slips(parse_template(template), settings, backbone=backbone(family))
    assert [*found] == expected


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_tokenizer_adds_what_is_told_to_be_added(backbone, family):
    """The oracle is the tokenizer's own ids of the same text."""
    own = backbone(family)
    special = own.tokenizer.eos_token if family == "t5" else own.tokenizer.convert_ids_to_tokens(0)
    template = f"{{text}}{special}" if family == "t5" else f"{special}{{text}}"
    ids = own.tokenizer(template.replace("{text}", "a film"))["input_ids"]
    assert ids.count(own.tokenizer.convert_tokens_to_ids(special)) == 2
    assert len([*find_template_slips(parse_template(template), Classify(), backbone=own)]) == 1


def test_training_tells_it_at_the_start(tmp_path, backbone, rows):
    task = Classify("<s>{text} it was{soft:2} ", verbalizer=WORDS.verbalizer)
    labeled = [
        {"text": row["text"], "label": ("up", "down")[n % 2]} for n, row in enumerate(rows(6))
    ]
    config = TrainingConfig(max_steps=1, batch_size=2, learning_rate=0.05)
    with pytest.warns(SoftpromptWarning) as caught:
        fit(backbone("llama"), task, labeled, validation=0, config=config)
    messages = [str(warning.message) for warning in caught]
    assert ADDED.format("begins", "<s>") in messages
    assert SPACE.format("the label word ' good'") in messages
