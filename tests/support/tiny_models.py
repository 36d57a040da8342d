"""Tiny random backbones of every family, with a tokenizer of a few English words.

Import it from tests and conftests only: tests/conftest.py must install the check of shapes first.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from softprompt.backbone import Architecture, Backbone, wrap_model
from softprompt.backbone.model import list_dropout_rates
from softprompt.methods import METHODS, MethodSettings
from support.tokenizers import set_special_tokens, train_byte_level

# The tables have more rows than the tokenizer has tokens (bytes, special tokens, English words and
# pieces of words), as in real models.
ROWS = 366
BOS, PAD, END, UNKNOWN, MASK = range(5)
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

_SPECIAL = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD}
_SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_PLAIN = _SIZES | _SPECIAL | {"intermediate_size": 48}
_GROUPED = _PLAIN | {"num_key_value_heads": 2, "head_dim": 10}
_STACKS = {
    "vocab_size": ROWS,
    "d_model": 32,
    "decoder_start_token_id": PAD,
    "eos_token_id": END,
    "pad_token_id": PAD,
}

# Keyword arguments override the sizes here.
MakeConfig = Callable[..., tf.PreTrainedConfig]
ENCODER_CONFIGS: dict[str, MakeConfig] = {
    "bert": partial(tf.BertConfig, **_PLAIN),
    "roberta": partial(tf.RobertaConfig, **_PLAIN),
    "distilbert": partial(
        tf.DistilBertConfig,
        vocab_size=ROWS,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=64,
        pad_token_id=PAD,
    ),
    "electra": partial(tf.ElectraConfig, **_PLAIN, embedding_size=16),
    "albert": partial(tf.AlbertConfig, **_PLAIN, embedding_size=16),
    "modernbert": partial(
        tf.ModernBertConfig,
        **_PLAIN,
        cls_token_id=BOS,
        sep_token_id=END,
        local_attention=8,
        global_attn_every_n_layers=2,
    ),
    "deberta_v2": partial(
        tf.DebertaV2Config,
        **_PLAIN,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
}
CAUSAL_CONFIGS: dict[str, MakeConfig] = {
    "gpt2": partial(
        tf.GPT2Config, vocab_size=ROWS, n_embd=32, n_layer=2, n_head=4, n_positions=64, **_SPECIAL
    ),
    # as OPT-350M: the table and the head are narrower than the layers
    "opt": partial(
        tf.OPTConfig,
        **_SIZES,
        **_SPECIAL,
        ffn_dim=48,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
    ),
    "gpt_neox": partial(tf.GPTNeoXConfig, **_PLAIN),
    "bloom": partial(
        tf.BloomConfig, vocab_size=ROWS, hidden_size=32, n_layer=2, n_head=4, **_SPECIAL
    ),
    "llama": partial(tf.LlamaConfig, **_GROUPED),
    "mistral": partial(tf.MistralConfig, **_GROUPED, sliding_window=8),
    "qwen3": partial(tf.Qwen3Config, **_GROUPED),
    "gemma3": partial(
        tf.Gemma3TextConfig,
        **_GROUPED,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=10,
    ),
    "phi3": partial(
        tf.Phi3Config, **_PLAIN, num_key_value_heads=2, original_max_position_embeddings=64
    ),
}
SEQ2SEQ_CONFIGS: dict[str, MakeConfig] = {
    # as flan-t5-small: heads times their size is not the width
    "t5": partial(
        tf.T5Config,
        **_STACKS,
        d_kv=6,
        num_heads=4,
        num_layers=2,
        d_ff=48,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    ),
    "bart": partial(
        tf.BartConfig,
        **_STACKS,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        bos_token_id=BOS,
    ),
}
# Its attention does not use transformers' interface: no keys and values, no later layers.
REFUSED = "roformer"
FAMILY_CONFIGS = ENCODER_CONFIGS | CAUSAL_CONFIGS | SEQ2SEQ_CONFIGS
CONFIGS = FAMILY_CONFIGS | {REFUSED: partial(tf.RoFormerConfig, **_PLAIN, embedding_size=32)}
FAMILIES, ENCODERS = tuple(FAMILY_CONFIGS), tuple(ENCODER_CONFIGS)
CAUSAL, SEQ2SEQ = tuple(CAUSAL_CONFIGS), tuple(SEQ2SEQ_CONFIGS)
# All of these accept key/value prefixes.
KV = FAMILIES
# Methods small enough for tiny backbones; a method that is not here runs with its own defaults.
SMALL = {
    "p-tuning": {"encoder_hidden_size": 8},
    "prefix-tuning": {"length": 3, "encoder_hidden_size": 8},
    "p-tuning-v2": {"length": 3},
}
SETTINGS: dict[str, MethodSettings] = {
    name: settings(**SMALL.get(name, {})) for name, settings in METHODS.items()
}

# Words that become one token each, with and without a space before them, and words in pieces.
WHOLE = ["the", "a", "it", "was", "good", "great", "bad", "movie", "film", "yes", "no", "fresh"]
PIECES = ["wonderful", "terrible", "goodness", "greatly", "badly", "boring", "funny", "an", "and"]


def kind_of(family: str) -> Architecture:
    if family in SEQ2SEQ:
        return "encoder-decoder"
    return "causal" if family in CAUSAL else "encoder"


def make_tokenizer(kind: Architecture) -> tf.PreTrainedTokenizerFast:
    """A byte-level BPE of a few English words, with the special tokens that the kind has."""
    corpus = [" ".join(WHOLE), *WHOLE] * 100 + PIECES
    core = train_byte_level(SPECIALS, corpus=corpus, vocab_size=ROWS - 6)
    begin, pad, end, unknown, mask = SPECIALS
    names = {"pad_token": pad, "eos_token": end, "unk_token": unknown}
    match kind:
        case "encoder":
            single, pair = f"{begin} $A {end}", f"{begin} $A {end} $B:1 {end}:1"
            names |= {"cls_token": begin, "sep_token": end, "mask_token": mask}
            del names["eos_token"]
        case "causal":
            single, pair = f"{begin} $A", f"{begin} $A {begin} $B:1"
            names |= {"bos_token": begin}
        case "encoder-decoder":
            single, pair = f"$A {end}", f"$A {end} $B {end}"
    set_special_tokens(core, single=single, pair=pair, specials=[begin, end])
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (kind == "encoder")
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=inputs, **names)


def draw_model(auto: type[Any], config: tf.PreTrainedConfig) -> tf.PreTrainedModel:
    """A random model of a configuration, by one of transformers' auto classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
            else:
                # Scales and biases are not all ones and zeros, as in trained models.
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def make_model(
    family: str, *, dtype: torch.dtype = torch.float32, dropout: bool = False
) -> tf.PreTrainedModel:
    """A random model with weights so large that a prompt has a visible effect.

    Dropout is off, as after loading, unless ``dropout`` is True.
    """
    match kind_of(family):
        case "encoder":
            auto = tf.AutoModelForMaskedLM
        case "causal":
            auto = tf.AutoModelForCausalLM
        case "encoder-decoder":
            auto = tf.AutoModelForSeq2SeqLM
    config = CONFIGS[family]()
    if not dropout:
        for key in list_dropout_rates(config):
            setattr(config, key, 0.0)
    return draw_model(auto, config).to(dtype).eval()


def make_backbone(
    family: str, *, dtype: torch.dtype = torch.float32, dropout: bool = False
) -> Backbone:
    kind = kind_of(family)
    model = make_model(family, dtype=dtype, dropout=dropout)
    return wrap_model(family, model, tokenizer=make_tokenizer(kind), kind=kind)


def compute_checksum(backbone: Backbone) -> str:
    """The SHA-256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in backbone.model.state_dict().items():
        digest.update(
            name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def save_checkpoint(folder: Path, family: str, model: tf.PreTrainedModel | None = None) -> Path:
    """Save a tiny model, or another of its family, with its tokenizer as a checkpoint."""
    (model or make_model(family)).save_pretrained(folder)
    make_tokenizer(kind_of(family)).save_pretrained(folder)
    return folder


def tokenize(backbone: Backbone, text: str) -> Tensor:
    """The ids of a text without special tokens."""
    return torch.tensor(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])
