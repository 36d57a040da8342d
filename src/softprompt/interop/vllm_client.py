"""The client side of vLLM: requests with a trained prompt, and predictions from responses."""

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from softprompt._io import ErrorContext
from softprompt.artifact.manifest import STORED_DTYPES
from softprompt.data.inputs import Row, as_row
from softprompt.data.rendering import Renderer, make_renderer
from softprompt.data.template import parse_template
from softprompt.data.tokenizer import TextEncoder
from softprompt.errors import ArtifactError, DataError
from softprompt.inference.model import PromptModel
from softprompt.interop.convert import make_export_request
from softprompt.interop.files import check_finite, find_file, read_bytes, read_tensors
from softprompt.interop.vllm_export import make_vllm_spec, make_vllm_tensors
from softprompt.interop.vllm_spec import (
    SPEC,
    TABLE,
    TOKENIZER,
    VECTORS,
    VLLMSpec,
    parse_vllm_spec,
)
from softprompt.tasks.answers import Answers
from softprompt.tasks.objectives import Prediction, SingleLabel
from softprompt.tasks.verbalizer import LabelWords, score_labels


def encode_prompt_embeds(embeds: Float[Tensor, "T H"]) -> str:
    """Encode the field ``prompt_embeds`` of a request: base64 of what torch.save writes.

    Args:
        embeds: one vector for each token, soft tokens included.

    Returns:
        The field.
    """
    buffer = io.BytesIO()
    # A copy, since torch would write the whole storage of a slice.
    torch.save(embeds.detach().cpu().contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True, eq=False)
class VLLMExport:
    """The content of an export.

    Args:
        plan: how requests are made and responses are read.
        vectors: of the soft tokens.
        table: the embedding table.
        tokenizer: the backbone's.
    """

    plan: VLLMSpec
    vectors: Float[Tensor, "P H"]
    table: Float[Tensor, "V H"]
    tokenizer: PreTrainedTokenizerBase


def read_vllm(folder: Path) -> VLLMExport:
    """Read an export; no file outside the folder is opened, and no code in it runs.

    Args:
        folder: of the export.

    Raises:
        ArtifactError: a file is missing, damaged, changed or inconsistent with ``vllm.json``.
    """
    if not folder.is_dir():
        msg = f"there is no folder {folder}. Give the folder that `softprompt export vllm` wrote."
        raise ArtifactError(msg)
    source = ErrorContext(
        str(folder), "Export it again: softprompt export vllm ARTIFACT --output DIR"
    )
    path = find_file(folder, [SPEC], what="export for vLLM")
    plan, digests = parse_vllm_spec(read_bytes(path), source=source)
    _check_files(folder, digests, source=source)
    size = (plan.length, plan.hidden_size)
    vectors = _read_tensor(folder / VECTORS, "vectors", size=size, plan=plan, source=source)
    size = (plan.vocabulary, plan.hidden_size)
    table = _read_tensor(folder / TABLE, "table", size=size, plan=plan, source=source)
    return VLLMExport(plan, vectors, table, _load_tokenizer(folder / TOKENIZER, source))


def _check_files(folder: Path, digests: dict[str, str], *, source: ErrorContext) -> None:
    for name, digest in digests.items():
        path = find_file(folder, [name], what="export for vLLM")
        actual = hashlib.sha256(read_bytes(path)).hexdigest()
        if actual != digest:
            msg = f"{name} has the SHA-256 {actual}, but {SPEC} says {digest}: one was changed."
            raise source.make_error(msg)
    # A tokenizer may read any file in its folder.
    files = {f"{TOKENIZER}/{path.name}" for path in (folder / TOKENIZER).iterdir()}
    unknown = sorted(files - digests.keys())
    if unknown:
        msg = f"it also holds {', '.join(unknown[:5])}, which {SPEC} does not name."
        raise source.make_error(msg)


def _read_tensor(
    path: Path, name: str, *, size: tuple[int, int], plan: VLLMSpec, source: ErrorContext
) -> Tensor:
    tensors = read_tensors(path)
    if tensors.keys() != {name}:
        msg = f"{path.name} holds {', '.join(sorted(tensors)) or 'nothing'}, not {name!r} alone."
        raise source.make_error(msg)
    tensor = tensors[name]
    if tensor.shape != size or tensor.dtype != STORED_DTYPES[plan.dtype]:
        dtype = str(tensor.dtype).removeprefix("torch.")
        msg = (
            f"{name} in {path.name} is {[*tensor.shape]} in {dtype}, but {SPEC} says {[*size]} "
            f"in {plan.dtype}."
        )
        raise source.make_error(msg)
    check_finite(path, {name: tensor})
    return tensor


def _load_tokenizer(folder: Path, source: ErrorContext) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many classes for damaged files
        first, *_ = str(error).strip().split("\n") or [""]
        msg = f"its tokenizer cannot be loaded: {first}"
        raise source.make_error(msg) from error
    return tokenizer


@dataclass(frozen=True, eq=False)
class VLLMPrompt:
    """A trained prompt for a vLLM server that serves its backbone with ``--enable-prompt-embeds``.

    Args:
        plan: how requests are made and responses are read.
        vectors: of the soft tokens.
        table: the embedding table, scaled as in the model.
        renderer: tokenizes rows.

    Examples:
        With an HTTP client such as httpx, and a vLLM server:

            prompt = VLLMPrompt.from_export("exported")
            url = "http://localhost:8000/v1/completions"
            response = httpx.post(url, json=prompt.request("A delight."))
            prediction = prompt.parse_response(response.json())
    """

    plan: VLLMSpec
    vectors: Float[Tensor, "P H"]
    table: Float[Tensor, "V H"]
    renderer: Renderer

    @classmethod
    def from_export(cls, folder: str | Path) -> "VLLMPrompt":
        """Read an export of ``softprompt export vllm``; the backbone is not loaded.

        Args:
            folder: the export.

        Returns:
            The prompt, ready to make requests.

        Raises:
            ArtifactError: a file is missing, damaged, changed or does not fit the others.
        """
        export = read_vllm(Path(folder))
        renderer = _make_renderer(export.plan, export.tokenizer)
        if renderer.template.soft_length != export.plan.length:
            msg = (
                f"{folder}: the template {export.plan.template!r} has "
                f"{renderer.template.soft_length} soft tokens, but the prompt has "
                f"{export.plan.length}. Export it again."
            )
            raise ArtifactError(msg)
        return cls(export.plan, export.vectors, export.table, renderer)

    @classmethod
    def from_model(cls, model: PromptModel) -> "VLLMPrompt":
        """Make it of a loaded model, without files.

        Args:
            model: on a causal backbone.

        Returns:
            The prompt, ready to make requests.

        Raises:
            ArtifactError: a stock vLLM could not make the same predictions.
        """
        export = make_export_request(model)
        plan = make_vllm_spec(export)
        return cls(plan, *make_vllm_tensors(export), _make_renderer(plan, model.backbone.tokenizer))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that can be predicted; empty for text generation."""
        return tuple(self.plan.words)

    def prompt_embeddings(self, row: str | Row) -> Float[Tensor, "T H"]:
        """The vectors that the model's first layer gets for a row.

        Args:
            row: the template's fields, or a text if there is a single one.

        Returns:
            One vector for each token, soft tokens included.

        Raises:
            DataError: a field is missing, or the row is a text, but there are several fields.
        """
        rendered = self.renderer.render(as_row(row, self.renderer.template.fields))
        ids = torch.tensor(rendered.input_ids)
        return insert_vectors(
            ids, self.vectors, vocabulary=self.plan.vocabulary, embed=lambda ids: self.table[ids]
        )

    def encode_prompt(self, row: str | Row) -> str:
        """Encode the vectors of a row as requests to vLLM have them.

        Args:
            row: the template's fields, or a text if there is a single one.

        Returns:
            The field ``prompt_embeds``.
        """
        return encode_prompt_embeds(self.prompt_embeddings(row))

    def request(self, row: str | Row, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
        """The body of a request to ``POST /v1/completions``.

        Args:
            row: the template's fields, or a text if there is a single one.
            more: further keys, or other values of these; ``model`` if the server has another name
                for the backbone.

        Returns:
            The body, to be sent as JSON.

        Raises:
            DataError: a field is missing, the row is a text, but there are several fields, or
                ``prompt`` is among the further keys.
        """
        if "prompt" in more:
            msg = (
                "a request has the row's vectors in place of a prompt; vLLM would answer both. "
                "Leave prompt out."
            )
            raise DataError(msg)
        body = {
            "model": self.plan.backbone["name"],
            "prompt_embeds": self.encode_prompt(row),
            **self.plan.decoding,
            # Set, since the server would take its defaults from the checkpoint.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,  # the end tokens are in stop_token_ids
            "return_token_ids": True,
        }
        return body | make_label_request([*self._list_tokens()]) | more

    def parse_response(self, response: Mapping[str, Any]) -> Prediction:
        """The prediction for a row, from the server's response.

        Args:
            response: the JSON of the response.

        Returns:
            The prediction; with probabilities if the task has label words.

        Raises:
            DataError: it is an error, or lacks a requested value.
        """
        choice = _get_only_choice(response)
        if self.plan.words:
            return read_label(self.plan.words, choice)
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise DataError(explain_missing("token_ids", choice))
        ends = self.plan.decoding["stop_token_ids"]
        generated = list(takewhile(lambda token: token not in ends, ids))
        encoder = TextEncoder(self.renderer.safe_tokenizer, self.plan.vocabulary)
        answers = Answers(encoder, continue_rows=True, choices=self.plan.choices)
        return Prediction(answers.decode(generated), {}, tuple(generated))

    def _list_tokens(self) -> Iterator[int]:
        return (token for tokens in self.plan.words.values() for token in tokens)


def insert_vectors(
    ids: Int[Tensor, " T"],
    vectors: Float[Tensor, "P H"],
    *,
    vocabulary: int,
    embed: Callable[[Tensor], Tensor],
) -> Float[Tensor, "T H"]:
    """Put the vectors of soft tokens between those of words.

    Args:
        ids: of a rendered row; soft token k is ``V + k``.
        vectors: of the soft tokens, in the precision of the words' ones.
        vocabulary: V.
        embed: gives the vectors of words, from their ids.

    Returns:
        One vector for each token.
    """
    soft = ids >= vocabulary
    embeddings = embed(ids.masked_fill(soft, 0))
    embeddings[soft] = vectors[ids[soft] - vocabulary]
    return embeddings


def make_label_request(tokens: Sequence[int]) -> dict[str, Any]:
    """The keys of a request for the log-probabilities of label words.

    Args:
        tokens: of the words; without any there are no keys.
    """
    if not tokens:
        return {}
    return {
        "allowed_token_ids": list(tokens),
        "logprobs": 1,
        "logprob_token_ids": list(tokens),
        "return_tokens_as_token_ids": True,
    }


def read_label(words: Mapping[str, Sequence[int]], choice: Mapping[str, Any]) -> Prediction:
    """The label with its probabilities, from the choice of a response.

    Args:
        words: for each label the tokens of its words, of one token each.
        choice: of a response to a request with the keys of `make_label_request`.

    Raises:
        DataError: a log-probability is missing.
    """
    top = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
    names = {token: f"token_id:{token}" for tokens in words.values() for token in tokens}
    if not isinstance(top, Mapping) or not {*names.values()} <= top.keys():
        raise DataError(
            explain_missing(f"log-probabilities of {', '.join(names.values())}", choice)
        )
    scored = LabelWords(tuple(words), tuple(tuple((t,) for t in ts) for ts in words.values()))
    logits = torch.tensor([[[float(top[name]) for name in names.values()]]])
    columns = {token: column for column, token in enumerate(names)}
    readouts = dict.fromkeys(scored.all, (0,))
    scores = score_labels(logits, scored, readouts=readouts, columns=columns)
    return SingleLabel(scored.labels).to_predictions(scores)[0]


def _make_renderer(plan: VLLMSpec, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    return make_renderer(
        parse_template(plan.template),
        tokenizer,
        vocab_size=plan.vocabulary,
        max_length=plan.room,
        closed=False,
    )


def _get_only_choice(response: Mapping[str, Any]) -> Mapping[str, Any]:
    if (error := response.get("error")) is not None:
        message = error.get("message") if isinstance(error, Mapping) else error
        msg = (
            f"the server refused the request: {message} It must serve the prompt's backbone, with "
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


def explain_missing(what: str, choice: Mapping[str, Any]) -> str:
    """Why a response cannot be read: something is missing in it.

    Args:
        what: is missing.
        choice: of the response.
    """
    return (
        f"the response lacks {what}; its choice has: {', '.join(sorted(choice)) or 'nothing'}. "
        "Ask with VLLMPrompt.request, a server of vLLM 0.32 or later."
    )
