"""Where the runs of a comparison take place: here, or on a cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from softprompt.cli.runs import Runs
from softprompt.compare import Engine, InOrder, Protocol
from softprompt.errors import RecipeError, unknown

MakeEngine = Callable[[Protocol, Runs], Engine]

ENGINES = ("local", "ray")


@contextmanager
def engine_of(
    name: str, *, cpus: int | None, gpus: float | None, address: str | None
) -> Iterator[MakeEngine]:
    """What makes the engine of that name, as long as the block runs.

    Args:
        name: one of `ENGINES`.
        cpus: of each task of a cluster; 1 if left out.
        gpus: likewise; none if left out.
        address: of the cluster; that of RAY_ADDRESS, or of this machine's, if left out.

    Raises:
        RecipeError: there is no such engine, or it has no such options.
        MissingPackageError: the engine's package is not installed.
        TrainingError: there is no cluster.
    """
    match name:
        case "local":
            _check_none(cpus=cpus, gpus=gpus, address=address)
            yield InOrder
        case "ray":
            from softprompt.cli.cluster import Cluster, Needs, connected

            needs = Needs(cpus or 1, _whole_or_part(gpus or 0.0))
            with connected(address or "auto"):
                yield partial(Cluster, needs=needs)
        case _:
            raise RecipeError([unknown("engine", name, options=ENGINES)])


def _check_none(**given: float | str | None) -> None:
    faults = [
        f"--{name} is for a cluster, but the runs take place here. Add --engine ray, or leave it "
        "out."
        for name, value in given.items()
        if value is not None
    ]
    if faults:
        raise RecipeError(faults)


def _whole_or_part(gpus: float) -> float:
    if gpus > 1 and gpus % 1:
        fault = f"--gpus {gpus:g}: a task gets whole GPUs, or a part of one. Give such as 0.5 or 2."
        raise RecipeError([fault])
    return gpus
