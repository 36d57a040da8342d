"""Multiple choice: one of a row's own options, however many it has, and its scores.

Options are scored by the log-likelihood of their tokens, or by a head. A long option has a lower
likelihood than a short one, since each token takes some away, so scores may be divided by a length.
lm-evaluation-harness calls the share of right options without that ``acc``, and with the length in
characters ``acc_norm``. Here the rule that is not the task's own gives a second accuracy, the twin.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from softprompt.tasks.config import Choose, LengthNormalization, TargetForm
from softprompt.tasks.metrics import compute_calibration_error
from softprompt.tasks.objectives import (
    Objective,
    Prediction,
    Scores,
    average_probabilities,
    find_commonest,
)

_HIDDEN = {"hidden": True}


@dataclass(frozen=True)
class ChoicePrediction(Prediction):
    """The prediction of one of a row's options; its label is that option's text.

    Args:
        choice: the index of the option, from 0.
        scores: of each option: the sum of the log-probabilities of its tokens, or what a head
            gives it. Of several prompts together there are none.
        twin_choice: the option that is chosen by the other rule of length: without one where
            scores are divided by a length, else by characters. None for a head.
        twin_shares: the probabilities by that rule, which ensembles average.

    Examples:
        >>> shares = {"Rome": 0.75, "Paris": 0.25}
        >>> prediction = ChoicePrediction("Rome", shares, choice=0, scores=(-1.0, -2.1))
        >>> prediction.details
        {'choice': 0, 'scores': (-1.0, -2.1), 'twin_choice': None}
    """

    choice: int = 0
    scores: tuple[float, ...] = ()
    twin_choice: int | None = None
    twin_shares: tuple[float, ...] = field(default=(), repr=False, compare=False, metadata=_HIDDEN)


@dataclass(frozen=True)
class Choices(Objective):
    """One of a row's own options.

    Args:
        target_form: how targets name an option.
        normalization: what scores are divided by.
        has_twin: whether options are scored by their tokens, so that there is a rule of length.
    """

    target_form: TargetForm = "auto"
    normalization: LengthNormalization = "none"
    has_twin: bool = True

    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]  # each row has its own
    detail_names: ClassVar[tuple[str, ...]] = ("choice", "scores", "twin_choice")

    @property
    def measure(self) -> str:
        """The share of right options."""
        return "accuracy"

    @property
    def twin(self) -> LengthNormalization:
        """The other rule of length."""
        return "characters" if self.normalization == "none" else "none"

    @property
    def twin_name(self) -> str:
        """The accuracy by the other rule."""
        return f"accuracy_{'normalized' if self.normalization == 'none' else 'unnormalized'}"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The accuracy, that by the other rule of length, and the calibration error."""
        return ("accuracy", *([self.twin_name] if self.has_twin else []), "ece")

    def choose(
        self,
        probabilities: Mapping[str, float],
        *,
        scores: Sequence[float] = (),
        twin_shares: Sequence[float] = (),
    ) -> ChoicePrediction:
        """The likeliest option.

        Args:
            probabilities: of each option, in their order.
            scores: of each option, if there are any.
            twin_shares: the probabilities by the other rule of length.
        """
        label = max(probabilities, key=probabilities.__getitem__)
        twin = max(range(len(twin_shares)), key=twin_shares.__getitem__) if twin_shares else None
        return ChoicePrediction(
            label,
            probabilities,
            choice=[*probabilities].index(label),
            scores=tuple(scores),
            twin_choice=twin,
            twin_shares=tuple(twin_shares),
        )

    def average(self, predictions: Sequence[ChoicePrediction]) -> ChoicePrediction:
        """The option with the highest mean probability over several prompts.

        Args:
            predictions: at least one, of the same row.
        """
        twins = [p.twin_shares for p in predictions if p.twin_shares]
        is_whole = len(twins) == len(predictions)
        means = [sum(c) / len(twins) for c in zip(*twins, strict=True)] if is_whole else []
        return self.choose(average_probabilities(predictions), twin_shares=means)

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """The accuracy, by the other rule of length too, and the calibration error."""
        right = [t == p.label for t, p in zip(truth, predictions, strict=True)]
        metrics = {"accuracy": sum(right) / len(right)}
        twins = [
            [*p.probabilities][p.twin_choice]
            for p in predictions
            if isinstance(p, ChoicePrediction) and p.twin_choice is not None
        ]
        if self.has_twin and len(twins) == len(right):
            hits = [t == twin for t, twin in zip(truth, twins, strict=True)]
            metrics[self.twin_name] = sum(hits) / len(right)
        if all(p.probabilities for p in predictions):
            shares = [p.probabilities[p.label] for p in predictions]
            metrics["ece"] = compute_calibration_error(shares, right)
        return Scores(metrics)

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """1 for the right option, else 0."""
        return tuple(float(t == a) for t, a in zip(truth, answers, strict=True))

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:  # noqa: ARG002  # there are none
        """No labels: each row has its own options."""
        return Counter()

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The most frequent text; a row that has no such option is wrong."""
        return find_commonest(truth)

    def is_right(self, truth: str, answer: str) -> bool:
        """Whether it is the option."""
        return truth == answer


def make_choices(settings: Choose) -> Choices:
    """What a multiple choice is asked for.

    Args:
        settings: of the task.
    """
    return Choices(
        settings.target_form, settings.length_normalization, has_twin=settings.head is None
    )


def choose_by_place(indices: Sequence[int], counts: Sequence[int]) -> list[int]:
    """The index that is right most often, for each row among the options that it has.

    Args:
        indices: of the right options of the training rows.
        counts: the number of options of each row to answer.

    Examples:
        >>> choose_by_place([3, 3, 1], [4, 2])
        [3, 1]
    """
    count = Counter(indices)
    places = range(max([*counts, *(index + 1 for index in indices)], default=0))
    order = sorted(places, key=lambda index: (-count[index], index))
    return [next(index for index in order if index < most) for most in counts]
