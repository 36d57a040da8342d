"""A name that no file can have is refused in a sentence at every door, as a missing file is."""

from pathlib import Path

import pytest

from softprompt import PromptModel, load_backbone
from softprompt._paths import expand_user, is_file, is_present
from softprompt.cli.streaming import read_text_rows
from softprompt.data import read_source
from softprompt.data.writers import check_writable
from softprompt.errors import DataError, SoftpromptError
from softprompt.interop.registry import read_base_model
from softprompt.recipe import read_recipe

LONG = "x" * 5000
IMPOSSIBLE = ["~no-such-user/x", LONG, f"{LONG}/x", "a\0b"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("suffix", ["", ".csv"])
@pytest.mark.parametrize(
    "read",
    [
        read_source,
        load_backbone,
        PromptModel.from_pretrained,
        lambda name: read_recipe(Path(name)),
        lambda name: next(read_text_rows(name)),
        lambda name: read_base_model("npy", Path(name)),
        lambda name: check_writable(Path(name) / "y.csv"),
    ],
    ids=["data", "backbone", "artifact", "recipe", "lines", "import", "output"],
)
def test_an_impossible_name_is_refused_as_a_missing_file(read, name, suffix):
    with pytest.raises(SoftpromptError, match=r"(?i)\b(no|not|cannot)\b"):
        read(name + suffix)


def test_names_that_no_file_can_have_are_absent():
    assert not any(is_present(name) or is_file(name) for name in IMPOSSIBLE)
    assert is_present(Path())
    assert not is_file(Path())
    assert is_file(__file__)
    assert not is_file("/dev/null")


def test_only_the_folder_of_a_known_user_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/x.csv") == tmp_path / "x.csv"
    assert expand_user("~no-such-user/x.csv") == Path("~no-such-user/x.csv")
    assert expand_user("a/~/x.csv") == Path("a/~/x.csv")


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_recipe_may_name_what_no_file_is_called(tmp_path, name):
    """It is the name of a data set or a model until it is read."""
    text = name.replace("\0", "\\u0000")
    (tmp_path / "r.toml").write_text(
        f'[backbone]\nname = "{text}"\n[data]\ntrain = "{text}"\n[task]\nkind = "classify"\n'
        f'[method]\nname = "p-tuning-v2"\ninit = {{ from = "artifact", path = "{text}" }}\n'
    )
    recipe = read_recipe(tmp_path / "r.toml")
    assert (recipe.backbone.name, recipe.data.train) == (name, name)


@pytest.mark.parametrize("length", [240, 255, 300])
def test_a_name_that_cannot_be_written_is_refused_before_rows_are_predicted(tmp_path, length):
    """Its temporary file has a longer name."""
    check_writable(tmp_path / ("x" * 230 + ".csv"))
    with pytest.raises(DataError, match="cannot be written: File name too long"):
        check_writable(tmp_path / ("x" * (length - 4) + ".csv"))
