"""An artifact accepts its own backbone, in any precision, and no other."""

from dataclasses import replace

import pytest
import torch

from softprompt.artifact import Artifact, check_backbone, describe_backbone
from softprompt.errors import ArtifactError


def of(artifact: Artifact, backbone) -> Artifact:
    return replace(
        artifact, manifest=replace(artifact.manifest, backbone=describe_backbone(backbone))
    )


def test_the_manifest_names_the_backbone(backbone):
    bert = backbone("bert")
    assert describe_backbone(bert) == {
        "name": "bert",
        "revision": None,
        "fingerprint": bert.fingerprint,
        "model_type": "bert",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_own_backbone_is_accepted_in_any_precision(new, backbone, dtype):
    artifact = of(new(), backbone("bert"))
    check_backbone(artifact, backbone("bert", dtype))
    # and a quantized copy, whose fingerprint has a word in place of the second hash
    stable, _, _ = backbone("bert").fingerprint.partition("-")
    check_backbone(artifact, replace(backbone("bert"), fingerprint=f"{stable}-quantized"))


def test_another_backbone_is_refused_with_both_names(new, backbone):
    artifact, gpt2 = new(), backbone("gpt2")
    with pytest.raises(ArtifactError) as error:
        check_backbone(artifact, gpt2)
    assert str(error.value) == (
        "the prompt was trained on 'tiny/bert' (bert, revision 0123abc, fingerprint "
        f"0123456789abcdef-fedcba9876543210), but the backbone is 'gpt2' (gpt2, fingerprint "
        f"{gpt2.fingerprint}). A prompt works only on its own backbone: load 'tiny/bert', or train "
        "a prompt on 'gpt2'."
    )


def test_the_same_backbone_after_fine_tuning_is_refused(new, backbone, new_backbone):
    artifact = of(new(), backbone("bert"))
    tuned = new_backbone("bert")
    check_backbone(artifact, tuned)
    model = tuned.model.base_model
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight.neg_()
    from softprompt.backbone.fingerprint import compute_fingerprint

    with pytest.raises(ArtifactError, match="the prompt was trained on 'bert'"):
        check_backbone(
            artifact, replace(tuned, fingerprint=compute_fingerprint(model, tuned.tokenizer))
        )
