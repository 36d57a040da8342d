"""Read PEFT's adapters: ``adapter_config.json`` and ``adapter_model.safetensors`` in a folder.

What PEFT 0.21 writes was looked at in its files; how it runs them (the prompt before everything,
positions moved up by a prefix) is kept as facts of the prompt and its template.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt.artifact.formats.foreign import Base, Foreign
from softprompt.artifact.formats.heads import HeadForm, head_form
from softprompt.artifact.formats.layout import unpacked
from softprompt.artifact.formats.reading import checked, count, found, settings, tensors
from softprompt.backbone import Backbone
from softprompt.backbone.parts import classifier_parts
from softprompt.errors import ArtifactError, unknown
from softprompt.prompt import InputPrompt, Prompt

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
INPUTS = {"PROMPT_TUNING", "P_TUNING", "CPT"}
PREFIXES = {"PREFIX_TUNING", "CARTRIDGE"}
MULTITASK = "MULTITASK_PROMPT_TUNING"
_TYPES = {*INPUTS, *PREFIXES, MULTITASK}
_TASKS = {"CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "FEATURE_EXTRACTION"}
_PROMPT, _COLS, _ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
_HEAD = "base_model."


def base_of(source: Path) -> Base:
    """The backbone that an adapter names.

    Raises:
        ArtifactError: there is no adapter.
    """
    config = _config(source)
    names = [config.get(key) for key in ("base_model_name_or_path", "revision")]
    name, revision = (value if isinstance(value, str) and value else None for value in names)
    return Base(name, revision)


def read(source: Path, backbone: Backbone) -> dict[str, Foreign]:
    """The prompt of an adapter, or each task's of a multitask one (``task-0``, ``task-1`` …).

    Raises:
        ArtifactError: it is not whole, is not as its configuration says, is no soft prompt, or
            does not fit the backbone.
        BackboneError: its head needs a part that the backbone's checkpoint does not have.
    """
    config = _config(source)
    path = found(source, [TENSORS], what="PEFT adapter")
    held = tensors(path)
    checked(path, held)
    prompts = _prompts(config, held, backbone=backbone, path=path)
    first = next(iter(prompts.values()))
    spare = {key: held[key] for key in held if key not in {_PROMPT, _COLS, _ROWS}}
    task, head = _task(config, backbone, path=path), {}
    if config.get("task_type") == "SEQ_CLS":
        form = head_form(backbone.geometry.family, causal=backbone.geometry.kind == "causal")
        head = _head(spare, form, backbone=backbone, path=path)
        pool = "first" if isinstance(first, InputPrompt) else "cls"
        task = {"kind": "classify", "head": form.kind, "pool": pool}
    elif spare:
        msg = (
            f"{path} also holds {', '.join(sorted(spare)[:3])}, which no soft prompt of task type "
            f"{config.get('task_type')} has. Its configuration may belong to another file."
        )
        raise ArtifactError(msg)
    soft = f"{{soft:{first.length}}}{{bos}}" if isinstance(first, InputPrompt) else ""
    note = {"format": "peft", "config": config}
    return {
        name: Foreign(
            prompt,
            template=f"{soft}{{text}}",
            task=task,
            head=head,
            classes=len(head["output.weight"]) if head else 0,
            note=note | ({"task": name} if name else {}),
        )
        for name, prompt in prompts.items()
    }


def _config(source: Path) -> dict[str, Any]:
    if source.is_file():
        msg = (
            f"{source} is a file, but a PEFT adapter is a folder. Give its folder {source.parent}."
        )
        raise ArtifactError(msg)
    path = found(source, [CONFIG], what="PEFT adapter")
    config = settings(path)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        msg = (
            f"{path}: {unknown('peft_type', str(kind), options=_TYPES)} "
            "Only soft prompts can be imported."
        )
        raise ArtifactError(msg)
    task = config.get("task_type")
    if task is not None and (not isinstance(task, str) or task not in _TASKS):
        msg = (
            f"{path}: task_type is {task!r}, which softprompt has no task for. It has "
            f"{', '.join(sorted(_TASKS))}."
        )
        raise ArtifactError(msg)
    return config


def _prompts(
    config: Mapping[str, Any], held: Mapping[str, Tensor], *, backbone: Backbone, path: Path
) -> dict[str, Prompt]:
    length, kind = (
        count(config, "num_virtual_tokens", path=path.parent / CONFIG),
        config["peft_type"],
    )
    stored = _rows(held, config, length=length, path=path)
    if kind in PREFIXES:
        return {"": unpacked(stored, backbone)}
    if stored.shape[1] != backbone.geometry.embedding_size:
        msg = (
            f"{path}: each soft token has {stored.shape[1]} numbers, but {backbone.name!r} embeds "
            f"tokens in {backbone.geometry.embedding_size}. The prompt belongs to another "
            "backbone: name it with --backbone."
        )
        raise ArtifactError(msg)
    if kind in INPUTS:
        # An encoder-decoder's has twice the rows; PEFT never reads the second half.
        return {"": InputPrompt(stored[:length].clone())}
    cols, rows = (_named(held, name, path=path) for name in (_COLS, _ROWS))
    tasks, rank = cols.shape[:1], cols.shape[2:]
    whole, width = stored.shape
    if (
        cols.shape != (*tasks, whole, *rank)
        or rows.shape != (*tasks, *rank, width)
        or not rank
        or 0 in cols.shape
    ):
        msg = (
            f"{path}: {_COLS} {[*cols.shape]} and {_ROWS} {[*rows.shape]} must be [T,{whole},r] "
            f"and [T,r,{width}]. They are not of one adapter."
        )
        raise ArtifactError(msg)
    # One task at a time, as PEFT multiplies them: the last bits are the same then.
    made = [
        (stored * (c @ r)[0])[:length] for c, r in zip(cols[:, None], rows[:, None], strict=True)
    ]
    return {f"task-{at}": InputPrompt(one.clone()) for at, one in enumerate(made)}


def _rows(
    held: Mapping[str, Tensor], config: Mapping[str, Any], *, length: int, path: Path
) -> Tensor:
    stored = _named(held, _PROMPT, path=path)
    kind, twice = config["peft_type"], config.get("num_transformer_submodules") == 2  # noqa: PLR2004  # encoder and decoder
    wanted = length * 2 if twice and kind not in PREFIXES else length
    if stored.ndim != 2 or len(stored) != wanted:  # noqa: PLR2004  # a table
        msg = (
            f"{path}: {_PROMPT} is {[*stored.shape]}, but {kind} with {length} virtual tokens has "
            f"{wanted} rows. Configuration and tensors are not of one adapter."
        )
        raise ArtifactError(msg)
    if kind != MULTITASK and not {_COLS, _ROWS}.isdisjoint(held):
        msg = (
            f"{path} holds {_COLS}, which only {MULTITASK} has, but {CONFIG} says {kind}. "
            "Configuration and tensors are not of one adapter."
        )
        raise ArtifactError(msg)
    return stored


def _named(held: Mapping[str, Tensor], name: str, *, path: Path) -> Tensor:
    if name not in held:
        msg = (
            f"{path} has no tensor {name!r}; it has {', '.join(sorted(held)) or 'none'}. "
            "Fetch it again, or correct its configuration."
        )
        raise ArtifactError(msg)
    return held[name]


def _head(
    spare: Mapping[str, Tensor], form: HeadForm, *, backbone: Backbone, path: Path
) -> dict[str, Tensor]:
    """The head, with what the adapter leaves to the backbone's checkpoint."""
    head: dict[str, Tensor] = {}
    for key, tensor in spare.items():
        own = form.ours(key.removeprefix(_HEAD)) if key.startswith(_HEAD) else None
        if own is None:
            msg = (
                f"{path} also holds {key}, which is no part of {backbone.geometry.family}'s "
                f"classifier ({', '.join(form.names.values())}). Only prompts and heads can be "
                "imported, no other trained weights."
            )
            raise ArtifactError(msg)
        head[own] = tensor
    if "output.weight" not in head or head["output.weight"].ndim != 2:  # noqa: PLR2004  # [C, H]
        msg = (
            f"{path} has no {_HEAD}{form.theirs('output.weight')} [C,H], the trained head of "
            f"SEQ_CLS. Fetch it again, or correct task_type in {CONFIG}."
        )
        raise ArtifactError(msg)
    modules = {own.rsplit(".", 1)[0] for own in head}
    lacking = {own: theirs for own, theirs in form.names.items() if own not in modules}
    return classifier_parts(backbone, lacking) | head if lacking else head


def _task(config: Mapping[str, Any], backbone: Backbone, *, path: Path) -> dict[str, object] | None:
    task, kind = config.get("task_type"), backbone.geometry.kind
    if task == "SEQ_2_SEQ_LM" and kind != "encoder-decoder":
        msg = (
            f"{path.parent}: task_type is {task}, but {backbone.name!r} has no decoder. "
            "Name the adapter's own backbone with --backbone."
        )
        raise ArtifactError(msg)
    return None if kind == "encoder" else {"kind": "generate"}
