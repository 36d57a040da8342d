"""Export a prompt for requests to a stock vLLM server.

vLLM takes vectors in place of a text (``prompt_embeds``). The folder has the prompt's vectors and
the backbone's embedding table, so a client makes requests without loading the backbone.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt._io import to_bytes
from softprompt.artifact.manifest import Manifest
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError
from softprompt.injection import Decoding
from softprompt.interop.base import ExportRequest, Readout
from softprompt.interop.files import LARGEST
from softprompt.interop.vllm_spec import (
    MOST_WORDS,
    SPEC,
    TABLE,
    TOKENIZER,
    VECTORS,
    VLLM_SCHEMA,
    VLLMDecoding,
    VLLMSpec,
    dump_vllm_spec,
)
from softprompt.prompt import InputPrompt, KVPrefix


def write_vllm(request: ExportRequest) -> dict[str, bytes]:
    """Make the files of a folder: prompt, embedding table, tokenizer and ``vllm.json``.

    Raises:
        ArtifactError: a stock vLLM could not make the same predictions.
    """
    plan = make_vllm_spec(request)
    vectors, table = make_vllm_tensors(request)
    size = table.numel() * table.element_size()
    if size > LARGEST:
        msg = (
            f"the backbone's table has {size:,} bytes in {plan.dtype}, but files of at most "
            f"{LARGEST:,} are read. Load the backbone in bfloat16."
        )
        raise ArtifactError(msg)
    files = {
        VECTORS: to_bytes({"vectors": vectors}),
        TABLE: to_bytes({"table": table}),
        **_save_tokenizer(request.backbone),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {SPEC: dump_vllm_spec(plan, digests), **files}


def make_vllm_spec(request: ExportRequest) -> VLLMSpec:
    """How requests are made and responses are read.

    Raises:
        ArtifactError: a stock vLLM could not make the same predictions.
    """
    manifest, geometry = request.artifact.manifest, request.backbone.geometry
    if manifest.task.get("messages_column") is not None:
        msg = (
            "rows are conversations (task.messages_column), which a client of vLLM's completions "
            "does not render. Serve the prompt by softprompt serve, without --upstream."
        )
        raise ArtifactError(msg)
    prompt = _get_input_prompt(request)
    _check_backbone(request.backbone)
    readout = _get_readout(request)
    words = {
        label: [tokens[0] for tokens in words] for label, words in readout.label_tokens.items()
    }
    return VLLMSpec(
        schema=VLLM_SCHEMA,
        softprompt=version("softprompt"),
        backbone=manifest.backbone,
        template=manifest.template,
        room=readout.max_length,
        length=prompt.length,
        vocabulary=geometry.vocab_size,
        hidden_size=geometry.embedding_size,
        dtype=str(request.backbone.dtype).removeprefix("torch."),
        task=_describe_task(manifest),
        decoding=_make_decoding(readout.decoding, ends=request.backbone.eos_token_ids),
        words=words,
    )


def _describe_task(manifest: Manifest) -> dict[str, object]:
    """The settings of the task; choices are listed, since a client does not have the data."""
    task = dict(manifest.task)
    return task | {"choices": [*manifest.labels]} if task.get("choices") else task


def make_vllm_tensors(request: ExportRequest) -> tuple[Float[Tensor, "P H"], Float[Tensor, "V H"]]:
    """The prompt's vectors and the embedding table, as the model's first layer gets them."""
    backbone, vectors = request.backbone, _get_input_prompt(request).vectors
    ids = torch.arange(backbone.geometry.vocab_size)
    # Each row was computed in this precision, so converting back from fp32 is exact.
    table = backbone.embed(ids).to("cpu", backbone.dtype)
    return vectors.detach().to("cpu", backbone.dtype).contiguous(), table


def _get_input_prompt(request: ExportRequest) -> InputPrompt:
    """The prompt, if all of the artifact is vectors at the input."""
    if request.artifact.head:
        msg = (
            "the artifact has a trained head, which a stock vLLM has no place for. Give the task "
            "a verbalizer, whose words the language-model head scores."
        )
        raise ArtifactError(msg)
    match request.artifact.prompt:
        case KVPrefix():
            msg = (
                "the artifact has keys and values, but vLLM takes vectors at the input alone. "
                "Train vectors: prompt-tuning or p-tuning."
            )
            raise ArtifactError(msg)
        case InputPrompt(start_layer=layer) if layer:
            msg = (
                f"the soft tokens enter at layer {layer}, but vLLM takes vectors at the input "
                'alone. Train with method.layers = "all".'
            )
            raise ArtifactError(msg)
        case InputPrompt() as prompt:
            return prompt


def _check_backbone(backbone: Backbone) -> None:
    geometry = backbone.geometry
    if geometry.architecture != "causal":
        msg = (
            f"{geometry.model_type} is an {geometry.architecture}, but vLLM takes vectors for "
            "causal backbones alone. Train on a causal one."
        )
        raise ArtifactError(msg)
    width = geometry.layer_width or geometry.hidden_size
    if geometry.embedding_size != width:
        msg = (
            f"the backbone's embeddings have the width {geometry.embedding_size} and its layers "
            f"{width}, but vLLM takes only vectors as wide as its layers. Train on a backbone "
            "where they are the same."
        )
        raise ArtifactError(msg)


def _get_readout(request: ExportRequest) -> Readout:
    """The readout, if one request to vLLM can give it."""
    readout = request.readout
    if readout is None:
        kind = request.artifact.manifest.task.get("kind")
        msg = (
            f"the task {kind!r} does not use the language-model head, but vLLM has no other. Use "
            "label words or text generation."
        )
        if kind == "choose":
            msg = (
                "the task 'choose' scores whole options, but one request to vLLM scores one token. "
                "Use label words or text generation."
            )
        raise ArtifactError(msg)
    for label, words in readout.label_tokens.items():
        longest = max(map(len, words), default=0)
        if longest > 1:
            msg = (
                f"label {label!r} has a word of {longest} tokens, but one request scores words of "
                "one token. Choose words of one token each, of which none is a prefix of another."
            )
            raise ArtifactError(msg)
    count = sum(map(len, readout.label_tokens.values()))
    if count > MOST_WORDS:
        msg = (
            f"there are {count} label words, but vLLM scores at most {MOST_WORDS} at once. Use "
            "fewer words."
        )
        raise ArtifactError(msg)
    return readout


def _make_decoding(decoding: Decoding | None, *, ends: tuple[int, ...]) -> VLLMDecoding:
    if decoding is None:  # label words are scored at the next token
        return VLLMDecoding(max_tokens=1, stop_token_ids=[], temperature=0.0, top_k=0, top_p=1.0)
    if decoding.num_beams > 1:
        msg = (
            f"the task uses beam search with {decoding.num_beams} beams, which differs between "
            "vLLM and transformers. Set task.num_beams = 1."
        )
        raise ArtifactError(msg)
    if decoding.allowed_answers is not None:
        msg = (
            f"generation is constrained to {len(decoding.allowed_answers)} choices by their "
            "tokens, but vLLM constrains text, which may have other tokens. Set "
            "task.constrained_decoding = false, or classify with a verbalizer."
        )
        raise ArtifactError(msg)
    return VLLMDecoding(
        max_tokens=decoding.max_new_tokens,
        stop_token_ids=[*ends],
        temperature=float(decoding.temperature) if decoding.do_sample else 0.0,
        top_k=decoding.top_k if decoding.do_sample else 0,
        top_p=float(decoding.top_p) if decoding.do_sample else 1.0,
    )


def _save_tokenizer(backbone: Backbone) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        backbone.tokenizer.save_pretrained(folder)
        # Subfolders contain chat templates, which rows do not need.
        saved = sorted(path for path in Path(folder).iterdir() if path.is_file())
        return {f"{TOKENIZER}/{path.name}": path.read_bytes() for path in saved}
