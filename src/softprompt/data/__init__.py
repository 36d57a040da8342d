"""Data: rows, labels, splits, templates, token ids and batches."""

from softprompt.data.collate import Batch, Side, collate, group_by_length
from softprompt.data.inputs import Row, RowsLike, as_row, iterate_rows, to_table
from softprompt.data.labels import check_choices, check_labels, collect_labels
from softprompt.data.loading import (
    DataConfig,
    MaxRows,
    SplitSizes,
    TaskColumns,
    digest_rows,
    read_splits,
)
from softprompt.data.readers import TextFormat
from softprompt.data.rendering import RenderedRow, Renderer, make_renderer
from softprompt.data.sources import read_data, read_source
from softprompt.data.splits import DEFAULT_SPLIT, sample, split_rows
from softprompt.data.table import Table, check_columns, map_values
from softprompt.data.template import (
    Field,
    Literal,
    MaskToken,
    Piece,
    Separator,
    SoftTokens,
    Template,
    check_fields,
    parse_template,
)
from softprompt.data.windows import FieldToken, Window, WindowRenderer, make_window_renderer

__all__ = [
    "DEFAULT_SPLIT",
    "Batch",
    "DataConfig",
    "Field",
    "FieldToken",
    "Literal",
    "MaskToken",
    "MaxRows",
    "Piece",
    "RenderedRow",
    "Renderer",
    "Row",
    "RowsLike",
    "Separator",
    "Side",
    "SoftTokens",
    "SplitSizes",
    "Table",
    "TaskColumns",
    "Template",
    "TextFormat",
    "Window",
    "WindowRenderer",
    "as_row",
    "check_choices",
    "check_columns",
    "check_fields",
    "check_labels",
    "collate",
    "collect_labels",
    "digest_rows",
    "group_by_length",
    "iterate_rows",
    "make_renderer",
    "make_window_renderer",
    "map_values",
    "parse_template",
    "read_data",
    "read_source",
    "read_splits",
    "sample",
    "split_rows",
    "to_table",
]
