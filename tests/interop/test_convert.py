"""A prompt that a format cannot store is refused at once; no partial folder is left behind."""

import errno
from pathlib import Path

import pytest
import torch

from softprompt.errors import ArtifactError
from softprompt.interop.convert import export_prompt
from softprompt.prompt import InputPrompt, KVPrefix
from softprompt.tasks import Classify

VECTORS = ("npy", "safetensors")
FORMS = (*VECTORS, "peft", "p-tuning-v2")


@pytest.fixture
def refused(tmp_path):
    """The message of an export that is refused and writes nothing."""

    def said(form: str, model) -> str:
        with pytest.raises(ArtifactError) as caught:
            export_prompt(form, model, output=tmp_path / "out")
        assert not [*tmp_path.iterdir()]
        return str(caught.value)

    return said


@pytest.fixture
def made(desk):
    """Models with prompts of every sort."""

    def make(sort: str, family: str = "llama"):
        own, maker = desk.backbone(family), desk.maker(family)
        match sort:
            case "vectors":
                task = desk.asking(own, "{soft:3}{bos}{text}")
                return desk.model(own, maker.input_prompt(), task)
            case "late":
                return desk.model(own, maker.late_prompt(), desk.asking(own, "{soft:3}{bos}{text}"))
            case "behind":
                return desk.model(own, maker.input_prompt(), desk.asking(own, "{text}{soft:3}"))
            case "prefix" | "shifted":
                prompt = maker.prefix(shift_positions=sort == "shifted")
                return desk.model(own, prompt, desk.asking(own, "{text}"))
            case "one layer":
                prompt = maker.prefix(layers=(1,), shift_positions=True)
                return desk.model(own, prompt, desk.asking(own, "{text}"))
            case _:
                kind = sort.removeprefix("head ")
                width = own.geometry.hidden_size
                head = {"output.weight": torch.ones(2, width), "output.bias": torch.zeros(2)}
                if kind == "mlp-tanh":
                    head |= {
                        "dense.weight": torch.ones(width, width),
                        "dense.bias": torch.ones(width),
                    }
                task = Classify(template="{soft:3}{text}", head=kind)
                return desk.model(own, maker.input_prompt(), task, head=head)

    return make


HAS = {
    "shifted": "keys and values",
    "prefix": "keys and values",
    "late": "soft tokens that enter at layer 1",
    "head linear": "a trained head",
}


@pytest.mark.parametrize("sort", HAS)
@pytest.mark.parametrize("form", VECTORS)
def test_more_than_vectors(made, refused, form, sort):
    assert refused(form, made(sort)) == (
        f"the artifact has {HAS[sort]}, but a {form} file holds vectors for the input alone. "
        "Export it as peft, or keep the artifact itself."
    )


V2 = {
    ("vectors", "bert"): "is not a prefix of keys and values",
    ("shifted", "llama"): "is for llama, but that code supports BERT and RoBERTa",
    ("prefix", "bert"): "does not shift the row's positions",
    ("one layer", "roberta"): "leaves layers out",
    ("head linear", "bert"): (
        "is not a prefix of keys and values, and has a head other than 'mlp-tanh'"
    ),
    ("prefix", "electra"): (
        "is for electra, but that code supports BERT and RoBERTa, and does not shift the row's positions"  # noqa: E501  # the message
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sort", "family"), V2)
def test_what_p_tuning_v2_cannot_store(made, refused, sort, family):
    assert refused("p-tuning-v2", made(sort, family)) == (
        f"the artifact cannot be a P-tuning v2 checkpoint: it {V2[sort, family]}. Train "
        'p-tuning-v2 with method.shift_positions = true, method.layers = "all", task.head = '
        '"mlp-tanh", and task.pooling = "cls".'
    )


PEFT = {
    (
        "late",
        "llama",
    ): "the soft tokens enter at layer 1, but PEFT's enter at the input. Train with",
    ("behind", "llama"): (
        "the template '{text}{soft:3}' has soft tokens after another token ([CLS] and "
        "<s> count), but PEFT puts all of them first. Train with a template such as "
        "'{soft:3}{bos}{text}'."
    ),
    ("prefix", "llama"): (
        "the prefix does not shift the row's positions, but PEFT shifts them by its length. "
        "Train with method.shift_positions = true for use in PEFT."
    ),
    ("one layer", "bert"): (
        "the prefix acts on the attention layers [1], but PEFT's acts on [0, 1]. Train it on "
        "exactly these with method.layers."
    ),
    ("head linear", "llama"): "the template '{soft:3}{text}' has soft tokens after another token",
}


@pytest.mark.parametrize(("sort", "family"), PEFT)
def test_what_peft_cannot_store(made, refused, sort, family):
    assert refused("peft", made(sort, family)).startswith(PEFT[sort, family])


def test_an_unknown_format_to_export(made, refused):
    assert refused("safetensor", made("vectors")).startswith(
        "unknown format to export 'safetensor'. Options: npy, p-tuning-v2, peft, safetensors"
    )
    assert refused("safetensor", made("vectors")).endswith("Did you mean 'safetensors'?")


def outgoing(made, form: str):
    return made("shifted", "bert") if form == "p-tuning-v2" else made("vectors")


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_is_not_empty_is_left_alone(made, tmp_path, form):
    (tmp_path / "thesis.tex").write_text("years of work")
    for output in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ArtifactError) as caught:
            export_prompt(form, outgoing(made, form), output=output)
        assert str(caught.value) == (
            f"{output} exists and is not empty, so it is not overwritten. Choose another folder."
        )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_folder_is_filled(made, tmp_path, form):
    (tmp_path / "out").mkdir()
    assert [*export_prompt(form, outgoing(made, form), output=tmp_path / "out").iterdir()]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", ["pathlib.Path.write_bytes", "os.fsync", "pathlib.Path.mkdir"])
@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_nothing(made, tmp_path, monkeypatch, form, write):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = outgoing(made, form)
    with monkeypatch.context() as patch:
        patch.setattr(write, full)
        with pytest.raises(ArtifactError) as caught:
            export_prompt(form, model, output=tmp_path / "out")
    size, rest = str(caught.value).split(" ", 1)
    assert int(size.replace(",", "")) > 3 * 32 * 4
    assert rest == (
        f"bytes could not be written to {tmp_path / 'out'}: No space left on device. Nothing was "
        "changed. Choose a writable folder on a disk with enough space."
    )
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made(made):
    with pytest.raises(ArtifactError, match=r"written to /dev/null/x: (Not a d|File exists)"):
        export_prompt("npy", made("vectors"), output=Path("/dev/null/x"))


@pytest.mark.parametrize("form", FORMS)
def test_writing_changes_nothing(made, tmp_path, form):
    """Neither prompt nor head: what is written is a copy."""
    model = outgoing(made, form)
    before = {name: tensor.clone() for name, tensor in model.artifact.to_tensors().items()}
    export_prompt(form, model, output=tmp_path / "out")
    assert all(torch.equal(t, before[name]) for name, t in model.artifact.to_tensors().items())
    assert isinstance(model.prompt, InputPrompt | KVPrefix)
