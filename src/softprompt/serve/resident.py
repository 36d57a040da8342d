"""A prompt in memory: its tensors, and what it has in common with others of its task."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

import torch

from softprompt._memory import trim_memory
from softprompt.artifact import Artifact, check_backbone
from softprompt.artifact.checks import read_task_settings
from softprompt.artifact.ensembles import digest_saved, load_saved
from softprompt.backbone.model import Backbone
from softprompt.errors import ArtifactError
from softprompt.inference.ensemble import attach_saved
from softprompt.inference.mixed import BakedPrompt, can_bake, find_head
from softprompt.inference.model import PromptModel, attach
from softprompt.inference.votes import Vote
from softprompt.prompt import Prompt, to
from softprompt.tasks import LengthBudget, Task, build_task
from softprompt.tasks.base import HeadTask
from softprompt.tasks.classifier_head import ClassifierHead

# After so many loads memory is given back to the system: what reading a file took leaves holes
# between the tensors that stay, as large as the tensors.
_LOADS_PER_TRIM = 128


@dataclass(frozen=True)
class FoundPrompt:
    """Where a version of a prompt is.

    Args:
        name: of the prompt, without a version.
        version: the full reference that always means these files; the name itself where there are
            no versions.
        digest: of the artifact, as `digest_saved` computes it.
        folder: of the artifact.
    """

    name: str
    version: str
    digest: str
    folder: Path

    @property
    def key(self) -> str:
        """What tells these files from all others."""
        return f"{self.version} {self.digest}"


@dataclass(frozen=True, eq=False)
class SharedTask:
    """What prompts with the same template, labels and settings have in common.

    Args:
        task: of these prompts; of those with a trained head, with the head of one of them.
        head_ids: the ids that every row begins with, if soft tokens can be baked.
    """

    task: Task
    head_ids: tuple[int, ...] | None


@dataclass(eq=False)
class ResidentMember:
    """One prompt in memory, ready to run: the only one of a name, or one of an ensemble.

    Args:
        task: with the prompt's own head, if it has one.
        prompt: in the dtype of the backbone, on its device.
        shared: what it has in common with others.
        bytes: of its tensors, without those of the baked prompt.
        baked: its keys and values, once they are computed.
    """

    task: Task
    prompt: Prompt
    shared: SharedTask
    bytes: int
    baked: BakedPrompt | None = None

    @property
    def head_ids(self) -> tuple[int, ...] | None:
        """The ids that can be baked; None if the prompt has to be run with its soft tokens."""
        return self.shared.head_ids if can_bake(self.prompt) else None


@dataclass(eq=False)
class ResidentPrompt:
    """What a name stands for, in memory.

    Args:
        found: where it came from.
        members: its prompt, or those of an ensemble.
        vote: of the ensemble; None if there is a single prompt.
        last_use: the number of its last use, counted over all prompts.
        bake_after: the number of the use after which it may be baked again, since it did not fit.
    """

    found: FoundPrompt
    members: tuple[ResidentMember, ...]
    vote: Vote | None
    last_use: int = 0
    bake_after: int = 0

    @property
    def bytes(self) -> int:
        """Of all tensors, without those of baked prompts."""
        return sum(member.bytes for member in self.members)

    @property
    def is_baked(self) -> bool:
        """Whether its soft tokens are keys and values."""
        return any(member.baked is not None for member in self.members)

    @property
    def bakeable(self) -> tuple[ResidentMember, ...]:
        """The members whose soft tokens can be baked."""
        return tuple(member for member in self.members if member.head_ids is not None)

    @property
    def baked_bytes(self) -> int:
        """Of the tensors of its baked prompts."""
        baked = [member.baked for member in self.members]
        return sum(count_bytes(one.prefix) for one in baked if one is not None)


class ResidentLoader:
    """Loads prompts; those of equal tasks share all but their tensors.

    Args:
        backbone: of all prompts.
        check: refuses what the server cannot run; None if it can run everything.

    Attributes:
        tokenizing: held while a tokenizer is used, since tokenizers are not safe in several
            threads.
    """

    def __init__(
        self, backbone: Backbone, *, check: Callable[[PromptModel], None] | None = None
    ) -> None:
        self.backbone = backbone
        self._check = check
        self.tokenizing = threading.Lock()
        self._shared: WeakValueDictionary[str, SharedTask] = WeakValueDictionary()
        self._loads = 0

    def load(self, found: FoundPrompt) -> ResidentPrompt:
        """Load and check a prompt, or an ensemble.

        Args:
            found: which version.

        Raises:
            ArtifactError: it is damaged, of another backbone, or not what was found.
        """
        saved = load_saved(found.folder)
        if digest_saved(found.folder) != found.digest:
            msg = f"{found.folder} was changed while the server ran. Restart it, or use a registry."
            raise ArtifactError(msg)
        if isinstance(saved, Artifact):
            return ResidentPrompt(found, (self._place(saved),), None)
        with self.tokenizing:  # checks that the members have the same task
            attach_saved(saved, self.backbone)
        members = tuple(map(self._place, saved.members.values()))
        return ResidentPrompt(found, members, cast("Vote", saved.vote))

    def _place(self, artifact: Artifact) -> ResidentMember:
        """One prompt, with the tensors that it needs."""
        check_backbone(artifact, self.backbone)
        if self._check is not None:
            with self.tokenizing:
                self._check(attach(artifact, self.backbone))
        shared = self._share(artifact)
        # The attention converts a prefix in every pass, so that this changes no answer.
        prompt = to(artifact.prompt, device=self.backbone.device, dtype=self.backbone.dtype)
        task = shared.task
        size = count_bytes(prompt)
        if isinstance(task, HeadTask):
            head = _make_head(task.head, artifact)
            task = task.with_head(head)
            size += sum(tensor.nbytes for tensor in head.state_dict().values())
        self._loads += 1
        if not self._loads % _LOADS_PER_TRIM:
            trim_memory()
        return ResidentMember(task, prompt, shared, size)

    def _share(self, artifact: Artifact) -> SharedTask:
        """The task of an artifact, built once for all artifacts that have an equal one."""
        manifest, positions = artifact.manifest, artifact.prompt.num_positions
        facts = (
            manifest.task,
            manifest.template,
            manifest.labels,
            manifest.max_length,
            positions,
        )
        key = json.dumps(facts, sort_keys=True)
        with self.tokenizing:
            shared = self._shared.get(key)
            if shared is None:
                task = build_task(
                    read_task_settings(manifest),
                    self.backbone,
                    template=manifest.template,
                    labels=manifest.labels,
                    budget=LengthBudget(manifest.max_length, positions),
                )
                shared = self._shared[key] = SharedTask(task, find_head(task))
        return shared


def _make_head(like: ClassifierHead, artifact: Artifact) -> ClassifierHead:
    """The head of an artifact, which has been checked to have these shapes."""
    width, classes = like.output.in_features, like.output.out_features
    # Copies, because as they were read all tensors of a file are in one block of memory.
    tensors = {name: t.to(torch.float32, copy=True) for name, t in artifact.head.items()}
    with torch.device("meta"):  # no weights are drawn
        head = ClassifierHead(width, classes, kind=like.kind, seed=0)
    try:
        head.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        msg = f"the artifact's head does not fit a backbone of width {width}. Train it again."
        raise ArtifactError(msg) from error
    return head.requires_grad_(requires_grad=False).eval()


def count_bytes(prompt: Prompt) -> int:
    """The bytes of a prompt's tensors.

    Args:
        prompt: of any kind.
    """
    return sum(tensor.nbytes for tensor in prompt.to_tensors().values())
