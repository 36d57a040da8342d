"""Run the jobs of a comparison as tasks of a Ray cluster.

A worker runs a job as it would be run on this machine.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from softprompt.backbone.model import Backbone
from softprompt.compare.lr_search import RunSpec, TrainedRun
from softprompt.compare.protocol import Job, Protocol, run_job
from softprompt.compare.results import ComparisonEvent, Failed, ResultEvent, Status
from softprompt.compare.runner import ComparisonRunner
from softprompt.errors import MissingPackageError, RecipeError, TrainingError
from softprompt.recipe.schema import BackboneConfig
from softprompt.train.recipe_backbone import load_recipe_backbone

# How often a job is restarted because its worker was lost.
_MAX_RESTARTS = 3
# In seconds, for a cluster to accept a connection.
_CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster, and the resources that each run requests.

    Args:
        num_cpus: for each run; torch uses as many threads.
        num_gpus: for each run; may be a fraction below 1, or 0.
        address: ``HOST:PORT`` of the cluster's head. None for the value of ``RAY_ADDRESS``, or the
            cluster that runs on this machine.

    Raises:
        RecipeError: num_cpus is below 1, or num_gpus is above 1 and not a whole number.

    Examples:
        >>> RayCluster(num_cpus=4, num_gpus=0.5)
        RayCluster(num_cpus=4, num_gpus=0.5, address=None)
    """

    num_cpus: int = 1
    num_gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.num_cpus < 1:
            faults.append(f"num_cpus is {self.num_cpus}, but a run needs at least 1.")
        if self.num_gpus < 0 or (self.num_gpus > 1 and self.num_gpus % 1):
            faults.append(
                f"num_gpus (--gpus) is {self.num_gpus:g}, but a run gets whole GPUs, or a "
                "fraction of one. Set it to 0.5 or 2, for example."
            )
        if faults:
            raise RecipeError(faults)


@dataclass(frozen=True)
class _Submitted:
    """A job that was submitted to the cluster.

    Args:
        job: to run.
        stream: of the values that its task yields.
        running: whether a worker has started it.
        lost: how many of its workers were lost.
    """

    job: Job
    stream: Any
    running: bool = False
    lost: int = 0


class RayEngine:
    """An engine that submits all open jobs at once; the cluster runs as many as it can.

    Args:
        protocol: of the comparison.
        runner: with the folder and the rows.
        cluster: the resources that each task requests.
        callback: called when jobs start, end, are cancelled or lose their worker.
        run_job: the task that runs a job; by default `run_worker_job`.
    """

    def __init__(
        self,
        protocol: Protocol,
        runner: ComparisonRunner,
        *,
        cluster: RayCluster,
        callback: Callable[[ComparisonEvent], None],
        run_job: "RunJob | None" = None,
    ) -> None:
        import ray

        self._callback = callback
        shared = make_worker_job(
            protocol, runner, num_threads=cluster.num_cpus, num_gpus=cluster.num_gpus
        )
        self._shared = ray.put(shared)
        remote = ray.remote(
            num_cpus=cluster.num_cpus,
            num_gpus=cluster.num_gpus,
            max_retries=0,  # Ray would restart a lost task without a message
            num_returns="streaming",
        )
        self._task: Any = remote(run_job or run_worker_job)
        self._submitted: dict[str, _Submitted] = {}
        self._check_resources(cluster)

    def take_next(self, jobs: Sequence[Job]) -> tuple[Job, ResultEvent]:
        """Submit the new jobs, and wait for the first job that is done."""
        self._submit(jobs)
        while True:
            name, submitted = self._wait()
            value = _read_next(submitted)
            if isinstance(value, JobStarted):
                self._submitted[name] = replace(submitted, running=True)
                self._notify(f"{name}: started on {value.where} ({self._format_counts()})")
                continue
            event = self._restart(name, submitted) if value is None else value
            if event is not None:
                del self._submitted[name]
                self._notify(f"{name}: ended ({self._format_counts()})")
                return submitted.job, event

    def _submit(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs that are no longer open, and submit new ones."""
        import ray

        named = {_name_job(job): job for job in sorted(jobs, key=lambda job: job.order)}
        for name in [name for name in self._submitted if name not in named]:
            ray.cancel(self._submitted.pop(name).stream)
            self._notify(f"{name}: cancelled ({self._format_counts()})")
        for name, job in named.items():
            if name not in self._submitted:
                self._submitted[name] = _Submitted(job, self._start(job))

    def _start(self, job: Job) -> Any:  # noqa: ANN401  # Ray's type of a stream of results
        return self._task.remote(self._shared, job)

    def _wait(self) -> tuple[str, _Submitted]:
        """Wait for a job that has a new value."""
        import ray

        streams = [submitted.stream for submitted in self._submitted.values()]
        [stream], _ = ray.wait(streams, num_returns=1)
        return next((n, s) for n, s in self._submitted.items() if s.stream is stream)

    def _restart(self, name: str, submitted: _Submitted) -> Failed | None:
        """Restart a job whose worker was lost; a failure if that happened too often."""
        lost = submitted.lost + 1
        if lost > _MAX_RESTARTS:
            job, times = submitted.job, f"{lost} times in a row"
            return Failed(job.variant.name, job.seed, f"the worker was lost {times}. {_CAUSES}")
        attempt = f"attempt {lost} of at most {_MAX_RESTARTS}"
        self._notify(f"{name}: its worker was lost; restarted, {attempt}")
        self._submitted[name] = _Submitted(submitted.job, self._start(submitted.job), lost=lost)
        return None

    def _check_resources(self, cluster: RayCluster) -> None:
        """Report that tasks have to wait if no machine of the cluster is large enough now."""
        import ray

        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        machines = {(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in resources}
        if any(cpus >= cluster.num_cpus and gpus >= cluster.num_gpus for cpus, gpus in machines):
            return
        listed = "; ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in sorted(machines))
        self._notify(
            f"each task requests {cluster.num_cpus} CPUs and {cluster.num_gpus:g} GPUs, but the "
            f"cluster's machines have {listed}. Waiting for a larger one to join; to request less, "
            "stop with Ctrl-C and set fewer CPUs or GPUs per run."
        )

    def _notify(self, message: str) -> None:
        self._callback(Status(message))

    def _format_counts(self) -> str:
        running = sum(submitted.running for submitted in self._submitted.values())
        return f"{running} running, {len(self._submitted) - running} waiting"


# Why a worker is lost.
_CAUSES = (
    "Most often its machine has too little memory: request more CPUs per run, so that fewer "
    "tasks run at the same time, or use smaller batches. Ray's logs have details."
)


@contextmanager
def connect(address: str) -> Iterator[None]:
    """Connect to a running cluster for a block; tasks that still run at its end are cancelled.

    Args:
        address: HOST:PORT of its head, or ``auto`` for the value of RAY_ADDRESS or the cluster
            that runs on this machine.

    Raises:
        MissingPackageError: Ray is not installed.
        TrainingError: there is no such cluster.
    """
    if find_spec("ray") is None:
        msg = "the engine ray needs the package ray. Install it: pip install 'softprompt[ray]'"
        raise MissingPackageError(msg)
    # No usage statistics are sent; and a lost cluster is reported in a minute, not in fifteen.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    import ray

    head = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    _check_listening(head)
    # Ray writes events of the cluster to stdout, which is for results.
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=head or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise TrainingError(_describe_no_cluster(head, str(error))) from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_listening(head: str) -> None:
    """Check that an address accepts connections; Ray itself would try for a long time."""
    if not head:
        return
    host, _, port = head.rpartition(":")
    if not port.isdecimal() or "/" in host:
        raise TrainingError(_describe_no_cluster(head, "that is not of the form HOST:PORT"))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrainingError(_describe_no_cluster(head, reason)) from error


def _describe_no_cluster(head: str, reason: str) -> str:
    """The message that there is no cluster.

    Args:
        head: the address of its head; empty for this machine.
        reason: the message of the error, which may be empty.
    """
    where = f"at {head}" if head else "on this machine"
    details = " ".join(reason.split()).rstrip(".")
    return (
        f"cannot connect to a Ray cluster {where}{f' ({details})' if details else ''}. Start one "
        "(ray start --head --disable-usage-stats, then ray start --address=HEAD:6379 on each "
        "further machine), give the address HOST:PORT of another, or run the comparison with the "
        "engine local."
    )


def _name_job(job: Job) -> str:
    return f"{job.variant.name}, {'search' if job.seed is None else f'seed {job.seed}'}"


def _read_next(submitted: _Submitted) -> "JobStarted | ResultEvent | None":
    """The next value that a task yields; None if its worker was lost."""
    import ray
    from ray import exceptions

    lost = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        exceptions.ActorDiedError,
    )
    try:
        reference = next(submitted.stream, None)
        value: JobStarted | ResultEvent | None = None if reference is None else ray.get(reference)
    except lost:
        return None
    except exceptions.RayError as error:
        job = submitted.job
        last_line = str(error).strip().split("\n")[-1]
        reason = (
            f"the cluster could not run it ({last_line}). If a package is missing, install the "
            "same softprompt on all of its machines; otherwise see Ray's logs."
        )
        return Failed(job.variant.name, job.seed, reason)
    return value


@dataclass(frozen=True)
class JobStarted:
    """A worker has started a job.

    Args:
        where: its machine and process.
    """

    where: str


@dataclass(frozen=True, eq=False)
class WorkerJob:
    """The data that all jobs of a comparison share.

    Args:
        protocol: of the comparison.
        folder: of the comparison, as an absolute path.
        recipe: the text of ``recipe.toml`` in it.
        tables: the training and validation rows.
        num_threads: of torch.
        num_gpus: of the task; with 0 it sees none.
        version: of softprompt on the machine that started the comparison.
    """

    protocol: Protocol
    folder: Path
    recipe: str
    tables: Mapping[str, pa.Table]
    num_threads: int
    num_gpus: float
    version: str


def make_worker_job(
    protocol: Protocol, runner: ComparisonRunner, *, num_threads: int, num_gpus: float
) -> WorkerJob:
    """Collect the data with which workers run jobs as ``runner`` would run them here.

    Args:
        protocol: of the comparison.
        runner: with the folder and the rows.
        num_threads: of torch in a worker.
        num_gpus: that a task requests.
    """
    folder = runner.folder.resolve()
    return WorkerJob(
        protocol=protocol,
        folder=folder,
        recipe=(folder / "recipe.toml").read_text(encoding="utf-8"),
        # As one table in memory: a data set may refer to a file of this machine.
        tables={name: rows.with_format("arrow")[:] for name, rows in runner.tables.items()},
        num_threads=num_threads,
        num_gpus=num_gpus,
        version=version("softprompt"),
    )


def run_worker_job(shared: WorkerJob, job: Job) -> Iterator[JobStarted | ResultEvent]:
    """Run a job in a worker.

    Args:
        shared: the data that all jobs share.
        job: to run.

    Yields:
        That the job has started, then its result.
    """
    import datasets

    yield JobStarted(f"{socket.gethostname()}, process {os.getpid()}")
    fault = _find_fault(shared)
    if fault is not None:
        yield Failed(job.variant.name, job.seed, fault)
        return
    if not shared.num_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # The number of threads affects the last digits, and the machine may run other tasks.
    torch.set_num_threads(shared.num_threads)

    def run(spec: RunSpec) -> TrainedRun:
        backbone = _load_backbone(spec.variant.recipe.backbone.model_dump_json())
        tables = {name: datasets.Dataset(table) for name, table in shared.tables.items()}
        return ComparisonRunner(backbone, tables, folder=shared.folder)(spec)

    yield run_job(job, protocol=shared.protocol, run=run)


def _find_fault(shared: WorkerJob) -> str | None:
    """Why this machine cannot run the job; None if it can."""
    here, path = socket.gethostname(), shared.folder / "recipe.toml"
    if version("softprompt") != shared.version:
        return (
            f"{here} has softprompt {version('softprompt')}, but the comparison was started "
            f"with {shared.version}. Install the same version on all machines of the cluster."
        )
    if not path.is_file() or path.read_text(encoding="utf-8") != shared.recipe:
        return (
            f"{here} cannot read the comparison's folder, {shared.folder}, where runs are saved "
            "so that another machine can resume them. Choose an output folder that all machines "
            "of the cluster share under the same path."
        )
    return None


@lru_cache(maxsize=1)
def _load_backbone(section: str) -> Backbone:
    """Load the backbone of a recipe's section, as JSON, once per process."""
    return load_recipe_backbone(BackboneConfig.model_validate_json(section))


RunJob = Callable[[WorkerJob, Job], Iterator[JobStarted | ResultEvent]]
