"""Tasks of every way of answering, rows for them, and models made of a random prompt."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from softprompt.artifact import Artifact, assemble, name_of
from softprompt.backbone import Backbone
from softprompt.evaluate.model import Model, bring
from softprompt.prompt import Prompt
from softprompt.tasks import Classify, Generate, Task, TaskSettings, bind

LABELS = ("negative", "positive")
WORDS = {"negative": " bad", "positive": [" good", " great"]}
ROWS = [
    {"text": "the film was good", "label": "positive", "target": "good"},
    {"text": "bad", "label": "negative", "target": "very bad"},
    {
        "text": "a dull story and an awful actor in a boring film",
        "label": "negative",
        "target": "no",
    },
    {"text": "great music", "label": "positive", "target": "yes"},
    {"text": "this movie is old", "label": "negative", "target": "fresh film"},
    {"text": "one of the great films with a bright plot", "label": "positive", "target": "a"},
    {"text": "no", "label": "positive", "target": "maybe"},
]
# family, task, shape: every way that an answer is read, with both kinds of prompt.
WAYS = {
    "causal words": ("llama", "words", "input"),
    "causal words, prefix": ("gpt2", "words", "kv"),
    "masked words": ("bert", "words", "input"),
    "answer words": ("t5", "words", "kv"),
    "head on [CLS]": ("bert", "head", "kv"),
    "head on the last token": ("gpt_neox", "head", "input"),
    "text": ("llama", "text", "kv"),
    "text of a seq2seq": ("bart", "text", "input"),
    "a choice": ("qwen3", "choice", "input"),
}


def settings_of(kind: str, *, family: str, shape: str) -> TaskSettings:
    soft = "{soft:3}" if shape == "input" else ""
    match kind:
        case "words":
            mask = " {mask}" if family == "bert" else ""
            return Classify(template=f"{soft}{{text}} is{mask}", verbalizer=WORDS)
        case "head":
            return Classify(template=f"{soft}{{text}}", head="mlp")
        case "text":
            return Generate(template=f"{{text}} is{soft}", max_new_tokens=4)
        case _:
            template = f"{{text}} is{soft}"
            return Generate(template, target_column="label", choices=LABELS, max_new_tokens=20)


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """Rows of one to many tokens."""
    return ROWS


@pytest.fixture
def model(backbone, maker) -> Callable[..., Model]:
    """A model of one of the ways, its prompt random but always the same; or of a given prompt."""

    def make(
        way: str | tuple[str, str, str],
        *,
        settings: TaskSettings | None = None,
        prompt: Prompt | None = None,
        seed: int = 3,
        own: Backbone | None = None,
        **origin: Any,
    ) -> Model:
        family, kind, shape = WAYS[way] if isinstance(way, str) else way
        own = own or backbone(family)
        chosen = settings or settings_of(kind, family=family, shape=shape)
        labels = () if kind == "text" else LABELS
        task = bind(chosen, own, template=chosen.template, labels=labels, seed=seed)
        head = {} if task.head is None else task.head.state_dict()
        prompt = prompt or maker(family).prompt(shape)
        return bring(assembled(prompt, head, chosen, own, task, origin), own)

    return make


def assembled(prompt, head, chosen, own, task: Task, origin: dict[str, Any]) -> Artifact:
    usual: dict[str, Any] = {
        "template": chosen.template,
        "max_length": None,
        "task": {"kind": chosen.kind, **asdict(chosen)},
        "labels": list(task.labels),
        "backbone": name_of(own),
        "data": {},
        "recipe": {},
        "metrics": {},
    }
    return assemble(prompt, head, **{**usual, **origin})
