"""Inspect trained prompts: nearest words, similarity, norms and attention."""

from softprompt.analysis.attention import AttentionPart, AttentionShare, compute_attention_shares
from softprompt.analysis.nearest import SoftToken, find_nearest_words
from softprompt.analysis.norms import (
    Distance,
    LayerNorms,
    compute_layer_norms,
    measure_distance_from_init,
)
from softprompt.analysis.plots import draw_attention, draw_similarity
from softprompt.analysis.similarity import Similarity, compute_similarity

__all__ = [
    "AttentionPart",
    "AttentionShare",
    "Distance",
    "LayerNorms",
    "Similarity",
    "SoftToken",
    "compute_attention_shares",
    "compute_layer_norms",
    "compute_similarity",
    "draw_attention",
    "draw_similarity",
    "find_nearest_words",
    "measure_distance_from_init",
]
