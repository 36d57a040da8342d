"""The section of a report on the best prompt's labels: their scores, confusions and mistakes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from softprompt.artifact import load_artifact
from softprompt.backbone.model import Backbone
from softprompt.compare.report.html import Extra, Grid, Paragraph, ReportPart
from softprompt.compare.report.prompts import list_artifacts
from softprompt.compare.report.table import Matrix, sort_by_score, sum_confusions
from softprompt.compare.results import HeldOutTest
from softprompt.compare.statistics import Summary
from softprompt.errors import SoftpromptError
from softprompt.inference import ConfusionMatrix, attach
from softprompt.tasks.metrics import compute_class_scores, list_confusions
from softprompt.tasks.objectives import SingleLabel

# The most rows of the tables of confusions and mistakes, and characters of a field of a row.
_MAX_CONFUSIONS = 20
_MAX_MISTAKES = 20
_MAX_CHARACTERS = 300


def describe_mistakes(
    summaries: Sequence[Summary], folder: Path, *, backbone: Backbone, test_set: HeldOutTest
) -> list[Extra]:
    """A section on the labels of the best prompt; none for free text or without a prompt.

    Args:
        summaries: of the variants and baselines.
        folder: of the comparison.
        backbone: of all variants.
        test_set: the rows that its mistakes are of.
    """
    best = next((s for s in sort_by_score(summaries) if not s.is_baseline), None)
    matrix = None if best is None else sum_confusions(best)
    if best is None or matrix is None:
        return []
    parts: list[ReportPart] = [*_make_label_tables(matrix)]
    try:
        parts += _list_mistakes(best, folder, backbone=backbone, test_set=test_set)
    except SoftpromptError as error:  # a run's folder was removed
        parts.append(Paragraph(f"The mistakes could not be listed: {error}"))
    return [Extra(f"Labels and mistakes of {best.variant}", parts)]


def _make_label_tables(matrix: Matrix) -> Iterator[ReportPart]:
    counts = tuple(tuple(cell.count for cell in cells) for _, cells in matrix.rows)
    labels = tuple(label for label, _ in matrix.rows)
    confusion = ConfusionMatrix(labels, matrix.answered, counts)
    rows = [
        (s.label, f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}", f"{s.rows:,}")
        for s in compute_class_scores(confusion)
    ]
    head = ("label", "precision", "recall", "F1", "rows")
    yield Grid(head, rows, "Scores of each label, over the test rows of all seeds")
    pairs = list_confusions(confusion)
    if pairs:
        shown = [
            (p.label, p.predicted, f"{p.rows:,}", f"{p.share:.1%}") for p in pairs[:_MAX_CONFUSIONS]
        ]
        caption = f"The commonest of {len(pairs)} confusions, over the test rows of all seeds"
        yield Grid(("true", "predicted", "rows", "of the label"), shown, caption)


def _list_mistakes(
    best: Summary, folder: Path, *, backbone: Backbone, test_set: HeldOutTest
) -> Iterator[ReportPart]:
    """The mistakes of the first seed in which the prompt was the most confident."""
    model = attach(load_artifact(list_artifacts(best, folder)[0]), backbone)
    if not model.task.objective.has_probabilities:
        yield Paragraph("The predictions have no probabilities, so no mistake is listed.")
        return
    if not isinstance(model.task.objective, SingleLabel):
        yield Paragraph("A row may have several labels, so no mistake is listed.")
        return
    fields = tuple(dict.fromkeys(model.task.columns))
    predictions = model.predict(test_set.rows)
    mistakes = sorted(
        (-prediction.probabilities[prediction.label], at)
        for at, (prediction, truth) in enumerate(zip(predictions, test_set.truth, strict=True))
        if prediction.label != truth
    )
    if not mistakes:
        yield Paragraph("The first seed made no mistake on the test rows.")
        return
    shown = [
        (
            f"{-probability:.1%}",
            predictions[at].label,
            test_set.truth[at],
            *(_shorten(test_set.rows[at][field]) for field in fields),
        )
        for probability, at in mistakes[:_MAX_MISTAKES]
    ]
    caption = f"The most confident of {len(mistakes):,} mistakes on test rows, of the first seed"
    yield Grid(("probability", "predicted", "true", *fields), shown, caption)


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
