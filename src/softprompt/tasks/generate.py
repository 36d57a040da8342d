"""Write text: a causal backbone goes on, an encoder-decoder answers."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.backbone.head import Head
from softprompt.backbone.model import Backbone
from softprompt.data.batch import Side
from softprompt.data.tokenise import Renderer, Tokenised
from softprompt.errors import DataError, unknown
from softprompt.injection.generate import Decoding, generate
from softprompt.prompt import Prompt
from softprompt.tasks.base import Answer, Example, Loss, Row, Task
from softprompt.tasks.layout import padded, picked
from softprompt.tasks.score import summed_loss
from softprompt.tasks.settings import Generate


class Writer(Task):
    """Text in, text out.

    Args:
        settings: of the task.
        positions: for the row and its answer (of an encoder-decoder the answer alone); None where
            they have no end.
        choices: the answers that count; empty for any text.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        renderer: Renderer,
        settings: Generate,
        positions: int | None,
        choices: Sequence[str],
    ) -> None:
        decoding = Decoding(
            max_new_tokens=settings.max_new_tokens,
            beams=settings.beams,
            sample=settings.sample,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        self.backbone = backbone
        self.labels = tuple(choices)
        self._head = head
        self._renderer = renderer
        self._target_column = settings.target_column
        self._positions = positions
        self._most = settings.max_target_tokens
        answers = tuple(self._tokens(choice) for choice in choices) or None
        _check_choices(choices, answers or (), longest=decoding.max_new_tokens)
        self._decoding = replace(decoding, answers=answers) if settings.constrain else decoding

    @property
    def renderer(self) -> Renderer:
        """What makes ids of rows."""
        return self._renderer

    @property
    def decoding(self) -> Decoding:
        """How answers are generated."""
        return self._decoding

    @property
    def columns(self) -> tuple[str, ...]:
        """The template's fields."""
        return self._renderer.template.fields

    @property
    def target_column(self) -> str:
        """Where the text to be written stands."""
        return self._target_column

    def example(self, row: Row, *, target: bool = True) -> Example:
        """Render a row; its target is the text to be written and its end."""
        source = self._renderer.render(row)
        if not target:
            return Example((source,), ((),), None)
        if self._target_column not in row:
            raise DataError(unknown("column", self._target_column, options=row))
        whole = self._tokens(str(row[self._target_column]))
        written = (*whole[: self._most], *self.backbone.ends[:1])
        if self._most is not None and len(whole) > self._most:
            source = replace(source, cut=True)
        room = self._room(source)
        if len(written) > room:
            msg = (
                f"a text to be written has {len(written)} tokens, but {room} positions are left "
                f"for it: {str(row[self._target_column])[:60]!r}… Lower data.max_length, which "
                "makes room, or leave the row out."
            )
            raise DataError(msg)
        return Example((source,), ((),), written)

    def loss(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Loss:
        """Cross-entropy on the targets' tokens, and on no others."""
        targets = [_written(e) for e in examples]
        found = self._states(examples, targets, prompts=prompts, rows=rows)
        wanted = torch.tensor([token for t in targets for token in t], device=found.device)
        vocabulary = self.backbone.geometry.vocabulary
        total = summed_loss(self._head, found, wanted=wanted, vocabulary=vocabulary)
        return Loss(total, len(wanted))

    def answer(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> list[Answer]:
        """Generate each row's text."""
        side: Side = "left" if self.backbone.geometry.kind == "causal" else "right"
        inputs = padded(self.backbone, [e.variants[0] for e in examples], side=side)
        texts = generate(
            self.backbone,
            inputs,
            prompts=prompts,
            rows=rows,
            decoding=self._decoding,
        )
        return [Answer(text_of(self.backbone.tokenizer, ids), {}) for ids in texts]

    def rows_run(self, example: Example) -> tuple[Tokenised, ...]:
        """With its target behind it, where the backbone goes on."""
        if self.backbone.geometry.kind != "causal":
            return example.variants
        return (_continued(example.variants[0], _written(example)),)

    def _states(
        self,
        examples: Sequence[Example],
        targets: Sequence[tuple[int, ...]],
        *,
        prompts: Sequence[Prompt | None],
        rows: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "S H"]:
        """The hidden states that predict the targets' tokens."""
        sources = [e.variants[0] for e in examples]
        if self.backbone.geometry.kind == "causal":
            whole = [_continued(s, t) for s, t in zip(sources, targets, strict=True)]
            begins = [len(source.ids) - 1 for source in sources]
            points = [range(b, b + len(t)) for b, t in zip(begins, targets, strict=True)]
            return self.states_at(whole, points=points, prompts=prompts, which=rows)
        decoder = [[self.backbone.decoder_start, *t[:-1]] for t in targets]
        states = self.decoded(sources, decoder=decoder, prompts=prompts, which=rows)
        return picked(states, [range(len(t)) for t in targets])

    def _tokens(self, text: str) -> tuple[int, ...]:
        """A causal backbone's answer begins with the space that parts it from the row."""
        space = " " if self.backbone.geometry.kind == "causal" and text[:1].strip() else ""
        return tuple(self.backbone.tokenizer(space + text, add_special_tokens=False)["input_ids"])

    def _room(self, source: Tokenised) -> int:
        if self._positions is None:
            return 1 << 30
        return self._positions - (len(source.ids) if self.backbone.geometry.kind == "causal" else 0)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What was written, from the new tokens without the one that ends them."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def _check_choices(
    choices: Sequence[str], answers: Sequence[tuple[int, ...]], *, longest: int
) -> None:
    for choice, answer in zip(choices, answers, strict=True):
        if len(answer) > longest:
            msg = (
                f"the choice {choice!r} has {len(answer)} tokens, but max_new_tokens is {longest}, "
                "so it could never be the answer. Raise task.max_new_tokens to at least "
                f"{max(map(len, answers))}."
            )
            raise DataError(msg)


def _continued(source: Tokenised, target: Sequence[int]) -> Tokenised:
    """The row with its target behind it, but for the last token, which nothing follows."""
    ids = (*source.ids, *target[:-1])
    return Tokenised(ids, (*source.types, *[0] * (len(target) - 1)), source.masks, source.cut)


def _written(example: Example) -> tuple[int, ...]:
    if not isinstance(example.target, tuple):
        msg = "an example without its target has no loss. Render it with target=True."
        raise DataError(msg)
    return example.target
