"""Training speed beside PEFT in its best setting and the bare backbone, all in one run.

The arms take turns on the same batches of the same reviews; each figure is a median over rounds,
and only ratios within the run are quoted. Prints one JSON object as its last line.

    scripts/bench speed [--quick]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from softprompt.backbone.builtin import resolve
from softprompt.backbone.load import converted
from softprompt.data import like_length
from softprompt.recipe import make_recipe
from softprompt.train import Trainer, make_trainer, prepare

HERE = Path(__file__).parent
BACKBONE = "builtin:smollm2-135m-instruct"
TEXT = "Overall, the sentiment of the review is"
WORDS = {"rotten": " negative", "fresh": " positive"}
Arm = Callable[[Sequence[int]], None]


def recipe_of(template: str, *, rows: int, batch: int) -> dict[str, object]:
    """The recipe of one of our arms."""
    return {
        "seed": 1,
        "backbone": {"name": BACKBONE},
        "data": {
            "train": "builtin:rotten-tomatoes",
            "group": "film",
            "limit": {"train": rows, "validation": 1, "test": 1},
        },
        "task": {"kind": "classify", "template": template, "verbalizer": WORDS},
        "method": {"name": "prompt-tuning", "initialise": {"from": "text", "text": TEXT}},
        "train": {"epochs": 1, "batch_size": batch, "learning_rate": 0.01},
    }


def our_trainer(template: str, *, rows: int, batch: int) -> Trainer:
    """Our loop, ready to step."""
    prepared = prepare(make_recipe(recipe_of(template, rows=rows, batch=batch)))
    return make_trainer(prepared, Accelerator(cpu=not torch.cuda.is_available()))


def ours(trainer: Trainer) -> Arm:
    """One optimiser step of our loop on given rows."""

    def step(batch: Sequence[int]) -> None:
        trainer.batches, trainer.at = [list(batch)], 0
        trainer.one_step()

    return step


def peft_arm(trainer: Trainer, tokens: int) -> Arm:
    """One step as PEFT does it best: bf16, rows of like length, labels elsewhere ignored."""
    folder = converted(resolve(BACKBONE), torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=tokens,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=TEXT,
        tokenizer_name_or_path=str(folder),
    )
    model = get_peft_model(model, config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    words = [trainer.task.words.tokens[i][0][0] for i in range(2)]
    vocabulary = trainer.task.backbone.geometry.vocabulary

    def step(batch: Sequence[int]) -> None:
        examples = [trainer.rows.examples[i] for i in batch]
        texts = [[t for t in e.variants[0].ids if t < vocabulary] for e in examples]
        texts = [[*t, words[e.target]] for t, e in zip(texts, examples, strict=True)]
        ids, mask = _padded(texts)
        labels = torch.full_like(ids, -100)
        for row, text in enumerate(texts):
            labels[row, len(text) - 1] = text[-1]
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def floor_arm(trainer: Trainer) -> Arm:
    """The bare backbone, forward and activation backward, on the rows' own tokens."""
    backbone = trainer.task.backbone
    vocabulary = backbone.geometry.vocabulary

    def step(batch: Sequence[int]) -> None:
        examples = [trainer.rows.examples[i] for i in batch]
        ids, mask = _padded([[t for t in e.variants[0].ids if t < vocabulary] for e in examples])
        embeds = backbone.table(ids).detach().requires_grad_()
        out = backbone.model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        out.last_hidden_state[:, -1].float().sum().backward()

    return step


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[*[1] * len(row), *[0] * (width - len(row))] for row in rows])
    return ids, mask


def measure(arms: dict[str, Arm], batches: Sequence[Sequence[int]], rounds: int) -> dict[str, list]:
    """Samples per second of each arm in each round; the arms take turns batch by batch."""
    for arm in arms.values():
        arm(batches[0])
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        seconds = dict.fromkeys(arms, 0.0)
        for batch in batches:
            for name, arm in arms.items():
                began = perf_counter()
                arm(batch)
                seconds[name] += perf_counter() - began
        rows = sum(map(len, batches))
        for name, spent in seconds.items():
            speeds[name].append(rows / spent)
    return speeds


def main() -> None:
    """Measure, write the result, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer batches and rounds")
    parser.add_argument("--batch", type=int, default=16)
    quick = parser.parse_args().quick
    batch = parser.parse_args().batch
    count, rounds = (2, 3) if quick else (2, 5)
    shape = {"rows": 40 * batch, "batch": batch}
    front = our_trainer("{soft:20}Review: {text}\nSentiment:", **shape)
    front_100 = our_trainer("{soft:100}Review: {text}\nSentiment:", **shape)
    behind = our_trainer("Review: {text}\nSentiment:{soft:10}", **shape)
    lengths = [e.length for e in front.rows.examples]
    order = like_length(lengths, size=batch, seed=1)
    batches = [b for b in order if len(b) == batch][:count]
    arms = {
        "peft_front_20": peft_arm(front, 20),
        "ours_front_20": ours(front),
        "peft_front_100": peft_arm(front, 100),
        "ours_front_100": ours(front_100),
        "peft_10": peft_arm(front, 10),
        "ours_behind_10": ours(behind),
        "floor": floor_arm(front),
    }
    speeds = measure(arms, batches, rounds)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        "train_front_20_over_peft": median["ours_front_20"] / median["peft_front_20"],
        "train_front_100_over_peft": median["ours_front_100"] / median["peft_front_100"],
        "train_behind_10_over_peft": median["ours_behind_10"] / median["peft_10"],
        "train_front_20_over_floor": median["ours_front_20"] / median["floor"],
        "train_front_100_over_floor": median["ours_front_100"] / median["floor"],
    }
    found = {
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "samples_per_second": {n: [round(v, 2) for v in vs] for n, vs in speeds.items()},
        "setting": {"backbone": BACKBONE, "batch": batch, "batches": count, "rounds": rounds},
        "machine": {"processor": platform.processor() or platform.machine(),
                    "threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers", "peft")},
    }  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = HERE / "results" / f"train-{device}{'-quick' if quick else ''}.json"
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, HERE.parent / "tables.py"], check=True)
    print(json.dumps(found["ratios"]))


if __name__ == "__main__":
    main()
