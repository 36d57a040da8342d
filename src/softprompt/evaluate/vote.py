"""What several answers to one row come to."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, assert_never

from softprompt.tasks import Answer

Vote = Literal["majority", "mean"]


def voted(answers: Sequence[Answer], vote: Vote) -> Answer:
    """The answer that some answers make together.

    Its probabilities are the mean of theirs, whichever way the label is found; so after a vote by
    majority the label need not be the likeliest.

    Source: Lester et al. 2021, "Prompt ensembling" (the majority of five prompts).

    Args:
        answers: of the same labels, at least one; or texts.
        vote: ``majority`` takes the label that most of them give. Of those that equally many give
            it takes the one of the highest mean probability, and then the first of the labels; of
            texts, the one that was given first. ``mean`` takes the highest mean probability.
    """
    names = [*answers[0].probabilities]
    mean = {n: sum(a.probabilities[n] for a in answers) / len(answers) for n in names}
    match vote:
        case "majority":
            count = Counter(a.label for a in answers)
            most = [label for label in (names or count) if count[label] == max(count.values())]
            return Answer(max(most, key=lambda label: mean.get(label, 0.0)), mean)
        case "mean":
            return Answer(max(mean, key=mean.__getitem__), mean)
        case _:
            assert_never(vote)
