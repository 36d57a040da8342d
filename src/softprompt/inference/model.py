"""A trained prompt with its backbone and its task, ready to predict."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softprompt._paths import expand_user, is_present
from softprompt.artifact import Artifact, Manifest, check_backbone, load_artifact, save_artifact
from softprompt.artifact.checks import check_artifact, read_task_settings
from softprompt.artifact.describe import describe_no_labels
from softprompt.artifact.store import find_artifact
from softprompt.backbone.model import Backbone
from softprompt.backbone.references import shorten_name
from softprompt.data import (
    Row,
    RowsLike,
    Table,
    TaskColumns,
    as_row,
    digest_rows,
    iterate_rows,
    read_splits,
    to_table,
)
from softprompt.errors import (
    ArtifactError,
    DataError,
    SoftpromptWarning,
    format_unknown,
)
from softprompt.hub.names import is_path
from softprompt.hub.repository import PushResult, pull_to_cache, push
from softprompt.inference.loops import (
    EvaluationReport,
    check_probabilities,
    evaluate_rows,
    make_row_report,
    predict_rows,
    predict_windows,
    stack_probabilities,
)
from softprompt.inference.notebook import make_fact_table
from softprompt.inference.recorded import load_recorded_backbone, read_data_config, read_seed
from softprompt.prompt import Prompt, to
from softprompt.tasks import (
    Example,
    LengthBudget,
    Prediction,
    Task,
    build_task,
)
from softprompt.tasks.objective_settings import change_answer_settings
from softprompt.tasks.targets import check_targets, has_few_targets, read_task_targets


@dataclass(frozen=True, eq=False)
class PromptModel:
    """A trained prompt, attached to its backbone.

    Rows may be one text (if the template has a single field), one mapping, a list or any
    other iterable of these, a pandas or polars data frame, a ``datasets.Dataset`` or a pyarrow
    ``Table``.

    Args:
        task: bound to the backbone, with its trained head, if any.
        prompt: on the backbone's device.
        artifact: that both were made of.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> len(model.predict(["a good film", "dull"]))
        2
        >>> model.predict_proba("a good film").shape
        (1, 2)
        >>> model.evaluate(rows).rows
        8
        >>> folder = model.save("sentiment")
        >>> again = PromptModel.from_pretrained(folder, backbone=backbone)
        >>> again.predict("dull") == model.predict("dull")
        True
    """

    task: Task
    prompt: Prompt
    artifact: Artifact

    @classmethod
    def from_pretrained(
        cls,
        directory_or_repo: str | Path,
        *,
        revision: str | None = None,
        backbone: Backbone | str | Path | None = None,
    ) -> "PromptModel":
        """Load a trained prompt, check it and attach it to its backbone.

        Args:
            directory_or_repo: an artifact's folder, a run's folder with an artifact, or
                ``OWNER/NAME`` on the Hub, which is downloaded into the cache. If a folder of that
                name exists, the Hub is not used.
            revision: a branch, tag or commit of the repository; ``main`` by default.
            backbone: that the prompt was trained on, if it is loaded already; or its name for
                `load_backbone`, if it is in another place now. By default it is loaded as in
                training, on this machine's best device.

        Returns:
            The prompt, ready to predict.

        Raises:
            ArtifactError: there is no such folder, it is not complete, or was trained for another
                backbone.
            HubError: the repository does not exist, is not public or cannot be reached.
            BackboneError: the backbone cannot be loaded.
        """
        artifact = load_artifact(_locate(directory_or_repo, revision))
        if not isinstance(backbone, Backbone):
            backbone = load_recorded_backbone(artifact, backbone)
        return attach(artifact, backbone)

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.task.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, or choices of text generation, that can be predicted; empty for free text."""
        return self.task.labels

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that a prediction needs: the template's fields."""
        return tuple(dict.fromkeys(self.task.columns))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that evaluation needs: the template's fields and the target column."""
        return tuple(dict.fromkeys([*self.task.columns, self.task.target_column]))

    def predict(self, rows: RowsLike, *, batch_size: int = 32) -> list[Prediction]:
        """Predict rows.

        Args:
            rows: in any of the shapes above. A row of words may be a list of texts.
            batch_size: the most rows that are run at once.

        Returns:
            A prediction for each row, in their order.

        Raises:
            DataError: the rows cannot be read, a field is missing, or a row is a text, but the
                template has several fields.
        """
        return list(self.predict_stream(rows, batch_size=batch_size))

    def predict_stream(self, rows: RowsLike, *, batch_size: int = 32) -> Iterator[Prediction]:
        """Predict rows of a stream of any length, which is read in windows of 2,048 rows.

        Args:
            rows: in any of the shapes above.
            batch_size: the most rows that are run at once.

        Returns:
            The predictions, in the rows' order. They are computed on demand, and errors are
            raised on demand too.

        Raises:
            DataError: as in `predict`.
        """
        stream = iterate_rows(rows, fields=self.task.columns, lists=self.task.flexible_columns)
        return predict_windows(stream, partial(self._predict_window, batch_size=batch_size))

    def predict_proba(self, rows: RowsLike, *, batch_size: int = 32) -> NDArray[np.float64]:
        """The probability of each label for each row.

        Args:
            rows: in any of the shapes above.
            batch_size: the most rows that are run at once.

        Returns:
            An array [rows, labels], the columns in the order of `labels`; each row sums to one.

        Raises:
            DataError: as in `predict`.
            PromptError: the task is text generation, which has no probabilities.
        """
        check_probabilities(self.task)
        return stack_probabilities(self.predict(rows, batch_size=batch_size), self.labels)

    def evaluate(
        self,
        rows: RowsLike | None = None,
        *,
        split: str | None = None,
        batch_size: int = 32,
        name: str = "given",
    ) -> EvaluationReport:
        """Loss and metrics on rows with known targets.

        Args:
            rows: in any of the shapes above, with the template's fields and the target column. By
                default those of a split of the data that the prompt was trained with.
            split: of that data: ``test`` by default, ``validation`` or ``train``.
            batch_size: the most rows that are run at once.
            name: of the rows in messages, such as the name of their file.

        Returns:
            Loss and metrics.

        Raises:
            DataError: there are no rows, one lacks a field or the target, or has a label that the
                prompt was not trained with; or there are both rows and a split.
            ArtifactError: the artifact does not say which data it was trained with, or that data
                has no such split.
        """
        table, name = self.read_labeled_rows(rows, split=split, columns=self.columns, name=name)
        labeled = table.to_list()
        truth = read_task_targets(table, self.task)
        return self.evaluate_rendered(
            [self.task.make_example(row) for row in labeled], truth, batch_size=batch_size
        )

    def read_labeled_rows(
        self,
        rows: RowsLike | None,
        *,
        split: str | None,
        columns: Sequence[str],
        name: str = "given",
    ) -> tuple[Table, str]:
        """Read and check the rows to evaluate on.

        Args:
            rows: as `evaluate` takes them.
            split: as `evaluate` takes it.
            columns: that the rows must have.
            name: of the rows in messages.

        Returns:
            The rows, and their name.

        Raises:
            DataError: they do not fit the prompt's task, or there are both rows and a split.
            ArtifactError: there is no such split.
        """
        if rows is not None and split is not None:
            msg = f"both rows and the split {split!r} are given. Give one of the two."
            raise DataError(msg)
        if rows is None:
            name = split or "test"
            rows = self.read_split(name)
        flexible = self.task.flexible_columns
        table = to_table(rows, columns=columns, where=f"the {name} data", flexible=flexible)
        settings = read_task_settings(self.artifact.manifest)
        check_targets(table, settings, labels=self.labels, split=name)
        return table, name

    def read_split(self, split: str) -> Table:
        """Read a split of the data that the prompt was trained with, as its recipe says.

        Warns if the rows have changed since.

        Args:
            split: ``train``, ``validation`` or ``test``.

        Returns:
            Its rows, with all their columns.

        Raises:
            ArtifactError: the artifact does not say which data it was trained with, or that data
                has no such split.
            DataError: the data cannot be read.
        """
        manifest = self.artifact.manifest
        few = has_few_targets(read_task_settings(manifest))
        columns = TaskColumns(self.task.target_column, self.task.columns, few)
        data, seed = read_data_config(manifest), read_seed(manifest)
        tables = read_splits(data, seed=seed, columns=columns)
        if split not in tables:
            fault = format_unknown("split", split, options=tables)
            msg = f"in the recipe's data: {fault} Or give rows."
            raise ArtifactError(msg)
        match manifest.data.get(split):
            case {"sha256": str(known)} if known != digest_rows(tables[split], self.columns):
                msg = f"the {split} data has changed since the prompt was trained"
                warnings.warn(msg, SoftpromptWarning, stacklevel=2)
        return tables[split]

    def evaluate_rendered(
        self, examples: Sequence[Example], truth: Sequence[str], *, batch_size: int = 32
    ) -> EvaluationReport:
        """Loss and metrics on rows that are already rendered.

        Args:
            examples: the rendered rows.
            truth: the target of each as text.
            batch_size: the most rows that are run at once.

        Returns:
            Loss and metrics.

        Raises:
            DataError: there are no rows.
        """
        evaluated = evaluate_rows(
            self.task, examples, truth=truth, prompt=self.prompt, batch_size=batch_size
        )
        return make_row_report(self.task, evaluated)

    def render(self, row: str | Row) -> Example:
        """Render a row for a prediction.

        Args:
            row: the template's fields, or a text if there is a single one.

        Returns:
            The rendered row.

        Raises:
            DataError: a field is missing, or the row is a text, but there are several fields.
        """
        return self.task.make_example(as_row(row, self.task.columns), target=False)

    def with_task(self, **changes: Any) -> "PromptModel":  # noqa: ANN401  # checked as a recipe's
        """The prompt with other settings of how its answers are read.

        Args:
            **changes: ``thresholds`` (a number, or one for each label), ``abstain_below`` or
                ``temperature``, as in the task's settings.

        Returns:
            A prompt with the same tensors.

        Raises:
            PromptError: a setting is not one of these, or its value is not possible.
            DataError: thresholds are not those of the labels.

        Examples:
            ```python
            careful = model.with_task(abstain_below=0.9)
            generous = model.with_task(thresholds=0.2)
            ```
        """
        manifest = self.artifact.manifest
        settings = read_task_settings(manifest)
        task = change_answer_settings(settings, changes, labels=manifest.labels)
        artifact = replace(self.artifact, manifest=replace(manifest, task=manifest.task | task))
        return attach(artifact, self.backbone)

    def save(self, folder: str | Path) -> Path:
        """Write the artifact, which `from_pretrained` reads.

        Args:
            folder: to write; an artifact in it is replaced.

        Returns:
            The folder.

        Raises:
            ArtifactError: the folder holds other files or cannot be written.
        """
        return save_artifact(self.artifact, Path(folder))

    def push_to_hub(
        self,
        repo: str,
        *,
        backbone: str | None = None,
        private: bool = False,
        message: str | None = None,
        revision: str | None = None,
    ) -> PushResult:
        """Put the artifact and a model card into a repository on the Hub, in one commit.

        Args:
            repo: ``OWNER/NAME``; created if it does not exist.
            backbone: the Hub id of the backbone, perhaps with ``@revision``; needed if the
                backbone is a local folder.
            private: create a private repository; an existing one must be private already.
            message: of the commit.
            revision: the branch to push to, created if it does not exist; ``main`` by default.

        Returns:
            The commit, and what was redacted in the published manifest.

        Raises:
            HubError: the repository cannot be written to, or the backbone is not on the Hub.
        """
        return push(
            self.artifact,
            repo,
            backbone=backbone,
            private=private,
            message=message,
            revision=revision,
        )

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in _list_facts(self.artifact.manifest))
        return f"{type(self).__name__}({facts}, prompt={self.prompt!r})"

    def _repr_html_(self) -> str:
        manifest = self.artifact.manifest
        facts = {
            "task": manifest.task.get("kind"),
            "labels": ", ".join(self.labels) or describe_no_labels(manifest.task),
            "template": manifest.template,
            "prompt": repr(self.prompt),
            "backbone": manifest.backbone["name"],
        }
        return make_fact_table(type(self).__name__, facts)

    def _predict_window(self, rows: Sequence[Row], *, batch_size: int) -> list[Prediction]:
        examples = [self.render(row) for row in rows]
        predictions = dict(
            predict_rows(self.task, examples, prompt=self.prompt, batch_size=batch_size)
        )
        return [predictions[i] for i in range(len(rows))]


def _locate(name: str | Path, revision: str | None) -> Path:
    """The folder of an artifact; one on the Hub is downloaded into the cache."""
    path = expand_user(name)
    if is_present(path) or isinstance(name, Path) or is_path(name):
        if revision is not None:
            msg = f"{name} is a path, which has no revision {revision!r}. Leave the revision out."
            raise ArtifactError(msg)
        return path
    owner, slash, _ = name.partition("/")
    if revision is None and (not slash or is_present(owner)):
        try:
            return find_artifact(path)
        except ArtifactError as error:
            remedy = "To download from the Hub, give OWNER/NAME with its revision, such as main."
            msg = f"{error} {remedy}"
            raise ArtifactError(msg) from error
    return pull_to_cache(name, revision=revision)


def _list_facts(manifest: Manifest) -> Iterator[tuple[str, object]]:
    """Names and values in the repr of a model, without the prompt."""
    yield "task", repr(manifest.task.get("kind"))
    if manifest.labels:
        yield "labels", len(manifest.labels)
    yield "backbone", repr(shorten_name(manifest.backbone["name"]))


def attach(artifact: Artifact, backbone: Backbone) -> PromptModel:
    """Attach an artifact to a loaded backbone.

    Args:
        artifact: to attach.
        backbone: that it was trained on.

    Returns:
        The prompt, ready to predict.

    Raises:
        ArtifactError: it was trained for another backbone, or its head does not fit its task.
    """
    check_artifact(artifact)
    check_backbone(artifact, backbone)
    manifest = artifact.manifest
    task = build_task(
        read_task_settings(manifest),
        backbone,
        template=manifest.template,
        labels=manifest.labels,
        budget=LengthBudget(manifest.max_length, artifact.prompt.num_positions),
    )
    expected = {} if task.head is None else dict(task.head.state_dict())
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in artifact.head.items()}:
        msg = (
            f"the artifact's head has tensors {sorted(artifact.head)}, but its task needs "
            f"{sorted(expected)} for {len(manifest.labels)} labels. Train it again."
        )
        raise ArtifactError(msg)
    if task.head is not None:
        task.head.load_state_dict(dict(artifact.head))
        task.head.eval()
    return PromptModel(task, to(artifact.prompt, device=backbone.device), artifact)
