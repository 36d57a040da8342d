"""The protocol: every arm gets the same rows, the same budget and the same search for a rate.

What is trained is chosen by validation rows. The test rows are answered once by each trained arm,
after its training is over; nothing is chosen by them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

from softprompt.compare.arms import Arm
from softprompt.compare.controls import Control
from softprompt.compare.exam import Exam
from softprompt.compare.journal import Journal, check
from softprompt.compare.outcome import Event, Failed, Outcome, Searched
from softprompt.compare.rates import Runner, Trial, best_of, search, steps_within
from softprompt.errors import SoftpromptError


@dataclass(frozen=True)
class Protocol:
    """What all arms have in common.

    Args:
        seeds: how often each arm is trained.
        factors: of the rates in the search; a single one means no search.
        share: of the steps that a search takes for each.
        exam: the test rows.
        seconds: of training steps for each run; None for the steps that the recipe says.
    """

    seeds: int
    factors: tuple[float, ...]
    share: float
    exam: Exam
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """What can be run by itself: the search of an arm, or its training with a seed.

    Args:
        arm: whose.
        order: seed by seed, so that a comparison that is stopped has something of every arm.
        seed: None for the search.
        searched: what the search found.
    """

    arm: Arm
    order: tuple[int, int]
    seed: int | None = None
    searched: Searched | None = None


class Engine(Interface):
    """Runs jobs, wherever there is room."""

    def next(self, jobs: Sequence[Job]) -> tuple[Job, Event]:
        """Run at least one of the open jobs, and say what came of the first one that is done.

        Args:
            jobs: all that are open; one that is no longer among them is not wanted any more.
        """


@dataclass(frozen=True)
class InOrder:
    """Runs one job after the other, here.

    Args:
        protocol: of the comparison.
        run: trains.
    """

    protocol: Protocol
    run: Runner

    def next(self, jobs: Sequence[Job]) -> tuple[Job, Event]:
        """Run the first job."""
        job = min(jobs, key=lambda job: job.order)
        return job, perform(job, protocol=self.protocol, run=self.run)


def perform(job: Job, *, protocol: Protocol, run: Runner) -> Event:
    """Run a job. Whatever goes wrong in it is told and takes no other down."""

    def done() -> Event:
        if job.seed is None or job.searched is None:
            return _searched(job.arm, protocol, run)
        return _outcome(job.arm, job.seed, job.searched, protocol=protocol, run=run)

    return _told(done, job.arm.name, seed=job.seed)


def _told(do: Callable[[], Event], arm: str, *, seed: int | None = None) -> Event:
    try:
        return do()
    except SoftpromptError as error:
        return Failed(arm, seed, str(error))
    except Exception as error:  # noqa: BLE001  # memory that ran out, a library's own fault
        return Failed(arm, seed, f"{type(error).__name__}: {error}")


def compare(
    arms: Sequence[Arm],
    controls: Mapping[str, Callable[[], Control]],
    *,
    protocol: Protocol,
    engine: Engine,
    path: Path,
) -> Iterator[Event]:
    """Run everything that the file at ``path`` does not hold yet, and add it there line by line.

    An arm that fails is told, and the others go on; it is tried again the next time.

    Args:
        controls: made when they are needed, which may take a while.
        engine: runs what is trained.

    Yields:
        What was asked for and is in the file, then what is new.

    Raises:
        DataError: the file is damaged, or of other test rows.
    """
    journal = Journal(path)
    before = [e for e in journal.read() if not isinstance(e, Failed)]
    wanted = tuple(sorted(protocol.factors)), protocol.share, protocol.seconds
    marks = {arm.name: arm.mark for arm in arms}
    check(before, rows=len(protocol.exam.rows), wanted=wanted, marks=marks)
    journal.write(before)
    asked: set[tuple[str, int | None]] = {(name, None) for name in controls}
    asked |= {(a.name, a.recipe.seed + n) for a in arms for n in range(protocol.seeds)}
    for known in before:
        if (known.arm, known.seed) in asked if isinstance(known, Outcome) else known.arm in marks:
            yield known
    done = {(e.arm, e.seed) for e in before if isinstance(e, Outcome)}
    rates = {e.arm: e for e in before if isinstance(e, Searched)}
    for event in _controls(controls, protocol, done):
        journal.add(event)
        yield event
    for event in _trained(arms, protocol, engine, done=done, rates=rates):
        journal.add(event)
        yield event


def _controls(
    controls: Mapping[str, Callable[[], Control]],
    protocol: Protocol,
    done: set[tuple[str, int | None]],
) -> Iterator[Event]:
    for name, make in controls.items():
        if (name, None) in done:
            continue
        yield _told(lambda: _untrained(name, make, protocol), name)  # noqa: B023  # called at once


def _untrained(name: str, make: Callable[[], Control], protocol: Protocol) -> Outcome:
    control = make()
    marks = protocol.exam.mark(control(protocol.exam.rows))
    return Outcome(name, None, **vars(marks), control=True, cost=control.cost)


def _trained(
    arms: Sequence[Arm],
    protocol: Protocol,
    engine: Engine,
    *,
    done: set[tuple[str, int | None]],
    rates: Mapping[str, Searched],
) -> Iterator[Event]:
    jobs: list[Job] = []
    numbered = {arm.name: (at, arm) for at, arm in enumerate(arms)}
    for at, arm in numbered.values():
        wanted = [n for n in range(protocol.seeds) if (arm.name, arm.recipe.seed + n) not in done]
        if arm.name in rates:
            jobs += _of_seeds(arm, at, rates[arm.name], wanted)
        elif wanted:
            jobs.append(Job(arm, (wanted[0], at)))
    while jobs:
        job, event = engine.next(tuple(jobs))
        jobs.remove(job)
        yield event
        match event:
            case Searched():
                at, arm = numbered[event.arm]
                numbers = range(protocol.seeds)
                wanted = [n for n in numbers if (arm.name, arm.recipe.seed + n) not in done]
                jobs += _of_seeds(arm, at, event, wanted)
            case Failed():
                jobs = [job for job in jobs if job.arm.name != event.arm]
            case Outcome():
                pass


def _of_seeds(arm: Arm, at: int, searched: Searched, numbers: Sequence[int]) -> list[Job]:
    return [Job(arm, (n, at), arm.recipe.seed + n, searched) for n in numbers]


def _searched(arm: Arm, protocol: Protocol, run: Runner) -> Searched:
    share, seconds = protocol.share, protocol.seconds
    steps = None if seconds is None else steps_within(seconds, arm=arm, run=run)
    scores, best = dict[float, float](), protocol.factors[0]
    if len(protocol.factors) > 1:
        found = search(arm, factors=protocol.factors, share=share, run=run, steps=steps)
        scores, best = {factor: one.score for factor, one in found.items()}, best_of(found)
    return Searched(arm.name, scores, best, share, arm.mark, seconds, steps)


def _outcome(
    arm: Arm, seed: int, searched: Searched, *, protocol: Protocol, run: Runner
) -> Outcome:
    name, factor = f"{arm.folder}-{seed}", searched.factor
    trained = run(Trial(arm, name, seed, factor=factor, steps=searched.steps))
    marks = protocol.exam.mark(trained.answer(protocol.exam.rows))
    return Outcome(
        arm.name,
        seed,
        **vars(marks),
        control=arm.kind != "prompt",
        validation=dict(trained.validation),
        rate=trained.rate,
        cost=trained.cost,
        run=trained.run,
    )
