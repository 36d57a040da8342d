"""Data: rows, splits, templates, tokens, batches, labels."""

from softprompt.data.batch import Batch, Side, collate, like_length
from softprompt.data.labels import check_labels, labels_of
from softprompt.data.pieces import Field, Literal, Mask, Piece, Separator, Soft
from softprompt.data.read import Rows, check_columns, read
from softprompt.data.rows import named
from softprompt.data.split import SHARES, split, subset
from softprompt.data.template import Template, check_fields, parse
from softprompt.data.tokenise import Renderer, Tokenised, renderer

__all__ = [
    "SHARES",
    "Batch",
    "Field",
    "Literal",
    "Mask",
    "Piece",
    "Renderer",
    "Rows",
    "Separator",
    "Side",
    "Soft",
    "Template",
    "Tokenised",
    "check_columns",
    "check_fields",
    "check_labels",
    "collate",
    "labels_of",
    "like_length",
    "named",
    "parse",
    "read",
    "renderer",
    "split",
    "subset",
]
