"""Bind a task to a backbone: check that they fit, and choose how predictions are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.backbone.lm_head import LMHead
from softprompt.backbone.model import Backbone
from softprompt.backbone.references import Architecture
from softprompt.data.chat_template import make_chat_template
from softprompt.data.chats import RowRenderer, make_chat_renderer
from softprompt.data.rendering import Renderer, make_renderer
from softprompt.data.template import Template, parse_template
from softprompt.data.tokenizer import make_text_encoder
from softprompt.data.windows import make_window_renderer
from softprompt.errors import DataError, TemplateError
from softprompt.tasks.base import Task
from softprompt.tasks.choices import make_choices
from softprompt.tasks.chooser import Chooser, HeadChooser
from softprompt.tasks.classification import (
    CausalVerbalizer,
    MaskedVerbalizer,
    Seq2SeqVerbalizer,
)
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.tasks.config import (
    OPTION_FIELD,
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TaskSettings,
    get_target_column,
    has_trained_head,
    list_flexible_columns,
)
from softprompt.tasks.continuations import ContinuationChooser
from softprompt.tasks.extraction import (
    SPAN_OUTPUTS,
    ContextAnswers,
)
from softprompt.tasks.extractor import Extractor, check_order
from softprompt.tasks.generation import TextGenerator
from softprompt.tasks.heads import HeadClassifier
from softprompt.tasks.objective_settings import make_objective
from softprompt.tasks.objectives import ScoreObjective
from softprompt.tasks.pooling import resolve_pooling
from softprompt.tasks.tag_sequences import TagSequences
from softprompt.tasks.tagger import Tagger, mark_context
from softprompt.tasks.unused_settings import check_chat_settings
from softprompt.tasks.verbalizer import LabelWords, tokenize_verbalizer

_UNLIMITED = 1 << 20
# The tokens that adjacent windows share, as in the code of Devlin et al. 2019 for SQuAD.
_STRIDE = 128
_ADD_HEAD = 'Train a head, task.head = "linear", or choose another backbone.'


@dataclass(frozen=True)
class LengthBudget:
    """The positions that are available for a row.

    Args:
        max_length: the most tokens of a row; None for all positions that the backbone has.
        prompt_positions: the positions that a prompt takes in addition to the row's tokens
            (`KVPrefix.num_positions`).
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
    """Build a task that is ready to run on a backbone.

    Args:
        settings: the settings of the task.
        backbone: the backbone to run on.
        template: the template of a row.
        labels: the classes of a trained head, or the choices of a generator.
        budget: the positions for a row; None for all positions that the backbone has.
        seed: the seed of a trained head.

    Returns:
        The task. With the pooling ``auto`` a head has the readout of transformers' own classifiers:
        training chooses another one from the rows.

    Raises:
        TemplateError: template, task and backbone do not fit each other.
        DataError: there are too few labels, two label words are the same, a label word or a choice
            cannot be used, or the weights are not those of the labels.
        RecipeError: the settings of generation are not possible.
    """
    parsed = parse_template(template)
    check_chat_settings(settings)
    _check_compatibility(settings, backbone, parsed)
    builder = _TaskBuilder(backbone, parsed, budget=budget or LengthBudget(), settings=settings)
    task = builder.build(settings, labels, seed=seed)
    task.kind, task.flexible_columns = settings.kind, list_flexible_columns(settings)
    return task


def read_label_words(settings: Classify | Regress, backbone: Backbone) -> LabelWords:
    """Tokenize a task's verbalizer for a backbone.

    Args:
        settings: the settings of a task with a verbalizer.
        backbone: the backbone whose language-model head scores the words.

    Raises:
        DataError: there are too few labels, two label words are the same, or one cannot be
            tokenized.
        TemplateError: the tokenizer does not belong to the backbone.
    """
    architecture, ends = backbone.geometry.architecture, backbone.eos_token_ids
    return tokenize_verbalizer(
        make_text_encoder(backbone.tokenizer, vocab_size=backbone.geometry.vocab_size),
        settings.list_words(),
        end=ends[0] if ends and architecture != "encoder" else None,
        always_end=architecture == "encoder-decoder",
    )


def make_plain_renderer(
    backbone: Backbone,
    template: str,
    *,
    max_length: int | None,
    settings: TaskSettings | None = None,
) -> RowRenderer:
    """Make a renderer of rows for a backbone that is run without a task.

    Args:
        backbone: the backbone that the rows are for.
        template: the template of a row.
        max_length: the most tokens of a row; None for all positions that the backbone has.
        settings: of the task whose rows they are, which may be conversations; None for texts.

    Raises:
        TemplateError: the template does not fit the backbone.
    """
    budget = LengthBudget(max_length)
    builder = _TaskBuilder(backbone, parse_template(template), budget=budget, settings=settings)
    return builder.make_row_renderer()


class _TaskBuilder:
    """Builds tasks on a backbone with a template."""

    def __init__(
        self,
        backbone: Backbone,
        template: Template,
        *,
        budget: LengthBudget,
        settings: TaskSettings | None,
    ) -> None:
        self.backbone, self.settings = backbone, settings
        self.architecture = backbone.geometry.architecture
        self.template = template
        self.free_positions = _count_free_positions(backbone, budget)
        # The prompt of an encoder-decoder takes positions of the decoder, the row the encoder's.
        row_positions = (
            backbone.geometry.max_positions
            if self.architecture == "encoder-decoder"
            else self.free_positions
        )
        limits = [n for n in (budget.max_length, row_positions) if n is not None]
        self.limit = min(limits, default=_UNLIMITED)

    def make_renderer(self, *, reserve: int = 0, masks: int = 1) -> Renderer:
        """A renderer that leaves ``reserve`` positions free for tokens generated after the row."""
        return make_renderer(
            self.template,
            self.backbone.tokenizer,
            vocab_size=self.backbone.geometry.vocab_size,
            max_length=self.limit - (reserve if self.architecture == "causal" else 0),
            masks=masks,
            closed=self.architecture != "causal",
        )

    def make_row_renderer(self, *, reserve: int = 0, masks: int = 1) -> RowRenderer:
        """As `make_renderer`; of conversations if the task's rows are some."""
        settings = self.settings
        if not isinstance(settings, Classify | Generate) or settings.messages_column is None:
            return self.make_renderer(reserve=reserve, masks=masks)
        if self.architecture != "causal":
            msg = (
                f"{self.backbone.geometry.model_type} is not a causal backbone, so it has no chat "
                "template for conversations (task.messages_column). Choose one that was trained on "
                "conversations, such as builtin:smollm2-135m-instruct."
            )
            raise TemplateError(msg)
        return make_chat_renderer(
            self.template,
            make_chat_template(self.backbone.tokenizer, settings.chat_template_kwargs),
            column=settings.messages_column,
            vocab_size=self.backbone.geometry.vocab_size,
            max_length=self.limit - reserve,
            writes_answer=isinstance(settings, Generate),
        )

    def build(self, settings: TaskSettings, labels: Sequence[str], *, seed: int) -> Task:
        """The task."""
        if isinstance(settings, Generate):
            return self.build_generator(settings, labels)
        if isinstance(settings, Tag):
            return self.build_tagger(settings, labels, seed=seed)
        if isinstance(settings, Extract):
            return self.build_extractor(settings, seed=seed)
        if isinstance(settings, Choose):
            return self.build_chooser(settings, seed=seed)
        if has_trained_head(settings):
            return self.build_head_classifier(settings, labels, seed=seed)
        return self.build_verbalizer(settings)

    def build_head_classifier(
        self, settings: Classify | Regress, labels: Sequence[str], *, seed: int
    ) -> HeadClassifier:
        """A classifier, or a regression, with a trained head."""
        if self.architecture == "encoder-decoder":
            raise TemplateError(_explain_headless(settings, self.backbone.geometry.model_type))
        if isinstance(settings, Classify) and len(labels) < 2:  # noqa: PLR2004  # a choice
            msg = (
                f"a trained head needs at least 2 labels to choose from, but there are "
                f"{len(labels)}. Read them from the training data."
            )
            raise DataError(msg)
        objective = make_objective(settings, labels)
        assert isinstance(objective, ScoreObjective)  # noqa: S101  # that of a head
        width = self.backbone.geometry.hidden_size
        head = ClassifierHead(width, objective.num_outputs, kind=settings.head, seed=seed)
        return HeadClassifier(
            self.backbone,
            head,
            objective=objective,
            renderer=self.make_row_renderer(),
            target_column=get_target_column(settings),
            pooling=resolve_pooling(settings.pooling, self.architecture),
        )

    def build_tagger(self, settings: Tag, labels: Sequence[str], *, seed: int) -> Tagger:
        """A tagger."""
        if self.architecture == "encoder-decoder":
            raise TemplateError(_explain_headless(settings, self.backbone.geometry.model_type))
        objective = make_objective(settings, labels)
        assert isinstance(objective, TagSequences)  # noqa: S101  # that of tags
        columns = self.template.fields
        self.template = mark_context(self.template, settings.words_column)
        renderer = make_window_renderer(
            self.make_renderer(), field=settings.words_column, stride=settings.stride
        )
        width = self.backbone.geometry.hidden_size
        return Tagger(
            self.backbone,
            ClassifierHead(width, len(labels), kind=settings.head, seed=seed),
            objective=objective,
            renderer=renderer,
            settings=settings,
            columns=columns,
        )

    def build_extractor(self, settings: Extract, *, seed: int) -> Extractor:
        """A head on the tokens of a context."""
        objective = make_objective(settings, ())
        assert isinstance(objective, ContextAnswers)  # noqa: S101  # that of the settings
        renderer, field = self.make_renderer(), settings.context_column
        windows = make_window_renderer(renderer, field=field, stride=0)
        stride = min(_STRIDE, windows.least // 4) if settings.stride is None else settings.stride
        width = self.backbone.geometry.hidden_size
        return Extractor(
            self.backbone,
            ClassifierHead(width, SPAN_OUTPUTS, kind=settings.head, seed=seed),
            objective=objective,
            windows=make_window_renderer(renderer, field=field, stride=stride),
            target_column=settings.target_column,
        )

    def build_chooser(self, settings: Choose, *, seed: int) -> Chooser:
        """A choice of options, by their tokens or by a head."""
        objective, is_decoder = make_choices(settings), self.architecture == "encoder-decoder"
        if settings.head is None:
            return ContinuationChooser(
                self.backbone,
                self._get_lm_head("score the tokens of options", remedy=_ADD_HEAD),
                objective=objective,
                renderer=self.make_renderer(),
                settings=settings,
                positions=self.free_positions if is_decoder else None,
            )
        width = self.backbone.geometry.hidden_size
        return HeadChooser(
            self.backbone,
            ClassifierHead(width, 1, kind=settings.head, seed=seed),
            objective=objective,
            renderer=self.make_renderer(),
            settings=settings,
            pooling=resolve_pooling(settings.pooling, self.architecture),
        )

    def build_verbalizer(
        self, settings: Classify | Regress
    ) -> CausalVerbalizer | MaskedVerbalizer | Seq2SeqVerbalizer:
        """A classifier with label words, or a regression with number words."""
        if isinstance(settings, Classify) and settings.multi_label:
            msg = (
                "task.multi_label needs a trained head: the words of a verbalizer share one "
                "probability, so that two cannot both be likely. Leave task.verbalizer out."
            )
            raise TemplateError(msg)
        remedy = "Choose another backbone."
        if self.architecture != "encoder-decoder":
            remedy = "Leave the verbalizer out, which trains a head, or choose another backbone."
        head = self._get_lm_head("score label words", remedy=remedy)
        words = read_label_words(settings, self.backbone)
        classifier: type[CausalVerbalizer | MaskedVerbalizer | Seq2SeqVerbalizer]
        match self.architecture:
            case "causal":
                classifier = CausalVerbalizer
                renderers = [self.make_row_renderer(reserve=words.lengths[-1] - 1)]
            case "encoder":
                classifier = MaskedVerbalizer
                renderers = [self.make_row_renderer(masks=k) for k in words.lengths]
            case "encoder-decoder":
                classifier = Seq2SeqVerbalizer
                renderers = [self.make_row_renderer()]
        objective = make_objective(settings, words.labels)
        assert isinstance(objective, ScoreObjective)  # noqa: S101  # that of words
        return classifier(
            self.backbone,
            head,
            words=words,
            objective=objective,
            renderers=renderers,
            target_column=get_target_column(settings),
        )

    def build_generator(self, settings: Generate, choices: Sequence[str]) -> TextGenerator:
        """A text generator."""
        return TextGenerator(
            self.backbone,
            self._get_lm_head("write text", remedy="Choose another backbone."),
            renderer=self.make_row_renderer(reserve=settings.max_new_tokens),
            settings=settings,
            positions=self.free_positions,
            choices=choices,
        )

    def _get_lm_head(self, purpose: str, *, remedy: str) -> LMHead:
        if self.backbone.lm_head is None:
            fact = self.backbone.geometry.limits.head or (
                "has no language-model head in its checkpoint"
            )
            msg = f"backbone {self.backbone.name!r} {fact}, so it cannot {purpose}. {remedy}"
            raise TemplateError(msg)
        return self.backbone.lm_head


def _explain_headless(settings: Classify | Regress | Tag, family: str) -> str:
    """Why an encoder-decoder has no trained head."""
    if isinstance(settings, Tag):
        return (
            f"{family} answers in words, so it has no head for tags. Choose an encoder, whose tags "
            "see the words on both sides."
        )
    if isinstance(settings, Regress):
        return (
            f"{family} answers in words, so it needs task.words, number words, which are missing. "
            'Add them: words = { 1 = "one", 2 = "two" }.'
        )
    if settings.multi_label:
        return (
            f"{family} answers in words, so it has no head for task.multi_label. Choose an encoder "
            "or a causal backbone."
        )
    return (
        f"{family} answers in words, so it needs a verbalizer, which is missing. Add one to the "
        'task: verbalizer = { yes = "yes", no = "no" }.'
    )


def _count_free_positions(backbone: Backbone, budget: LengthBudget) -> int | None:
    """The number of positions that the prompt leaves free; None without a limit."""
    positions = backbone.geometry.max_positions
    if positions is None:
        return None
    if positions > budget.prompt_positions:
        return positions - budget.prompt_positions
    taken = budget.prompt_positions
    msg = (
        f"the prompt takes the first {taken} positions, but {backbone.name!r} has "
        f"{positions}, so none is left for a row. Make it shorter, leave method.shift_positions "
        "out, or name the backbone that it was trained for."
    )
    raise TemplateError(msg)


def _check_compatibility(settings: TaskSettings, backbone: Backbone, template: Template) -> None:
    """Check that a backbone can do a task, and that the template has a mask if it needs one."""
    architecture, family = backbone.geometry.architecture, backbone.geometry.model_type
    match settings:
        case Generate() if architecture == "encoder":
            msg = (
                f"{family} is an encoder and cannot write text. Use task kind 'classify', or a "
                "causal or encoder-decoder backbone."
            )
            raise TemplateError(msg)
        case Extract() if architecture == "encoder-decoder":
            msg = (
                f"{family} answers in words, so it has no head on the tokens of a context. Use "
                "task kind 'generate' for the answer's text, or an encoder or a causal backbone."
            )
            raise TemplateError(msg)
        case Choose():
            _check_choice(settings, template, architecture=architecture, family=family)
        case Extract() if architecture == "causal":
            check_order(template, settings.context_column, family=family)
        case Classify() | Regress() if not has_trained_head(settings) and architecture == "encoder":
            if template.masks != 1:
                key = "verbalizer" if isinstance(settings, Classify) else "words"
                msg = (
                    f"the template has no {{mask}}, but {family} predicts a label word at a mask. "
                    f"Write {{mask}} where the word would stand, or leave the {key} out."
                )
                raise TemplateError(msg)
        case _ if template.masks:
            reason = (
                f"{family} is not a masked language model"
                if architecture != "encoder"
                else "a trained head does not read the mask"
            )
            msg = f"the template has a {{mask}}, but {reason}. Take {{mask}} out."
            raise TemplateError(msg)
        case _:
            pass


def _check_choice(
    settings: Choose, template: Template, *, architecture: Architecture, family: str
) -> None:
    """Check that options can be scored, and that the template has them where a head reads it."""
    has_option = OPTION_FIELD in template.fields
    fault = None
    if settings.head is None:
        if architecture == "encoder":
            fault = (
                f"{family} is an encoder, which does not continue text by an option. {_ADD_HEAD}"
            )
        elif has_option:
            fault = (
                f"the template {template.text!r} has {{option}}, but options continue it, so that "
                "it would have them twice. Take {option} out; or train a head that reads it, "
                'task.head = "linear".'
            )
    elif architecture == "encoder-decoder":
        fault = (
            f"{family} answers in words, so it has no head for options. Leave task.head out: its "
            "language-model head scores the tokens of options."
        )
    elif not has_option:
        fault = (
            f"the template {template.text!r} has no {{option}}, but a head scores each row with "
            "each of its options. Write {option} where the option would stand."
        )
    elif settings.length_normalization != "none" or settings.likelihood_weight:
        key = "likelihood_weight" if settings.likelihood_weight else "length_normalization"
        fault = (
            f"task.{key} is about the tokens of options, which a head does not score. Leave it out."
        )
    if fault is None and template.masks:
        fault = "the template has a {mask}, which options are not scored at. Take {mask} out."
    if fault is not None:
        raise TemplateError(fault)
