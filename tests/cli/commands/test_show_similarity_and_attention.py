"""``show`` of several artifacts and with ``--attention``: the numbers of Python, and figures."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from softprompt.analysis import compute_attention_shares, compute_similarity
from softprompt.artifact import load_artifact
from softprompt.inference import PromptModel
from support.workspace import make_workspace

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, backbones, run):
    """A run with four soft tokens and one with six."""
    home = make_workspace(tmp_path_factory.mktemp("pair"), backbones["llama"])
    folders = [home.path / "four", home.path / "six"]
    for count, folder in zip((4, 6), folders, strict=True):
        home.data["task"]["template"] = f"{{text}} sentiment{{soft:{count}}}"
        assert run("train", home.recipe, "--quiet", "--output", folder).status == 0
    return home, folders


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch) -> Path:
    """A working directory without the runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_several_are_shown_and_compared(pair, run, cwd: Path) -> None:
    _, folders = pair
    result = run("show", *folders, "--json")
    assert result.status == 0, result.err
    expected = compute_similarity([load_artifact(folder).prompt for folder in folders])
    found = result.json["similarity"]
    assert found["names"] == ["four", "six"]
    for name, matrix in asdict(expected).items():
        assert found[name] == [[pytest.approx(x) for x in row] for row in matrix]
    for one, folder in zip(result.json["artifacts"], folders, strict=True):
        alone = run("show", folder, "--json").json
        assert one == alone
    assert result.json["pictures"] == ["similarity.png"]
    assert (cwd / "similarity.png").read_bytes().startswith(PNG)
    lines = [line.split() for line in run("show", *folders).out.splitlines()]
    assert ["four", "six"] in lines
    assert ["six", f"{expected.pooled[1][0]:.3f}", "1.000"] in lines
    assert ["six", f"{expected.matched[1][0]:.3f}", "1.000"] in lines
    assert ["six", *(f"{cosine:.3f}" for cosine in expected.pairwise[1])] in lines


def test_a_single_artifact_has_no_figure_by_default(pair, run, cwd: Path) -> None:
    assert run("show", pair[1][0], "--attention").status == 0
    assert [*cwd.iterdir()] == []


def test_attention_is_that_of_python(pair, run, cwd: Path) -> None:
    home, (folder, _) = pair
    result = run("show", folder, "--attention", "--output", "a.svg", "--json").json
    model = PromptModel.from_pretrained(folder)
    expected = compute_attention_shares(model, home.rows("validation"))
    assert len(expected) == 2
    for found, one in zip(result["attention"], expected, strict=True):
        assert (found["site"], found["part"]) == (one.site, "row")
        assert found["tokens"] == pytest.approx(list(one.tokens))
        for name, value in {
            "share": one.share,
            "at_readout": one.at_readout,
            "uniform": one.uniform,
        }.items():
            assert found[name] == pytest.approx(value)
    assert result["pictures"] == ["a.svg"]
    assert "<svg" in (cwd / "a.svg").read_text("utf-8")
    text = run("show", folder, "--attention").out
    assert "attention to the prompt, 12 rows of validation" in text
    first = expected[0]
    row = ["0", f"{first.share:.1%}", f"{first.at_readout:.1%}", f"{first.uniform:.1%}"]
    assert row in [line.split() for line in text.splitlines()]


def test_attention_of_a_files_rows_at_most_64(pair, run, cwd: Path) -> None:
    home, (folder, _) = pair
    rows = [{"text": row["text"]} for row in home.rows("train") * 2]
    (cwd / "rows.csv").write_text("text\n" + "".join(f"{r['text']}\n" for r in rows))
    result = run("show", folder, "--attention", "--data", "rows.csv", "--json").json
    expected = compute_attention_shares(PromptModel.from_pretrained(folder), rows[:64])
    shares = [one["share"] for one in result["attention"]]
    assert shares == pytest.approx([one.share for one in expected])
    assert "64 rows of rows.csv" in run("show", folder, "--attention", "--data", "rows.csv").out


def test_attention_to_several_is_a_second_figure(pair, run, cwd: Path) -> None:
    result = run("show", *pair[1], "--attention", "--output", "both.png", "--json").json
    assert result["pictures"] == ["both.png", "both-attention.png"]
    assert all((cwd / name).read_bytes().startswith(PNG) for name in result["pictures"])
    assert [len(one["attention"][0]["tokens"]) for one in result["artifacts"]] == [4, 6]


def test_folders_of_the_same_name_are_named_by_their_paths(pair, run, cwd: Path) -> None:
    shutil.copytree(pair[1][0], cwd / "sub" / "four")
    result = run("show", pair[1][0], "sub/four", "--json").json["similarity"]
    assert result["names"] == [str(pair[1][0]), "sub/four"]
    assert result["pooled"][0][1] == pytest.approx(1)
    artifact = run("show", pair[1][0] / "artifact", pair[1][1], "--json").json["similarity"]
    assert artifact["names"] == ["four", "six"]


def test_options_without_an_effect_are_refused(pair, run, cwd: Path) -> None:
    _, (one, other) = pair
    result = run("show", one, "--attention", "--no-backbone")
    assert result.is_mistake("Leave --no-backbone out")
    assert run("show", one, "--data", "x.csv").is_mistake("--data x.csv is for --attention")
    assert run("show", one, "--output", "x.png").is_mistake("nothing to draw in x.png")
    assert run("show", one, other, "--output", "x.txt").is_mistake("x.txt is not a picture")
    result = run("show", one, other, "--output", "gone/x.png")
    assert result.is_mistake("x.png", "No such file or directory")
    assert run("show", one, "gone").is_mistake("there is no folder")
    assert [*cwd.iterdir()] == []


def test_prompts_that_cannot_be_compared_are_refused(pair, home, run, backbones) -> None:
    _, (one, _) = pair
    home.data["backbone"]["name"] = str(backbones["t5"])
    assert run("train", home.recipe, "--quiet", "--output", "t5").status == 0
    result = run("show", one, "t5", "--no-backbone")
    assert result.is_mistake("prompt for", "vectors of different backbones have nothing in common")
    home.data["backbone"]["name"] = str(backbones["llama"])
    home.data["task"]["template"] = "{text} sentiment"
    home.data["method"] = {"name": "p-tuning-v2", "length": 3}
    assert run("train", home.recipe, "--quiet", "--output", "prefix").status == 0
    assert run("show", one, "prefix").is_mistake("prompts of different kinds have no cosine")
    assert run("show", "prefix", "--attention", "--json").json["attention"][1]["share"] > 0
    assert not Path("similarity.png").exists()
