"""The settings of tasks: ``[task]`` of a recipe, which an artifact records too."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from softprompt.data.tag_schemes import TagScheme
from softprompt.decoding import Decoding
from softprompt.tasks.classifier_head import HeadKind
from softprompt.tasks.pooling import PoolingChoice
from softprompt.tasks.regression import RegressionLoss
from softprompt.tasks.tag_decoding import PieceAggregation

LabelWeight: TypeAlias = Annotated[float, Field(gt=0)]
Smoothing: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Temperature: TypeAlias = Annotated[float, Field(gt=0)]
Number: TypeAlias = Annotated[int, Field(ge=1)]
Overlap: TypeAlias = Annotated[int, Field(ge=0)]
TrainedTurns: TypeAlias = Literal["last", "all"]
ChatOption: TypeAlias = bool | int | float | str
Weight: TypeAlias = Annotated[float, Field(ge=0)]
TargetForm: TypeAlias = Literal["auto", "text", "index", "label"]
LengthNormalization: TypeAlias = Literal["none", "tokens", "characters"]


class StrictModel(BaseModel):
    """A table of the recipe: frozen, without unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Classify:
    """Choose one of the labels.

    Args:
        template: what a row looks like. None: the text columns, joined.
        label_column: the column of the labels.
        verbalizer: for each label its word or words, which the language-model head scores. None: a
            head is trained.
        labels: the labels of a trained head, in the order wanted; of two, F1 is that of the second.
            With ``multi_label`` also labels that no training row has. None: those of the training
            data, sorted.
        head: ``linear``; ``linear-normalized``, on states that are divided by their root mean
            square, so that only their direction counts; ``linear-no-bias`` (causal models);
            ``mlp-tanh``: dense, tanh, linear, as in BERT and RoBERTa; ``mlp-gelu`` (ELECTRA,
            DeBERTa); ``mlp-relu`` (DistilBERT); ``mlp-norm`` (ModernBERT), each as the family's
            classifiers in transformers have it.
        pooling: the readout of a trained head. ``cls``: the state of the real [CLS] of an encoder;
            ``first``: that of its first position, which is a soft token in PEFT; ``last``: that of
            the last token; ``mean`` and ``max``: over all tokens of the row, without soft tokens;
            ``auto``: that with which a logistic probe on the frozen backbone does best.
        class_weights: how much a row of each label counts in the loss: a number for each label, or
            ``balanced``, as many times as the label is rarer than the mean, so that all labels
            count the same. The numbers are divided by their mean over the training rows. None: all
            rows count the same.
        label_smoothing: the share of each target that is spread over all labels in training, 0 to
            below 1 (Szegedy et al. 2016).
        ordinal: whether the labels are in an order, that of ``labels`` or of the verbalizer, or of
            their numbers. Then ``quadratic_kappa`` is a metric, which counts far errors more.
        multi_label: whether a row has any number of labels, also none: a list, or a text with ``|``
            between them. A head is trained with one output for each label.
        thresholds: of ``multi_label``, the least probability of a label that is predicted: a number
            for each label, or one for all. ``auto``: chosen on validation rows by F1; 0.5 without
            such rows.
        temperature: divides the scores of labels, so that probabilities are the shares of right
            answers (Guo et al. 2017). ``auto``: chosen on validation rows, where the loss is
            lowest; 1 without such rows.
        abstain_below: the least probability of a label that is predicted; below it a prediction is
            marked as ``abstained``. None: no prediction is.
        messages_column: as in `Generate`; an answer at the end is a part of the conversation.
        chat_template_kwargs: as in `Generate`.

    Examples:
        >>> task = Classify("{text} It was{soft:5}", verbalizer={"good": " great", "bad": " dull"})
        >>> task.list_words()
        {'good': (' great',), 'bad': (' dull',)}
    """

    kind: ClassVar = "classify"

    template: str | None = None
    label_column: str = "label"
    verbalizer: Mapping[str, str | Sequence[str]] | None = None
    labels: Sequence[str] | None = None
    head: HeadKind = "linear"
    pooling: PoolingChoice = "auto"
    class_weights: Literal["balanced"] | Mapping[str, LabelWeight] | None = None
    label_smoothing: Smoothing = 0.0
    ordinal: bool = False
    multi_label: bool = False
    thresholds: Share | Literal["auto"] | Mapping[str, Share] = "auto"
    temperature: Temperature | Literal["auto"] = 1.0
    abstain_below: Share | None = None
    messages_column: str | None = None
    chat_template_kwargs: Mapping[str, ChatOption] | None = None

    def list_words(self) -> dict[str, tuple[str, ...]]:
        """The verbalizer with a tuple of words for each label.

        Returns:
            The words by label; empty without a verbalizer.
        """
        return _list_words(self.verbalizer)


@dataclass(frozen=True)
class Generate:
    """Write text.

    Args:
        template: what a row looks like. None: the text columns, joined.
        target_column: the column of the text to be written.
        choices: the only answers allowed: a list, or ``from-data`` for the targets of the training
            data. None: any text.
        constrained_decoding: whether only the choices can be written; otherwise any other text
            counts as ``other``.
        max_new_tokens: the longest answer, in tokens.
        max_target_length: the most tokens of a target in training, its end not counted; a longer
            one is truncated. None: no limit.
        num_beams: beams of the search; 1 is greedy.
        do_sample: whether tokens are drawn; otherwise the likeliest is taken.
        temperature: divides the logits when sampling.
        top_k: sample from the k likeliest tokens; 0: from all.
        top_p: sample from the smallest set of tokens with this probability.
        messages_column: the column of conversations, lists of ``{"role": "user", "content": "…"}``,
            which the backbone's chat template writes. The assistant's last turn is the target, and
            ``target_column`` has no meaning. In the template, ``{messages}`` is the conversation up
            to where the answer begins; ``{messages:system}`` before it is the text of the system
            turn, which is added where there is none; ``{messages:user}`` behind it is the text of
            the last user turn. None: rows are texts.
        train_on: of a conversation, the assistant's turns that are learned: the ``last`` one, or
            ``all`` that follow a user turn.
        chat_template_kwargs: further variables of the chat template, such as
            ``{ enable_thinking = false }``.

    Examples:
        >>> task = Generate("Summarize: {text}{soft:20}", target_column="summary", num_beams=4)
        >>> task.max_new_tokens
        32
    """

    kind: ClassVar = "generate"

    template: str | None = None
    target_column: str = "target"
    choices: Literal["from-data"] | Sequence[str] | None = None
    constrained_decoding: bool = True
    max_new_tokens: int = 32
    max_target_length: int | None = None
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    messages_column: str | None = None
    train_on: TrainedTurns = "last"
    chat_template_kwargs: Mapping[str, ChatOption] | None = None


@dataclass(frozen=True)
class Regress:
    """Predict one or several numbers, such as a rating, or the similarity of two texts.

    Args:
        template: what a row looks like. None: the text columns, joined.
        target_column: the column of the numbers: of each row one, or a list of as many.
        words: number words that the language-model head scores, by their numbers: the prediction
            is the mean of the numbers, weighted with the probabilities of their words. None: a
            head is trained.
        loss: ``mse``, the squared error, or ``huber``, which grows linearly beyond one standard
            deviation, so that outliers count less.
        head: as in `Classify`.
        pooling: as in `Classify`.
        mean: what is subtracted from each number. None: its mean over the training rows.
        scale: what it is divided by then. None: its standard deviation over the training rows.

    Examples:
        >>> task = Regress("{first} {sep} {second}", target_column="similarity")
        >>> task.loss
        'mse'
    """

    kind: ClassVar = "regress"

    template: str | None = None
    target_column: str = "target"
    words: Mapping[str, str | Sequence[str]] | None = None
    loss: RegressionLoss = "mse"
    head: HeadKind = "linear"
    pooling: PoolingChoice = "auto"
    mean: Sequence[float] | None = None
    scale: Sequence[Temperature] | None = None

    def list_words(self) -> dict[str, tuple[str, ...]]:
        """The number words with a tuple of words for each number.

        Returns:
            The words by number; empty without any.
        """
        return _list_words(self.words)


@dataclass(frozen=True)
class Tag:
    """Give each word a tag: named entities, parts of speech, the arguments of a verb.

    Args:
        template: what a row looks like; it names the words' column. If it does so twice, tags are
            read at the last place, which in a causal backbone has then seen the whole text. None:
            the words alone.
        words_column: the column of the words: a list of texts for each row; or a text, whose words
            are found (letters and digits in a row, and every other sign alone).
        target_column: the column of the tags, one for each word of a list; or, where the words'
            column has texts, of spans of characters: ``{"start": 0, "end": 5, "label": "PER"}``.
        scheme: how tags are written: ``BIO``, ``IOB1``, ``BIOES``, ``BILOU``, or ``none`` for plain
            tags such as parts of speech. ``auto``: recognized by the training rows. Spans of
            characters are written in BIO.
        labels: all tags that can be predicted, in the order wanted. None: ``O``, and those of the
            types that the training rows have.
        output_scheme: the scheme that is predicted, to which tags are converted. None: the same.
        repair_tags: whether tags that are not possible in their scheme are read as the script
            ``conlleval`` reads them; otherwise they are refused.
        widen_spans: whether spans of characters that end inside of a word are widened to the whole
            word; otherwise they are refused.
        head: as in `Classify`.
        class_weights: as in `Classify`: how much a word with each predicted tag counts in the loss.
            ``balanced`` makes words outside of spans count far less than the others.
        label_smoothing: as in `Classify`, over all tags.
        aggregation: how the scores of a word are taken from its tokens. ``first``: those of its
            first token, of which the loss is taken. ``average``: their mean. ``max``: those of the
            token that is surest. ``simple``: as ``first``, but spans are tokens that have the same
            type, whatever the words are.
        constrained_decoding: whether only tags that are possible in their scheme are predicted: the
            likeliest such sequence. Otherwise each word gets its likeliest tag.
        stride: the tokens that adjacent windows of a long text share. None: a quarter of a window.

    Examples:
        >>> task = Tag("{words}", scheme="BIO")
        >>> task.words_column, task.target_column
        ('words', 'tags')
    """

    kind: ClassVar = "tag"

    template: str | None = None
    words_column: str = "words"
    target_column: str = "tags"
    scheme: Literal["auto"] | TagScheme = "auto"
    labels: Sequence[str] | None = None
    output_scheme: TagScheme | None = None
    repair_tags: bool = False
    widen_spans: bool = False
    head: HeadKind = "linear"
    class_weights: Literal["balanced"] | Mapping[str, LabelWeight] | None = None
    label_smoothing: Smoothing = 0.0
    aggregation: PieceAggregation = "first"
    constrained_decoding: bool = True
    stride: Overlap | None = None


@dataclass(frozen=True)
class Extract:
    """Answer questions by a part of a text, their context, or say that it has no answer.

    Args:
        template: what a row looks like, with the context once. On a causal backbone the question
            comes before it, and something after it. None: the question, then the context.
        context_column: the column of the text that answers are parts of. If it is too long for the
            backbone, it is divided into windows.
        target_column: the column of the answers, as SQuAD has them: ``{"text": ["Rome"],
            "answer_start": [17]}``, with empty lists for a question without an answer. Training
            reads the first, the metrics all.
        stride: the tokens of the context that adjacent windows share. None: 128, or a quarter of a
            window where that is less.
        max_answer_tokens: the most tokens of an answer.
        n_best: the most candidates of a prediction.
        null_threshold: a question has no answer if the score of that exceeds the score of the best
            part of the context by more than this. ``auto``: chosen on validation rows, where F1 is
            highest; 0 without such rows; ``never`` if all training rows have an answer. ``never``:
            each question has an answer.
        head: of two outputs for each token of the context, how likely it begins and ends the
            answer; the kinds are those of `Classify`.

    Examples:
        >>> task = Extract("{question}{sep}{context}", max_answer_tokens=20)
        >>> task.null_threshold
        'auto'
    """

    kind: ClassVar = "extract"

    template: str | None = None
    context_column: str = "context"
    target_column: str = "answers"
    stride: Overlap | None = None
    max_answer_tokens: Number = 30
    n_best: Number = 5
    null_threshold: float | Literal["auto", "never"] = "auto"
    head: HeadKind = "linear"


@dataclass(frozen=True)
class Choose:
    r"""Choose one of a row's own options, of which each row may have another number.

    Args:
        template: what a row looks like. Its text is continued by each option; with a head it has
            the option itself, as the field ``{option}``. None: the text columns, joined.
        options_column: the column of the options: lists of texts, texts with ``|`` between options,
            or records ``{"text": [...], "label": [...]}``. Several columns have one option each, of
            which the last ones may be empty.
        target_column: the column of the right option.
        target_form: how targets name an option. ``text``: by its text; ``index``: by its place,
            counted from 0; ``label``: by its label, which is A, B, C where options have none of
            their own. ``auto``: the form that fits all training rows.
        head: a trained layer that scores each row with each option. None: the language-model head
            scores the tokens of each option, which causal models and encoder-decoders can do.
        pooling: the readout of a head, as in `Classify`.
        length_normalization: what the sum of the log-probabilities of an option's tokens is divided
            by: ``none``; ``tokens``, their number; ``characters``, that of its text, as the metric
            acc_norm of lm-evaluation-harness has it.
        likelihood_weight: how much the likelihood of the right option's tokens counts in training,
            for each token, in addition to its share among the options (Liu et al. 2022, "Few-shot
            parameter-efficient fine-tuning", section 3.2, have both). 0: not at all.

    Examples:
        >>> template = "Question: {question}\nAnswer:{soft:10}"
        >>> task = Choose(template, length_normalization="characters")
        >>> task.options_column, task.target_form
        ('options', 'auto')
    """

    kind: ClassVar = "choose"

    template: str | None = None
    options_column: str | Sequence[str] = "options"
    target_column: str = "target"
    target_form: TargetForm = "auto"
    head: HeadKind | None = None
    pooling: PoolingChoice = "auto"
    length_normalization: LengthNormalization = "none"
    likelihood_weight: Weight = 0.0

    def list_columns(self) -> tuple[str, ...]:
        """The columns of the options: one of lists, or one for each option.

        Returns:
            Their names.
        """
        columns = self.options_column
        return (columns,) if isinstance(columns, str) else tuple(columns)


# The field of a template that has one of the options.
OPTION_FIELD = "option"


def _list_words(words: Mapping[str, str | Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    return {k: (v,) if isinstance(v, str) else tuple(v) for k, v in (words or {}).items()}


TaskSettings = Classify | Generate | Regress | Tag | Extract | Choose
TASKS: dict[str, type[TaskSettings]] = {
    t.kind: t for t in (Classify, Generate, Regress, Tag, Extract, Choose)
}


def get_target_column(settings: TaskSettings) -> str:
    """The column of the right answers.

    Args:
        settings: of the task.
    """
    if isinstance(settings, Classify):
        return settings.label_column
    # The answer to a conversation is its last turn.
    return get_messages_column(settings) or settings.target_column


def get_messages_column(settings: TaskSettings) -> str | None:
    """The column of conversations; None if rows are texts.

    Args:
        settings: of the task.
    """
    return settings.messages_column if isinstance(settings, Classify | Generate) else None


def list_flexible_columns(settings: TaskSettings) -> tuple[str, ...]:
    """The columns whose cells the task checks itself: they may be lists, records or empty.

    Args:
        settings: of the task.
    """
    match settings:
        case Classify() | Generate():
            column = get_messages_column(settings)
            has_sets = isinstance(settings, Classify) and settings.multi_label
            sets = (get_target_column(settings),) if has_sets else ()
            return sets if column is None else (column, *sets)
        case Regress() | Extract():
            return (get_target_column(settings),)
        case Tag():
            return (settings.words_column, settings.target_column)
        case Choose():
            return (*settings.list_columns(), settings.target_column)
        case _:
            return ()


def list_row_columns(settings: TaskSettings, fields: Sequence[str]) -> tuple[str, ...]:
    """The columns that a row must have to be answered.

    Args:
        settings: of the task.
        fields: of its template, of which ``{option}`` is not a column.
    """
    if not isinstance(settings, Choose):
        return tuple(fields)
    columns = [name for name in fields if name != OPTION_FIELD]
    return tuple(dict.fromkeys([*columns, *settings.list_columns()]))


def list_answer_settings(settings: TaskSettings) -> tuple[str, ...]:
    """The settings that change how answers are read, and nothing that was trained.

    Args:
        settings: of the task.
    """
    match settings:
        case Classify(multi_label=True):
            return ("thresholds",)
        case Classify():
            return ("abstain_below", "temperature")
        case Tag():
            return ("aggregation", "constrained_decoding")
        case Extract():
            return ("null_threshold", "n_best", "max_answer_tokens")
        case Choose(head=None):
            return ("length_normalization",)
        case _:
            return ()


def has_trained_head(settings: TaskSettings) -> bool:
    """Whether a task trains a head together with the prompt.

    Args:
        settings: of the task.
    """
    match settings:
        case Classify(verbalizer=None) | Regress(words=None) | Tag() | Extract():
            return True
        case Choose(head=head):
            return head is not None
        case _:
            return False


def describe_settings(settings: TaskSettings, *, template: str) -> dict[str, Any]:
    """The settings of a task as an artifact records them.

    Args:
        settings: of the task.
        template: of a row, the settings' own or the default one.
    """
    facts = {"kind": settings.kind, **asdict(settings), "template": template}
    if "pooling" in facts and not has_trained_head(settings):
        del facts["pooling"]  # words have no such readout
    return facts


def make_decoding(settings: Generate) -> Decoding:
    """How a task's text is generated, without its choices.

    Raises:
        RecipeError: the settings are not possible.
    """
    return Decoding(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        do_sample=settings.do_sample,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )
