"""The controls of a comparison that are not trained with steps, made when they are needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from softprompt.backbone.model import Backbone
from softprompt.cli.say import note
from softprompt.compare import Control, Reader, Untrained, fit_probe, hard_template, majority
from softprompt.data import Rows as Table
from softprompt.recipe import Recipe
from softprompt.tasks import Classify, Room, bind
from softprompt.train.prepare import default_template
from softprompt.train.rows import find_labels, target_column

_NONE = {
    "hard-prompt": "A trained head answers, which would be random without training.",
    "linear-probe": "Text is written, and there are no labels to tell apart.",
}


@dataclass(frozen=True, eq=False)
class Beside:
    """The controls that are not trained with steps.

    Args:
        base: the recipe.
        backbone: that answers.
        tables: rows by split.
    """

    base: Recipe
    backbone: Backbone
    tables: Mapping[str, Table]

    def named(self, names: Sequence[str]) -> dict[str, Callable[[], Control]]:
        """Those that there are for the recipe, of the ones that are wanted.

        A trained head has no hard prompt: untrained it would be random. Free text has no probe.
        """
        settings = self.base.task_settings
        headed = isinstance(settings, Classify) and settings.verbalizer is None
        labels = find_labels(settings, self.tables["train"])
        made: dict[str, Callable[[], Control]] = {"majority": self._majority}
        if not headed:
            made["hard-prompt"] = self._hard_prompt
        if labels:
            made["linear-probe"] = self._probe
        for name in (name for name in names if name not in made):
            note(f"{name}: none here. {_NONE[name]}")
        return {name: make for name, make in made.items() if name in names}

    @property
    def _target(self) -> str:
        return target_column(self.base.task_settings)

    @property
    def _template(self) -> str:
        settings, table = self.base.task_settings, self.tables["train"]
        kind = self.backbone.geometry.kind
        text = settings.template or default_template(table, settings, kind=kind)
        return hard_template(self.base, text)

    def _majority(self) -> Control:
        return majority([str(answer) for answer in self.tables["train"][self._target]])

    def _hard_prompt(self) -> Control:
        settings = self.base.task_settings
        task = bind(
            settings,
            self.backbone,
            template=self._template,
            labels=find_labels(settings, self.tables["train"]),
            room=Room(self.base.data.max_length),
        )
        return Untrained(task)

    def _probe(self) -> Control:
        began = perf_counter()
        reader = Reader(self.backbone, self._template, self.base.data.max_length)
        train, held = (self.tables[name].to_list() for name in ("train", "validation"))
        probe = fit_probe(reader, train=train, validation=held, target=self._target)
        seconds = round(perf_counter() - began, 1)
        return replace(probe, cost=replace(probe.cost, seconds=seconds))
