"""The template of a run: the recipe's or the default one, with soft tokens or with words."""

from collections.abc import Iterator, Sequence
from itertools import chain

from softprompt.backbone.model import Backbone
from softprompt.backbone.references import Architecture
from softprompt.data import Literal, SoftTokens, Table, Template, parse_template
from softprompt.data.chat_places import find_chat_places
from softprompt.data.chat_template import make_chat_template
from softprompt.data.table import list_text_columns
from softprompt.data.template import BeginToken
from softprompt.data.tokenizer import list_special_tokens, measure_wrapping
from softprompt.errors import TemplateError
from softprompt.recipe import Recipe
from softprompt.tasks import Choose, Classify, Extract, Generate, Tag, TaskSettings
from softprompt.tasks.config import (
    OPTION_FIELD,
    get_messages_column,
    get_target_column,
    list_row_columns,
)

DEFAULT_SOFT_TOKENS = 20


def make_default_template(table: Table, settings: TaskSettings, *, kind: Architecture) -> str:
    """Join the text columns, one or two, in the data's order; for tags, take the words alone.

    Args:
        table: the training rows.
        settings: of the task, whose target column is left out.
        kind: of the backbone: an encoder takes two texts as a pair.

    Returns:
        The template, without soft tokens.

    Raises:
        TemplateError: there is no text column, or more than two.
    """
    if isinstance(settings, Tag):
        return f"{{{settings.words_column}}}"
    messages = get_messages_column(settings)
    if messages is not None:
        return f"{{{messages}}}"
    target = get_target_column(settings)
    taken = {target, *list_row_columns(settings, ())}
    texts = [name for name in list_text_columns(table) if name not in taken]
    if isinstance(settings, Extract):
        return _make_question_template(settings, texts, kind=kind)
    if len(texts) not in {1, 2}:
        example = f"{{{(texts or ['text'])[0]}}}"
        msg = (
            f"without a template there must be one or two text columns besides {target!r}, but "
            f"there are {len(texts)}: {texts}. Write task.template, such as {example!r}."
        )
        raise TemplateError(msg)
    separator = "{sep}" if kind == "encoder" else "\n"
    if isinstance(settings, Choose) and settings.head is not None:
        # Of a pair of texts and an option, the texts are one.
        text = (" " if kind == "encoder" else "\n").join(f"{{{name}}}" for name in texts)
        return f"{text}{separator}{{{OPTION_FIELD}}}"
    return separator.join(f"{{{name}}}" for name in texts)


def _make_question_template(settings: Extract, texts: Sequence[str], *, kind: Architecture) -> str:
    """The question, then the context; on a causal backbone, something after it."""
    context = settings.context_column
    others = [name for name in texts if name != context]
    question = "question" if "question" in others else others[0] if len(others) == 1 else None
    if question is None or context not in texts:
        msg = (
            f"without a template there must be the text columns {context!r} "
            f"(task.context_column) and 'question', or one other, but there are {texts}. Write "
            f"task.template, such as '{{question}}{{sep}}{{{context}}}'."
        )
        raise TemplateError(msg)
    if kind == "encoder":
        return f"{{{question}}}{{sep}}{{{context}}}"
    return f"Question: {{{question}}}\nText: {{{context}}}\nAnswer:"


def make_soft_template(recipe: Recipe, table: Table, *, kind: Architecture) -> Template:
    """Return the default template, with soft tokens in front where the method trains them.

    Raises:
        TemplateError: there is no text column, or more than two.
    """
    text = make_default_template(table, recipe.task_settings, kind=kind)
    soft = (
        f"{{soft:{DEFAULT_SOFT_TOKENS}}}" if recipe.method_settings.prompt_kind == "input" else ""
    )
    return parse_template(soft + text)


def make_hard_template(recipe: Recipe, template: str) -> str:
    """Replace soft tokens by the text of their initialization.

    Args:
        recipe: whose method may be initialized from a text; otherwise soft tokens are left out.
        template: with or without soft tokens.

    Returns:
        The template without soft tokens: that of the hard prompt.
    """
    init = recipe.method.init
    words = init.text if init is not None and init.source == "text" else None
    return parse_template(template).replace_soft_tokens(words or "")


def resolve_hard_template(recipe: Recipe, table: Table, *, kind: Architecture) -> Template:
    """Return the recipe's or the default template, with words in place of soft tokens.

    Args:
        recipe: of the prompt that the hard prompt is compared with.
        table: the training rows.
        kind: of the backbone.

    Raises:
        TemplateError: the template cannot be read, or there is none and no default.
    """
    text = recipe.task_settings.template
    if text is None:
        return parse_template(make_default_template(table, recipe.task_settings, kind=kind))
    return parse_template(make_hard_template(recipe, text))


def check_soft_tokens(template: Template, method: str, *, soft: bool) -> None:
    """Check that the template has soft tokens if the method trains them, and none otherwise.

    Args:
        template: to check.
        method: its name, for messages.
        soft: whether the method trains soft tokens.

    Raises:
        TemplateError: they are missing, or there are some.
    """
    if soft and not template.soft_length:
        msg = (
            f"the template has no soft tokens, but {method} trains them. Write {{soft:10}} at "
            "their place."
        )
        raise TemplateError(msg)
    if template.soft_length and not soft:
        msg = (
            f"the template has {template.soft_length} soft tokens, but {method} trains keys and "
            "values instead. Remove {soft:N}, and set method.length."
        )
        raise TemplateError(msg)


def find_template_slips(
    template: Template, settings: TaskSettings, *, backbone: Backbone
) -> Iterator[str]:
    """Find what a template has twice in every row, which is possible but rarely meant.

    Args:
        template: with or without soft tokens.
        settings: of the task.
        backbone: whose tokenizer adds special tokens.

    Yields:
        A message for a special token that the tokenizer adds anyway, and for a space before
        answers that begin with one.
    """
    if isinstance(settings, Classify | Generate) and settings.messages_column is not None:
        yield from _find_chat_slips(template, settings, backbone)
        return
    yield from _find_added_tokens(template, backbone)
    if isinstance(settings, Tag):
        yield from _find_left_tags(template, settings, backbone)
        return
    last = template.pieces[-1]
    causal = backbone.geometry.architecture == "causal"
    if not (causal and isinstance(last, Literal) and last.text.endswith(" ")):
        return
    answer = "each answer"
    if isinstance(settings, Classify):
        words = chain.from_iterable(settings.list_words().values())
        spaced = next((word for word in words if word.startswith(" ")), None)
        if spaced is None:
            return
        answer = f"the label word {spaced!r}"
    yield (
        f"the template ends in a space, and {answer} begins with one, so there are two. Remove the "
        "space at the end of the template."
    )


def _find_chat_slips(
    template: Template, settings: Classify | Generate, backbone: Backbone
) -> Iterator[str]:
    """What the chat template adds or lacks, and text that is in no turn."""
    column = settings.messages_column or ""
    places = find_chat_places(template, column)
    chat = make_chat_template(backbone.tokenizer, settings.chat_template_kwargs)
    yield from chat.describe(column=column, has_system=places.has_system)
    if places.has_loose_text:
        yield (
            f"the template has text before {{{column}}}, which is in no turn of the conversation. "
            f"Write {{{column}:system}} behind that text, and it is in the system turn."
        )


def _find_left_tags(template: Template, settings: Tag, backbone: Backbone) -> Iterator[str]:
    """Tags that are read where a causal backbone has not seen the words that follow."""
    column, family = settings.words_column, backbone.geometry.model_type
    if backbone.geometry.architecture == "causal" and template.field_places.count(column) == 1:
        yield (
            f"{family} is a causal backbone, so a word's tag is read where only the words before "
            "it are known. Choose an encoder, or write the words twice in task.template, such as "
            f"'{{{column}}}\n{{{column}}}': tags are read at the last place."
        )


def _find_added_tokens(template: Template, backbone: Backbone) -> Iterator[str]:
    """Special tokens at the edges of the template that the tokenizer adds there too."""
    pieces = [p for p in template.pieces if not isinstance(p, SoftTokens | BeginToken)]
    specials = list_special_tokens(backbone.tokenizer)
    added = measure_wrapping(backbone.tokenizer, pair=template.pair).ids
    edges = [("begins", pieces[:1], added[0], str.startswith)]
    if backbone.geometry.architecture != "causal":
        edges.append(("ends", pieces[-1:], added[-1], str.endswith))
    for verb, edge, ids, has in edges:
        texts = [piece.text.strip() for piece in edge if isinstance(piece, Literal)]
        written = [name for text in texts for name in specials if has(text, name)]
        name = max(written, key=len, default="")
        if name and specials[name].id in ids:
            yield (
                f"the template {verb} with {name!r}, which the tokenizer adds anyway, so every row "
                "has it twice. Remove it from the template."
            )
