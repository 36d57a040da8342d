"""Choose the engine that runs a comparison: this process, or a Ray cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

from softprompt.compare.engines.ray import RayCluster, RayEngine, connect
from softprompt.compare.protocol import Engine, Protocol, SequentialEngine
from softprompt.compare.results import ComparisonEvent
from softprompt.compare.runner import ComparisonRunner
from softprompt.errors import RecipeError, format_unknown

EngineName = Literal["local", "ray"]
EngineFactory = Callable[[Protocol, ComparisonRunner], Engine]


def check_engine_name(name: str) -> EngineName:
    """Return the name of an engine.

    Raises:
        RecipeError: there is no such engine.
    """
    match name:
        case "local" | "ray":
            return name
        case _:
            raise RecipeError([format_unknown("engine", str(name), options=get_args(EngineName))])


@contextmanager
def open_engine(
    engine: EngineName | RayCluster, *, callback: Callable[[ComparisonEvent], None]
) -> Iterator[EngineFactory]:
    """Open an engine for a block, and yield a function that makes it.

    Args:
        engine: ``local`` for one run after the other in this process, ``ray`` for the cluster
            that this machine belongs to, or a `RayCluster`.
        callback: called with the status of the engine.

    Raises:
        RecipeError: there is no such engine.
        MissingPackageError: the engine's package is not installed.
        TrainingError: there is no cluster.
    """
    if not isinstance(engine, RayCluster) and check_engine_name(engine) == "local":
        yield SequentialEngine
        return
    cluster = engine if isinstance(engine, RayCluster) else RayCluster()
    with connect(cluster.address or "auto"):
        yield partial(RayEngine, cluster=cluster, callback=callback)
