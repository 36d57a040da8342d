"""Tasks bound to tiny backbones, and rows whose tokens can be written out by hand."""

import pytest
import torch
from torch import Tensor

from softprompt.prompt import InputPrompt
from softprompt.tasks import build_task
from support.tiny_models import tokenize

ROWS = [
    {"text": "the movie was great", "label": "up"},
    {"text": "it was a bad film and boring", "label": "down"},
    {"text": "good", "label": "up"},
]
# The words of the soft tokens, so that any row can be written out in plain tokens.
SOFT = "a film fresh"


@pytest.fixture
def rows() -> list[dict[str, str]]:
    return ROWS


@pytest.fixture
def bound(backbone):
    """A task on a family, with one template or one per architecture; more as in `build_task`."""

    def make(family: str, settings, template: str | dict[str, str], **more: object):
        own = backbone(family)
        chosen = template if isinstance(template, str) else template[own.geometry.architecture]
        return build_task(settings, own, template=chosen, **more)

    return make


@pytest.fixture
def words(backbone):
    """The prompt whose three soft tokens are the words of SOFT."""

    def make(family: str) -> InputPrompt:
        own = backbone(family)
        return InputPrompt(own.embed(tokenize(own, SOFT)))

    return make


@pytest.fixture
def spelled(backbone):
    """Parts of a row as ids: text, "soft" for the words of SOFT, "mask" for one mask.

    With the special tokens of the kind around them.
    """

    def make(family: str, *parts: str, masks: int = 1) -> Tensor:
        own = backbone(family)
        found = []
        for part in parts:
            if part == "soft":
                found.append(tokenize(own, SOFT))
            elif part == "mask":
                found.append(torch.full((masks,), own.tokenizer.mask_token_id))
            else:
                found.append(tokenize(own, part))
        begin, end = torch.tensor([0]), torch.tensor([2])
        match own.geometry.architecture:
            case "encoder":
                found = [begin, *found, end]
            case "causal":
                found = [begin, *found]
            case "encoder-decoder":
                found = [*found, end]
        return torch.cat(found)

    return make
