"""The main parts of the measurement; each returns its ratios and the speeds behind them."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from arms import (
    BEHIND,
    FRONT,
    MINILM,
    compute_ratio,
    get_text_ids,
    make_bare_step,
    make_batches,
    make_documented_peft_step,
    make_long_texts,
    make_our_step,
    make_peft_model,
    make_peft_step,
    make_recipe_data,
    measure_speeds,
    measure_time,
    pad_rows,
    prepare_trainer,
)

from softprompt.backbone import BUILTIN

# An inner module: rows that are rendered already, so that predictions alone are timed.
from softprompt.inference.loops import predict_rows

HERE = Path(__file__).parent
ROWS = 640


def measure_training(*, quick: bool) -> dict[str, Any]:
    """Training with 20 and 100 soft tokens before the text and 10 after it, on critics' reviews."""
    front = prepare_trainer(make_recipe_data(FRONT.format(20), rows=ROWS))
    long_front = prepare_trainer(make_recipe_data(FRONT.format(100), rows=ROWS))
    behind = prepare_trainer(make_recipe_data(BEHIND.format(10), rows=ROWS))
    steps = {
        "peft_front_20": make_peft_step(front, make_peft_model(20)),
        "peft_documented_20": make_documented_peft_step(front, make_peft_model(20)),
        "front_20": make_our_step(front),
        "peft_front_100": make_peft_step(front, make_peft_model(100)),
        "front_100": make_our_step(long_front),
        "peft_10": make_peft_step(front, make_peft_model(10)),
        "behind_10": make_our_step(behind),
        "floor": make_bare_step(front),
    }
    count, rounds = (2, 5) if quick else (3, 5)
    batches = make_batches(front, size=16, count=count)
    speeds = measure_speeds(steps, batches, rounds=rounds)
    ratios = {
        "train_front_20_over_peft": ("front_20", "peft_front_20"),
        "train_front_20_over_peft_documented": ("front_20", "peft_documented_20"),
        "train_front_100_over_peft": ("front_100", "peft_front_100"),
        "train_behind_10_over_peft": ("behind_10", "peft_10"),
        "train_front_20_over_floor": ("front_20", "floor"),
        "train_front_100_over_floor": ("front_100", "floor"),
    }
    return {
        "ratios": {name: compute_ratio(speeds, *pair) for name, pair in ratios.items()},
        "samples_per_second": speeds,
        "setting": {"batch": 16, "batches": count, "rounds": rounds},
    }


def measure_long_texts(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Training with 10 soft tokens after texts of 256 tokens."""
    short = prepare_trainer(make_recipe_data(BEHIND.format(10), rows=16))
    texts = make_long_texts(32, tokens=256, tokenizer=short.task.backbone.tokenizer)
    behind = prepare_trainer(make_recipe_data(BEHIND.format(10), rows=32), texts=texts)
    steps = {
        "peft_10": make_peft_step(behind, make_peft_model(10)),
        "behind_10": make_our_step(behind),
    }
    speeds = measure_speeds(steps, make_batches(behind, size=16, count=1), rounds=5)
    return {
        "ratios": {"train_behind_10_long_over_peft": compute_ratio(speeds, "behind_10", "peft_10")},
        "samples_per_second": speeds,
        "setting": {"batch": 16, "tokens": 256, "rounds": 5},
    }


def measure_late_prefix(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Keys and values from the middle layer on, compared with all layers, on both backbones."""
    result: dict[str, Any] = {"ratios": {}, "samples_per_second": {}}
    for name, backbone, middle in (("smollm2", None, "15:"), ("minilm", MINILM, "3:")):
        steps, trainer = {}, None
        for layers in ("all", middle):
            tables: dict[str, Any] = {
                "method": {"name": "p-tuning-v2", "length": 20, "layers": layers}
            }
            data = make_recipe_data("Review: {text}\nSentiment:", rows=256, **tables)
            if backbone:
                data |= {"backbone": {"name": backbone}}
                data["task"] = {"kind": "classify", "template": "{text}"}
            trainer = prepare_trainer(data)
            steps["all" if layers == "all" else "late"] = make_our_step(trainer)
        speeds = measure_speeds(steps, make_batches(trainer, size=16, count=4), rounds=9)
        result["ratios"][f"late_over_all_{name}"] = compute_ratio(speeds, "late", "all")
        result["samples_per_second"][name] = speeds
    return result


def measure_prediction(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Predictions, compared with the bare backbone's states on the same texts and batches."""
    result: dict[str, Any] = {"ratios": {}, "samples_per_second": {}}
    for tokens in (20, 100):
        trainer = prepare_trainer(make_recipe_data(FRONT.format(tokens), rows=256))
        task, examples, prompt = trainer.task, trainer.rows.examples, trainer.prompt()
        batches = make_batches(trainer, size=32, count=8)
        selected = [examples[i] for batch in batches for i in batch]
        model = task.backbone.model.base_model
        speeds: dict[str, list[float]] = {"predict": [], "bare": []}
        for _ in range(6):
            with measure_time() as elapsed:
                list(predict_rows(task, selected, prompt=prompt, batch_size=32))
            speeds["predict"].append(round(len(selected) / elapsed[0], 3))
            with measure_time() as elapsed, torch.no_grad():
                for batch in batches:
                    ids, mask = pad_rows(get_text_ids(trainer, batch))
                    model(input_ids=ids, attention_mask=mask, use_cache=False)
            speeds["bare"].append(round(len(selected) / elapsed[0], 3))
        speeds = {name: values[1:] for name, values in speeds.items()}  # the first one warms up
        result["ratios"][f"predict_{tokens}_over_bare"] = compute_ratio(speeds, "predict", "bare")
        result["samples_per_second"][str(tokens)] = speeds
    return result


def measure_memory(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Peak memory of training, each variant in its own process.

    With 20 soft tokens before the text and batches of 32; and with 100 soft tokens and generated
    text over a vocabulary of 262,144: that of a small random model, and, if it is installed, of
    Gemma 3 270M.
    """
    peaks = {variant: _run_script("peak.py", variant) for variant in ("ours", "peft", "floor")}
    large = {variant: _run_script("vocabulary.py", variant) for variant in ("ours", "peft")}
    result: dict[str, Any] = {
        "ratios": {
            "memory_over_peft": round(peaks["ours"]["peak"] / peaks["peft"]["peak"], 3),
            "added_memory_over_peft": _compare_added(peaks),
            "added_memory_262k_over_peft": _compare_added(large),
        },
        "bytes": peaks,
        "bytes_262k": large,
    }
    if find_spec(BUILTIN["gemma3-270m"].package) is not None:
        gemma = {v: _run_script("vocabulary.py", v, "gemma") for v in ("ours", "peft")}
        result["ratios"]["added_memory_gemma_over_peft"] = _compare_added(gemma)
        result["bytes_gemma"] = gemma
    return result


def _run_script(script: str, *arguments: str) -> dict[str, int]:
    command = [sys.executable, HERE / script, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peak


def _compare_added(peaks: dict[str, dict[str, int]]) -> float:
    """The memory that our training adds, divided by what PEFT's adds."""
    added = {variant: peak["peak"] - peak["before"] for variant, peak in peaks.items()}
    return round(added["ours"] / added["peft"], 3)
