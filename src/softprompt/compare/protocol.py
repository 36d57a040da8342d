"""The protocol: every arm gets the same rows, the same steps and the same search for a rate.

Prompts are chosen by validation rows. The test rows are answered once by each trained prompt, after
its training is over; nothing is chosen by them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from softprompt.compare.arms import Arm
from softprompt.compare.outcome import Event, Failed, Outcome, Searched, as_line, from_line
from softprompt.compare.rates import Runner, best_of, search
from softprompt.errors import DataError, SoftpromptError

Row = Mapping[str, Any]


class Control(Interface):
    """Answers test rows without training."""

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """One answer a row."""


@dataclass(frozen=True)
class Protocol:
    """What all arms have in common.

    Args:
        seeds: how often each arm is trained.
        factors: of the rates in the search; a single one means no search.
        share: of the steps that a search takes for each.
        test: the rows that answers are judged by.
        target: the column of their right answers.
    """

    seeds: int
    factors: tuple[float, ...]
    share: float
    test: Sequence[Row]
    target: str


def compare(
    arms: Sequence[Arm],
    controls: Mapping[str, Control],
    *,
    protocol: Protocol,
    run: Runner,
    path: Path,
) -> Iterator[Event]:
    """Run everything that the file at ``path`` does not hold yet, and add it there line by line.

    An arm that fails is told, and the others go on; it is tried again the next time.

    Yields:
        What was found in the file, then what is new.

    Raises:
        DataError: the file is damaged, or of other test rows.
    """
    before = [e for e in _read(path) if not isinstance(e, Failed)]
    _check(before, protocol)
    _write(path, before)
    yield from before
    done = {(e.arm, e.seed) for e in before if isinstance(e, Outcome)}
    rates = {e.arm: e for e in before if isinstance(e, Searched)}
    for event in _missing(arms, controls, protocol=protocol, run=run, done=done, rates=rates):
        _append(path, event)
        yield event


def _missing(
    arms: Sequence[Arm],
    controls: Mapping[str, Control],
    *,
    protocol: Protocol,
    run: Runner,
    done: set[tuple[str, int | None]],
    rates: dict[str, Searched],
) -> Iterator[Event]:
    for name, control in controls.items():
        if (name, None) not in done:
            yield Outcome(name, None, _right(control(protocol.test), protocol), {})
    # Seed by seed, so that a comparison that is stopped has something of every arm.
    broken: set[str] = set()
    for number in range(protocol.seeds):
        for arm in arms:
            seed = arm.recipe.seed + number
            if (arm.name, seed) in done or arm.name in broken:
                continue
            try:
                if arm.name not in rates:
                    rates[arm.name] = _searched(arm, protocol, run)
                    yield rates[arm.name]
                yield _outcome(arm, seed, rates[arm.name], protocol=protocol, run=run)
            except SoftpromptError as error:
                broken.add(arm.name)
                yield Failed(arm.name, seed, str(error))


def _searched(arm: Arm, protocol: Protocol, run: Runner) -> Searched:
    if len(protocol.factors) == 1:
        return Searched(arm.name, {}, protocol.factors[0], protocol.share)
    found = search(arm.recipe, arm.name, factors=protocol.factors, share=protocol.share, run=run)
    scores = {factor: trained.score for factor, trained in found.items()}
    return Searched(arm.name, scores, best_of(found), protocol.share)


def _outcome(
    arm: Arm, seed: int, searched: Searched, *, protocol: Protocol, run: Runner
) -> Outcome:
    recipe = arm.recipe.model_copy(update={"seed": seed})
    trained = run(recipe, f"{arm.name}-{seed}", share=1.0, factor=searched.factor)
    answers = [answer.label for answer in trained.model.predict(protocol.test)]
    return Outcome(
        arm.name,
        seed,
        _right(answers, protocol),
        dict(trained.validation),
        rate=trained.rate,
        trainable=trained.trainable,
        size=trained.size,
        seconds=round(trained.seconds, 1),
        steps=trained.steps,
    )


def _right(answers: Sequence[str], protocol: Protocol) -> tuple[bool, ...]:
    truth = [str(row[protocol.target]) for row in protocol.test]
    return tuple(answer == wanted for answer, wanted in zip(answers, truth, strict=True))


def _check(events: Sequence[Event], protocol: Protocol) -> None:
    rows = {len(e.right) for e in events if isinstance(e, Outcome)}
    if rows - {len(protocol.test)}:
        msg = (
            f"the comparison was begun with {rows.pop()} test rows, but there are "
            f"{len(protocol.test)} now. Begin a new one in another folder."
        )
        raise DataError(msg)
    wanted = tuple(sorted(protocol.factors)), protocol.share
    for event in events:
        if isinstance(event, Searched) and (event.factors, event.share) != wanted:
            tried = ", ".join(f"{factor:g}" for factor in event.factors)
            msg = (
                f"the comparison was begun with rates times {tried}, each for {event.share:.0%} of "
                "the steps. All arms get the same search: ask for that again, or begin a new "
                "comparison in another folder."
            )
            raise DataError(msg)


def _read(path: Path) -> list[Event]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [from_line(json.loads(line)) for line in lines]
    except ValueError as error:
        msg = f"{path} is damaged ({error}). Take the damaged line out, and it is run again."
        raise DataError(msg) from error


def _write(path: Path, events: Sequence[Event]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text("".join(json.dumps(as_line(e)) + "\n" for e in events), encoding="utf-8")
    aside.replace(path)


def _append(path: Path, event: Event) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(as_line(event)) + "\n")
