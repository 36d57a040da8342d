"""The prompts that a server has: where they come from, and those that are in memory."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from softprompt.artifact.ensembles import digest_saved, load_saved
from softprompt.artifact.store import find_artifact
from softprompt.backbone.model import Backbone
from softprompt.errors import ArtifactError, SoftpromptError, format_unknown
from softprompt.inference.mixed import BakedPrompt, bake_prompts
from softprompt.inference.model import PromptModel
from softprompt.prompt import InputPrompt
from softprompt.serve.registry import PromptVersion, Registry, RegistryState
from softprompt.serve.resident import (
    FoundPrompt,
    ResidentLoader,
    ResidentPrompt,
    count_bytes,
)

_log = logging.getLogger(__name__)
# So many prompts are baked together; meanwhile no other batch runs.
_BAKED_AT_ONCE = 8
# A failed load is repeated after this time at the earliest.
_RETRY_SECONDS = 5.0


class PromptSource(ABC):
    """Where a server's prompts come from."""

    @abstractmethod
    def find(self, reference: str) -> FoundPrompt:
        """Find a prompt by its name, perhaps with a version.

        Raises:
            ArtifactError: there is no such prompt.
        """

    @abstractmethod
    def find_known(self, reference: str) -> FoundPrompt | None:
        """As `find`, without a look at any file; None if that needs one, or finds nothing."""

    @abstractmethod
    def list_names(self) -> tuple[str, ...]:
        """The names of all prompts."""

    @abstractmethod
    def refresh(self) -> bool:
        """Look for changes.

        Returns:
            Whether anything may have changed.
        """


class FolderSource(PromptSource):
    """Prompts of single folders, which are named by their folders and do not change.

    Args:
        folders: of artifacts, of ensembles or of finished runs.

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
            load_saved(folder)
            self._found[name] = FoundPrompt(name, name, digest_saved(folder), folder)

    def find(self, reference: str) -> FoundPrompt:
        """Find a prompt by its name; there are no versions."""
        if reference not in self._found:
            raise ArtifactError(format_unknown("prompt", reference, options=self._found))
        return self._found[reference]

    def find_known(self, reference: str) -> FoundPrompt | None:
        """Find a prompt by its name."""
        return self._found.get(reference)

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
        self._found: dict[str, FoundPrompt] = {}

    def find(self, reference: str) -> FoundPrompt:
        """Find a version as it was at the last `refresh`."""
        known = self._found  # before the state, so that nothing old gets into a newer one
        version = self.registry.resolve(reference, state=self._state)
        digest = self._digests.get(version)
        if digest is None:
            digest = self._digests[version] = self.registry.compute_digest(version)
        folder = self.registry.locate(version)
        known[reference] = FoundPrompt(version.name, str(version), digest, folder)
        return known[reference]

    def find_known(self, reference: str) -> FoundPrompt | None:
        """What `find` has found since the last change."""
        return self._found.get(reference)

    def list_names(self) -> tuple[str, ...]:
        """The names as they were at the last `refresh`."""
        return tuple(self._state.numbers)

    def refresh(self) -> bool:
        """Look for changes, by one look at the folder's time."""
        if not self.registry.has_changed(self._state):
            return False
        self._state = self.registry.read_state()
        numbers = self._state.numbers
        self._digests = {
            version: digest
            for version, digest in list(self._digests.items())
            if version.number in numbers.get(version.name, ())
        }
        self._found = {}
        return True


@dataclass
class _Shelf:
    """What the store holds, under one lock. The dicts go from the least recent use to the last.

    Args:
        resident: all prompts in memory.
        baked: those that are baked.
        unbaked: those that wait to be baked.
        loading: those that are being loaded.
        failed: when and why a load failed.
        uses: the number of users of each prompt that has any.
        bytes: of all tensors.
        count: of all uses so far.
    """

    resident: OrderedDict[str, ResidentPrompt] = field(default_factory=OrderedDict)
    baked: OrderedDict[str, ResidentPrompt] = field(default_factory=OrderedDict)
    unbaked: dict[str, ResidentPrompt] = field(default_factory=dict)
    loading: dict[str, Future[ResidentPrompt]] = field(default_factory=dict)
    failed: dict[str, tuple[float, SoftpromptError]] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    count: int = 0


class PromptStore:
    """The prompts in memory: loaded when they are first used, the least recently used go first.

    Safe to use from several threads. A prompt is loaded once for all threads that wait for it; one
    that is in use stays. When a prompt is used for the second time, its soft tokens are baked into
    keys and values by `bake_waiting`, as far as there is memory: a prompt that is used once
    would cost as much to bake as it saves. Baked keys and values are given up before prompts are.

    Args:
        backbone: of all prompts.
        source: where they come from.
        max_bytes: of all tensors in memory.
        clock: the time in seconds.
        check: refuses what the server cannot run.
        bakes: whether soft tokens are baked.

    Attributes:
        loader: of its prompts.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: PromptSource,
        *,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[PromptModel], None] | None = None,
        bakes: bool = True,
    ) -> None:
        self.backbone = backbone
        self.source = source
        self.max_bytes = max_bytes
        self.loader = ResidentLoader(backbone, check=check)
        self._clock, self._bakes = clock, bakes
        self._lock = threading.Lock()
        self._shelf = _Shelf()

    @property
    def bytes(self) -> int:
        """Of all tensors in memory."""
        return self._shelf.bytes

    @property
    def num_resident(self) -> int:
        """The number of prompts in memory."""
        return len(self._shelf.resident)

    @property
    def num_baked(self) -> int:
        """The number of prompts whose keys and values are in memory."""
        return len(self._shelf.baked)

    @property
    def has_unbaked(self) -> bool:
        """Whether prompts wait to be baked."""
        return bool(self._shelf.unbaked)

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

    def acquire_resident(self, reference: str) -> ResidentPrompt | None:
        """As `acquire`, without waiting; None if the prompt is not in memory.

        Args:
            reference: as `acquire` takes it.
        """
        found = self.source.find_known(reference)
        with self._lock:
            shelf = self._shelf
            resident = None if found is None else shelf.resident.get(found.key)
            if found is None or resident is None:
                return None
            shelf.uses[found.key] = shelf.uses.get(found.key, 0) + 1
            self._note_use(found.key, resident)
            return resident

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
                self._note_use(key, resident)
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

    @torch.no_grad()
    def bake_waiting(self) -> None:
        """Bake some of the prompts that wait for it, in one pass; for the thread of the engine."""
        with self._lock:
            waiting = self._shelf.unbaked
            chosen = dict(list(waiting.items())[:_BAKED_AT_ONCE])
            for key in chosen:
                del waiting[key]
            # Some were given up in the meantime, or used again while they were baked.
            resident = self._shelf.resident
            chosen = {
                k: one for k, one in chosen.items() if resident.get(k) is one and not one.is_baked
            }
        try:
            self._bake(chosen)
        except Exception:  # noqa: BLE001  # one that fails does not keep its mates from it
            for key, one in chosen.items():
                self._bake_alone(key, one)

    def _bake_alone(self, key: str, resident: ResidentPrompt) -> None:
        try:
            self._bake({key: resident})
        except Exception:  # noqa: BLE001  # it is run without being baked
            _log.exception("%s is run with its soft tokens", resident.found.version)
            with self._lock:
                self._put_off(resident)

    def _bake(self, chosen: Mapping[str, ResidentPrompt]) -> None:
        """Bake prompts in one pass."""
        members = [member for one in chosen.values() for member in one.bakeable]
        if not members:
            return
        prompts = [member.prompt for member in members if isinstance(member.prompt, InputPrompt)]
        heads = [member.head_ids for member in members if member.head_ids is not None]
        baked = iter(bake_prompts(self.backbone, prompts, heads=heads))
        for key, one in chosen.items():
            with self._lock:
                self._place_baked(key, one, [next(baked) for _ in one.bakeable])

    def _put_off(self, resident: ResidentPrompt) -> None:
        """Bake a prompt later: now there is no room for it, or it failed."""
        resident.bake_after = self._shelf.count + 4 * len(self._shelf.resident)

    def _note_use(self, key: str, resident: ResidentPrompt) -> None:
        """Record a use of a prompt that is in memory, and whether it is to be baked."""
        shelf = self._shelf
        shelf.count += 1
        resident.last_use = shelf.count
        shelf.resident.move_to_end(key)
        if resident.is_baked:
            shelf.baked.move_to_end(key)
        elif self._bakes and resident.bakeable and shelf.count > resident.bake_after:
            shelf.unbaked[key] = resident

    def _place_baked(
        self, key: str, resident: ResidentPrompt, baked: Sequence[BakedPrompt]
    ) -> None:
        """Keep baked prompts if there is room, or if others have not been used for long."""
        shelf, size = self._shelf, sum(count_bytes(one.prefix) for one in baked)
        # Of prompts that are used equally often, one in fifty is not among so many uses.
        long_ago = shelf.count - 4 * len(shelf.resident)
        while shelf.bytes + size > self.max_bytes and shelf.baked:
            oldest = next(iter(shelf.baked.values()))
            if oldest.last_use >= long_ago:
                break
            self._drop_baked(oldest)
        shelf.unbaked.pop(key, None)
        if shelf.bytes + size > self.max_bytes:
            self._put_off(resident)
        elif shelf.resident.get(key) is resident and not resident.is_baked:
            for member, one in zip(resident.bakeable, baked, strict=True):
                member.baked = one
            shelf.baked[key] = resident
            shelf.bytes += size

    def _drop_baked(self, resident: ResidentPrompt) -> None:
        """Give the keys and values up; rows that have them keep them until they are answered."""
        self._shelf.bytes -= resident.baked_bytes
        self._shelf.baked.pop(resident.found.key, None)
        for member in resident.members:
            member.baked = None

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
            shelf.count += 1
            resident.last_use = shelf.count
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
        resident = self.loader.load(found)
        if resident.bytes > self.max_bytes:
            msg = (
                f"{found.version} takes {resident.bytes:,} bytes in memory, but {self.max_bytes:,} "
                "are for all prompts. Raise it: --prompt-memory."
            )
            raise ArtifactError(msg)
        return resident

    def _evict(self) -> None:
        """Keep within the budget: give up what is baked first, then prompts without users."""
        shelf = self._shelf
        while shelf.bytes > self.max_bytes and shelf.baked:
            self._drop_baked(next(iter(shelf.baked.values())))
        if shelf.bytes <= self.max_bytes:
            return
        for key in list(shelf.resident):
            if key in shelf.uses:
                continue
            shelf.bytes -= shelf.resident.pop(key).bytes
            shelf.unbaked.pop(key, None)
            if shelf.bytes <= self.max_bytes:
                return
