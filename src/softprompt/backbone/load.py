"""Load and freeze a backbone: from the Hub, a folder, a GGUF file or a built-in package."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from softprompt.backbone.builtin import PREFIX, cache_folder, resolve
from softprompt.backbone.model import Backbone, Kind, dropout_rates
from softprompt.backbone.quantise import check_installed
from softprompt.backbone.shard import shard
from softprompt.backbone.wrap import wrap
from softprompt.errors import BackboneError


@dataclass(frozen=True)
class Loading:
    """How a backbone is loaded.

    Args:
        revision: a Hub branch, tag or commit.
        dtype: the precision to compute in; None for the checkpoint's own.
        device: where to put it; ignored with ``device_map``.
        device_map: passed to transformers, to spread a large model.
        quantization: a quantisation configuration of transformers, as a table.
        shard: share the layers' weights out over the processes of this run; all of them must load
            and run the backbone alike.
        dropout: keep the backbone's own dropout in training (default: none, which is better and
            faster for classification; SuperPos-Prompt 2024, OpenPrompt's ``plm_eval_mode``).
        trust_remote_code: run code that the checkpoint brings along; never unless asked.
    """

    revision: str | None = None
    dtype: torch.dtype | None = None
    device: str | None = None
    device_map: str | Mapping[str, str | int] | None = None
    quantization: Mapping[str, object] | None = None
    shard: bool = False
    dropout: bool = False
    trust_remote_code: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def open_backbone(name: str, loading: Loading | None = None) -> Backbone:
    """Load, freeze and measure a backbone, without yet proving that it listens.

    Raises:
        BackboneError: it cannot be found, is of no supported kind, cannot be sharded as asked, or
            parts of it would be random.
        MissingPackageError: the package of a ``builtin:`` name or of a quantisation is not
            installed.
    """
    loading = loading or Loading()
    if loading.quantization is not None:
        check_installed(loading.quantization)
    place = place_of(name, loading)
    with quietly():
        config = read(name, lambda: AutoConfig.from_pretrained(place.path, **place.arguments))
        kind = _kind(name, config)
        if not loading.dropout:
            _without_dropout(config)
        tokenizer = read(name, lambda: AutoTokenizer.from_pretrained(place.path, **place.arguments))
        model, headless = _model(name, place, config, kind, loading)
    if loading.device is not None and loading.device_map is None and not loading.shard:
        nn.Module.to(model, loading.device)
    commit = getattr(config, "_commit_hash", None) or loading.revision
    made = wrap(name, model, tokenizer=tokenizer, kind=kind, revision=commit, headless=headless)
    # Measured whole first, where it was loaded: the device need only hold a share.
    return shard(made, device=loading.device or "cpu") if loading.shard else made


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is, and what transformers must be told beside that."""

    path: str
    arguments: dict[str, Any]


def place_of(name: str, loading: Loading) -> Place:
    """Find a checkpoint by the name of its backbone.

    Raises:
        BackboneError: a file or folder of this name does not exist.
    """
    arguments: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    if name.startswith(PREFIX):
        path = resolve(name)
    else:
        path = Path(os.path.expanduser(name))  # noqa: PTH111  # where nobody's home is, it stays
        if not os.path.exists(path):  # noqa: PTH110  # says no of what can be no name
            if path.suffix == ".gguf" or name.startswith((".", "/", "~")):
                msg = f"no file or folder {name!r}. Give a Hub id, a folder or a .gguf file."
                raise BackboneError(msg)
            return Place(name, arguments | {"revision": loading.revision})
    if path.suffix == ".gguf":
        path = converted(path, loading.dtype or torch.bfloat16)
    return Place(str(path), arguments)


def read(name: str, load: Any) -> Any:  # noqa: ANN401  # transformers' auto classes
    """Do what reads a checkpoint, and tell its faults as ours."""
    try:
        return load()
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().split("\n", 1)[0]
        msg = (
            f"backbone {name!r} could not be loaded: {first} "
            "Give a Hub id that can be reached or is in the local cache, a folder with "
            "config.json, tokenizer and *.safetensors (pickled .bin weights are never "
            f"read), a .gguf file, or a {PREFIX} name."
        )
        raise BackboneError(msg) from error


def _kind(name: str, config: PreTrainedConfig) -> Kind:
    family = config.model_type
    if config.is_encoder_decoder:
        return "encoder-decoder"
    decoder = getattr(config, "is_decoder", False)
    if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder:
        return "encoder"
    if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    msg = (
        f"backbone {name!r} is a {family!r} model, which is neither a causal, a masked nor an "
        "encoder-decoder language model. Choose one that is."
    )
    raise BackboneError(msg)


_AUTO = {
    "causal": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


def _model(
    name: str, place: Place, config: PreTrainedConfig, kind: Kind, loading: Loading
) -> tuple[PreTrainedModel, bool]:
    arguments = place.arguments | dict(loading.extra)
    if loading.device_map is not None:
        arguments["device_map"] = loading.device_map
    if loading.quantization is not None:
        arguments["quantization_config"] = dict(loading.quantization)
    model, report = read(
        name,
        lambda: _AUTO[kind].from_pretrained(
            place.path,
            config=config,
            dtype=loading.dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        ),
    )
    return model, _is_headless(name, model, sorted(report["missing_keys"]))


def _is_headless(name: str, model: PreTrainedModel, missing: list[str]) -> bool:
    """Whether the checkpoint lacks the language-model head; any other gap is an error."""
    body = f"{model.base_model_prefix}."
    holes = [key for key in missing if key.startswith(body) or model.base_model is model]
    if holes:
        msg = (
            f"backbone {name!r} lacks {len(holes)} of its weights ({', '.join(holes[:3])}…), which "
            "would be random and frozen. Give a complete checkpoint."
        )
        raise BackboneError(msg)
    return bool(missing)


def _without_dropout(config: PreTrainedConfig) -> None:
    """Switch every dropout off, so that training mode (for checkpointing) changes nothing."""
    for key in dropout_rates(config):
        setattr(config, key, 0.0)


def converted(path: Path, dtype: torch.dtype) -> Path:
    """A GGUF file as a folder of safetensors, kept in the user's cache: reading GGUF is slow."""
    state = path.stat()
    key = f"2|{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{dtype}"  # 2: the table is kept
    folder = cache_folder() / "gguf" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside, quietly():
        where = {"gguf_file": path.name}
        load = AutoModelForCausalLM.from_pretrained
        slow = read(str(path), lambda: load(str(path.parent), dtype=dtype, **where))
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path.parent, **where)
        config = slow.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
        plain.load_state_dict(slow.state_dict())
        # Not by its `save_pretrained`: of several processes, all but the first would write nothing.
        own = {k: v for k, v in plain.state_dict().items() if k not in plain.all_tied_weights_keys}
        save_file(own, str(Path(aside) / "model.safetensors"), metadata={"format": "pt"})
        plain.config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        try:
            Path(aside).rename(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").exists():
                raise
        else:
            Path(aside).mkdir()  # for the context manager to remove
    return folder


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' load reports and bars off the terminal; gaps are checked here."""
    level, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
