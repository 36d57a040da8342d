"""Damaged, inconsistent and malicious files of other libraries are refused."""

import io
import json
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from softprompt.errors import ArtifactError
from softprompt.interop import files
from softprompt.interop.convert import import_prompts
from softprompt.interop.registry import PROMPT_FORMATS, read_base_model
from softprompt.tasks import Classify, Generate

NAMES = {
    "peft": "adapter_model.safetensors",
    "npy": "prompt.npy",
    "p-tuning-v2": "model.safetensors",
    "safetensors": "prompt.safetensors",
}
KEYS = {
    "peft": "prompt_embeddings",
    "p-tuning-v2": "prefix_encoder.embedding.weight",
    "safetensors": "prompt",
}
WHAT = {
    "peft": "PEFT adapter",
    "npy": "npy prompt",
    "p-tuning-v2": "P-tuning v2 checkpoint",
    "safetensors": "safetensors prompt",
}
FORMS = tuple(NAMES)
STORES = tuple(form for form in FORMS if form != "npy")
CONFIG = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": 3,
    "base_model_name_or_path": "tiny/llama",
    "prompt_tuning_init": "RANDOM",
}


def whole(form: str) -> Tensor:
    """A valid prompt for Llama: vectors of 32, or keys and values of 2 layers, 2 heads of 10."""
    return torch.linspace(-1, 1, 3 * (80 if form == "p-tuning-v2" else 32)).view(3, -1)


def put(
    folder: Path, form: str, content: Tensor | bytes | Mapping[str, Tensor] | None = None
) -> Path:
    """A folder of a format; without other content it is valid."""
    folder.mkdir(exist_ok=True)
    content = whole(form) if content is None else content
    path = folder / NAMES[form]
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif form == "npy":
        np.save(path, np.asarray(content))
    else:
        held = {KEYS[form]: content} if isinstance(content, Tensor) else dict(content)
        safetensors.torch.save_file(held, path)
    if form == "peft":
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_the_undamaged_files_are_read(desk, tmp_path, form):
    found = import_prompts(
        form, put(tmp_path, form), backbone=desk.backbone("llama"), task=Generate()
    )
    stored = [*found[""].artifact.to_tensors().values()]
    assert torch.equal(torch.cat([t.flatten() for t in stored]).sort()[0], whole(form).flatten())


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_folder(refused, tmp_path, form):
    source = tmp_path / "nowhere"
    assert refused(form, source) == (
        f"there is no file or folder {source}. Give the {WHAT[form]} file, or the folder it is in."
    )
    with pytest.raises(ArtifactError, match=r"there is no file or folder .*nowhere\. Give the"):
        read_base_model(form, source)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_folder(refused, tmp_path, form):
    message = refused(form, tmp_path)
    assert message.startswith(f"{tmp_path} has no ")
    assert message.endswith(
        f"so it is not a {WHAT[form]}; it holds nothing. Give the folder that has it."
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_folder_below_is_named(refused, tmp_path, form):
    put(tmp_path / "default", form)
    assert refused(form, tmp_path).endswith(
        f"it holds default. Its folder default has one: give {tmp_path / 'default'}."
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_file(refused, tmp_path, form):
    path = put(tmp_path, form) / NAMES[form]
    raw = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 60, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        message = refused(form, tmp_path)
        assert message.startswith(f"{path} ({size:,} bytes) is ")
        assert "Fetch it again." in message or "Save it again: numpy.save" in message


def array(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def store(header: str, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


def lying(shape: str, dtype: str = "<f4") -> bytes:
    return array(f"{{'descr':'{dtype}','fortran_order':False,'shape':{shape}}}\n")


# Garbage, and headers with false contents, of both kinds of file.
GARBAGE = [
    b"garbage",
    b"\xff" * 200,
    b"\x00" * 200,
    b"PK",
    b"PK\x03\x04" + b"\x00" * 100,
    b"PK\x03\x04" + b"x.npy" * 9,
    b"\x93NUMPY",
    array("{'descr':'<f4'}\n"),
    array("(((((("),
    array("(" * 60_000),
    array("[" * 300 + "]" * 300),
    array(" {\n1"),
    array("'" + "a" * 60_000 + "'"),
    b"\x93NUMPY\x09\x00\x06\x00{}    ",
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    lying("(4611686018427387904,32)"),
    lying("(99999999999999999999,)"),
    lying("(-1,32)"),
    lying("(1000000,1000000)"),
    lying("('a',)"),
    lying("(3,32)", "zz"),
    lying("(3,32)", "|O"),
    store("{" * 16),
    store("{" * 60_000),
    b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    store('{"x":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}}', b"0000"),
    store('{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"0000"),
    store('{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"0000"),
    store('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
]


@pytest.mark.parametrize("raw", GARBAGE)
@pytest.mark.parametrize("form", FORMS)
def test_garbage(refused, tmp_path, form, raw):
    path = put(tmp_path, form, raw) / NAMES[form]
    assert refused(form, tmp_path).startswith(str(path))


class Malicious:
    """An object whose unpickling runs code."""

    def __reduce__(self):
        return (exec, ("import sys; sys.the_pickle_was_read = True",))


def pickles() -> dict[str, bytes]:
    archive, old, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"x": torch.ones(3, 32), "y": Malicious()}, archive)
    torch.save({"x": Malicious()}, old, _use_new_zipfile_serialization=False)
    np.save(objects, np.array([Malicious()], dtype=object))
    bare = {f"protocol {at}": pickle.dumps({"x": Malicious()}, protocol=at) for at in range(6)}
    return bare | {"torch": archive.getvalue(), "old": old.getvalue(), "npy": objects.getvalue()}


PICKLED = pickles()


@pytest.mark.parametrize("kind", PICKLED)
@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_under_the_right_name_is_not_read(refused, tmp_path, form, kind):
    path = put(tmp_path, form, PICKLED[kind]) / NAMES[form]
    message = refused(form, tmp_path)
    assert not hasattr(sys, "the_pickle_was_read")
    if kind in {"protocol 0", "protocol 1", "npy"}:  # which begin as text or an array may
        assert message.startswith(f"{path} ({len(PICKLED[kind]):,} bytes) is ")
    else:
        assert message.startswith(
            f"{path} is a pickle or an archive of torch.save, which is refused: reading one can "
            "run any code. Where you trust it, convert it and import the result:\n  python -c "
        )


@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth", ".pkl"])
@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_alone_in_the_folder_is_named(refused, tmp_path, form, ending):
    (tmp_path / f"adapter_model{ending}").write_bytes(PICKLED["torch"])
    if form == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert refused(form, tmp_path).startswith(f"{tmp_path / f'adapter_model{ending}'} is a pickle")


def test_a_pickle_next_to_the_file_is_not_read(desk, tmp_path):
    folder = put(tmp_path, "peft")
    (folder / "adapter_model.bin").write_bytes(PICKLED["torch"])
    found = import_prompts("peft", folder, backbone=desk.backbone("llama"))[""]
    assert torch.equal(found.artifact.prompt.vectors, whole("peft"))


def test_the_command_that_is_named_converts_it(refused, desk, tmp_path):
    """As it is printed, in a folder whose name a shell takes apart."""
    folder = tmp_path / "my $HOME; adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    torch.save({"prompt_embeddings": whole("peft")}, folder / "adapter_model.bin")
    command = refused("peft", folder).split("\n", 1)[1].strip()
    assert command.startswith("python -c ")
    words = shlex.split(command)
    subprocess.run([sys.executable, *words[1:]], check=True)
    found = import_prompts("peft", folder, backbone=desk.backbone("llama"))[""]
    assert torch.equal(found.artifact.prompt.vectors, whole("peft"))


def test_arrays_of_objects_and_archives(refused, tmp_path):
    np.savez(tmp_path / "many.npz", a=np.ones((3, 32)), b=np.ones(2))
    (tmp_path / "prompt.npy").write_bytes((tmp_path / "many.npz").read_bytes())
    for path in (tmp_path / "prompt.npy", tmp_path / "many.npz"):
        assert refused("npy", path) == (
            f"{path} is an archive of arrays (.npz), but a prompt is a single one. Save it alone: "
            "numpy.save(path, array.astype('float32'))."
        )
    np.save(tmp_path / "prompt.npy", np.array([{"a": 1}], dtype=object))
    assert refused("npy", tmp_path).endswith(
        "is not a complete .npy file of numbers: Object arrays cannot be loaded when allow_pickle=False. "  # noqa: E501  # the message
        "Objects are pickles and are refused. Save it again: "
        "numpy.save(path, array.astype('float32'))."
    )


@pytest.mark.parametrize(
    "dtype", ["i4", "i8", "u1", "?", "c8", "g", "U3", "S2", "M8[s]", [("a", "f4"), ("b", "f4")]]
)
def test_arrays_of_something_else(refused, tmp_path, dtype):
    made = np.zeros((3, 32), dtype=dtype)
    np.save(tmp_path / "prompt.npy", made)
    assert refused("npy", tmp_path) == (
        f"{tmp_path / 'prompt.npy'} holds {made.dtype}, but a prompt is float16, float32 or "
        "float64. Convert it."
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float64])
@pytest.mark.parametrize("form", STORES)
def test_tensors_of_something_else(refused, tmp_path, form, dtype):
    put(tmp_path, form, whole(form).to(dtype))
    assert refused(form, tmp_path) == (
        f"{tmp_path / NAMES[form]}: {KEYS[form]} is {str(dtype).removeprefix('torch.')}; a tensor "
        "must be float32, bfloat16 or float16. Convert it."
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", FORMS)
def test_values_that_are_not_finite(refused, tmp_path, form, wrong):
    spoilt = whole(form)
    spoilt[0, :2] = wrong
    put(tmp_path, form, spoilt)
    name = KEYS.get(form, "the array")
    assert refused(form, tmp_path) == (
        f"{tmp_path / NAMES[form]}: {name}: 2 of its {spoilt.numel()} values are NaN or infinite, "
        "so nothing can be computed with it. Take another checkpoint of that run."
    )


def test_doubles_beyond_float32(refused, tmp_path):
    np.save(tmp_path / "prompt.npy", np.full((3, 32), 1e300))
    assert "96 of its 96 values are NaN or infinite" in refused("npy", tmp_path)


SHAPES = [(32,), (2, 3, 32), (0, 32), (3, 31), (3, 0), (), (1, 3, 3, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_shapes(refused, tmp_path, form, shape):
    put(tmp_path, form, torch.ones(shape))
    path, given = tmp_path / NAMES[form], [*shape]
    message = refused(form, tmp_path)
    takes = "takes 80 (2 x 2 layers x 2 heads x 10)"
    other = (
        "The prompt belongs to another backbone: name it with --backbone (backbone=… in Python)."
    )
    match form, shape:
        case "peft", (3, wide):
            assert message == (
                f"{path}: each soft token has {wide} numbers, but 'llama' embeds tokens in 32. "
                f"{other}"
            )
        case "peft", _:
            assert message == (
                f"{path}: prompt_embeddings is {given}, but PROMPT_TUNING with 3 virtual tokens "
                "has 3 rows. Configuration and tensors are not from the same adapter."
            )
        case "p-tuning-v2", (int(rows), int(wide)) if rows:
            assert message == f"each soft token has {wide} numbers, but 'llama' {takes}. {other}"
        case "p-tuning-v2", _:
            assert message == (
                f"{path} holds {KEYS[form]} {given}, but a prefix of P soft tokens is [P, 2·L·H], "
                "or [P, H] with an MLP that maps it to that. Give a checkpoint of P-tuning "
                "v2."
            )
        case _:
            assert message == (
                f"{path} holds {given}, but a prompt for 'llama' is [P, 32]: P soft tokens. Take "
                "another file, or name the prompt's own backbone with --backbone (backbone=… in "
                "Python)."
            )


@pytest.mark.parametrize("form", FORMS)
def test_a_link_that_leads_out_of_the_folder(refused, tmp_path, form):
    away = put(tmp_path / "away", form)
    folder = tmp_path / "here"
    folder.mkdir()
    for path in away.iterdir():
        (folder / path.name).symlink_to(path)
    message = refused(form, folder)
    name = "adapter_config.json" if form == "peft" else NAMES[form]
    assert message == (
        f"{folder / name} is a link to {away / name}, outside the folder; only files in it are "
        f"read. Copy the file itself: cp --remove-destination {away / name} {folder / name}"
    )
    if form == "peft":  # its tensors alone
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(CONFIG))
        assert refused(form, folder).startswith(f"{folder / NAMES[form]} is a link to ")


@pytest.mark.parametrize("below", ["", "adapters/mood"])
@pytest.mark.parametrize("form", FORMS)
def test_the_hubs_cache_is_links(desk, tmp_path, form, below):
    """``models--a--b/snapshots/<commit>/file`` leads to ``models--a--b/blobs/<hash>``."""
    made = put(tmp_path / "made", form)
    root = tmp_path / "models--a--b"
    folder = root / "snapshots" / "0123abc" / below
    folder.mkdir(parents=True)
    (root / "blobs").mkdir()
    for at, path in enumerate(made.iterdir()):
        path.rename(root / "blobs" / f"f{at}")
        goal = os.path.relpath(root / "blobs" / f"f{at}", folder)
        (folder / path.name).symlink_to(goal)
    own = desk.backbone("llama")
    found = import_prompts(form, folder, backbone=own, task=Generate())[""]
    assert found.artifact.prompt.length == 3


def test_a_link_to_another_models_blobs_is_refused(refused, tmp_path):
    away = tmp_path / "models--c--d" / "blobs"
    away.mkdir(parents=True)
    folder = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    np.save(away / "prompt.npy", whole("npy").numpy())
    (folder / "prompt.npy").symlink_to(away / "prompt.npy")
    assert "outside the folder" in refused("npy", folder)


@pytest.mark.parametrize("form", FORMS)
def test_a_pipe_is_not_waited_for(refused, tmp_path, form):
    path = put(tmp_path, form) / NAMES[form]
    path.unlink()
    os.mkfifo(path)
    assert refused(form, tmp_path) == (
        f"{path} is not a regular file. Give a file, or the folder it is in."
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_under_the_files_name(refused, tmp_path, form):
    path = put(tmp_path, form) / NAMES[form]
    path.unlink()
    path.mkdir()
    assert "is not a regular file" in refused(form, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_link_to_nothing(refused, tmp_path, form):
    path = put(tmp_path, form) / NAMES[form]
    path.unlink()
    path.symlink_to("gone")
    assert refused(form, tmp_path) == (
        f"{path} cannot be read: No such file or directory. Give a file that this user may read."
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_file_too_large_for_any_prompt(refused, tmp_path, monkeypatch, form):
    path = put(tmp_path, form) / NAMES[form]
    monkeypatch.setattr(files, "LARGEST", 350)
    assert refused(form, tmp_path) == (
        f"{path} has {path.stat().st_size:,} bytes, but files of at most 350 are read. Take the "
        "prompt's own tensors out of it into a file of their own."
    )


def test_two_tensors_are_not_a_plain_prompt(refused, tmp_path):
    put(tmp_path, "safetensors", {"a": torch.ones(3, 32), "b": torch.ones(3, 32)})
    path = tmp_path / "prompt.safetensors"
    remedy = "Save it alone; for adapters there are the formats peft and p-tuning-v2."
    assert refused("safetensors", tmp_path) == (
        f"{path} holds 2 tensors (a, b), but a plain prompt is one. {remedy}"
    )
    put(tmp_path, "safetensors", {})
    assert refused("safetensors", tmp_path) == (
        f"{path} holds 0 tensors (), but a plain prompt is one. {remedy}"
    )


def test_an_encoder_without_a_task_is_asked_for_one(refused, desk, tmp_path):
    np.save(tmp_path / "prompt.npy", desk.vectors("bert").numpy())
    said = refused("npy", tmp_path, family="bert")
    assert said == (
        "the file does not say which task the prompt is for. Give the task: kind 'generate', or "
        "kind 'classify' with a verbalizer, such as --set task.kind=classify --set "
        '\'task.verbalizer={bad=" bad", good=" good"}\' (task=Classify(verbalizer=…) in Python).'
    )
    said = refused("npy", tmp_path, family="bert", task=Classify())
    assert said == (
        "the file has no trained head, so labels need words that the language-model head can "
        "score. Give the task a verbalizer."
    )


def test_choices_from_data_need_data(refused, tmp_path):
    said = refused("npy", put(tmp_path, "npy"), task=Generate(choices="from-data"))
    assert said == (
        "task.choices is 'from-data', but a prompt is imported without data. List the choices, or "
        "leave task.choices out for any text."
    )


def test_an_unknown_format_to_import(refused, tmp_path):
    assert refused("pef", tmp_path) == (
        "unknown format to import 'pef'. Options: "
        f"{', '.join(sorted(able('read')))}. Did you mean 'peft'?"
    )


def able(what: str) -> list[str]:
    return [name for name, form in PROMPT_FORMATS.items() if getattr(form, what) is not None]
