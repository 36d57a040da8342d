"""The parts of the measurement; each gives its ratios and what they were made of."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from arms import (
    BEHIND,
    FRONT,
    MINILM,
    batches_of,
    documented_arm,
    floor_arm,
    long_texts,
    measure,
    ours,
    padded,
    peft_arm,
    peft_model,
    plain_texts,
    ratio,
    recipe_of,
    timed,
    trainer_of,
)

from softprompt.inference.loops import predict_rows as answered

HERE = Path(__file__).parent
ROWS = 640


def train(*, quick: bool) -> dict[str, Any]:
    """Twenty and a hundred soft tokens in front, ten behind, on critics' reviews."""
    front = trainer_of(recipe_of(FRONT.format(20), rows=ROWS))
    arms = {
        "peft_front_20": peft_arm(front, peft_model(20)),
        "peft_documented_20": documented_arm(front, peft_model(20)),
        "front_20": ours(front),
        "peft_front_100": peft_arm(front, peft_model(100)),
        "front_100": ours(trainer_of(recipe_of(FRONT.format(100), rows=ROWS))),
        "peft_10": peft_arm(front, peft_model(10)),
        "behind_10": ours(trainer_of(recipe_of(BEHIND.format(10), rows=ROWS))),
        "floor": floor_arm(front),
    }
    count, rounds = (2, 5) if quick else (3, 5)
    speeds = measure(arms, batches_of(front, size=16, count=count), rounds=rounds)
    return {
        "ratios": {
            "train_front_20_over_peft": ratio(speeds, "front_20", "peft_front_20"),
            "train_front_20_over_peft_documented": ratio(speeds, "front_20", "peft_documented_20"),
            "train_front_100_over_peft": ratio(speeds, "front_100", "peft_front_100"),
            "train_behind_10_over_peft": ratio(speeds, "behind_10", "peft_10"),
            "train_front_20_over_floor": ratio(speeds, "front_20", "floor"),
            "train_front_100_over_floor": ratio(speeds, "front_100", "floor"),
        },
        "samples_per_second": speeds,
        "setting": {"batch": 16, "batches": count, "rounds": rounds},
    }


def long(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Ten soft tokens behind texts of 256 tokens."""
    short = trainer_of(recipe_of(BEHIND.format(10), rows=16))
    texts = long_texts(32, tokens=256, tokenizer=short.task.backbone.tokenizer)
    behind = trainer_of(recipe_of(BEHIND.format(10), rows=32), texts=texts)
    arms = {"peft_10": peft_arm(behind, peft_model(10)), "behind_10": ours(behind)}
    speeds = measure(arms, batches_of(behind, size=16, count=1), rounds=5)
    return {
        "ratios": {"train_behind_10_long_over_peft": ratio(speeds, "behind_10", "peft_10")},
        "samples_per_second": speeds,
        "setting": {"batch": 16, "tokens": 256, "rounds": 5},
    }


def late(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Keys and values from the middle layer on, beside all layers, on both embedded backbones."""
    found: dict[str, Any] = {"ratios": {}, "samples_per_second": {}}
    for name, backbone, middle in (("smollm2", None, "15:"), ("minilm", MINILM, "3:")):
        arms, trainer = {}, None
        for layers in ("all", middle):
            method = {"name": "p-tuning-v2", "length": 20, "layers": layers}
            tables: dict[str, Any] = {"method": method}
            data = recipe_of("Review: {text}\nSentiment:", rows=256, **tables)
            if backbone:
                data |= {"backbone": {"name": backbone}, "task": {"kind": "classify"}}
                data["task"]["template"] = "{text}"
            trainer = trainer_of(data)
            arms["all" if layers == "all" else "late"] = ours(trainer)
        speeds = measure(arms, batches_of(trainer, size=16, count=4), rounds=9)
        found["ratios"][f"late_over_all_{name}"] = ratio(speeds, "late", "all")
        found["samples_per_second"][name] = speeds
    return found


def predict(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Answers beside the bare backbone's states on the same texts, in like batches."""
    found: dict[str, Any] = {"ratios": {}, "samples_per_second": {}}
    for tokens in (20, 100):
        trainer = trainer_of(recipe_of(FRONT.format(tokens), rows=256))
        task, examples, prompt = trainer.task, trainer.rows.examples, trainer.prompt()
        batches = batches_of(trainer, size=32, count=8)
        chosen = [examples[i] for batch in batches for i in batch]
        model = task.backbone.model.base_model
        speeds: dict[str, list[float]] = {"predict": [], "bare": []}
        for _ in range(6):
            with timed() as spent:
                list(answered(task, chosen, prompt=prompt, batch_size=32))
            speeds["predict"].append(round(len(chosen) / spent[0], 3))
            with timed() as spent, torch.no_grad():
                for batch in batches:
                    ids, mask = padded(plain_texts(trainer, batch))
                    model(input_ids=ids, attention_mask=mask, use_cache=False)
            speeds["bare"].append(round(len(chosen) / spent[0], 3))
        speeds = {name: values[1:] for name, values in speeds.items()}  # the first one warms up
        found["ratios"][f"predict_{tokens}_over_bare"] = ratio(speeds, "predict", "bare")
        found["samples_per_second"][str(tokens)] = speeds
    return found


def memory(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Peak memory of training, a process for each arm.

    Twenty soft tokens in front of batches of 32; and a hundred, with texts to be written out of
    262,144 words.
    """
    found = {arm: _peak("peak.py", arm) for arm in ("ours", "peft", "floor")}
    many = {arm: _peak("vocabulary.py", arm) for arm in ("ours", "peft")}
    return {
        "ratios": {
            "memory_over_peft": round(found["ours"]["peak"] / found["peft"]["peak"], 3),
            "added_memory_over_peft": _added(found),
            "added_memory_262k_over_peft": _added(many),
        },
        "bytes": found,
        "bytes_262k": many,
    }


def _peak(script: str, arm: str) -> dict[str, int]:
    command = [sys.executable, HERE / script, arm]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    peak: dict[str, int] = json.loads(made.stdout.splitlines()[-1])
    return peak


def _added(found: dict[str, dict[str, int]]) -> float:
    added = {arm: peak["peak"] - peak["before"] for arm, peak in found.items()}
    return round(added["ours"] / added["peft"], 3)
