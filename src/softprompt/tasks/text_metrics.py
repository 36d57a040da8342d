"""Metrics of generated text: pure functions on lists of text.

The libraries are imported where they are used, since each takes about a second to import.
"""

import re
import unicodedata
from collections.abc import Sequence

from softprompt.data.words import UNSPACED_SCRIPTS
from softprompt.tasks.metrics import check_pairs

_WITHOUT_SPACES = re.compile(
    "([" + "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_SCRIPTS) + "])"
)


def compute_generation_metrics(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Metrics of generated text, with one reference for each row.

    Args:
        truth: the references.
        predicted: the generated texts.

    Returns:
        ``exact_match`` (0 to 1), the share of rows that are equal except for surrounding space;
        ``bleu`` and ``chrf`` (0 to 100), of the whole corpus, as sacrebleu counts by default;
        ``rouge1``, ``rouge2`` and ``rougeL`` (0 to 1), F-measures averaged over rows, as
        rouge_score counts without stemming. Each character is a word in scripts that put no spaces
        between words, as sacrebleu counts Chinese, and ROUGE takes letters of every script, of
        which rouge_score takes a to z alone.

    Raises:
        DataError: there are no rows, or not as many texts as references.
    """
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415  # slow to import
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415  # slow to import
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415  # slow to import

    check_pairs(truth, predicted)
    pairs = [*zip(truth, predicted, strict=True)]
    equal = sum(reference.strip() == text.strip() for reference, text in pairs)
    spaced = [[_space_characters(text) for text in texts] for texts in (predicted, truth)]
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_WordTokenizer())
    scored = [rouge.score(reference, text) for reference, text in pairs]
    return {
        "exact_match": equal / len(pairs),
        "bleu": float(BLEU().corpus_score(spaced[0], [spaced[1]]).score),
        "chrf": float(CHRF().corpus_score([*predicted], [[*truth]]).score),
    } | {
        name: sum(float(row[name].fmeasure) for row in scored) / len(scored)
        for name in ("rouge1", "rouge2", "rougeL")
    }


def _space_characters(text: str) -> str:
    """Put spaces around each character of a script that has none between its words."""
    return _WITHOUT_SPACES.sub(r" \1 ", text)


class _WordTokenizer:
    """ROUGE's words: letters, marks and digits of any script; of ASCII, rouge_score's."""

    def tokenize(self, text: str) -> list[str]:
        spaced = _space_characters(text.lower())
        kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in spaced)
        return "".join(kept).split()


def score_chrf(truth: Sequence[str], predicted: Sequence[str]) -> tuple[float, ...]:
    """The similarity of each generated text to its reference: sacrebleu's sentence chrF, 0 to 1.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation".

    Args:
        truth: the references.
        predicted: the generated texts.

    Raises:
        DataError: there are no rows, or not as many texts as references.
    """
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415  # slow to import

    check_pairs(truth, predicted)
    metric = CHRF()
    return tuple(
        round(float(metric.sentence_score(text, [reference]).score) / 100, 6)
        for reference, text in zip(truth, predicted, strict=True)
    )
