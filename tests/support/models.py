"""Models of every task, made of a random prompt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt.artifact import Artifact, describe_backbone, make_artifact
from softprompt.backbone import Backbone
from softprompt.inference import PromptModel, attach
from softprompt.prompt import Prompt
from softprompt.tasks import Classify, Generate, Tag, Task, TaskSettings, build_task
from softprompt.tasks.config import describe_settings
from softprompt.tasks.heads import PooledHeadTask
from support.prompts import Maker

LABELS = ("negative", "positive")
TAGS = ("O", "B-FILM", "I-FILM", "B-MOOD", "I-MOOD")
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
# The family, the kind of task and the kind of prompt of models that cover every readout.
WAYS = {
    "causal words": ("llama", "words", "input"),
    "causal words, prefix": ("gpt2", "words", "kv"),
    "masked words": ("bert", "words", "input"),
    "answer words": ("t5", "words", "kv"),
    "head on [CLS]": ("bert", "head", "kv"),
    "head on the last token": ("gpt_neox", "head", "input"),
    "head on words": ("bert", "tag", "kv"),
    "text": ("llama", "text", "kv"),
    "text of a seq2seq": ("bart", "text", "input"),
    "a choice": ("qwen3", "choice", "input"),
}


def make_settings(kind: str, *, family: str, shape: str) -> TaskSettings:
    """The settings of a task.

    Args:
        kind: ``words``, ``head``, ``tag``, ``text`` or ``choice``.
        family: of the backbone.
        shape: of the prompt, ``input`` or ``kv``.
    """
    soft = "{soft:3}" if shape == "input" else ""
    match kind:
        case "words":
            mask = " {mask}" if family == "bert" else ""
            return Classify(template=f"{soft}{{text}} is{mask}", verbalizer=WORDS)
        case "head":
            return Classify(template=f"{soft}{{text}}", head="mlp-tanh")
        case "tag":
            return Tag(template=f"{soft}{{text}}", words_column="text", scheme="BIO")
        case "text":
            return Generate(template=f"{{text}} is{soft}", max_new_tokens=4)
        case _:
            template = f"{{text}} is{soft}"
            return Generate(template, target_column="label", choices=LABELS, max_new_tokens=20)


def assemble_artifact(
    prompt: Prompt,
    head: Mapping[str, Tensor],
    task: Task,
    *,
    settings: TaskSettings,
    **changes: Any,
) -> Artifact:
    """The artifact of a prompt for a task; ``changes`` replace fields of its manifest."""
    readout = {"pooling": task.pooling} if isinstance(task, PooledHeadTask) else {}
    fields: dict[str, Any] = {
        "template": settings.template,
        "max_length": None,
        "task": describe_settings(settings, template=settings.template) | readout,
        "labels": list(task.labels),
        "backbone": describe_backbone(task.backbone),
        "data": {},
        "recipe": {},
        "metrics": {},
    }
    return make_artifact(prompt, head, **{**fields, **changes})


def make_model_factory(
    backbone: Callable[[str], Backbone], maker: Callable[[str], Maker]
) -> Callable[..., PromptModel]:
    """A function that makes a model of ``WAYS``, with a given prompt or a random one."""

    def make(
        way: str | tuple[str, str, str],
        *,
        settings: TaskSettings | None = None,
        prompt: Prompt | None = None,
        seed: int = 3,
        own: Backbone | None = None,
        choices: Sequence[str] = LABELS,
        **changes: Any,
    ) -> PromptModel:
        family, kind, shape = WAYS[way] if isinstance(way, str) else way
        own = own or backbone(family)
        settings = settings or make_settings(kind, family=family, shape=shape)
        labels = {"text": (), "tag": TAGS}.get(kind, choices)
        task = build_task(settings, own, template=settings.template, labels=labels, seed=seed)
        head = {} if task.head is None else task.head.state_dict()
        prompt = prompt or maker(family).prompt(shape)
        return attach(assemble_artifact(prompt, head, task, settings=settings, **changes), own)

    return make
