"""Adapters of PEFT for token classification: their files are read, and run as transformers would.

PEFT itself cannot run them (its forward pass fails with soft prompts), so that transformers' own
token classifier is the oracle, with the soft tokens among its input embeddings.
"""

import copy
import json

import pytest
import torch
import transformers as tf
from torch import nn
from torch.testing import assert_close

from softprompt import Tag, load_backbone
from softprompt.errors import ArtifactError
from softprompt.interop.convert import export_prompt, import_prompts

peft = pytest.importorskip("peft")

pytestmark = [
    # of transformers, about names that PEFT still uses
    pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning"),
]

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH, LABELS = 4, ["O", "B-A", "I-A"]
TEXT = "the movie was great"


@pytest.fixture
def adapter(plain, drawn, tokenizer, tmp_path):
    """A random token classifier with soft tokens, as PEFT saves it."""

    def make(family: str):
        config = copy.deepcopy(plain(family).config)
        config.num_labels = len(LABELS)
        model = drawn(tf.AutoModelForTokenClassification, config).eval()
        model.save_pretrained(tmp_path / "base")
        tokenizer("encoder").save_pretrained(tmp_path / "base")
        sizes = {"token_dim": 32, "num_attention_heads": 4, "num_layers": 2}
        settings = peft.PromptTuningConfig(
            task_type="TOKEN_CLS", num_virtual_tokens=LENGTH, **sizes
        )
        theirs = peft.get_peft_model(model, settings).eval()
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                nn.init.normal_(parameter, std=0.5)
        theirs.save_pretrained(tmp_path / "adapter")
        return theirs, load_backbone(str(tmp_path / "base"), dtype=torch.float32, device="cpu")

    return make


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_an_adapter_for_tags_is_read(adapter, tmp_path, family) -> None:
    theirs, own = adapter(family)
    found = import_prompts("peft", tmp_path / "adapter", backbone=own, labels=LABELS)[""]
    assert found.artifact.manifest.task["kind"] == "tag"
    assert found.artifact.manifest.task["scheme"] == "BIO"
    ids = own.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    model = theirs.base_model
    with torch.no_grad():
        soft = theirs.get_prompt(batch_size=1)
        embedded = torch.cat([soft, model.get_input_embeddings()(ids)], dim=1)
        wanted = model(inputs_embeds=embedded).logits[0, LENGTH:]
        (states,) = found.task.compute_row_states([found.render(TEXT)], [found.prompt])
        scores = found.task.head(states.float())
    (example,) = [found.render(TEXT)]
    (positions,) = example.read_positions
    assert_close(scores, wanted[[at - LENGTH for at in positions]], **CLOSE)
    assert len(found.predict(TEXT)[0].tags) == 4
    with pytest.raises(ArtifactError, match="PEFT cannot run prompts for tags of words"):
        export_prompt("peft", found, output=tmp_path / "out")


def test_an_adapter_without_its_head_is_refused(adapter, tmp_path) -> None:
    _, own = adapter("bert")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"task_type": "FEATURE_EXTRACTION"}
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="also holds"):
        import_prompts("peft", tmp_path / "adapter", backbone=own, task=Tag())
