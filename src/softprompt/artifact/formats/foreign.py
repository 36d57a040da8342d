"""What a file of another library holds, before it is known what it is to be used for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from softprompt.artifact.value import Artifact
from softprompt.backbone import Backbone
from softprompt.injection import Decoding
from softprompt.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Foreign:
    """A prompt from elsewhere.

    Args:
        prompt: on the CPU, bit for bit as it was stored.
        template: where its soft tokens stood there.
        task: settings of the task with ``kind``, as far as the file decides them; None if it
            leaves open what the backbone's output is used for.
        head: the tensors of a trained head, by our names; empty if there is none.
        classes: C, how many a trained head scores; 0 without one.
        note: what else the file said of itself; for the artifact's record.
    """

    prompt: Prompt
    template: str
    task: Mapping[str, object] | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    classes: int = 0
    note: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a causal backbone's language-model head is asked for.

    Args:
        room: how many tokens a rendered row may have.
        words: for each label the tokens of each of its words; empty where text is written.
        decoding: how text is written; None where label words are scored.
    """

    room: int
    words: Mapping[str, tuple[tuple[int, ...], ...]]
    decoding: Decoding | None


@dataclass(frozen=True, eq=False)
class Outgoing:
    """An artifact on its way out, and what its template says of where soft tokens stand.

    Args:
        artifact: what to write.
        backbone: its own.
        front: how many soft tokens stand before everything, what the tokenizer puts first
            included.
        text: the template without soft tokens.
        asked: what a causal backbone's language-model head is asked for; None for other tasks.
    """

    artifact: Artifact
    backbone: Backbone
    front: int
    text: str
    asked: Asked | None = None


@dataclass(frozen=True)
class Base:
    """Which backbone a file says that it belongs to."""

    name: str | None = None
    revision: str | None = None


def unsaid(_source: Path) -> Base:
    """For formats that do not name their backbone."""
    return Base()


Read = Callable[[Path, Backbone], dict[str, Foreign]]
Write = Callable[[Outgoing], dict[str, bytes]]


@dataclass(frozen=True)
class Format:
    """A form that prompts are kept in elsewhere.

    Args:
        about: what it is, in a few words.
        read: every prompt in a file or folder, by name; a single one has the name "".
        write: the files of a folder, by name.
        base: which backbone a file names.
    """

    about: str
    read: Read | None
    write: Write | None
    base: Callable[[Path], Base] = unsaid
