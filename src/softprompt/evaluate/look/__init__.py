"""What can be seen of a trained prompt from the inside."""

from softprompt.evaluate.look.attend import Attended, Part, shares
from softprompt.evaluate.look.draw import draw_attention, draw_similarity
from softprompt.evaluate.look.similar import Similarity, similarity
from softprompt.evaluate.look.sizes import Moved, Site, moved, sizes
from softprompt.evaluate.look.words import SoftToken, nearest

__all__ = [
    "Attended",
    "Moved",
    "Part",
    "Similarity",
    "Site",
    "SoftToken",
    "draw_attention",
    "draw_similarity",
    "moved",
    "nearest",
    "shares",
    "similarity",
    "sizes",
]
