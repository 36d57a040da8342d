"""Arguments and options that several commands share."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from softprompt.inference import Ensemble, PromptModel

# The names of options before 0.1.0, and their names now.
RENAMED_OPTIONS = {
    "--share": "--search-fraction",
    "--rates": "--lr-multipliers",
    "--seconds": "--time-budget",
    "--controls": "--baselines",
    "--address": "--ray-address",
}

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file; init writes one.")
]
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="The folder of an artifact or of a run.")
]
PromptBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone", metavar="NAME", help="The prompt's backbone, if it is in another place now."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting; may be repeated."),
]
AnswerChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="task.KEY=VALUE",
        help="Change how answers are read, such as task.thresholds=0.3; may be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
BestSoFar = Annotated[
    bool, typer.Option("--best", help="Use the best prompt so far of a run that is not finished.")
]
CellSeparator = Annotated[
    str | None, typer.Option(help="The character between the cells of a csv file.")
]
TextEncoding = Annotated[
    str | None, typer.Option(help="The encoding of a file of text, such as cp1252.")
]
HasHeader = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header", help="Whether the first line has the names of the columns."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows per batch.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show only warnings and results, no progress.")
]
LrMultipliers = Annotated[
    str, typer.Option(help="Multiples of the learning rate to search; 1 for no search.")
]
SearchFraction = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Fraction of the steps for each multiple.")
]
ComparisonFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A recipe or a comparison file.")
]
Methods = Annotated[str | None, typer.Option(help="Methods, separated by commas (default: all).")]
BaselineNames = Annotated[
    str | None,
    typer.Option(help="Baselines, separated by commas, or none (default: all)."),
]
NumSeeds = Annotated[int | None, typer.Option(min=1, help="Seeds per variant (default 5).")]
FitSeeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        min=1,
        help="Train with so many seeds; the best is kept, of few rows an ensemble of all.",
    ),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        help="Seconds of training steps per run, instead of the recipe's number of steps.",
    ),
]
MaybeLrMultipliers = Annotated[
    str | None,
    typer.Option(
        help="Multiples of the learning rate to search; 1 for no search (default 0.3,1,3)."
    ),
]
MaybeSearchFraction = Annotated[
    float | None,
    typer.Option(min=0.01, max=1.0, help="Fraction of the steps for each multiple (default 0.1)."),
]
ComparisonFolder = Annotated[
    Path | None, typer.Option("--output", help="The output folder (default runs/NAME-compared).")
]
EngineOption = Annotated[
    str, typer.Option("--engine", help="Where to run: local, or ray for a Ray cluster.")
]
CpusPerRun = Annotated[
    int | None, typer.Option(min=1, help="CPUs per run on the Ray cluster (default 1).")
]
GpusPerRun = Annotated[
    float | None, typer.Option(min=0, help="GPUs per run, may be a fraction (default 0).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of the cluster's head (default RAY_ADDRESS, or this machine)."),
]


class Command(TyperCommand):
    """A command that refuses the old name of an option and gives the new one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # a private class
        """Parse the arguments; the old name of an option is an error."""
        known = {name for parameter in self.params for name in parameter.opts}
        for argument in takewhile(lambda argument: argument != "--", args):
            old = argument.partition("=")[0]
            new = RENAMED_OPTIONS.get(old)
            if new in known:
                ctx.fail(f"{old}: renamed to {new}. Write that.")
        return super().parse_args(ctx, args)


def load_prompt(
    path: Path, *, backbone: str | None, best: bool, changes: Sequence[str] = ()
) -> "PromptModel | Ensemble":
    """The prompt of an artifact or a run, or the ensemble that it holds.

    With ``--best`` also of a run that is not finished.

    Args:
        path: of the artifact or the run.
        backbone: of ``--backbone``; None for the recorded place.
        best: whether ``--best`` is given. Only then training is imported, which takes a second.
        changes: of ``--set``.
    """
    model: PromptModel | Ensemble
    if best:
        from softprompt.train.best import load_best_prompt

        model = load_best_prompt(path, backbone=backbone)
    else:
        from softprompt.inference import load_model

        model = load_model(path, backbone=backbone)
    return _change_answers(model, changes) if changes else model


def _change_answers(
    model: "PromptModel | Ensemble", changes: Sequence[str]
) -> "PromptModel | Ensemble":
    """The prompt with the settings of ``--set``.

    Raises:
        PromptError: it is an ensemble, or a setting cannot be changed.
    """
    from softprompt.errors import PromptError
    from softprompt.inference import PromptModel
    from softprompt.recipe.loading import read_answer_settings

    if not isinstance(model, PromptModel):
        msg = "--set changes the settings of one prompt, and this is an ensemble. Name a member."
        raise PromptError(msg)
    return model.with_task(**read_answer_settings(changes))


def parse_multipliers(text: str) -> tuple[float, ...]:
    """The numbers of ``--lr-multipliers``.

    Raises:
        BadParameter: they are not distinct positive numbers.
    """
    from softprompt.compare.config import are_valid_multipliers

    try:
        multipliers = tuple(float(part) for part in text.split(","))
    except ValueError:
        multipliers = ()
    if not are_valid_multipliers(multipliers):
        msg = (
            f"--lr-multipliers {text!r} are not distinct positive numbers. Use 0.3,1,3, for "
            "example."
        )
        raise typer.BadParameter(msg)
    return multipliers
