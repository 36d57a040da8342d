"""Every text family of transformers as a tiny random model, from its own shrunk configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

# The vocabulary of the tokenizer: bytes, special tokens and some English words.
ROWS = 366
BOS, PAD, END, UNKNOWN, MASK = range(5)
LAYERS = 4

# Sound, images and parts of other models: no language model that reads text alone.
NOT_TEXT = {
    "audioflamingo3": "sound",
    "encoder-decoder": "a pair of any two models",
    "fuyu": "images",
    "gemma4_assistant": "a draft model for another model",
    "gemma4_unified_assistant": "a draft model for another model",
    "git": "images",
    "glmasr": "sound",
    "got_ocr2": "images",
    "granite_speech": "sound",
    "granite_speech_plus": "sound",
    "mllama": "images",
    "modernvbert": "images",
    "moshi": "sound",
    "moss_transcribe_diarize": "sound",
    "musicflamingo": "sound",
    "musicgen": "sound",
    "musicgen_melody": "sound",
    "nemo_speechlm": "sound",
    "phi4_multimodal": "images and sound",
    "qwen2_audio": "sound",
    "qwen3_asr": "sound",
    "seamless_m4t": "sound",
    "seamless_m4t_v2": "sound",
    "trocr": "images",
    "ultravbert": "images",
    "vibevoice_asr": "sound",
    "voxtral": "sound",
    "voxtral_realtime": "sound",
    "whisper": "sound",
    "aria_text": "the text part of a model for images",
    "emu3": "images",
}

# Sizes by the name of the setting. Families name the same thing in many ways.
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "n_embed"), 64),
    **dict.fromkeys(("embedding_size", "emb_dim", "word_embed_proj_dim"), 64),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_encoder_layers",
            "num_decoder_layers",
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "attention_head_dim", "d_head"), 16),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "hidden_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_hidden_size",
            "intermediate_dim",
            "d_inner",
            "block_ff_dim",
        ),
        96,
    ),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "src_vocab_size"), ROWS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "moe_layer_start_index"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim",), 12),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_n_groups", "n_groups"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("swa_num_attention_heads", "swa_head_dim"), 4),
    **dict.fromkeys(("mamba_num_heads", "mamba_head_dim"), 8),
    **dict.fromkeys(("entity_emb_size", "router_hidden_size", "hidden_size_global"), 16),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 16),
    "swa_num_key_value_heads": 2,
    "entity_vocab_size": 20,
    "shape_vocab_size": ROWS,
    "pronunciation_vocab_size": ROWS,
    "dim_ff": 96,
    "dff": 96,
    "tgt_vocab_size": ROWS,
    "zero_expert_num": 2,
    "shared_intermediate_size": 32,
    "dense_intermediate_size": 96,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "hidden_size_per_layer_input": 16,
    **dict.fromkeys(("sliding_window", "sliding_window_size", "local_attention"), 8),
    "attention_chunk_size": 64,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
}
SPECIAL = {
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "cls_token_id": BOS,
    "sep_token_id": END,
    "mask_token_id": MASK,
    "decoder_start_token_id": BOS,
}


# With seed 0 a token of GPT-OSS lies between two experts, to the rounding of a sum.
SEEDS = {"gpt_oss": 1}


def list_families() -> list[str]:
    """The model types of all text families that transformers maps to a language model."""
    names = {
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    return sorted(name for name in names if name not in NOT_TEXT and name in CONFIG_MAPPING)


def get_auto_class(name: str) -> type[_BaseAutoModelClass]:
    """The auto class that softprompt loads a family with."""
    if make_config(name).is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return AutoModelForMaskedLM
    return AutoModelForCausalLM


def build(name: str) -> PreTrainedModel:
    """A tiny random model of a family; its weights are large enough to tell results apart."""
    torch.manual_seed(SEEDS.get(name, 0))
    model = get_auto_class(name).from_config(make_config(name), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
            elif not bool(parameter.any()):
                parameter.normal_(0, 0.02)
    return model.eval()


@torch.no_grad()
def run_once(model: PreTrainedModel) -> None:
    """Run a model on a short row, which shows whether its shrunk sizes fit together."""
    ids = torch.arange(60, 69)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :3]
    if not bool(model(**inputs).logits.isfinite().all()):
        msg = "its logits are not finite"
        raise ValueError(msg)


def load_plain(name: str, folder: Path) -> PreTrainedModel:
    """Transformers' own eager model of a folder."""
    model = get_auto_class(name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def make_config(name: str) -> PreTrainedConfig:
    """The shrunk configuration of a family."""
    return _shrink(CONFIG_MAPPING[name], name)


def _shrink(kind: type[PreTrainedConfig], name: str) -> PreTrainedConfig:
    default, parts = kind(), getattr(kind, "sub_configs", {})
    settings = {k: v for k, v in vars(default).items() if k not in parts and k[:1] != "_"}
    values = {k: _shrink_value(k, v) for k, v in settings.items()}
    values = {k: v for k, v in values.items() if v is not None}
    for key in parts:
        if isinstance(getattr(default, key, None), PreTrainedConfig):
            values[key] = _shrink(type(getattr(default, key)), name)
            vars(values[key]).update(OWN.get(name, {}).get(key, {}))
    if "kv_lora_rank" in settings:  # latent attention has keys and values for every head
        values["num_key_value_heads"] = SIZES["num_attention_heads"]
        values |= {"head_dim": SIZES["qk_rope_head_dim"]} if "head_dim" in settings else {}
    values |= {k: v for k, v in OWN.get(name, {}).items() if k in settings}
    if not parts and "bos_token_id" not in values:
        values |= SPECIAL
    return kind(**values)


def _shrink_value(key: str, value: object) -> object:
    """The value of a setting in a tiny model; None for the family's own."""
    if key in SIZES and isinstance(value, int) and not isinstance(value, bool):
        return SIZES[key]
    if key in SPECIAL:
        return SPECIAL[key]
    if "drop" in key and isinstance(value, float):
        return 0.0
    if key in PER_LAYER and isinstance(value, list | tuple):
        return _some_of_each(value)
    return None


PER_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")


def _some_of_each(kinds: Sequence[str]) -> list[str]:
    """As many layers as a tiny model has, of every kind that the family has."""
    distinct = list(dict.fromkeys(kinds))
    return [distinct[at % len(distinct)] for at in range(LAYERS)]


# What the names alone do not settle.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HYBRID = ["linear_attention", "full_attention"] * (LAYERS // 2)
# as all checkpoints
_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
_INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 64,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 100,
}
OWN: dict[str, dict[str, Any]] = {
    "bert-generation": {"is_decoder": True},
    "codegen": {"rotary_dim": 8},
    "deberta": _RELATIVE,
    "deberta-v2": _RELATIVE,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gptj": {"rotary_dim": 8},
    "bailing_hybrid": {"num_expert_group": 1, "topk_group": 1, "layer_group_size": 2},
    "cohere_compass_text": {
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE)
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": _HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots3_note": {
        "num_key_value_heads": 4,
        **dict.fromkeys(("adapter_in_dim", "adapter_input_size", "adapter_out_dim"), 64),
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "esm": {"vocab_size": ROWS},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "intermediate_size": 96,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]], "window_size": 4},
    "hunyuan_v1_dense": {"rope_parameters": _ROPE, "head_dim": 16},
    "hunyuan_v1_moe": {"rope_parameters": _ROPE, "head_dim": 16},
    "ministral": {"head_dim": 16},
    "qwen4_exp": _INDEXED,
    "qwen4_exp_text": _INDEXED,
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": (16, 48), "axial_pos_shape": (8, 16)},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of a few English words, for all families."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 6,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 5, trainer)
    begin, _, end, unknown, mask = specials
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=begin,
        pad_token=specials[PAD],
        eos_token=end,
        unk_token=unknown,
        mask_token=mask,
        cls_token=begin,
        sep_token=end,
    )


CORPUS = [
    "the film is a good film, and its ending is as good as its beginning",
    "a bad film: the plot is thin and nobody in it is worth a word",
    "it was great. It was terrible! Was it good? Yes; no.",
]
