"""Bind a task to a backbone: check that they fit, and choose how predictions are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.backbone.lm_head import LMHead
from softprompt.backbone.model import Backbone
from softprompt.data.rendering import Renderer, make_renderer
from softprompt.data.template import Template, parse_template
from softprompt.errors import DataError, TemplateError
from softprompt.tasks.base import Task
from softprompt.tasks.classification import CausalVerbalizer, MaskedVerbalizer, Seq2SeqVerbalizer
from softprompt.tasks.config import Classify, Generate, TaskSettings
from softprompt.tasks.generation import TextGenerator
from softprompt.tasks.heads import ClassifierHead, HeadClassifier
from softprompt.tasks.verbalizer import LabelWords, tokenize_verbalizer

_UNLIMITED = 1 << 20


@dataclass(frozen=True)
class LengthBudget:
    """The positions that are available for a row.

    Args:
        max_length: of a row in tokens; None for all positions that the backbone has.
        prompt_positions: taken by a prompt outside the row's tokens (`KVPrefix.num_positions`).
    """

    max_length: int | None = None
    prompt_positions: int = 0


def build_task(
    settings: TaskSettings,
    backbone: Backbone,
    *,
    template: str,
    labels: Sequence[str] = (),
    budget: LengthBudget | None = None,
    seed: int = 0,
) -> Task:
    """A task, ready to run on a backbone.

    Args:
        settings: of the task.
        backbone: to run on.
        template: what a row looks like.
        labels: the classes of a trained head, or the choices of a generator.
        budget: for a row; None for all positions that the backbone has.
        seed: of a trained head.

    Raises:
        TemplateError: template, task and backbone do not fit each other.
        DataError: two label words are the same, or one cannot be tokenized.
    """
    parsed = parse_template(template)
    _check_masks(settings, backbone, parsed)
    binding = _Binding(backbone, parsed, room=budget or LengthBudget())
    match settings:
        case Classify(verbalizer=None):
            return binding.make_head_classifier(settings, labels, seed=seed)
        case Classify():
            return binding.make_verbalizer(settings)
        case Generate():
            return binding.make_generator(settings, labels)


def read_label_words(settings: Classify, backbone: Backbone) -> LabelWords:
    """Tokenize a task's verbalizer for a backbone.

    Args:
        settings: of a task with a verbalizer.
        backbone: whose language-model head scores the words.

    Raises:
        DataError: two label words are the same, or one cannot be tokenized.
    """
    kind = backbone.geometry.architecture
    return tokenize_verbalizer(
        backbone.tokenizer,
        settings.list_words(),
        end=backbone.eos_token_ids[0] if backbone.eos_token_ids and kind != "encoder" else None,
        always_end=kind == "encoder-decoder",
    )


def make_plain_renderer(backbone: Backbone, template: str, *, max_length: int | None) -> Renderer:
    """A renderer of rows for a backbone that is run without a task.

    Args:
        backbone: that the rows are for.
        template: what a row looks like.
        max_length: of a row in tokens; None for all positions that the backbone has.
    """
    return _Binding(
        backbone, parse_template(template), room=LengthBudget(max_length)
    ).make_renderer()


class _Binding:
    """Makes tasks of a backbone and a template."""

    def __init__(self, backbone: Backbone, template: Template, *, room: LengthBudget) -> None:
        self.backbone = backbone
        self.kind = backbone.geometry.architecture
        self.template = template
        self.free_positions = _count_free_positions(backbone, room)
        # The prompt of an encoder-decoder takes positions of the decoder, the row the encoder's.
        own = (
            backbone.geometry.max_positions
            if self.kind == "encoder-decoder"
            else self.free_positions
        )
        self.limit = min([n for n in (room.max_length, own) if n is not None], default=_UNLIMITED)

    def make_renderer(self, *, reserve: int = 0, masks: int = 1) -> Renderer:
        """A renderer that leaves ``reserve`` positions free for tokens generated after the row."""
        return make_renderer(
            self.template,
            self.backbone.tokenizer,
            vocab_size=self.backbone.geometry.vocab_size,
            max_length=self.limit - (reserve if self.kind == "causal" else 0),
            masks=masks,
            closed=self.kind != "causal",
        )

    def make_head_classifier(
        self, settings: Classify, labels: Sequence[str], *, seed: int
    ) -> HeadClassifier:
        """A classifier with a trained head."""
        if self.kind == "encoder-decoder":
            msg = (
                f"{self.backbone.geometry.model_type} answers in words, so it needs a verbalizer, "
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
        return HeadClassifier(
            self.backbone,
            head,
            labels=labels,
            renderer=self.make_renderer(),
            target_column=settings.label_column,
            pooling=settings.pooling,
        )

    def make_verbalizer(
        self, settings: Classify
    ) -> CausalVerbalizer | MaskedVerbalizer | Seq2SeqVerbalizer:
        """A classifier with label words."""
        remedy = "Leave the verbalizer out, which trains a head, or choose another backbone."
        head = self._lm_head("score label words", remedy=remedy)
        words = read_label_words(settings, self.backbone)
        kind: type[CausalVerbalizer | MaskedVerbalizer | Seq2SeqVerbalizer]
        match self.kind:
            case "causal":
                kind, renderers = (
                    CausalVerbalizer,
                    [self.make_renderer(reserve=words.lengths[-1] - 1)],
                )
            case "encoder":
                kind, renderers = (
                    MaskedVerbalizer,
                    [self.make_renderer(masks=k) for k in words.lengths],
                )
            case "encoder-decoder":
                kind, renderers = Seq2SeqVerbalizer, [self.make_renderer()]
        return kind(
            self.backbone,
            head,
            words=words,
            renderers=renderers,
            target_column=settings.label_column,
        )

    def make_generator(self, settings: Generate, choices: Sequence[str]) -> TextGenerator:
        """A text generator."""
        return TextGenerator(
            self.backbone,
            self._lm_head("write text", remedy="Choose another backbone."),
            renderer=self.make_renderer(reserve=settings.max_new_tokens),
            settings=settings,
            positions=self.free_positions,
            choices=choices,
        )

    def _lm_head(self, purpose: str, *, remedy: str) -> LMHead:
        if self.backbone.lm_head is None:
            msg = (
                f"backbone {self.backbone.name!r} has no language-model head in its checkpoint, so "
                f"it cannot {purpose}. {remedy}"
            )
            raise TemplateError(msg)
        return self.backbone.lm_head


def _count_free_positions(backbone: Backbone, room: LengthBudget) -> int | None:
    """The positions that the prompt leaves free."""
    positions = backbone.geometry.max_positions
    if positions is None or positions > room.prompt_positions:
        return None if positions is None else positions - room.prompt_positions
    msg = (
        f"the prompt takes the first {room.prompt_positions} positions, but {backbone.name!r} has "
        f"{positions}, so none is left for a row. Make it shorter, leave method.shift_positions "
        "out, or name the backbone that it was trained for."
    )
    raise TemplateError(msg)


def _check_masks(settings: TaskSettings, backbone: Backbone, template: Template) -> None:
    kind, family = backbone.geometry.architecture, backbone.geometry.model_type
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
                    f"the template has no {{mask}}, but {family} predicts a label word at a mask. "
                    "Write {mask} where the word would stand, or leave the verbalizer out."
                )
                raise TemplateError(msg)
        case _ if template.masks:
            reason = (
                f"{family} is not a masked language model"
                if kind != "encoder"
                else "a trained head reads [CLS], not the mask"
            )
            msg = f"the template has a {{mask}}, but {reason}. Take {{mask}} out."
            raise TemplateError(msg)
        case _:
            pass
