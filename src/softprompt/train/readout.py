"""Choose the readout of a trained head: a linear probe on the frozen backbone's states decides.

The probe is fitted on training rows, and judged by validation rows and by training rows in folds.
Test rows are never read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from softprompt.backbone.model import Backbone
from softprompt.data import parse_template
from softprompt.data.collate import group_by_length
from softprompt.data.few_rows import count_rows
from softprompt.data.rendering import RenderedRow
from softprompt.injection.forward import forward
from softprompt.tasks.base import gather_positions, pad_rows
from softprompt.tasks.heads import HeadClassifier, PooledHeadTask
from softprompt.tasks.objectives import ScoreObjective
from softprompt.tasks.pooling import Pooling, list_poolings, locate_point, mark_words, pool_states
from softprompt.train.datasets import RenderedRows, sample_rows
from softprompt.train.linear_models import (
    can_fit,
    divide_rows,
    fit_linear_model,
    is_clearly_higher,
    list_answers,
    list_fold_parts,
)
from softprompt.train.regression import Part

# Features `[rows, H]` of each readout.
Features = dict[Pooling, np.ndarray]
# Rendered rows and their targets.
TargetedTexts = tuple[Sequence[RenderedRow], Sequence[str]]
_BATCH_SIZE = 32
# The most rows of a split that the choice is made from.
MAX_PROBED_ROWS = 2000
ONLY_READOUT = "the only one that reads what the soft tokens change"
_NOT_CLEAR = "; no other is clearly better"
TOO_FEW_ROWS = "since the rows are too few to choose by"


@dataclass(frozen=True)
class ReadoutChoice:
    """The readout that was chosen for a trained head.

    Args:
        pooling: the readout.
        scores: of the probe with each readout that could be chosen, 0 to 1; empty if
            there was nothing to choose from.
        reason: what the probe was judged by, or why there was nothing to choose.
        is_chosen: whether it was chosen by rows, not taken from an artifact.
        measure: the name of the scores.
    """

    pooling: Pooling
    scores: Mapping[str, float]
    reason: str
    is_chosen: bool = True
    measure: str = "accuracy"

    def as_data(self) -> dict[str, Any]:
        """The choice as JSON has it."""
        return asdict(self) | {"scores": dict(self.scores)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "ReadoutChoice":
        """The choice that `as_data` returned."""
        measure = data.get("measure", "accuracy")
        scores, reason = dict(data["scores"]), data["reason"]
        return cls(data["pooling"], scores, reason, data["is_chosen"], measure)

    def __str__(self) -> str:
        if not self.scores:
            return f"readout: {self.pooling}, {self.reason}"
        scores = ", ".join(f"{name} {score:.1%}" for name, score in self.scores.items())
        note = "" if self.scores[self.pooling] == max(self.scores.values()) else _NOT_CLEAR
        name = "logistic probe" if self.measure == "accuracy" else f"linear probe, {self.measure}"
        return f"readout: {self.pooling}, chosen by {self.reason} ({name}: {scores}{note})"


@torch.no_grad()
def compute_features(
    backbone: Backbone, rows: Sequence[RenderedRow], *, poolings: Sequence[Pooling]
) -> Features:
    """The features ``[rows, H]`` that each readout has of the frozen backbone, in fp32.

    Args:
        backbone: without a prompt.
        rows: without soft tokens.
        poolings: the readouts; each row is run once for all of them.
    """
    lengths = [len(row.input_ids) for row in rows]
    found: dict[Pooling, list[np.ndarray]] = {name: [np.empty(0)] * len(rows) for name in poolings}
    for batch in group_by_length(lengths, size=_BATCH_SIZE, seed=None):
        for name, values in _read_batch(backbone, [rows[index] for index in batch], poolings):
            for index, of_row in zip(batch, values, strict=True):
                found[name][index] = of_row
    return {name: np.stack(values) for name, values in found.items()}


def _read_batch(
    backbone: Backbone, rows: Sequence[RenderedRow], poolings: Sequence[Pooling]
) -> Iterator[tuple[Pooling, np.ndarray]]:
    """The features of a batch by each readout."""
    inputs, size = pad_rows(backbone, rows), backbone.geometry.vocab_size
    is_encoder = backbone.geometry.architecture == "encoder"
    if backbone.geometry.architecture == "encoder-decoder":
        states = backbone.encode(inputs)
    else:
        states = forward(backbone, inputs, prompts=[None])
    for name in poolings:
        if name in ("mean", "max"):
            words = mark_words(inputs.input_ids, inputs.attention_mask, vocab_size=size)
            read = pool_states(states, words, pooling=name)
        else:
            cls = 0 if is_encoder else -1
            at = [locate_point(r.input_ids, name, vocab_size=size, cls=cls) or 0 for r in rows]
            read = gather_positions(states, [(point,) for point in at])
        yield name, read.float().cpu().numpy()


def choose_readout(
    backbone: Backbone,
    poolings: Sequence[Pooling],
    *,
    objective: ScoreObjective,
    train: TargetedTexts,
    validation: TargetedTexts = ((), ()),
) -> ReadoutChoice:
    """Choose the readout with which a linear probe scores best, if that is clear.

    Of those that are not clearly worse than the best (by more than two standard errors of the
    difference on the same rows) the first is taken: few rows do not tell readouts apart.

    The probe is fitted on the training rows and judged by the validation rows; and, since these are
    often few, the training rows judge it too, each by a probe that was fitted without it.

    Args:
        backbone: without a prompt.
        poolings: to choose from, the likeliest one first.
        objective: of the task.
        train: the training rows, without soft tokens, and their targets.
        validation: the same of the validation rows, if there are any.
    """
    if len(poolings) == 1:
        return ReadoutChoice(poolings[0], {}, ONLY_READOUT)
    counts = len(train[0]), len(validation[0])
    truth = [*train[1], *validation[1]]
    if not _list_parts(truth, objective, *counts):
        return ReadoutChoice(poolings[0], {}, TOO_FEW_ROWS)
    features = compute_features(backbone, [*train[0], *validation[0]], poolings=poolings)
    return _choose_by_features(features, truth, objective, *counts)


def choose_fold_readouts(
    task: HeadClassifier,
    rows: RenderedRows,
    *,
    folds: Sequence[Sequence[int]],
    template: str,
) -> tuple[ReadoutChoice, ...]:
    """Choose a readout for each fold, without the rows that validate there.

    The rows are run once for all folds.

    Args:
        task: with a trained head.
        rows: to train on; of these at most 2,000 are used.
        folds: the indices of the rows of each.
        template: of the rows.
    """
    backbone = task.backbone
    poolings = list_poolings(backbone.geometry.architecture, parse_template(template))
    if len(poolings) == 1:
        return tuple(ReadoutChoice(poolings[0], {}, ONLY_READOUT) for _ in folds)
    fold_of = {index: number for number, fold in enumerate(folds) for index in fold}
    numbered = replace(rows, truth=[str(index) for index in range(len(rows.truth))])
    texts, names = select_texts(numbered, backbone.geometry.vocab_size)
    kept = [int(name) for name in names]
    features = compute_features(backbone, texts, poolings=poolings)
    held_out = np.array([fold_of.get(index, -1) for index in kept])
    choices = []
    for number in range(len(folds)):
        used = np.flatnonzero(held_out != number)
        seen = {name: values[used] for name, values in features.items()}
        truth = [rows.truth[kept[at]] for at in used]
        choices.append(_choose_by_features(seen, truth, task.objective, len(used), 0))
    return tuple(choices)


def _choose_by_features(
    features: Features,
    truth: Sequence[str],
    objective: ScoreObjective,
    train: int,
    validation: int,
) -> ReadoutChoice:
    """Choose the readout by the features of training rows, and of validation rows after them."""
    parts, names = _list_parts(truth, objective, train, validation), [*features]
    if not parts:
        return ReadoutChoice(names[0], {}, TOO_FEW_ROWS)
    found = {name: _score_probe(features[name], truth, objective, parts) for name in names}
    judges = name_judges(train, validation)
    return choose_by_scores(found, judges=judges, measure=objective.measure)


def choose_by_scores(
    unseen: Mapping[Pooling, np.ndarray], *, judges: str, measure: str
) -> ReadoutChoice:
    """Choose the first readout that is not clearly worse than the best.

    Args:
        unseen: of each readout, the likeliest one first, the score of every judged row.
        judges: these rows.
        measure: the name of the score.
    """
    best = max(unseen.values(), key=lambda scores: float(scores.mean()))
    chosen = next(n for n in unseen if not is_clearly_higher(-unseen[n], -best, errors=2))
    means = {str(name): float(scores.mean()) for name, scores in unseen.items()}
    return ReadoutChoice(chosen, means, judges, measure=measure)


def _score_probe(
    features: np.ndarray, truth: Sequence[str], objective: ScoreObjective, parts: Sequence[Part]
) -> np.ndarray:
    """The score of each judged row, by a probe that was fitted without it."""
    model = fit_linear_model(features, truth, objective=objective, parts=parts, is_normalized=False)
    answers = list_answers(model.unseen, objective)
    return np.array(objective.score_rows([truth[at] for at in model.judged], answers))


def _list_parts(
    truth: Sequence[str], objective: ScoreObjective, train: int, validation: int
) -> list[Part]:
    """The rows to fit on and to judge by: folds of the training rows, and the validation rows."""
    if not can_fit(objective):
        return []
    known = truth[:train]
    folds = divide_rows(known, objective, seed=0)
    parts = list_fold_parts(known, folds, objective=objective)
    if validation and len({*known}) > 1:
        parts.append((np.arange(train), np.arange(train, train + validation)))
    return parts


def name_judges(train: int, validation: int) -> str:
    """The rows that the probe is judged by.

    Args:
        train: their number of training rows.
        validation: their number of validation rows.
    """
    judges = [f"{count_rows(train, 'training')} in folds"]
    of_validation = [count_rows(validation, "validation")] if validation else []
    return " and ".join([*of_validation, *judges])


def choose_task_readout(
    task: HeadClassifier, rows: Mapping[str, RenderedRows], *, template: str
) -> ReadoutChoice:
    """Choose the readout of a task's head by its rendered rows, without their soft tokens.

    Args:
        task: with a trained head.
        rows: by split; of these training and validation rows are used, at most 2,000 of each.
        template: of the rows.
    """
    backbone = task.backbone
    poolings = list_poolings(backbone.geometry.architecture, parse_template(template))
    used = {name: rows[name] for name in ("train", "validation") if name in rows}
    size = backbone.geometry.vocab_size
    texts = {name: select_texts(part, size) for name, part in used.items()}
    return choose_readout(backbone, poolings, objective=task.objective, **texts)


def describe_choice(
    task: PooledHeadTask, rows: Mapping[str, RenderedRows], *, template: str
) -> str:
    """Say how the readout of a task's head will be chosen.

    Args:
        task: with a trained head.
        rows: by split.
        template: of the rows.
    """
    poolings = list_poolings(task.backbone.geometry.architecture, parse_template(template))
    if len(poolings) == 1:
        return f"default: {poolings[0]}, {ONLY_READOUT}"
    counts = {n: min(len(part.examples), MAX_PROBED_ROWS) for n, part in rows.items()}
    judged = name_judges(counts["train"], counts.get("validation", 0))
    return f"default: {', '.join(poolings)}, chosen before the first step by a probe on {judged}"


def select_texts(rows: RenderedRows, vocab_size: int) -> TargetedTexts:
    """A sample of the rows, always the same one, without soft tokens, and their targets.

    Rows that have no other tokens are left out.

    Args:
        rows: of a split.
        vocab_size: V, from which on ids are soft tokens.
    """
    sample = sample_rows(rows, MAX_PROBED_ROWS)
    texts = [drop_soft_tokens(e.variants[0], vocab_size) for e in sample.examples]
    kept = [at for at, text in enumerate(texts) if text.input_ids]
    return [texts[at] for at in kept], [sample.truth[at] for at in kept]


def drop_soft_tokens(row: RenderedRow, vocab_size: int) -> RenderedRow:
    """The row's own tokens.

    Args:
        row: rendered.
        vocab_size: V, from which on ids are soft tokens.
    """
    kept = [at for at, token in enumerate(row.input_ids) if token < vocab_size]
    types = row.token_type_ids
    return replace(
        row,
        input_ids=tuple(row.input_ids[at] for at in kept),
        token_type_ids=tuple(types[at] for at in kept) if types else types,
    )
