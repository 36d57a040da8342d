"""Vectors exported as .npy or safetensors and imported again: the same bits and predictions."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from softprompt.artifact import load_artifact
from softprompt.errors import TemplateError
from softprompt.inference import PromptModel
from softprompt.interop.convert import export_prompt, import_prompts
from softprompt.interop.registry import PROMPT_FORMATS
from softprompt.prompt import InputPrompt, to
from softprompt.tasks import Generate

# ALBERT's and OPT's tables are narrower than their layers.
FAMILIES = ("bert", "albert", "deberta_v2", "llama", "gpt2", "opt", "bloom", "t5", "bart")
VECTORS = ("npy", "safetensors")
FILES = {"npy": "prompt.npy", "safetensors": "prompt.safetensors"}
# What T5X names it: google-research/prompt-tuning, numpy_checkpoints/checkpoint_N.
T5X = "encoder.prompt.prompt.prompt"


@pytest.fixture
def take(desk):
    """Import with label words, and the template that is the default."""

    def get(form: str, source: Path, own, template: str = "{soft:3}{text}"):
        task = desk.asking(own, template)
        found = import_prompts(form, source, backbone=own, task=task)
        assert found.keys() == {""}
        return found[""]

    return get


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_export_and_import(desk, take, tmp_path, family, form, dtype):
    own = desk.backbone(family)
    prompt = to(InputPrompt(desk.vectors(family)), dtype=dtype)
    model = desk.model(own, prompt, desk.asking(own, "{soft:3}{text}"))
    folder = export_prompt(form, model, output=tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == [FILES[form]]
    again = take(form, folder, own)
    # numpy has no bfloat16; float32 holds all of its numbers.
    kept = torch.float32 if (form, dtype) == ("npy", torch.bfloat16) else dtype
    found = again.artifact.prompt.vectors
    assert found.dtype == kept
    # bit for bit
    assert torch.equal(found.view(torch.uint8), prompt.vectors.to(kept).view(torch.uint8))
    assert again.artifact.prompt.start_layer == 0
    assert torch.equal(desk.scores(again), desk.scores(model))
    loaded = PromptModel.from_pretrained(again.save(tmp_path / "mood"), backbone=own)
    assert torch.equal(desk.scores(loaded), desk.scores(model))
    old, new = model.artifact.manifest, loaded.artifact.manifest
    assert (new.template, new.task, new.labels) == (old.template, old.task, old.labels)
    assert (new.backbone, new.kind, new.shapes) == (old.backbone, old.kind, old.shapes)
    assert new.recipe == {"imported": {"format": form}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_libraries_read_the_files(desk, tmp_path, dtype):
    own = desk.backbone("llama")
    prompt = to(InputPrompt(desk.vectors("llama")), dtype=dtype)
    model = desk.model(own, prompt, desk.asking(own, "{text}{soft:3}"))
    array = np.load(export_prompt("npy", model, output=tmp_path / "n") / "prompt.npy")
    assert np.array_equal(array, prompt.vectors.float().numpy())
    path = export_prompt("safetensors", model, output=tmp_path / "s") / "prompt.safetensors"
    held = safetensors.torch.load_file(path)
    assert held.keys() == {"prompt"}
    assert held["prompt"].dtype == dtype
    assert torch.equal(held["prompt"], prompt.vectors)


ARRAYS = {
    "as it is": lambda a: a,
    "doubles": lambda a: a.astype(np.float64),
    "halves": lambda a: a.astype(np.float16),
    "a batch of one": lambda a: a[None],
    "Fortran order": np.asfortranarray,
    "big-endian": lambda a: a.astype(">f4"),
    "big-endian doubles": lambda a: a.astype(">f8"),
    "big-endian halves": lambda a: a.astype(">f2"),
    "little-endian": lambda a: a.astype("<f4"),
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("change", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("family", ["t5", "albert"])
def test_arrays_of_every_layout(desk, take, tmp_path, family, change):
    own = desk.backbone(family)
    numbers = desk.vectors(family).numpy().astype(np.float16).astype(np.float32)
    np.save(tmp_path / "mine.npy", change(numbers))
    found = take("npy", tmp_path / "mine.npy", own).artifact.prompt.vectors
    assert np.array_equal(found.float().numpy(), numbers)
    assert found.dtype == (
        torch.float16 if "f2" in str(change(numbers).dtype.str) else torch.float32
    )
    assert found.is_contiguous()


@pytest.mark.parametrize("whole", [True, False])
def test_googles_file_has_no_suffix(desk, tmp_path, whole):
    """T5X's name, in the folder of a checkpoint or by itself; before the text of the encoder."""
    own = desk.backbone("t5")
    vectors = desk.vectors("t5", 4)
    with (tmp_path / T5X).open("wb") as file:
        np.save(file, vectors.numpy())
    source = tmp_path if whole else tmp_path / T5X
    model = import_prompts("npy", source, backbone=own)[""]
    assert torch.equal(model.artifact.prompt.vectors, vectors)
    assert model.artifact.manifest.template == "{soft:4}{text}"
    assert model.artifact.manifest.task["kind"] == "generate"
    variant = model.render("good").variants[0]
    text = own.tokenizer("good")["input_ids"]
    soft = [own.geometry.vocab_size + k for k in range(4)]
    assert list(variant.input_ids) == [*soft, *text]  # [Θ; E(x)], Lester et al. 2021


@pytest.mark.parametrize("template", ["{text}{soft:3}", "it{soft:2} is {text}{soft:1}"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_soft_tokens_stand_where_the_user_says(desk, take, tmp_path, family, template):
    own, prompt = desk.backbone(family), InputPrompt(desk.vectors(family))
    np.save(tmp_path / "prompt.npy", prompt.vectors.numpy())
    found = take("npy", tmp_path, own, template)
    assert torch.equal(
        desk.scores(found), desk.scores(desk.model(own, prompt, desk.asking(own, template)))
    )
    assert not torch.allclose(
        desk.scores(found), desk.scores(take("npy", tmp_path, own)), atol=1e-4
    )


@pytest.mark.parametrize("form", VECTORS)
def test_another_number_of_soft_tokens_is_refused(desk, tmp_path, form):
    own = desk.backbone("llama")
    vectors = desk.vectors("llama", 3).numpy()
    np.save(tmp_path / "prompt.npy", vectors)
    safetensors.numpy.save_file({"x": vectors}, tmp_path / "prompt.safetensors")
    for template, count in (("{soft:4}{text}", 4), ("{text}", 0)):
        with pytest.raises(TemplateError) as caught:
            import_prompts(form, tmp_path, backbone=own, task=Generate(template=template))
        assert str(caught.value) == (
            f"the template {template!r} has {count} soft tokens, but the prompt has 3. Write "
            "one such as '{soft:3}{text}'."
        )


@pytest.mark.parametrize("name", ["x", "prompt_embeddings", "soft.prompt.weight"])
def test_a_tensor_has_any_name(desk, take, tmp_path, name):
    vectors = desk.vectors("opt")
    safetensors.torch.save_file({name: vectors}, tmp_path / "model.safetensors")
    found = take("safetensors", tmp_path, desk.backbone("opt"))
    assert torch.equal(found.artifact.prompt.vectors, vectors)


@pytest.mark.parametrize("family", ["llama", "t5", "gpt2"])
def test_text_generation_is_the_default_task(desk, tmp_path, family):
    own, prompt = desk.backbone(family), InputPrompt(desk.vectors(family))
    task = Generate(template="{soft:3}{text}")
    model = desk.model(own, prompt, task, labels=[])
    folder = export_prompt("npy", model, output=tmp_path / "out")
    again = import_prompts("npy", folder, backbone=own)[""]
    assert again.artifact.manifest.task == model.artifact.manifest.task
    texts = ["the film was", "a", "it was a great"]
    assert list(again.predict(texts)) == list(model.predict(texts))


def test_only_choices_are_predicted(desk, tmp_path):
    np.save(tmp_path / "prompt.npy", desk.vectors("llama").numpy())
    task = Generate(choices=["yes", "no"])
    model = import_prompts("npy", tmp_path, backbone=desk.backbone("llama"), task=task)[""]
    assert model.labels == ("yes", "no")
    again = PromptModel.from_pretrained(
        model.save(tmp_path / "mood"), backbone=desk.backbone("llama")
    )
    assert {answer.label for answer in again.predict(["the film", "good", "a"])} <= {"yes", "no"}


def test_every_format_says_what_it_is():
    assert {*VECTORS, "peft", "p-tuning-v2"} <= PROMPT_FORMATS.keys()
    assert all(form.about for form in PROMPT_FORMATS.values())


def test_importing_opens_no_other_file(desk, take, tmp_path):
    """An artifact's own manifest beside its tensors is not looked at, nor needed."""
    own = desk.backbone("llama")
    vectors = desk.vectors("llama")
    safetensors.torch.save_file({"x": vectors}, tmp_path / "prompt.safetensors")
    (tmp_path / "manifest.json").write_text("{")
    model = take("safetensors", tmp_path, own)
    assert isinstance(load_artifact(model.save(tmp_path / "mood")).prompt, InputPrompt)


@pytest.mark.parametrize("kind", ["()", "(1,)", "[()]", "'|O'", "'x'", "(((", "None", "5"])
def test_a_header_that_describes_no_numbers(refused, tmp_path, kind):
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': (2, 32)}}".ljust(117) + "\n"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(256)
    (tmp_path / "prompt.npy").write_bytes(raw)
    assert "is not a complete .npy file of numbers: " in refused("npy", tmp_path)
