"""``softprompt serve`` in a process of its own: starts, answers, drains at SIGTERM, checks."""

import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from softprompt.serve.registry import Registry
from support.cli_runner import run_command, start_command
from support.models import make_model_factory
from support.tiny_models import save_checkpoint


@pytest.fixture
def saved(tmp_path: Path, backbone, maker) -> Path:
    """An artifact whose backbone is in a folder."""
    from softprompt.injection import load_backbone

    folder = tmp_path / "backbone"
    save_checkpoint(folder, "llama")
    own = load_backbone(folder, dtype="float32", device="cpu")
    model = make_model_factory(backbone, maker)(("llama", "words", "input"), own=own)
    return model.save(tmp_path / "mood")


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if match := re.match(r"API +(http://\S+)/v1", line):
            return match[1]
    raise AssertionError("".join(said))


def test_it_starts_answers_and_drains(saved: Path) -> None:
    process = start_command("serve", saved, "--port", "0", "--drain", "10")
    try:
        url = read_address(process)
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
