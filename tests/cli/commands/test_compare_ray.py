"""``softprompt compare --engine ray``: on a cluster as here, whatever becomes of a worker."""

import json
import os
import re
import shutil
import signal
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import psutil
import pytest
import torch

from softprompt.compare import (
    Failed,
    HeldOutTest,
    Job,
    Protocol,
    SearchResult,
    make_method_variants,
)
from softprompt.compare.engines import ray as engines
from softprompt.compare.engines.ray import (
    JobStarted,
    RayCluster,
    RayEngine,
    connect,
    make_worker_job,
    run_worker_job,
)
from softprompt.compare.runner import ComparisonRunner
from softprompt.data import read_data
from softprompt.recipe import read_recipe

# Before Ray is imported: it is to speak over the loopback alone, and to tell nobody of its use.
os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_memory_monitor_refresh_ms="0",  # nobody but the test kills
)

SECONDS = 60
VARIANTS = ("--methods", "prompt-tuning,p-tuning-v2", "--baselines", "majority,fine-tuning")
ASKED = (*VARIANTS, "--seeds", 2, "--lr-multipliers", "1,3")
# What a machine has to do with.
VARYING = ("seconds", "speed", "memory")


@pytest.fixture(scope="module")
def address():
    """A local cluster of two machines with a CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    folder = tempfile.mkdtemp(prefix="ray-")  # pytest's own are too long for the name of a socket
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_TMPDIR", folder)  # a cluster of the machine's user stays what "auto" means
    own = {
        "num_cpus": 1,
        "object_store_memory": 80 << 20,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
    }
    machines = Machines(initialize_head=True, head_node_args=own)
    try:
        machines.add_node(**own)
        yield machines.address
    finally:
        machines.shutdown()
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def one_thread():
    """As many as a worker has: in the last digits the numbers depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def notes(monkeypatch):
    """What the command says; whoever listens is called with each note."""
    said, listeners = [], []

    def note(message):
        said.append(message)
        for listen in listeners:
            listen(message)

    monkeypatch.setattr("softprompt.cli.commands.compare.print_status", note)
    return said, listeners


@pytest.fixture
def engine_of(parts):
    """Makes an engine, and the list of what it says."""
    protocol, runner, _ = parts

    def make(cluster=RayCluster(), **more):  # noqa: B008  # a frozen value
        said = []

        def tell(event):
            said.append(str(event))

        return RayEngine(protocol, runner, cluster=cluster, callback=tell, **more), said

    return make


def results(folder):
    """What is written of a comparison, in no order, without what a machine has to do with."""
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for line in found:
        for name in VARYING:
            (line.get("cost") or {}).pop(name, None)
        if line["event"] == "failed":
            del line["seed"]  # all of its seeds fail; which is told first is chance
    return sorted(found, key=lambda line: (line["event"], line["variant"], line.get("seed") or 0))


def begun(job, message):
    """The process that a note says has begun a job."""
    found = re.fullmatch(rf"{job}: started on .+, process (\d+) \(.*\)", message)
    return int(found[1]) if found else None


def gone(process):
    """Whether a process is no more, or has ended and is only not yet taken note of."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition):
    end = monotonic() + SECONDS
    while not condition():
        assert monotonic() < end, "waited in vain"
        sleep(0.002)


def test_a_worker_is_killed_in_the_middle_of_a_variant(home, run, address, notes, one_thread):
    home.data["method"] |= {"layers": "7:", "init": {"from": "text", "text": "good"}}
    home.data["train"]["epochs"] = 40  # time enough to be killed in
    here = run("compare", home.recipe, *ASKED, "--output", "here")
    said, listeners = notes
    job, folder = "p-tuning-v2, seed 42", home.path / "there" / "p-tuning-v2-42"
    killed = []

    def kill(process):
        wait_for((folder / "checkpoint").exists)
        os.kill(process, signal.SIGKILL)
        killed.append((folder / "metrics.json").exists())

    def listen(message):
        process = begun(job, message)
        if process and not any("its worker was lost" in note for note in said):
            Thread(target=kill, args=[process]).start()

    listeners.append(listen)
    there = run(
        "compare", home.recipe, *ASKED, "--output", "there", "--json",
        *("--engine", "ray", "--ray-address", address),
    )  # fmt: skip
    assert killed == [False], "it was in the middle of the variant"
    assert f"{job}: its worker was lost; restarted, attempt 1 of at most 3" in said
    assert there.status == here.status == 1
    assert results(home.path / "there") == results(home.path / "here")
    assert [failed["variant"] for failed in there.json["failed"]] == ["prompt-tuning"]
    assert {variant["variant"] for variant in there.json["variants"]} == {
        "majority", "p-tuning-v2", "fine-tuning",
    }  # fmt: skip
    last = [note for note in said if note.endswith("ended (0 running, 0 waiting)")]
    assert len(last) == 1


@pytest.mark.slow
def test_what_was_stopped_goes_on_elsewhere(home, run, address, notes, one_thread):
    home.data["train"]["epochs"] = 30
    asked = (*ASKED, "--methods", "p-tuning-v2", "--baselines", "majority")
    run("compare", home.recipe, *asked, "--output", "here")
    _, listeners = notes
    processes, folder = [], home.path / "there"

    def stop():
        wait_for((folder / "p-tuning-v2-42" / "checkpoint").exists)
        os.kill(os.getpid(), signal.SIGINT)

    def listen(message):
        process = begun(".*", message)
        processes.extend([process] if process else [])
        if process and "p-tuning-v2, seed 42" in message:
            Thread(target=stop).start()

    listeners.append(listen)
    command = ("compare", home.recipe, *asked, "--output", "there")
    stopped = run(*command, "--engine", "ray", "--ray-address", address)
    assert stopped.status == 1
    assert "interrupted; run the same command to resume" in stopped.err
    wait_for(lambda: all(map(gone, processes)))
    assert not (folder / "p-tuning-v2-42" / "metrics.json").exists()
    assert run(*command).status == 0
    assert results(folder) == results(home.path / "here")


@pytest.fixture
def parts(home, backbone):
    """A protocol, runs in a folder that was begun, and the variants of two methods."""
    folder = home.path / "compared"
    folder.mkdir()
    recipe = read_recipe(home.recipe)
    shutil.copy(home.recipe, folder / "recipe.toml")
    tables = {
        split: read_data(str(home.path / f"{split}.jsonl")) for split in ("train", "validation")
    }
    rows = home.rows("test")
    test_set = HeldOutTest(rows, [row["label"] for row in rows], ("negative", "positive"))
    runner = ComparisonRunner(backbone("llama"), tables, folder=folder)
    variants = make_method_variants(recipe, ["prompt-tuning", "p-tuning-v2"])
    return Protocol(1, (1.0,), 0.1, test_set), runner, variants


def test_a_job_that_takes_every_worker_down_is_given_up(address, engine_of, parts):
    _, _, [variant, _] = parts
    here = os.getpid()

    def act(shared, job):
        import os

        assert os.getpid() != here
        os._exit(1)
        yield

    with connect(address):
        engine, said = engine_of(run_job=act)
        assert said == []
        job, failed = engine.take_next([Job(variant, (0, 0))])
    assert (job.variant, failed.variant, failed.seed) == (variant, "prompt-tuning", None)
    assert "the worker was lost 4 times in a row" in failed.error
    assert "too little memory: request more CPUs per run" in failed.error
    begins = [f"prompt-tuning, search: its worker was lost; restarted, attempt {n} of at most 3"
              for n in (1, 2, 3)]  # fmt: skip
    assert said == [*begins, "prompt-tuning, search: ended (0 running, 0 waiting)"]


def test_more_than_any_machine_has_is_waited_for_and_told(address, engine_of):
    with connect(address):
        _, said = engine_of(RayCluster(num_cpus=64, num_gpus=0.5))
    [message] = said
    assert message.startswith("each task requests 64 CPUs and 0.5 GPUs, but the cluster's machines")
    assert "have 1 CPUs and 0 GPUs. Waiting for a larger one to join" in message


def test_what_nobody_wants_any_more_is_cancelled(address, engine_of, parts, tmp_path):
    _, _, [slow, quick] = parts
    going, interrupted = tmp_path / "going", tmp_path / "interrupted"

    def act(shared, job):
        import time

        yield JobStarted("somewhere, process 1")
        if job.variant.name == "prompt-tuning":
            try:
                going.touch()
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted.touch()
                raise
        while not going.exists():
            time.sleep(0.01)
        yield Failed(job.variant.name, job.seed, "as it should")

    unwanted, wanted = Job(slow, (0, 0)), Job(quick, (0, 1))
    with connect(address):
        engine, said = engine_of(run_job=act)
        assert engine.take_next([unwanted, wanted])[0] == wanted
        assert engine.take_next([replace(wanted, seed=1)])[1].error == "as it should"
        wait_for(interrupted.exists)
    assert sum("prompt-tuning, search: cancelled" in message for message in said) == 1


def test_a_worker_runs_as_it_is_told(parts, monkeypatch, one_thread):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    protocol, runner, [variant, _] = parts
    shared = make_worker_job(protocol, runner, num_threads=2, num_gpus=0)
    begun, found = run_worker_job(shared, Job(variant, (0, 0)))
    assert str(os.getpid()) in begun.where
    assert found == SearchResult("prompt-tuning", {}, 1.0, 0.1, variant.cache_key)
    assert torch.get_num_threads() == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "it sees no GPU that it was not given"


def test_rows_travel_whole(parts):
    protocol, runner, _ = parts
    runner.tables = {"train": runner.tables["train"].select([3, 5])}
    sent = make_worker_job(protocol, runner, num_threads=1, num_gpus=0).tables["train"]
    assert sent.to_pylist() == runner.tables["train"].to_list()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda shared: replace(shared, version="0.0"), "but the comparison was started with 0.0"),
        (lambda shared: replace(shared, folder=Path("absent")), "cannot read the comparison's"),
        (lambda shared: replace(shared, recipe="other"), "Choose an output folder that all"),
    ],
)
def test_a_machine_that_cannot_run_a_job_says_so(parts, spoil, message):
    protocol, runner, [variant, _] = parts
    shared = make_worker_job(protocol, runner, num_threads=1, num_gpus=0)
    _, failed = run_worker_job(spoil(shared), Job(variant, (0, 0)))
    assert isinstance(failed, Failed)
    assert message in failed.error


@pytest.fixture
def closed():
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1:{1}".format(*free.getsockname())


def test_without_a_cluster(home, run, closed, monkeypatch):
    ray = pytest.importorskip("ray")
    command = ("compare", home.recipe, "--engine", "ray")
    remedy = "Start one (ray start --head"
    assert run(*command, "--ray-address", closed).is_mistake(
        f"cannot connect to a Ray cluster at {closed}", remedy
    )
    assert run(*command, "--ray-address", "ray://here:1").is_mistake("not of the form HOST:PORT")
    assert run(*command, "--ray-address", "here").is_mistake("that is not of the form HOST:PORT")
    monkeypatch.setenv("RAY_ADDRESS", closed)
    assert run(*command).is_mistake(f"cannot connect to a Ray cluster at {closed}", remedy)
    monkeypatch.delenv("RAY_ADDRESS")

    def absent(**asked):
        assert asked["address"] == "auto"
        raise ConnectionError

    monkeypatch.setattr(ray, "init", absent)
    assert run(*command).is_mistake("cannot connect to a Ray cluster on this machine", remedy)
    assert not (home.path / "runs").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--engine", "rai"), ("unknown engine 'rai'. Options: local, ray. Did you mean 'ray'?",)),
        (
            ("--cpus", 2, "--gpus", 0),
            ("--cpus is for a Ray cluster", "--gpus is for a Ray cluster"),
        ),
        (("--engine", "ray", "--gpus", 1.5), ("num_gpus is 1.5, but a run gets whole GPUs",)),
    ],
)
def test_mistakes(home, run, options, messages):
    assert run("compare", home.recipe, *options).is_mistake(*messages)


def test_without_ray(home, run, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", {}.get)
    said = run("compare", home.recipe, "--engine", "ray")
    assert said.is_mistake("pip install 'softprompt[ray]'")
