"""Artifacts of every kind, in memory and on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from softprompt.artifact import Artifact, make_artifact
from support.artifacts import ORIGIN, SAMPLES, Stored, make_sample, read_bits, store_sample


@pytest.fixture(scope="session")
def new() -> Callable[..., Artifact]:
    return make_sample


@pytest.fixture(params=SAMPLES)
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return make_sample(**request.param)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return store_sample(tmp_path)


@pytest.fixture
def stored_prefix(tmp_path: Path) -> Stored:
    return store_sample(tmp_path, "kv")


@pytest.fixture(scope="session")
def same() -> Callable[[Artifact, Artifact], bool]:
    """Whether two artifacts agree in every bit of their tensors and in their manifests."""

    def equal(first: Artifact, second: Artifact) -> bool:
        pairs = [{n: read_bits(t) for n, t in one.to_tensors().items()} for one in (first, second)]
        # Kind, layers and shift of the prompts themselves, whatever their manifests say.
        derived = [
            make_artifact(one.prompt, one.head, **ORIGIN).manifest for one in (first, second)
        ]
        same_derived = derived[0] == derived[1]
        return first.manifest == second.manifest and pairs[0] == pairs[1] and same_derived

    return equal
