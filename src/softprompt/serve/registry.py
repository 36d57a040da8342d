"""A registry: a folder of named prompts, each in versions that never change.

Everything lies directly in the one folder, so that each change is one rename in it, and so that a
single look at the folder's modification time tells whether anything has changed::

    reviews@1/            an artifact: manifest.json and prompt.safetensors; or an ensemble
    reviews@2/
    reviews@2.withdrawn   the version was unpublished; its number is not used again
    reviews.pin           the number of the version that ``reviews`` means; without it the newest
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from softprompt._io import (
    ErrorContext,
    load_strict_json,
    name_temporary,
    remove_leftovers,
    replace_file,
    write_once,
)
from softprompt.artifact.ensembles import (
    digest_saved,
    list_members,
    load_saved_from,
    read_saved_files,
)
from softprompt.artifact.store import MANIFEST, find_artifact, read_file_bytes
from softprompt.errors import ArtifactError, format_unknown

MAX_BYTES = 1 << 30  # of a version, by default
_MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENTRY = re.compile(r"(?P<name>[^@]+)(@(?P<number>[1-9][0-9]{0,8})(?P<gone>\.withdrawn)?|\.pin)")
_DIGEST = re.compile(r"sha256:(?P<digest>[0-9a-f]{8,64})")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
# A change within this time of a look may have the same modification time as one before it.
_TICK_SECONDS = 2.0
_REMEDY = "Publish it again under a new version."


@dataclass(frozen=True, order=True)
class PromptVersion:
    """One version of a named prompt.

    Args:
        name: of the prompt.
        number: of the version, from 1.

    Examples:
        >>> str(PromptVersion("reviews", 3))
        'reviews@3'
    """

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class PublishedPrompt:
    """What a registry knows of a version.

    Args:
        version: its name and number.
        digest: the SHA-256 of its manifest, which holds that of its tensors; of an ensemble, of
            the description that holds those of its members' manifests.
        bytes: of its files.
        is_current: whether its name alone means this version.
        is_pinned: whether that was set by `Registry.pin`.
        task: the kind of its task.
        members: the number of prompts; more than one in an ensemble.
        labels: that it can predict; empty for free text.
        backbone: the name of the backbone that it was trained on.
        fingerprint: of the backbone.
    """

    version: PromptVersion
    digest: str
    bytes: int
    is_current: bool
    is_pinned: bool
    task: str
    members: int
    labels: tuple[str, ...]
    backbone: str
    fingerprint: str

    def as_data(self) -> dict[str, Any]:
        """The version as JSON has it."""
        facts = asdict(self)
        return {"prompt": str(self.version), **facts.pop("version"), **facts}


@dataclass(frozen=True)
class RegistryState:
    """What a registry held at one moment.

    Args:
        numbers: the versions of each name, the oldest first.
        pins: the version that a name means, where one is pinned.
        stamp: the modification time of the folder, in nanoseconds.
        seen: the time of the look, in seconds since the epoch.
    """

    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pins: Mapping[str, int] = field(default_factory=dict)
    stamp: int = 0
    seen: float = 0.0

    def get_current(self, name: str) -> int:
        """The version that a name alone means.

        Args:
            name: a name that the registry has.
        """
        pinned = self.pins.get(name)
        return pinned if pinned in self.numbers[name] else self.numbers[name][-1]


class Registry:
    """A folder of named prompts in immutable versions, for servers to read.

    Writers may be killed at any moment, and several may write at the same time: a reader sees each
    version whole or not at all.

    Args:
        folder: of the registry; it is made when the first prompt is published.
        max_bytes: the most bytes of a version.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> registry = Registry("prompts")
        >>> str(registry.publish(model.save("mood"), "mood").version)
        'mood@1'
        >>> str(registry.publish("mood", "mood").version)
        'mood@2'
        >>> registry.pin("mood", 1)
        >>> str(registry.resolve("mood"))
        'mood@1'
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def publish(self, artifact: str | Path, name: str) -> PublishedPrompt:
        """Publish an artifact as the newest version of a name.

        The copy is loaded and checked whole before its name appears.

        Args:
            artifact: its folder, or that of a finished run; or an ensemble.
            name: letters, digits, ``.``, ``_`` and ``-``.

        Returns:
            The new version.

        Raises:
            ArtifactError: the artifact is damaged or too large, the name cannot be used, or the
                registry cannot be written.
        """
        check_name(name)
        source = find_artifact(Path(artifact))
        context = ErrorContext(str(source), "Restore the folder from a copy, or train again.")
        files = read_saved_files(source, source=context)
        self._check_size(files, context)
        self._check_case(name)
        number = self._write(name, files, context)
        return self._describe(PromptVersion(name, number), self.read_state())

    def unpublish(self, reference: str) -> list[PromptVersion]:
        """Withdraw a version, or with its name alone all versions of a prompt.

        Args:
            reference: ``NAME``, ``NAME@3`` or ``NAME@sha256:…``.

        Returns:
            The versions that were withdrawn; their numbers are not used again.

        Raises:
            ArtifactError: there is no such prompt, or the version is pinned.
        """
        state = self.read_state()
        name, _, which = reference.partition("@")
        self._check_known(name, state)
        numbers = [self.resolve(reference, state=state).number] if which else state.numbers[name]
        if which and state.pins.get(name) in numbers:
            msg = (
                f"{name}@{numbers[0]} is pinned, so it is what {name} means. Pin another version "
                f"first, or remove the pin: softprompt registry pin {name} newest"
            )
            raise ArtifactError(msg)
        gone = [PromptVersion(name, number) for number in numbers]
        for version in gone:
            self._withdraw(version)
        if not which:
            self._locate_pin(name).unlink(missing_ok=True)
        return gone

    def pin(self, name: str, number: int | None) -> None:
        """Say which version a name means.

        Args:
            name: of the prompt.
            number: of the version; None for the newest, whatever is published later.

        Raises:
            ArtifactError: there is no such version.
        """
        self._check_known(name, self.read_state())
        if number is None:
            self._locate_pin(name).unlink(missing_ok=True)
            return
        self.resolve(f"{name}@{number}")
        with replace_file(self._locate_pin(name)) as fresh:
            fresh.write_text(f"{number}\n", "utf-8")

    def resolve(self, reference: str, *, state: RegistryState | None = None) -> PromptVersion:
        """The version that a reference means.

        Args:
            reference: ``NAME``, ``NAME@3`` or ``NAME@sha256:…`` with at least eight digits.
            state: of `read_state`; None to read it now.

        Raises:
            ArtifactError: there is no such version, or a digest is that of several.
        """
        state = state or self.read_state()
        name, at, which = reference.partition("@")
        self._check_known(name, state)
        numbers = state.numbers[name]
        if not at:
            return PromptVersion(name, state.get_current(name))
        if digest := _DIGEST.fullmatch(which):
            return self._find_digest(name, digest["digest"], numbers)
        if not _NUMBER.fullmatch(which):
            msg = (
                f"{reference!r} does not name a version. Write {name}, {name}@{numbers[-1]} or "
                f"{name}@sha256: with at least eight hexadecimal digits."
            )
            raise ArtifactError(msg)
        if int(which) not in numbers:
            listed = ", ".join(map(str, numbers))
            msg = f"{name} has no version {which}. Versions: {listed}."
            raise ArtifactError(msg)
        return PromptVersion(name, int(which))

    def list_prompts(self) -> list[PublishedPrompt]:
        """All versions of all prompts, by name and number.

        Raises:
            ArtifactError: a manifest cannot be read.
        """
        state = self.read_state()
        return [
            self._describe(PromptVersion(name, number), state)
            for name in sorted(state.numbers)
            for number in state.numbers[name]
        ]

    def locate(self, version: PromptVersion) -> Path:
        """The folder of a version.

        Args:
            version: of this registry.
        """
        return self.folder / str(version)

    def compute_digest(self, version: PromptVersion) -> str:
        """The digest of a version, as `digest_saved` computes it.

        Args:
            version: of this registry.

        Raises:
            ArtifactError: it cannot be read.
        """
        context = ErrorContext(str(version), _REMEDY)
        return digest_saved(self.locate(version), source=context)

    def read_state(self) -> RegistryState:
        """Look at the folder: one listing, without opening any artifact."""
        seen, stamp = time.time(), self._read_stamp()
        numbers: dict[str, set[int]] = {}
        gone: set[tuple[str, int]] = set()
        pins: dict[str, int] = {}
        for entry in self._list_entries():
            match = _ENTRY.fullmatch(entry)
            if match is None or not is_name(match["name"]):
                continue
            name, number = match["name"], int(match["number"] or 0)
            if not number:
                pins |= self._read_pin(name)
            elif match["gone"]:
                gone.add((name, number))
            else:
                numbers.setdefault(name, set()).add(number)
        left = {
            name: sorted(n for n in of if (name, n) not in gone) for name, of in numbers.items()
        }
        return RegistryState(
            {name: tuple(of) for name, of in sorted(left.items()) if of}, pins, stamp, seen
        )

    def has_changed(self, state: RegistryState) -> bool:
        """Whether the folder may have changed since a state was read: one look at its time.

        Shortly after a change the answer is True even if nothing else has changed, since two
        changes within one tick of the file system's clock have the same time.

        Args:
            state: of `read_state`.
        """
        is_recent = state.seen - state.stamp / 1e9 < _TICK_SECONDS
        return is_recent or self._read_stamp() != state.stamp

    def _read_stamp(self) -> int:
        try:
            return self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _list_entries(self) -> list[str]:
        try:
            return os.listdir(self.folder)  # noqa: PTH208  # names alone: there may be 100,000
        except FileNotFoundError:
            return []

    def _read_pin(self, name: str) -> dict[str, int]:
        try:
            text = self._locate_pin(name).read_text("utf-8").strip()
        except FileNotFoundError:  # removed since the folder was listed
            return {}
        return {name: int(text)} if _NUMBER.fullmatch(text) else {}

    def _locate_pin(self, name: str) -> Path:
        return self.folder / f"{name}.pin"

    def _check_known(self, name: str, state: RegistryState) -> None:
        check_name(name)
        if name not in state.numbers:
            fault = format_unknown("prompt", name, options=state.numbers)
            msg = f"{fault} The registry is {self.folder}."
            raise ArtifactError(msg)

    def _check_size(self, files: Mapping[str, bytes], context: ErrorContext) -> None:
        size = sum(map(len, files.values()))
        if size > self.max_bytes:
            msg = (
                f"{context.name} has {size:,} bytes, but this registry takes at most "
                f"{self.max_bytes:,}. Shorten the prompt (softprompt prune), or raise max_bytes "
                "(--max-bytes)."
            )
            raise ArtifactError(msg)

    def _check_case(self, name: str) -> None:
        """On some file systems two names that differ in case are the same folder."""
        for other in self.read_state().numbers:
            if other != name and other.casefold() == name.casefold():
                msg = f"the registry has a prompt {other!r}. Write its name so, or choose another."
                raise ArtifactError(msg)

    def _write(self, name: str, files: Mapping[str, bytes], context: ErrorContext) -> int:
        """Write the files as the next version, again if another writer takes its number."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                number = self._find_free_number(name)
                try:
                    with write_once(self.folder / f"{name}@{number}") as fresh:
                        for part, content in files.items():
                            (fresh / part).parent.mkdir(exist_ok=True)
                            (fresh / part).write_bytes(content)
                        load_saved_from(fresh, source=context)
                except FileExistsError:
                    continue
                return number
        except OSError as error:
            msg = (
                f"the registry {self.folder} cannot be written: {error.strerror}. Nothing was "
                "published. Choose a writable folder on a disk with enough space."
            )
            raise ArtifactError(msg) from error

    def _find_free_number(self, name: str) -> int:
        matches = map(_ENTRY.fullmatch, self._list_entries())
        return 1 + max(
            (int(m["number"] or 0) for m in matches if m and m["name"] == name), default=0
        )

    def _withdraw(self, version: PromptVersion) -> None:
        """Mark the version first, so that its number is never used again; then remove it."""
        folder = self.locate(version)
        aside = name_temporary(folder)
        try:
            folder.with_name(f"{folder.name}.withdrawn").touch()
            folder.rename(aside)
        except OSError as error:
            msg = f"{version} cannot be removed from {self.folder}: {error.strerror}."
            raise ArtifactError(msg) from error
        shutil.rmtree(aside, ignore_errors=True)
        remove_leftovers(self.folder, folder.name)

    def _find_digest(self, name: str, digest: str, numbers: tuple[int, ...]) -> PromptVersion:
        digests = {v: self.compute_digest(v) for v in (PromptVersion(name, n) for n in numbers)}
        found = [version for version, known in digests.items() if known.startswith(digest)]
        if not found:
            shown = "softprompt registry list shows them."
            msg = f"no version of {name} has the digest sha256:{digest}. {shown}"
            raise ArtifactError(msg)
        if len({digests[version] for version in found}) > 1:
            msg = f"several versions of {name} begin with sha256:{digest}. Give more of its digits."
            raise ArtifactError(msg)
        return found[-1]

    def _describe(self, version: PromptVersion, state: RegistryState) -> PublishedPrompt:
        folder, context = self.locate(version), ErrorContext(str(version), _REMEDY)
        members = list_members(folder)
        try:
            content = load_strict_json(read_file_bytes(members[0], MANIFEST, source=context))
        except ValueError as error:
            msg = f"its manifest is not JSON: {error}."
            raise context.make_error(msg) from error
        except OSError as error:
            msg = f"its manifest cannot be read: {error.strerror}."
            raise context.make_error(msg) from error
        facts = dict(_read_facts(content))
        return PublishedPrompt(
            version,
            self.compute_digest(version),
            sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()),
            is_current=state.get_current(version.name) == version.number,
            is_pinned=state.pins.get(version.name) == version.number,
            task=str(facts.get("task", "")),
            members=len(members),
            labels=tuple(map(str, facts.get("labels", ()))),  # type: ignore[call-overload]
            backbone=str(facts.get("backbone", "")),
            fingerprint=str(facts.get("fingerprint", "")),
        )


def _read_facts(content: object) -> Iterator[tuple[str, object]]:
    """What a listing shows of a manifest; loading checks it whole."""
    match content:
        case {"task": {"kind": str(kind)}, "labels": [*labels]}:
            yield "task", kind
            yield "labels", labels
    match content:
        case {"backbone": {"name": str(name), "fingerprint": str(fingerprint)}}:
            yield "backbone", name
            yield "fingerprint", fingerprint


def is_name(name: str) -> bool:
    """Whether a prompt can have this name.

    Args:
        name: of a prompt, without a version.

    Examples:
        >>> is_name("reviews-2.en"), is_name("../reviews"), is_name("a@3")
        (True, False, False)
    """
    return (
        len(name) <= _MAX_NAME
        and _NAME.fullmatch(name) is not None
        and not name.endswith((".", ".pin", ".withdrawn"))
    )


def check_name(name: str) -> None:
    """Check that a prompt can have this name.

    Args:
        name: of a prompt, without a version.

    Raises:
        ArtifactError: it cannot.
    """
    if not is_name(name):
        msg = (
            f"{name[: _MAX_NAME + 1]!r} is not a valid name of a prompt. Use up to {_MAX_NAME} "
            "letters, digits, '.', '_' and '-', the first and the last a letter or a digit."
        )
        raise ArtifactError(msg)
