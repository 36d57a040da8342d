"""Inspect trained prompts: nearest words, similarity, norms and attention."""

from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
    from softprompt.analysis.attention import (
        AttentionPart,
        AttentionShare,
        compute_attention_shares,
    )
    from softprompt.analysis.attribution import explain_prediction, explain_row
    from softprompt.analysis.explanation import (
        ExplainedWord,
        Explanation,
        ExplanationMethod,
        ScoreKind,
        make_explanation_page,
    )
    from softprompt.analysis.nearest import SoftToken, find_nearest_words
    from softprompt.analysis.norms import (
        Distance,
        LayerNorms,
        compute_layer_norms,
        measure_distance_from_init,
    )
    from softprompt.analysis.plots import draw_attention, draw_similarity
    from softprompt.analysis.pruning import PrunedLength, PruningResult, prune
    from softprompt.analysis.similarity import Similarity, compute_similarity

__all__ = [
    "AttentionPart",
    "AttentionShare",
    "Distance",
    "ExplainedWord",
    "Explanation",
    "ExplanationMethod",
    "LayerNorms",
    "PrunedLength",
    "PruningResult",
    "ScoreKind",
    "Similarity",
    "SoftToken",
    "compute_attention_shares",
    "compute_layer_norms",
    "compute_similarity",
    "draw_attention",
    "draw_similarity",
    "explain_prediction",
    "explain_row",
    "find_nearest_words",
    "make_explanation_page",
    "measure_distance_from_init",
    "prune",
]

__getattr__, __dir__ = gather_lazily(
    __name__,
    {
        "softprompt.analysis.attention": (
            "AttentionPart",
            "AttentionShare",
            "compute_attention_shares",
        ),
        "softprompt.analysis.attribution": ("explain_prediction", "explain_row"),
        "softprompt.analysis.explanation": (
            "ExplainedWord",
            "Explanation",
            "ExplanationMethod",
            "ScoreKind",
            "make_explanation_page",
        ),
        "softprompt.analysis.nearest": ("SoftToken", "find_nearest_words"),
        "softprompt.analysis.norms": (
            "Distance",
            "LayerNorms",
            "compute_layer_norms",
            "measure_distance_from_init",
        ),
        "softprompt.analysis.plots": ("draw_attention", "draw_similarity"),
        "softprompt.analysis.pruning": ("PrunedLength", "PruningResult", "prune"),
        "softprompt.analysis.similarity": ("Similarity", "compute_similarity"),
    },
)
