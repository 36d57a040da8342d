"""PEFT's adapters: read and write ``adapter_config.json`` and ``adapter_model.safetensors``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_never

from torch import Tensor

from softprompt._io import to_bytes
from softprompt.artifact.artifact import Artifact
from softprompt.artifact.checks import read_task_settings
from softprompt.backbone import Backbone
from softprompt.backbone.classifier_weights import read_classifier_weights
from softprompt.errors import ArtifactError, format_unknown
from softprompt.interop.base import BaseModelRef, ExportRequest, ForeignPrompt
from softprompt.interop.classifier_heads import HeadLayout, get_head_layout
from softprompt.interop.files import (
    check_finite,
    find_file,
    read_json,
    read_positive_int,
    read_tensors,
)
from softprompt.interop.kv_layout import pack_kv, unpack_kv
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from softprompt.tasks.config import Classify
from softprompt.tasks.pooling import Pooling, resolve_pooling

CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
INPUTS = {"PROMPT_TUNING", "P_TUNING", "CPT"}
PREFIXES = {"PREFIX_TUNING", "CARTRIDGE"}
MULTITASK = "MULTITASK_PROMPT_TUNING"
_TYPES = {*INPUTS, *PREFIXES, MULTITASK}
_TASKS = {"CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"}
_PROMPT, _COLS, _ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
_HEAD = "base_model."
_DEFAULT_CONFIG: dict[str, Any] = {
    "auto_mapping": None,
    "inference_mode": True,
    "modules_to_save": None,
    "num_attention_heads": None,
    "num_layers": None,
    "token_dim": None,
}
# Keys that would make PEFT open or run something, or that are written anew.
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


def read_peft_base_model(source: Path) -> BaseModelRef:
    """The backbone that an adapter names.

    Raises:
        ArtifactError: there is no adapter.
    """
    config = _read_config(source)
    names = [config.get(key) for key in ("base_model_name_or_path", "revision")]
    name, revision = (value if isinstance(value, str) and value else None for value in names)
    return BaseModelRef(name, revision)


def read_peft(source: Path, backbone: Backbone) -> dict[str, ForeignPrompt]:
    """The prompt of an adapter, or each task's of a multitask one (``task-0``, ``task-1`` …).

    Raises:
        ArtifactError: it is not complete, contradicts its configuration, is not a soft prompt, or
            does not fit the backbone.
        BackboneError: its head needs weights that the backbone's checkpoint does not have.
    """
    config = _read_config(source)
    path = find_file(source, [PEFT_TENSORS], what="PEFT adapter")
    tensors = read_tensors(path)
    check_finite(path, tensors)
    prompts = _read_prompts(config, tensors, backbone=backbone, path=path)
    first = next(iter(prompts.values()))
    others = {key: tensors[key] for key in tensors if key not in {_PROMPT, _COLS, _ROWS}}
    task, head = _read_task(config, backbone, path=path), {}
    if config.get("task_type") == "SEQ_CLS":
        layout = _get_backbone_head(backbone)
        head = _read_head(others, layout, backbone=backbone, path=path)
        pooling = _find_pooling(first, backbone)
        task = {"kind": "classify", "head": layout.kind, "pooling": pooling}
    elif config.get("task_type") == "TOKEN_CLS":
        head = _read_tag_head(others, backbone=backbone, path=path)
        task = {"kind": "tag", "head": "linear"}
    elif others:
        msg = (
            f"{path} also holds {', '.join(sorted(others)[:3])}, which a soft prompt of task type "
            f"{config.get('task_type')} does not have. Its configuration may belong to another "
            "file."
        )
        raise ArtifactError(msg)
    soft = f"{{soft:{first.length}}}{{bos}}" if isinstance(first, InputPrompt) else ""
    note = {"format": "peft", "config": config}
    return {
        name: ForeignPrompt(
            prompt,
            template=f"{soft}{{text}}",
            task=task,
            head=head,
            classes=len(head["output.weight"]) if head else 0,
            note=note | ({"task": name} if name else {}),
            tag_head=head if task == {"kind": "tag", "head": "linear"} else {},
        )
        for name, prompt in prompts.items()
    }


def _find_pooling(prompt: Prompt, backbone: Backbone) -> Pooling:
    """The readout of transformers' classifiers with a prompt: they know no soft tokens."""
    if backbone.geometry.architecture == "causal":
        return "last"
    return "first" if isinstance(prompt, InputPrompt) else "cls"


def _read_config(source: Path) -> dict[str, Any]:
    if source.is_file():
        msg = (
            f"{source} is a file, but a PEFT adapter is a folder. Give its folder {source.parent}."
        )
        raise ArtifactError(msg)
    path = find_file(source, [CONFIG], what="PEFT adapter")
    config = read_json(path)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        msg = (
            f"{path}: {format_unknown('peft_type', str(kind), options=_TYPES)} "
            "Only soft prompts can be imported."
        )
        raise ArtifactError(msg)
    task = config.get("task_type")
    if task == "QUESTION_ANS":
        msg = (
            f"{path}: task_type is {task!r}, whose start and end PEFT trains at the positions of "
            "the row without those of the prompt, so that its head means other tokens. Train the "
            "prompt again, with task kind 'extract'."
        )
        raise ArtifactError(msg)
    if task is not None and (not isinstance(task, str) or task not in _TASKS):
        msg = (
            f"{path}: task_type is {task!r}, which softprompt has no task for. It has "
            f"{', '.join(sorted(_TASKS))}."
        )
        raise ArtifactError(msg)
    return config


def _read_prompts(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, backbone: Backbone, path: Path
) -> dict[str, Prompt]:
    length = read_positive_int(config, "num_virtual_tokens", path=path.parent / CONFIG)
    kind = config["peft_type"]
    table = _read_table(tensors, config, length=length, path=path)
    if kind in PREFIXES:
        return {"": unpack_kv(table, backbone)}
    if table.shape[1] != backbone.geometry.embedding_size:
        msg = (
            f"{path}: each soft token has {table.shape[1]} numbers, but {backbone.name!r} embeds "
            f"tokens in {backbone.geometry.embedding_size}. The prompt belongs to another "
            "backbone: name it with --backbone (backbone=… in Python)."
        )
        raise ArtifactError(msg)
    if kind in INPUTS:
        # For an encoder-decoder there are twice the rows; PEFT never reads the second half.
        return {"": InputPrompt(table[:length].clone())}
    return _read_multitask_prompts(table, tensors, length=length, path=path)


def _read_multitask_prompts(
    table: Tensor, tensors: Mapping[str, Tensor], *, length: int, path: Path
) -> dict[str, Prompt]:
    """Each task's prompt: the shared table times the task's own matrix of low rank."""
    cols, rows = (_get_tensor(tensors, name, path=path) for name in (_COLS, _ROWS))
    tasks, rank = cols.shape[:1], cols.shape[2:]
    height, width = table.shape
    if (
        cols.shape != (*tasks, height, *rank)
        or rows.shape != (*tasks, *rank, width)
        or not rank
        or 0 in cols.shape
    ):
        msg = (
            f"{path}: {_COLS} {[*cols.shape]} and {_ROWS} {[*rows.shape]} must be [T,{height},r] "
            f"and [T,r,{width}]. They are not from the same adapter."
        )
        raise ArtifactError(msg)
    # One task at a time, as in PEFT, so that the results are equal bit for bit.
    products = [
        (table * (c @ r)[0])[:length] for c, r in zip(cols[:, None], rows[:, None], strict=True)
    ]
    return {f"task-{i}": InputPrompt(vectors.clone()) for i, vectors in enumerate(products)}


def _read_table(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, length: int, path: Path
) -> Tensor:
    """The trained table: one row for each virtual token, or two in an encoder-decoder."""
    table = _get_tensor(tensors, _PROMPT, path=path)
    kind, is_double = config["peft_type"], config.get("num_transformer_submodules") == 2  # noqa: PLR2004  # encoder and decoder
    height = length * 2 if is_double and kind not in PREFIXES else length
    if table.ndim != 2 or len(table) != height:  # noqa: PLR2004  # a table
        msg = (
            f"{path}: {_PROMPT} is {[*table.shape]}, but {kind} with {length} virtual tokens has "
            f"{height} rows. Configuration and tensors are not from the same adapter."
        )
        raise ArtifactError(msg)
    if kind != MULTITASK and not {_COLS, _ROWS}.isdisjoint(tensors):
        msg = (
            f"{path} holds {_COLS}, which only {MULTITASK} has, but {CONFIG} says {kind}. "
            "Configuration and tensors are not from the same adapter."
        )
        raise ArtifactError(msg)
    return table


def _get_tensor(tensors: Mapping[str, Tensor], name: str, *, path: Path) -> Tensor:
    if name not in tensors:
        msg = (
            f"{path} has no tensor {name!r}; it has {', '.join(sorted(tensors)) or 'none'}. "
            "Fetch it again, or correct its configuration."
        )
        raise ArtifactError(msg)
    return tensors[name]


def _get_backbone_head(backbone: Backbone) -> HeadLayout:
    """The head of transformers' sequence classifier of a backbone, the one that PEFT trains."""
    geometry = backbone.geometry
    return get_head_layout(geometry.model_type, causal=geometry.architecture == "causal")


def _read_head(
    tensors: Mapping[str, Tensor], layout: HeadLayout, *, backbone: Backbone, path: Path
) -> dict[str, Tensor]:
    """The head; modules that the adapter leaves out are those of the backbone's checkpoint."""
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = layout.from_foreign(key.removeprefix(_HEAD)) if key.startswith(_HEAD) else None
        if name is None:
            msg = (
                f"{path} also holds {key}, which is not part of {backbone.geometry.model_type}'s "
                f"classifier ({', '.join(layout.names.values())}). Only prompts and heads can be "
                "imported, not other trained weights."
            )
            raise ArtifactError(msg)
        head[name] = tensor
    if "output.weight" not in head or head["output.weight"].ndim != 2:  # noqa: PLR2004  # [C, H]
        msg = (
            f"{path} has no {_HEAD}{layout.to_foreign('output.weight')} [C,H], the trained head of "
            f"SEQ_CLS. Fetch it again, or correct task_type in {CONFIG}."
        )
        raise ArtifactError(msg)
    stored = {name.rsplit(".", 1)[0] for name in head}
    missing = {module: foreign for module, foreign in layout.names.items() if module not in stored}
    return read_classifier_weights(backbone, missing) | head if missing else head


def _read_tag_head(
    tensors: Mapping[str, Tensor], *, backbone: Backbone, path: Path
) -> dict[str, Tensor]:
    """The linear head of transformers' token classifiers."""
    family = backbone.geometry.model_type
    module = "score" if backbone.geometry.architecture == "causal" else "classifier"
    names = {f"{_HEAD}{module}.{part}": f"output.{part}" for part in ("weight", "bias")}
    if {*tensors} != {*names} or tensors[f"{_HEAD}{module}.weight"].ndim != 2:  # noqa: PLR2004  # [C, H]
        msg = (
            f"{path} holds {', '.join(sorted(tensors)) or 'no head'}, but a head of TOKEN_CLS on "
            f"{family} that can be imported is {' and '.join(names)}. Fetch it again, or train a "
            "prompt for a task of kind 'tag'."
        )
        raise ArtifactError(msg)
    return {names[key]: tensor for key, tensor in tensors.items()}


def _read_task(
    config: Mapping[str, Any], backbone: Backbone, *, path: Path
) -> dict[str, object] | None:
    task, kind = config.get("task_type"), backbone.geometry.architecture
    if task == "SEQ_2_SEQ_LM" and kind != "encoder-decoder":
        msg = (
            f"{path.parent}: task_type is {task}, but {backbone.name!r} has no decoder. "
            "Name the adapter's own backbone with --backbone (backbone=… in Python)."
        )
        raise ArtifactError(msg)
    return None if kind == "encoder" else {"kind": "generate"}


def write_peft(request: ExportRequest) -> dict[str, bytes]:
    """Make the files of an adapter's folder.

    Raises:
        ArtifactError: PEFT has nothing that corresponds to the artifact.
    """
    artifact, backbone = request.artifact, request.backbone
    config = _make_config(artifact, backbone)
    settings, tensors = _make_prompt_part(request)
    head: dict[str, Tensor] = {}
    if artifact.manifest.task.get("kind") == "tag":
        msg = (
            "PEFT cannot run prompts for tags of words: its task type TOKEN_CLS fails with soft "
            "prompts. Use the artifact's own files, or the format p-tuning-v2."
        )
        raise ArtifactError(msg)
    if artifact.head:
        _check_pooling(artifact, backbone)
        layout = _choose_head_layout(artifact, backbone)
        head = {f"{_HEAD}{layout.to_foreign(key)}": t for key, t in artifact.head.items()}
        config["modules_to_save"] = ["classifier", "score", *layout.outer]
    content = json.dumps(config | settings, indent=2, sort_keys=True, ensure_ascii=False)
    return {
        CONFIG: f"{content}\n".encode(),
        PEFT_TENSORS: to_bytes(tensors | head, {"format": "pt"}),
        "README.md": _make_readme(request).encode(),
    }


def _make_config(artifact: Artifact, backbone: Backbone) -> dict[str, Any]:
    """The configuration that was imported, if there is one, with current values; else a new one."""
    kind = backbone.geometry.architecture
    has_decoder_part = kind == "encoder-decoder" and isinstance(artifact.prompt, KVPrefix)
    return (
        _DEFAULT_CONFIG
        | _get_imported_config(artifact)
        | {
            "base_model_name_or_path": artifact.manifest.backbone["name"],
            "revision": artifact.manifest.backbone["revision"],
            "num_virtual_tokens": artifact.prompt.length,
            # PEFT never reads the decoder's half of a prompt among the input embeddings.
            "num_transformer_submodules": 2 if has_decoder_part else 1,
            "task_type": _choose_task_type(artifact, kind),
        }
    )


def _get_imported_config(artifact: Artifact) -> dict[str, Any]:
    """The configuration that the prompt was imported with; empty if it does not apply."""
    note = artifact.manifest.recipe.get("imported")
    config = note.get("config") if isinstance(note, Mapping) else None
    types = INPUTS if isinstance(artifact.prompt, InputPrompt) else PREFIXES
    if not isinstance(config, Mapping) or config.get("peft_type") not in types:
        return {}
    return {key: value for key, value in config.items() if key not in _NOT_PASSED_ON}


def _choose_task_type(artifact: Artifact, kind: str) -> str:
    if artifact.manifest.task.get("kind") == "extract":
        msg = (
            "the artifact answers by a part of a text, for which PEFT has QUESTION_ANS; but that "
            "reads start and end at other positions with a prompt, so its answers would be wrong. "
            'Export it as "p-tuning-v2", or use the artifact itself.'
        )
        raise ArtifactError(msg)
    if artifact.head and artifact.manifest.task.get("kind") == "choose":
        msg = (
            "the artifact scores each of a row's options by a head, for which PEFT has no type of "
            "task. Use the artifact itself; without task.head options are scored by the language "
            "model, and such a prompt is exported as any other of a language model."
        )
        raise ArtifactError(msg)
    if artifact.head:
        return "SEQ_CLS"
    match kind:
        case "causal":
            return "CAUSAL_LM"
        case "encoder-decoder":
            return "SEQ_2_SEQ_LM"
        case _:  # PEFT has no task type for masked language models
            return "FEATURE_EXTRACTION"


def _make_prompt_part(request: ExportRequest) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The part of the configuration that describes the prompt, and the prompt's tensor."""
    sizes: dict[str, Any]
    kind: dict[str, Any]
    match request.artifact.prompt:
        case InputPrompt() as prompt:
            _check_position(request, prompt)
            # PEFT needs all three and uses the first; it cannot infer them for every family.
            geometry = request.backbone.geometry
            sizes = {
                "token_dim": prompt.vectors.shape[1],
                "num_layers": geometry.num_layers or None,
                "num_attention_heads": geometry.num_kv_heads or None,
            }
            kind = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
            table = prompt.vectors
        case KVPrefix() as prefix:
            _check_prefix(prefix, request.backbone)
            sites, heads, _, size = prefix.keys.shape
            sizes = {"num_layers": sites, "num_attention_heads": heads, "token_dim": heads * size}
            kind = {"peft_type": "PREFIX_TUNING", "prefix_projection": False}
            table = pack_kv(prefix, request.backbone)
        case unreachable:
            assert_never(unreachable)
    is_imported = "peft_type" in _get_imported_config(request.artifact)
    return sizes | ({} if is_imported else kind), {_PROMPT: table}


def _check_position(request: ExportRequest, prompt: InputPrompt) -> None:
    """Make sure that all soft tokens come first, before [CLS] or <s>, and that the head fits."""
    manifest = request.artifact.manifest
    if prompt.start_layer:
        msg = (
            f"the soft tokens enter at layer {prompt.start_layer}, but PEFT's enter at the input. "
            'Train with method.layers = "all".'
        )
        raise ArtifactError(msg)
    if manifest.task.get("messages_column") is not None:
        msg = (
            f"the template {manifest.template!r} has soft tokens in conversations, but PEFT puts "
            "all of them before the chat template's own text. Train keys and values, such as those "
            "of p-tuning-v2, which PEFT has too."
        )
        raise ArtifactError(msg)
    if request.leading_soft != prompt.length:
        msg = (
            f"the template {manifest.template!r} has soft tokens after another token ([CLS] and "
            "<s> count), but PEFT puts all of them first. Train with a template "
            f"such as '{{soft:{prompt.length}}}{{bos}}{request.hard_template}'."
        )
        raise ArtifactError(msg)


def _check_pooling(artifact: Artifact, backbone: Backbone) -> None:
    """Make sure that the head reads what PEFT's would."""
    settings = read_task_settings(artifact.manifest)
    named = settings.pooling if isinstance(settings, Classify) else "auto"
    pooling = resolve_pooling(named, backbone.geometry.architecture)
    wanted = _find_pooling(artifact.prompt, backbone)
    if pooling == wanted or (wanted == "cls" and pooling == "first"):  # a row begins with [CLS]
        return
    texts = {"cls": "[CLS]", "first": "the first position", "last": "the last token"}
    reads = texts.get(pooling, f"the {pooling} of the row's words")
    theirs = "the first of these" if wanted == "first" else texts[wanted]
    where = "with soft tokens before it " if wanted == "first" and pooling == "cls" else ""
    theirs = theirs if where or wanted != "first" else "the first position, a soft token"
    msg = (
        f"the head reads {reads}, but {where}PEFT's reads {theirs}. "
        f'Train with task.pooling = "{wanted}" for use in PEFT.'
    )
    raise ArtifactError(msg)


def _check_prefix(prefix: KVPrefix, backbone: Backbone) -> None:
    if not prefix.shift_positions:
        msg = (
            "the prefix does not shift the row's positions, but PEFT shifts them by its length. "
            "Train with method.shift_positions = true for use in PEFT."
        )
        raise ArtifactError(msg)
    sites = backbone.geometry.self_attention_sites
    if prefix.sites != sites:
        msg = (
            f"the prefix acts on the attention layers {[*prefix.sites]}, but PEFT's acts on "
            f"{[*sites]}. Train it on exactly these with method.layers."
        )
        raise ArtifactError(msg)


def _choose_head_layout(artifact: Artifact, backbone: Backbone) -> HeadLayout:
    layout, kind = _get_backbone_head(backbone), artifact.manifest.task.get("head")
    if layout.kind != kind:
        msg = (
            f"the artifact's head is {kind!r}, but {backbone.geometry.model_type}'s classifier in "
            f"transformers has {layout.kind!r}, the only one that PEFT trains. Train with "
            f"task.head = {layout.kind!r}."
        )
        raise ArtifactError(msg)
    return layout


def _make_readme(request: ExportRequest) -> str:
    return (
        "A soft prompt, exported by softprompt for PEFT.\n\n"
        f"Backbone: {request.artifact.manifest.backbone['name']}. Give each row as this text, with "
        f"the tokenizer's own special tokens:\n\n```\n{request.hard_template}\n```\n\n"
        "PEFT answers as softprompt does on rows without padding. With padding its answers differ: "
        "it counts positions from the first pad token, and pools a pad token.\n"
    )
