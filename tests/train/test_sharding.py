"""A backbone that is sharded over two processes trains, caches and evaluates like a whole one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.artifact import load_artifact
from softprompt.backbone import LoadOptions, load_unverified
from softprompt.errors import RecipeError, TrainingError
from softprompt.recipe import make_recipe, read_recipe
from softprompt.train import run_recipe
from support.recipes import read_events

# Both processes write the sizes of their shards after each event, and at the end all weights.
SCRIPT = """
import json
import sys
from pathlib import Path

from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from softprompt.recipe import read_recipe
from softprompt.train import recorder, run_recipe

# Callbacks get events only, and this needs the trainer.
make_trainer, trainers = recorder.make_trainer, []
recorder.make_trainer = lambda *parts: trainers.append(make_trainer(*parts)) or trainers[-1]

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

for name in sys.argv[2:]:
    folder, notes = Path(sys.argv[1]), []

    def watch(event):
        if type(event).__name__ == "PhaseStarted":
            return
        trainer = trainers[-1]
        model, which = trainer.task.backbone.model, trainer.accelerator.process_index
        shards = [p for p in model.parameters() if isinstance(p, DTensor)]
        notes.append({
            "whole": sum(p.numel() for p in shards),
            "local": sum(p.to_local().numel() for p in shards),
            "layers": sum(isinstance(m, FSDPModule) for m in model.modules()),
            "cached": trainer.task.cached is not None,
        })
        (folder / f"{name}-{which}.json").write_text(json.dumps(notes))

    recipe = read_recipe(folder / f"{name}.toml", ["backbone.shard=true"])
    model = run_recipe(recipe, folder / f"{name} two", callbacks=[watch]).backbone.model
    weights = {n: whole(p).clone() for n, p in model.named_parameters()}
    save_file(weights, folder / f"{name}.safetensors")
"""
# Hidden states and a prompt's gradient of each backbone, whole and sharded, and the local weights.
EVERY = """
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from softprompt.backbone.introspection import make_example_inputs
from softprompt.injection import forward, load_backbone
from softprompt.prompt import InputPrompt

which = PartialState(cpu=True).process_index
folder, found = Path(sys.argv[1]), {}
for family in sys.argv[2:]:
    results = []
    for shard in (False, True):
        own = load_backbone(str(folder / family), dtype=None, device="cpu", shard=shard)
        size, first = own.geometry.embedding_size, own.geometry.vocab_size
        vectors = torch.linspace(-1, 1, 2 * size).view(2, size).requires_grad_()
        inputs = make_example_inputs(own)
        inputs.input_ids[0, :2] = torch.tensor([first, first + 1])
        states = forward(own, inputs, prompts=[InputPrompt(vectors)])
        states.pow(2).sum().backward()
        shards = [p for p in own.model.parameters() if isinstance(p, DTensor)]
        whole = sum(p.numel() for p in own.model.parameters())
        local = whole - sum(p.numel() - p.to_local().numel() for p in shards)
        results.append([states.flatten().tolist(), vectors.grad.flatten().tolist(), local, whole])
    found[family] = results
(folder / f"every-{which}.json").write_text(json.dumps(found))
"""
LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port 0"
)
# Some rows have little text before the soft tokens. They are run whole if all processes do so.
BETWEEN = "{text}{soft:3} the film is very the plot was a story"
NOTHING = {"memory_gb": 0.0, "disk_gb": 0.0}
RUNS: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "shared": (("llama", "prompt-tuning"), {}),
    "recomputed": (("llama", "p-tuning"), {"gradient_checkpointing": True}),
    "cached": (("llama", "prompt-tuning"), {"task": "generate"}),
    "between": (("llama", "prompt-tuning"), {"task": "head", "cache": NOTHING}),
    "bert": (("bert", "p-tuning-v2"), {"task": "head"}),
    "late": (("bert", "p-tuning-v2"), {"task": "head", "settings": {"layers": "1:"}}),
    "t5": (("t5", "prompt-tuning"), {"task": "words"}),
    "t5 writes": (("t5", "prefix-tuning"), {"task": "generate"}),
}


def launch(script: Path, *args: str) -> None:
    """Run two processes; if they block each other, they end with the test."""
    command = [sys.executable, *LAUNCH.split(), str(script), *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as started:
        try:
            output, _ = started.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            started.terminate()  # and it ends the two
            raise
    assert started.returncode == 0, output


def write_recipes(written, folder: Path) -> None:
    """11 rows in batches of 5, each in two parts: in the last step one process has no rows."""
    for name, (args, changes) in RUNS.items():
        more = {
            "batch_size": 5,
            "gradient_accumulation_steps": 2,
            "backbone": {"device": "auto"},
        } | changes
        path = written(*args, sizes=(11, 5, 5), **more)
        text = path.read_text()
        if name == "between":
            text = text.replace("{soft:3}{text}", BETWEEN)
            assert BETWEEN in text
        (folder / f"{name}.toml").write_text(text)


def check_same_numbers(folder: Path, name: str) -> None:
    one, two = folder / f"{name} one", folder / f"{name} two"
    for kind, keys in (("step", ("loss", "norm")), ("evaluation", ("train_loss", "moved"))):
        for key in keys:
            expected = [event[key] for event in read_events(one, kind)]
            found = [event[key] for event in read_events(two, kind)]
            assert found == pytest.approx(expected, abs=1e-4), (name, key)
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (one, two))
    for part in ("validation", "test"):
        for key in ("confusion", "intervals"):
            assert first[part].pop(key, None) == second[part].pop(key, None), name
        assert second[part] == pytest.approx(first[part], abs=1e-4), name
    expected, found = load_artifact(one).to_tensors(), load_artifact(two).to_tensors()
    for part, tensor in expected.items():
        assert_close(found[part], tensor, atol=1e-4, rtol=1e-3)


def check_shards(folder: Path, name: str) -> None:
    """Between steps each process has about half of every layer, and of the same layers."""
    notes = [json.loads((folder / f"{name}-{which}.json").read_text()) for which in (0, 1)]
    for first, second in zip(*notes, strict=True):
        assert first["local"] + second["local"] == first["whole"] == second["whole"], name
        assert 0.45 < first["local"] / first["whole"] < 0.55, name
    assert len({note["whole"] for note in notes[0]}) == 1, f"{name}: not always the same layers"
    assert notes[0][-1]["cached"] == (name in {"cached", "late"}), name


def check_weights(folder: Path, name: str) -> None:
    from safetensors.torch import load_file

    found = load_file(folder / f"{name}.safetensors")
    family = RUNS[name][0][0]
    own = load_unverified(str(folder / family), LoadOptions(dtype=torch.float32)).model
    assert {*found} == {n for n, _ in own.named_parameters()}, name
    for part, tensor in own.named_parameters():
        assert torch.equal(found[part], tensor), (name, part)


def test_two_processes_with_a_shard_each_have_the_numbers_of_one(written, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    write_recipes(written, tmp_path)
    script = tmp_path / "launched.py"
    script.write_text(SCRIPT)
    launch(script, str(tmp_path), *RUNS)
    assert not [*(tmp_path / "cache").rglob("*.safetensors")], "each process caches in memory"
    for name in RUNS:
        run_recipe(read_recipe(tmp_path / f"{name}.toml"), tmp_path / f"{name} one")
        check_same_numbers(tmp_path, name)
        check_shards(tmp_path, name)
        check_weights(tmp_path, name)


@pytest.mark.slow
def test_every_family_can_be_sharded(saved, families, tmp_path):
    """Loading verifies each of them."""
    for family in families:
        saved(family)
    script = tmp_path / "every.py"
    script.write_text(EVERY)
    launch(script, str(tmp_path), *families)
    for which in (0, 1):
        found = json.loads((tmp_path / f"every-{which}.json").read_text())
        for family in families:
            (states, gradient, _, whole), (sharded, sharded_gradient, local, _) = found[family]
            assert sharded == pytest.approx(states, abs=1e-5), family
            assert sharded_gradient == pytest.approx(gradient, rel=1e-3, abs=1e-3), family
            # Most weights of a tiny model are its embeddings.
            assert local < 0.85 * whole, family


def test_one_process_cannot_shard(written, tmp_path):
    recipe = read_recipe(written("llama"), ["backbone.shard=true"])
    with pytest.raises(TrainingError, match="this is the only one"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "other", [{"device_map": "auto"}, {"quantization_config": {"load_in_8bit": True}}]
)
def test_sharding_excludes_other_placements(data, other):
    with pytest.raises(
        RecipeError, match=f"backbone.shard: does not go with .*{next(iter(other))}"
    ):
        make_recipe(data(backbone={"shard": True} | other))


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed", "Megatron-LM"])
def test_accelerate_s_wrappers_are_refused(written, tmp_path, monkeypatch, name):
    key = {"Megatron-LM": "MEGATRON_LM"}.get(name, name.upper())
    monkeypatch.setenv(f"ACCELERATE_USE_{key}", "true")
    with pytest.raises(TrainingError, match=f"set to use {name}.*Launch with --multi_gpu"):
        run_recipe(read_recipe(written("llama")), tmp_path / "run")
