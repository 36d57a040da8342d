"""What can be seen of a trained prompt from the inside."""

from softprompt.evaluate.look.sizes import Moved, Site, moved, sizes
from softprompt.evaluate.look.words import SoftToken, nearest

__all__ = ["Moved", "Site", "SoftToken", "moved", "nearest", "sizes"]
