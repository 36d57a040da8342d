"""Weights of a checkpoint that only its sequence classifier uses, such as BERT's pooler."""

from collections.abc import Mapping

from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from softprompt.backbone.loading import (
    LoadOptions,
    load_or_raise,
    resolve_checkpoint,
    silence_transformers,
)
from softprompt.backbone.model import Backbone
from softprompt.errors import BackboneError


def read_classifier_weights(backbone: Backbone, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Read modules of a backbone's sequence classifier from its checkpoint.

    Args:
        backbone: the backbone that was loaded from the checkpoint.
        names: the modules to read: their names in transformers' class, by the name to return.

    Returns:
        Their tensors in fp32, as ``module.parameter``.

    Raises:
        BackboneError: the checkpoint does not have them, so they would be random.
    """
    checkpoint = resolve_checkpoint(backbone.name, LoadOptions(revision=backbone.revision))
    # Modules of the body are read with it: RoBERTa's classifier has no pooler, but its body does.
    body = f"{backbone.model.base_model_prefix}."
    is_in_body = all(theirs.startswith(body) for theirs in names.values())
    names = {own: theirs.removeprefix(body if is_in_body else "") for own, theirs in names.items()}
    with silence_transformers():
        load = (AutoModel if is_in_body else AutoModelForSequenceClassification).from_pretrained
        model, report = load_or_raise(
            backbone.name,
            lambda: load(
                checkpoint.path,
                use_safetensors=True,
                output_loading_info=True,
                **checkpoint.arguments,
            ),
        )
    missing = [
        key for key in sorted(report["missing_keys"]) if key.startswith(tuple(names.values()))
    ]
    if missing:
        msg = (
            f"the checkpoint of backbone {backbone.name!r} has no {missing[0]}, which the trained "
            "head needs and does not include: where it was trained, it was random and frozen. "
            "Name the checkpoint that it was trained on, or train a new head."
        )
        raise BackboneError(msg)
    state = model.state_dict()
    return {
        f"{own}.{key.removeprefix(f'{theirs}.')}": tensor.float()
        for own, theirs in names.items()
        for key, tensor in state.items()
        if key.startswith(f"{theirs}.")
    }
