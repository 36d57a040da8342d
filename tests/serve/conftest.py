"""Artifacts of several tasks on tiny backbones, and engines that are stopped at the end."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from softprompt.inference import PromptModel
from softprompt.inference.continuous import GenerationBatch
from softprompt.serve.admission import EngineLimits
from softprompt.serve.engine import ServingEngine
from softprompt.serve.prompts import FolderSource, PromptSource
from softprompt.serve.server import ServerSettings, make_site
from softprompt.serve.site import SiteSettings
from support.models import make_model_factory
from support.servers import LiveServer, run_in_thread

# Names of prompts that one causal backbone serves, and how each is made.
MIXED = {
    "mood": ("llama", "words", "input"),
    "tone": ("llama", "words", "kv"),
    "rating": ("llama", "head", "input"),
    "names": ("llama", "tag", "input"),
    "reply": ("llama", "text", "input"),
    "pick": ("llama", "choice", "kv"),
}


@pytest.fixture
def model(backbone, maker) -> Callable[..., PromptModel]:
    return make_model_factory(backbone, maker)


@pytest.fixture
def models(model) -> dict[str, PromptModel]:
    return {name: model(way, seed=n) for n, (name, way) in enumerate(MIXED.items())}


@pytest.fixture
def folders(models, tmp_path: Path) -> dict[str, Path]:
    return {name: one.save(tmp_path / name) for name, one in models.items()}


@pytest.fixture
def start(backbone) -> Iterator[Callable[..., ServingEngine]]:
    """Starts engines."""
    engines: list[ServingEngine] = []

    def make_batch() -> GenerationBatch:
        return GenerationBatch(backbone("llama"), max_rows=8, max_tokens=4096)

    def start(**options) -> ServingEngine:
        engine = ServingEngine(make_batch, **options)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.stop(timeout=30)
        assert engine.queued_rows == 0
        assert engine.queued_tokens == 0


@pytest.fixture
def serve(backbone, folders) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers with the prompts of ``MIXED``."""
    started: list[tuple[LiveServer, threading.Thread]] = []

    def serve(
        *, keys=(), source: PromptSource | None = None, engine=None, drain_seconds=30.0, **limits
    ) -> LiveServer:
        settings = ServerSettings(
            site=SiteSettings(**limits), engine=engine or EngineLimits(batch_rows=16)
        )
        source = source or FolderSource([*folders.values()])
        site = make_site(backbone("llama"), source, keys=keys, settings=settings)
        started.append(run_in_thread(site, drain_seconds=drain_seconds))
        return started[-1][0]

    yield serve
    for live, thread in started:
        live.server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
