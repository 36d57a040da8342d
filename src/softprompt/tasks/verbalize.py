"""Classify by label words: the backbone's own language-model head says which fits best."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.head import Head
from softprompt.backbone.model import Backbone
from softprompt.data.tokenise import Renderer, Tokenised
from softprompt.prompt import Prompt
from softprompt.tasks.base import Example, Row
from softprompt.tasks.classifier import Classifier
from softprompt.tasks.layout import picked
from softprompt.tasks.words import Words, label_scores


class _ByWords(Classifier):
    """What all classifiers by words share.

    Args:
        renderers: one, or for a masked backbone one for each length of word.
        target_column: where a row's label stands.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        words: Words,
        renderers: Sequence[Renderer],
        target_column: str,
    ) -> None:
        self.backbone = backbone
        self.words = words
        self.labels = words.labels
        self._head = head
        self._renderers = tuple(renderers)
        self._target_column = target_column
        used = sorted(set(chain.from_iterable(words.all)))
        self._used = torch.tensor(used, device=backbone.device)
        self._columns = {token: at for at, token in enumerate(used)}

    @property
    def columns(self) -> tuple[str, ...]:
        """The template's fields."""
        return self._renderers[0].template.fields

    @property
    def target_column(self) -> str:
        """Where the label stands."""
        return self._target_column

    def example(self, row: Row, *, target: bool = True) -> Example:
        """Render a row in each of its variants."""
        label = self.target(row) if target else None
        variants = self._variants(row)
        return Example(variants, self._points(variants), label)

    def _variants(self, row: Row) -> tuple[Tokenised, ...]:
        return tuple(renderer.render(row) for renderer in self._renderers)

    def _points(self, variants: Sequence[Tokenised]) -> tuple[tuple[int, ...], ...]:
        raise NotImplementedError

    def _where(self, word: tuple[int, ...], at: int) -> int:
        """Which of a row's points predicts a word's token at this place."""
        raise NotImplementedError

    def read(self, states: Float[Tensor, "B K H"]) -> Float[Tensor, "B C"]:
        """The labels' scores, from the states at a row's points."""
        if self.words.single:
            logits = self._head.at(states, self._used)
            return label_scores(logits, self.words, where=self._where, columns=self._columns)
        return label_scores(self._head(states), self.words, where=self._where)

    def states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B K H"]:
        """Run every variant of every row; look only at their points."""
        variants = list(chain.from_iterable(e.variants for e in examples))
        points = list(chain.from_iterable(e.points for e in examples))
        each = len(variants) // len(examples)
        of_variant = None if rows is None else rows.repeat_interleave(each)
        found = self.states_at(variants, points=points, prompts=prompts, which=of_variant)
        return _by_row(found, len(examples))


class _ByContinuation(_ByWords):
    """A word is scored token by token, each given those before it, in as few runs as it takes."""

    @cached_property
    def _contexts(self) -> tuple[tuple[int, ...], ...]:
        return self.words.contexts()

    @cached_property
    def _stems(self) -> dict[tuple[int, ...], int]:
        return stem_points(self._contexts)

    def _where(self, word: tuple[int, ...], at: int) -> int:
        return self._stems[word[:at]]


class CausalWords(_ByContinuation):
    """A causal backbone: the word goes on where the row ends."""

    @property
    def renderer(self) -> Renderer:
        """What makes ids of rows, before any of a word's."""
        return self._renderers[0]

    def _variants(self, row: Row) -> tuple[Tokenised, ...]:
        base = self._renderers[0].render(row)
        return tuple(
            Tokenised(
                ids=(*base.ids, *context),
                types=(*base.types, *[0] * len(context)),
                masks=base.masks,
                cut=base.cut,
            )
            for context in self._contexts
        )

    def _points(self, variants: Sequence[Tokenised]) -> tuple[tuple[int, ...], ...]:
        found = []
        for which, (variant, context) in enumerate(zip(variants, self._contexts, strict=True)):
            last = len(variant.ids) - len(context) - 1
            found.append(tuple(last + at for at in new_points(self._contexts, which)))
        return tuple(found)


class MaskedWords(_ByWords):
    """A masked backbone: a word of k tokens stands at k masks, scored in one pass.

    There is one renderer for each length of word, the shortest first.
    """

    def _points(self, variants: Sequence[Tokenised]) -> tuple[tuple[int, ...], ...]:
        return tuple(variant.masks for variant in variants)

    def _where(self, word: tuple[int, ...], at: int) -> int:
        return sum(k for k in self.words.lengths if k < len(word)) + at


class AnswerWords(_ByContinuation):
    """An encoder-decoder: the word is the decoder's whole answer, its end included."""

    def _points(self, variants: Sequence[Tokenised]) -> tuple[tuple[int, ...], ...]:
        """Of the decoder's rows, so the same for every row."""
        return tuple(() for _ in variants)

    def _where(self, word: tuple[int, ...], at: int) -> int:
        return self._stems[word[:at]]

    def states(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt | None],
        *,
        rows: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B K H"]:
        """Encode every row once; decode it in every continuation."""
        variants = [e.variants[0] for e in examples]
        start = self.backbone.decoder_start
        decoder = [[start, *context] for _ in examples for context in self._contexts]
        states = self.decoded(variants, decoder=decoder, prompts=prompts, which=rows)
        points = [new_points(self._contexts, which) for which in range(len(self._contexts))]
        return _by_row(picked(states, points * len(examples)), len(examples))


def _by_row(states: Float[Tensor, "S H"], rows: int) -> Float[Tensor, "B K H"]:
    return states.reshape(rows, -1, states.shape[-1])


def new_points(contexts: Sequence[tuple[int, ...]], which: int) -> list[int]:
    """The places in a continuation that no earlier one has in common with it."""
    context, earlier = contexts[which], contexts[:which]
    return [
        at
        for at in range(len(context) + 1)
        if not any(other[:at] == context[:at] and len(other) >= at for other in earlier)
    ]


def stem_points(contexts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """For what has been written so far, the point that predicts what comes next."""
    stems = [
        context[:at] for which, context in enumerate(contexts) for at in new_points(contexts, which)
    ]
    return {stem: point for point, stem in enumerate(stems)}
