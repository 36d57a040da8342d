"""Default settings by method and backbone, each with its source."""

from dataclasses import dataclass, replace
from typing import Literal, assert_never

from softprompt.backbone.model import Geometry
from softprompt.methods.initializers import FromRandom, FromVocabulary, Initializer
from softprompt.methods.prompt_tuning import Reparametrization

Schedule = Literal["constant", "linear", "cosine", "plateau"]

# Families that normalize their input embeddings: prompts need a hundredfold learning rate there.
T5 = {"t5", "mt5", "umt5"}


@dataclass(frozen=True)
class Defaults:
    """Default settings of a run.

    Args:
        optimizer: ``adamw``, ``adafactor``, or a class of ``torch.optim``.
        learning_rate: the highest learning rate of the prompt.
        weight_decay: the weight decay of the prompt.
        lr_scheduler: the schedule of the learning rate.
        warmup_ratio: the share of all steps in which the rate rises first.
        init: the initialization, if there are no label words or text.
        source: the source of these settings.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    lr_scheduler: Schedule
    warmup_ratio: float
    init: Initializer
    source: str


def choose_defaults(
    method: str,
    geometry: Geometry,
    *,
    reparametrization: Reparametrization = "none",
    from_demonstrations: bool = False,
    train_shared: bool = True,
) -> Defaults:
    """The default settings of a method on a backbone.

    Args:
        method: the name of the method.
        geometry: the geometry of the backbone.
        reparametrization: of prompt tuning.
        from_demonstrations: whether the prompt starts from the keys and values of training rows.
        train_shared: of multitask prompt tuning.

    Raises:
        KeyError: the method has no entry here.
    """
    match method:
        case "prompt-tuning":
            return _choose_for_prompt_tuning(geometry, reparametrization)
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
        case "p-tuning-v2" if from_demonstrations:
            return Defaults(
                "adamw", 1e-3, 0.0, "cosine", 0.0, FromRandom(),
                "Lu et al. 2025 (Context Tuning): AdamW at 1e-3, no decay, cosine",
            )  # fmt: skip
        case "p-tuning-v2":
            return Defaults(
                "adamw", 7e-3, 0.0, "linear", 0.0, FromRandom(),
                "Liu et al. 2022: 5e-3, 7e-3 or 1e-2 in most scripts, linear decay",
            )  # fmt: skip
        case "multitask-prompt-tuning":
            return _choose_for_multitask_prompt_tuning(geometry, train_shared=train_shared)
        case _:
            msg = f"the method {method!r} has no default settings. Add them to choose_defaults."
            raise KeyError(msg)


def _choose_for_prompt_tuning(geometry: Geometry, reparametrization: Reparametrization) -> Defaults:
    match reparametrization:
        case "residual":
            rate = 0.3 if geometry.model_type in T5 else 1e-2
            return Defaults(
                "adamw", rate, 1e-5, "constant", 0.0, FromVocabulary(),
                "Razdaibiedina et al. 2023: AdamW at 0.3 for T5, decay 1e-5, constant; elsewhere "
                "as prompt tuning without it",
            )  # fmt: skip
        case "superposition":
            return Defaults(
                "adamw", 3e-3, 0.0, "linear", 0.0, FromVocabulary(),
                "measured here: weights of word embeddings, whose scale is that of no backbone",
            )  # fmt: skip
        case "none" if geometry.model_type in T5:
            return Defaults(
                "adafactor", 0.3, 1e-5, "constant", 0.0, FromVocabulary(),
                "Lester et al. 2021: Adafactor at 0.3, parameter scaling off, weight decay 1e-5",
            )  # fmt: skip
        case "none" if geometry.architecture == "encoder":
            return Defaults(
                "adamw", 1e-2, 1e-5, "linear", 0.0, FromVocabulary(),
                "Liu et al. 2022 (P-tuning v2's code): 5e-3 to 3e-2 for BERT and RoBERTa",
            )  # fmt: skip
        case "none":
            return Defaults(
                "adamw", 1e-2, 0.0, "linear", 0.03, FromVocabulary(),
                "measured here: benchmarks/quality, SmolLM2-135M from text at 1e-2",
            )  # fmt: skip
        case _:
            assert_never(reparametrization)


def _choose_for_multitask_prompt_tuning(geometry: Geometry, *, train_shared: bool) -> Defaults:
    if geometry.model_type in T5:
        return Defaults(
            "adamw", 0.3, 1e-5, "linear", 0.0, FromVocabulary(),
            "Wang et al. 2023: AdamW at 0.3 for T5's shared prompt, decay 1e-5, linear",
        )  # fmt: skip
    shared = _choose_for_prompt_tuning(geometry, "none")
    if not train_shared:
        source = "not published: one trial on MiniLM, of 0.01, 0.1 and 0.3; the matrix starts at 1"
        return replace(shared, learning_rate=0.1, source=source)
    return replace(shared, source=f"as prompt tuning (published for T5 alone): {shared.source}")
