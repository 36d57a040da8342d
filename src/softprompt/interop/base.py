"""The interface of formats: what a reader returns, and what a writer gets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from softprompt.artifact.artifact import Artifact
from softprompt.backbone import Backbone
from softprompt.errors import BackboneError
from softprompt.injection import Decoding
from softprompt.prompt import Prompt


@dataclass(frozen=True, eq=False)
class ForeignPrompt:
    """A prompt as another library's file has it.

    Args:
        prompt: on the CPU, bit for bit as it was stored.
        template: with its soft tokens where the other library puts them.
        task: settings of the task with ``kind``, as far as the file has them; None if it does not
            say what the backbone's output is used for.
        head: the tensors of a trained head, by softprompt's names; empty if there is none.
        classes: the number of classes of a trained head; 0 without one.
        note: further content of the file, which the artifact's manifest records.
        tag_head: the tensors of a linear head that could be one of words' tags; empty without one.
        fault: why the head of rows cannot be read, where there is one; it can still be one of tags.
    """

    prompt: Prompt
    template: str
    task: Mapping[str, object] | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    classes: int = 0
    note: Mapping[str, object] = field(default_factory=dict)
    tag_head: Mapping[str, Tensor] = field(default_factory=dict)
    fault: BackboneError | None = None


@dataclass(frozen=True, eq=False)
class Readout:
    """How predictions are read from a causal backbone's language-model head.

    Args:
        max_length: how many tokens a rendered row may have.
        label_tokens: for each label the tokens of each of its words; empty for text generation.
        decoding: how text is generated; None where label words are scored.
    """

    max_length: int
    label_tokens: Mapping[str, tuple[tuple[int, ...], ...]]
    decoding: Decoding | None


@dataclass(frozen=True, eq=False)
class ExportRequest:
    """An artifact to export, with what a writer needs of its template and its task.

    Args:
        artifact: to export.
        backbone: of the artifact.
        leading_soft: the number of soft tokens before all others, the tokenizer's first special
            token included.
        hard_template: the template without soft tokens.
        readout: of a causal backbone's language-model head; None for other tasks.
    """

    artifact: Artifact
    backbone: Backbone
    leading_soft: int
    hard_template: str
    readout: Readout | None = None


@dataclass(frozen=True)
class BaseModelRef:
    """The backbone that a file names; without a name, the file names none.

    Args:
        name: a Hub id or a path.
        revision: on the Hub.
    """

    name: str | None = None
    revision: str | None = None


def _read_no_base_model(_source: Path) -> BaseModelRef:
    """For formats whose files do not name their backbone."""
    return BaseModelRef()


Reader = Callable[[Path, Backbone], dict[str, ForeignPrompt]]
Writer = Callable[[ExportRequest], dict[str, bytes]]


@dataclass(frozen=True)
class Format:
    """A file format of another library.

    Args:
        about: a short description.
        read: reads the prompts of a file or folder, by name; a single one has the name "". None if
            the format cannot be imported.
        write: makes the files of a folder, by name. None if the format cannot be exported.
        base: reads which backbone a file names.
    """

    about: str
    read: Reader | None
    write: Writer | None
    base: Callable[[Path], BaseModelRef] = _read_no_base_model
