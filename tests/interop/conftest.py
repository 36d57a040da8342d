"""Models to export, tiny backbones to import for, and the messages of refused imports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softprompt.errors import ArtifactError, BackboneError, PromptError, SoftpromptError
from softprompt.inference import PromptModel
from softprompt.interop.convert import import_prompts
from support.artifacts import Desk
from support.models import ROWS, make_model_factory


@pytest.fixture
def rows() -> list[dict[str, str]]:
    return ROWS


@pytest.fixture
def model(backbone, maker) -> Callable[..., PromptModel]:
    return make_model_factory(backbone, maker)


@pytest.fixture
def desk(backbone, maker) -> Desk:
    """Where prompts are put to work."""
    return Desk(backbone, maker)


@pytest.fixture
def refused(desk) -> Callable[..., str]:
    """The message of a refused import, which must be an error of softprompt."""

    def said(form: str, source: Path, *, family: str = "llama", **more: Any) -> str:
        with pytest.raises(SoftpromptError) as caught:
            import_prompts(form, source, backbone=desk.backbone(family), **more)
        assert isinstance(caught.value, ArtifactError | BackboneError | PromptError)
        return str(caught.value)

    return said
