"""The prompts that a server has: where they come from, and those that are in memory."""

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from softprompt.artifact.store import MANIFEST, find_artifact, load_artifact
from softprompt.backbone.model import Backbone
from softprompt.errors import ArtifactError, SoftpromptError, format_unknown
from softprompt.inference.mixed import BakedPrompt, bake_prompt
from softprompt.inference.model import PromptModel, attach
from softprompt.prompt import Prompt
from softprompt.serve.registry import PromptVersion, Registry, RegistryState

# A failed load is repeated after this time at the earliest.
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class FoundPrompt:
    """Where a version of a prompt is.

    Args:
        name: of the prompt, without a version.
        version: the full reference that always means these files; the name itself where there are
            no versions.
        digest: the SHA-256 of its manifest.
        folder: of the artifact.
    """

    name: str
    version: str
    digest: str
    folder: Path

    @property
    def key(self) -> str:
        """What tells these files from all others."""
        return f"{self.version} {self.digest}"


class PromptSource(ABC):
    """Where a server's prompts come from."""

    @abstractmethod
    def find(self, reference: str) -> FoundPrompt:
        """Find a prompt by its name, perhaps with a version.

        Raises:
            ArtifactError: there is no such prompt.
        """

    @abstractmethod
    def list_names(self) -> tuple[str, ...]:
        """The names of all prompts."""

    @abstractmethod
    def refresh(self) -> bool:
        """Look for changes.

        Returns:
            Whether anything may have changed.
        """


def _digest_manifest(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


class FolderSource(PromptSource):
    """Prompts of single folders, which are named by their folders and do not change.

    Args:
        folders: of artifacts or of finished runs.

    Raises:
        ArtifactError: a folder has no artifact, or two have the same name.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self._found: dict[str, FoundPrompt] = {}
        for path in map(Path, folders):
            name, folder = path.resolve().name, find_artifact(path)
            if name in self._found:
                msg = (
                    f"{path} and {self._found[name].folder} have the same name {name!r}. Rename "
                    "one of the folders, or publish both in a registry (softprompt publish)."
                )
                raise ArtifactError(msg)
            load_artifact(folder)
            self._found[name] = FoundPrompt(name, name, _digest_manifest(folder), folder)

    def find(self, reference: str) -> FoundPrompt:
        """Find a prompt by its name; there are no versions."""
        if reference not in self._found:
            raise ArtifactError(format_unknown("prompt", reference, options=self._found))
        return self._found[reference]

    def list_names(self) -> tuple[str, ...]:
        """The names of the folders."""
        return tuple(sorted(self._found))

    def refresh(self) -> bool:
        """Nothing changes."""
        return False


class RegistrySource(PromptSource):
    """Prompts of a registry, whose changes are seen at the next `refresh`.

    Args:
        registry: to read.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._state: RegistryState = registry.read_state()
        # Versions never change, so each manifest is read once.
        self._digests: dict[PromptVersion, str] = {}

    def find(self, reference: str) -> FoundPrompt:
        """Find a version as it was at the last `refresh`."""
        version = self.registry.resolve(reference, state=self._state)
        digest = self._digests.get(version)
        if digest is None:
            digest = self._digests[version] = self.registry.compute_digest(version)
        return FoundPrompt(version.name, str(version), digest, self.registry.locate(version))

    def list_names(self) -> tuple[str, ...]:
        """The names as they were at the last `refresh`."""
        return tuple(self._state.numbers)

    def refresh(self) -> bool:
        """Look for changes, by one look at the folder's time."""
        if not self.registry.has_changed(self._state):
            return False
        self._state = self.registry.read_state()
        self._digests = {}
        return True


@dataclass(frozen=True, eq=False)
class ResidentPrompt:
    """A prompt in memory, ready to run.

    Args:
        found: where it came from.
        model: attached to the server's backbone.
        baked: its keys and values, if all rows begin with its soft tokens.
        bytes: of its tensors.
    """

    found: FoundPrompt
    model: PromptModel
    baked: BakedPrompt | None
    bytes: int


@dataclass
class _Shelf:
    """What the store holds, under one lock."""

    resident: OrderedDict[str, ResidentPrompt] = field(default_factory=OrderedDict)
    loading: dict[str, Future[ResidentPrompt]] = field(default_factory=dict)
    failed: dict[str, tuple[float, SoftpromptError]] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    bytes: int = 0


class PromptStore:
    """The prompts in memory: loaded when they are first used, the least recently used go first.

    Safe to use from several threads. A prompt is loaded once for all threads that wait for it; one
    that is in use stays.

    Args:
        backbone: of all prompts.
        source: where they come from.
        max_bytes: of all tensors in memory.
        clock: the time in seconds.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: PromptSource,
        *,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backbone = backbone
        self.source = source
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._shelf = _Shelf()

    @property
    def bytes(self) -> int:
        """Of all tensors in memory."""
        return self._shelf.bytes

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions in memory, the least recently used first."""
        with self._lock:
            return tuple(one.found.version for one in self._shelf.resident.values())

    def acquire(self, reference: str) -> ResidentPrompt:
        """Get a prompt, which stays in memory until it is released.

        Args:
            reference: its name, perhaps with a version, which is looked up once: whatever is
                published later, the answer is of the version that is returned.

        Returns:
            The prompt.

        Raises:
            ArtifactError: there is no such prompt, it is damaged, or of another backbone.
        """
        return self.acquire_found(self.source.find(reference))

    def acquire_found(self, found: FoundPrompt) -> ResidentPrompt:
        """As `acquire`, of a prompt that the source has found.

        Args:
            found: which version.

        Returns:
            The prompt.

        Raises:
            ArtifactError: it is damaged, or of another backbone.
        """
        key = found.key
        with self._lock:
            shelf = self._shelf
            shelf.uses[key] = shelf.uses.get(key, 0) + 1
            resident = shelf.resident.get(key)
            if resident is not None:
                shelf.resident.move_to_end(key)
                return resident
            waiting, is_mine = shelf.loading.get(key), False
            if waiting is None:
                waiting, is_mine = Future(), True
                shelf.loading[key] = waiting
        if is_mine:
            self._load(key, found, waiting)
        try:
            return waiting.result()
        except BaseException:
            self._drop_use(key)
            raise

    def release(self, resident: ResidentPrompt) -> None:
        """Give a prompt back.

        Args:
            resident: that `acquire` returned; once for each time.
        """
        self._drop_use(resident.found.key)

    @contextmanager
    def borrow(self, reference: str) -> Iterator[ResidentPrompt]:
        """Use a prompt in a block.

        Args:
            reference: as `acquire` takes it.

        Yields:
            The prompt.
        """
        resident = self.acquire(reference)
        try:
            yield resident
        finally:
            self.release(resident)

    def _drop_use(self, key: str) -> None:
        with self._lock:
            self._shelf.uses[key] -= 1
            if not self._shelf.uses[key]:
                del self._shelf.uses[key]
            self._evict()

    def _load(self, key: str, found: FoundPrompt, waiting: "Future[ResidentPrompt]") -> None:
        """Load a prompt outside the lock, for all who wait for it."""
        try:
            self._raise_recent(key)
            resident = self._read(found)
        except BaseException as error:  # noqa: BLE001  # everyone who waits gets it
            with self._lock:
                del self._shelf.loading[key]
                if isinstance(error, SoftpromptError):
                    self._shelf.failed.setdefault(key, (self._clock(), error))
            waiting.set_exception(error)
            return
        with self._lock:
            shelf = self._shelf
            del shelf.loading[key]
            shelf.failed.pop(key, None)
            shelf.resident[key] = resident
            shelf.bytes += resident.bytes
            self._evict()
        waiting.set_result(resident)

    def _raise_recent(self, key: str) -> None:
        """Repeat the error of a load that failed a moment ago."""
        with self._lock:
            failed, now = self._shelf.failed, self._clock()
            for other in [k for k, (at, _) in failed.items() if now - at >= _RETRY_SECONDS]:
                del failed[other]
            if key in failed:
                raise failed[key][1]

    def _read(self, found: FoundPrompt) -> ResidentPrompt:
        artifact = load_artifact(found.folder)
        if _digest_manifest(found.folder) != found.digest:
            msg = f"{found.folder} was changed while the server ran. Restart it, or use a registry."
            raise ArtifactError(msg)
        model = attach(artifact, self.backbone)
        baked = bake_prompt(model.task, model.prompt)
        size = _count_bytes(model.prompt) + sum(t.nbytes for t in artifact.head.values())
        size += 0 if baked is None else _count_bytes(baked.prefix)
        if size > self.max_bytes:
            msg = (
                f"{found.version} takes {size:,} bytes in memory, but {self.max_bytes:,} are for "
                "all prompts. Raise it: --prompt-memory."
            )
            raise ArtifactError(msg)
        return ResidentPrompt(found, model, baked, size)

    def _evict(self) -> None:
        """Remove the least recently used prompts that are not in use, to keep within the budget."""
        shelf = self._shelf
        if shelf.bytes <= self.max_bytes:
            return
        for key in list(shelf.resident):
            if key in shelf.uses:
                continue
            shelf.bytes -= shelf.resident.pop(key).bytes
            if shelf.bytes <= self.max_bytes:
                return


def _count_bytes(prompt: Prompt) -> int:
    return sum(tensor.nbytes for tensor in prompt.to_tensors().values())
