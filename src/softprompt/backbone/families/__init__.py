"""Model families whose attention does not use transformers' interface, one module each."""

from transformers.modeling_utils import PreTrainedModel

from softprompt.backbone.families.bloom import hook_bloom
from softprompt.backbone.families.deberta import hook_deberta
from softprompt.backbone.families.falcon import hook_falcon
from softprompt.backbone.families.gptj import hook_gptj
from softprompt.backbone.families.mpt import hook_mpt


def hook_family(model: PreTrainedModel) -> bool:
    """Install the hook for attention if the model is of one of these; return whether it is."""
    families = hook_bloom, hook_deberta, hook_falcon, hook_gptj, hook_mpt
    return any(hook(model) for hook in families)
