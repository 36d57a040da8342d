"""Have a stock vLLM server answer by a trained prompt: requests out, answers in.

vLLM takes the vectors of a whole row in place of its text. A row is rendered as a `Model` renders
it, and its vectors are gathered from the backbone's table and the prompt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softprompt.artifact.formats import vllm_read
from softprompt.artifact.formats.vllm_plan import VLLMPlan
from softprompt.artifact.formats.vllm_wire import wired
from softprompt.artifact.formats.vllm_write import planned, tensors
from softprompt.data.template import parse
from softprompt.data.tokenise import Renderer, renderer
from softprompt.errors import ArtifactError, DataError
from softprompt.evaluate.exchange import outgoing
from softprompt.evaluate.model import Model, as_row
from softprompt.tasks.base import Answer
from softprompt.tasks.classifier import by_probability
from softprompt.tasks.generate import text_of
from softprompt.tasks.words import Words, label_scores

Row = str | Mapping[str, object]


@dataclass(frozen=True, eq=False)
class VLLMPrompt:
    """A trained prompt for a vLLM server that serves its backbone with ``--enable-prompt-embeds``.

    Args:
        plan: what requests are made by.
        vectors: of the soft tokens.
        table: of the real tokens, as the model itself scales them.
        renderer: makes ids of rows.
    """

    plan: VLLMPlan
    vectors: Float[Tensor, "P H"]
    table: Float[Tensor, "V H"]
    renderer: Renderer

    @classmethod
    def open(cls, folder: str | Path) -> "VLLMPrompt":
        """Read what ``softprompt export vllm`` wrote; the backbone is not needed.

        Raises:
            ArtifactError: a file is missing, damaged, changed or does not fit the others.
        """
        held = vllm_read.read(Path(folder))
        made = _renderer(held.plan, held.tokenizer)
        if made.template.soft_length != held.plan.length:
            msg = (
                f"{folder}: the template {held.plan.template!r} has {made.template.soft_length} "
                f"soft tokens, but the prompt has {held.plan.length}. Export it again."
            )
            raise ArtifactError(msg)
        return cls(held.plan, held.vectors, held.table, made)

    @classmethod
    def of(cls, model: Model) -> "VLLMPrompt":
        """The same of a loaded model, without files.

        Raises:
            ArtifactError: a stock vLLM could not answer alike; the message says what to do.
        """
        given = outgoing(model)
        plan = planned(given)
        return cls(plan, *tensors(given), _renderer(plan, model.backbone.tokenizer))

    @property
    def labels(self) -> tuple[str, ...]:
        """What can be answered; empty for free text."""
        return tuple(self.plan.words)

    def embeds(self, row: Row) -> Float[Tensor, "T H"]:
        """The vectors that the model's first layer gets for a row.

        Args:
            row: the template's fields, or a text if there is a single one.

        Raises:
            DataError: a field is missing, or a text is given, but there are several fields.
        """
        rendered = self.renderer.render(as_row(row, self.renderer.template.fields))
        ids = torch.tensor(rendered.ids)
        soft = ids >= self.plan.vocabulary
        found = self.table[ids.masked_fill(soft, 0)]
        found[soft] = self.vectors[ids[soft] - self.plan.vocabulary]
        return found

    def prompt_embeds(self, row: Row) -> str:
        """The same as text, as a request to vLLM has it."""
        return wired(self.embeds(row))

    def request(self, row: Row, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
        """The body of a request to ``POST /v1/completions``.

        Args:
            row: the template's fields, or a text if there is a single one.
            more: further keys, or others in place of these; ``model`` where the server calls the
                backbone otherwise.

        Raises:
            DataError: a field is missing, or a text is given, but there are several fields.
        """
        if "prompt" in more:
            msg = (
                "a request has the row's vectors in place of a prompt; vLLM would answer both. "
                "Leave prompt out."
            )
            raise DataError(msg)
        asked = {
            "model": self.plan.backbone["name"],
            "prompt_embeds": self.prompt_embeds(row),
            **self.plan.decoding,
            # Ours alone: servers take what is not said from the checkpoint's own habits.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,  # what ends a text is in stop_token_ids
            "return_token_ids": True,
        }
        return asked | self._words_asked() | more

    def answer(self, response: Mapping[str, Any]) -> Answer:
        """What the server said of a row.

        Args:
            response: the JSON that the request was answered with.

        Raises:
            DataError: it is an error, or lacks what the request asked for.
        """
        choice = _only_choice(response)
        if self.plan.words:
            return self._label(choice)
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise DataError(_lacking("token_ids", choice))
        ends = self.plan.decoding["stop_token_ids"]
        written = list(takewhile(lambda token: token not in ends, ids))
        return Answer(text_of(self.renderer.tokenizer, written), {})

    def _words_asked(self) -> dict[str, Any]:
        tokens = [*self._tokens()]
        if not tokens:
            return {}
        return {
            "allowed_token_ids": tokens,
            "logprobs": 1,
            "logprob_token_ids": tokens,
            "return_tokens_as_token_ids": True,
        }

    def _tokens(self) -> Iterator[int]:
        return (token for of_label in self.plan.words.values() for token in of_label)

    def _label(self, choice: Mapping[str, Any]) -> Answer:
        top = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
        names = {token: f"token_id:{token}" for token in self._tokens()}
        if not isinstance(top, Mapping) or not {*names.values()} <= top.keys():
            raise DataError(_lacking(f"log-probabilities of {', '.join(names.values())}", choice))
        words = Words(
            self.labels, tuple(tuple((t,) for t in ts) for ts in self.plan.words.values())
        )
        logits = torch.tensor([[[float(top[name]) for name in names.values()]]])
        columns = {token: at for at, token in enumerate(names)}
        scores = label_scores(logits, words, where=lambda _word, _at: 0, columns=columns)
        return by_probability(self.labels, scores)[0]


def _renderer(plan: VLLMPlan, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    return renderer(
        parse(plan.template),
        tokenizer,
        vocabulary=plan.vocabulary,
        max_length=plan.room,
        closed=False,
    )


def _only_choice(response: Mapping[str, Any]) -> Mapping[str, Any]:
    if (error := response.get("error")) is not None:
        told = error.get("message") if isinstance(error, Mapping) else error
        msg = (
            f"the server refused the request: {told} It must serve the prompt's backbone, with "
            "--enable-prompt-embeds."
        )
        raise DataError(msg)
    choices = response.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        count = len(choices) if isinstance(choices, list) else 0
        msg = (
            f"the response has {count} choices, but a request of one row has 1. Give the whole "
            "JSON of POST /v1/completions, with n = 1."
        )
        raise DataError(msg)
    return choices[0]


def _lacking(what: str, choice: Mapping[str, Any]) -> str:
    return (
        f"the response lacks {what}; its choice has: {', '.join(sorted(choice)) or 'nothing'}. "
        "Ask with VLLMPrompt.request, a server of vLLM 0.32 or later."
    )
