"""What the protocols have in common: from a model's name and rows to tickets of the engine."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from softprompt.backbone.model import Backbone
from softprompt.data import as_row
from softprompt.data.rendering import RenderedRow
from softprompt.decoding import Decoding
from softprompt.errors import ArtifactError, SoftpromptError
from softprompt.inference.continuous import GenerationEvent, GenerationRequest
from softprompt.inference.mixed import PromptedRow
from softprompt.prompt import KVPrefix, Prompt
from softprompt.serve.engine import ServingEngine, Ticket
from softprompt.serve.faults import ServingError
from softprompt.serve.messages import ChatMessage, RequestRow
from softprompt.serve.prompts import PromptStore, ResidentPrompt
from softprompt.tasks import Classifier, Example, Generate, Task, build_task
from softprompt.tasks.generation import TextGenerator

# OpenAI's default for a backbone without a prompt.
_MAX_TOKENS = 16
_FIELD = "text"
OnEvent = Callable[[GenerationEvent], None]
# Stands for the text of a message while the chat template is filled; no tokenizer splits it.
_MARK = "\ue000{}\ue001"


@dataclass(frozen=True, eq=False)
class Target:
    """What a request's ``model`` means, for as long as the request is answered.

    Args:
        name: whose share the request counts to.
        version: the full reference of the version.
        task: to run.
        prompt: None for the bare backbone.
        resident: to be released; None for the bare backbone.
    """

    name: str
    version: str
    task: Task
    prompt: Prompt | None
    resident: ResidentPrompt | None


@dataclass(frozen=True)
class TextOptions:
    """How text is generated; None for the prompt's own setting.

    Args:
        max_tokens: the most tokens.
        temperature: 0 for the likeliest token at each step.
        top_p: sample from the smallest set of tokens with this probability.
        top_k: sample from the k likeliest tokens.
        seed: of sampling.
        stop: strings that end the text.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Service:
    """Prompts, rows and the engine, for any protocol. Its methods may wait for files.

    Args:
        store: of the prompts.
        engine: that runs rows.
    """

    def __init__(self, store: PromptStore, engine: ServingEngine) -> None:
        self.store, self.engine = store, engine
        self.backbone: Backbone = store.backbone
        # Tokenizers are not safe in several threads.
        self._rendering = threading.Lock()
        self._base = self._make_base()

    @property
    def base_name(self) -> str:
        """The name by which the bare backbone is asked."""
        return self.backbone.name.rstrip("/").rpartition("/")[2]

    @property
    def has_base(self) -> bool:
        """Whether the bare backbone can be asked."""
        return self._base is not None

    def open(self, reference: str) -> Target:
        """Find what a request's ``model`` means, and keep it in memory.

        Args:
            reference: a name, perhaps with a version.

        Returns:
            The target, to be closed.

        Raises:
            ServingError: there is no such prompt, or it cannot be loaded.
        """
        if reference in {self.base_name, self.backbone.name} and self._base is not None:
            return Target(self.base_name, self.base_name, self._base, None, None)
        try:
            found = self.store.source.find(reference)
        except ArtifactError as error:
            raise ServingError(str(error), kind="unknown", param="model") from error
        try:
            resident = self.store.acquire_found(found)
        except SoftpromptError as error:
            raise ServingError(str(error), kind="failed", param="model") from error
        model = resident.model
        return Target(found.name, found.version, model.task, model.prompt, resident)

    def close(self, target: Target) -> None:
        """Give a target back.

        Args:
            target: that `open` returned.
        """
        if target.resident is not None:
            self.store.release(target.resident)

    def render(self, target: Target, row: RequestRow) -> Example:
        """Render a row.

        Args:
            target: of the request.
            row: a text, or a mapping of the template's fields.

        Raises:
            ServingError: the row does not fit the template.
        """
        try:
            mapping = as_row(row, target.task.columns)
            with self._rendering:
                return target.task.make_example(mapping, target=False)
        except SoftpromptError as error:
            raise ServingError(str(error), kind="invalid") from error

    def render_chat(self, target: Target, messages: Sequence[ChatMessage]) -> Example:
        """Render a conversation.

        The bare backbone gets it in its chat template. The template of a prompt gets the text of
        one user message as its only field, as `predict` does.

        Args:
            target: of the request.
            messages: of the conversation.

        Raises:
            ServingError: the conversation does not fit.
        """
        if not messages:
            msg = "messages is empty. Give at least one."
            raise ServingError(msg, kind="invalid", param="messages")
        if target.prompt is None:
            return self._fill_chat_template(messages)
        if len(messages) > 1 or messages[0].role != "user":
            msg = (
                f"{target.name} has a template of its own, which takes the text of one "
                f"user message; the request has {len(messages)} messages. Send one message of the "
                "role 'user'."
            )
            raise ServingError(msg, kind="invalid", param="messages")
        return self.render(target, messages[0].text)

    def submit(
        self,
        target: Target,
        examples: Sequence[Example],
        *,
        on_events: Sequence[OnEvent],
        options: TextOptions = TextOptions(),  # frozen
        deadline: float | None,
    ) -> list[Ticket]:
        """Hand rows to the engine: all of a classifier's together, texts one by one.

        Args:
            target: of the request.
            examples: the rows.
            on_events: for each row, called in the engine's thread with each piece of its text; not
                called for a classifier.
            options: how text is generated.
            deadline: when they expire.

        Returns:
            The tickets, in the order of the rows. If one is refused, those before it are cancelled.

        Raises:
            ServingError: the options are not possible, or the engine is full.
        """
        task = target.task
        if isinstance(task, Classifier):
            rows = [PromptedRow(task, *self._shorten(target, e)) for e in examples]
            return [self.engine.submit(target.name, rows, deadline=deadline)] if rows else []
        tickets: list[Ticket] = []
        try:
            for example, on_event in zip(examples, on_events, strict=True):
                tickets.append(
                    self._submit_text(
                        target, example, options=options, on_event=on_event, deadline=deadline
                    )
                )
        except ServingError:
            for ticket in tickets:
                ticket.cancel()
            raise
        return tickets

    def _submit_text(
        self,
        target: Target,
        example: Example,
        *,
        options: TextOptions,
        on_event: OnEvent,
        deadline: float | None,
    ) -> Ticket:
        """Hand a row to the engine to generate text for."""
        task = target.task
        if not isinstance(task, TextGenerator):
            msg = f"{target.name} does not generate text. Ask it at /v1/classify or /v1/predict."
            raise ServingError(msg, kind="invalid", param="model")
        short, prompt = self._shorten(target, example)
        try:
            decoding = _choose_decoding(task, options)
        except SoftpromptError as error:
            raise ServingError(str(error), kind="invalid") from error
        request = GenerationRequest(
            task, short, prompt, decoding, seed=options.seed, stop=options.stop
        )
        return self.engine.submit_text(target.name, request, on_event=on_event, deadline=deadline)

    def explain(self, example: Example) -> list[dict[str, object]]:
        """What a row looks like after its template: texts, and numbers of soft tokens.

        Args:
            example: the row.
        """
        parts: list[dict[str, object]] = []
        ids: list[int] = []
        vocabulary = self.backbone.geometry.vocab_size
        with self._rendering:
            for token in (*example.variants[0].input_ids, -1):
                if 0 <= token < vocabulary:
                    ids.append(token)
                    continue
                if ids:
                    parts.append({"text": self.backbone.tokenizer.decode(ids)})
                    ids = []
                if token >= vocabulary:
                    is_next = bool(parts) and "soft" in parts[-1]
                    count = parts.pop()["soft"] if is_next else 0
                    parts.append({"soft": int(str(count)) + 1})
        return parts

    def count_tokens(self, target: Target, example: Example) -> tuple[int, int]:
        """The tokens of a row, with its soft tokens, and the number of these.

        Args:
            target: of the request.
            example: the row.
        """
        ids, vocabulary = example.variants[0].input_ids, self.backbone.geometry.vocab_size
        prefix = target.prompt.length if isinstance(target.prompt, KVPrefix) else 0
        return len(ids) + prefix, sum(token >= vocabulary for token in ids) + prefix

    def describe(self, reference: str) -> dict[str, Any]:
        """The card of a prompt: its task, its template, its metrics and its data.

        Args:
            reference: a name, perhaps with a version.

        Raises:
            ServingError: there is no such prompt, or it cannot be loaded.
        """
        target = self.open(reference)
        try:
            card: dict[str, Any] = {
                "id": reference,
                "object": "model",
                "created": 0,
                "owned_by": "softprompt",
                "root": target.version,
                "parent": None if target.prompt is None else self.base_name,
                "task": "classify" if isinstance(target.task, Classifier) else "generate",
                "labels": list(target.task.labels),
                "fields": list(dict.fromkeys(target.task.columns)),
            }
            if target.resident is None:
                return card
            manifest = asdict(target.resident.model.artifact.manifest)
            named = ("template", "kind", "length", "layers", "metrics", "data")
            digest = {"digest": f"sha256:{target.resident.found.digest}"}
            return card | {name: manifest[name] for name in named} | digest
        finally:
            self.close(target)

    def _shorten(self, target: Target, example: Example) -> tuple[Example, Prompt | None]:
        """The row without the tokens that are baked, and the prompt for it."""
        baked = None if target.resident is None else target.resident.baked
        short = None if baked is None else baked.cut(example)
        if baked is None or short is None:
            return example, target.prompt
        return short, baked.prefix

    def _make_base(self) -> TextGenerator | None:
        """The bare backbone as a task; None if it cannot write."""
        settings = Generate(template=f"{{{_FIELD}}}", max_new_tokens=_MAX_TOKENS)
        try:
            task = build_task(settings, self.backbone, template=f"{{{_FIELD}}}")
        except SoftpromptError:
            return None
        return task if isinstance(task, TextGenerator) else None

    def _fill_chat_template(self, messages: Sequence[ChatMessage]) -> Example:
        """The ids of a conversation; no text of a message becomes a special token."""
        tokenizer = self.backbone.tokenizer
        if not tokenizer.chat_template:
            msg = (
                f"the backbone {self.base_name} has no chat template. Use /v1/completions, or name "
                "a prompt."
            )
            raise ServingError(msg, kind="invalid", param="model")
        base = self._base
        if base is None:
            msg = "the backbone does not write text. Name a prompt."
            raise ServingError(msg, kind="invalid", param="model")
        marked = [
            {"role": message.role, "content": _MARK.format(number)}
            for number, message in enumerate(messages)
        ]
        with self._rendering:
            try:
                text = str(
                    tokenizer.apply_chat_template(
                        marked, tokenize=False, add_generation_prompt=True
                    )
                )
            except Exception as error:  # templates raise errors of their own
                msg = f"the chat template refuses these messages: {error}."
                raise ServingError(msg, kind="invalid", param="messages") from error
            ids: list[int] = []
            for number, message in enumerate(messages):
                before, _, text = text.partition(_MARK.format(number))
                ids += tokenizer(before, add_special_tokens=False)["input_ids"]
                safe = base.renderer.safe_tokenizer
                ids += [token.id for token in safe.encode(message.text, first=False)]
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        row = RenderedRow(tuple(ids), (0,) * len(ids), (), truncated=False)
        return Example((row,), ((),), None)


def _choose_decoding(task: TextGenerator, options: TextOptions) -> Decoding:
    """The task's settings with those of the request. Choices are always written whole."""
    changes: dict[str, Any] = {}
    if options.max_tokens is not None and task.decoding.allowed_answers is None:
        changes["max_new_tokens"] = options.max_tokens
    if options.temperature is not None:
        changes["do_sample"] = options.temperature > 0
        if options.temperature > 0:
            changes |= {"temperature": options.temperature, "num_beams": 1}
    if options.top_p is not None:
        changes["top_p"] = options.top_p
    if options.top_k is not None:
        changes["top_k"] = max(0, options.top_k)
    return replace(task.decoding, **changes)
