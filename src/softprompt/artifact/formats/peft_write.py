"""Write a folder that PEFT loads and answers alike from, on unpadded rows."""

import json
from collections.abc import Mapping
from typing import Any, assert_never

from torch import Tensor

from softprompt.artifact.formats.foreign import Outgoing
from softprompt.artifact.formats.heads import HeadForm, head_form
from softprompt.artifact.formats.layout import packed
from softprompt.artifact.formats.peft_read import CONFIG, INPUTS, PREFIXES, TENSORS
from softprompt.artifact.tensors import to_bytes
from softprompt.artifact.value import Artifact
from softprompt.backbone import Backbone
from softprompt.errors import ArtifactError
from softprompt.prompt import InputPrompt, KVPrefix

_COMMON: dict[str, Any] = {
    "auto_mapping": None,
    "inference_mode": True,
    "modules_to_save": None,
    "num_attention_heads": None,
    "num_layers": None,
    "token_dim": None,
}
# What PEFT would open or run if it trained on from the folder, and what is written anew.
_NOT_PASSED_ON = {
    "auto_mapping",
    "inference_mode",
    "modules_to_save",
    "prompt_tuning_init",
    "prompt_tuning_init_state_dict_path",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}


def write(given: Outgoing) -> dict[str, bytes]:
    """The files of an adapter.

    Raises:
        ArtifactError: PEFT cannot express it; the message says what, and what to do.
    """
    artifact, backbone = given.artifact, given.backbone
    config = _config(artifact, backbone)
    own, held = _prompt(given)
    head: dict[str, Tensor] = {}
    if artifact.head:
        form = _form(artifact, backbone)
        head = {f"base_model.{form.theirs(key)}": t for key, t in artifact.head.items()}
        config["modules_to_save"] = ["classifier", "score", *form.outer]
    described = json.dumps(config | own, indent=2, sort_keys=True, ensure_ascii=False)
    return {
        CONFIG: f"{described}\n".encode(),
        TENSORS: to_bytes(held | head, {"format": "pt"}),
        "README.md": _readme(given).encode(),
    }


def _config(artifact: Artifact, backbone: Backbone) -> dict[str, Any]:
    """As PEFT wrote it, if it did; else what an adapter of this kind says."""
    kind = backbone.geometry.kind
    both = kind == "encoder-decoder" and isinstance(artifact.prompt, KVPrefix)
    return (
        _COMMON
        | _imported(artifact)
        | {
            "base_model_name_or_path": artifact.manifest.backbone["name"],
            "revision": artifact.manifest.backbone["revision"],
            "num_virtual_tokens": artifact.prompt.length,
            # Of a prompt among the inputs, the decoder's half is never read.
            "num_transformer_submodules": 2 if both else 1,
            "task_type": _task_type(artifact, kind),
        }
    )


def _imported(artifact: Artifact) -> dict[str, Any]:
    note = artifact.manifest.recipe.get("imported")
    config = note.get("config") if isinstance(note, Mapping) else None
    own = INPUTS if isinstance(artifact.prompt, InputPrompt) else PREFIXES
    if not isinstance(config, Mapping) or config.get("peft_type") not in own:
        return {}
    return {key: value for key, value in config.items() if key not in _NOT_PASSED_ON}


def _task_type(artifact: Artifact, kind: str) -> str:
    if artifact.head:
        return "SEQ_CLS"
    match kind:
        case "causal":
            return "CAUSAL_LM"
        case "encoder-decoder":
            return "SEQ_2_SEQ_LM"
        case _:  # PEFT has no task type for masked language models
            return "FEATURE_EXTRACTION"


def _prompt(given: Outgoing) -> tuple[dict[str, Any], dict[str, Tensor]]:
    known = "peft_type" in _imported(given.artifact)
    match given.artifact.prompt:
        case InputPrompt() as prompt:
            _check_front(given, prompt)
            # PEFT asks for all three and uses the first; it does not find them for every family.
            geometry = given.backbone.geometry
            own: dict[str, Any] = {
                "token_dim": prompt.vectors.shape[1],
                "num_layers": geometry.blocks or None,
                "num_attention_heads": geometry.heads or None,
            }
            kind = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
            return own | ({} if known else kind), {"prompt_embeddings": prompt.vectors}
        case KVPrefix() as prefix:
            _check_prefix(prefix, given.backbone)
            sites, heads, _, size = prefix.keys.shape
            own = {"num_layers": sites, "num_attention_heads": heads, "token_dim": heads * size}
            plain = {"peft_type": "PREFIX_TUNING", "prefix_projection": False}
            return own | ({} if known else plain), {
                "prompt_embeddings": packed(prefix, given.backbone)
            }
        case unreachable:
            assert_never(unreachable)


def _check_front(given: Outgoing, prompt: InputPrompt) -> None:
    """PEFT's prompt stands before everything, the tokenizer's first token included."""
    manifest = given.artifact.manifest
    if prompt.layer:
        msg = (
            f"the soft tokens enter at layer {prompt.layer}, but PEFT's enter at the input. Train "
            'with method.layers = "all".'
        )
        raise ArtifactError(msg)
    if given.front != prompt.length:
        msg = (
            f"the template {manifest.template!r} has soft tokens elsewhere than before everything, "
            "[CLS] or <s> included, which is the only place that PEFT knows. Train with a template "
            f"such as '{{soft:{prompt.length}}}{{bos}}{given.text}'."
        )
        raise ArtifactError(msg)
    encoder = given.backbone.geometry.kind == "encoder"
    if given.artifact.head and encoder and manifest.task.get("pool") != "first":
        msg = (
            "the head reads [CLS], but with soft tokens before it PEFT's reads the first of these. "
            'Train with task.pool = "first" for use in PEFT.'
        )
        raise ArtifactError(msg)


def _check_prefix(prefix: KVPrefix, backbone: Backbone) -> None:
    if not prefix.shifted:
        msg = (
            "the prefix leaves the row its positions, but PEFT moves them up by its length. Train "
            "with method.shifted = true for use in PEFT."
        )
        raise ArtifactError(msg)
    own = backbone.geometry.own_sites
    if prefix.layers != own:
        msg = (
            f"the prefix speaks to the attention layers {[*prefix.layers]}, but PEFT's speaks to "
            f"{[*own]}, no fewer and no others. Train it on these with method.layers."
        )
        raise ArtifactError(msg)


def _form(artifact: Artifact, backbone: Backbone) -> HeadForm:
    geometry, kind = backbone.geometry, artifact.manifest.task.get("head")
    form = head_form(geometry.family, causal=geometry.kind == "causal")
    if form.kind != kind:
        msg = (
            f"the artifact's head is {kind!r}, but {geometry.family}'s classifier in transformers "
            f"has {form.kind!r}, and PEFT trains no other. Train with task.head = {form.kind!r}."
        )
        raise ArtifactError(msg)
    return form


def _readme(given: Outgoing) -> str:
    return (
        "A soft prompt, exported by softprompt for PEFT.\n\n"
        f"Backbone: {given.artifact.manifest.backbone['name']}. Give each row as this text, with "
        f"the tokenizer's own special tokens:\n\n```\n{given.text}\n```\n\n"
        "PEFT answers as softprompt does on rows without padding. With padding its answers differ: "
        "it counts positions from the first pad token, and pools a pad token.\n"
    )
