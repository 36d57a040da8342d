"""A recipe as a person would like to read it: a comment on every line."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

import tomli_w

from softprompt.backbone import Kind
from softprompt.cli.guess import Guess
from softprompt.cli.held import Held

_MOST_WORDS = 20
_WORD = re.compile(r"[^\W\d_][\w' -]{0,39}")
_COLUMN = 44


@dataclass(frozen=True)
class Speaker:
    """What a recipe must know of its backbone.

    Args:
        name: as the recipe names it.
        kind: which tokens see which.
        has_head: whether it has a language-model head.
    """

    name: str
    kind: Kind
    has_head: bool


def draft(
    guess: Guess, held: Held, *, source: str, beside: Mapping[str, str], speaker: Speaker
) -> str:
    """A recipe that runs as it stands.

    Args:
        source: the training data as the recipe names it.
        beside: likewise the files of other splits.
        speaker: the backbone.
    """
    words = verbalizer(guess.labels, speaker)
    parts = [
        f"# {source}: {guess.rows:,} rows, {' and '.join(guess.texts)} by {guess.label}.",
        "# Written by softprompt init; every line may be changed.\n",
        _line("seed", held.seed, "decides everything random"),
        "\n[backbone]",
        _line("name", speaker.name, "Hub id, folder, .gguf file or builtin: name"),
        _line("dtype", "auto", "bfloat16 where the machine computes in it"),
        "\n[data]",
        _line("train", source, "files are named relative to this one"),
        *_held(guess, held, beside),
        _line("max_length", 512, "tokens of a row; text beyond is cut"),
        "\n[task]",
        _line("kind", "classify", "choose one of the labels"),
        _line("template", template(guess, speaker), "{soft:N} are the trained tokens"),
        _line("label_column", guess.label, "what is to be answered"),
        *_words(words),
        "\n[method]",
        _line(
            "name", "prompt-tuning", "or p-tuning; prefix-tuning and p-tuning-v2 without {soft:N}"
        ),
        _initialise(guess, with_words=words is not None),
        *_train(),
    ]
    return "\n".join(parts) + "\n"


def template(guess: Guess, speaker: Speaker) -> str:
    """What a row looks like to this kind of backbone."""
    match speaker.kind:
        case "encoder":  # a trained head reads [CLS]
            return "{soft:10}" + "{sep}".join(f"{{{name}}}" for name in guess.texts)
        case "causal" | "encoder-decoder":
            lines = [f"{_title(name, 'Text')}: {{{name}}}" for name in guess.texts]
            return "\n".join([*lines, f"{_title(guess.label, 'Label')}:{{soft:10}}"])
        case _:
            assert_never(speaker.kind)


def verbalizer(labels: tuple[str, ...], speaker: Speaker) -> dict[str, str] | None:
    """For each label its word, if all labels are words and the backbone can say them."""
    spoken = {label: label.replace("_", " ").strip() for label in labels}
    clear = len({word.casefold() for word in spoken.values()}) == len(labels) <= _MOST_WORDS
    wordly = clear and all(_WORD.fullmatch(word) for word in spoken.values())
    match speaker.kind:
        case "encoder-decoder":  # it has no other way to answer
            return spoken if wordly else {label: label for label in labels}
        case "causal" if wordly and speaker.has_head:
            return {label: f" {word}" for label, word in spoken.items()}
        case "causal" | "encoder":
            return None
        case _:
            assert_never(speaker.kind)


def _held(guess: Guess, held: Held, beside: Mapping[str, str]) -> Iterator[str]:
    says = {"validation": "chooses the best prompt", "test": "looked at once, at the end"}
    for name, path in beside.items():
        yield _line(name, path, says[name])
    if "validation" not in beside:
        shares = ", ".join(f"{name} = {share:g}" for name, share in held.shares.items())
        yield _beside(f"shares = {{ {shares} }}", "how the rows are split, where no file is named")
        yield '# validation = "validation.jsonl"  # or name files of their own'
        if guess.group is not None:
            yield f"# {_line('group', guess.group, 'keeps its rows together, in one split')}"


def _words(words: Mapping[str, str] | None) -> Iterator[str]:
    if words is None:
        yield _line("head", "linear", "a trained layer on the last hidden state; or mlp")
        return
    yield "\n[task.verbalizer]  # each label's word, with the space that stands before it"
    for label, word in words.items():
        yield _line(label, word, f"for rows labelled {label}".replace("\n", " "))


def _initialise(guess: Guess, *, with_words: bool) -> str:
    if with_words:
        return _beside('initialise = { from = "labels" }', "the soft tokens start as label words")
    text = f"Classify the {' and the '.join(guess.texts)} by {guess.label}."
    value = tomli_w.dumps({"text": text}).strip()
    return _beside(f'initialise = {{ from = "text", {value} }}', "the soft tokens start as this")


def _train() -> Iterator[str]:
    yield "\n[train]"
    yield _line("epochs", 5, "how often every row is seen")
    yield _line("batch_size", 32, "rows of one step")
    yield _line("select", "loss", "what chooses the best prompt; or accuracy, macro_f1")
    yield "# learning_rate = 0.01  # left out, the method's own; check shows it and its source"
    yield "# patience = 2  # stop after so many validations without a better one"


def _title(name: str, other: str) -> str:
    """A column's name as a word of a template."""
    found = " ".join(re.findall(r"\w+", name.replace("_", " ")))
    return found[:1].upper() + found[1:] if found else other


def _line(key: str, value: object, comment: str) -> str:
    return _beside(tomli_w.dumps({key: value}).strip(), comment)


def _beside(text: str, comment: str) -> str:
    """A line and its comment, which may hold no control character."""
    plain = "".join(c if c.isprintable() else " " for c in comment)
    return f"{text:<{_COLUMN}}  # {plain}"
