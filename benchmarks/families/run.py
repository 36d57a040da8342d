"""Every text family of transformers as a tiny random model: right, refused, or wrong.

    scripts/bench families [--only FAMILY]... [--fresh]

Each family is built from its own configuration, shrunk, and checked beside transformers' eager
model of the same weights. A run that was stopped resumes; `--fresh` begins anew. The
last line printed is one JSON object of counts.
"""

import argparse
import json
import multiprocessing
import tempfile
import warnings
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from build import build, list_families, load_plain, make_tokenizer, run_once
from checks import PREFIX, PROMPT, check

RESULTS = Path(__file__).parent / "results" / "families.json"
SECONDS = 300


def main() -> None:
    """Check the families, write the results, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="families to check")
    parser.add_argument("--fresh", action="store_true", help="check all families again")
    options = parser.parse_args()
    results = {} if options.fresh or not RESULTS.exists() else _read()
    names = list_families()
    for name in options.only or [n for n in names if n not in results]:
        results[name] = _run(name)
        print(f"{name}: {results[name]['verdict']}", flush=True)
        _write({n: results[n] for n in names if n in results})
    print(json.dumps(count(results)))


def _read() -> dict[str, Any]:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    same = kept["transformers"] == version("transformers")
    found: dict[str, Any] = kept["families"] if same else {}
    return found


def _write(results: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    whole = {"transformers": version("transformers"), "counts": count(results), "families": results}
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _run(name: str) -> dict[str, Any]:
    """Check one family in a process of its own, which may crash or hang."""
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_check, args=(name, there))
    process.start()
    there.close()
    found: dict[str, str] = {}
    try:
        while here.poll(SECONDS):
            step, outcome = here.recv()
            found[step] = outcome
    except EOFError:
        pass
    else:
        found["time"] = f"crashed: more than {SECONDS} seconds"
        process.kill()
    process.join()
    if process.exitcode and "time" not in found:
        found["process"] = f"crashed: exit code {process.exitcode}"
    return {"verdict": judge(found), "checks": found}


def _check(name: str, pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the models are tiny
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            model = build(name)
            run_once(model)
            model.save_pretrained(folder)
            make_tokenizer().save_pretrained(folder)
        except Exception as error:  # noqa: BLE001  # of any family
            pipe.send(("build", f"not built: {type(error).__name__}: {str(error)[:200]}"))
            return
        for found in check(folder, lambda: load_plain(name, folder)):
            pipe.send(found)


def judge(found: dict[str, str]) -> str:
    """A family's verdict from its checks."""
    outcomes = {step: outcome.partition(":")[0] for step, outcome in found.items()}
    for verdict in ("not built", "crashed", "wrong"):
        if verdict in outcomes.values():
            return verdict
    # Words that are not exact are a limit of the initialization, not of training.
    if any(outcomes.get(step) != "right" for step in PROMPT if step != "words"):
        return "refused"
    return "right with prefixes" if all(outcomes.get(s) == "right" for s in PREFIX) else "right"


def count(results: dict[str, Any]) -> dict[str, int]:
    """How many families have each verdict."""
    verdicts = [result["verdict"] for result in results.values()]
    return {
        "built": sum(v != "not built" for v in verdicts),
        "right": sum(v.startswith("right") for v in verdicts),
        "right_prefixes": verdicts.count("right with prefixes"),
        "refused": verdicts.count("refused"),
        "wrong": verdicts.count("wrong"),
        "crashed": verdicts.count("crashed"),
    }


if __name__ == "__main__":
    main()
