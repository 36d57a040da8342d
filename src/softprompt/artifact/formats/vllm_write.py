"""Write what a client needs to have a stock vLLM server answer by a prompt, backbone not needed.

vLLM takes vectors in place of a text (``prompt_embeds``). The folder has the prompt's vectors and
the backbone's table, so a request is one gather.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.artifact.formats.foreign import Asked, Outgoing
from softprompt.artifact.formats.reading import LARGEST
from softprompt.artifact.formats.vllm_plan import (
    MOST_WORDS,
    PLAN,
    SCHEMA,
    TABLE,
    TOKENIZER,
    VECTORS,
    VLLMDecoding,
    VLLMPlan,
    dump,
)
from softprompt.artifact.tensors import to_bytes
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError
from softprompt.injection import Decoding
from softprompt.prompt import InputPrompt, KVPrefix


def write(given: Outgoing) -> dict[str, bytes]:
    """The files of a folder: prompt, table, tokenizer and plan.

    Raises:
        ArtifactError: a stock vLLM could not answer alike; the message says what to do.
    """
    plan = planned(given)
    vectors, table = tensors(given)
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
        **_tokenizer(given.backbone),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {PLAN: dump(plan, digests), **files}


def planned(given: Outgoing) -> VLLMPlan:
    """What requests are made by.

    Raises:
        ArtifactError: a stock vLLM could not answer alike; the message says what to do.
    """
    manifest, geometry = given.artifact.manifest, given.backbone.geometry
    prompt = _prompt(given)
    _check_backbone(given.backbone)
    asked = _asked(given)
    words = {label: [word[0] for word in of_label] for label, of_label in asked.words.items()}
    return VLLMPlan(
        schema=SCHEMA,
        softprompt=version("softprompt"),
        backbone=manifest.backbone,
        template=manifest.template,
        room=asked.room,
        length=prompt.length,
        vocabulary=geometry.vocabulary,
        hidden_size=geometry.embedding_size,
        dtype=str(given.backbone.dtype).removeprefix("torch."),
        task=dict(manifest.task),
        decoding=_decoding(asked.decoding, ends=given.backbone.ends),
        words=words,
    )


def tensors(given: Outgoing) -> tuple[Float[Tensor, "P H"], Float[Tensor, "V H"]]:
    """The prompt's vectors and the table of real tokens, as the model's first layer gets them."""
    vectors, ids = _prompt(given).vectors, torch.arange(given.backbone.geometry.vocabulary)
    # Each row was computed in this precision, so to go back to it from fp32 loses nothing.
    table = given.backbone.embed(ids).to("cpu", given.backbone.dtype)
    return vectors.detach().to("cpu", given.backbone.dtype).contiguous(), table


def _prompt(given: Outgoing) -> InputPrompt:
    if given.artifact.head:
        msg = (
            "the artifact has a trained head, which a stock vLLM has no place for. Give the task "
            "a verbalizer, whose words the language-model head scores."
        )
        raise ArtifactError(msg)
    match given.artifact.prompt:
        case KVPrefix():
            msg = (
                "the artifact has keys and values, but vLLM takes vectors at the input alone. "
                "Train vectors: prompt-tuning or p-tuning."
            )
            raise ArtifactError(msg)
        case InputPrompt(layer=layer) if layer:
            msg = (
                f"the soft tokens enter at layer {layer}, but vLLM takes vectors at the input "
                'alone. Train with layers = "all".'
            )
            raise ArtifactError(msg)
        case InputPrompt() as prompt:
            return prompt


def _check_backbone(backbone: Backbone) -> None:
    geometry = backbone.geometry
    if geometry.kind != "causal":
        msg = (
            f"{geometry.family} is an {geometry.kind}, but vLLM takes vectors for causal "
            "backbones alone. Train on a causal one."
        )
        raise ArtifactError(msg)
    width = geometry.block_size or geometry.hidden_size
    if geometry.embedding_size != width:
        msg = (
            f"the backbone's embeddings have the width {geometry.embedding_size} and its layers "
            f"{width}, but vLLM takes only vectors as wide as its layers. Train on a backbone "
            "where they are the same."
        )
        raise ArtifactError(msg)


def _asked(given: Outgoing) -> Asked:
    asked = given.asked
    if asked is None:
        kind = given.artifact.manifest.task.get("kind")
        msg = (
            f"the task {kind!r} does not ask the language-model head, but vLLM has no other. Use "
            "label words or let text be written."
        )
        raise ArtifactError(msg)
    words = [word for of_label in asked.words.values() for word in of_label]
    long = [label for label, ws in asked.words.items() if any(len(word) > 1 for word in ws)]
    if long:
        msg = (
            f"label {long[0]!r} has a word of {max(map(len, asked.words[long[0]]))} tokens, but "
            "one request scores words of one token. Choose words of one token each, of which "
            "none begins another."
        )
        raise ArtifactError(msg)
    if len(words) > MOST_WORDS:
        msg = (
            f"there are {len(words)} label words, but vLLM scores at most {MOST_WORDS} at once. "
            "Use fewer words."
        )
        raise ArtifactError(msg)
    return asked


def _decoding(decoding: Decoding | None, *, ends: tuple[int, ...]) -> VLLMDecoding:
    if decoding is None:  # the label words stand at the next token
        return VLLMDecoding(max_tokens=1, stop_token_ids=[], temperature=0.0, top_k=0, top_p=1.0)
    if decoding.beams > 1:
        msg = (
            f"the task looks for the likeliest text with {decoding.beams} beams, which vLLM does "
            "not do as transformers does. Set task.beams = 1."
        )
        raise ArtifactError(msg)
    if decoding.answers is not None:
        msg = (
            f"the task may write only its {len(decoding.answers)} choices, token by token, but "
            "vLLM holds text to choices in other tokens. Set task.constrain = false, or classify "
            "with a verbalizer."
        )
        raise ArtifactError(msg)
    return VLLMDecoding(
        max_tokens=decoding.max_new_tokens,
        stop_token_ids=[*ends],
        temperature=float(decoding.temperature) if decoding.sample else 0.0,
        top_k=decoding.top_k if decoding.sample else 0,
        top_p=float(decoding.top_p) if decoding.sample else 1.0,
    )


def _tokenizer(backbone: Backbone) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        backbone.tokenizer.save_pretrained(folder)
        # What lies deeper are templates of chats, which rows do not need.
        saved = sorted(path for path in Path(folder).iterdir() if path.is_file())
        return {f"{TOKENIZER}/{path.name}": path.read_bytes() for path in saved}
