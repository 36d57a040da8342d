"""A run's folder: the recipe as run, what happened, the metrics, a picture, the artifact."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from softprompt.artifact import Artifact, save
from softprompt.errors import ArtifactError, TrainingError
from softprompt.recipe import Recipe, read_recipe
from softprompt.train.events import Evaluation, Event
from softprompt.train.state import has_state, load_state, save_state


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def artifact(self) -> Path:
        """Where the best prompt lies."""
        return self.path / "artifact"

    @property
    def picture(self) -> Path:
        """The curve of losses and metrics."""
        return self.path / "curve.png"

    @property
    def _events(self) -> Path:
        return self.path / "events.jsonl"

    def check_free(self) -> None:
        """Make sure that no other run is here.

        Raises:
            TrainingError: the folder holds one, or is a file.
        """
        if (self.path / "recipe.toml").exists():
            msg = (
                f"{self.path} holds a run already. Go on with it (softprompt resume {self.path}), "
                "or give another folder with --output."
            )
            raise TrainingError(msg)
        if self.path.exists() and not self.path.is_dir():
            msg = f"{self.path} is a file, but a run needs a folder. Give another with --output."
            raise TrainingError(msg)

    def begin(self, recipe: Recipe) -> None:
        """Write the recipe as run.

        Raises:
            TrainingError: the folder holds another run, or cannot be written.
        """
        self.check_free()
        text = tomli_w.dumps(recipe.as_data())
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "recipe.toml").write_text(text, encoding="utf-8")
        except OSError as error:
            msg = (
                f"{self.path} cannot be written: {error.strerror}. Give another folder with "
                "--output."
            )
            raise TrainingError(msg) from error

    def recipe(self) -> Recipe:
        """The recipe as run.

        Raises:
            ArtifactError: this is no run's folder.
        """
        path = self.path / "recipe.toml"
        if not path.exists():
            msg = (
                f"{self.path} is no run's folder: it has no recipe.toml. Give the folder of a run."
            )
            raise ArtifactError(msg)
        return read_recipe(path)

    def metrics(self) -> dict[str, Any] | None:
        """What came of the run; None while it is not finished.

        Raises:
            ArtifactError: ``metrics.json`` was damaged.
        """
        path = self.path / "metrics.json"
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            msg = f"{path} is not JSON ({error}). Take it away and resume the run, which writes it."
            raise ArtifactError(msg) from error
        return found

    def note(self, event: Event, **more: float) -> None:
        """Append an event as one JSON line."""
        line = {"event": type(event).__name__.lower(), **_plain(event), **more}
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """The events so far; a line that was cut off by a kill is left out."""
        if not self._events.exists():
            return
        for line in self._events.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write the whole state; the old checkpoint stays whole until then."""
        save_state(state, self.path / "checkpoint")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to go on from; None if the run was stopped before its first checkpoint."""
        folder = self.path / "checkpoint"
        return load_state(folder) if has_state(folder) else None

    def rewind(self, count: int) -> float:
        """Keep the first events; a resumed run goes through the others again.

        Returns:
            The seconds that the run had gone on by then.
        """
        kept = [e for e in list(self.events())[:count] if e["event"] != "finished"]
        lines = "".join(json.dumps(event) + "\n" for event in kept)
        fresh = self._events.with_suffix(".new")
        fresh.write_text(lines, encoding="utf-8")
        fresh.replace(self._events)
        return float(kept[-1]["seconds"]) if kept else 0.0

    def finish(self, artifact: Artifact, metrics: Mapping[str, Any]) -> None:
        """Write the artifact and the metrics."""
        save(artifact, self.artifact)
        self.write_metrics(metrics)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write what came of the run, which is then finished."""
        text = json.dumps(metrics, indent=2) + "\n"
        (self.path / "metrics.json").write_text(text, encoding="utf-8")


def free_folder(stem: str, *, root: Path) -> Path:
    """The first of ``root/stem``, ``root/stem-2``, … that is not there yet."""
    candidate, number = root / stem, 1
    while candidate.exists():
        number += 1
        candidate = root / f"{stem}-{number}"
    return candidate


def _plain(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = asdict(event)
    if isinstance(event, Evaluation):
        found["train"] = None if event.train is None else dict(event.train.metrics)
    report: dict[str, Any] = found.pop("report", {})
    return found | report
