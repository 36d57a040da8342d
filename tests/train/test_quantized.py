"""A quantized backbone trains like any other: the same gradient, and no weight changes."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from softprompt.backbone import is_same_model, loading
from softprompt.backbone.fingerprint import digest_weights
from softprompt.errors import MissingPackageError
from softprompt.injection import load_backbone
from softprompt.tasks import base
from softprompt.train import Evaluation
from softprompt.train.gradients import accumulate_gradients
from softprompt.train.summary import prepare_caches

INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
RUNS = {
    "front": (("llama", "prompt-tuning"), {}),
    "cached text": (("llama", "prompt-tuning"), {"task": "generate"}),
    "late prefix": (("bert", "p-tuning-v2"), {"task": "head", "settings": {"layers": "1:"}}),
}


@pytest.fixture
def quantized(saved):
    def load(family: str):
        return load_backbone(
            str(saved(family)), quantization_config=INT8, device="cpu", dtype="bfloat16"
        )

    return load


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_gradients_are_exact_and_weights_do_not_change(
    quantized, parts, trainer_of, monkeypatch, backbone, run
):
    args, changes = run
    own = quantized(args[0])
    assert sum(p.dtype == torch.int8 for p in own.model.parameters()) >= 2 * own.geometry.num_layers
    assert is_same_model(own.fingerprint, backbone(args[0]).fingerprint)
    prepared = parts(*args, own=own, **changes)
    before = digest_weights(own.model)
    trainer = trainer_of(prepared)
    for _ in prepare_caches(trainer, prepared):
        pass
    batch, found = prepared.rows["train"].examples[:4], {}
    for kind, task in (("cached", trainer.task), ("whole", prepared.task)):
        prepared.method.zero_grad()
        more = {"batch": batch, "parts": 1, "accelerator": trainer.accelerator}
        loss, _ = accumulate_gradients(task, prepared.method, **more)
        found[kind] = loss, torch.cat([p.grad.flatten() for p in prepared.method.parameters()])
        monkeypatch.setattr(base, "plan_split", lambda *_args, **_more: None)
    monkeypatch.undo()
    assert found["cached"][0] == pytest.approx(found["whole"][0], rel=0.05)
    assert found["whole"][1].norm() > 0
    similarity = torch.nn.functional.cosine_similarity(found["cached"][1], found["whole"][1], dim=0)
    assert similarity > 0.98
    prepared.method.zero_grad()
    events = [e for e in trainer.run() if isinstance(e, Evaluation)]
    assert events[-1].moved > 0
    assert digest_weights(own.model) == before


def test_two_loads_are_bit_for_bit_the_same(quantized):
    assert digest_weights(quantized("llama").model) == digest_weights(quantized("llama").model)


@pytest.mark.parametrize("given", [INT8, {"load_in_4bit": True}])
def test_a_missing_package_is_named(monkeypatch, given):
    monkeypatch.setattr(loading, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError) as caught:
        load_backbone("anything", quantization_config=given)
    assert str(caught.value) == (
        "backbone.quantization_config needs the package bitsandbytes, which is not installed. "
        "Install it: pip install 'softprompt[bitsandbytes]'"
    )


def test_a_configuration_object_loads_as_its_table_does(saved, quantized):
    config = BitsAndBytesConfig(load_in_8bit=True)
    own = load_backbone(
        str(saved("llama")), quantization_config=config, device="cpu", dtype="bfloat16"
    )
    assert digest_weights(own.model) == digest_weights(quantized("llama").model)
