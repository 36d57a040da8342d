"""How long a row may be, beside a prompt that takes positions without being among its tokens."""

from softprompt.backbone.model import Geometry
from softprompt.errors import TemplateError
from softprompt.methods import PrefixTuning, PTuningV2
from softprompt.recipe.sections import Recipe


def longest_row(recipe: Recipe, geometry: Geometry) -> int | None:
    """The most tokens of a row; None for all positions that the backbone has.

    Keys and values with ``shifted`` take the first P positions of an absolute numbering.

    Raises:
        TemplateError: none is left.
    """
    own, positions = recipe.data.max_length, geometry.positions
    match recipe.method_settings:
        case (PrefixTuning(shifted=True) | PTuningV2(shifted=True)) as method if positions:
            left = positions - method.length
            if left < 1:
                msg = (
                    f"method.shifted gives the first {method.length} positions to the prompt, but "
                    f"the backbone has {positions}, so none is left for a row. Lower method.length "
                    f"to less than {positions}, or leave method.shifted out."
                )
                raise TemplateError(msg)
            return left if own is None else min(own, left)
        case _:
            return own
