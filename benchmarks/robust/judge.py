"""Whether a model answers as another one, and whether its record says what it does."""

import math
from collections.abc import Sequence
from typing import Any

from tiny import TEXTS, ask
from trials import ChangedError

from softprompt.data import parse_template
from softprompt.inference import PromptModel
from softprompt.prompt import InputPrompt

Answers = Sequence[tuple[Any, ...]]
TOLERANCE = 1e-5


def require_same(answers: Answers, original: Answers) -> None:
    """Require the answers of the original, to the noise of sums in another order."""
    for text, one, other in zip(TEXTS, answers, original, strict=True):
        if not _is_same(one, other):
            message = f"{text!r}: {one} instead of {other}"
            raise ChangedError(message)


def is_same(answers: Answers, original: Answers) -> bool:
    """Whether answers are the original's, to the noise of sums in another order."""
    return all(_is_same(one, other) for one, other in zip(answers, original, strict=True))


def _is_same(one: Any, other: Any) -> bool:  # noqa: ANN401  # parts of answers
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < TOLERANCE
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def require(holds: bool, rule: str) -> None:  # noqa: FBT001  # a condition
    """Require a rule of a record."""
    if not holds:
        raise ChangedError(rule)


def require_numbers(answers: Answers) -> None:
    """Require that probabilities are numbers that sum to one."""
    for label, _, *probabilities in answers:
        shares = [share for _, share in probabilities]
        sums = not shares or math.isclose(sum(shares), 1, abs_tol=TOLERANCE)
        require(sums, f"the probabilities of {label!r} are {shares}")


def require_consistent(model: PromptModel) -> None:
    """Require that a model's record says what the model does.

    Its numbers may be any finite ones: with these it is another prompt.
    """
    manifest, prompt = model.artifact.manifest, model.prompt
    task = manifest.task
    template = parse_template(manifest.template)
    length = prompt.length if isinstance(prompt, InputPrompt) else 0
    require(template.soft_length == length, f"template {manifest.template!r}, prompt of {length}")
    require(
        task.get("template") in (None, manifest.template),
        f"the task's template is {task.get('template')!r}, the manifest's {manifest.template!r}",
    )
    require(manifest.length == prompt.length, f"length {manifest.length}, prompt {prompt.length}")
    labels = list(manifest.labels)
    require(len({*labels}) == len(labels), f"labels {labels}")
    require(labels == [*model.labels], f"labels {labels}, the model's {model.labels}")
    words = task.get("verbalizer")
    if isinstance(words, dict):
        require(labels == [*words], f"labels {labels}, words {words}")
    for tensor in [*prompt.to_tensors().values(), *model.artifact.head.values()]:
        require(bool(tensor.isfinite().all()), "numbers that are not finite")
    for label, _, *probabilities in ask(model):
        if task["kind"] == "classify":
            names, shares = zip(*probabilities, strict=True)
            require([*names] == labels, f"probabilities of {names}, labels {labels}")
            require(math.isclose(sum(shares), 1, abs_tol=TOLERANCE), f"they sum to {sum(shares)}")
        require(isinstance(label, str), f"the answer is {label!r}")
        if labels and task.get("constrained_decoding", True):
            require(label in labels, f"the answer is {label!r}, the labels {labels}")
