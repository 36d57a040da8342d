"""``show`` of several artifacts and with ``--attention``: Python's numbers, and pictures."""

import shutil
from pathlib import Path

import pytest

from softprompt.analysis import compute_attention_shares, compute_similarity
from softprompt.artifact import load_artifact
from softprompt.inference import PromptModel

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, backbones, run, furnished):
    """A run with four soft tokens and one with six."""
    home = furnished(tmp_path_factory.mktemp("pair"), backbones["llama"])
    folders = [home.path / "four", home.path / "six"]
    for count, folder in zip((4, 6), folders, strict=True):
        home.data["task"]["template"] = f"{{text}} sentiment{{soft:{count}}}"
        assert run("train", home.recipe, "--quiet", "--output", folder).status == 0
    return home, folders


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_several_are_shown_and_compared(pair, run, elsewhere: Path) -> None:
    _, folders = pair
    said = run("show", *folders, "--json")
    assert said.status == 0, said.err
    wanted = compute_similarity([load_artifact(folder).prompt for folder in folders])
    found = said.json["similarity"]
    assert found["names"] == ["four", "six"]
    for name, matrix in (("pooled", wanted.pooled), ("matched", wanted.matched)):
        assert found[name] == [[pytest.approx(x) for x in row] for row in matrix]
    for one, folder in zip(said.json["artifacts"], folders, strict=True):
        alone = run("show", folder, "--json").json
        assert one == alone
    assert said.json["pictures"] == ["similarity.png"]
    assert (elsewhere / "similarity.png").read_bytes().startswith(PNG)
    lines = [line.split() for line in run("show", *folders).out.splitlines()]
    assert ["four", "six"] in lines
    assert ["six", f"{wanted.pooled[1][0]:.3f}", "1.000"] in lines
    assert ["six", f"{wanted.matched[1][0]:.3f}", "1.000"] in lines


def test_a_single_one_draws_nothing_by_itself(pair, run, elsewhere: Path) -> None:
    assert run("show", pair[1][0], "--attention").status == 0
    assert [*elsewhere.iterdir()] == []


def test_attention_is_pythons(pair, run, elsewhere: Path) -> None:
    home, (folder, _) = pair
    said = run("show", folder, "--attention", "--output", "a.svg", "--json").json
    wanted = compute_attention_shares(PromptModel.from_pretrained(folder), home.rows("validation"))
    assert len(wanted) == 2
    for found, one in zip(said["attention"], wanted, strict=True):
        assert (found["site"], found["part"]) == (one.site, "row")
        assert found["tokens"] == pytest.approx(list(one.tokens))
        for name, value in {
            "share": one.share,
            "at_readout": one.at_readout,
            "uniform": one.uniform,
        }.items():
            assert found[name] == pytest.approx(value)
    assert said["pictures"] == ["a.svg"]
    assert "<svg" in (elsewhere / "a.svg").read_text("utf-8")
    text = run("show", folder, "--attention").out
    assert "attention to the prompt, 12 rows of validation" in text
    row = ["0", f"{wanted[0].share:.1%}", f"{wanted[0].at_readout:.1%}", f"{wanted[0].uniform:.1%}"]
    assert row in [line.split() for line in text.splitlines()]


def test_attention_of_a_files_rows_at_most_64(pair, run, elsewhere: Path) -> None:
    home, (folder, _) = pair
    rows = [{"text": row["text"]} for row in home.rows("train") * 2]
    (elsewhere / "rows.csv").write_text("text\n" + "".join(f"{r['text']}\n" for r in rows))
    said = run("show", folder, "--attention", "--data", "rows.csv", "--json").json
    wanted = compute_attention_shares(PromptModel.from_pretrained(folder), rows[:64])
    assert [one["share"] for one in said["attention"]] == pytest.approx([w.share for w in wanted])
    assert "64 rows of rows.csv" in run("show", folder, "--attention", "--data", "rows.csv").out


def test_attention_to_several_is_a_picture_of_its_own(pair, run, elsewhere: Path) -> None:
    said = run("show", *pair[1], "--attention", "--output", "both.png", "--json").json
    assert said["pictures"] == ["both.png", "both-attention.png"]
    assert all((elsewhere / name).read_bytes().startswith(PNG) for name in said["pictures"])
    assert [len(one["attention"][0]["tokens"]) for one in said["artifacts"]] == [4, 6]


def test_two_folders_of_one_name_are_called_by_their_paths(pair, run, elsewhere: Path) -> None:
    shutil.copytree(pair[1][0], elsewhere / "sub" / "four")
    said = run("show", pair[1][0], "sub/four", "--json").json["similarity"]
    assert said["names"] == [str(pair[1][0]), "sub/four"]
    assert said["pooled"][0][1] == pytest.approx(1)
    inside = run("show", pair[1][0] / "artifact", pair[1][1], "--json").json["similarity"]
    assert inside["names"] == ["four", "six"]


def test_what_would_do_nothing_is_refused(pair, run, elsewhere: Path) -> None:
    _, (one, other) = pair
    said = run("show", one, "--attention", "--no-backbone")
    assert said.is_mistake("Leave --no-backbone out")
    assert run("show", one, "--data", "x.csv").is_mistake("--data x.csv is for --attention")
    assert run("show", one, "--output", "x.png").is_mistake("nothing to draw in x.png")
    assert run("show", one, other, "--output", "x.txt").is_mistake("x.txt is not a picture")
    said = run("show", one, other, "--output", "gone/x.png")
    assert said.is_mistake("x.png", "No such file or directory")
    assert run("show", one, "gone").is_mistake("there is no folder")
    assert [*elsewhere.iterdir()] == []


def test_what_has_nothing_in_common_is_refused(pair, home, run, backbones) -> None:
    _, (one, _) = pair
    home.data["backbone"]["name"] = str(backbones["t5"])
    assert run("train", home.recipe, "--quiet", "--output", "t5").status == 0
    said = run("show", one, "t5", "--no-backbone")
    assert said.is_mistake("prompt for", "vectors of different backbones have nothing in common")
    home.data["backbone"]["name"] = str(backbones["llama"])
    home.data["task"]["template"] = "{text} sentiment"
    home.data["method"] = {"name": "p-tuning-v2", "length": 3}
    assert run("train", home.recipe, "--quiet", "--output", "prefix").status == 0
    assert run("show", one, "prefix").is_mistake("prompts of different kinds have no cosine")
    assert run("show", "prefix", "--attention", "--json").json["attention"][1]["share"] > 0
    assert not Path("similarity.png").exists()
