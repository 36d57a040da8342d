"""``init`` guesses columns as their makers meant them, and what it writes can be run."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from softprompt.cli.draft import Speaker, template, verbalizer
from softprompt.cli.guess import Guess, guess
from softprompt.cli.held import hold
from softprompt.data import check_labels, split
from softprompt.errors import DataError

LONG = [
    "the film is a slow but moving story",
    "nobody could hate this music",
    "dull from end to end",
]


def made(rows: int = 24, **columns: Any) -> Dataset:
    """A table: a list is repeated down its column, a function is given the row's number."""
    return Dataset.from_dict(
        {
            name: [v(i) if callable(v) else v[i % len(v)] for i in range(rows)]
            for name, v in columns.items()
        }
    )


def text(i: int) -> str:
    return f"{LONG[i % 3]}, number {i}"


def short(i: int) -> str:
    return f"number {i}"


# Columns as published data sets have them: the label, the texts, the group.
KNOWN = {
    "sst2": ({"idx": int, "sentence": text, "label": [0, 1]}, "label", ("sentence",), None),
    "mrpc": (
        {"sentence1": text, "sentence2": short, "label": [0, 1], "idx": int},
        "label",
        ("sentence1", "sentence2"),
        None,
    ),
    "snli": (
        {"premise": text, "hypothesis": short, "label": ["entailment", "neutral", "no"]},
        "label",
        ("premise", "hypothesis"),
        None,
    ),
    "boolq": (
        {"question": short, "answer": [True, False], "passage": text},
        "answer",
        ("question", "passage"),
        None,
    ),
    "agnews": ({"text": text, "label": ["world", "sports"]}, "label", ("text",), None),
    "yelp": (
        {"stars": [1, 2, 3, 4, 5], "user": list("abcdefghijkl"), "text": text},
        "stars",
        ("text",),
        "user",
    ),
    "films": (
        {"text": text, "label": ["fresh", "rotten"], "film": [f"film {i}" for i in range(12)]},
        "label",
        ("text",),
        "film",
    ),
    "intents": (
        {"utterance": text, "intent": [f"i{i}" for i in range(12)]},
        "intent",
        ("utterance",),
        None,
    ),
    "unnamed": ({"a": text, "b": ["x", "y", "z"], "c": int}, "b", ("a",), None),
    "scored": (
        {"review": text, "title": lambda i: f"t{i}", "score": [0.5], "kind": ["ham", "spam"]},
        "kind",
        ("review",),
        None,
    ),
    "pair": (
        {"source": text, "reply": lambda i: text(i + 7), "class": ["no", "yes"]},
        "class",
        ("source", "reply"),
        None,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_columns_are_what_they_were_made_for(name: str) -> None:
    columns, label, texts, group = KNOWN[name]
    found = guess(made(**columns), "rows.csv")
    assert (found.label, found.texts, found.group) == (label, texts, group)
    assert set(found.labels) == {str(value) for value in columns[label]}


def test_what_cannot_be_guessed_is_told() -> None:
    with pytest.raises(
        DataError, match=r"no column of a\.csv looks like a label.*'text' 24 values"
    ) as e:
        guess(made(text=text, n=int), "a.csv")
    assert "Call the label's column 'label'" in str(e.value)
    with pytest.raises(DataError, match="all 24 rows of the training data have the label 'x'"):
        guess(made(text=text, label=["x"]), "a.csv")
    with pytest.raises(DataError, match=r"no column of text beside 'label'.*Rename it"):
        guess(made(**{"a:b": text, "label": ["x", "y"]}), "a.csv")
    with pytest.raises(DataError, match="differ in whitespace alone"):
        guess(made(text=text, label=["x", "x ", "y"]), "a.csv")
    with pytest.raises(DataError, match="no value in column 'text'"):
        guess(made(text=["good", None, "bad"], label=["x", "y"]), "a.csv")


CAUSAL = Speaker("m", "causal", has_head=True)


def test_words_are_words() -> None:
    assert verbalizer(("no", "very_good"), CAUSAL) == {"no": " no", "very_good": " very good"}
    assert verbalizer(("gut", "schön"), CAUSAL) == {"gut": " gut", "schön": " schön"}
    for labels in (("0", "1"), ("1 star", "2 stars"), ("a", "A"), ("x" * 50, "y"), ("+", "-")):
        assert verbalizer(labels, CAUSAL) is None
    assert verbalizer(tuple(f"i{'x' * i}" for i in range(21)), CAUSAL) is None
    assert verbalizer(("no", "yes"), Speaker("m", "causal", has_head=False)) is None
    assert verbalizer(("no", "yes"), Speaker("m", "encoder", has_head=True)) is None
    writer = Speaker("m", "encoder-decoder", has_head=True)
    assert verbalizer(("0", "1"), writer) == {"0": "0", "1": "1"}


def test_the_template_suits_the_backbone() -> None:
    pair = Guess("is_same", ("0", "1"), ("s1", "s2"), None, 10)
    assert template(pair, CAUSAL) == "S1: {s1}\nS2: {s2}\nIs same:{soft:10}"
    assert template(pair, Speaker("m", "encoder", has_head=True)) == "{soft:10}{s1}{sep}{s2}"


def test_rows_are_held_back_so_that_no_label_is_unseen() -> None:
    table = made(12, text=text, label=lambda i: "rare" if i == 5 else "often")
    found = guess(table, "a.csv")
    held = hold(table, "a.csv", found)
    total = sum(held.shares.values())
    assert total == pytest.approx(1)
    parts = split(table, seed=held.seed, shares=held.shares)
    for part in parts.values():
        check_labels(part, "label", known=set(parts["train"]["label"]), split="any")
    few = hold(made(2, text=text, label=["a", "b"]), "a.csv", found)
    assert few.shares["train"] == 1
    assert "too few" in few.remarks[0]


def written(path: Path = Path("recipe.toml")) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def test_files_beside_the_data_are_named(home, run, backbones) -> None:
    said = run("init", "train.jsonl", "--backbone", backbones["llama"])
    assert said.status == 0
    assert "'text' classified by 'label' (2 labels)" in said.out
    data = written()["data"]
    assert {k: data[k] for k in ("train", "validation", "test")} == {
        split: f"{split}.jsonl" for split in ("train", "validation", "test")
    }
    Path("validation.jsonl").rename("dev.jsonl")
    home.write("test", [{"text": "a film", "label": "neutral"}])
    said = run(
        "init", "train.jsonl", "--backbone", backbones["llama"], "--output", "sub/other.toml"
    )
    data = written(Path("sub/other.toml"))["data"]
    assert (data["train"], data["validation"]) == ("../train.jsonl", "../dev.jsonl")
    assert "test" not in data
    assert "test.jsonl is left out" in said.err
    assert "neutral" in said.err
    assert run("check", "sub/other.toml").status == 0


def test_a_column_that_holds_rows_together_is_offered(home, run) -> None:
    rows = [row | {"film": f"film {i // 2}"} for i, row in enumerate(home.rows())]
    home.path.joinpath("rows.csv").write_text(
        "text,label,film\n" + "".join(f"{r['text']},{r['label']},{r['film']}\n" for r in rows)
    )
    said = run("init", "rows.csv")
    assert "rows may belong together by 'film'" in said.err
    assert '# group = "film"' in Path("recipe.toml").read_text("utf-8")
    assert "group" not in written()["data"]


def test_every_setting_has_a_comment(home, run) -> None:
    run("init", "train.jsonl")
    lines = [line for line in Path("recipe.toml").read_text("utf-8").splitlines() if line]
    settings_ = [line for line in lines if not line.startswith(("[", "#"))]
    assert len(settings_) > 12
    assert [line for line in settings_ if "  # " not in line] == []
    recipe = written()
    assert recipe["backbone"]["name"] == "builtin:smollm2-135m-instruct"
    assert recipe["task"]["verbalizer"] == {"negative": " negative", "positive": " positive"}
    assert recipe["method"] == {"name": "prompt-tuning", "initialise": {"from": "labels"}}


def test_a_recipe_is_never_lost(home, run) -> None:
    Path("recipe.toml").write_text("mine")
    said = run("init", "train.jsonl")
    assert said.is_mistake("recipe.toml is there already", "--output", "--force")
    assert Path("recipe.toml").read_text() == "mine"
    assert run("init", "train.jsonl", "--force").status == 0
    assert written()["data"]["train"] == "train.jsonl"


def test_faults_of_the_data_are_told(home, run) -> None:
    assert run("init", "trian.jsonl").is_mistake("no file trian.jsonl", "Did you mean train.jsonl")
    Path("empty.csv").write_text("")
    assert run("init", "empty.csv").is_mistake("has no rows")
    assert not Path("recipe.toml").exists()


def test_a_backbone_that_is_not_here_is_taken_for_a_causal_one(home, run) -> None:
    said = run("init", "train.jsonl", "--backbone", "some/model")
    assert said.status == 0
    assert "not looked at, and taken for a causal language model" in said.err
    assert written()["backbone"]["name"] == "some/model"


NAMES = st.text("abcdefgXYZ_ é-", min_size=1, max_size=8).filter(lambda s: s == s.strip())
LABELS = st.one_of(
    st.lists(st.text("abcdefgäé_'", min_size=1, max_size=9), min_size=2, max_size=4, unique=True),
    st.lists(st.integers(-3, 30), min_size=2, max_size=4, unique=True),
    st.just([True, False]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, object]]:
    """Labelled text under any names, with labels of any kind, in any number of rows."""
    labels = draw(LABELS)
    count = draw(st.integers(3 * len(labels), 40))
    first, *others = draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower))
    return [
        {
            first: f"{draw(TEXT)} {i} and a few words more, so that it is the longest of them",
            **{name: f"{draw(TEXT)} {i}" for name in others},
            "label": labels[i % len(labels)],
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each try is a run: do not shrink
)
@given(rows=tables())
def test_what_is_written_can_be_run_as_it_stands(family: str, rows, home, run, backbones) -> None:
    home.path.joinpath("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = run("init", "rows.jsonl", "--backbone", backbones[family], "--force")
    if said.status == 2:  # a label such as " a" beside "a": told, and nothing is written
        assert "whitespace alone" in said.err
        return
    checked = run("check", "recipe.toml", "--json")
    assert checked.status == 0, checked.err
    done = run("train", "recipe.toml", "--json", "--quiet")
    assert done.status == 0, done.err
    assert done.json["best_step"] <= done.json["steps"] == checked.json["plan"]["steps"]
