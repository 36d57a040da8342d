"""What comes of a run: the artifact and the numbers."""

from dataclasses import asdict, replace
from typing import Any

from softprompt.artifact import Artifact, assemble, name_of
from softprompt.evaluate.look import moved
from softprompt.evaluate.model import Model, bring
from softprompt.evaluate.predict import Report, report
from softprompt.prompt import Prompt
from softprompt.train.best import Best
from softprompt.train.prepare import Prepared
from softprompt.train.trainer import Trainer
from softprompt.train.validate import judged


def artifact_of(prepared: Prepared, best: Best, *, start: Prompt) -> Artifact:
    """What inference needs of a run, and how it came about.

    Args:
        best: the prompt to keep.
        start: what it was before its first step; of it, only how far the prompt has moved is kept.
    """
    settings, recipe = prepared.recipe.task_settings, prepared.recipe
    way = moved(start, best.prompt)
    return assemble(
        best.prompt,
        best.head,
        template=prepared.template,
        max_length=recipe.data.max_length,
        task={"kind": settings.kind, **asdict(settings), "template": prepared.template},
        labels=list(prepared.task.labels),
        backbone=name_of(prepared.backbone),
        data={
            name: {"rows": len(prepared.rows[name].truth), "sha256": digest}
            for name, digest in prepared.hashes.items()
        },
        recipe=recipe.as_data(),
        metrics={
            "validation": dict(best.metrics),
            "step": best.step,
            "moved": {"overall": way.overall, "each": [*way.each]},
        },
    )


def on_all_rows(best: Best, trainer: Trainer, *, prepared: Prepared) -> Best:
    """The chosen prompt with its metrics on all validation rows, if it was chosen by some."""
    rows = prepared.rows.get("validation")
    if rows is None or trainer.validation is rows:
        return best
    model = bring(artifact_of(prepared, best, start=trainer.start), prepared.backbone)
    size, asked = prepared.training.batch_size, trainer.accelerator
    parts = judged(model.task, rows, prompt=model.prompt, batch_size=size, accelerator=asked)
    return replace(best, metrics=dict(report(model.task, parts).metrics))


def results(model: Model, trainer: Trainer, *, best: Best, prepared: Prepared) -> dict[str, Any]:
    """The numbers of a finished run; the test rows are judged here and nowhere else.

    Every process must ask for them: each judges its share.
    """
    test = prepared.rows.get("test")
    found: dict[str, Any] = {"validation": dict(best.metrics)}
    if test is not None:
        size = prepared.training.batch_size
        task, asked = model.task, trainer.accelerator
        parts = judged(task, test, prompt=model.prompt, batch_size=size, accelerator=asked)
        found["test"] = plain(report(task, parts))
    settings = asdict(prepared.training)
    return found | {
        "best_step": best.step,
        "steps": trainer.step,
        "cut_rows": {name: rows.cut for name, rows in prepared.rows.items()},
        "trainable_parameters": sum(p.numel() for p in trainer.modules.parameters()),
        "backbone_parameters": prepared.task.parameters,
        "template": prepared.template,
        "training": {name: value for name, value in settings.items() if value is not None},
        "defaults_from": prepared.usual.source,
    }


def plain(report: Report) -> dict[str, Any]:
    """A report as JSON has it: the metrics by name, the rows and the confusion."""
    found: dict[str, Any] = {"rows": report.rows, **report.metrics}
    if report.confusion is not None:
        found["confusion"] = asdict(report.confusion)
    return found
