"""Where one machine is too small: the jobs of a comparison as tasks of a Ray cluster."""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from softprompt.cli.errand import Begun, Errand, errand_of, run_errand
from softprompt.cli.runs import Runs
from softprompt.cli.say import note
from softprompt.compare import Event, Failed, Job, Protocol
from softprompt.errors import MissingPackageError, TrainingError

Act = Callable[[Errand, Job], Iterator[Begun | Event]]

# How often a job is begun again because its worker was lost.
_AGAIN = 3
# Seconds for a cluster to answer.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Needs:
    """What each task asks of the cluster.

    Args:
        cpus: that torch may use.
        gpus: below 1 for a part of one.
    """

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class _Going:
    """A job that the cluster has.

    Args:
        job: that one.
        stream: what its task says.
        begun: whether a worker has taken it.
        lost: how many workers were lost over it.
    """

    job: Job
    stream: Any
    begun: bool = False
    lost: int = 0


class Cluster:
    """An engine that gives the cluster all open jobs at once; it runs as many as there is room for.

    Args:
        protocol: of the comparison.
        runs: that would train here: the folder and the rows.
        needs: of each task.
        act: what a worker does.
    """

    def __init__(
        self, protocol: Protocol, runs: Runs, *, needs: Needs, act: Act = run_errand
    ) -> None:
        import ray

        errand = errand_of(protocol, runs, threads=needs.cpus, gpus=needs.gpus)
        self._errand = ray.put(errand)
        remote = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            max_retries=0,  # Ray would begin a lost task again in silence
            num_returns="streaming",
        )
        self._task: Any = remote(act)
        self._going: dict[str, _Going] = {}
        _tell_of_room(needs)

    def next(self, jobs: Sequence[Job]) -> tuple[Job, Event]:
        """Start what is not started yet, and wait for the first job that is done."""
        self._keep_to(jobs)
        while True:
            name, going = self._heard()
            said = _said(going)
            if isinstance(said, Begun):
                self._going[name] = replace(going, begun=True)
                note(f"{name}: begun on {said.where} ({self._count()})")
                continue
            event = self._again(name, going) if said is None else said
            if event is not None:
                del self._going[name]
                note(f"{name}: ended ({self._count()})")
                return going.job, event

    def _keep_to(self, jobs: Sequence[Job]) -> None:
        """Cancel what is not wanted any more, and start what is new."""
        import ray

        wanted = {_name(job): job for job in sorted(jobs, key=lambda job: job.order)}
        for name in [name for name in self._going if name not in wanted]:
            ray.cancel(self._going.pop(name).stream)
            note(f"{name}: cancelled ({self._count()})")
        for name, job in wanted.items():
            if name not in self._going:
                self._going[name] = _Going(job, self._start(job))

    def _start(self, job: Job) -> Any:  # noqa: ANN401  # Ray's own stream of what a task yields
        return self._task.remote(self._errand, job)

    def _heard(self) -> tuple[str, _Going]:
        """The first job of which there is something new."""
        import ray

        [stream], _ = ray.wait([going.stream for going in self._going.values()], num_returns=1)
        return next((n, g) for n, g in self._going.items() if g.stream is stream)

    def _again(self, name: str, going: _Going) -> Failed | None:
        """Start a job again whose worker was lost; that it failed, if it was lost too often."""
        lost = going.lost + 1
        if lost > _AGAIN:
            job, times = going.job, f"{lost} times in a row"
            return Failed(job.arm.name, job.seed, f"the worker was lost {times}. {_CAUSES}")
        note(f"{name}: its worker was lost; begun again, time {lost} of at most {_AGAIN}")
        self._going[name] = _Going(going.job, self._start(going.job), lost=lost)
        return None

    def _count(self) -> str:
        begun = sum(going.begun for going in self._going.values())
        return f"{begun} running, {len(self._going) - begun} waiting"


_CAUSES = (
    "Most often its machine has too little memory: ask for more --cpus, so that fewer tasks run "
    "beside each other, or for smaller batches. The logs of Ray say more."
)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A running cluster, for as long as the block runs; whatever runs there then is ended.

    Args:
        address: its head's HOST:PORT, or ``auto`` for what RAY_ADDRESS says, or the one that runs
            on this machine.

    Raises:
        MissingPackageError: Ray is not installed.
        TrainingError: there is no such cluster.
    """
    if find_spec("ray") is None:
        msg = "--engine ray needs the package ray. Install it: pip install 'softprompt[ray]'"
        raise MissingPackageError(msg)
    # Nothing phones home; and a cluster that is gone is told in a minute, not in fifteen.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    import ray

    place = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    _check_listening(place)
    # Ray tells on stdout what happens in the cluster; that is for results.
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=place or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise TrainingError(_no_cluster(place, str(error))) from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_listening(place: str) -> None:
    """Check that somebody listens at an address; Ray itself would try for a long time."""
    if not place:
        return
    host, _, port = place.rpartition(":")
    if not port.isdecimal() or "/" in host:
        raise TrainingError(_no_cluster(place, "that is not of the form HOST:PORT"))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise TrainingError(_no_cluster(place, error.strerror or str(error))) from error


def _no_cluster(place: str, why: str) -> str:
    where = f"at {place}" if place else "on this machine"
    plain = " ".join(why.split()).rstrip(".")
    return (
        f"no Ray cluster {where} can be joined ({plain}). Start one (ray start --head "
        "--disable-usage-stats, then ray start --address=HEAD:6379 on each further machine), name "
        "another with --address HOST:PORT, or leave out --engine ray."
    )


def _tell_of_room(needs: Needs) -> None:
    """Say that tasks have to wait if no machine is large enough for one, as the cluster is now."""
    import ray

    rooms = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [(r.get("CPU", 0.0), r.get("GPU", 0.0)) for r in rooms]
    if any(cpus >= needs.cpus and gpus >= needs.gpus for cpus, gpus in room):
        return
    has = "; ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in sorted(set(room)))
    note(
        f"each task asks for {needs.cpus} CPUs and {needs.gpus:g} GPUs, but the cluster's machines "
        f"have {has}. Waiting for a larger one to join; to ask for less, stop with Ctrl-C and give "
        "fewer --cpus or --gpus."
    )


def _name(job: Job) -> str:
    return f"{job.arm.name}, {'search' if job.seed is None else f'seed {job.seed}'}"


def _said(going: _Going) -> Begun | Event | None:
    """What a task says next; None if its worker was lost."""
    import ray
    from ray import exceptions as gone

    lost = (
        gone.WorkerCrashedError,
        gone.NodeDiedError,
        gone.LocalRayletDiedError,
        gone.OutOfMemoryError,
        gone.ObjectLostError,
        gone.ActorDiedError,
    )
    try:
        reference = next(going.stream, None)
        said: Begun | Event | None = None if reference is None else ray.get(reference)
    except lost:
        return None
    except gone.RayError as error:
        job = going.job
        last = str(error).strip().split("\n")[-1]
        why = (
            f"the cluster could not run it ({last}). If a package is missing, install the same "
            "softprompt on all of its machines; else the logs of Ray say more."
        )
        return Failed(job.arm.name, job.seed, why)
    return said
