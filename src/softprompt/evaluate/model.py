"""A trained prompt with its backbone and its task: what answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from softprompt.artifact import Artifact, Manifest, check_backbone, load, save
from softprompt.backbone.load import Loading
from softprompt.backbone.model import Backbone
from softprompt.backbone.precision import DTYPES, best_device, dtype_of
from softprompt.errors import ArtifactError, DataError, unknown
from softprompt.evaluate.predict import Report, judge, predict, report
from softprompt.injection.load import load_backbone
from softprompt.prompt import Prompt, cast
from softprompt.tasks import TASKS, Answer, Classifier, Example, Room, Task, TaskSettings, bind

_WINDOW = 2048


@dataclass(frozen=True, eq=False)
class Model:
    """A prompt at work.

    Args:
        task: bound to its backbone, its head filled in.
        prompt: on the backbone's device.
        artifact: what both were made of.
    """

    task: Task
    prompt: Prompt
    artifact: Artifact

    @property
    def backbone(self) -> Backbone:
        """The frozen model that the prompt speaks to."""
        return self.task.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """What can be answered; empty for free text."""
        return self.task.labels

    def predict(
        self, rows: Iterable[str | Mapping[str, object]], *, batch_size: int = 32
    ) -> Iterator[Answer]:
        """Answer rows, in their order; a stream of any length is read a window at a time.

        Args:
            rows: texts, if the template has a single field; else mappings of the fields.

        Raises:
            DataError: a field is missing, or a text is given, but the template has several fields.
        """
        stream = iter(rows)
        while window := list(islice(stream, _WINDOW)):
            examples = [self.example(row) for row in window]
            ready = dict(predict(self.task, examples, prompt=self.prompt, batch_size=batch_size))
            yield from (ready[i] for i in range(len(window)))

    def evaluate(self, rows: Sequence[Mapping[str, object]], *, batch_size: int = 32) -> Report:
        """Loss and metrics on rows whose right answers are known.

        Raises:
            DataError: there are no rows, or one lacks a field or its right answer.
        """
        truth = [self.truth(row, at=at) for at, row in enumerate(rows)]
        examples = [self.task.example(row) for row in rows]
        return self.judge(examples, truth, batch_size=batch_size)

    def judge(
        self, examples: Sequence[Example], truth: Sequence[str], *, batch_size: int = 32
    ) -> Report:
        """Loss and metrics on rows that are rendered already."""
        found = judge(self.task, examples, truth=truth, prompt=self.prompt, batch_size=batch_size)
        return report(self.task, [found])

    def example(self, row: str | Mapping[str, object]) -> Example:
        """Render a row to be answered, or a text if the template has a single field.

        Raises:
            DataError: a field is missing, or a text is given, but the template has several fields.
        """
        return self.task.example(as_row(row, self.task.columns), target=False)

    def truth(self, row: Mapping[str, object], *, at: int) -> str:
        """The right answer of a row.

        Args:
            at: its number, for messages.

        Raises:
            DataError: it has none, or one that is no label.
        """
        column = self.task.target_column
        if row.get(column) is None:
            msg = (
                f"row {at} (counted from 0) has no {column!r}, so its answer cannot be judged. It "
                f"has: {', '.join(sorted(row)) or 'nothing'}. Add it, or use predict."
            )
            raise DataError(msg)
        truth = str(row[column])
        if isinstance(self.task, Classifier) and truth not in self.labels:
            fault = unknown("label", truth, options=self.labels)
            msg = f"row {at} (counted from 0), column {column!r}: {fault}"
            raise DataError(msg)
        return truth

    def save(self, folder: str | Path) -> Path:
        """Write the artifact."""
        return save(self.artifact, Path(folder))


def as_row(row: str | Mapping[str, object], columns: Iterable[str]) -> Mapping[str, object]:
    """A row by the names of a template's fields.

    Args:
        row: the fields, or a text if there is a single one.
        columns: the fields' names.

    Raises:
        DataError: a text is given, but there are several fields.
    """
    if not isinstance(row, str):
        return row
    fields = tuple(dict.fromkeys(columns))
    if len(fields) != 1:
        msg = (
            f"a row of this artifact has the fields {', '.join(fields)}, but a single text was "
            'given. Give an object with all of them: {"' + '": …, "'.join(fields) + '": …}.'
        )
        raise DataError(msg)
    return {fields[0]: row}


def load_model(
    path: str | Path, backbone: Backbone | None = None, *, loading: Loading | None = None
) -> Model:
    """Read an artifact, check it and bring it to its backbone.

    Args:
        path: an artifact's folder, or the run's that holds one.
        backbone: if it is loaded already; else the artifact's own is loaded.
        loading: how; by default as in training, on the best device.

    Raises:
        ArtifactError: the file is not whole, or was trained for another backbone.
        BackboneError: the backbone cannot be loaded.
    """
    artifact = load(Path(path))
    if backbone is None:
        backbone = load_backbone(artifact.manifest.backbone["name"], loading or _usual(artifact))
    return bring(artifact, backbone)


def bring(artifact: Artifact, backbone: Backbone) -> Model:
    """An artifact at work on a loaded backbone.

    Raises:
        ArtifactError: it was trained for another backbone, or its parts do not fit.
    """
    check_backbone(artifact, backbone)
    manifest = artifact.manifest
    task = bind(
        task_settings(manifest),
        backbone,
        template=manifest.template,
        labels=manifest.labels,
        room=Room(manifest.max_length, artifact.prompt.taken),
    )
    expected = {} if task.head is None else dict(task.head.state_dict())
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in artifact.head.items()}:
        msg = (
            f"the artifact's head has tensors {sorted(artifact.head)}, but its task needs "
            f"{sorted(expected)} for {len(manifest.labels)} labels. Train it anew."
        )
        raise ArtifactError(msg)
    if task.head is not None:
        task.head.load_state_dict(dict(artifact.head))
        task.head.eval()
    return Model(task, cast(artifact.prompt, device=backbone.device), artifact)


def task_settings(manifest: Manifest) -> TaskSettings:
    """The task that an artifact was trained for.

    Raises:
        ArtifactError: this version of softprompt has no such task or setting.
    """
    values: dict[str, Any] = dict(manifest.task)
    kind = values.pop("kind", None)
    try:
        return TASKS[kind](**values)
    except (KeyError, TypeError) as error:
        msg = (
            f"the artifact's task {manifest.task} is none that softprompt knows ({error}). It may "
            "be of a newer version: upgrade softprompt."
        )
        raise ArtifactError(msg) from error


def _usual(artifact: Artifact) -> Loading:
    """As the recipe loaded it, but on this machine's device, and never with remote code."""
    table = artifact.manifest.recipe.get("backbone")
    section = table if isinstance(table, dict) else {}
    dtype, device, spread = section.get("dtype"), best_device(), section.get("device_map")
    return Loading(
        revision=artifact.manifest.backbone["revision"],
        dtype=dtype_of(dtype if isinstance(dtype, str) and dtype in DTYPES else "auto", device),
        device=device,
        device_map=spread if isinstance(spread, str) else None,
        quantization=section.get("quantization"),
    )
