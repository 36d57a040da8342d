"""Two processes have the same numbers as one, also in batches of odd size."""

import json
import os
import subprocess
import sys

import pytest
from torch.testing import assert_close

from softprompt.artifact import load_artifact
from softprompt.recipe import read_recipe
from softprompt.train import run_recipe
from support.recipes import read_events

SCRIPT = """
import sys
from pathlib import Path
from softprompt.recipe import read_recipe
from softprompt.train import recorder, run_recipe

# Callbacks get events only, and this needs the trainer.
make_trainer, trainers = recorder.make_trainer, []
recorder.make_trainer = lambda *parts: trainers.append(make_trainer(*parts)) or trainers[-1]

def watch(event):
    if type(event).__name__ == "PhaseStarted":
        return
    trainer = trainers[-1]
    assert trainer.accelerator.num_processes == 2
    if event.step == 1:
        sys.stdout.write("whole " if trainer.task.cached is None else "cached ")

run_recipe(read_recipe(Path(sys.argv[1])), Path(sys.argv[2]), callbacks=[watch])
"""
# Without mpirun, accelerate starts several processes on a machine without GPUs only with
# --multi_gpu; with --cpu it starts one, whatever --num_processes is.
LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port 0"
)


RUNS = {
    "whole": (("bert", "p-tuning-v2"), {"task": "head"}),
    "cached": (("llama", "prompt-tuning"), {"task": "generate"}),
    "seeds": (("bert", "p-tuning-v2"), {"task": "head", "seeds": 2}),
}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_numbers_of_one(written, tmp_path, monkeypatch, name):
    """11 rows in batches of 5, so one step has one row for two processes; 3 validation rows."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    args, changes = RUNS[name]
    path = written(
        *args,
        sizes=(11, 3, 5),
        batch_size=5,
        gradient_accumulation_steps=2,
        backbone={"device": "auto"},
        **changes,
    )
    script = tmp_path / "launched.py"
    script.write_text(SCRIPT)
    command = [sys.executable, *LAUNCH.split(), str(script), str(path), str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"cached" if name == "cached" else "whole"}
    files = [*(tmp_path / "cache").rglob("*.safetensors")]
    assert len(files) == (name == "cached"), "one complete file for both"
    run_recipe(read_recipe(path), tmp_path / "one")
    for kind, keys in (("step", ("loss", "norm")), ("evaluation", ("train_loss", "moved"))):
        seed = "seed-8" if name == "seeds" else ""
        one, two = (read_events(tmp_path / run / seed, kind) for run in ("one", "two"))
        assert [e["step"] for e in two] == [e["step"] for e in one]
        for key in keys:
            assert [e[key] for e in two] == pytest.approx([e[key] for e in one], abs=1e-5)
    rows = [event["rows"] for event in read_events(tmp_path / "two" / seed, "step")]
    assert sorted(rows[:3]) == [1, 5, 5]
    first, second = (
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")
    )
    for part in ("validation", "test"):
        for key in ("confusion", "intervals"):
            assert first[part].pop(key, None) == second[part].pop(key, None)
        assert second[part] == pytest.approx(first[part], abs=1e-5)
    one, two = (
        load_artifact(tmp_path / "one").to_tensors(),
        load_artifact(tmp_path / "two").to_tensors(),
    )
    for part, tensor in one.items():
        assert_close(two[part], tensor, atol=1e-5, rtol=1e-4)
