"""The training time until 82 % of the reviews of other films are classified correctly."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from arms import (
    BEHIND,
    CUDA,
    FRONT,
    Step,
    make_our_step,
    make_peft_model,
    make_peft_step,
    make_recipe_data,
    measure_time,
)

# Inner modules: PEFT's prompt is evaluated by our code, and the clock stops during evaluations.
from softprompt.inference.loops import evaluate_rows
from softprompt.prompt import InputPrompt, Prompt
from softprompt.recipe import make_recipe
from softprompt.train import RunSetup, Trainer, make_trainer, setup_run
from softprompt.train.summary import prepare_caches

GOAL, TEST, TOKENS = 0.82, 600, 5
CHUNK, BATCH = 10, 16


@dataclass
class Learner:
    """A variant in training.

    Args:
        step: trains on a batch.
        get_prompt: the current prompt.
        prepared: the parts of a run, for the test rows and their template.
        seconds: of training so far.
        curve: the evaluations so far.
    """

    step: Step
    get_prompt: Callable[[], Prompt]
    prepared: RunSetup
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether the goal is reached."""
        return bool(self.curve) and self.curve[-1]["accuracy"] >= GOAL

    def evaluate(self, steps: int) -> None:
        """Add the accuracy on the test rows to the curve."""
        rows, task = self.prepared.rows["test"], self.prepared.task
        result = evaluate_rows(task, rows.examples, truth=rows.truth, prompt=self.get_prompt())
        hits = sum(p.label == t for p, t in zip(result.predictions, result.truth, strict=True))
        accuracy = round(hits / len(rows.truth), 4)
        point = {"step": steps, "seconds": round(self.seconds, 1), "accuracy": accuracy}
        self.curve.append(point)


def measure_time_to_accuracy(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Ours with 5 soft tokens after the text, PEFT with 5 before it; the same rows and rate."""
    ours, trainer = _make_our_learner()
    learners = {"ours": ours, "peft": _make_peft_learner()}
    batches = trainer.sampler.draw_batches(0)
    for start in range(0, len(batches), CHUNK):
        for learner in (one for one in learners.values() if not one.is_done):
            with measure_time() as elapsed:
                for batch in batches[start : start + CHUNK]:
                    learner.step(batch)
            learner.seconds += elapsed[0]
            learner.evaluate(start + CHUNK)
        if all(learner.is_done for learner in learners.values()):
            break
    times = {name: one.curve[-1]["seconds"] for name, one in learners.items() if one.is_done}
    both = len(times) == len(learners)
    return {
        "ratios": {"time_to_82_over_peft": round(times["ours"] / times["peft"], 3)} if both else {},
        "curves": {name: learner.curve for name, learner in learners.items()},
        "setting": {
            "goal": GOAL,
            "train": len(trainer.rows.examples),
            "test": TEST,
            "tokens": TOKENS,
            "batch": BATCH,
        },
    }


def _make_trainer(template: str) -> tuple[Trainer, RunSetup]:
    data = make_recipe_data(template.format(TOKENS), rows=1, batch=BATCH)
    data["data"]["max_rows"] = {"validation": 1, "test": TEST}
    data["train"] |= {"epochs": 1, "lr_scheduler": "constant", "warmup_ratio": 0.0}
    prepared = setup_run(make_recipe(data))
    return make_trainer(prepared, Accelerator(cpu=not CUDA)), prepared


def _make_our_learner() -> tuple[Learner, Trainer]:
    trainer, prepared = _make_trainer(BEHIND)
    with measure_time() as elapsed:  # filling the caches counts as training
        for _ in prepare_caches(trainer, prepared):
            pass
    return Learner(make_our_step(trainer), trainer.prompt, prepared, elapsed[0]), trainer


def _make_peft_learner() -> Learner:
    trainer, prepared = _make_trainer(FRONT)
    model = make_peft_model(TOKENS)
    table = model.prompt_encoder["default"].embedding

    def get_prompt() -> Prompt:
        return InputPrompt(table.weight.detach().float().clone())

    return Learner(make_peft_step(trainer, model), get_prompt, prepared)
