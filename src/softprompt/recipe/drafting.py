"""Draft a commented recipe for a table; columns, splits and template depend on the data."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import assert_never

import tomli_w

from softprompt.backbone import Architecture
from softprompt.data import parse_template
from softprompt.data.readers import AS_IT_SEEMS, TextFormat
from softprompt.data.sources import read_source
from softprompt.errors import DataError
from softprompt.recipe.column_roles import ColumnRoles, guess_columns
from softprompt.recipe.drafted_backbones import (
    DEFAULT_BACKBONE,
    BackboneInfo,
    inspect_backbone,
    name_file,
)
from softprompt.recipe.held_out import HeldOut, choose_held_out, prepare_rows
from softprompt.recipe.message_columns import (
    check_chat,
    describe_conversations,
    draft_chat_template,
    list_chat_keys,
)
from softprompt.recipe.option_columns import draft_option_template, list_option_keys
from softprompt.recipe.values import check_names_writable
from softprompt.tasks.config import OPTION_FIELD

ENCODER = "builtin:minilm"
# Fewer validation rows choose by the loss.
FEWEST_JUDGES = 100

_MAX_LABEL_WORDS = 20
_WORD = re.compile(r"[^\W\d_][\w' -]{0,39}")
_COMMENT_COLUMN = 44

# What may choose the best prompt, by kind of task and whether a row has any number of labels.
_METRICS = {
    ("classify", False): "accuracy, macro_f1",
    ("classify", True): "micro_f1, macro_f1, samples_f1",
    ("regress", False): "pearson, spearman, r2",
    ("generate", False): "exact_match, chrf, rougeL",
    ("tag", False): "span_f1, span_macro_f1, tag_accuracy",
    ("extract", False): "f1, exact_match",
    ("choose", False): "accuracy",
}


_BY = ("classify", "tag", "choose")
_KINDS = {
    "classify": "choose one label",
    "regress": "predict numbers",
    "generate": "write text",
    "tag": "a tag for each word",
    "extract": "answer by a part of a text",
    "choose": "choose one of a row's own options",
}
# What new names of labels are for, and those of options.
_MAPS = ("joins labels that differ in spaces only", "options are counted from 0")
# What becomes of longer rows, and of longer contexts.
_BEYOND = ("text beyond is cut", "longer contexts are divided into windows")


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
        verb = "by" if self.columns.kind in _BY else "to"
        return f"RecipeDraft({texts} {verb} {self.columns.label!r}, {self.columns.rows:,} rows)"


def draft_recipe(
    data: str | Path,
    *,
    backbone: str | None = None,
    directory: str | Path = ".",
    text_format: TextFormat = AS_IT_SEEMS,
    automatic: bool = False,
) -> RecipeDraft:
    r"""Write a commented recipe for labelled text, which can be run as it stands.

    The columns of text and labels are guessed from their names and values. If there are no labels,
    but a column of text with a name such as ``summary``, the recipe's task is to write it. Files
    such as ``validation.csv`` and ``test.csv`` next to a ``train.csv`` are used; where there are
    none, rows are split off.

    Args:
        data: the training data: a file, or a data set as a recipe names it.
        backbone: Hub id, folder, .gguf file or ``builtin:`` name. One that cannot be loaded is
            assumed to be a causal language model, which a note says. None: SmolLM2-135M, or for an
            automatic recipe with labels, and for tags and answers that are parts of a text, MiniLM,
            which is an eighth of its size.
        directory: in which the recipe will be saved; files are named relative to it.
        text_format: how the files of text are written, which the recipe gets too.
        automatic: whether the recipe is that of ``softprompt fit``: prefixes in every layer, with
            a rate, a length and a readout that the run chooses, few rows in folds, and a plain
            head where no prompt is better.

    Returns:
        The text of the recipe, and the guesses that it was made of.

    Raises:
        DataError: the data cannot be read, no column can be the label or the text, or no task or
            not this backbone fits.
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
    table = read_source(source, text_format=text_format)
    columns = describe_conversations(table, source) or guess_columns(table, source)
    table = prepare_rows(table, columns, where=source)
    held_out = choose_held_out(
        table, source, columns=columns, text_format=text_format, automatic=automatic
    )
    if backbone is None:
        backbone = _choose_backbone(columns, automatic=automatic)
    info, backbone_notes = inspect_backbone(folder, backbone)
    _check_backbone(info.kind, backbone, columns)
    if columns.is_chat:
        check_chat(info, backbone)
    notes = [*held_out.notes, *columns.notes, *backbone_notes]
    if columns.group is not None and "validation" not in held_out.files:
        notes.append(f"rows may belong together by {columns.group!r}: see group_by in the recipe")
    text = _write_recipe(
        columns,
        held_out,
        files={
            name: name_file(folder, path)
            for name, path in {"train": source, **held_out.files}.items()
        },
        backbone=info,
        text_format=text_format,
        automatic=automatic,
    )
    check_names_writable(text)
    return RecipeDraft(text, columns, held_out, (*notes,))


def _check_backbone(kind: Architecture, name: str, columns: ColumnRoles) -> None:
    """Check that a backbone can do the task.

    Raises:
        DataError: it cannot write text, or has no head for tags.
    """
    if kind == "encoder" and not columns.has_head:
        msg = (
            f"{columns.notes[0]}. But {name} is an encoder, which cannot write text. Choose "
            "another backbone by --backbone."
        )
        raise DataError(msg)
    if kind == "encoder-decoder" and columns.kind == "tag":
        msg = (
            f"{columns.notes[0]}. But {name} answers in words, so it has no head for tags. "
            "Choose an encoder by --backbone."
        )
        raise DataError(msg)


def _choose_backbone(columns: ColumnRoles, *, automatic: bool) -> str:
    """An encoder where a head is trained without being asked for, and for parts of a text."""
    # A language model knows much of which option fits before it is trained.
    is_read = automatic and columns.has_head and columns.kind != "choose"
    sees_both_sides = columns.kind in {"tag", "extract"} or is_read
    return ENCODER if sees_both_sides else DEFAULT_BACKBONE


def _write_recipe(
    columns: ColumnRoles,
    held_out: HeldOut,
    *,
    files: Mapping[str, str],
    backbone: BackboneInfo,
    text_format: TextFormat,
    automatic: bool,
) -> str:
    """The text of a recipe; the files of all splits are named as the recipe names them."""
    source, others = files["train"], {n: path for n, path in files.items() if n != "train"}
    words = draft_verbalizer(columns.labels, backbone) if columns.labels else None
    verb = "by" if columns.kind in _BY else "to"
    parts = [
        _make_comment(
            f"{source}: {columns.rows:,} rows, "
            + (
                f"conversations in {columns.label}."
                if columns.is_chat
                else f"{' and '.join(columns.texts)} {verb} {columns.label}."
            )
        ),
        f"# Written by softprompt {'fit' if automatic else 'init'}; every line may be changed.\n",
        _format_key("seed", held_out.seed, "decides everything random"),
        "\n[backbone]",
        _format_key("name", backbone.name, "Hub id, folder, .gguf file or builtin: name"),
        _format_key("dtype", "auto", "bfloat16 where the machine computes in it"),
        "\n[data]",
        _format_key("train", source, "files are named relative to this one"),
        *_write_text_format(text_format),
        *_write_splits(columns, held_out, others),
        _format_key("max_length", 512, f"tokens of a row; {_BEYOND[columns.kind == 'extract']}"),
        "\n[task]",
        *(
            _write_automatic(columns, backbone, words, held_out=held_out)
            if automatic
            else _write_usual(columns, backbone, words)
        ),
    ]
    return "\n".join(parts) + "\n"


def _write_usual(
    columns: ColumnRoles, backbone: BackboneInfo, words: Mapping[str, str] | None
) -> Iterator[str]:
    """Task, method and training of a recipe to be changed."""
    template = draft_template(columns, backbone)
    is_deep = columns.kind == "tag" and backbone.takes_prefixes
    yield from _write_task(
        columns, template.replace("{soft:10}", "" if is_deep else "{soft:10}"), words
    )
    yield "\n[method]"
    if is_deep:
        yield from _write_deep_prefixes()
    else:
        yield _format_key(
            "name", "prompt-tuning", "or p-tuning; prefix-tuning and p-tuning-v2 without {soft:N}"
        )
        yield _write_init(columns, has_label_words=words is not None)
    metrics = _METRICS[columns.kind, columns.multi_label]
    yield from _write_train("tag_accuracy, tag_macro_f1" if columns.scheme == "none" else metrics)


def _write_automatic(
    columns: ColumnRoles,
    backbone: BackboneInfo,
    words: Mapping[str, str] | None,
    *,
    held_out: HeldOut,
) -> Iterator[str]:
    """Task, method and training of a recipe in which the run chooses."""
    template = draft_template(columns, backbone)
    if backbone.takes_prefixes:
        template = template.replace("{soft:10}", "")
    yield from _write_task(columns, template, words)
    has_one_label = columns.kind == "classify" and not columns.multi_label
    if has_one_label and held_out.validation_rows:
        yield _format_key("temperature", "auto", "of probabilities; validation rows choose it")
    yield "\n[method]"
    if backbone.takes_prefixes:
        yield from _write_deep_prefixes()
    else:
        yield _format_key("name", "prompt-tuning", "this backbone takes no keys and values")
        yield _write_init(columns, has_label_words=words is not None)
    yield "\n[train]"
    yield _format_key("learning_rate", "auto", "short runs choose it before the first step")
    yield _format_key("epochs", "auto", "by the number of rows")
    if (metric := _choose_metric(columns, held_out)) != "loss":
        yield _format_key("best_metric", metric, "what chooses the best step")
    yield _format_key("batch_size", 32, "rows of one step")
    if columns.kind in {"classify", "regress"} and backbone.kind != "encoder-decoder":
        yield _format_key("keep_plain_head", True, "where no prompt is better")  # noqa: FBT003  # a value


def _choose_metric(columns: ColumnRoles, held_out: HeldOut) -> str:
    """What chooses the best step: where one answer is right, how often it is given.

    The loss would choose an earlier one: it grows with the confidence of wrong answers, which a
    temperature repairs afterwards. Of few rows accuracies are too coarse (docs/decisions/0015).
    """
    if held_out.validation_rows < FEWEST_JUDGES or columns.multi_label:
        return "loss"
    if columns.kind == "tag":
        return "tag_accuracy" if columns.scheme == "none" else "span_f1"
    return "accuracy" if columns.kind in {"classify", "choose"} else "loss"


def _write_deep_prefixes() -> Iterator[str]:
    yield _format_key("name", "p-tuning-v2", "keys and values in every layer")
    yield _format_key("length", 20, "soft tokens")


def draft_template(columns: ColumnRoles, backbone: BackboneInfo) -> str:
    """What a row looks like to this kind of backbone."""
    if columns.is_chat:
        return draft_chat_template(columns.label, backbone)
    if columns.options is not None:
        has_head = backbone.kind == "encoder"
        return draft_option_template(columns.texts, columns.options, has_head=has_head)
    if columns.kind == "tag":
        words = f"{{{columns.texts[0]}}}"
        return "{soft:10}" + (f"{words}\n{words}" if backbone.kind == "causal" else words)
    match backbone.kind:
        case "encoder":
            return "{soft:10}" + "{sep}".join(f"{{{name}}}" for name in columns.texts)
        case "causal" | "encoder-decoder":
            if columns.kind == "extract":
                question, context = columns.texts
                return f"{{soft:10}}Question: {{{question}}}\nText: {{{context}}}\nAnswer:"
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


def _write_text_format(text_format: TextFormat) -> Iterator[str]:
    comments = {
        "separator": "between the cells of a line",
        "encoding": "of all files of text",
        "header": "whether the first line has the names of the columns",
    }
    for key, value in asdict(text_format).items():
        if value is not None:
            yield _format_key(key, value, comments[key])


def _write_task(
    columns: ColumnRoles, template: str, words: Mapping[str, str] | None
) -> Iterator[str]:
    comment = "any number of labels" if columns.multi_label else _KINDS[columns.kind]
    yield _format_key("kind", columns.kind, comment)
    yield _format_key("template", template, "{soft:N} are the trained tokens")
    match columns.kind:
        case "classify":
            yield _format_key("label_column", columns.label, "the label to predict")
            if columns.multi_label:
                yield _format_key("multi_label", True, "a list, or labels with | between them")  # noqa: FBT003  # a value
                yield _format_key("thresholds", "auto", "validation rows choose them")
            yield from _write_readout(words, template)
        case "regress":
            yield _format_key("target_column", columns.label, "the number to predict")
            yield from _write_readout(words, template)
        case "generate" if columns.is_chat:
            yield from (_format_key(*key) for key in list_chat_keys(columns))
        case "generate":
            yield _format_key("target_column", columns.label, "the text to write")
            yield _format_key("max_new_tokens", columns.max_new_tokens, "longer answers are cut")
        case "tag":
            yield _format_key("words_column", columns.texts[0], "lists of words, or texts")
            yield _format_key("target_column", columns.label, "their tags, or spans of characters")
            yield _format_key("scheme", columns.scheme, "how tags say where spans begin and end")
            yield _format_key("head", "linear", "a trained layer on each word's hidden state")
            yield "# aggregation = 'first'  # or average, max, simple: of words of several tokens"
        case "extract":
            yield _format_key("context_column", columns.texts[1], "the text that has the answer")
            yield _format_key("target_column", columns.label, "the answers, with their places")
            yield _format_key("null_threshold", "auto", "validation rows choose it")
            yield _format_key("head", "linear", "a trained layer on the tokens of the context")
        case "choose":
            has_head = OPTION_FIELD in parse_template(template).fields
            keys = columns.options and list_option_keys(columns.options, has_head=has_head)
            yield from (_format_key(*key) for key in keys or ())
        case _:
            assert_never(columns.kind)


def _write_splits(
    columns: ColumnRoles, held_out: HeldOut, files: Mapping[str, str]
) -> Iterator[str]:
    comments = {"validation": "chooses the best prompt", "test": "looked at once, at the end"}
    for name, path in files.items():
        yield _format_key(name, path, comments[name])
    if columns.gaps:
        yield _format_key("drop_missing", [*columns.gaps], "rows without a value are left out")
    if columns.value_map:
        value_map = {columns.label: dict(columns.value_map)}
        yield _format_inline("value_map", value_map, _MAPS[columns.kind == "choose"])
    if held_out.folds is not None:
        yield _format_key("folds", held_out.folds, "each row validates once")
    if "validation" not in files:
        shares = ", ".join(f"{name} = {share:g}" for name, share in held_out.shares.items())
        yield _add_comment(
            f"split_sizes = {{ {shares} }}", "how the rows are split, where no file is named"
        )
        yield '# validation = "validation.jsonl"  # or name files of their own'
        if columns.group is not None:
            line = _format_key("group_by", columns.group, "keeps its rows together, in one split")
            yield f"# {line}"


def _write_readout(words: Mapping[str, str] | None, template: str) -> Iterator[str]:
    if words is None:
        yield _format_key(
            "head", "linear", "a trained layer on the last hidden states; or mlp-tanh"
        )
        comment = "it reads the last token, which alone sees all soft tokens"
        if parse_template(template).starts_with_soft:
            comment = "a probe chooses what it reads, before training; or cls, mean, max, last"
        yield _format_key("pooling", "auto", comment)
        return
    yield "\n[task.verbalizer]  # each label's word, with the space that stands before it"
    for label, word in words.items():
        yield _format_key(label, word, f"for rows labelled {label}")


def _write_init(columns: ColumnRoles, *, has_label_words: bool) -> str:
    if has_label_words:
        return _add_comment('init = { from = "labels" }', "the soft tokens start as label words")
    if columns.is_chat:
        init = 'init = { from = "text", text = "You are a helpful assistant." }'
        return _add_comment(init, "the soft tokens start as this")
    text = f"Classify the {' and the '.join(columns.texts)} by {columns.label}."
    if columns.kind != "classify":
        verbs = {"generate": "Write", "regress": "Estimate", "choose": "Choose"}
        verb = verbs.get(columns.kind, "Find")
        text = f"{verb} the {columns.label} of the {' and the '.join(columns.texts)}."
    value = tomli_w.dumps({"text": text}).strip()
    return _add_comment(f'init = {{ from = "text", {value} }}', "the soft tokens start as this")


def _write_train(metrics: str) -> Iterator[str]:
    yield "\n[train]"
    yield _format_key("epochs", 5, "how often every row is seen")
    yield _format_key("batch_size", 32, "rows of one step")
    yield _format_key("best_metric", "loss", f"what chooses the best prompt; or {metrics}")
    yield "# learning_rate = 0.01  # left out, the method's own; check shows it and its source"
    yield "# early_stopping_patience = 2  # stop after so many validations without a better one"


def _make_title(name: str, default: str) -> str:
    """A column's name as a word of a template."""
    title = " ".join(re.findall(r"\w+", name.replace("_", " ")))
    return title[:1].upper() + title[1:] if title else default


def _format_key(key: str, value: object, comment: str) -> str:
    return _add_comment(tomli_w.dumps({key: value}).strip(), comment)


def _format_inline(key: str, value: Mapping[str, Mapping[str, str]], comment: str) -> str:
    """A table of tables on one line."""
    (column, names), *_ = value.items()
    pairs = ", ".join(tomli_w.dumps({k: v}).strip() for k, v in names.items())
    name = tomli_w.dumps({column: 0}).partition(" = ")[0]
    return _add_comment(f"{key} = {{ {name} = {{ {pairs} }} }}", comment)


def _add_comment(text: str, comment: str) -> str:
    return f"{text:<{_COMMENT_COLUMN}}  {_make_comment(comment)}"


def _make_comment(text: str) -> str:
    """A comment, which must not contain control characters in TOML."""
    return "# " + "".join(c if c.isprintable() else " " for c in text)
