"""The template of a run: the recipe's or the default one, with soft tokens or with words."""

from softprompt.backbone.model import Architecture
from softprompt.data import Table, Template, parse_template
from softprompt.errors import TemplateError
from softprompt.recipe import Recipe
from softprompt.tasks import TaskSettings
from softprompt.train.datasets import get_target_column

DEFAULT_SOFT_TOKENS = 20


def make_default_template(table: Table, settings: TaskSettings, *, kind: Architecture) -> str:
    """Join the text columns, one or two, in the data's order.

    Args:
        table: the training rows.
        settings: of the task, whose target column is left out.
        kind: of the backbone: an encoder takes two texts as a pair.

    Returns:
        The template, without soft tokens.

    Raises:
        TemplateError: there is no text column, or more than two.
    """
    target = get_target_column(settings)
    texts = [
        name
        for name in table.column_names
        if name != target and "string" in {*str(table.data.schema.field(name).type).split("_")}
    ]
    if len(texts) not in {1, 2}:
        example = f"{{{(texts or ['text'])[0]}}}"
        msg = (
            f"without a template there must be one or two text columns besides {target!r}, but "
            f"there are {len(texts)}: {texts}. Write task.template, such as {example!r}."
        )
        raise TemplateError(msg)
    separator = "{sep}" if kind == "encoder" else "\n"
    return separator.join(f"{{{name}}}" for name in texts)


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
