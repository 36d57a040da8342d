"""Turn a transformers model into a backbone: freeze it, open the seam, measure it."""

from torch import nn
from transformers import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.backbone import seam
from softprompt.backbone.bloom import open_bloom
from softprompt.backbone.fingerprint import fingerprint
from softprompt.backbone.head import Head
from softprompt.backbone.measure import (
    body_of,
    dry_run,
    layers,
    measure,
    position_table,
    probe_ids,
)
from softprompt.backbone.model import Backbone, Inputs, Kind
from softprompt.errors import BackboneError

_IDS = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"}


def wrap(
    name: str,
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    revision: str | None = None,
    headless: bool = False,
) -> Backbone:
    """Freeze a model, open its seam and read its shapes off a dry forward.

    Args:
        name: what to call it in messages and artifacts.
        model: is changed: frozen, in eval mode, with the seam open.
        kind: which tokens see which.
        revision: the Hub commit, when there is one.
        headless: the checkpoint has no language-model head, so the model's is random.

    Raises:
        BackboneError: its attention sites do not share one shape.
    """
    model.requires_grad_(requires_grad=False)
    model.eval()
    _forget_generation(model)
    mark = fingerprint(body_of(model, kind), tokenizer)
    opened = seam.install(model) or open_bloom(model)
    calls, states = dry_run(model, kind, open_attention=opened)
    shapes = sorted({(site.heads, site.head_size) for site in calls})
    if len(shapes) > 1:
        msg = (
            f"backbone {name!r} has attention layers of different shapes (heads, head size): "
            f"{shapes}. A prefix needs one shape on all layers; this family is not supported yet."
        )
        raise BackboneError(msg)
    blocks = layers(model, kind, calls=calls)
    seam.open_blocks(blocks)
    table = position_table(model, kind)
    if table is not None:
        seam.open_positions(table)
    return Backbone(
        name=name,
        revision=revision,
        model=model,
        tokenizer=tokenizer,
        geometry=measure(model, kind, calls=calls, blocks=blocks, states=states, table=table),
        fingerprint=mark,
        head=None if headless else Head(model),
        site_of=_numbered([site.module for site in calls]),
        block_of=_numbered([block.module for block in blocks]),
        bias_of={site.module: site.bias for site in calls if site.bias is not None},
    )


def _forget_generation(model: PreTrainedModel) -> None:
    """Keep the special ids only: transformers fills whatever is not asked for from this.

    A checkpoint's habits (Qwen's repetition penalty) would change answers behind our back.
    """
    habits = getattr(model, "generation_config", None)  # encoders have none
    if habits is not None:
        kept = {name: value for name, value in habits.to_dict().items() if name in _IDS}
        model.generation_config = GenerationConfig(**kept)


def _numbered(calls: list[nn.Module]) -> dict[nn.Module, tuple[int, ...]]:
    """ALBERT calls one module for many layers, so a module may have several numbers."""
    numbers: dict[nn.Module, tuple[int, ...]] = {}
    for number, module in enumerate(calls):
        numbers[module] = (*numbers.get(module, ()), number)
    return numbers


def example(backbone: Backbone) -> Inputs:
    """A short row that every backbone can run; for proofs and dry runs."""
    return backbone.one_row(probe_ids(backbone.model)[0])
