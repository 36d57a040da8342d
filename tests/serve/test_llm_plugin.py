"""The plugin of ``llm``: the real package lists a server's prompts, and streams their answers."""

import asyncio
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from support.models import ROWS

llm = pytest.importorskip("llm")
TEXTS = [row["text"] for row in ROWS]


@pytest.fixture
def plugged(serve, monkeypatch, tmp_path):
    """The package with the plugin as its entry point names it, and a server."""
    from llm.plugins import load_plugins, pm

    live = serve()
    monkeypatch.setenv("SOFTPROMPT_URL", live.url)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setattr("sys._called_from_test", True, raising=False)
    load_plugins()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    module = import_module(project["project"]["entry-points"]["llm"]["softprompt"])
    pm.register(module, "softprompt")
    yield live
    pm.unregister(module)


def test_llm_does_not_wait_for_torch() -> None:
    code = "import sys, softprompt.serve.llm_plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_lists_the_prompts_and_the_backbone(plugged, models) -> None:
    names = {model.model_id for model in llm.get_models()}
    assert {f"softprompt/{name}" for name in models} <= names
    base = plugged.site.service.base_name
    assert f"softprompt/{base}" in names


def test_answers_are_those_of_predict(plugged, models) -> None:
    expected = models["reply"].predict(TEXTS[0])[0].label
    model = llm.get_model("softprompt/reply")
    pieces = list(model.prompt(TEXTS[0]))
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 1  # it streams
    whole = model.prompt(TEXTS[0], stream=False)
    assert whole.text() == expected
    usage = whole.usage()
    assert usage.output == len(models["reply"].predict(TEXTS[0])[0].token_ids)
    short = model.prompt(TEXTS[0], max_tokens=1)
    assert short.text() and expected.startswith(short.text())  # noqa: PT018
    assert short.usage().output == 1
    label = llm.get_model("softprompt/mood").prompt(TEXTS[0]).text()
    assert label == models["mood"].predict(TEXTS[0])[0].label


def test_it_works_with_asyncio(plugged, models) -> None:
    async def ask() -> str:
        return await llm.get_async_model("softprompt/reply").prompt(TEXTS[0]).text()

    assert asyncio.run(ask()) == models["reply"].predict(TEXTS[0])[0].label


def test_the_servers_own_message_is_shown(plugged) -> None:
    base = plugged.site.service.base_name
    with pytest.raises(llm.ModelError, match="has no chat template"):
        llm.get_model(f"softprompt/{base}").prompt("a").text()
    model = llm.get_model("softprompt/reply")
    with pytest.raises(llm.ModelError, match="top_p = 3"):
        model.prompt("a", top_p=3.0).text()


def test_without_a_server_llm_still_works(plugged, monkeypatch, caplog) -> None:
    monkeypatch.setenv("SOFTPROMPT_URL", "http://127.0.0.1:9")
    assert not [m for m in llm.get_models() if m.model_id.startswith("softprompt/")]
    assert "lists no prompts" in caplog.text
    monkeypatch.delenv("SOFTPROMPT_URL")
    caplog.clear()
    assert not [m for m in llm.get_models() if m.model_id.startswith("softprompt/")]
    assert caplog.text == ""


def test_a_key_is_sent(serve, plugged, monkeypatch) -> None:
    from softprompt.serve.keys import load_keys

    secret = "a" * 16
    live = serve(keys=load_keys(None, {"SOFTPROMPT_API_KEY": secret}))
    monkeypatch.setenv("SOFTPROMPT_URL", live.url)
    assert not [m for m in llm.get_models() if m.model_id.startswith("softprompt/")]
    monkeypatch.setenv("SOFTPROMPT_API_KEY", secret)
    assert llm.get_model("softprompt/mood").prompt(TEXTS[0]).text() in {"negative", "positive"}


def test_the_command_line_of_llm_answers(plugged, models) -> None:
    from click.testing import CliRunner
    from llm.cli import cli

    done = CliRunner().invoke(cli, ["-m", "softprompt/reply", TEXTS[0], "--no-log"])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == models["reply"].predict(TEXTS[0])[0].label
