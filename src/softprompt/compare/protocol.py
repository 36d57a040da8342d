"""The protocol: every variant gets the same rows, budget and search for a learning rate.

Everything is selected by validation rows. Each trained variant predicts the test rows once, after
its training; nothing is selected by them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

from softprompt.compare.baselines import Baseline
from softprompt.compare.config import Variant
from softprompt.compare.lr_search import (
    RunSpec,
    TrainFn,
    estimate_steps,
    search_learning_rate,
    select_best,
)
from softprompt.compare.results import (
    Failed,
    HeldOutTest,
    ResultEvent,
    ResultsLog,
    RunResult,
    SearchResult,
    check_results,
)
from softprompt.errors import SoftpromptError


@dataclass(frozen=True)
class Protocol:
    """What all variants share.

    Args:
        num_seeds: how often each variant is trained.
        lr_multipliers: of the learning rate, to search; a single one means no search.
        search_fraction: of the steps, for each multiplier of the search.
        test_set: the test rows.
        time_budget_seconds: of training steps for each run; None for the recipe's steps.
    """

    num_seeds: int
    lr_multipliers: tuple[float, ...]
    search_fraction: float
    test_set: HeldOutTest
    time_budget_seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """A unit of work: the search of a variant's learning rate, or its training with a seed.

    Args:
        variant: to train.
        order: the number of the seed, then that of the variant: seed by seed, so that an
            interrupted comparison has results of every variant.
        seed: of the training; None for the search.
        searched: the result of the search; None for the search itself.
    """

    variant: Variant
    order: tuple[int, int]
    seed: int | None = None
    searched: SearchResult | None = None


class Engine(Interface):
    """Runs jobs, here or on a cluster."""

    def take_next(self, jobs: Sequence[Job]) -> tuple[Job, ResultEvent]:
        """Run at least one of the open jobs, and return the first that is done with its result.

        Args:
            jobs: all that are open; a running job that is not among them is cancelled.
        """


@dataclass(frozen=True)
class SequentialEngine:
    """Runs one job after the other in this process.

    Args:
        protocol: of the comparison.
        run: trains a run.
    """

    protocol: Protocol
    run: TrainFn

    def take_next(self, jobs: Sequence[Job]) -> tuple[Job, ResultEvent]:
        """Run the first job."""
        job = min(jobs, key=lambda job: job.order)
        return job, run_job(job, protocol=self.protocol, run=self.run)


def run_job(job: Job, *, protocol: Protocol, run: TrainFn) -> ResultEvent:
    """Run a job. An error in it becomes a `Failed`, so that the other jobs still run."""

    def work() -> ResultEvent:
        if job.seed is None or job.searched is None:
            return _search(job.variant, protocol, run)
        return _train_and_test(job.variant, job.seed, job.searched, protocol=protocol, run=run)

    return _catch_errors(work, job.variant.name, seed=job.seed)


def _catch_errors(
    work: Callable[[], ResultEvent], variant: str, *, seed: int | None = None
) -> ResultEvent:
    try:
        return work()
    except SoftpromptError as error:
        return Failed(variant, seed, str(error))
    except Exception as error:  # noqa: BLE001  # out of memory, or an error of a library
        return Failed(variant, seed, f"{type(error).__name__}: {error}")


def run_comparison(
    variants: Sequence[Variant],
    baselines: Mapping[str, Callable[[], Baseline]],
    *,
    protocol: Protocol,
    engine: Engine,
    path: Path,
) -> Iterator[ResultEvent]:
    """Run everything that the file at ``path`` does not hold yet, and append it there.

    If a variant fails, the others continue; the next call tries it again.

    Args:
        variants: to train.
        baselines: those without training steps, each made when it is needed.
        protocol: what all of them share.
        engine: runs the jobs of the variants.
        path: of the file of the results.

    Yields:
        The requested results that are in the file, then the new ones.

    Raises:
        DataError: the file is damaged; or it has results of other test rows, of another search or
            of other settings of a variant.
    """
    log = ResultsLog(path)
    before = [e for e in log.read() if not isinstance(e, Failed)]
    search = (
        tuple(sorted(protocol.lr_multipliers)),
        protocol.search_fraction,
        protocol.time_budget_seconds,
    )
    keys = {variant.name: variant.cache_key for variant in variants}
    check_results(before, rows=len(protocol.test_set.rows), search=search, cache_keys=keys)
    log.write(before)
    runs: set[tuple[str, int | None]] = {(name, None) for name in baselines}
    runs |= {(v.name, v.recipe.seed + n) for v in variants for n in range(protocol.num_seeds)}
    for earlier in before:
        match earlier:
            case RunResult() if (earlier.variant, earlier.seed) in runs:
                yield earlier
            case SearchResult() if earlier.variant in keys:
                yield earlier
            case _:
                pass
    done = {(e.variant, e.seed) for e in before if isinstance(e, RunResult)}
    searched = {e.variant: e for e in before if isinstance(e, SearchResult)}
    for event in _run_baselines(baselines, protocol, done):
        log.add(event)
        yield event
    for event in _run_variants(variants, protocol, engine, done=done, searched=searched):
        log.add(event)
        yield event


def _run_baselines(
    baselines: Mapping[str, Callable[[], Baseline]],
    protocol: Protocol,
    done: set[tuple[str, int | None]],
) -> Iterator[ResultEvent]:
    for name, make in baselines.items():
        if (name, None) in done:
            continue
        yield _catch_errors(lambda: _test_baseline(name, make, protocol), name)  # noqa: B023  # called at once


def _test_baseline(name: str, make: Callable[[], Baseline], protocol: Protocol) -> RunResult:
    baseline = make()
    scored = protocol.test_set.score(baseline(protocol.test_set.rows))
    return RunResult(name, None, **vars(scored), is_baseline=True, cost=baseline.cost)


def _run_variants(
    variants: Sequence[Variant],
    protocol: Protocol,
    engine: Engine,
    *,
    done: set[tuple[str, int | None]],
    searched: Mapping[str, SearchResult],
) -> Iterator[ResultEvent]:
    jobs: list[Job] = []
    numbered = {variant.name: (at, variant) for at, variant in enumerate(variants)}
    missing = {
        v.name: [n for n in range(protocol.num_seeds) if (v.name, v.recipe.seed + n) not in done]
        for v in variants
    }
    for at, variant in numbered.values():
        numbers = missing[variant.name]
        if variant.name in searched:
            jobs += _make_jobs(variant, at, searched[variant.name], numbers)
        elif numbers:
            jobs.append(Job(variant, (numbers[0], at)))
    while jobs:
        job, event = engine.take_next(tuple(jobs))
        jobs.remove(job)
        yield event
        match event:
            case SearchResult():
                at, variant = numbered[event.variant]
                jobs += _make_jobs(variant, at, event, missing[variant.name])
            case Failed():
                jobs = [job for job in jobs if job.variant.name != event.variant]
            case RunResult():
                pass


def _make_jobs(
    variant: Variant, at: int, searched: SearchResult, numbers: Sequence[int]
) -> list[Job]:
    """One job for each of the missing seeds, which are counted from that of the recipe."""
    return [Job(variant, (n, at), variant.recipe.seed + n, searched) for n in numbers]


def _search(variant: Variant, protocol: Protocol, run: TrainFn) -> SearchResult:
    fraction, seconds = protocol.search_fraction, protocol.time_budget_seconds
    steps = None if seconds is None else estimate_steps(seconds, variant=variant, run=run)
    scores, best = dict[float, float](), protocol.lr_multipliers[0]
    if len(protocol.lr_multipliers) > 1:
        runs = search_learning_rate(
            variant, multipliers=protocol.lr_multipliers, fraction=fraction, run=run, steps=steps
        )
        scores = {multiplier: trained.score for multiplier, trained in runs.items()}
        best = select_best(runs)
    return SearchResult(variant.name, scores, best, fraction, variant.cache_key, seconds, steps)


def _train_and_test(
    variant: Variant, seed: int, searched: SearchResult, *, protocol: Protocol, run: TrainFn
) -> RunResult:
    name, multiplier = f"{variant.folder}-{seed}", searched.multiplier
    trained = run(RunSpec(variant, name, seed, multiplier=multiplier, steps=searched.steps))
    scored = protocol.test_set.score(trained.answer(protocol.test_set.rows))
    return RunResult(
        variant.name,
        seed,
        **vars(scored),
        is_baseline=variant.kind != "prompt",
        validation=dict(trained.validation),
        rate=trained.rate,
        cost=trained.cost,
        run=trained.run,
    )
