"""Small tokenizers, trained when they are needed."""

# The "passwords" of S106 are names of special tokens.
# ruff: noqa: S106

from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "the film is a good film, and its ending is as good as its beginning",
    "a bad film: the plot is thin and nobody in it is worth a word",
    "Review: it was great. It was terrible! Was it good? Yes; no.",
    "user and assistant talk about films <and> numbers 1 2 3 [in] brackets / slashes",
    "tags look <|like|> <|this|> and </that> too",
] * 5


def train_byte_level(
    specials: Sequence[str], *, corpus: Sequence[str] = CORPUS, vocab_size: int = 400
) -> Tokenizer:
    """Byte-level BPE of a corpus."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    return core


def train_unigram(scheme: str, specials: Sequence[str]) -> Tokenizer:
    """Unigram of the corpus; ``scheme`` is the ``prepend_scheme`` of its pre-tokenizer."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return core


def train_prepending(specials: Sequence[str]) -> Tokenizer:
    """BPE of the corpus with Llama 2's normalizer, which puts a space before every text."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    core.normalizer = spaces
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=[*specials], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core


def set_special_tokens(core: Tokenizer, *, single: str, pair: str, specials: Sequence[str]) -> None:
    """Put special tokens around a text and around a pair of texts."""
    core.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, core.token_to_id(token)) for token in specials],
    )
