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

from softprompt.cli import cluster as clusters
from softprompt.cli.cluster import Cluster, Needs, connected
from softprompt.cli.errand import Begun, errand_of, run_errand
from softprompt.cli.runs import Runs
from softprompt.compare import Exam, Failed, Job, Protocol, Searched, method_arms
from softprompt.data import read
from softprompt.recipe import read_recipe

# Before Ray is imported: it is to speak over the loopback alone, and to tell nobody of its use.
os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_memory_monitor_refresh_ms="0",  # nobody but the test kills
)

SECONDS = 60
ARMS = ("--methods", "prompt-tuning,p-tuning-v2", "--controls", "majority,fine-tuning")
ASKED = (*ARMS, "--seeds", 2, "--rates", "1,3")
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
    """What the engine says; whoever listens is called with each note."""
    said, listeners = [], []

    def note(message):
        said.append(message)
        for listen in listeners:
            listen(message)

    monkeypatch.setattr(clusters, "note", note)
    return said, listeners


def outcomes(folder):
    """What is written of a comparison, in no order, without what a machine has to do with."""
    found = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    for line in found:
        for name in VARYING:
            (line.get("cost") or {}).pop(name, None)
        if line["event"] == "failed":
            del line["seed"]  # all of its seeds fail; which is told first is chance
    return sorted(found, key=lambda line: (line["event"], line["arm"], line.get("seed") or 0))


def begun(job, message):
    """The process that a note says has begun a job."""
    found = re.fullmatch(rf"{job}: begun on .+, process (\d+) \(.*\)", message)
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


def test_a_worker_is_killed_in_the_middle_of_an_arm(home, run, address, notes, one_thread):
    home.data["method"] |= {"layers": "7:", "initialise": {"from": "text", "text": "good"}}
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
        *("--engine", "ray", "--address", address),
    )  # fmt: skip
    assert killed == [False], "it was in the middle of the arm"
    assert f"{job}: its worker was lost; begun again, time 1 of at most 3" in said
    assert there.status == here.status == 1
    assert outcomes(home.path / "there") == outcomes(home.path / "here")
    assert [failed["arm"] for failed in there.json["failed"]] == ["prompt-tuning"]
    assert {arm["arm"] for arm in there.json["arms"]} == {
        "majority", "p-tuning-v2", "fine-tuning",
    }  # fmt: skip
    last = [note for note in said if note.endswith("ended (0 running, 0 waiting)")]
    assert len(last) == 1


@pytest.mark.slow
def test_what_was_stopped_goes_on_elsewhere(home, run, address, notes, one_thread):
    home.data["train"]["epochs"] = 30
    asked = (*ASKED, "--methods", "p-tuning-v2", "--controls", "majority")
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
    stopped = run(*command, "--engine", "ray", "--address", address)
    assert stopped.status == 1
    assert "stopped; the same command goes on where it was" in stopped.err
    wait_for(lambda: all(map(gone, processes)))
    assert not (folder / "p-tuning-v2-42" / "metrics.json").exists()
    assert run(*command).status == 0
    assert outcomes(folder) == outcomes(home.path / "here")


@pytest.fixture
def errand_parts(home, backbone):
    """A protocol, runs in a folder that was begun, and the arms of two methods."""
    folder = home.path / "compared"
    folder.mkdir()
    recipe = read_recipe(home.recipe)
    shutil.copy(home.recipe, folder / "recipe.toml")
    tables = {split: read(str(home.path / f"{split}.jsonl")) for split in ("train", "validation")}
    rows = home.rows("test")
    exam = Exam(rows, [row["label"] for row in rows], ("negative", "positive"))
    runs = Runs(backbone("llama"), tables, folder=folder, heed=lambda: None)
    arms = method_arms(recipe, ["prompt-tuning", "p-tuning-v2"])
    return Protocol(1, (1.0,), 0.1, exam), runs, arms


def test_a_job_that_takes_every_worker_down_is_given_up(address, notes, errand_parts):
    protocol, runs, [arm, _] = errand_parts
    here = os.getpid()

    def act(errand, job):
        import os

        assert os.getpid() != here
        os._exit(1)
        yield

    said, _ = notes
    with connected(address):
        engine = Cluster(protocol, runs, needs=Needs(), act=act)
        assert said == []
        job, failed = engine.next([Job(arm, (0, 0))])
    assert (job.arm, failed.arm, failed.seed) == (arm, "prompt-tuning", None)
    assert "the worker was lost 4 times in a row" in failed.error
    assert "too little memory: ask for more --cpus" in failed.error
    begins = [f"prompt-tuning, search: its worker was lost; begun again, time {n} of at most 3"
              for n in (1, 2, 3)]  # fmt: skip
    assert said == [*begins, "prompt-tuning, search: ended (0 running, 0 waiting)"]


def test_more_than_any_machine_has_is_waited_for_and_told(address, notes, errand_parts):
    protocol, runs, _ = errand_parts
    said, _ = notes
    with connected(address):
        Cluster(protocol, runs, needs=Needs(cpus=64, gpus=0.5))
    [message] = said
    assert message.startswith("each task asks for 64 CPUs and 0.5 GPUs, but the cluster's machines")
    assert "have 1 CPUs and 0 GPUs. Waiting for a larger one to join" in message


def test_what_nobody_wants_any_more_is_cancelled(address, notes, errand_parts, tmp_path):
    protocol, runs, [slow, quick] = errand_parts
    going, interrupted = tmp_path / "going", tmp_path / "interrupted"

    def act(errand, job):
        import time

        yield Begun("somewhere, process 1")
        if job.arm.name == "prompt-tuning":
            try:
                going.touch()
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted.touch()
                raise
        while not going.exists():
            time.sleep(0.01)
        yield Failed(job.arm.name, job.seed, "as it should")

    said, _ = notes
    unwanted, wanted = Job(slow, (0, 0)), Job(quick, (0, 1))
    with connected(address):
        engine = Cluster(protocol, runs, needs=Needs(), act=act)
        assert engine.next([unwanted, wanted])[0] == wanted
        assert engine.next([replace(wanted, seed=1)])[1].error == "as it should"
        wait_for(interrupted.exists)
    assert sum("prompt-tuning, search: cancelled" in message for message in said) == 1


def test_a_worker_runs_as_it_is_told(errand_parts, monkeypatch, one_thread):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    protocol, runs, [arm, _] = errand_parts
    begun, found = run_errand(errand_of(protocol, runs, threads=2, gpus=0), Job(arm, (0, 0)))
    assert str(os.getpid()) in begun.where
    assert found == Searched("prompt-tuning", {}, 1.0, 0.1, arm.mark)
    assert torch.get_num_threads() == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "it sees no GPU that it was not given"


def test_rows_travel_whole(errand_parts):
    protocol, runs, _ = errand_parts
    runs.tables = {"train": runs.tables["train"].select([3, 5])}
    sent = errand_of(protocol, runs, threads=1, gpus=0).tables["train"]
    assert sent.to_pylist() == runs.tables["train"].to_list()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda errand: replace(errand, version="0.0"), "but the command was given with 0.0"),
        (lambda errand: replace(errand, folder=Path("absent")), "does not see the comparison's"),
        (lambda errand: replace(errand, recipe="other"), "Name a folder with --output that all"),
    ],
)
def test_a_machine_that_cannot_run_a_job_says_so(errand_parts, spoil, message):
    protocol, runs, [arm, _] = errand_parts
    errand = errand_of(protocol, runs, threads=1, gpus=0)
    _, failed = run_errand(spoil(errand), Job(arm, (0, 0)))
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
    assert run(*command, "--address", closed).is_mistake(f"no Ray cluster at {closed}", remedy)
    assert run(*command, "--address", "ray://here:1").is_mistake("not of the form HOST:PORT")
    assert run(*command, "--address", "here").is_mistake("that is not of the form HOST:PORT")
    monkeypatch.setenv("RAY_ADDRESS", closed)
    assert run(*command).is_mistake(f"no Ray cluster at {closed}", remedy)
    monkeypatch.delenv("RAY_ADDRESS")

    def absent(**asked):
        assert asked["address"] == "auto"
        raise ConnectionError

    monkeypatch.setattr(ray, "init", absent)
    assert run(*command).is_mistake("no Ray cluster on this machine", remedy)
    assert not (home.path / "runs").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--engine", "rai"), ("unknown engine 'rai'. Options: local, ray. Did you mean 'ray'?",)),
        (("--cpus", 2, "--gpus", 0), ("--cpus is for a cluster", "--gpus is for a cluster")),
        (("--engine", "ray", "--gpus", 1.5), ("--gpus 1.5: a task gets whole GPUs",)),
    ],
)
def test_mistakes(home, run, options, messages):
    assert run("compare", home.recipe, *options).is_mistake(*messages)


def test_without_ray(home, run, monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", {}.get)
    said = run("compare", home.recipe, "--engine", "ray")
    assert said.is_mistake("pip install 'softprompt[ray]'")
