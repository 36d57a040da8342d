"""Fixtures: tiny random backbones of every family. Shapes in signatures are checked in all tests.

Get a backbone by its family: ``def test_x(backbone): backbone("llama")``. ``plain("llama")`` is the
same model without hooks, for an oracle. Helpers are in ``tests/support``: import them
from there; ``@for_each("family")`` of ``support.parametrize`` runs a test for each family.
"""
# ruff: noqa: E402  # the hook must be installed before the modules that it changes are imported

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

gc.disable()  # until all is imported, of which nothing is thrown away
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what one process compiles, the next ones read
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import pytest

pytest.register_assert_rewrite("support")

from support.shape_checks import install_shape_checks

# Before any of them is imported; shapes in signatures are checked in tests only.
_CHECKED = ("prompt", "decoding", "backbone", "injection", "methods", "data", "tasks")
install_shape_checks([f"softprompt.{name}" for name in _CHECKED])

import hypothesis
import torch
import transformers as tf

from softprompt._paths import cache_folder
from softprompt.backbone import Architecture, Backbone
from softprompt.methods import MethodSettings
from support.pictures import draw_pictures
from support.prompts import Maker
from support.tiny_models import (
    FAMILIES,
    SETTINGS,
    compute_checksum,
    draw_model,
    make_backbone,
    make_model,
    make_tokenizer,
    save_checkpoint,
)

# How long an example takes says nothing where other processes run.
hypothesis.settings.register_profile("softprompt", deadline=None)
hypothesis.settings.load_profile("softprompt")


def pytest_collection_finish() -> None:
    """What the libraries have made stays: a search of it for cycles takes a second each time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """Drawing learning curves and syncing files take half of a small run.

    A test with the fixture ``draws`` draws, and so do all commands in processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        draw_pictures(patch, wanted=False)
        yield


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning curves are drawn."""
    draw_pictures(monkeypatch, wanted=True)


@pytest.fixture(scope="session")
def backbone() -> Iterator[Callable[..., Backbone]]:
    """Backbones by family, each made once. At the end it is checked that no test changed one."""
    made: dict[tuple[str, torch.dtype], tuple[Backbone, str]] = {}

    def get(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
        if (family, dtype) not in made:
            new = make_backbone(family, dtype=dtype)
            made[family, dtype] = new, compute_checksum(new)
        return made[family, dtype][0]

    yield get
    changed = [key for key, (value, before) in made.items() if compute_checksum(value) != before]
    assert not changed, f"a test changed the weights of {changed}"


@pytest.fixture(scope="session")
def plain() -> Callable[[str], tf.PreTrainedModel]:
    """Models by family with the backbones' weights, as transformers made them, without hooks."""
    return cache(make_model)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache, except for converted models, which take long to make."""
    with pytest.MonkeyPatch.context() as patch:
        own, users = tmp_path_factory.mktemp("cache"), cache_folder() / "gguf"
        users.mkdir(parents=True, exist_ok=True)
        (own / "gguf").symlink_to(users)  # except converted models, which take long to make
        patch.setenv("SOFTPROMPT_CACHE", str(own))
        yield


@pytest.fixture
def new_model() -> Callable[..., tf.PreTrainedModel]:
    """New models by family, which a test may change."""
    return make_model


@pytest.fixture(scope="session")
def drawn() -> Callable[..., tf.PreTrainedModel]:
    """Random models of a given configuration."""
    return draw_model


@pytest.fixture
def new_backbone() -> Callable[..., Backbone]:
    """New backbones by family, which a test may change."""
    return make_backbone


@pytest.fixture(scope="session")
def tokenizer() -> Callable[[Architecture], tf.PreTrainedTokenizerFast]:
    """The small tokenizer, with the special tokens of a kind of backbone."""
    return make_tokenizer


@pytest.fixture
def settings() -> dict[str, MethodSettings]:
    """Small settings of every method."""
    return SETTINGS


@pytest.fixture
def families() -> tuple[str, ...]:
    """All families, for a test that cannot be run for each."""
    return FAMILIES


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model with its tokenizer as a checkpoint."""

    def save(family: str, model: tf.PreTrainedModel | None = None) -> Path:
        return save_checkpoint(tmp_path / family, family, model)

    return save


@pytest.fixture
def maker(backbone) -> Callable[..., Maker]:
    """Inputs and prompts for a family."""
    return lambda family, seed=0: Maker(backbone(family), seed)
