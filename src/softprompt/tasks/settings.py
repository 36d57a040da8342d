"""What a task is before it meets a backbone: ``[task]`` of a recipe; an artifact keeps it too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from softprompt.tasks.pool import HeadKind, Pool


@dataclass(frozen=True)
class Classify:
    """Choose one of the labels.

    Args:
        template: what a row looks like; None joins the text columns.
        label_column: where the label stands.
        verbalizer: for each label its word or words, which the language-model head scores. None
            trains a head instead.
        labels: of a trained head, in the order wanted: of two, F1 is that of the second. None takes
            those of the training data, sorted.
        head: ``linear``, ``mlp`` (dense, tanh, linear, as BERT's own), or another of
            `ClassifierHead`'s, as the family's classifiers in transformers have it.
        pool: which state of an encoder a trained head reads: the real [CLS]'s, or that of whatever
            stands ``first``. PEFT's heads read the first, which is a soft token.
    """

    kind: ClassVar = "classify"

    template: str | None = None
    label_column: str = "label"
    verbalizer: Mapping[str, str | Sequence[str]] | None = None
    labels: Sequence[str] | None = None
    head: HeadKind = "linear"
    pool: Pool = "cls"

    def words(self) -> dict[str, tuple[str, ...]]:
        """For each label its words."""
        given = self.verbalizer or {}
        return {k: (v,) if isinstance(v, str) else tuple(v) for k, v in given.items()}


@dataclass(frozen=True)
class Generate:
    """Write text.

    Args:
        template: what a row looks like; None joins the text columns.
        target_column: the text to be written.
        choices: ``any`` text, the targets that occur in the training ``data``, or a list.
        constrain: whether nothing but the choices can be written; else any other text counts as
            ``other``.
        max_new_tokens: the longest answer.
        max_target_tokens: of a text to be learnt, its end not counted; the rest is cut off.
        beams: 1 is greedy.
        sample: draw instead of taking the best.
        temperature: divides the logits when sampling.
        top_k: sample from the k likeliest; 0 for all.
        top_p: sample from the smallest set with this probability.
    """

    kind: ClassVar = "generate"

    template: str | None = None
    target_column: str = "target"
    choices: Literal["any", "data"] | Sequence[str] = "any"
    constrain: bool = True
    max_new_tokens: int = 32
    max_target_tokens: int | None = None
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


TaskSettings = Classify | Generate
TASKS: dict[str, type[Classify] | type[Generate]] = {t.kind: t for t in (Classify, Generate)}
