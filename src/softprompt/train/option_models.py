"""A linear model of options: one score for each, and a softmax over those of a row.

It is what the head of a multiple choice starts as, what its readout is chosen by, and what a prompt
has to beat: logistic regression for a choice among several, McFadden's conditional logit (1974).
Since only differences within a row count, it has no bias, and the mean of a row's states is taken
away. Folds of the rows choose the strength of the regularization.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from softprompt.data import group_by_length, parse_template
from softprompt.prompt import Prompt
from softprompt.tasks import Example
from softprompt.tasks.chooser import HeadChooser, sum_choice_loss
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.heads import HeadClassifier, PooledHeadTask
from softprompt.tasks.pooling import Pooling, list_poolings
from softprompt.train.datasets import RenderedRows, sample_rows
from softprompt.train.readout import (
    ONLY_READOUT,
    TOO_FEW_ROWS,
    ReadoutChoice,
    choose_by_scores,
    choose_fold_readouts,
    choose_task_readout,
    compute_features,
    drop_soft_tokens,
    name_judges,
)
from softprompt.train.regression import Part, normalize_features

# Strengths of L2, the strongest first; the differences of states have a root mean square of 1.
_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)
_STEPS = 40
_FOLDS = 4
_FEWEST_ROWS = 8
_BATCH_SIZE = 16
# The most rows of a split that a model is fitted on.
MOST_OPTION_ROWS = 1000

_Rows = Sequence[NDArray[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class OptionModel:
    """A linear model of options whose regularization was chosen by folds.

    Args:
        weight: ``[H]``, of the states as they were given.
        strength: of the regularization.
        judged: the indices of the rows that were judged by a model fitted without them.
        hits: 1 for each of these rows whose option was found, else 0.
    """

    weight: NDArray[np.float64]
    strength: float
    judged: NDArray[np.int64]
    hits: NDArray[np.float64]

    def choose(self, rows: _Rows) -> list[int]:
        """The index of the best option of each row.

        Args:
            rows: the states ``[options, H]`` of each.
        """
        return [int((states @ self.weight).argmax()) for states in rows]


def list_option_parts(count: int, *, folds: Sequence[Sequence[int]] = ()) -> list[Part]:
    """The rows to fit on and those to judge, for each fold; none if the rows are too few.

    Args:
        count: the number of rows.
        folds: the indices of the rows of each; without any they are drawn.
    """
    if count < _FEWEST_ROWS:
        return []
    order = np.random.default_rng(0).permutation(count)
    drawn = [order[at::_FOLDS] for at in range(_FOLDS)]
    every = np.arange(count)
    used = [np.asarray(fold) for fold in folds] or drawn
    return [(np.setdiff1d(every, fold), fold) for fold in used]


def fit_option_model(rows: _Rows, choices: Sequence[int], *, parts: Sequence[Part]) -> OptionModel:
    """Choose the strength of a linear model by folds, and fit it on all rows.

    Args:
        rows: the states ``[options, H]`` of each.
        choices: the index of the right option of each.
        parts: the rows to fit on and those to judge, again and again; at least one.
    """
    centered = [torch.from_numpy(states - states.mean(axis=0)).double() for states in rows]
    scale = float(torch.cat(centered).square().mean().sqrt()) or 1.0
    states, judged = [of_row / scale for of_row in centered], np.concatenate([p[1] for p in parts])
    hits = np.zeros((len(_STRENGTHS), len(judged)))
    begin = 0
    for fit, judge in parts:
        known, wanted = [states[at] for at in fit], [choices[at] for at in fit]
        for number, weight in enumerate(_fit_path(known, wanted)):
            found = [int((states[at] @ weight).argmax()) == choices[at] for at in judge]
            hits[number, begin : begin + len(judge)] = found
        begin += len(judge)
    best = int(hits.mean(axis=1).argmax())  # of equally good ones the strongest
    weight = _fit_path(states, choices)[best] / scale
    return OptionModel(weight.numpy(), _STRENGTHS[best], judged, hits[best])


def _fit_path(
    rows: Sequence[Float[Tensor, "n H"]], choices: Sequence[int]
) -> list[Float[Tensor, " H"]]:
    """The weights for each strength, each fitted from those before."""
    weight = rows[0].new_zeros(rows[0].shape[1], requires_grad=True)
    counts, stacked = [len(states) for states in rows], torch.cat([*rows])
    found = []
    for strength in _STRENGTHS:
        optimizer = torch.optim.LBFGS(
            [weight], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe"
        )

        def compute_loss(strength: float = strength) -> float:
            weight.grad = None
            scores = (stacked @ weight).split(counts)
            loss = sum_choice_loss(scores, choices).total / len(choices)
            loss = loss + strength / 2 * weight.square().sum()
            loss.backward()
            return float(loss.detach())

        with torch.enable_grad():
            optimizer.step(compute_loss)
        found.append(weight.detach().clone())
    return found


def fit_option_head(
    task: HeadChooser, rows: RenderedRows, *, prompt: Prompt | None, share: float
) -> ClassifierHead | None:
    """Fit a linear head of a multiple choice, on the states that rows have with a prompt.

    Args:
        task: with a linear head; it stays as it is.
        rows: to fit on; of these at most 1,000 are used, always the same ones.
        prompt: to run them with, on the backbone's device; None for the bare backbone.
        share: of the weights that the head gets.

    Returns:
        The head. None if the rows are too few to fit one, or have states that are not finite.
    """
    examples = sample_rows(rows, MOST_OPTION_ROWS).examples
    parts = list_option_parts(len(examples))
    states = _compute_states(task, examples, prompt)
    if not parts or not all(np.isfinite(of_row).all() for of_row in states):
        return None
    width = states[0].shape[1]
    if task.head.kind == "linear-normalized":
        # To the length √H, as the head has them.
        states = [normalize_features(of_row) * width**0.5 for of_row in states]
    weight = fit_option_model(states, list_right_options(examples), parts=parts).weight
    head = deepcopy(task.head)
    tensors = {
        "output.weight": torch.from_numpy(share * weight)[None],
        "output.bias": torch.zeros(1),
    }
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return head


def list_right_options(examples: Sequence[Example]) -> list[int]:
    """The index of the right option of each row.

    Args:
        examples: with their targets.
    """
    return [example.target for example in examples if isinstance(example.target, int)]


@torch.no_grad()
def _compute_states(
    task: HeadChooser, examples: Sequence[Example], prompt: Prompt | None
) -> list[NDArray[np.float32]]:
    """The states ``[options, H]`` of each row, in fp32."""
    found = [np.empty((0, 0), dtype=np.float32)] * len(examples)
    for batch in group_by_length([e.length for e in examples], size=_BATCH_SIZE, seed=None):
        states = task.compute_option_states([examples[index] for index in batch], [prompt])
        for index, of_row in zip(batch, states, strict=True):
            found[index] = of_row.float().cpu().numpy()
    return found


def choose_option_readout(
    task: HeadChooser,
    rows: Mapping[str, RenderedRows],
    *,
    template: str,
    poolings: Sequence[Pooling] | None = None,
) -> ReadoutChoice:
    """Choose the readout of a head with which a linear model of options does best, if it is clear.

    Of those that are not clearly worse than the best the first is taken. The model is fitted on
    training rows without soft tokens, and judged by the validation rows and by folds of the
    training rows.

    Args:
        task: with a trained head.
        rows: by split; of these training and validation rows are used, at most 1,000 of each.
        template: of the rows.
        poolings: to choose from; None for those that backbone and template allow.
    """
    backbone = task.backbone
    kind = backbone.geometry.architecture
    names = poolings or list_poolings(kind, parse_template(template))
    if len(names) == 1:
        return ReadoutChoice(names[0], {}, ONLY_READOUT)
    used = [sample_rows(rows[n], MOST_OPTION_ROWS) for n in ("train", "validation") if n in rows]
    train, validation = len(used[0].examples), sum(len(part.examples) for part in used[1:])
    if not list_option_parts(train):
        return ReadoutChoice(names[0], {}, TOO_FEW_ROWS)
    examples = [example for part in used for example in part.examples]
    states = _read_options(task, examples, names)
    return _choose_by_states(states, list_right_options(examples), train, validation)


def _choose_by_states(
    states: Mapping[Pooling, _Rows], choices: Sequence[int], train: int, validation: int
) -> ReadoutChoice:
    """Choose the readout by the states of training rows, and of validation rows after them."""
    parts = list_option_parts(train)
    if not parts:
        return ReadoutChoice(next(iter(states)), {}, TOO_FEW_ROWS)
    if validation:
        parts.append((np.arange(train), np.arange(train, train + validation)))
    found = {
        name: fit_option_model(of_name, choices, parts=parts).hits
        for name, of_name in states.items()
    }
    return choose_by_scores(found, judges=name_judges(train, validation), measure="accuracy")


def choose_option_fold_readouts(
    task: HeadChooser, rows: RenderedRows, *, folds: Sequence[Sequence[int]], template: str
) -> tuple[ReadoutChoice, ...]:
    """Choose a readout for each fold, without the rows that validate there.

    The rows are run once for all folds.

    Args:
        task: with a trained head.
        rows: to train on; of these at most 1,000 are used.
        folds: the indices of the rows of each.
        template: of the rows.
    """
    names = list_poolings(task.backbone.geometry.architecture, parse_template(template))
    if len(names) == 1:
        return tuple(ReadoutChoice(names[0], {}, ONLY_READOUT) for _ in folds)
    numbered = replace(rows, truth=[str(index) for index in range(len(rows.truth))])
    sample = sample_rows(numbered, MOST_OPTION_ROWS)
    states = _read_options(task, sample.examples, names)
    right = list_right_options(sample.examples)
    choices = []
    for fold in folds:
        held_out = {str(index) for index in fold}
        used = [at for at, name in enumerate(sample.truth) if name not in held_out]
        seen = {name: [of_name[at] for at in used] for name, of_name in states.items()}
        choices.append(_choose_by_states(seen, [right[at] for at in used], len(used), 0))
    return tuple(choices)


def _read_options(
    task: HeadChooser, examples: Sequence[Example], poolings: Sequence[Pooling]
) -> dict[Pooling, list[NDArray[np.float64]]]:
    """The normalized states of each row's options by each readout, on the bare backbone."""
    size = task.backbone.geometry.vocab_size
    texts = [drop_soft_tokens(variant, size) for e in examples for variant in e.variants]
    features = compute_features(task.backbone, texts, poolings=poolings)
    ends = np.cumsum([len(e.variants) for e in examples])[:-1]
    return {name: np.split(normalize_features(values), ends) for name, values in features.items()}


def choose_head_readout(
    task: PooledHeadTask, rows: Mapping[str, RenderedRows], *, template: str
) -> ReadoutChoice:
    """Choose the readout of any pooled head by its rendered rows.

    Args:
        task: with a trained head.
        rows: by split.
        template: of the rows.
    """
    match task:
        case HeadChooser():
            return choose_option_readout(task, rows, template=template)
        case HeadClassifier():
            return choose_task_readout(task, rows, template=template)
        case _:
            raise TypeError(task)


def choose_head_fold_readouts(
    task: PooledHeadTask, rows: RenderedRows, *, folds: Sequence[Sequence[int]], template: str
) -> tuple[ReadoutChoice, ...]:
    """Choose a readout of any pooled head for each fold, without the rows that validate there.

    Args:
        task: with a trained head.
        rows: to train on.
        folds: the indices of the rows of each.
        template: of the rows.
    """
    match task:
        case HeadChooser():
            return choose_option_fold_readouts(task, rows, folds=folds, template=template)
        case HeadClassifier():
            return choose_fold_readouts(task, rows, folds=folds, template=template)
        case _:
            raise TypeError(task)
