"""The recipe that ``init`` writes can be run, and no file is lost."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def read_toml(path: Path = Path("recipe.toml")) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def test_files_in_the_same_folder_become_splits(home, run, backbones) -> None:
    result = run("init", "train.jsonl", "--backbone", backbones["llama"])
    assert result.status == 0
    assert "'text' classified by 'label' (2 labels)" in result.out
    data = read_toml()["data"]
    assert {k: data[k] for k in ("train", "validation", "test")} == {
        split: f"{split}.jsonl" for split in ("train", "validation", "test")
    }
    Path("validation.jsonl").rename("dev.jsonl")
    home.write("test", [{"text": "a film", "label": "neutral"}])
    result = run(
        "init", "train.jsonl", "--backbone", backbones["llama"], "--output", "sub/other.toml"
    )
    data = read_toml(Path("sub/other.toml"))["data"]
    assert (data["train"], data["validation"]) == ("../train.jsonl", "../dev.jsonl")
    assert "test" not in data
    assert "test.jsonl is left out" in result.err
    assert "neutral" in result.err
    assert run("check", "sub/other.toml").status == 0


def test_a_column_that_groups_rows_is_suggested(home, run) -> None:
    rows = [row | {"film": f"film {i // 2}"} for i, row in enumerate(home.rows())]
    home.path.joinpath("rows.csv").write_text(
        "text,label,film\n" + "".join(f"{r['text']},{r['label']},{r['film']}\n" for r in rows)
    )
    result = run("init", "rows.csv")
    assert "rows may belong together by 'film'" in result.err
    assert '# group_by = "film"' in Path("recipe.toml").read_text("utf-8")
    assert "group_by" not in read_toml()["data"]


def test_every_setting_has_a_comment(home, run) -> None:
    run("init", "train.jsonl")
    lines = [line for line in Path("recipe.toml").read_text("utf-8").splitlines() if line]
    settings_ = [line for line in lines if not line.startswith(("[", "#"))]
    assert len(settings_) > 12
    assert [line for line in settings_ if "  # " not in line] == []
    recipe = read_toml()
    assert recipe["backbone"]["name"] == "builtin:smollm2-135m-instruct"
    assert recipe["task"]["verbalizer"] == {"negative": " negative", "positive": " positive"}
    assert recipe["method"] == {"name": "prompt-tuning", "init": {"from": "labels"}}


def test_a_recipe_is_never_lost(home, run) -> None:
    Path("recipe.toml").write_text("mine")
    result = run("init", "train.jsonl")
    assert result.is_mistake("recipe.toml exists already", "--output", "--force")
    assert Path("recipe.toml").read_text() == "mine"
    assert run("init", "train.jsonl", "--force").status == 0
    assert read_toml()["data"]["train"] == "train.jsonl"


def test_faults_of_the_data_are_reported(home, run) -> None:
    assert run("init", "trian.jsonl").is_mistake("no file trian.jsonl", "Did you mean train.jsonl")
    Path("empty.csv").write_text("")
    assert run("init", "empty.csv").is_mistake("has no rows")
    assert not Path("recipe.toml").exists()


def test_a_backbone_that_cannot_be_loaded_is_assumed_to_be_causal(home, run) -> None:
    result = run("init", "train.jsonl", "--backbone", "some/model")
    assert result.status == 0
    assert "could not load the backbone; assuming a causal language model" in result.err
    assert read_toml()["backbone"]["name"] == "some/model"


NAMES = st.text("abcdefgXYZ_ é-", min_size=1, max_size=8).filter(lambda s: s == s.strip())
LABELS = st.one_of(
    st.lists(st.text("abcdefgäé_'", min_size=1, max_size=9), min_size=2, max_size=4, unique=True),
    st.lists(st.integers(-3, 30), min_size=2, max_size=4, unique=True),
    st.just([True, False]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, object]]:
    """Labelled text with any column names, any kind of labels and any number of rows."""
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
def test_the_recipe_can_be_run_without_changes(family: str, rows, home, run, backbones) -> None:
    home.path.joinpath("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("init", "rows.jsonl", "--backbone", backbones[family], "--force")
    if result.status == 2:  # labels such as " a" and "a": an error, and nothing is written
        assert "only in whitespace" in result.err
        return
    checked = run("check", "recipe.toml", "--json")
    assert checked.status == 0, checked.err
    done = run("train", "recipe.toml", "--json", "--quiet")
    assert done.status == 0, done.err
    assert done.json["best_step"] <= done.json["steps"] == checked.json["plan"]["steps"]


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_free_text_is_written(home, run, backbones, family: str, kind: str) -> None:
    rows = [
        {"id": n, "text": row["text"], "summary": f"film {n}"} for n, row in enumerate(home.rows())
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "csv":
        lines = "id,text,summary\n" + "".join(
            f'{row["id"]},"{row["text"]}",{row["summary"]}\n' for row in rows
        )
    home.path.joinpath(f"rows.{kind}").write_text(lines, "utf-8")
    result = run("init", f"rows.{kind}", "--backbone", backbones[family])
    assert result.status == 0, result.err
    assert "'text' to write 'summary'" in result.out
    assert 'kind = "generate"' in result.err
    assert "does not use the column 'id'" in result.err
    assert read_toml()["task"]["target_column"] == "summary"
    checked = run("check", "recipe.toml", "--json")
    assert checked.status == 0, checked.err
    done = run("train", "recipe.toml", "--set", "train.epochs=1", "--json", "--quiet")
    assert done.status == 0, done.err


def test_a_column_of_lists_is_several_labels_for_a_row(home, run, backbones) -> None:
    rows = [row | {"label": [row["label"], "film"]} for row in home.rows()]
    home.write("rows", rows)
    result = run("init", "rows.jsonl", "--backbone", backbones["bert"])
    assert result.status == 0, result.err
    assert "any number for a row" in result.out
    assert read_toml()["task"]["multi_label"] is True
    assert run("check", "recipe.toml").status == 0


def test_the_options_of_a_file_come_into_the_recipe(home, run, backbones) -> None:
    rows = home.rows()
    lines = "".join(f"{row['text']} \u20ac^{row['label']}\n" for row in rows)
    home.path.joinpath("train.csv").write_bytes(lines.encode("cp1252"))
    home.path.joinpath("test.csv").write_bytes(lines.encode("cp1252"))
    written = ["--separator", "^", "--no-header"]
    llama = ["--backbone", backbones["llama"]]
    assert run("init", "train.csv", *written, *llama).is_mistake("--encoding", "cp1252")
    result = run("init", "train.csv", *written, *llama, "--encoding", "cp1252")
    assert result.status == 0, result.err
    data = read_toml()["data"]
    assert (data["separator"], data["encoding"], data["header"]) == ("^", "cp1252", False)
    assert data["test"] == "test.csv"
    plan = run("check", "recipe.toml", "--json").json["plan"]
    assert plan["splits"]["test"]["rows"] == len(rows)
