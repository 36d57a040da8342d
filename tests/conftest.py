"""Tiny random backbones of every family, and shapes checked at run time.

Ask for a backbone by its family: ``def test_x(backbone): backbone("llama")``. A test that names an
argument ``family``, ``causal``, ``encoder``, ``seq2seq``, ``writer``, ``kv``, ``baked``, ``shape``
or ``method`` is run for each of them; with ``family`` and ``method`` (or ``shape``, or ``side``),
for each pair that goes together. ``plain("llama")`` is the same model as transformers made it, for
an oracle.
"""
# ruff: noqa: E402  # the hook must stand before what it changes is imported

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from jaxtyping import install_import_hook

# Before any of them is imported: shapes in signatures are checked in the tests alone.
_CHECKED = ("prompt", "backbone", "injection", "initialise", "methods", "data", "tasks")
install_import_hook([f"softprompt.{name}" for name in _CHECKED], "beartype.beartype")

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from softprompt.backbone import Backbone, Inputs, Kind, cache_folder, wrap
from softprompt.backbone.model import dropout_rates
from softprompt.methods import METHODS, MethodSettings
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

# Bytes, the special tokens and some English words and pieces of words; the tables have rows to
# spare, as real ones do.
ROWS = 366
BOS, PAD, END, UNKNOWN, MASK = range(5)
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

_PLAIN = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2, "head_dim": 10}
_SPECIAL = {k: v for k, v in _PLAIN.items() if k.endswith("_token_id")}
_STACKS = {
    "vocab_size": ROWS,
    "d_model": 32,
    "decoder_start_token_id": PAD,
    "eos_token_id": END,
    "pad_token_id": PAD,
}

Make = Callable[[], tf.PreTrainedConfig]
ENCODER_CONFIGS: dict[str, Make] = {
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
CAUSAL_CONFIGS: dict[str, Make] = {
    "gpt2": partial(
        tf.GPT2Config, vocab_size=ROWS, n_embd=32, n_layer=2, n_head=4, n_positions=64, **_SPECIAL
    ),
    # as OPT-350M: the table and the head are narrower than the layers
    "opt": partial(
        tf.OPTConfig,
        vocab_size=ROWS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        **_SPECIAL,
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
SEQ2SEQ_CONFIGS: dict[str, Make] = {
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
CONFIGS = ENCODER_CONFIGS | CAUSAL_CONFIGS | SEQ2SEQ_CONFIGS
FAMILIES, ENCODERS = tuple(CONFIGS), tuple(ENCODER_CONFIGS)
CAUSAL, SEQ2SEQ = tuple(CAUSAL_CONFIGS), tuple(SEQ2SEQ_CONFIGS)
# families whose attention keys and values can enter
KV = tuple(name for name in FAMILIES if name != "deberta_v2")
# Methods small enough for tiny backbones; a method that is not here runs with its own defaults.
SMALL = {
    "p-tuning": {"hidden_size": 8},
    "prefix-tuning": {"length": 3, "hidden_size": 8},
    "p-tuning-v2": {"length": 3},
}
SETTINGS: dict[str, MethodSettings] = {
    name: made(**SMALL.get(name, {})) for name, made in METHODS.items()
}
# families whose head can be baked
BAKED = CAUSAL
# BART counts positions from the first column, padding or not, and takes no others.
LEFT = tuple(name for name in FAMILIES if name != "bart")
# "late" is an input prompt that enters at the second layer
OF_SHAPE = {"input": FAMILIES, "kv": KV, "late": KV}
# A sliding window's cache forgets where the soft tokens stood that enter late.
OF_WRITER = OF_SHAPE | {"late": tuple(f for f in KV if f not in {"mistral", "gemma3"})}
OF_SIDE = {"none": FAMILIES, "right": FAMILIES, "left": LEFT}
PAIRS = {
    ("method", "family"): [(m, f) for m, s in SETTINGS.items() for f in OF_SHAPE[s.shape]],
    ("shape", "family"): [(shape, f) for shape, names in OF_SHAPE.items() for f in names],
    ("shape", "writer"): [
        (shape, f) for shape, names in OF_WRITER.items() for f in names if f not in ENCODERS
    ],
    ("shape", "causal"): [
        (shape, f) for shape, names in OF_WRITER.items() for f in names if f in CAUSAL
    ],
    ("side", "family"): [(side, f) for side, names in OF_SIDE.items() for f in names],
}

# Words that become one token each, with and without a space before them, and words in pieces.
WHOLE = ["the", "a", "it", "was", "good", "great", "bad", "movie", "film", "yes", "no", "fresh"]
PIECES = ["wonderful", "terrible", "goodness", "greatly", "badly", "boring", "funny", "an", "and"]

_BY_ARGUMENT = {
    "family": FAMILIES,
    "causal": CAUSAL,
    "encoder": ENCODERS,
    "seq2seq": SEQ2SEQ,
    "writer": (*CAUSAL, *SEQ2SEQ),
    "kv": KV,
    "baked": BAKED,
    "shape": tuple(OF_SHAPE),
    "side": tuple(OF_SIDE),
    "method": tuple(SETTINGS),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked = [name for name in _BY_ARGUMENT if name in metafunc.fixturenames]
    given = {
        name.strip()
        for mark in metafunc.definition.iter_markers("parametrize")
        for name in (mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0])
    }
    free = [name for name in asked if name not in given]
    for names, pairs in PAIRS.items():
        if {*names} <= {*free}:
            metafunc.parametrize(names, pairs)
            free = [name for name in free if name not in names]
    for name in free:
        metafunc.parametrize(name, _BY_ARGUMENT[name])


def kind_of(family: str) -> Kind:
    if family in SEQ2SEQ:
        return "encoder-decoder"
    return "causal" if family in CAUSAL else "encoder"


def make_tokenizer(kind: Kind) -> tf.PreTrainedTokenizerFast:
    """A byte-level BPE of a few English words, with the special tokens that the kind has."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 6,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WHOLE), *WHOLE] * 100 + PIECES, trainer)
    begin, pad, end, unknown, mask = SPECIALS
    names = {"pad_token": pad, "eos_token": end, "unk_token": unknown}
    ids = [(begin, BOS), (end, END)]
    match kind:
        case "encoder":
            core.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A {end}",
                pair=f"{begin} $A {end} $B:1 {end}:1",
                special_tokens=ids,
            )
            names |= {"cls_token": begin, "sep_token": end, "mask_token": mask}
            del names["eos_token"]
        case "causal":
            core.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A", pair=f"{begin} $A {begin} $B:1", special_tokens=ids
            )
            names |= {"bos_token": begin}
        case "encoder-decoder":
            core.post_processor = processors.TemplateProcessing(
                single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=ids
            )
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
                # Scales and biases as trained ones are: not all ones and zeros.
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def make_model(
    family: str, *, dtype: torch.dtype = torch.float32, dropout: bool = False
) -> tf.PreTrainedModel:
    """A random model whose weights are large enough for effects to show.

    Without dropout, as loading leaves it, unless asked.
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
        for key in dropout_rates(config):
            setattr(config, key, 0.0)
    return draw_model(auto, config).to(dtype).eval()


def make_backbone(
    family: str, *, dtype: torch.dtype = torch.float32, dropout: bool = False
) -> Backbone:
    kind = kind_of(family)
    model = make_model(family, dtype=dtype, dropout=dropout)
    return wrap(family, model, tokenizer=make_tokenizer(kind), kind=kind)


def checksum(backbone: Backbone) -> str:
    """Of every bit of every parameter and buffer."""
    whole = hashlib.sha256()
    for name, tensor in backbone.model.state_dict().items():
        whole.update(
            name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return whole.hexdigest()


@pytest.fixture(scope="session")
def backbone() -> Iterator[Callable[..., Backbone]]:
    """Backbones by family, each made once; that no test changes one is checked at the end."""
    made: dict[tuple[str, torch.dtype], tuple[Backbone, str]] = {}

    def get(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
        if (family, dtype) not in made:
            new = make_backbone(family, dtype=dtype)
            made[family, dtype] = new, checksum(new)
        return made[family, dtype][0]

    yield get
    changed = [key for key, (value, before) in made.items() if checksum(value) != before]
    assert not changed, f"a test changed the weights of {changed}"


@pytest.fixture(scope="session")
def plain() -> Callable[[str], tf.PreTrainedModel]:
    """Models by family with the backbones' weights, as transformers made them: no seam."""
    return cache(make_model)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from the user's cache, or written there."""
    with pytest.MonkeyPatch.context() as patch:
        own, users = tmp_path_factory.mktemp("cache"), cache_folder() / "gguf"
        users.mkdir(parents=True, exist_ok=True)
        (own / "gguf").symlink_to(users)  # but for converted models, which take long to make
        patch.setenv("SOFTPROMPT_CACHE", str(own))
        yield


@pytest.fixture
def new_model() -> Callable[..., tf.PreTrainedModel]:
    """Models of one's own, to spoil, by family."""
    return make_model


@pytest.fixture(scope="session")
def drawn() -> Callable[..., tf.PreTrainedModel]:
    """Random models of configurations of one's own."""
    return draw_model


@pytest.fixture
def new_backbone() -> Callable[..., Backbone]:
    """Backbones of one's own, to spoil, by family."""
    return make_backbone


@pytest.fixture(scope="session")
def tokenizer() -> Callable[[Kind], tf.PreTrainedTokenizerFast]:
    """The small tokenizer in the form that a kind of backbone has."""
    return make_tokenizer


@pytest.fixture
def settings() -> dict[str, MethodSettings]:
    """Small settings of every method."""
    return SETTINGS


@pytest.fixture
def families() -> tuple[str, ...]:
    """All of them, for a test that cannot be run for each."""
    return FAMILIES


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model with its tokenizer as a checkpoint."""

    def save(family: str, model: tf.PreTrainedModel | None = None) -> Path:
        folder = tmp_path / family
        (model or make_model(family)).save_pretrained(folder)
        make_tokenizer(kind_of(family)).save_pretrained(folder)
        return folder

    return save


@dataclass(frozen=True)
class Maker:
    """Inputs and prompts for one backbone, drawn from a seed."""

    backbone: Backbone
    seed: int = 0

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    @property
    def decodes(self) -> bool:
        return self.backbone.geometry.kind == "encoder-decoder"

    def words(self, *size: int) -> Tensor:
        """Ids of ordinary tokens."""
        return torch.randint(
            len(SPECIALS), len(self.backbone.tokenizer), size, generator=self.generator
        )

    def soft(self, count: int, *, first: int = 0) -> Tensor:
        """The ids of soft tokens."""
        return torch.arange(first, first + count) + self.backbone.geometry.vocabulary

    def batch(self, *rows: Tensor, side: str = "right", extra: int = 0) -> Inputs:
        """Rows padded to the longest and ``extra`` more; the decoder is always fed the same."""
        width = max(len(row) for row in rows) + extra
        ids = torch.full((len(rows), width), PAD)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):
            at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[b, at], mask[b, at] = row, 1
        decoder = torch.tensor([[PAD, 40, 50, 60]] * len(rows)) if self.decodes else None
        return Inputs(ids, mask, decoder_ids=decoder)

    def input_prompt(self, length: int = 3) -> InputPrompt:
        """Vectors at the scale of the table; those of another length begin otherwise."""
        geometry = self.backbone.geometry
        generator = torch.Generator().manual_seed(100 * self.seed + length)
        noise = torch.randn(length, geometry.embedding_size, generator=generator)
        return InputPrompt(noise * geometry.embedding_rms)

    def late_prompt(self, length: int = 3, *, layer: int = 1) -> InputPrompt:
        """Vectors that enter at a later layer, at the scale of its states."""
        generator = torch.Generator().manual_seed(100 * self.seed + length)
        noise = torch.randn(length, self.backbone.geometry.block_size, generator=generator)
        return InputPrompt(noise * 2, layer)

    def prompt(self, shape: str, length: int = 3) -> Prompt:
        match shape:
            case "input":
                return self.input_prompt(length)
            case "late":
                return self.late_prompt(length)
            case _:
                return self.prefix(length)

    def rows(self, shape: str, *lengths: int, length: int = 3) -> list[Tensor]:
        """Rows of words; for an input prompt all of its soft tokens stand behind the first."""
        rows = [Maker(self.backbone, self.seed + 1 + b).words(n) for b, n in enumerate(lengths)]
        if shape != "kv":
            for row in rows:
                row[1 : 1 + length] = self.soft(length)
        return rows

    def prefix(
        self, length: int = 3, *, layers: tuple[int, ...] | None = None, shifted: bool = False
    ) -> KVPrefix:
        geometry = self.backbone.geometry
        layers = tuple(range(geometry.sites)) if layers is None else layers
        size = (len(layers), geometry.heads, length, geometry.head_size)
        generator = torch.Generator().manual_seed(100 * self.seed + length)
        keys, values = (torch.randn(size, generator=generator) for _ in range(2))
        return KVPrefix(keys, values, layers, shifted=shifted)


@pytest.fixture
def maker(backbone) -> Callable[..., Maker]:
    """Inputs and prompts for a family."""
    return lambda family, seed=0: Maker(backbone(family), seed)
