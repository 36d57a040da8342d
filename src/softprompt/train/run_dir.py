"""A run directory: the recipe, checkpoints, events, metrics, a picture, and the artifact."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from softprompt._io import name_event, remove_leftovers, replace_file
from softprompt.artifact import Artifact, load_artifact, save_artifact
from softprompt.artifact.ensembles import SavedEnsemble, is_ensemble, load_ensemble, save_ensemble
from softprompt.errors import ArtifactError, TrainingError
from softprompt.recipe import Recipe, read_recipe, read_toml
from softprompt.recipe.multitask import MultitaskRecipe, is_multitask, make_multitask_recipe
from softprompt.train.checkpoint import has_state, load_state, save_state
from softprompt.train.events import Event, describe_event, is_event_record
from softprompt.train.recipe_changes import check_changeable, diff_recipes, explain_changes

# The folder of a seed has this before its number.
_SEED = "seed-"


class RunDir:
    """The files of one run.

    Args:
        path: the folder; created when it is first written to.
        whole: the folder of the whole run, where this one is that of one of its seeds.

    Examples:
        >>> run = RunDir(Path("runs/reviews"))
        >>> run.artifact.name, run.read_metrics() is None
        ('artifact', True)
    """

    def __init__(self, path: Path, *, whole: Path | None = None) -> None:
        self.path = path
        # What is resumed.
        self.root = whole or path

    def open_seed(self, seed: int) -> "RunDir":
        """The folder of one of several seeds, with a checkpoint, events and an artifact of its own.

        Args:
            seed: of the training.

        Returns:
            The folder, which need not exist.
        """
        return RunDir(self.path / f"{_SEED}{seed}", whole=self.root)

    def list_seeds(self) -> list["RunDir"]:
        """The folders of the seeds that have begun.

        Returns:
            None of them if the run trains a single seed.
        """
        folders = [path for path in self.path.glob(f"{_SEED}*") if path.is_dir()]
        in_order = sorted(folders, key=lambda path: (len(path.name), path.name))
        return [RunDir(path, whole=self.root) for path in in_order]

    @property
    def artifact(self) -> Path:
        """The folder of the best prompt."""
        return self.path / "artifact"

    @property
    def picture(self) -> Path:
        """The file of the learning curves."""
        return self.path / "curve.png"

    @property
    def _events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def _owner(self) -> Path:
        return self.path / ".running.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder while it is written, and remove what killed writers have left in it.

        The lock of a process that was killed is released by the system.

        Yields:
            Nothing.

        Raises:
            TrainingError: another process writes the folder, or it cannot be written.
        """
        with self._explain_write_errors(""):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", blocking=False)
            try:
                lock.acquire()
            except Timeout as error:
                raise TrainingError(self._explain_lock()) from error
        try:
            for each in (self, *self.list_seeds()):
                remove_leftovers(each.path)
            self._write_owner()
            yield
        finally:
            self._owner.unlink(missing_ok=True)
            # Removed while it is locked; who waits for it finds that it is gone.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # it is not empty
                self.path.rmdir()

    def _write_owner(self) -> None:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._write(self._owner, json.dumps(owner) + "\n")

    def _explain_lock(self) -> str:
        who = "another process"
        with suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        return (
            f"{self.path} is in use by {who}. Wait until it has finished; or stop it, and resume "
            f"the run: softprompt resume {quote(str(self.path))}"
        )

    @contextmanager
    def _explain_write_errors(self, name: str) -> Iterator[None]:
        """Say which file of the folder could not be written, and how to continue."""
        try:
            yield
        except OSError as error:
            remedy = "Free disk space or correct the permissions, then "
            if (self.root / "recipe.toml").exists():
                remedy += f"resume with: softprompt resume {quote(str(self.root))}"
            else:
                remedy += "train again, or choose another folder (--output on the command line)."
            msg = f"{self.path / name} could not be written: {error.strerror or error}. {remedy}"
            raise TrainingError(msg) from error

    def _write(self, path: Path, text: str) -> None:
        """Replace a file of the folder atomically."""
        with self._explain_write_errors(path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as fresh:
                fresh.write_text(text, encoding="utf-8")

    def check_free(self) -> None:
        """Check that the folder holds no other run.

        Raises:
            TrainingError: the folder holds one, or is a file.
        """
        if (self.path / "recipe.toml").exists():
            msg = (
                f"{self.path} holds a run already. Resume it (softprompt resume "
                f"{quote(str(self.path))}, in Python resume=True), or choose another folder "
                "(--output on the command line)."
            )
            raise TrainingError(msg)
        if self.path.exists() and not self.path.is_dir():
            msg = (
                f"{self.path} is a file, but a run needs a folder. Choose another path (--output "
                "on the command line)."
            )
            raise TrainingError(msg)

    def create(self, recipe: Recipe | MultitaskRecipe) -> None:
        """Create the folder, and write the recipe.

        Args:
            recipe: of the run.

        Raises:
            TrainingError: the folder holds another run, or cannot be written.
        """
        self.check_free()
        with self._explain_write_errors("recipe.toml"):
            self.path.mkdir(parents=True, exist_ok=True)
        self.write_recipe(recipe)

    def write_recipe(self, recipe: Recipe | MultitaskRecipe) -> None:
        """Write the recipe, in place of an earlier one.

        Args:
            recipe: of the run.
        """
        self._write(self.path / "recipe.toml", tomli_w.dumps(recipe.as_data()))

    def read_recipe(self, changes: Sequence[str] = ()) -> Recipe:
        """Read the recipe of the run.

        Args:
            changes: to resume the run with, such as ``train.epochs=9``.

        Returns:
            The recipe.

        Raises:
            ArtifactError: the folder is not a run directory.
            RecipeError: a change is not valid, or its key must stay as it is in a started run.
        """
        path = self.path / "recipe.toml"
        if not path.exists():
            msg = (
                f"{self.path} is not a run directory: it has no recipe.toml. Give the folder of a "
                "run."
            )
            raise ArtifactError(msg)
        recipe = read_recipe(path, changes)
        if changes:
            check_changeable(changes)
        return recipe

    def read_multitask_recipe(self, changes: Sequence[str] = ()) -> MultitaskRecipe | None:
        """Read the recipe of a run of several tasks.

        Args:
            changes: to resume the run with, such as ``train.epochs=9``.

        Returns:
            The recipe; None if the folder is not that of such a run.

        Raises:
            RecipeError: a change is not valid, or its key must stay as it is in a started run.
        """
        path = self.path / "recipe.toml"
        if not path.exists() or not is_multitask(read_toml(path)):
            return None
        check_changeable(changes)
        return make_multitask_recipe(read_toml(path, changes))

    def check_unedited(self, changes: Sequence[str] = ()) -> None:
        """Check that ``recipe.toml`` has not been edited since the run's last checkpoint.

        Args:
            changes: as for `read_recipe`; the keys that they set may differ.

        Raises:
            ArtifactError: it has; the message lists the keys.
        """
        before = (self.load_any_checkpoint() or {}).get("recipe")
        if before is None:
            return
        given = {change.partition("=")[0].strip() for change in changes}
        edits = [
            edit
            for edit in diff_recipes(before, self.read_recipe().as_data())
            if edit.key not in given
        ]
        if edits:
            raise ArtifactError(explain_changes(edits, self.path))

    def read_metrics(self) -> dict[str, Any] | None:
        """Read the metrics of the run.

        Returns:
            The metrics; None while the run is not finished.

        Raises:
            ArtifactError: ``metrics.json`` was damaged.
        """
        path = self.path / "metrics.json"
        if not path.exists():
            return None
        try:
            return _load_with_digest(path)
        except ValueError as error:
            msg = f"{error} Resume the run, which writes it again."
            raise ArtifactError(msg) from error

    def is_finished(self) -> bool:
        """Whether the run is finished; what is missing or damaged is made again by resuming it.

        Returns:
            Whether metrics and artifact are there, and whole.
        """
        try:
            if is_ensemble(self.artifact):
                load_ensemble(self.artifact)
            else:
                load_artifact(self.artifact)
            return self.read_metrics() is not None
        except ArtifactError:
            return False

    def append_event(self, event: Event, **extra: float) -> None:
        """Append an event as one JSON line.

        Args:
            event: of the run.
            extra: further values of the line.
        """
        line = {"event": name_event(event), **describe_event(event), **extra}
        with (
            self._explain_write_errors(self._events.name),
            self._events.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(line) + "\n")

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Read the events so far, without lines that were damaged, or cut off by a kill.

        Yields:
            Each event as a mapping.

        Raises:
            ArtifactError: something else is in the place of the file.
        """
        if not self._events.exists():
            return
        if not self._events.is_file():
            msg = f"{self._events} is not a file. Move it away, and resume the run."
            raise ArtifactError(msg)
        for line in self._events.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, RecursionError):
                event = json.loads(line)
                if is_event_record(event):
                    yield event

    def copy_events(self, source: "RunDir", *, task: str) -> None:
        """Write the events of one task of a run of several tasks, in place of earlier ones.

        Args:
            source: the folder of that run.
            task: the name of the task; events without a name are copied too.
        """
        events = [event for event in source.read_events() if event.get("task", task) == task]
        self._write(self._events, "".join(json.dumps(event) + "\n" for event in events))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically.

        Args:
            state: of the run.
        """
        save_state(state, self.path / "checkpoint", run=self.root)

    def write_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a state that is kept before the first checkpoint.

        Args:
            name: of its file, without the suffix.
            state: as JSON has it.
        """
        self._write(self.path / f"{name}.json", _dump_with_digest(state))

    def read_state(self, name: str) -> dict[str, Any] | None:
        """Read what `write_state` wrote.

        Args:
            name: of its file, without the suffix.

        Returns:
            None if it was not written.

        Raises:
            ArtifactError: the file was damaged.
        """
        path = self.path / f"{name}.json"
        if not path.exists():
            return None
        try:
            return _load_with_digest(path)
        except ValueError as error:
            msg = f"{error} Remove it and resume the run, which makes it again."
            raise ArtifactError(msg) from error

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read the state to resume from.

        Returns:
            The state; None if the run was interrupted before its first checkpoint.
        """
        folder = self.path / "checkpoint"
        return load_state(folder, run=self.root) if has_state(folder) else None

    def load_any_checkpoint(self) -> dict[str, Any] | None:
        """Read the checkpoint of the run, or of the first of its seeds that has one.

        Returns:
            The state, which has the recipe and the readout of the whole run; None if there is none.
        """
        states = (each.load_checkpoint() for each in (self, *self.list_seeds()))
        return next((state for state in states if state is not None), None)

    def truncate_events(self, count: int) -> float:
        """Keep only the first events; a resumed run repeats the others.

        Args:
            count: of the events to keep.

        Returns:
            The seconds of the run up to the last of them.
        """
        kept = [e for e in list(self.read_events())[:count] if e["event"] != "finished"]
        lines = "".join(json.dumps(event) + "\n" for event in kept)
        self._write(self._events, lines)
        return float(kept[-1]["seconds"]) if kept else 0.0

    def save_artifact(self, artifact: Artifact | SavedEnsemble) -> None:
        """Write the artifact.

        Args:
            artifact: with the best prompt; or an ensemble of several seeds.

        Raises:
            ArtifactError: it cannot be written; the message says how to continue.
        """
        try:
            if isinstance(artifact, SavedEnsemble):
                save_ensemble(artifact, self.artifact)
            else:
                save_artifact(artifact, self.artifact)
        except ArtifactError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            msg = f"{error} Then resume with: softprompt resume {quote(str(self.root))}"
            raise ArtifactError(msg) from error

    @contextmanager
    def replace_picture(self) -> Iterator[Path]:
        """Write the picture.

        Yields:
            The path of a temporary file, which the block draws.
        """
        with self._explain_write_errors(self.picture.name), replace_file(self.picture) as fresh:
            yield fresh

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of the run, which is then finished.

        Args:
            metrics: of the run.
        """
        self._write(self.path / "metrics.json", _dump_with_digest(metrics))


def _dump_with_digest(content: Mapping[str, Any]) -> str:
    """The text of a JSON file with a digest of what else it has."""
    plain = json.loads(json.dumps(content))
    return json.dumps({**plain, "sha256": _digest(plain)}, indent=2) + "\n"


def _load_with_digest(path: Path) -> dict[str, Any]:
    """Read what `_dump_with_digest` made, without the digest.

    Raises:
        ValueError: it cannot be read, or was changed.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        msg = f"{path} is not JSON with a digest ({error})."
        raise ValueError(msg) from error
    if digest != (actual := _digest(content)):
        msg = f"{path} has the SHA-256 {actual}, but says {digest!r}: it was changed."
        raise ValueError(msg)
    return content


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_free_dir(stem: str, *, root: Path) -> Path:
    """The first of ``root/stem``, ``root/stem-2``, … that does not exist yet."""
    candidate, number = root / stem, 1
    while candidate.exists():
        number += 1
        candidate = root / f"{stem}-{number}"
    return candidate
