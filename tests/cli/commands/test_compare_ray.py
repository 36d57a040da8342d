"""``softprompt compare --engine ray``: the results of a local run, also if a worker is lost."""

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
from softprompt.tasks.objectives import SingleLabel

# Set before Ray is imported: it uses the loopback only, and sends no usage statistics.
os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_memory_monitor_refresh_ms="0",  # Ray itself kills no worker
)

SECONDS = 60
VARIANTS = ("--methods", "prompt-tuning,p-tuning-v2", "--baselines", "majority,fine-tuning")
OPTIONS = (*VARIANTS, "--seeds", 2, "--lr-multipliers", "1,3")
# Costs that depend on the machine.
VARYING = ("seconds", "speed", "memory")


@pytest.fixture(scope="module")
def address():
    """A local cluster of two machines with a CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    folder = tempfile.mkdtemp(
        prefix="ray-"
    )  # pytest's folders are too long for the name of a socket
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_TMPDIR", folder)  # "auto" still means the user's own cluster
    # A shell in the background ignores interrupts, and its processes inherit that.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = {
        "num_cpus": 1,
        "object_store_memory": 80 << 20,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
    }
    machines = Machines(initialize_head=True, head_node_args=settings)
    try:
        machines.add_node(**settings)
        yield machines.address
    finally:
        machines.shutdown()
        signal.signal(signal.SIGINT, handler)
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def one_thread():
    """As many threads as a worker has: the number affects the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def status(monkeypatch):
    """The status messages of the command, and functions that are called with each of them."""
    messages, listeners = [], []

    def print_status(message):
        messages.append(message)
        for listen in listeners:
            listen(message)

    monkeypatch.setattr("softprompt.cli.commands.compare.print_status", print_status)
    return messages, listeners


@pytest.fixture
def make_engine(parts):
    """Makes an engine, and the list of its messages."""
    protocol, runner, _ = parts

    def make(cluster=RayCluster(), **more):  # noqa: B008  # a frozen value
        messages = []

        def notify(event):
            messages.append(str(event))

        return RayEngine(protocol, runner, cluster=cluster, callback=notify, **more), messages

    return make


def read_results(folder):
    """The results of a comparison, sorted, without costs that depend on the machine."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for line in lines:
        for name in VARYING:
            (line.get("cost") or {}).pop(name, None)
        if line["event"] == "failed":
            del line["seed"]  # all of its seeds fail, and any of them may be the first
    return sorted(lines, key=lambda line: (line["event"], line["variant"], line.get("seed") or 0))


def find_process(job, message):
    """The process that has started a job, by the message; None for other messages."""
    match = re.fullmatch(rf"{job}: started on .+, process (\d+) \(.*\)", message)
    return int(match[1]) if match else None


def is_gone(process):
    """Whether a process has ended; its parent may not have read its status."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition):
    end = monotonic() + SECONDS
    while not condition():
        assert monotonic() < end, "timed out"
        sleep(0.002)


def test_a_worker_is_killed_in_the_middle_of_a_variant(home, run, address, status, one_thread):
    home.data["method"] |= {"layers": "7:", "init": {"from": "text", "text": "good"}}
    home.data["train"]["epochs"] = 40  # long enough to be killed
    local = run("compare", home.recipe, *OPTIONS, "--output", "local")
    messages, listeners = status
    job, folder = "p-tuning-v2, seed 42", home.path / "remote" / "p-tuning-v2-42"
    killed = []

    def kill(process):
        wait_for((folder / "checkpoint").exists)
        os.kill(process, signal.SIGKILL)
        killed.append((folder / "metrics.json").exists())

    def listen(message):
        process = find_process(job, message)
        if process and not any("its worker was lost" in earlier for earlier in messages):
            Thread(target=kill, args=[process]).start()

    listeners.append(listen)
    remote = run(
        "compare", home.recipe, *OPTIONS, "--output", "remote", "--json",
        *("--engine", "ray", "--ray-address", address),
    )  # fmt: skip
    assert killed == [False], "it was in the middle of the variant"
    assert f"{job}: its worker was lost; restarted, attempt 1 of at most 3" in messages
    assert remote.status == local.status == 1
    assert read_results(home.path / "remote") == read_results(home.path / "local")
    assert [failed["variant"] for failed in remote.json["failed"]] == ["prompt-tuning"]
    assert {variant["variant"] for variant in remote.json["variants"]} == {
        "majority", "p-tuning-v2", "fine-tuning",
    }  # fmt: skip
    last = [message for message in messages if message.endswith("ended (0 running, 0 waiting)")]
    assert len(last) == 1


@pytest.mark.slow
def test_a_stopped_comparison_resumes_without_the_cluster(home, run, address, status, one_thread):
    home.data["train"]["epochs"] = 30
    options = (*OPTIONS, "--methods", "p-tuning-v2", "--baselines", "majority")
    run("compare", home.recipe, *options, "--output", "local")
    _, listeners = status
    processes, folder = [], home.path / "remote"

    def stop():
        wait_for((folder / "p-tuning-v2-42" / "checkpoint").exists)
        os.kill(os.getpid(), signal.SIGINT)

    def listen(message):
        process = find_process(".*", message)
        processes.extend([process] if process else [])
        if process and "p-tuning-v2, seed 42" in message:
            Thread(target=stop).start()

    listeners.append(listen)
    command = ("compare", home.recipe, *options, "--output", "remote")
    stopped = run(*command, "--engine", "ray", "--ray-address", address)
    assert stopped.status == 1
    assert "interrupted; run the same command to resume" in stopped.err
    wait_for(lambda: all(map(is_gone, processes)))
    assert not (folder / "p-tuning-v2-42" / "metrics.json").exists()
    assert run(*command).status == 0
    assert read_results(folder) == read_results(home.path / "local")


@pytest.fixture
def parts(home, backbone):
    """A protocol, a runner in the folder of a started comparison, and two variants."""
    folder = home.path / "compared"
    folder.mkdir()
    recipe = read_recipe(home.recipe)
    shutil.copy(home.recipe, folder / "recipe.toml")
    tables = {
        split: read_data(str(home.path / f"{split}.jsonl")) for split in ("train", "validation")
    }
    rows = home.rows("test")
    test_set = HeldOutTest(
        rows, [row["label"] for row in rows], SingleLabel(("negative", "positive"))
    )
    runner = ComparisonRunner(backbone("llama"), tables, folder=folder)
    variants = make_method_variants(recipe, ["prompt-tuning", "p-tuning-v2"])
    return Protocol(1, (1.0,), 0.1, test_set), runner, variants


def test_a_job_that_loses_every_worker_fails(address, make_engine, parts):
    _, _, [variant, _] = parts
    here = os.getpid()

    def run_job(shared, job):
        import os

        assert os.getpid() != here
        os._exit(1)
        yield

    with connect(address):
        engine, messages = make_engine(run_job=run_job)
        assert messages == []
        job, failed = engine.take_next([Job(variant, (0, 0))])
    assert (job.variant, failed.variant, failed.seed) == (variant, "prompt-tuning", None)
    assert "the worker was lost 4 times in a row" in failed.error
    assert "too little memory: request more CPUs per run" in failed.error
    restarts = [f"prompt-tuning, search: its worker was lost; restarted, attempt {n} of at most 3"
                for n in (1, 2, 3)]  # fmt: skip
    assert messages == [*restarts, "prompt-tuning, search: ended (0 running, 0 waiting)"]


def test_resources_that_no_machine_has_are_reported(address, make_engine):
    with connect(address):
        _, messages = make_engine(RayCluster(num_cpus=64, num_gpus=0.5))
    [message] = messages
    assert message.startswith("each task requests 64 CPUs and 0.5 GPUs, but the cluster's machines")
    assert "have 1 CPUs and 0 GPUs. Waiting for a larger one to join" in message


def test_a_job_that_is_no_longer_open_is_cancelled(address, make_engine, parts, tmp_path):
    _, _, [slow, quick] = parts
    started, interrupted = tmp_path / "started", tmp_path / "interrupted"

    def run_job(shared, job):
        import time

        yield JobStarted("somewhere, process 1")
        if job.variant.name == "prompt-tuning":
            try:
                started.touch()
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted.touch()
                raise
        while not started.exists():
            time.sleep(0.01)
        yield Failed(job.variant.name, job.seed, "on purpose")

    first, second = Job(slow, (0, 0)), Job(quick, (0, 1))
    with connect(address):
        engine, messages = make_engine(run_job=run_job)
        assert engine.take_next([first, second])[0] == second
        assert engine.take_next([replace(second, seed=1)])[1].error == "on purpose"
        wait_for(interrupted.exists)
    assert sum("prompt-tuning, search: cancelled" in message for message in messages) == 1


def test_a_worker_uses_the_threads_and_gpus_of_its_task(parts, monkeypatch, one_thread):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    protocol, runner, [variant, _] = parts
    shared = make_worker_job(protocol, runner, num_threads=2, num_gpus=0)
    started, result = run_worker_job(shared, Job(variant, (0, 0)))
    assert str(os.getpid()) in started.where
    assert result == SearchResult("prompt-tuning", {}, 1.0, 0.1, variant.cache_key)
    assert torch.get_num_threads() == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "it sees the GPUs of its task only"


def test_all_rows_are_sent(parts):
    protocol, runner, _ = parts
    runner.tables = {"train": runner.tables["train"].select([3, 5])}
    sent = make_worker_job(protocol, runner, num_threads=1, num_gpus=0).tables["train"]
    assert sent.to_pylist() == runner.tables["train"].to_list()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shared: replace(shared, version="0.0"), "but the comparison was started with 0.0"),
        (lambda shared: replace(shared, folder=Path("absent")), "cannot read the comparison's"),
        (lambda shared: replace(shared, recipe="other"), "Choose an output folder that all"),
    ],
)
def test_a_machine_that_cannot_run_a_job_reports_it(parts, change, message):
    protocol, runner, [variant, _] = parts
    shared = make_worker_job(protocol, runner, num_threads=1, num_gpus=0)
    _, failed = run_worker_job(change(shared), Job(variant, (0, 0)))
    assert isinstance(failed, Failed)
    assert message in failed.error


@pytest.fixture
def closed():
    """An address that accepts no connections."""
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

    def fail(**settings):
        assert settings["address"] == "auto"
        raise ConnectionError

    monkeypatch.setattr(ray, "init", fail)
    # The error has no text of its own.
    message = "cannot connect to a Ray cluster on this machine. Start one (ray start --head"
    assert run(*command).is_mistake(message)
    assert not (home.path / "runs").exists(), "no comparison was started"


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--engine", "rai"), ("unknown engine 'rai'. Options: local, ray. Did you mean 'ray'?",)),
        (
            ("--cpus", 2, "--gpus", 0),
            ("--cpus and --gpus are for a Ray cluster, but the engine is local.",),
        ),
        (
            ("--engine", "ray", "--gpus", 1.5),
            ("num_gpus (--gpus) is 1.5, but a run gets whole GPUs",),
        ),
    ],
)
def test_mistakes(home, run, options, messages):
    assert run("compare", home.recipe, *options).is_mistake(*messages)


def test_without_ray(home, run, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", {}.get)
    result = run("compare", home.recipe, "--engine", "ray")
    assert result.is_mistake("pip install 'softprompt[ray]'")
