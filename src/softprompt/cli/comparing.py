"""A comparison as the terminal runs it: each arm in a folder of its own, on the same rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path

from softprompt.backbone.model import Backbone
from softprompt.cli.say import note
from softprompt.cli.stop import Stop
from softprompt.compare import (
    Control,
    Failed,
    Outcome,
    Protocol,
    Summary,
    Trained,
    compare,
    controls_of,
    markdown,
    method_arms,
    search,
    summaries,
)
from softprompt.compare.outcome import Event as Compared
from softprompt.data import Rows as Table
from softprompt.errors import DataError, RecipeError
from softprompt.methods import METHODS
from softprompt.recipe import Recipe
from softprompt.recipe.sections import Limit
from softprompt.train import Event, RunFolder, Trainer, prepare, train
from softprompt.train.best import score_of
from softprompt.train.order import Order
from softprompt.train.prepare import fitting_template, open_section
from softprompt.train.rows import check_tables, find_labels, read_splits, target_column
from softprompt.train.settings import resolve


def compared(
    base: Recipe,
    folder: Path,
    *,
    methods: Sequence[str],
    seeds: int,
    trial: tuple[tuple[float, ...], float],
) -> tuple[list[Summary], list[Failed]]:
    """Run what is missing of a comparison, say how it goes, and write its report.

    Args:
        folder: of the comparison.
        methods: none for all.
        seeds: how many.
        trial: factors of the learning rate, and the share of the steps that each is tried for.

    Returns:
        What came of the arms, and which of them failed.
    """
    arms = method_arms(_whole(base), methods or [*METHODS])
    tables = _begun(base, folder, needed=("validation", "test"))
    test, target = tables["test"].to_list(), target_column(base.task_settings)
    protocol = Protocol(seeds, *trial, test=test, target=target)
    events = []
    with _running(base, folder, tables) as runs:
        beside = _controls(base, runs.backbone, tables["train"])
        path = folder / "outcomes.jsonl"
        for event in compare(arms, beside, protocol=protocol, run=runs, path=path):
            note(_said(event))
            events.append(event)
    found = summaries([event for event in events if isinstance(event, Outcome)])
    (folder / "report.md").write_text(markdown(found) + "\n", encoding="utf-8")
    return found, [event for event in events if isinstance(event, Failed)]


def searched(
    base: Recipe, folder: Path, *, factors: Sequence[float], share: float
) -> dict[float, Trained]:
    """Run what is missing of a search for a rate.

    Args:
        folder: of the search.
        factors: of the recipe's rate, or of its method's default.
        share: of the steps, for each.
    """
    tables = _begun(base, folder, needed=("validation",))
    with _running(base, folder, tables) as runs:
        return search(_whole(base), base.method.name, factors=factors, share=share, run=runs)


class Runs:
    """Trains recipes; a run that was stopped goes on.

    Args:
        backbone: of all of them.
        tables: the training and validation rows; no test rows, so that none can be looked at.
        folder: of the runs.
        watch: told every event.
    """

    def __init__(
        self,
        backbone: Backbone,
        tables: Mapping[str, Table],
        *,
        folder: Path,
        watch: Callable[[Event, Trainer], None],
    ) -> None:
        self.backbone, self._tables = backbone, tables
        self._folder, self._watch = folder, watch

    def __call__(self, recipe: Recipe, name: str, *, share: float, factor: float) -> Trained:
        """Train with a share of the steps and a multiple of the learning rate."""
        prepared = prepare(recipe, backbone=self.backbone, tables=self._tables)
        rate = prepared.training.learning_rate * factor
        changed: dict[str, float] = {"learning_rate": rate}
        if share < 1:
            lengths = [e.length for e in prepared.rows["train"].examples]
            changed["steps"] = ceil(share * Order(lengths, prepared.training).steps())
        section = recipe.train.model_copy(update=changed)
        recipe = recipe.model_copy(update={"train": section})
        prepared = replace(prepared, recipe=recipe, training=resolve(recipe, prepared.usual))
        run = RunFolder(self._folder / name)
        model = train(
            recipe,
            run.path,
            watch=self._watch,
            resume=(run.path / "recipe.toml").exists(),
            prepared=prepared,
        )
        numbers = run.metrics() or {}
        validation = numbers["validation"]
        *_, last = run.events()
        return Trained(
            model=model,
            score=score_of(validation, select=section.select, step=numbers["best_step"]),
            validation=validation,
            rate=rate,
            trainable=numbers["trainable_parameters"],
            size=sum(file.stat().st_size for file in run.artifact.iterdir()),
            seconds=float(last["seconds"]),
            steps=numbers["steps"],
        )


def _whole(recipe: Recipe) -> Recipe:
    """The recipe without what chooses rows: they are chosen once, for all arms and seeds."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": Limit()})})


def _begun(base: Recipe, folder: Path, *, needed: Sequence[str]) -> dict[str, Table]:
    """The rows by split, checked, of what is begun or gone on with in a folder."""
    _remember(base, folder)
    tables = read_splits(base.data, seed=base.seed)
    _check_splits(tables, needed=needed)
    settings = base.task_settings
    check_tables(tables, settings, labels=find_labels(settings, tables["train"]))
    return tables


@contextmanager
def _running(base: Recipe, folder: Path, tables: Mapping[str, Table]) -> Iterator[Runs]:
    """Runs on one backbone, without the test rows, that Ctrl-C stops between two steps."""
    note("loading the backbone …")
    backbone = open_section(base.backbone)
    seen = {name: table for name, table in tables.items() if name != "test"}
    with Stop() as stop:
        yield Runs(backbone, seen, folder=folder, watch=lambda _event, _trainer: stop.heed())


def _remember(recipe: Recipe, folder: Path) -> None:
    """What was begun with a recipe goes on with it."""
    kept = RunFolder(folder)
    if not (folder / "recipe.toml").exists():
        kept.begin(recipe)
    elif kept.recipe() != recipe:
        fault = (
            f"what is in {folder} was begun with another recipe. Put that back, or name another "
            "folder with --output."
        )
        raise RecipeError([fault])


def _check_splits(tables: Mapping[str, Table], *, needed: Sequence[str]) -> None:
    lacking = [name for name in needed if name not in tables]
    if lacking:
        msg = (
            f"there are no {' and '.join(lacking)} rows, but prompts are chosen by validation rows "
            "and compared by test rows. Name both in [data], or leave both out, to be split off."
        )
        raise DataError(msg)


def _controls(base: Recipe, backbone: Backbone, table: Table) -> dict[str, Control]:
    settings = base.task_settings
    return controls_of(
        base,
        backbone,
        template=fitting_template(base, backbone, table=table).text,
        train=[str(answer) for answer in table[target_column(settings)]],
        labels=find_labels(settings, table),
    )


def _said(event: Compared) -> str:
    match event:
        case Outcome(seed=None):
            return f"{event.arm}: {event.accuracy:.1%} right"
        case Outcome():
            right, seconds = f"{event.accuracy:.1%} right", f"{event.seconds:.0f} s"
            return f"{event.arm}, seed {event.seed}: {right}, {seconds}"
        case Failed():
            return f"{event.arm} failed, the others go on: {event.error}"
        case _:
            tried = ", ".join(f"{f:g}: {s:.4f}" for f, s in event.scores.items())
            return f"{event.arm}: learning rate times {event.factor:g}" + (tried and f" ({tried})")
