"""Ensembles: several prompts on one backbone whose predictions are combined."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from softprompt._paths import expand_user
from softprompt.artifact import Artifact
from softprompt.artifact.ensembles import SavedEnsemble, is_ensemble, load_ensemble, save_ensemble
from softprompt.backbone.model import Backbone
from softprompt.backbone.references import shorten_name
from softprompt.data import Row, RowsLike, group_by_length, iterate_rows
from softprompt.errors import PromptError, SoftpromptWarning
from softprompt.inference.loops import (
    EnsembleReport,
    EvaluatedRows,
    EvaluationReport,
    check_numbers,
    check_probabilities,
    make_row_report,
    predict_windows,
    stack_probabilities,
)
from softprompt.inference.model import PromptModel, attach
from softprompt.inference.notebook import make_fact_table, make_grid
from softprompt.inference.recorded import load_recorded_backbone
from softprompt.inference.votes import Vote, check_same_task, check_vote, combine, predict_each
from softprompt.prompt import Prompt
from softprompt.tasks import Classifier, Example, Prediction, Task
from softprompt.tasks.base import HeadTask
from softprompt.tasks.chooser import Chooser
from softprompt.tasks.classification import list_targets
from softprompt.tasks.tag_sequences import forget_shares
from softprompt.tasks.targets import read_task_targets

MemberViews = Sequence[Example]  # a row as each member renders it


class Ensemble:
    """Several prompts on one copy of the weights; each row is in a batch once for each prompt.

    The members have the same backbone, kind of task, labels, target column and label words. Their
    templates, methods, lengths and trained heads may differ.

    Source: Lester et al. 2021, "Prompt ensembling".

    Args:
        models: at least one. All are attached to the backbone of the first.
        vote: how predictions are combined: ``majority``, the commonest label or text; or ``mean``,
            the label with the highest mean probability, which text generation does not have.

    Raises:
        ArtifactError: a prompt was trained on another backbone.
        PromptError: there are no prompts, their tasks differ, or the vote does not fit the task.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> both = Ensemble([model, model], vote="mean")
        >>> both.predict(rows)[0].label == model.predict(rows)[0].label
        True
    """

    def __init__(self, models: Sequence[PromptModel], *, vote: Vote = "majority") -> None:
        if not models:
            msg = "an ensemble needs models, but there are none. Give at least one."
            raise PromptError(msg)
        first = models[0]
        self.members = tuple(
            m if m.backbone is first.backbone else attach(m.artifact, first.backbone)
            for m in models
        )
        self.vote: Vote = vote
        check_vote(vote, first.task)
        for number, model in enumerate(self.members[1:], start=2):
            check_same_task(first, model, number=number)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, backbone: Backbone | str | Path | None = None
    ) -> "Ensemble":
        """Load an ensemble, check it and attach its members to one copy of their backbone.

        Args:
            directory: the ensemble's folder, or that of the run that made it.
            backbone: as for `PromptModel.from_pretrained`.

        Returns:
            The ensemble, ready to predict.

        Raises:
            ArtifactError: there is no such folder, it is not complete, or was made for another
                backbone.
            BackboneError: the backbone cannot be loaded.
            PromptError: the members do not go together.

        Examples:
            ```python
            ensemble = Ensemble.from_pretrained("runs/reviews")
            ```
        """
        saved = load_ensemble(expand_user(directory))
        artifacts = [*saved.members.values()]
        if not isinstance(backbone, Backbone):
            backbone = load_recorded_backbone(artifacts[0], backbone)
        return attach_saved(saved, backbone)

    def save(self, folder: str | Path) -> Path:
        """Write the ensemble: a folder that `load_model` reads, with a folder for each member.

        Args:
            folder: to write; an ensemble or an artifact in it is replaced.

        Returns:
            The folder.

        Raises:
            ArtifactError: the folder holds other files or cannot be written.
        """
        named = {f"member-{n}": m.artifact for n, m in enumerate(self.members, start=1)}
        return save_ensemble(SavedEnsemble(self.vote, named), Path(folder))

    @property
    def backbone(self) -> Backbone:
        """The frozen model of all members."""
        return self.members[0].backbone

    @property
    def task(self) -> Task:
        """The task of the first member; those of the others have the same labels and target."""
        return self.members[0].task

    @property
    def artifact(self) -> Artifact:
        """An ensemble has no artifact of its own: what needs one is refused.

        Raises:
            PromptError: always; each member has an artifact.
        """
        raise PromptError(self._explain_members("artifact"))

    @property
    def prompt(self) -> Prompt:
        """An ensemble has no prompt of its own: what needs one is refused.

        Raises:
            PromptError: always; each member has a prompt.
        """
        raise PromptError(self._explain_members("prompt"))

    def _explain_members(self, what: str) -> str:
        return (
            f"an ensemble of {len(self.members)} prompts has no single {what}. Use a member, such "
            "as ensemble.members[0]; or save the ensemble (ensemble.save)."
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that evaluation needs: the fields of all templates and the target column."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.columns))

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that a prediction needs: the fields of all templates."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.fields))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, or choices of text generation, that can be predicted; empty for free text."""
        return self.members[0].labels

    def predict(self, rows: RowsLike, *, batch_size: int = 32) -> list[Prediction]:
        """Predict rows.

        Args:
            rows: as `PromptModel.predict` takes them; texts, if all templates have the same single
                field.
            batch_size: the most rows that are run at once, those of all members together.

        Returns:
            A prediction for each row, in their order.

        Raises:
            DataError: the rows cannot be read, a field is missing, or a row is a text, but the
                templates have several fields.
        """
        return list(self.predict_stream(rows, batch_size=batch_size))

    def predict_stream(self, rows: RowsLike, *, batch_size: int = 32) -> Iterator[Prediction]:
        """Predict rows of a stream of any length, which is read in windows of 2,048 rows.

        Args:
            rows: as `predict` takes them.
            batch_size: the most rows that are run at once, those of all members together.

        Returns:
            The predictions, in the rows' order, computed on demand.

        Raises:
            DataError: as in `predict`.
        """
        if len(self.members) == 1:
            return self.members[0].predict_stream(rows, batch_size=batch_size)
        flexible = self.members[0].task.flexible_columns
        stream = iterate_rows(rows, fields=self.fields, lists=flexible)
        return predict_windows(stream, partial(self._predict_window, batch_size=batch_size))

    def predict_proba(self, rows: RowsLike, *, batch_size: int = 32) -> NDArray[np.float64]:
        """The mean of the members' probabilities of each label for each row.

        Args:
            rows: as `predict` takes them.
            batch_size: the most rows that are run at once, those of all members together.

        Returns:
            An array [rows, labels], the columns in the order of `labels`; each row sums to one.

        Raises:
            DataError: as in `predict`.
            PromptError: the task is text generation, which has no probabilities.
        """
        check_probabilities(self.members[0].task)
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

        The loss is that of the mean probabilities; for text generation and for tags, the mean of
        the members'.

        Args:
            rows: as `PromptModel.evaluate` takes them; by default those of a split of the data
                that the first member was trained with.
            split: of that data; ``test`` by default.
            batch_size: the most rows that are run at once, those of all members together.
            name: of the rows in messages.

        Returns:
            Loss and metrics of the combined predictions.

        Raises:
            DataError: as in `PromptModel.evaluate`.
            ArtifactError: as in `PromptModel.evaluate`.
        """
        report = self.evaluate_members(rows, split=split, batch_size=batch_size, name=name)
        return report.ensemble

    def evaluate_members(
        self,
        rows: RowsLike | None = None,
        *,
        split: str | None = None,
        batch_size: int = 32,
        name: str = "given",
    ) -> EnsembleReport:
        """As `evaluate`, for the ensemble and for each member alone.

        Warns of a member that was not trained with the same split, since it may have been trained
        on these rows.

        Args:
            rows: as in `evaluate`.
            split: as in `evaluate`.
            batch_size: as in `evaluate`.
            name: as in `evaluate`.

        Returns:
            Loss and metrics of the ensemble and of its members.

        Raises:
            DataError: as in `evaluate`.
            ArtifactError: as in `evaluate`.
        """
        first = self.members[0]
        table, where = first.read_labeled_rows(rows, split=split, columns=self.columns, name=name)
        if rows is None:
            self._check_split(where)
        labeled = table.to_list()
        truth = read_task_targets(table, first.task)
        views = [[m.task.make_example(row) for m in self.members] for row in labeled]
        return self.evaluate_rendered(views, truth, batch_size=batch_size)

    def evaluate_rendered(
        self, views: Sequence[MemberViews], truth: Sequence[str], *, batch_size: int = 32
    ) -> EnsembleReport:
        """Loss and metrics on rows that each member has already rendered.

        Args:
            views: each row as rendered by every member.
            truth: the target of each row as text.
            batch_size: the most rows that are run at once, those of all members together.

        Returns:
            Loss and metrics of the ensemble and of its members.

        Raises:
            DataError: there are no rows.
        """
        if len(self.members) == 1 or not views:
            report = self.members[0].evaluate_rendered(
                [view[0] for view in views], truth, batch_size=batch_size
            )
            return EnsembleReport(report, (report,))
        truncated = [sum(e.truncated for e in examples) for examples in zip(*views, strict=True)]
        truncated.append(sum(any(e.truncated for e in view) for view in views))
        sums, count = torch.zeros(len(self.members) + 1, dtype=torch.float64), 0
        predictions: dict[int, list[Prediction]] = {}
        for batch in self._group_rows(views, batch_size):
            batch_views = [views[i] for i in batch]
            by_member, scores = self._predict_members(batch_views)
            losses, terms = self._sum_losses(batch_views, scores)
            sums, count = sums + losses, count + terms
            combined = self._combine(by_member)
            rows = zip(*map(forget_shares, by_member), combined, strict=True)
            predictions |= zip(batch, map(list, rows), strict=True)
        ordered = zip(*(predictions[i] for i in range(len(views))), strict=True)
        task = self.members[0].task
        *members, ensemble = [
            make_row_report(task, EvaluatedRows(total, count, tuple(truth), predicted, number))
            for total, predicted, number in zip(sums.tolist(), ordered, truncated, strict=True)
        ]
        return EnsembleReport(ensemble, tuple(members))

    def __repr__(self) -> str:
        first = self.members[0].artifact.manifest
        return (
            f"{type(self).__name__}(members={len(self.members)}, vote={self.vote!r}, "
            f"task={first.task.get('kind')!r}, labels={len(self.labels)}, "
            f"backbone={shorten_name(first.backbone['name'])!r})"
        )

    def _repr_html_(self) -> str:
        head = ["member", "template", "prompt"]
        rows = [
            [number, member.artifact.manifest.template, repr(member.prompt)]
            for number, member in enumerate(self.members, start=1)
        ]
        facts = {
            "vote": self.vote,
            "labels": ", ".join(self.labels) or "none (free text)",
            "backbone": self.members[0].artifact.manifest.backbone["name"],
        }
        return make_fact_table(type(self).__name__, facts) + make_grid(
            "Members", head=head, rows=rows
        )

    def _predict_window(self, rows: Sequence[Row], *, batch_size: int) -> list[Prediction]:
        views = [[m.render(row) for m in self.members] for row in rows]
        predictions: dict[int, Prediction] = {}
        for batch in self._group_rows(views, batch_size):
            by_member, _ = self._predict_members([views[i] for i in batch])
            predictions |= zip(batch, self._combine(by_member), strict=True)
        return [predictions[i] for i in range(len(rows))]

    def _check_split(self, split: str) -> None:
        """Warn of members with another split, which may have been trained on these rows."""
        first, *others = [m.artifact.manifest.data.get(split) for m in self.members]
        for number, other in enumerate(others, start=2):
            if other != first:
                msg = (
                    f"member {number} was not trained with the same {split} rows as the first (or "
                    "reads other columns of them), so it may have been trained on these"
                )
                warnings.warn(msg, SoftpromptWarning, stacklevel=3)

    def _group_rows(self, views: Sequence[MemberViews], size: int) -> Iterator[list[int]]:
        """Batches of row indices; each row is in its batch once for each member."""
        lengths = [max(e.length for e in view) for view in views]
        yield from group_by_length(lengths, size=max(1, size // len(self.members)), seed=None)

    @torch.no_grad()
    def _predict_members(
        self, views: Sequence[MemberViews]
    ) -> tuple[list[list[Prediction]], Float[Tensor, "M B C"] | None]:
        """Each member's predictions, and the scores of a classifier, in one run of the backbone."""
        count, rows = len(self.members), len(views)
        examples = [view[m] for m in range(count) for view in views]
        prompt_of_row = torch.arange(count, device=self.backbone.device).repeat_interleave(rows)
        prompts, task = [m.prompt for m in self.members], self.members[0].task
        if isinstance(task, HeadTask) and not isinstance(task, Classifier | Chooser):
            found = task.compute_row_states(examples, prompts, rows=prompt_of_row)
            parts = [slice(m * rows, (m + 1) * rows) for m in range(count)]
            heads = [m.task for m in self.members if isinstance(m.task, HeadTask)]
            pairs = zip(heads, parts, strict=True)
            return [head.read_rows(examples[part], found[part]) for head, part in pairs], None
        if not isinstance(task, Classifier):
            members = [m.task for m in self.members]
            return predict_each(members, examples, prompts=prompts, rows=prompt_of_row), None
        states = task.compute_states(examples, prompts, rows=prompt_of_row).split(rows)
        tasks = [m.task for m in self.members if isinstance(m.task, Classifier)]
        scores = [task.read(part) for task, part in zip(tasks, states, strict=True)]
        predictions = [
            voter.objective.to_predictions(part) for voter, part in zip(tasks, scores, strict=True)
        ]
        check_numbers(list(chain.from_iterable(predictions)))
        return predictions, torch.stack(scores)

    def _combine(self, by_member: Sequence[Sequence[Prediction]]) -> list[Prediction]:
        objective = self.members[0].task.objective
        rows = zip(*by_member, strict=True)
        return [combine(predictions, self.vote, objective=objective) for predictions in rows]

    @torch.no_grad()
    def _sum_losses(
        self, views: Sequence[MemberViews], scores: Float[Tensor, "M B C"] | None
    ) -> tuple[Float[Tensor, " M1"], int]:
        """The summed loss of each member and, last, of the ensemble; and the number of terms."""
        if scores is None:
            rendered = zip(self.members, zip(*views, strict=True), strict=True)
            losses = [m.task.compute_loss(examples, [m.prompt]) for m, examples in rendered]
            totals = torch.stack([loss.total for loss in losses]).double().cpu()
            return torch.cat([totals, totals.mean()[None]]), losses[0].count
        targets = list_targets([view[0] for view in views])
        tasks = [m.task for m in self.members if isinstance(m.task, Classifier)]
        pairs = zip(tasks, scores, strict=True)
        sums = [voter.objective.sum_loss(part, targets).total for voter, part in pairs]
        sums.append(tasks[0].objective.sum_averaged_loss(scores, targets).total)
        return torch.stack(sums).double().cpu(), len(views)


def attach_saved(saved: SavedEnsemble, backbone: Backbone) -> Ensemble:
    """Attach an ensemble to a loaded backbone.

    Args:
        saved: that was loaded.
        backbone: that its members were trained on.

    Returns:
        The ensemble, ready to predict.

    Raises:
        ArtifactError: a member was trained for another backbone.
        PromptError: the members do not go together.
    """
    members = [attach(artifact, backbone) for artifact in saved.members.values()]
    return Ensemble(members, vote=cast("Vote", saved.vote))


def load_model(
    directory_or_repo: str | Path,
    *,
    revision: str | None = None,
    backbone: Backbone | str | Path | None = None,
) -> PromptModel | Ensemble:
    """Load what a folder holds, a trained prompt or an ensemble of several, ready to predict.

    Args:
        directory_or_repo: the folder of an artifact, of an ensemble or of a run; or ``OWNER/NAME``
            on the Hub, as `PromptModel.from_pretrained` takes it.
        revision: of the repository.
        backbone: as for `PromptModel.from_pretrained`.

    Returns:
        The prompt, or the ensemble.

    Raises:
        SoftpromptError: as in `PromptModel.from_pretrained` and `Ensemble.from_pretrained`.

    Examples:
        ```python
        model = load_model("runs/reviews")
        print(model.predict(["A tender and quietly devastating film."]))
        ```

        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> config = TrainingConfig(batch_size=4, epochs=1, seeds=3, combine_seeds="ensemble")
        >>> model = fit(backbone, task, rows, validation=0, config=config)
        >>> again = load_model(model.save("three-seeds"), backbone=backbone)
        >>> len(again.members), again.predict(rows) == model.predict(rows)
        (3, True)
    """
    if revision is None and is_ensemble(expand_user(directory_or_repo)):
        return Ensemble.from_pretrained(directory_or_repo, backbone=backbone)
    return PromptModel.from_pretrained(directory_or_repo, revision=revision, backbone=backbone)
