"""A checkpoint is loaded completely and frozen, or refused with the reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from softprompt.backbone import LoadOptions, load_unverified, make_example_inputs
from softprompt.errors import BackboneError
from softprompt.injection import forward, load_backbone
from support.parametrize import for_each


def remove_tensors(folder: Path, part: str) -> None:
    """Remove the tensors whose name contains ``part`` from a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    kept = {name: t for name, t in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})


def get_error(name: str | Path) -> str:
    with pytest.raises(BackboneError) as error:
        load_unverified(str(name))
    return str(error.value)


@for_each("family")
def test_a_folder_gives_the_same_model(saved, backbone, family):
    own = load_backbone(str(saved(family)), dtype=None, device="cpu")
    inputs = make_example_inputs(own)
    assert own.geometry == backbone(family).geometry
    assert own.fingerprint == backbone(family).fingerprint
    assert own.revision is None
    states = forward(own, inputs, prompts=[None])
    assert torch.equal(states, forward(backbone(family), inputs, prompts=[None]))
    assert torch.equal(own.lm_head(states), backbone(family).lm_head(states))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "bart", "deberta_v2"])
def test_dropout_is_off_unless_asked(saved, new_model, family):
    folder = saved(family, new_model(family, dropout=True))
    quiet, loud = (load_unverified(str(folder), LoadOptions(keep_dropout=d)) for d in (False, True))
    if family == "llama":
        loud.model.config.attention_dropout = 0.1  # its own default is none
        loud.model.model.layers[0].self_attn.attention_dropout = 0.5
    inputs = make_example_inputs(quiet)
    rested = quiet.compute_hidden_states(inputs)
    quiet.model.train()
    loud.model.train()
    assert torch.equal(quiet.compute_hidden_states(inputs), rested)
    torch.manual_seed(0)
    assert not torch.allclose(loud.compute_hidden_states(inputs), rested, atol=1e-3)
    loud.model.eval()
    assert torch.equal(loud.compute_hidden_states(inputs), rested)


def test_precision_is_the_checkpoints_unless_asked(saved, new_model):
    folder = str(saved("llama", new_model("llama", dtype=torch.bfloat16)))
    assert load_unverified(folder).dtype == torch.bfloat16
    assert load_unverified(folder, LoadOptions(dtype=torch.float32)).dtype == torch.float32


def test_the_device_is_the_requested_one(saved):
    folder = str(saved("gpt2"))
    assert load_unverified(folder, LoadOptions(device="cpu")).device == torch.device("cpu")


def test_sharding_needs_several_processes(saved):
    folder = str(saved("gpt2"))
    with pytest.raises(BackboneError) as error:
        load_unverified(folder, LoadOptions(shard=True))
    assert str(error.value) == (
        f"backbone {folder!r} cannot be sharded: there is one process. Start several "
        "(accelerate launch --multi_gpu --num_processes 2 …), or leave out shard."
    )


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "absent.gguf"])
def test_no_such_file_or_folder(name):
    assert get_error(name) == (
        f"there is no file or folder {name!r}. Give a Hub id, a folder or a .gguf file."
    )


def test_a_hub_id_without_network():
    error_message = get_error("nobody/nothing")
    assert error_message.startswith("backbone 'nobody/nothing' could not be loaded: ")
    assert "Give a Hub id that can be reached or is in the local cache" in error_message


def test_an_empty_folder(tmp_path):
    assert f"backbone {str(tmp_path)!r} could not be loaded" in get_error(tmp_path)


DAMAGES = {
    "weights cut off": ("model.safetensors", lambda raw: raw[:-9], "incomplete metadata"),
    "no weights": ("model.safetensors", lambda _raw: b"zzzz", "header too small"),
    "no JSON": ("config.json", lambda _raw: b"{", "is not a valid JSON file. Give a Hub id"),
    "a wrong type": (
        "config.json",
        lambda raw: raw.replace(b'"n_embd": 32', b'"n_embd": "x"'),
        "Validation error for field 'n_embd'",
    ),
    "no entries": ("tokenizer.json", lambda _raw: b"{}", "KeyError('added_tokens')"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(saved, damage):
    folder = saved("gpt2")
    file, change, reason = DAMAGES[damage]
    content = (folder / file).read_bytes()
    assert change(content) != content
    (folder / file).write_bytes(change(content))
    error_message = get_error(folder)
    assert error_message.startswith(f"backbone {str(folder)!r} could not be loaded: ")
    assert reason in error_message


def test_a_damaged_gguf_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF????")
    assert "could not be loaded: " in get_error(tmp_path / "x.gguf")


def test_weights_of_another_size(saved):
    folder = saved("gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 48}))
    assert get_error(folder) == (
        f"the weights of backbone {str(folder)!r} do not fit its config.json: "
        "transformer.h.0.attn.c_attn.bias has the shape [96] instead of [144]. Give a complete "
        "checkpoint."
    )


@pytest.mark.parametrize("family", ["bert", "gpt2", "roberta", "t5"])
def test_a_folder_without_a_tokenizer(saved, family):
    """An empty one is made by transformers, for which every word is unknown."""
    folder = saved(family)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert get_error(folder) == (
        f"backbone {str(folder)!r} has no tokenizer, or one without a vocabulary. Save its "
        "tokenizer to the same folder, with tokenizer.save_pretrained."
    )


def test_pickled_weights_are_never_read(saved):
    folder = saved("gpt2")
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    error_message = get_error(folder)
    assert "could not be loaded" in error_message
    assert "pickled .bin weights are never read" in error_message


@pytest.mark.parametrize(
    ("family", "part"),
    [("bert", "layer.1.attention.self.query"), ("llama", "layers.0.mlp"), ("t5", "block.1")],
)
def test_missing_weights_are_refused(saved, family, part):
    folder = saved(family)
    remove_tensors(folder, part)
    error_message = get_error(folder)
    assert error_message.startswith(f"backbone {str(folder)!r} lacks ")
    assert part in error_message
    assert "which would be random and frozen. Give a complete checkpoint." in error_message


@pytest.mark.parametrize(("family", "part"), [("bert", "cls."), ("electra", "generator_")])
def test_a_checkpoint_without_a_head(saved, backbone, family, part):
    folder = saved(family)
    remove_tensors(folder, part)
    own = load_unverified(str(folder))
    assert own.lm_head is None
    inputs = make_example_inputs(own)
    states = forward(own, inputs, prompts=[None])
    assert torch.equal(states, forward(backbone(family), inputs, prompts=[None]))


def test_a_model_of_another_kind_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    assert get_error(tmp_path) == (
        f"backbone {str(tmp_path)!r} is a 'vit' model, which is neither a causal, a masked nor an "
        "encoder-decoder language model. Choose one that is."
    )


def test_code_of_a_checkpoint_is_not_run(saved):
    folder = saved("gpt2")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    assert "could not be loaded" in get_error(folder)
    assert not (folder / "ran").exists()
