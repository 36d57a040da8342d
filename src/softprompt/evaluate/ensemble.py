"""Several prompts on one backbone, asked together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import log
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.model import Backbone
from softprompt.data.batch import like_length
from softprompt.errors import PromptError, unknown
from softprompt.evaluate.model import Model, bring, task_settings
from softprompt.evaluate.predict import Judged, Report, report
from softprompt.evaluate.vote import Vote, voted
from softprompt.tasks import Answer, Classifier, Classify, Example

_WINDOW = 2048
# Templates say what a row looks like to a member, and a head is each member's own.
_MAY_DIFFER = {"template", "head"}

Ballot = Sequence[Example]


@dataclass(frozen=True)
class Verdict:
    """What an ensemble is worth on some rows.

    Args:
        ensemble: the members together.
        members: each alone, in their order.
    """

    ensemble: Report
    members: tuple[Report, ...]


class Ensemble:
    """Several prompts on one copy of the weights: each row stands in a batch once for each.

    The members answer the same question: their backbone, kind of task, labels, target column and
    label words agree. Their templates, methods, lengths and trained heads may differ.

    Source: Lester et al. 2021, "Prompt ensembling".

    Args:
        models: at least one. One on another copy of the same backbone moves to the first one's.
        vote: how their answers are made one, as `voted` says; written text has no mean.

    Raises:
        ArtifactError: a prompt was trained on another backbone.
        PromptError: the prompts do not answer the same question, or cannot vote so.
    """

    def __init__(self, models: Sequence[Model], *, vote: Vote = "majority") -> None:
        if not models:
            msg = "an ensemble of no models cannot answer. Give at least one."
            raise PromptError(msg)
        first = models[0]
        self.members = tuple(
            m if m.backbone is first.backbone else bring(m.artifact, first.backbone) for m in models
        )
        self.vote: Vote = vote
        _check_vote(vote, first)
        for number, model in enumerate(self.members[1:], start=2):
            _check_alike(first, model, number=number)

    @property
    def backbone(self) -> Backbone:
        """The frozen model that all members speak to."""
        return self.members[0].backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """What can be answered; empty for free text."""
        return self.members[0].labels

    def predict(
        self, rows: Iterable[str | Mapping[str, object]], *, batch_size: int = 32
    ) -> Iterator[Answer]:
        """Answer rows, in their order, as `Model.predict` does.

        Args:
            rows: texts, if every template has a single field; else mappings of the fields.
            batch_size: rows run at once, those of all members together.

        Raises:
            DataError: a field is missing, or a text is given, but a template has several fields.
        """
        if len(self.members) == 1:
            yield from self.members[0].predict(rows, batch_size=batch_size)
            return
        stream = iter(rows)
        while window := list(islice(stream, _WINDOW)):
            ballots = [[m.example(row) for m in self.members] for row in window]
            found: dict[int, Answer] = {}
            for batch in self._batches(ballots, batch_size):
                given, _ = self._ask([ballots[i] for i in batch])
                found |= zip(batch, self._together(given), strict=True)
            yield from (found[i] for i in range(len(window)))

    def evaluate(self, rows: Sequence[Mapping[str, object]], *, batch_size: int = 32) -> Report:
        """Loss and metrics on rows whose right answers are known.

        The loss is that of the mean probabilities; where text is written, the members' mean.

        Raises:
            DataError: there are no rows, or one lacks a field or its right answer.
        """
        truth = [self.members[0].truth(row, at=at) for at, row in enumerate(rows)]
        ballots = [[m.task.example(row) for m in self.members] for row in rows]
        return self.judge(ballots, truth, batch_size=batch_size).ensemble

    def judge(
        self, ballots: Sequence[Ballot], truth: Sequence[str], *, batch_size: int = 32
    ) -> Verdict:
        """Loss and metrics, of the members too, on rows that each member has rendered already.

        Args:
            ballots: each row as every member sees it.
            truth: the right answer of each row.
            batch_size: rows run at once, those of all members together.

        Raises:
            DataError: there are no rows.
        """
        if len(self.members) == 1 or not ballots:
            own = self.members[0].judge([b[0] for b in ballots], truth, batch_size=batch_size)
            return Verdict(own, (own,))
        sums, count = torch.zeros(len(self.members) + 1, dtype=torch.float64), 0
        answers: dict[int, list[Answer]] = {}
        for batch in self._batches(ballots, batch_size):
            chosen = [ballots[i] for i in batch]
            given, scores = self._ask(chosen)
            losses, scored = self._losses(chosen, scores)
            sums, count = sums + losses, count + scored
            rows = zip(*given, self._together(given), strict=True)
            answers |= zip(batch, map(list, rows), strict=True)
        ordered = zip(*(answers[i] for i in range(len(ballots))), strict=True)
        task = self.members[0].task
        *members, ensemble = [
            report(task, [Judged(total, count, tuple(truth), own)])
            for total, own in zip(sums.tolist(), ordered, strict=True)
        ]
        return Verdict(ensemble, tuple(members))

    def _batches(self, ballots: Sequence[Ballot], size: int) -> Iterator[list[int]]:
        lengths = [max(e.length for e in ballot) for ballot in ballots]
        yield from like_length(lengths, size=max(1, size // len(self.members)), seed=None)

    @torch.no_grad()
    def _ask(
        self, ballots: Sequence[Ballot]
    ) -> tuple[list[list[Answer]], Float[Tensor, "M B C"] | None]:
        """Every member's answers, and the scores that they come from, in one pass for all."""
        count, rows = len(self.members), len(ballots)
        flat = [ballot[m] for m in range(count) for ballot in ballots]
        which = torch.arange(count, device=self.backbone.device).repeat_interleave(rows)
        prompts, task = [m.prompt for m in self.members], self.members[0].task
        if not isinstance(task, Classifier):
            texts = task.answer(flat, prompts, rows=which)
            return [texts[m * rows : (m + 1) * rows] for m in range(count)], None
        parts = task.states(flat, prompts, rows=which).split(rows)
        readers = [m.task for m in self.members if isinstance(m.task, Classifier)]
        scores = [reader.read(part) for reader, part in zip(readers, parts, strict=True)]
        given = [task.answers(own) for own in scores]
        return given, torch.stack(scores)

    def _together(self, given: Sequence[Sequence[Answer]]) -> list[Answer]:
        return [voted(of_row, self.vote) for of_row in zip(*given, strict=True)]

    @torch.no_grad()
    def _losses(
        self, ballots: Sequence[Ballot], scores: Float[Tensor, "M B C"] | None
    ) -> tuple[Float[Tensor, " M1"], int]:
        """The summed loss of each member and, last, of all; and over how much it is summed."""
        if scores is None:
            pairs = zip(self.members, zip(*ballots, strict=True), strict=True)
            found = [m.task.loss(examples, [m.prompt]) for m, examples in pairs]
            own = torch.stack([loss.total for loss in found]).double().cpu()
            return torch.cat([own, own.mean()[None]]), found[0].count
        wanted = torch.tensor([ballot[0].target for ballot in ballots], device=scores.device)
        each = scores.log_softmax(dim=-1)
        mean = each.logsumexp(dim=0) - log(len(each))
        sums = [F.nll_loss(one, wanted, reduction="sum") for one in (*each, mean)]
        return torch.stack(sums).double().cpu(), len(ballots)


def _check_vote(vote: str, model: Model) -> None:
    if vote not in get_args(Vote):
        raise PromptError(unknown("vote", vote, options=get_args(Vote)))
    if vote == "mean" and not isinstance(model.task, Classifier):
        msg = (
            "written texts have no probabilities whose mean could be taken. Use vote 'majority', "
            "or a task of kind 'classify'."
        )
        raise PromptError(msg)


def _check_alike(first: Model, other: Model, *, number: int) -> None:
    """Refuse a member that is asked something else."""
    wanted, found = _question(first), _question(other)
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            msg = (
                f"the members of an ensemble answer the same question, but {name} is "
                f"{wanted.get(name)!r} for the first and {found.get(name)!r} for member {number}. "
                "Put prompts together that were trained for the same task."
            )
            raise PromptError(msg)


def _question(model: Model) -> dict[str, object]:
    """What a member is asked, its labels in their order."""
    settings = task_settings(model.artifact.manifest)
    facts = {name: value for name, value in asdict(settings).items() if name not in _MAY_DIFFER}
    if isinstance(settings, Classify):
        facts["verbalizer"] = settings.words()
    return {"kind": settings.kind, **facts, "labels": [*model.labels]}
