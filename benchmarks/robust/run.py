"""Damaged inputs of every kind: refused, answered as before, crashed, or changed in silence.

    scripts/bench robust --quick [--only KIND]... [--fresh] [--seed N]

Each input is decided by its kind, the seed and its index. A run that was stopped resumes;
`--fresh` begins anew. Without `--quick` there are ten times as many inputs. The last line printed
is one JSON object of counts.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "families"))  # its tokenizer
# Nothing is fetched, and nobody's caches are touched.
HOME = tempfile.TemporaryDirectory(prefix="robust-", ignore_cleanup_errors=True)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": f"{HOME.name}/hub",
    "SOFTPROMPT_CACHE": f"{HOME.name}/cache",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "MPLBACKEND": "agg",
}

import artifacts  # noqa: E402  # after the environment
import backbones  # noqa: E402
import commands  # noqa: E402
import data_files  # noqa: E402
import foreign  # noqa: E402
import recipes  # noqa: E402
import run_folders  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from trials import OUTCOMES, Kind, limit_memory, try_input  # noqa: E402

RESULTS = HERE / "results" / "robust.json"
# What a process may take to prepare the originals, or to be stopped within an input.
PATIENCE = 120
# So many findings of one kind of fault are kept, each with its input.
KEPT, KEPT_CHANGES = 3, 20


def list_kinds() -> list[Kind]:
    """All kinds of inputs."""
    modules = (artifacts, foreign, data_files, recipes, backbones, commands, run_folders)
    return [kind for module in modules for kind in module.list_kinds()]


@dataclass
class Progress:
    """How far a kind is.

    Args:
        done: how many inputs have been tried.
        counts: how many came to what.
        notes: how many have a note.
        findings: inputs that crashed or were changed.
    """

    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: str, facts: dict[str, Any]) -> None:
        """Count an input; of each fault, the first inputs are kept."""
        self.done += 1
        self.counts[outcome] += 1
        note = facts.pop("note", "")
        self.notes += Counter([note] if note else [])
        if outcome not in ("crashed", "changed"):
            return
        place = (facts["error"], facts["where"])
        alike = [one for one in self.findings if (one["error"], one["where"]) == place]
        if len(alike) < (KEPT if outcome == "crashed" else KEPT_CHANGES):
            self.findings.append({"outcome": outcome, "times": 0, **facts})
        (alike or self.findings[-1:])[0]["times"] += 1


def main() -> None:
    """Try the inputs, write the results, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about ten minutes on two cores")
    parser.add_argument(
        "--only", action="append", help="kinds to try, or beginnings of their names"
    )
    parser.add_argument("--fresh", action="store_true", help="try all inputs again")
    parser.add_argument("--seed", type=int, default=0, help="of the damages")
    parser.add_argument("--scale", type=float, help="inputs, as a share of those of a quick run")
    parser.add_argument("--processes", type=int, default=2, help="at once")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--input", type=int, help="try this input alone, of the first of --only")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the models are tiny
    kinds = [k for k in list_kinds() if not options.only or k.name.startswith(tuple(options.only))]
    if options.input is not None:
        _show(kinds[0], options.seed, options.input)
        return
    _warm_up()
    scale = options.scale or (1 if options.quick else 10)
    goals = {kind.name: max(1, round(kind.inputs * scale)) for kind in kinds}
    progress = {} if options.fresh else _read(options.results, options.seed)
    for name in _run(kinds, goals, progress, options):
        if progress[name].done % 100 == 0 or progress[name].done >= goals[name]:
            print(f"{name}: {dict(progress[name].counts)}", flush=True)
            _write(options.results, options.seed, progress)
    chosen = progress if not options.only else {k.name: progress[k.name] for k in kinds}
    print(json.dumps(count(chosen)))


def _warm_up() -> None:
    """Do once what each process would do for the first time: import, and compile."""
    with tempfile.TemporaryDirectory(dir=HOME.name) as place:
        for prompt in ("vectors", "head", "choices"):
            tiny.train(Path(place), prompt)


def count(progress: dict[str, Progress]) -> dict[str, int]:
    """How many inputs came to what."""
    total: Counter[str] = sum((one.counts for one in progress.values()), Counter())
    return {"inputs": sum(total.values()), **{outcome: total[outcome] for outcome in OUTCOMES}}


def _read(path: Path, seed: int) -> dict[str, Progress]:
    if not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["seed"] != seed:
        return {}
    return {
        name: Progress(one["done"], Counter(one["counts"]), Counter(one["notes"]), one["findings"])
        for name, one in kept["kinds"].items()
    }


def _write(path: Path, seed: int, progress: dict[str, Progress]) -> None:
    path.parent.mkdir(exist_ok=True)
    kinds = {name: vars(one) for name, one in sorted(progress.items())}
    whole = {"seed": seed, "counts": count(progress), "kinds": kinds}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


@dataclass
class _Worker:
    """A process that tries the inputs of one kind."""

    kind: Kind
    process: multiprocessing.Process
    pipe: Connection
    is_ready: bool = False

    def receive(self) -> tuple[str, dict[str, Any]] | None:
        """What the next input came to; None when the process has ended."""
        try:
            found: tuple[str, dict[str, Any]] = self.pipe.recv()
        except EOFError:
            return None
        return found

    def stop(self) -> str:
        """End the process, and say how it ended."""
        self.process.join(1)
        self.process.kill()
        self.process.join()
        if not self.is_ready:
            message = f"the originals of {self.kind.name!r} cannot be made; try --input 0"
            raise RuntimeError(message)
        return f"the process ended with {self.process.exitcode}"


def _run(
    kinds: Sequence[Kind],
    goals: dict[str, int],
    progress: dict[str, Progress],
    options: argparse.Namespace,
) -> Iterator[str]:
    """Try the inputs of all kinds; yields a kind's name at each input."""
    for kind in kinds:
        progress.setdefault(kind.name, Progress())
    waiting = [kind for kind in kinds if progress[kind.name].done < goals[kind.name]]
    waiting.sort(key=lambda kind: kind.inputs)  # the largest first, from the end
    workers: dict[Connection, _Worker] = {}
    while waiting or workers:
        while waiting and len(workers) < options.processes:
            kind = waiting.pop()
            indices = range(progress[kind.name].done, goals[kind.name])
            worker = _start(kind, indices, options.seed)
            workers[worker.pipe] = worker
        ready = wait(list(workers), timeout=PATIENCE)
        for pipe in ready or list(workers):
            worker = workers[pipe]
            one, goal = progress[worker.kind.name], goals[worker.kind.name]
            found = worker.receive() if ready else None
            if found is None:
                del workers[pipe]
                how = worker.stop()
                if one.done < goal:
                    one.add("crashed", {"index": one.done, "error": how, "where": ""})
                    waiting += [worker.kind] * (one.done < goal)
            elif worker.is_ready:
                one.add(*found)
            worker.is_ready = True
            yield worker.kind.name


def _start(kind: Kind, indices: range, seed: int) -> _Worker:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(kind, indices, seed, there))
    process.start()
    there.close()
    return _Worker(kind, process, here)


def _work(kind: Kind, indices: range, seed: int, pipe: Connection) -> None:
    """Try inputs in a process of its own, which may be killed by one."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(dir=HOME.name) as place:
        trial = kind.prepare(Path(place))
        limit_memory()
        pipe.send(("ready", {}))
        for index in indices:
            folder = Path(place) / "input"
            pipe.send(try_input(trial, kind=kind.name, seed=seed, index=index, folder=folder))
    pipe.close()


def _show(kind: Kind, seed: int, index: int) -> None:
    """Try one input, and print what it came to."""
    with tempfile.TemporaryDirectory(dir=HOME.name) as place:
        trial = kind.prepare(Path(place))
        found = try_input(
            trial, kind=kind.name, seed=seed, index=index, folder=Path(place) / "input"
        )
        print(kind.name, *found, sep="\n")


if __name__ == "__main__":
    main()
