"""What a worker of a cluster does: one job of a comparison, as it would be done at home."""

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import datasets
import pyarrow as pa
import torch

from softprompt.backbone.model import Backbone
from softprompt.cli.runs import Runs
from softprompt.compare import Event, Failed, Job, Protocol, Trained, Trial, perform
from softprompt.recipe.sections import BackboneSection
from softprompt.train.prepare import open_section


@dataclass(frozen=True)
class Begun:
    """A worker has taken a job.

    Args:
        where: its machine and process.
    """

    where: str


@dataclass(frozen=True, eq=False)
class Errand:
    """What is the same for all jobs of a comparison.

    Args:
        protocol: of the comparison.
        folder: of the comparison, its whole path.
        recipe: what ``recipe.toml`` in it says.
        tables: the training and validation rows.
        threads: that torch may use.
        gpus: of the task; what it was not given it does not see.
        version: of softprompt where the command was given.
    """

    protocol: Protocol
    folder: Path
    recipe: str
    tables: Mapping[str, pa.Table]
    threads: int
    gpus: float
    version: str


def errand_of(protocol: Protocol, runs: Runs, *, threads: int, gpus: float) -> Errand:
    """What workers have to know to run jobs as ``runs`` would run them here."""
    folder = runs.folder.resolve()
    return Errand(
        protocol=protocol,
        folder=folder,
        recipe=(folder / "recipe.toml").read_text(encoding="utf-8"),
        # As one table in memory: a data set may be no more than the name of a file here.
        tables={name: rows.with_format("arrow")[:] for name, rows in runs.tables.items()},
        threads=threads,
        gpus=gpus,
        version=version("softprompt"),
    )


def run_errand(errand: Errand, job: Job) -> Iterator[Begun | Event]:
    """Say that a job is begun, run it, and say what came of it."""
    yield Begun(f"{socket.gethostname()}, process {os.getpid()}")
    fault = _fault(errand)
    if fault is not None:
        yield Failed(job.arm.name, job.seed, fault)
        return
    if not errand.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # The numbers depend on it in their last digits, and the machine has other tasks to run.
    torch.set_num_threads(errand.threads)

    def run(trial: Trial) -> Trained:
        backbone = _backbone(trial.arm.recipe.backbone.model_dump_json())
        tables = {name: datasets.Dataset(table) for name, table in errand.tables.items()}
        return Runs(backbone, tables, folder=errand.folder, heed=_go_on)(trial)

    yield perform(job, protocol=errand.protocol, run=run)


def _fault(errand: Errand) -> str | None:
    """Why this machine cannot run the job; None if it can."""
    here, path = socket.gethostname(), errand.folder / "recipe.toml"
    if version("softprompt") != errand.version:
        return (
            f"{here} has softprompt {version('softprompt')}, but the command was given with "
            f"{errand.version}. Install the same version on all machines of the cluster."
        )
    if not path.is_file() or path.read_text(encoding="utf-8") != errand.recipe:
        return (
            f"{here} does not see the comparison's folder, {errand.folder}, where runs are kept so "
            "that another machine can go on with them. Name a folder with --output that all "
            "machines of the cluster share under the same path."
        )
    return None


@lru_cache(maxsize=1)
def _backbone(section: str) -> Backbone:
    """The backbone of a section in JSON, loaded once a process."""
    return open_section(BackboneSection.model_validate_json(section))


def _go_on() -> None:
    """Whoever stops a worker stops it from outside."""
