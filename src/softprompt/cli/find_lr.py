"""``softprompt find-lr``: the short search for a learning rate alone."""

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import AsJson, Changes, Rates, Recipe, Share, factors
from softprompt.cli.say import FAILED, aligned, fail, note, print_json


def find_lr(
    recipe: Recipe,
    changes: Changes = None,
    rates: Rates = "0.03,0.1,0.3,1,3,10",
    share: Share = 0.1,
    output: Annotated[
        Path | None, typer.Option("--output", help="The search's folder; runs/NAME-rates.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try learning rates for a few steps each, and say which to take."""
    from softprompt.cli.comparing import searched
    from softprompt.compare import best_of, draw_rates
    from softprompt.recipe import read_recipe
    from softprompt.tasks import Classify

    base = read_recipe(recipe, changes or ())
    folder = output or Path("runs") / f"{recipe.stem}-rates"
    try:
        found = searched(base, folder, factors=factors(rates), share=share)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on where it was", status=FAILED)
    best, picture = best_of(found), folder / "rates.png"
    draw_rates(found, picture, select=base.train.select, best=best, title=recipe.stem)
    names = list(dict.fromkeys(("loss", base.train.select)))
    tried = sorted(found.values(), key=lambda trained: trained.rate)
    if as_json:
        listed = [{"rate": t.rate, "steps": t.cost.steps, **t.validation} for t in tried]
        print_json({"rate": found[best].rate, "picture": str(picture), "tried": listed})
        return
    head = ["learning rate", *(f"valid. {name}" for name in names)]
    rows = [[f"{t.rate:g}", *(f"{t.validation[name]:.4f}" for name in names)] for t in tried]
    print(aligned([head, *rows]))
    besides = f" --set train.head_learning_rate={base.train.head_learning_rate * best:g}"
    headed = isinstance(base.task_settings, Classify) and base.task_settings.verbalizer is None
    rate = f"--set train.learning_rate={found[best].rate:g}{besides if headed else ''}"
    note(f"\n{picture}\nNext:\n  {rate}")
