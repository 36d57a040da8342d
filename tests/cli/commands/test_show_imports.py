"""``show --no-backbone`` waits for torch, and not for transformers' models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.artifact import make_artifact, save_artifact
from support.artifacts import ORIGIN, make_sample

# For each command its exit status, what it shows, and the slow modules that are imported by then.
PROGRAM = """
import contextlib, io, json, sys
from softprompt.cli import app

def list_models():
    slow = ("transformers.modeling_utils", "transformers.models.", "torch._dynamo")
    return sorted(name for name in sys.modules if name.startswith(slow))

results = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = app(["show", *command], standalone_mode=False)
    results.append([status, out.getvalue(), list_models()])
import softprompt.inference.model
print(json.dumps([results, list_models()]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """An artifact of every kind of prompt and task."""
    root = tmp_path_factory.mktemp("artifacts")
    samples = {
        "words": make_sample("input"),
        "head": make_sample("input", head=True),
        "prefix": make_sample("kv"),
        "prefix-head": make_sample("kv", head=True),
        "text": make_artifact(
            make_sample("input").prompt, {}, **ORIGIN | {"task": {"kind": "generate"}, "labels": []}
        ),
    }
    return {name: str(save_artifact(one, root / name)) for name, one in samples.items()}


def test_show_without_a_backbone_does_not_import_models(
    folders: dict[str, str], tmp_path: Path
) -> None:
    single = [
        [folder, "--no-backbone", *more] for folder in folders.values() for more in ([], ["--json"])
    ]
    pairs = [("words", "head", "text"), ("prefix", "prefix-head")]
    several = [
        [*(folders[name] for name in names), "--no-backbone", *more]
        for names in pairs
        for more in ([], ["--json"], ["--output", str(tmp_path / "cosines.svg")])
    ]
    commands = json.dumps([*single, *several])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, commands],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results, afterwards = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == len(single) + len(several)
    for status, shown, models in results:
        assert not status
        assert ORIGIN["backbone"]["fingerprint"] in shown
        assert models == []
    assert "transformers.modeling_utils" in afterwards  # so it would have been seen
    assert (tmp_path / "cosines.svg").exists()
