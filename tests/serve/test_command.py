"""``softprompt serve`` in a process of its own: starts, answers, drains at SIGTERM, checks."""

import re
import shutil
import signal
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from softprompt.serve.registry import Registry
from support.cli_runner import run_command, start_command
from support.models import make_model_factory
from support.tiny_models import save_checkpoint

OPENSSL = shutil.which("openssl")


@pytest.fixture
def saved(tmp_path: Path, backbone, maker) -> Path:
    """An artifact whose backbone is in a folder."""
    from softprompt.injection import load_backbone

    folder = tmp_path / "backbone"
    save_checkpoint(folder, "llama")
    own = load_backbone(folder, dtype="float32", device="cpu")
    model = make_model_factory(backbone, maker)(("llama", "words", "input"), own=own)
    return model.save(tmp_path / "mood")


def read_address(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """The address of the server, and what it said before."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if match := re.match(r"API +(https?://\S+)/v1", line):
            return match[1], said
    raise AssertionError("".join(said))


def test_it_starts_answers_and_drains(saved: Path) -> None:
    process = start_command("serve", saved, "--port", "0", "--drain", "10")
    try:
        url, _ = read_address(process)
        answer = httpx.post(f"{url}/v1/predict", json={"model": "mood", "rows": ["dull"]})
        assert answer.json()["data"][0]["label"] in {"negative", "positive"}
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    lines = said.splitlines()
    assert lines[-1] == "stopped"
    assert any('"route": "/v1/predict", "status": 200' in line for line in lines)
    assert "dull" not in said  # texts are not logged


def test_it_stands_in_front_of_vllm(saved: Path, tmp_path: Path, backbone, maker) -> None:
    from softprompt.injection import load_backbone
    from support.stand_in import StandIn, run_stand_in

    own = load_backbone(tmp_path / "backbone", dtype="float32", device="cpu")
    late = make_model_factory(backbone, maker)(("llama", "words", "kv"), own=own)
    late.save(tmp_path / "tone")
    with run_stand_in(StandIn(own.model)) as vllm:
        process = start_command(
            "serve", saved, tmp_path / "tone", "--port", "0", "--upstream", vllm
        )
        try:
            url, said = read_address(process)
            assert any(line.startswith("warning: tone cannot be served there") for line in said)
            answer = httpx.post(f"{url}/v1/predict", json={"model": "mood", "rows": ["dull"]})
            assert answer.json()["data"][0]["label"] in {"negative", "positive"}
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    assert process.returncode == 0
    gone = run_command("serve", saved, "--upstream", vllm)
    assert gone.is_mistake("cannot be reached")


def make_certificate(folder: Path, name: str) -> list[str | Path]:
    """A certificate that signs itself, as the options name its two files."""
    pair = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", pair[1], "-out", pair[0]],
        check=True, capture_output=True,
    )  # fmt: skip
    return ["--tls-certificate", pair[0], "--tls-key", pair[1]]


@pytest.mark.skipif(OPENSSL is None, reason="there is no openssl on this machine")
def test_it_speaks_https(saved: Path, tmp_path: Path) -> None:
    tls = make_certificate(tmp_path, "server")
    process = start_command("serve", saved, "--port", "0", *tls)
    try:
        url, _ = read_address(process)
        assert url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(tls[1]))
        body = {"model": "mood", "rows": ["dull"]}
        answer = httpx.post(f"{url}/v1/predict", json=body, verify=trusted)
        assert answer.json()["data"][0]["label"] in {"negative", "positive"}
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.post(f"{url}/v1/predict", json=body)
        with pytest.raises(httpx.TransportError):
            httpx.post(url.replace("https", "http"), json=body)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    other = make_certificate(tmp_path, "other")
    mixed = run_command("serve", saved, *tls[:3], other[3], "--check")
    assert mixed.is_mistake("are not a certificate and its key")
    gone = run_command("serve", saved, *tls[:3], tmp_path / "none", "--check")
    assert gone.is_mistake("it does not exist")
    assert run_command("serve", saved, *tls, "--check").status == 0


def test_check_names_what_cannot_be_served(saved: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(saved, "mood")
    where = ("--registry", registry.folder)
    result = run_command("serve", *where, "--check", "--json")
    assert (result.status, result.json["faults"]) == (0, {})
    with (registry.folder / "mood@1" / "prompt.safetensors").open("ab") as file:
        file.write(b"x")
    second = registry.publish(saved, "tone")
    assert second.is_current
    result = run_command("serve", *where, "--check", "--backbone", tmp_path / "backbone")
    assert result.status == 2
    assert "truncated or damaged" in result.err + result.out


def test_mistakes_are_named(saved: Path, tmp_path: Path) -> None:
    assert run_command("serve").is_mistake("give folders of prompts, or a registry")
    both = run_command("serve", saved, "--registry", tmp_path)
    assert both.is_mistake("and not both")
    assert run_command("serve", "--registry", tmp_path / "none").is_mistake("there is no registry")
    assert run_command("serve", "--registry", tmp_path).is_mistake("has no prompts")
    assert run_command("serve", saved, "--host", "0.0.0.0").is_mistake("without keys")  # noqa: S104
    assert run_command("serve", saved, "--keys", tmp_path / "keys.toml").status == 2
    made = run_command("serve", "--make-key", "team")
    assert made.out.startswith("sp-")
    assert "[[key]]" in made.out


def test_a_port_that_is_taken_is_named(saved: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_command("serve", saved, "--port", port).is_mistake(f"port {port} of 127.0.0.1")
