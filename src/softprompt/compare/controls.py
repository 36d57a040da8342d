"""Controls: what a trained prompt must beat, or its number means nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.backbone.model import Backbone
from softprompt.compare.protocol import Control, Row
from softprompt.data import parse
from softprompt.evaluate import predict
from softprompt.recipe import Recipe
from softprompt.tasks import Classify, Task, bind


@dataclass(frozen=True)
class Majority:
    """The commonest answer of the training rows.

    Args:
        answer: that one.
    """

    answer: str

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The same for every row."""
        return [self.answer] * len(rows)


@dataclass(frozen=True, eq=False)
class Untrained:
    """A task without a prompt.

    Args:
        task: whose template has no soft tokens.
    """

    task: Task

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The backbone's own answers."""
        examples = [self.task.example(row, target=False) for row in rows]
        found = dict(predict(self.task, examples, prompt=None))
        return [found[at].label for at in range(len(rows))]


def controls_of(
    recipe: Recipe,
    backbone: Backbone,
    *,
    template: str,
    train: Sequence[str],
    labels: Sequence[str],
) -> dict[str, Control]:
    """The controls that there are for a recipe.

    The hard prompt is the template with the words that the soft tokens start from in their place.
    A trained head has none: untrained it would be random.

    Args:
        template: as used.
        train: the right answers of the training rows.
        labels: that are chosen from; none for free text.
    """
    found: dict[str, Control] = {"majority": Majority(Counter(train).most_common(1)[0][0])}
    settings = recipe.task_settings
    if isinstance(settings, Classify) and settings.verbalizer is None:
        return found
    start = recipe.method.initialise
    words = start.text if start is not None and start.source == "text" else None
    text = parse(template).with_words(words or "")
    task = bind(
        settings, backbone, template=text, labels=tuple(labels), max_length=recipe.data.max_length
    )
    return found | {"hard prompt": Untrained(task)}
