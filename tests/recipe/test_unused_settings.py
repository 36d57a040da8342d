"""Every setting of a task has an effect, or is a fault where others leave it without one."""

from dataclasses import fields
from typing import Any

import pytest

from softprompt.errors import RecipeError
from softprompt.recipe import make_recipe, read_overrides
from softprompt.tasks import TASKS, make_objective
from softprompt.tasks.strict_settings import build_settings

WORDS = {"negative": " bad", "positive": " good"}
# A value of every setting that is not its default.
SAMPLES: dict[str, dict[str, Any]] = {
    "classify": {
        "template": "{text}",
        "label_column": "y",
        "verbalizer": WORDS,
        "labels": ["positive", "negative"],
        "head": "mlp-tanh",
        "pooling": "mean",
        "class_weights": "balanced",
        "label_smoothing": 0.1,
        "ordinal": True,
        "multi_label": True,
        "thresholds": 0.3,
        "temperature": 2.0,
        "abstain_below": 0.6,
        "messages_column": "messages",
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "generate": {
        "template": "{text}",
        "target_column": "y",
        "choices": ["a", "b"],
        "constrained_decoding": False,
        "max_new_tokens": 3,
        "max_target_length": 3,
        "num_beams": 2,
        "do_sample": True,
        "temperature": 2.0,
        "top_k": 3,
        "top_p": 0.5,
        "messages_column": "messages",
        "train_on": "all",
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "regress": {
        "template": "{text}",
        "target_column": "y",
        "words": {"1": " one", "2": " two"},
        "loss": "huber",
        "head": "mlp-tanh",
        "pooling": "mean",
        "mean": [1.0],
        "scale": [2.0],
    },
    "tag": {
        "template": "{words}",
        "words_column": "w",
        "target_column": "y",
        "scheme": "BIO",
        "labels": ["O", "B-A", "I-A"],
        "output_scheme": "BIOES",
        "repair_tags": True,
        "widen_spans": True,
        "head": "mlp-tanh",
        "aggregation": "max",
        "constrained_decoding": False,
        "stride": 2,
        "class_weights": "balanced",
        "label_smoothing": 0.1,
    },
    "extract": {
        "template": "{question}{sep}{context}",
        "context_column": "c",
        "target_column": "y",
        "stride": 2,
        "max_answer_tokens": 3,
        "n_best": 2,
        "null_threshold": "never",
        "head": "mlp-tanh",
    },
    "choose": {
        "template": "{question}",
        "options_column": "o",
        "target_column": "y",
        "target_form": "index",
        "head": "linear",
        "pooling": "mean",
        "length_normalization": "tokens",
        "likelihood_weight": 0.5,
    },
}
_CHAT = {"chat_template_kwargs"}
# Of each kind of task, and what is set in it, the settings that have no effect.
TASKS_AND_UNUSED: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "a head": ("classify", {}, {"thresholds", *_CHAT}),
    "label words": (
        "classify",
        {"verbalizer": WORDS},
        {"labels", "head", "pooling", "thresholds", *_CHAT},
    ),
    "any number of labels": (
        "classify",
        {"multi_label": True},
        {"temperature", "abstain_below", "ordinal", *_CHAT},
    ),
    "free text": (
        "generate",
        {},
        {"constrained_decoding", "temperature", "top_k", "top_p", "train_on", *_CHAT},
    ),
    "drawn text": (
        "generate",
        {"do_sample": True},
        {"constrained_decoding", "train_on", *_CHAT},
    ),
    "choices": (
        "generate",
        {"choices": ["a", "b"]},
        {"temperature", "top_k", "top_p", "train_on", *_CHAT},
    ),
    "drawn choices": (
        "generate",
        {"choices": ["a", "b"], "do_sample": True},
        {"train_on", *_CHAT},
    ),
    "conversations": (
        "generate",
        {"messages_column": "messages", "choices": ["a", "b"], "do_sample": True},
        {"target_column"},
    ),
    "labels of conversations": ("classify", {"messages_column": "messages"}, {"thresholds"}),
    "numbers": ("regress", {}, set()),
    "number words": ("regress", {"words": {"1": " one", "2": " two"}}, {"head", "pooling"}),
    "spans": ("tag", {}, set()),
    "plain tags": ("tag", {"scheme": "none"}, {"constrained_decoding", "repair_tags"}),
    "tags of tokens": ("tag", {"aggregation": "simple"}, {"constrained_decoding"}),
    "parts of a text": ("extract", {}, set()),
    "parts of every text": ("extract", {"null_threshold": "never"}, set()),
    "options as text": ("choose", {}, {"pooling"}),
    "options by a head": ("choose", {"head": "linear"}, set()),
}
CASES = [
    pytest.param(kind, given, name, name in unused, id=f"{what}: {name}")
    for what, (kind, given, unused) in TASKS_AND_UNUSED.items()
    for name in SAMPLES[kind]
    if name not in given
]


def list_faults(task: dict[str, Any]) -> tuple[str, ...]:
    data = {
        "backbone": {"name": "builtin:minilm"},
        "data": {"train": "rows.csv"},
        "method": {"name": "p-tuning-v2"},
    }
    try:
        make_recipe(data | {"task": task})
    except RecipeError as error:
        return error.faults
    return ()


@pytest.mark.parametrize("kind", TASKS)
def test_every_setting_has_a_sample(kind) -> None:
    defaults = {field.name: field.default for field in fields(TASKS[kind])}
    assert SAMPLES[kind].keys() == defaults.keys()
    assert not {name for name, value in SAMPLES[kind].items() if value == defaults[name]}


@pytest.mark.parametrize(("kind", "given", "name", "is_unused"), CASES)
def test_a_setting_without_effect_is_a_fault(kind, given, name, is_unused) -> None:
    task = {"kind": kind, **given, name: SAMPLES[kind][name]}
    faults = list_faults(task)
    if not is_unused:
        assert faults == ()
        return
    (fault,) = faults
    assert fault.startswith(f"task.{name}: means nothing ")
    assert "ake it out" in fault
    assert list_faults({"kind": kind, **given}) == ()
    default = {field.name: field.default for field in fields(TASKS[kind])}[name]
    if default is not None:
        assert list_faults(task | {name: default}) == (), "a default may be written down"


@pytest.mark.parametrize("what", ["any number of labels", "a head", "plain tags", "number words"])
def test_what_is_a_fault_has_no_effect(what) -> None:
    """What the task is asked for is the same."""
    kind, given, unused = TASKS_AND_UNUSED[what]
    labels = ("negative", "positive")
    plain = make_objective(build_settings(TASKS[kind], given), labels)
    for name in unused - {"repair_tags", "constrained_decoding"}:
        changed = build_settings(TASKS[kind], given | {name: SAMPLES[kind][name]})
        assert make_objective(changed, labels) == plain


@pytest.mark.parametrize(
    ("task", "remedy"),
    [
        ({"kind": "classify", "multi_label": True, "temperature": 2.0}, {"temperature": 1.0}),
        (
            {"kind": "classify", "multi_label": True, "abstain_below": 0.4},
            {"abstain_below": None, "thresholds": 0.4},
        ),
        ({"kind": "classify", "thresholds": 0.7}, {"thresholds": "auto", "abstain_below": 0.7}),
        ({"kind": "classify", "verbalizer": WORDS, "head": "mlp-tanh"}, {"verbalizer": None}),
        ({"kind": "regress", "words": {"1": " one"}, "pooling": "mean"}, {"words": None}),
        ({"kind": "generate", "temperature": 2.0}, {"do_sample": True}),
        ({"kind": "generate", "constrained_decoding": False}, {"choices": ["a", "b"]}),
    ],
)
def test_the_remedy_can_be_followed(task, remedy) -> None:
    (fault,) = list_faults(task)
    changed = {name: value for name, value in (task | remedy).items() if value is not None}
    assert all(f"task.{name}" in fault or "verbalizer" in fault for name in remedy)
    assert list_faults(changed) == ()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("regress", "class_weights"),
        ("regress", "temperature"),
        ("tag", "abstain_below"),
        ("tag", "thresholds"),
        ("generate", "head"),
        ("extract", "multi_label"),
    ],
)
def test_a_setting_of_another_task_is_unknown(kind, name) -> None:
    (fault,) = list_faults({"kind": kind, name: 1})
    assert fault.startswith(f"task.{name}: unknown key '{name}'. Options: ")


def test_changes_of_an_import_are_checked_too() -> None:
    changes = ["task.kind=classify", "task.multi_label=true", "task.temperature=2.0"]
    with pytest.raises(RecipeError) as caught:
        read_overrides(changes, backbone={"name": "x"})
    (fault,) = caught.value.faults
    assert fault == (
        "task.temperature: means nothing with task.multi_label = true: each label has a threshold "
        "of its own. Take it out, and set task.thresholds."
    )
