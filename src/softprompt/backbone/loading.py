"""Load and freeze a backbone: from the Hub, a folder, a GGUF file or a built-in package."""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

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
    modeling_gguf_pytorch_utils,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from softprompt._parsing import parse_json
from softprompt._paths import cache_folder, expand_user, is_file, is_present
from softprompt.backbone.builtin import PREFIX, resolve_builtin
from softprompt.backbone.introspection import wrap_model
from softprompt.backbone.layers import find_body
from softprompt.backbone.model import Backbone, list_dropout_rates
from softprompt.backbone.references import Architecture
from softprompt.backbone.sharding import shard_backbone
from softprompt.errors import (
    BackboneError,
    MissingPackageError,
    SoftpromptError,
    is_panic,
    summarize_error,
)

_log = logging.getLogger(__name__)

# Of a tokenizer, the largest: some ten million.
_LARGEST_JSON = 1_000_000_000
_REMEDY = (
    "Give a Hub id that can be reached or is in the local cache, a folder with config.json, "
    "tokenizer and *.safetensors (pickled .bin weights are never read), a .gguf file, or a "
    f"{PREFIX} name."
)


QuantizationConfig: TypeAlias = Mapping[str, object] | QuantizationConfigMixin


def read_quantization(config: QuantizationConfig) -> Mapping[str, object]:
    """Convert a quantization configuration to a table, as recipes and checkpoints store it.

    Args:
        config: a table, or a configuration object of transformers.

    Returns:
        The table.
    """
    return config.to_dict() if isinstance(config, QuantizationConfigMixin) else config


def check_quantization_installed(quantization: Mapping[str, object]) -> None:
    """Check that bitsandbytes is installed if a quantization needs it.

    Args:
        quantization: a quantization configuration of transformers, as a table.

    Raises:
        MissingPackageError: it is not installed.
    """
    is_implied = any(key.startswith("load_in_") for key in quantization)
    if not is_implied and quantization.get("quant_method") != "bitsandbytes":
        return
    if find_spec("bitsandbytes") is None:
        msg = (
            "backbone.quantization_config needs the package bitsandbytes, which is not installed. "
            "Install it: pip install 'softprompt[bitsandbytes]'"
        )
        raise MissingPackageError(msg)


@dataclass(frozen=True)
class LoadOptions:
    """The options of loading a backbone, all resolved.

    Args:
        revision: a Hub branch, tag or commit.
        dtype: the dtype to compute in; None for the checkpoint's own.
        device: the device of the model; ignored with ``device_map``.
        device_map: passed to transformers, to spread a large model over several devices.
        quantization_config: a quantization configuration of transformers, as a table; None to load
            the weights as they are.
        shard: divide the layers' weights among the processes of this run; all of them must load
            and run the backbone in the same way.
        keep_dropout: keep the backbone's own dropout in training (default: none, which is better
            and faster for classification; SuperPos-Prompt 2024, OpenPrompt's ``plm_eval_mode``).
        trust_remote_code: run code that comes with the checkpoint.
    """

    revision: str | None = None
    dtype: torch.dtype | None = None
    device: str | None = None
    device_map: str | Mapping[str, str | int] | None = None
    quantization_config: Mapping[str, object] | None = None
    shard: bool = False
    keep_dropout: bool = False
    trust_remote_code: bool = False


def load_unverified(name: str, loading: LoadOptions | None = None) -> Backbone:
    """Load, freeze and measure a backbone, without verifying that prompts have an effect on it.

    Args:
        name: a Hub id, a folder, a GGUF file or a ``builtin:`` name.
        loading: the options; None for the defaults.

    Returns:
        The backbone.

    Raises:
        BackboneError: it cannot be found, its architecture is not supported, it cannot be sharded,
            or some of its weights would be random.
        MissingPackageError: the package of a ``builtin:`` name or of a quantization is not
            installed.
    """
    loading = loading or LoadOptions()
    with explain_failures(name):
        return _load(name, loading)


@contextmanager
def explain_failures(name: str) -> Iterator[None]:
    """Raise errors of a family's own code as a BackboneError that names the backbone."""
    try:
        yield
    except (SoftpromptError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        msg = (
            f"backbone {name!r} cannot be used: {summarize_error(error)}. Choose another backbone, "
            "or report its family."
        )
        raise BackboneError(msg) from error


def _load(name: str, loading: LoadOptions) -> Backbone:
    if loading.quantization_config is not None:
        check_quantization_installed(loading.quantization_config)
    checkpoint = resolve_checkpoint(name, loading)
    with silence_transformers():
        config = load_or_raise(
            name, lambda: AutoConfig.from_pretrained(checkpoint.path, **checkpoint.arguments)
        )
        kind = _determine_architecture(name, config)
        if not loading.keep_dropout:
            _disable_dropout(config)
        _disable_sparse_attention(name, config)
        tokenizer = load_or_raise(
            name, lambda: AutoTokenizer.from_pretrained(checkpoint.path, **checkpoint.arguments)
        )
        _check_vocabulary(name, tokenizer)
        model, headless = _load_model(name, checkpoint, config, kind, loading)
    if loading.device is not None and loading.device_map is None and not loading.shard:
        nn.Module.to(model, loading.device)
    commit = getattr(config, "_commit_hash", None) or loading.revision
    backbone = wrap_model(
        name, model, tokenizer=tokenizer, kind=kind, revision=commit, headless=headless
    )
    # Measured whole, where it was loaded: the device may have memory for a shard only.
    return shard_backbone(backbone, device=loading.device or "cpu") if loading.shard else backbone


@dataclass(frozen=True)
class Checkpoint:
    """The path or Hub id of a checkpoint, and further arguments of ``from_pretrained``."""

    path: str
    arguments: dict[str, Any]


def resolve_checkpoint(name: str, loading: LoadOptions) -> Checkpoint:
    """Find a checkpoint by the name of its backbone.

    Raises:
        BackboneError: a file or folder of this name does not exist, or names files elsewhere.
        MissingPackageError: the reader of GGUF files is not installed.
    """
    arguments: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    if name.startswith(PREFIX):
        path = resolve_builtin(name)
    else:
        path = expand_user(name)
        if not is_present(path):
            if path.suffix == ".gguf" or name.startswith((".", "/", "~")):
                msg = (
                    f"there is no file or folder {name!r}. Give a Hub id, a folder or a .gguf file."
                )
                raise BackboneError(msg)
            return Checkpoint(name, arguments | {"revision": loading.revision})
    if path.is_dir():
        _check_files(name, path)
    if path.suffix == ".gguf":
        _check_gguf_installed(name)
        path = convert_gguf(path, loading.dtype or torch.bfloat16)
    return Checkpoint(str(path), arguments)


def _check_gguf_installed(name: str) -> None:
    if find_spec("gguf") is None:
        msg = (
            f"backbone {name!r} is a GGUF file, whose reader is not installed. Install it: pip "
            "install 'softprompt[gguf]'"
        )
        raise MissingPackageError(msg)


def _check_files(name: str, folder: Path) -> None:
    """Check that all files of a checkpoint are files in its folder, before they are read."""
    for path in folder.iterdir():
        if is_present(path) and not path.is_dir() and not path.is_file():
            fact = f"{path.name} is not a file but a device or a pipe"
        elif path.suffix == ".json" and is_file(path) and path.stat().st_size > _LARGEST_JSON:
            fact = f"{path.name} has {path.stat().st_size:,} bytes, far more than any checkpoint's"
        elif path.name.endswith(".index.json") and (other := _find_outside(folder, path)):
            fact = f"{path.name} names {other!r}, which is not a file in the folder"
        else:
            continue
        msg = f"backbone {name!r} could not be loaded: {fact}. Give a complete checkpoint."
        raise BackboneError(msg)


def _find_outside(folder: Path, index: Path) -> str | None:
    """The first file that an index of shards names and that is not in its folder."""
    try:
        content = parse_json(index.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # transformers says what is wrong with it
    shards = content.get("weight_map") if isinstance(content, dict) else None
    names = {*map(str, shards.values())} if isinstance(shards, dict) else set()
    for shard in sorted(names):
        if Path(shard).is_absolute() or ".." in Path(shard).parts or not is_file(folder / shard):
            return shard
    return None


def load_or_raise(name: str, load: Callable[[], Any], *, remedy: str = _REMEDY) -> Any:  # noqa: ANN401  # transformers'
    """Call a loader, and raise its errors as a BackboneError with a remedy."""
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except BaseException as error:  # a damaged file leads to errors of many kinds
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        text = repr(error) if isinstance(error, KeyError) else str(error)
        reason = text.strip().split("\n", 1)[0].rstrip(" .:")
        msg = f"backbone {name!r} could not be loaded: {reason}. {remedy}"
        if is_present(expand_user(name)):
            msg += " A file that a download cut off or damaged has to be fetched again."
        raise BackboneError(msg) from error


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that there is a vocabulary: without one, transformers makes an empty tokenizer."""
    _ = tokenizer.all_special_ids, tokenizer.unk_token_id  # raises if its own token is missing
    # T5's empty tokenizer has one ordinary token, the mark for a space.
    if len(tokenizer) - len(tokenizer.added_tokens_decoder) > 1:
        return
    msg = (
        f"backbone {name!r} has no tokenizer, or one without a vocabulary. Save its tokenizer to "
        "the same folder, with tokenizer.save_pretrained."
    )
    raise BackboneError(msg)


def _determine_architecture(name: str, config: PreTrainedConfig) -> Architecture:
    if config.is_encoder_decoder:
        return "encoder-decoder"
    is_decoder = getattr(config, "is_decoder", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder:
        return "encoder"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    msg = (
        f"backbone {name!r} is a {config.model_type!r} model, which is neither a causal, a masked "
        "nor an encoder-decoder language model. Choose one that is."
    )
    raise BackboneError(msg)


_AUTO_CLASSES = {
    "causal": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


def _load_model(
    name: str,
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    kind: Architecture,
    loading: LoadOptions,
) -> tuple[PreTrainedModel, bool]:
    arguments = dict(checkpoint.arguments)
    if loading.device_map is not None:
        arguments["device_map"] = loading.device_map
    if loading.quantization_config is not None:
        arguments["quantization_config"] = dict(loading.quantization_config)
    model, report = load_or_raise(
        name,
        lambda: _AUTO_CLASSES[kind].from_pretrained(
            checkpoint.path,
            config=config,
            dtype=loading.dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are checked below: here, no message names them
            **arguments,
        ),
        remedy=_explain_arguments(loading),
    )
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        msg = (
            f"device_map = {loading.device_map!r} leaves weights of backbone {name!r} on the disk "
            "or nowhere, but all of them are needed in memory. Place them on devices, or leave "
            "device_map out."
        )
        raise BackboneError(msg)
    for key, stored, expected in sorted(report["mismatched_keys"]):
        msg = (
            f"the weights of backbone {name!r} do not fit its config.json: {key} has the shape "
            f"{list(stored)} instead of {list(expected)}. Give a complete checkpoint."
        )
        raise BackboneError(msg)
    return model, _is_headless(name, model, sorted(report["missing_keys"]))


def _explain_arguments(loading: LoadOptions) -> str:
    """The remedy, which begins with the arguments that may not fit."""
    names = [n for n in ("device_map", "quantization_config") if getattr(loading, n) is not None]
    return "".join(f"Correct {name}, or leave it out. " for name in names) + _REMEDY


def _is_headless(name: str, model: PreTrainedModel, missing: list[str]) -> bool:
    """Whether the checkpoint lacks the language-model head; other missing weights are an error."""
    body = find_body(model)
    names = [name for name, child in model.named_children() if child is body]
    needed = [key for key in missing if key.startswith(f"{names[0]}." if names else "")]
    if needed:
        msg = (
            f"backbone {name!r} lacks {len(needed)} of its weights ({', '.join(needed[:3])}…), "
            "which would be random and frozen. Give a complete checkpoint."
        )
        raise BackboneError(msg)
    return bool(missing)


def _disable_dropout(config: PreTrainedConfig) -> None:
    """Disable dropout, so that training mode (for gradient checkpointing) changes nothing."""
    for key in list_dropout_rates(config):
        setattr(config, key, 0.0)


def _disable_sparse_attention(name: str, config: PreTrainedConfig) -> None:
    """Use BigBird's full attention: its sparse one switches to it for good at a short row."""
    if getattr(config, "attention_type", None) == "block_sparse":
        config.attention_type = "original_full"
        _log.info("%s uses full attention instead of sparse attention", name)


def convert_gguf(path: Path, dtype: torch.dtype) -> Path:
    """Convert a GGUF file to safetensors in the user's cache, because reading GGUF is slow."""
    stat = path.stat()
    # It begins with the version of this conversion.
    key = f"2|{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{dtype}"
    folder = cache_folder() / "gguf" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh, silence_transformers():
        source = {"gguf_file": path.name}
        load = AutoModelForCausalLM.from_pretrained
        loaded = load_or_raise(str(path), lambda: load(str(path.parent), dtype=dtype, **source))
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path.parent, **source)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        converted = AutoModelForCausalLM.from_config(config, dtype=dtype)
        converted.load_state_dict(loaded.state_dict())
        # Not with `save_pretrained`, in which only the first of several processes writes.
        tied = converted.all_tied_weights_keys
        tensors = {k: v for k, v in converted.state_dict().items() if k not in tied}
        save_file(tensors, str(Path(fresh) / "model.safetensors"), metadata={"format": "pt"})
        converted.config.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        try:
            Path(fresh).rename(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").exists():
                raise
        else:
            Path(fresh).mkdir()  # for the context manager to remove
    return folder


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Hide transformers' load reports and progress bars: missing weights are checked instead."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    gguf: Any = modeling_gguf_pytorch_utils
    gguf_bar = gguf.tqdm  # it obeys no setting of transformers
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gguf.tqdm = partial(gguf_bar, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = gguf_bar
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
