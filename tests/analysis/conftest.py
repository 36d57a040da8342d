"""Rows, and models to inspect."""

from collections.abc import Callable

import pytest

from softprompt.inference import PromptModel
from support.models import ROWS, make_model_factory


@pytest.fixture
def rows() -> list[dict[str, str]]:
    return ROWS


@pytest.fixture
def model(backbone, maker) -> Callable[..., PromptModel]:
    return make_model_factory(backbone, maker)
