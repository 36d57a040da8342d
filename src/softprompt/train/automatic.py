"""From a file to a judged prompt: the recipe is drafted, and its run chooses what is open in it."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from softprompt.data.readers import AS_IT_SEEMS, TextFormat
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.model import PromptModel
from softprompt.recipe import Recipe, load_recipe
from softprompt.recipe.drafting import RecipeDraft, draft_recipe
from softprompt.recipe.held_out import HeldOut
from softprompt.train.api import train_recipe
from softprompt.train.display import ProgressOption
from softprompt.train.events import Callback
from softprompt.train.run_dir import find_free_dir


def fit_data(  # noqa: PLR0913  # options of a user, as for `fit`
    data: str | Path,
    folder: str | Path | None = None,
    *,
    backbone: str | None = None,
    text_format: TextFormat = AS_IT_SEEMS,
    seeds: int = 1,
    callbacks: Sequence[Callback] = (),
    progress: ProgressOption = "auto",
) -> PromptModel | Ensemble:
    """Train a prompt for a file of labelled text, and judge it, as ``softprompt fit`` does.

    The columns, the task and the splits are guessed from the data. The run chooses the readout, the
    learning rate and its length by validation rows, or by folds where the rows are few; keeps a
    plain head without a prompt where no prompt is better; and compares the one that it keeps with
    cheap baselines on the test rows.

    Args:
        data: a file, or a data set as a recipe names it.
        folder: of the run, which gets the recipe as run, the artifact and ``metrics.json`` with the
            verdict; a new one. None: the first free one of ``runs/NAME``, ``runs/NAME-2``, …
        backbone: Hub id, folder, .gguf file or ``builtin:`` name. None: MiniLM, or SmolLM2-135M to
            write text.
        text_format: how the file is written, where it is text.
        seeds: how often a prompt is trained, each time with another seed. Of several the best by
            validation rows is kept; where rows validate in folds, or are too few for that, an
            ensemble of all.
        callbacks: called with every event of the run.
        progress: as in `train_recipe`.

    Returns:
        What the run keeps, ready to predict. An interrupted run is resumed by
        ``train_recipe(read_recipe(folder / "recipe.toml"), folder, resume=True)``, or by
        ``softprompt resume``.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
        KeyboardInterrupt: the run was stopped, and can be resumed.

    Examples:
        ```python
        model = fit_data("reviews.csv", "runs/reviews")
        print(model.predict(["A tender and quietly devastating film."]))
        ```

        >>> fit_data("nosuch.csv")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        softprompt.errors.DataError: there is no file nosuch.csv ...
    """
    _, recipe = draft_run(data, backbone=backbone, text_format=text_format, seeds=seeds)
    chosen = choose_run_folder(data) if folder is None else Path(folder)
    return train_recipe(recipe, chosen, callbacks=callbacks, progress=progress)


def draft_run(
    data: str | Path,
    changes: Sequence[str] = (),
    *,
    backbone: str | None = None,
    text_format: TextFormat = AS_IT_SEEMS,
    seeds: int = 1,
) -> tuple[RecipeDraft, Recipe]:
    """Draft the recipe of `fit_data`.

    Args:
        data: as for `fit_data`.
        changes: of the recipe.
        backbone: as for `fit_data`.
        text_format: how the file is written, where it is text.
        seeds: as for `fit_data`.

    Returns:
        The draft with its notes, and the recipe.

    Raises:
        SoftpromptError: the data cannot be read, no task fits it, or a change is not possible.
    """
    draft = draft_recipe(data, backbone=backbone, text_format=text_format, automatic=True)
    return draft, load_recipe(
        tomllib.loads(draft.text), [*_choose_seeds(draft.held_out, seeds), *changes]
    )


def _choose_seeds(held_out: HeldOut, seeds: int) -> list[str]:
    """The changes of a recipe for several seeds; few rows are not a basis to choose one by."""
    kept = "best" if held_out.validation_rows or seeds == 1 else "ensemble"
    return [f"train.seeds={seeds}", f"train.combine_seeds={kept}"]


def choose_run_folder(data: str | Path) -> Path:
    """The first free folder in ``runs`` for a file or data set.

    Args:
        data: its name.
    """
    stem = Path(str(data)).name.partition(".")[0]
    name = re.sub(r"[^\w-]+", "-", stem.removeprefix("builtin:")).strip("-")
    return find_free_dir(name or "run", root=Path("runs"))
