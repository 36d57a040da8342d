"""What can be loaded is loaded whole and frozen; what cannot is refused with the reason."""

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


def without(folder: Path, part: str) -> None:
    """Take the tensors whose name contains ``part`` out of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    kept = {name: t for name, t in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})


def message(name: str | Path) -> str:
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


def test_a_device_may_be_named(saved):
    folder = str(saved("gpt2"))
    assert load_unverified(folder, LoadOptions(device="cpu")).device == torch.device("cpu")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "absent.gguf"])
def test_no_such_place(name):
    assert message(name) == (
        f"there is no file or folder {name!r}. Give a Hub id, a folder or a .gguf file."
    )


def test_a_hub_id_without_network_says_what_may_be_given():
    said = message("nobody/nothing")
    assert said.startswith("backbone 'nobody/nothing' could not be loaded: ")
    assert "Give a Hub id that can be reached or is in the local cache" in said


def test_an_empty_folder(tmp_path):
    assert f"backbone {str(tmp_path)!r} could not be loaded" in message(tmp_path)


def test_pickled_weights_are_never_read(saved):
    folder = saved("gpt2")
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    said = message(folder)
    assert "could not be loaded" in said
    assert "pickled .bin weights are never read" in said


@pytest.mark.parametrize(
    ("family", "part"),
    [("bert", "layer.1.attention.self.query"), ("llama", "layers.0.mlp"), ("t5", "block.1")],
)
def test_missing_weights_would_be_random_and_frozen(saved, family, part):
    folder = saved(family)
    without(folder, part)
    said = message(folder)
    assert said.startswith(f"backbone {str(folder)!r} lacks ")
    assert part in said
    assert "which would be random and frozen. Give a complete checkpoint." in said


@pytest.mark.parametrize(("family", "part"), [("bert", "cls."), ("electra", "generator_")])
def test_without_its_head_it_is_a_backbone_without_one(saved, backbone, family, part):
    folder = saved(family)
    without(folder, part)
    own = load_unverified(str(folder))
    assert own.lm_head is None
    inputs = make_example_inputs(own)
    states = forward(own, inputs, prompts=[None])
    assert torch.equal(states, forward(backbone(family), inputs, prompts=[None]))


def test_what_is_no_language_model_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    assert message(tmp_path) == (
        f"backbone {str(tmp_path)!r} is a 'vit' model, which is neither a causal, a masked nor an "
        "encoder-decoder language model. Choose one that is."
    )


def test_code_of_a_checkpoint_is_not_run(saved):
    folder = saved("gpt2")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    assert "could not be loaded" in message(folder)
    assert not (folder / "ran").exists()
