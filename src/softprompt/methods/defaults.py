"""Default settings by method and backbone, each with its source."""

from dataclasses import dataclass
from typing import Literal

from softprompt.backbone.model import Geometry
from softprompt.errors import format_unknown
from softprompt.methods.initializers import FromRandom, FromVocabulary, Initializer

Schedule = Literal["constant", "linear", "cosine"]


# Families that normalize their input embeddings: prompts need a hundredfold learning rate there.
T5 = {"t5", "mt5", "umt5"}


@dataclass(frozen=True)
class Defaults:
    """Settings of a run.

    Args:
        optimizer: ``adamw``, ``adafactor``, or a class of ``torch.optim``.
        learning_rate: of the prompt, at its highest.
        weight_decay: of the prompt.
        lr_scheduler: how the rate falls.
        warmup_ratio: the share of all steps in which it rises first.
        init: the initialization, if there are no label words or text.
        source: of these settings.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    lr_scheduler: Schedule
    warmup_ratio: float
    init: Initializer
    source: str


def choose_defaults(method: str, geometry: Geometry) -> Defaults:
    """The default settings of a method on a backbone.

    Args:
        method: its name.
        geometry: of the backbone.

    Raises:
        KeyError: the method has no entry here, which the contract tests check.
    """
    match method:
        case "prompt-tuning" if geometry.model_type in T5:
            return Defaults(
                "adafactor", 0.3, 1e-5, "constant", 0.0, FromVocabulary(),
                "Lester et al. 2021: Adafactor at 0.3, parameter scaling off, weight decay 1e-5",
            )  # fmt: skip
        case "prompt-tuning" if geometry.architecture == "encoder":
            return Defaults(
                "adamw", 1e-2, 1e-5, "linear", 0.0, FromVocabulary(),
                "Liu et al. 2022 (P-tuning v2's code): 5e-3 to 3e-2 for BERT and RoBERTa",
            )  # fmt: skip
        case "prompt-tuning":
            return Defaults(
                "adamw", 1e-2, 0.0, "linear", 0.03, FromVocabulary(),
                "measured here: benchmarks/quality, SmolLM2-135M from text at 1e-2",
            )  # fmt: skip
        case "p-tuning":
            return Defaults(
                "adamw", 1e-3, 1e-2, "linear", 0.03, FromRandom(),
                "PEFT's MRPC example: AdamW at 1e-3, decay 0.01; 1e-5 to 1e-3 in the papers",
            )  # fmt: skip
        case "prefix-tuning":
            rate = 1e-4 if geometry.architecture == "encoder" else 5e-5
            return Defaults(
                "adamw", rate, 0.0, "linear", 0.0, FromRandom(),
                "Li & Liang 2021: AdamW at 5e-5; P-tuning v2's code: 1e-4 with projection on BERT",
            )  # fmt: skip
        case "p-tuning-v2":
            return Defaults(
                "adamw", 7e-3, 0.0, "linear", 0.0, FromRandom(),
                "Liu et al. 2022: 5e-3, 7e-3 or 1e-2 in most scripts, linear decay",
            )  # fmt: skip
        case _:
            raise KeyError(format_unknown("method", method, options=["prompt-tuning"]))
