"""A run directory: the recipe, checkpoints, events, metrics, a picture, and the artifact."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import tomli_w

from softprompt._io import name_event
from softprompt.artifact import Artifact, save_artifact
from softprompt.errors import ArtifactError, TrainingError
from softprompt.recipe import Recipe, read_recipe
from softprompt.train.checkpoint import has_state, load_state, save_state
from softprompt.train.events import Evaluation, Event
from softprompt.train.recipe_changes import check_changeable, diff_recipes, explain_changes


class RunDir:
    """The files of one run.

    Args:
        path: the folder; created when it is first written to.

    Examples:
        >>> run = RunDir(Path("runs/reviews"))
        >>> run.artifact.name, run.read_metrics() is None
        ('artifact', True)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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
    def _folds(self) -> Path:
        return self.path / "folds.json"

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

    def create(self, recipe: Recipe) -> None:
        """Create the folder, and write the recipe.

        Args:
            recipe: of the run.

        Raises:
            TrainingError: the folder holds another run, or cannot be written.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_recipe(recipe)
        except OSError as error:
            msg = (
                f"{self.path} cannot be written: {error.strerror}. Choose another folder (--output "
                "on the command line)."
            )
            raise TrainingError(msg) from error

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe, in place of an earlier one.

        Args:
            recipe: of the run.
        """
        path, fresh = self.path / "recipe.toml", self.path / "recipe.new"
        fresh.write_text(tomli_w.dumps(recipe.as_data()), encoding="utf-8")
        fresh.replace(path)

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

    def check_unedited(self, changes: Sequence[str] = ()) -> None:
        """Check that ``recipe.toml`` has not been edited since the run's last checkpoint.

        Args:
            changes: as for `read_recipe`; the keys that they set may differ.

        Raises:
            ArtifactError: it has; the message lists the keys.
        """
        state = self.load_checkpoint() or {}
        if "recipe" not in state:
            return
        given = {change.partition("=")[0].strip() for change in changes}
        edits = [
            edit
            for edit in diff_recipes(state["recipe"], self.read_recipe().as_data())
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
            metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            msg = f"{path} is not JSON ({error}). Remove it and resume the run, which writes it."
            raise ArtifactError(msg) from error
        return metrics

    def append_event(self, event: Event, **extra: float) -> None:
        """Append an event as one JSON line.

        Args:
            event: of the run.
            extra: further values of the line.
        """
        line = {"event": name_event(event), **_to_json(event), **extra}
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Read the events so far, without a line that was cut off by a kill.

        Yields:
            Each event as a mapping.
        """
        if not self._events.exists():
            return
        for line in self._events.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically.

        Args:
            state: of the run.
        """
        save_state(state, self.path / "checkpoint")

    def write_folds(self, state: Mapping[str, Any]) -> None:
        """Write the finished folds of a cross-validation.

        Args:
            state: their scores, and what they depend on.
        """
        fresh = self.path / "folds.new"
        fresh.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        fresh.replace(self._folds)

    def read_folds(self) -> dict[str, Any] | None:
        """Read what `write_folds` wrote.

        Returns:
            None if no fold is finished.

        Raises:
            ArtifactError: the file was damaged.
        """
        if not self._folds.exists():
            return None
        try:
            state: dict[str, Any] = json.loads(self._folds.read_text(encoding="utf-8"))
        except ValueError as error:
            msg = (
                f"{self._folds} is not JSON ({error}). Remove it and resume the run, which trains "
                "the folds again."
            )
            raise ArtifactError(msg) from error
        return state

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read the state to resume from.

        Returns:
            The state; None if the run was interrupted before its first checkpoint.
        """
        folder = self.path / "checkpoint"
        return load_state(folder) if has_state(folder) else None

    def truncate_events(self, count: int) -> float:
        """Keep only the first events; a resumed run repeats the others.

        Args:
            count: of the events to keep.

        Returns:
            The seconds of the run up to the last of them.
        """
        kept = [e for e in list(self.read_events())[:count] if e["event"] != "finished"]
        lines = "".join(json.dumps(event) + "\n" for event in kept)
        fresh = self._events.with_suffix(".new")
        fresh.write_text(lines, encoding="utf-8")
        fresh.replace(self._events)
        return float(kept[-1]["seconds"]) if kept else 0.0

    def finish(self, artifact: Artifact, metrics: Mapping[str, Any]) -> None:
        """Write the artifact and the metrics.

        Args:
            artifact: with the best prompt.
            metrics: of the run.
        """
        save_artifact(artifact, self.artifact)
        self.write_metrics(metrics)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of the run, which is then finished.

        Args:
            metrics: of the run.
        """
        text = json.dumps(metrics, indent=2) + "\n"
        (self.path / "metrics.json").write_text(text, encoding="utf-8")


def find_free_dir(stem: str, *, root: Path) -> Path:
    """The first of ``root/stem``, ``root/stem-2``, … that does not exist yet."""
    candidate, number = root / stem, 1
    while candidate.exists():
        number += 1
        candidate = root / f"{stem}-{number}"
    return candidate


def _to_json(event: Event) -> dict[str, Any]:
    """The fields of an event; those of its report are on the same level."""
    fields: dict[str, Any] = asdict(event)
    if isinstance(event, Evaluation):
        fields["train"] = None if event.train is None else dict(event.train.metrics)
    report: dict[str, Any] = fields.pop("report", {})
    for rows in ("truth", "predictions"):  # of each row; empty while a run trains
        report.pop(rows, None)
    return fields | report
