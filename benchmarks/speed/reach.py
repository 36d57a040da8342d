"""How long it takes to learn: training time until 82 % of unseen films' reviews are right."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from arms import BEHIND, CUDA, FRONT, Arm, ours, peft_arm, peft_model, recipe_of, timed

from softprompt.inference.loops import evaluate_rows
from softprompt.prompt import InputPrompt, Prompt
from softprompt.recipe import make_recipe
from softprompt.train import RunSetup, Trainer, make_trainer, setup_run
from softprompt.train.summary import prepare_caches

GOAL, TEST, TOKENS = 0.82, 600, 5
CHUNK, BATCH = 10, 16


@dataclass
class Learner:
    """One way to train, and how far it is.

    Args:
        step: trains on a batch.
        prompt: as it is now.
        prepared: by whose template the prompt is judged.
        seconds: of training.
        curve: what was judged.
    """

    step: Arm
    prompt: Callable[[], Prompt]
    prepared: RunSetup
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def there(self) -> bool:
        """Whether the goal is reached."""
        return bool(self.curve) and self.curve[-1]["accuracy"] >= GOAL

    def judged(self, steps: int) -> None:
        """Note how many of the test rows are right; the clock stands still."""
        rows, task = self.prepared.rows["test"], self.prepared.task
        found = evaluate_rows(task, rows.examples, truth=rows.truth, prompt=self.prompt())
        right = sum(a.label == t for a, t in zip(found.predictions, found.truth, strict=True))
        accuracy = round(right / len(rows.truth), 4)
        point = {"step": steps, "seconds": round(self.seconds, 1), "accuracy": accuracy}
        self.curve.append(point)


def reach(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Ours with five soft tokens behind the text, PEFT's with five in front; same rows and rate."""
    mine, trainer = _ours()
    learners = {"ours": mine, "peft": _theirs()}
    batches = trainer.sampler.draw_batches(0)
    for start in range(0, len(batches), CHUNK):
        for learner in (one for one in learners.values() if not one.there):
            with timed() as spent:
                for batch in batches[start : start + CHUNK]:
                    learner.step(batch)
            learner.seconds += spent[0]
            learner.judged(start + CHUNK)
        if all(learner.there for learner in learners.values()):
            break
    times = {name: one.curve[-1]["seconds"] for name, one in learners.items() if one.there}
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


def _trainer(template: str) -> tuple[Trainer, RunSetup]:
    data = recipe_of(template.format(TOKENS), rows=1, batch=BATCH)
    data["data"]["max_rows"] = {"validation": 1, "test": TEST}
    data["train"] |= {"epochs": 1, "lr_scheduler": "constant", "warmup_ratio": 0.0}
    prepared = setup_run(make_recipe(data))
    return make_trainer(prepared, Accelerator(cpu=not CUDA)), prepared


def _ours() -> tuple[Learner, Trainer]:
    trainer, prepared = _trainer(BEHIND)
    with timed() as spent:  # what is run once is part of the time
        for _ in prepare_caches(trainer, prepared):
            pass
    return Learner(ours(trainer), trainer.prompt, prepared, spent[0]), trainer


def _theirs() -> Learner:
    trainer, prepared = _trainer(FRONT)
    model = peft_model(TOKENS)
    table = model.prompt_encoder["default"].embedding

    def prompt() -> Prompt:
        return InputPrompt(table.weight.detach().float().clone())

    return Learner(peft_arm(trainer, model), prompt, prepared)
