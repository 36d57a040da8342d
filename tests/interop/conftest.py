"""Models to export, prompts at work on tiny backbones, and what is said of files of others."""

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
    """What is said when something is not imported; nothing but an error of ours will do."""

    def said(form: str, source: Path, *, family: str = "llama", **more: Any) -> str:
        with pytest.raises(SoftpromptError) as caught:
            import_prompts(form, source, backbone=desk.backbone(family), **more)
        assert isinstance(caught.value, ArtifactError | BackboneError | PromptError)
        return str(caught.value)

    return said
