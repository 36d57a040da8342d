"""Bind a task to a backbone: check that they fit, and choose how the answer is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.backbone.head import Head
from softprompt.backbone.model import Backbone
from softprompt.data.template import Template, parse
from softprompt.data.tokenise import Renderer, renderer
from softprompt.errors import DataError, TemplateError
from softprompt.tasks.base import Task
from softprompt.tasks.generate import Writer
from softprompt.tasks.pool import ClassifierHead, Pooled
from softprompt.tasks.settings import Classify, Generate, TaskSettings
from softprompt.tasks.verbalize import AnswerWords, CausalWords, MaskedWords
from softprompt.tasks.words import read_words

_ENDLESS = 1 << 20


@dataclass(frozen=True)
class Room:
    """How many positions there are for a row.

    Args:
        longest: of a row in tokens; None for all positions that the backbone has.
        taken: by a prompt that is not among the row's tokens (`KVPrefix.taken`).
    """

    longest: int | None = None
    taken: int = 0


def bind(
    settings: TaskSettings,
    backbone: Backbone,
    *,
    template: str,
    labels: Sequence[str] = (),
    room: Room | None = None,
    seed: int = 0,
) -> Task:
    """A task that can run.

    Args:
        template: what a row looks like.
        labels: the classes of a trained head, or the only answers of a generator.
        room: for a row; None for all positions that the backbone has.
        seed: of a trained head.

    Raises:
        TemplateError: template, task and backbone do not fit each other.
        DataError: label words collide or cannot be written.
    """
    parsed = parse(template)
    _check_masks(settings, backbone, parsed)
    binding = _Binding(backbone, parsed, room or Room())
    match settings:
        case Classify(verbalizer=None):
            return binding.pooled(settings, labels, seed=seed)
        case Classify():
            return binding.by_words(settings)
        case Generate():
            return binding.writer(settings, labels)


def plain_renderer(backbone: Backbone, template: str, *, max_length: int | None) -> Renderer:
    """What renders rows for a backbone that is only to be read.

    Args:
        template: what a row looks like.
        max_length: of a row in tokens; None for all positions that the backbone has.
    """
    return _Binding(backbone, parse(template), Room(max_length)).renderer()


class _Binding:
    """What every way of binding needs."""

    def __init__(self, backbone: Backbone, template: Template, room: Room) -> None:
        self.backbone = backbone
        self.kind = backbone.geometry.kind
        self.template = template
        self.left = _left(backbone, room)
        # An encoder-decoder's prompt takes those of its decoder, which the row does not stand in.
        own = backbone.geometry.positions if self.kind == "encoder-decoder" else self.left
        self.limit = min([n for n in (room.longest, own) if n is not None], default=_ENDLESS)

    def renderer(self, *, reserve: int = 0, masks: int = 1) -> Renderer:
        """``reserve`` positions are kept for what is written behind the row."""
        return renderer(
            self.template,
            self.backbone.tokenizer,
            vocabulary=self.backbone.geometry.vocabulary,
            max_length=self.limit - (reserve if self.kind == "causal" else 0),
            masks=masks,
            closed=self.kind != "causal",
        )

    def pooled(self, settings: Classify, labels: Sequence[str], *, seed: int) -> Pooled:
        """A trained head."""
        if self.kind == "encoder-decoder":
            msg = (
                f"{self.backbone.geometry.family} answers in words, so it needs a verbalizer, "
                'which is missing. Add one to [task]: verbalizer = { yes = "yes", no = "no" }.'
            )
            raise TemplateError(msg)
        if len(labels) < 2:  # noqa: PLR2004  # a choice
            msg = (
                f"a trained head needs at least 2 labels to choose from, but was given "
                f"{len(labels)}. Read them from the training data."
            )
            raise DataError(msg)
        width = self.backbone.geometry.hidden_size
        head = ClassifierHead(width, len(labels), kind=settings.head, seed=seed)
        return Pooled(
            self.backbone,
            head,
            labels=labels,
            renderer=self.renderer(),
            target_column=settings.label_column,
            pool=settings.pool,
        )

    def by_words(self, settings: Classify) -> CausalWords | MaskedWords | AnswerWords:
        """Label words."""
        remedy = "Leave the verbalizer out, which trains a head, or choose another backbone."
        head = self._lm_head("score label words", remedy=remedy)
        end = self.backbone.ends[0] if self.backbone.ends and self.kind != "encoder" else None
        words = read_words(
            self.backbone.tokenizer,
            settings.words(),
            end=end,
            always_end=self.kind == "encoder-decoder",
        )
        made: type[CausalWords | MaskedWords | AnswerWords]
        match self.kind:
            case "causal":
                made, renderers = CausalWords, [self.renderer(reserve=words.lengths[-1] - 1)]
            case "encoder":
                made, renderers = MaskedWords, [self.renderer(masks=k) for k in words.lengths]
            case "encoder-decoder":
                made, renderers = AnswerWords, [self.renderer()]
        return made(
            self.backbone,
            head,
            words=words,
            renderers=renderers,
            target_column=settings.label_column,
        )

    def writer(self, settings: Generate, choices: Sequence[str]) -> Writer:
        """Text."""
        return Writer(
            self.backbone,
            self._lm_head("write text", remedy="Choose another backbone."),
            renderer=self.renderer(reserve=settings.max_new_tokens),
            settings=settings,
            positions=self.left,
            choices=choices,
        )

    def _lm_head(self, purpose: str, *, remedy: str) -> Head:
        if self.backbone.head is None:
            msg = (
                f"backbone {self.backbone.name!r} has no language-model head in its checkpoint, so "
                f"it cannot {purpose}. {remedy}"
            )
            raise TemplateError(msg)
        return self.backbone.head


def _left(backbone: Backbone, room: Room) -> int | None:
    """The positions that the prompt leaves."""
    positions = backbone.geometry.positions
    if positions is None or positions > room.taken:
        return None if positions is None else positions - room.taken
    msg = (
        f"the prompt takes the first {room.taken} positions, but {backbone.name!r} has "
        f"{positions}, so none is left for a row. Make it shorter, leave method.shifted out, or "
        "name the backbone that it was trained for."
    )
    raise TemplateError(msg)


def _check_masks(settings: TaskSettings, backbone: Backbone, template: Template) -> None:
    kind, family = backbone.geometry.kind, backbone.geometry.family
    match settings:
        case Generate() if kind == "encoder":
            msg = (
                f"{family} is an encoder and cannot write text. Use task kind 'classify', or a "
                "causal or encoder-decoder backbone."
            )
            raise TemplateError(msg)
        case Classify(verbalizer=words) if words is not None and kind == "encoder":
            if template.masks != 1:
                msg = (
                    f"the template has no {{mask}}, but {family} says its label word at one. Write "
                    "{mask} where the word would stand, or leave the verbalizer out."
                )
                raise TemplateError(msg)
        case _ if template.masks:
            reason = (
                f"{family} is no masked language model"
                if kind != "encoder"
                else "a trained head reads [CLS], not the mask"
            )
            msg = f"the template has a {{mask}}, but {reason}. Take {{mask}} out."
            raise TemplateError(msg)
        case _:
            pass
