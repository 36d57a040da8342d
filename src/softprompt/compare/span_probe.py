"""A linear probe for answers from contexts: two linear outputs on the tokens of a frozen backbone.

It is the baseline of `softprompt.compare.linear_probe` for a task whose head reads every token of a
context. The states are computed once; start and end share the softmax that the task's own head has.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softprompt.compare.results import Cost
from softprompt.data.inputs import Row
from softprompt.inference import predict_without_prompt
from softprompt.tasks import Example
from softprompt.tasks.classifier_head import ClassifierHead, normalize_states
from softprompt.tasks.extraction import SPAN_OUTPUTS, ContextAnswers
from softprompt.tasks.extractor import Extractor, choose_answers, sum_span_loss
from softprompt.tasks.objectives import Prediction
from softprompt.train.calibration import calibrate

# Strengths of L2, the strongest first; states have a root mean square of 1.
_STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
_STEPS = 60
_BATCH_SIZE = 16
# Their states are in memory at once: 150 MB of a width of 384.
_MOST_TOKENS = 100_000
_FP32_BYTES = 4


@dataclass(frozen=True, eq=False)
class SpanProbe:
    """A fitted probe.

    Args:
        task: on the frozen backbone, with the fitted head.
        strength: of the regularization that validation rows chose.
        cost: its parameters; the seconds are measured by the caller.
    """

    task: Extractor
    strength: float
    cost: Cost

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The answer to each row; empty for none."""
        return predict_without_prompt(self.task, rows)


def fit_span_probe(
    task: Extractor,
    *,
    train: Sequence[Example],
    validation: Sequence[Example],
    truth: Sequence[str],
) -> SpanProbe:
    """Fit a probe on training rows, and select its settings by validation rows.

    Args:
        task: bound to the frozen backbone without a prompt.
        train: the training rows; of long ones only the first 100,000 tokens are used.
        validation: the validation rows, which choose the strength of the regularization and the
            threshold of no answer.
        truth: the answers of the validation rows as text.
    """
    width = task.backbone.geometry.hidden_size
    # Fitted on states that are normalized already.
    head = ClassifierHead(width, SPAN_OUTPUTS, kind="linear", seed=0).to(task.backbone.device)
    nn.init.zeros_(head.output.weight)
    inner = task.with_head(head)
    chosen = _limit_tokens(train)
    states, judged = (_compute_states(task, rows) for rows in (chosen, validation))
    best, found = -1.0, None
    for strength in _STRENGTHS:  # each starts from the one before
        _fit_head(inner, chosen, states, strength=strength)
        with torch.no_grad():
            scores = inner.score_states(validation, judged)
        predictions = choose_answers(validation, scores, objective=task.objective)
        objective = _calibrate(task, truth, predictions)
        again = choose_answers(validation, scores, objective=objective)
        measured = sum(objective.score_rows(truth, [one.label for one in again]))
        if measured > best:
            best, found = measured, (strength, deepcopy(head.state_dict()), objective)
    if found is None:  # there are no validation rows
        found = (_STRENGTHS[-1], head.state_dict(), task.objective)
    strength, weights, objective = found
    kept = ClassifierHead(width, SPAN_OUTPUTS, kind="linear-normalized", seed=0)
    kept.load_state_dict(weights)
    trainable = sum(tensor.numel() for tensor in weights.values())
    parameters = sum(p.numel() for p in task.backbone.body.parameters())
    cost = Cost(trainable, parameters, _FP32_BYTES * trainable, 0.0, added=trainable)
    fitted = task.with_head(kept).with_objective(objective)
    return SpanProbe(fitted, strength, cost)


def _calibrate(
    task: Extractor, truth: Sequence[str], predictions: Sequence[Prediction]
) -> ContextAnswers:
    """The objective with the threshold of no answer that is best for rows."""
    if task.objective.null_threshold is None:
        return task.objective
    objective: ContextAnswers = calibrate(task.objective, truth, predictions=predictions)[0]
    return objective


def _limit_tokens(rows: Sequence[Example]) -> Sequence[Example]:
    """The first rows, up to the most tokens whose states are kept."""
    total = 0
    for count, row in enumerate(rows):
        total += sum(map(len, row.read_positions))
        if total > _MOST_TOKENS and count:
            return rows[:count]
    return rows


@torch.no_grad()
def _compute_states(task: Extractor, rows: Sequence[Example]) -> list[Float[Tensor, "_ H"]]:
    """The normalized states of each row's tokens, on the bare backbone."""
    found: list[Tensor] = []
    for begin in range(0, len(rows), _BATCH_SIZE):
        states = task.compute_row_states(rows[begin : begin + _BATCH_SIZE], [None])
        found += [normalize_states(of_row.float()) for of_row in states]
    return found


def _fit_head(
    task: Extractor,
    rows: Sequence[Example],
    states: Sequence[Float[Tensor, "_ H"]],
    *,
    strength: float,
) -> None:
    """Minimize the mean loss of rows and the squares of the weights, in place."""
    head = task.head
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe"
    )

    def compute_loss() -> float:
        optimizer.zero_grad()
        loss = sum_span_loss(task.score_states(rows, states), rows).total / len(rows)
        loss = loss + strength / 2 * head.output.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(compute_loss)
