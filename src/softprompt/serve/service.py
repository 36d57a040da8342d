"""What the protocols have in common: from a model's name and rows to tickets of the engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from softprompt.analysis.nearest import find_nearest_words
from softprompt.artifact import Artifact
from softprompt.artifact.ensembles import load_saved
from softprompt.backbone.model import Backbone
from softprompt.data import as_row
from softprompt.data.chats import ChatRenderer
from softprompt.decoding import Decoding
from softprompt.errors import ArtifactError, SoftpromptError
from softprompt.inference.generated_row import GenerationRequest
from softprompt.inference.mixed import PromptedRow
from softprompt.inference.model import attach
from softprompt.prompt import InputPrompt
from softprompt.serve.admission import Ticket
from softprompt.serve.chats import find_messages_column, make_bare_renderer, read_chat
from softprompt.serve.engine import ServingEngine
from softprompt.serve.faults import ServingError
from softprompt.serve.messages import ChatMessage, RequestRow
from softprompt.serve.prompts import PromptStore
from softprompt.serve.resident import ResidentPrompt
from softprompt.serve.targets import (
    AnyTicket,
    JointTicket,
    Member,
    RowOrder,
    ServedRow,
    Target,
    TextOptions,
    ignore_event,
)
from softprompt.tasks import Example, Generate, build_task
from softprompt.tasks.base import ReadoutTask
from softprompt.tasks.generation import TextGenerator

# OpenAI's default for a backbone without a prompt.
_MAX_TOKENS = 16
_FIELD = "text"
# The rows that are rendered while no other request can be.
_RENDERED_AT_ONCE = 64
# The most names that an error lists, and the most characters of a name in it.
_CLOSE = 5
_LONGEST = 100


class Service:
    """Prompts, rows and the engine, for any protocol. Its methods may wait for files.

    Args:
        store: of the prompts.
        engine: that runs rows.
    """

    def __init__(self, store: PromptStore, engine: ServingEngine) -> None:
        self.store, self.engine = store, engine
        self.backbone: Backbone = store.backbone
        self._rendering = store.loader.tokenizing
        self._base = self._make_base()
        self._chat: ChatRenderer | None = None

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
        known = self.open_resident(reference)
        if known is not None:
            return known
        try:
            found = self.store.source.find(reference)
        except ArtifactError as error:
            message = self._explain_unknown(reference) or str(error)
            raise ServingError(message, kind="unknown", param="model") from error
        try:
            resident = self.store.acquire_found(found)
        except SoftpromptError as error:
            raise ServingError(str(error), kind="failed", param="model") from error
        return self._make_target(resident)

    def open_resident(self, reference: str) -> Target | None:
        """As `open`, without waiting for anything.

        Args:
            reference: a name, perhaps with a version.

        Returns:
            The target; None if a prompt has to be loaded first, or there is none.
        """
        if reference in {self.base_name, self.backbone.name} and self._base is not None:
            return Target(self.base_name, self.base_name, (Member(self._base, None),), None, None)
        resident = self.store.acquire_resident(reference)
        return None if resident is None else self._make_target(resident)

    def _make_target(self, resident: ResidentPrompt) -> Target:
        if self.store.has_unbaked:
            self.engine.wake()
        found = resident.found
        members = tuple(Member(one.task, one.prompt, one.baked) for one in resident.members)
        return Target(found.name, found.version, members, resident.vote, resident)

    @property
    def can_render_now(self) -> bool:
        """Whether a row can be rendered without waiting for another thread."""
        return not self._rendering.locked()

    def close(self, target: Target) -> None:
        """Give a target back.

        Args:
            target: that `open` returned.
        """
        if target.resident is not None:
            self.store.release(target.resident)

    def _explain_unknown(self, reference: str) -> str | None:
        """What there is instead of an unknown name; None if the name is known."""
        names = {*self.store.source.list_names()}
        if reference.partition("@")[0] in names:
            return None
        close = get_close_matches(reference.partition("@")[0], names, n=_CLOSE)
        listed = close or sorted(names)[:_CLOSE]
        kind = "Near names" if close else "Prompts"
        more = "" if len(listed) == len(names) else f" GET /v1/models lists all {len(names):,}."
        bare = f" The backbone itself is {self.base_name!r}." if self.has_base else ""
        return f"unknown prompt {reference[:_LONGEST]!r}. {kind}: {', '.join(listed)}.{more}{bare}"

    def render(self, target: Target, row: RequestRow) -> ServedRow:
        """Render a row.

        Args:
            target: of the request.
            row: a text, or a mapping of the template's fields.

        Raises:
            ServingError: the row does not fit the template.
        """
        [rendered] = self.render_all(target, [row])
        if isinstance(rendered, ServingError):
            raise rendered
        return rendered

    def render_all(
        self, target: Target, rows: Sequence[RequestRow]
    ) -> list[ServedRow | ServingError]:
        """Render rows together, which is faster than one by one.

        Args:
            target: of the request.
            rows: as `render` takes them.

        Returns:
            The rows, in their order; for one that does not fit the template, why.
        """
        rendered: list[ServedRow | ServingError] = []
        for at in range(0, len(rows), _RENDERED_AT_ONCE):
            rendered += self._render_group(target, rows[at : at + _RENDERED_AT_ONCE])
        return rendered

    def _render_group(
        self, target: Target, rows: Sequence[RequestRow]
    ) -> list[ServedRow | ServingError]:
        try:
            mappings = [as_row(row, target.columns) for row in rows]
            with self._rendering:
                return [*target.render(mappings)]
        except SoftpromptError as error:
            if len(rows) == 1:
                fault = ServingError(str(error), kind="invalid")
                fault.__cause__ = error
                return [fault]
        return [one for row in rows for one in self._render_group(target, [row])]

    def render_chat(self, target: Target, messages: Sequence[ChatMessage]) -> ServedRow:
        """Render a conversation.

        The bare backbone gets it in its chat template, and so does a prompt whose rows are
        conversations, as `predict` does it. The template of another prompt gets the text of one
        user message as its only field.

        Args:
            target: of the request.
            messages: of the conversation.

        Raises:
            ServingError: the conversation does not fit.
        """
        if not messages:
            msg = "messages is empty. Give at least one."
            raise ServingError(msg, kind="invalid", param="messages")
        if target.is_bare:
            return self._render_bare(messages)
        column = find_messages_column(target.task)
        if column is not None:
            read = read_chat(messages, is_answered=not isinstance(target.task, TextGenerator))
            return self.render(target, {column: [asdict(message) for message in read]})
        if len(messages) > 1 or messages[0].role != "user":
            msg = (
                f"{target.name} has a template of its own, which takes the text of one "
                f"user message; the request has {len(messages)} messages. Send one message of the "
                "role 'user'."
            )
            raise ServingError(msg, kind="invalid", param="messages")
        return self.render(target, messages[0].text)

    def submit(
        self, target: Target, orders: Sequence[RowOrder], *, deadline: float | None
    ) -> list[AnyTicket]:
        """Hand rows to the engine: all of a classifier's together, texts one by one.

        Args:
            target: of the request.
            orders: the rows.
            deadline: when they expire.

        Returns:
            The tickets, in the order of the rows. If one is refused, those before it are cancelled.

        Raises:
            ServingError: the options are not possible, or the engine is full.
        """
        if isinstance(target.task, ReadoutTask):
            return self._submit_rows(target, [order.row for order in orders], deadline=deadline)
        tickets: list[AnyTicket] = []
        with _cancel_if_refused(tickets):
            for order in orders:  # one by one, since the next may be refused
                tickets += [self._submit_text(target, order, deadline=deadline)]
        return tickets

    def _submit_rows(
        self, target: Target, rows: Sequence[ServedRow], *, deadline: float | None
    ) -> list[AnyTicket]:
        """Hand rows to the engine to classify, once for each member."""
        prompted = [
            PromptedRow(member.task, *member.shorten(view))
            for row in rows
            for member, view in zip(target.members, row.views, strict=True)
            if isinstance(member.task, ReadoutTask)
        ]
        if not prompted:
            return []
        ticket = self.engine.submit(target.name, prompted, deadline=deadline)
        return [_join(target, [ticket])]

    def _submit_text(self, target: Target, order: RowOrder, *, deadline: float | None) -> AnyTicket:
        """Hand a row to the engine to generate text for, once for each member."""
        tickets: list[Ticket] = []
        on_event = order.on_event if len(target.members) == 1 else ignore_event
        with _cancel_if_refused(tickets):
            for member, view in zip(target.members, order.row.views, strict=True):
                request = _make_request(member, view, order.options)
                tickets.append(
                    self.engine.submit_text(
                        target.name, request, on_event=on_event, deadline=deadline
                    )
                )
        return _join(target, tickets)

    def explain(self, row: ServedRow) -> list[dict[str, object]]:
        """What a row looks like after its template: texts, and numbers of soft tokens.

        Args:
            row: rendered; of an ensemble, the first member's view is shown.
        """
        ids, vocabulary = row.views[0].variants[0].input_ids, self.backbone.geometry.vocab_size
        runs = groupby(ids, lambda token: token >= vocabulary)
        parts = [(is_soft, [*of_run]) for is_soft, of_run in runs]
        with self._rendering:
            return [
                {"soft": len(part)} if is_soft else {"text": self.backbone.tokenizer.decode(part)}
                for is_soft, part in parts
            ]

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
                "parent": None if target.is_bare else self.base_name,
                "task": target.task.kind,
                "labels": list(target.task.labels),
                "fields": list(target.columns),
            }
            if target.resident is None:
                return card
            first = _load_first(target.resident)
            manifest = asdict(first.manifest)
            named = ("template", "kind", "length", "layers", "metrics", "data")
            card |= {name: manifest[name] for name in named}
            if target.vote is not None:
                card |= {"members": len(target.members), "vote": target.vote}
            card["nearest_words"] = _list_nearest(first, self.backbone)
            return card | {"digest": f"sha256:{target.resident.found.digest}"}
        finally:
            self.close(target)

    def _make_base(self) -> TextGenerator | None:
        """The bare backbone as a task; None if it cannot write."""
        settings = Generate(template=f"{{{_FIELD}}}", max_new_tokens=_MAX_TOKENS)
        try:
            task = build_task(settings, self.backbone, template=f"{{{_FIELD}}}")
        except SoftpromptError:
            return None
        return task if isinstance(task, TextGenerator) else None

    def _render_bare(self, messages: Sequence[ChatMessage]) -> ServedRow:
        """A conversation in the backbone's chat template, whole."""
        if self._base is None:
            msg = "the backbone does not write text. Name a prompt."
            raise ServingError(msg, kind="invalid", param="model")
        try:
            with self._rendering:
                self._chat = self._chat or make_bare_renderer(self.backbone, self.base_name)
                row = self._chat.render_messages(read_chat(messages), {}, continues=True)
        except SoftpromptError as error:
            raise ServingError(str(error), kind="invalid", param="messages") from error
        return ServedRow((Example((row,), ((),), None),))


@contextmanager
def _cancel_if_refused(tickets: Sequence[AnyTicket]) -> Iterator[None]:
    """Cancel what was handed in if the next row is refused."""
    try:
        yield
    except ServingError:
        for ticket in tickets:
            ticket.cancel()
        raise


def _load_first(resident: ResidentPrompt) -> Artifact:
    """The artifact of a prompt, or of the first of an ensemble; it is not kept in memory."""
    try:
        saved = load_saved(resident.found.folder)
    except ArtifactError as error:
        raise ServingError(str(error), kind="failed", param="model") from error
    return saved if isinstance(saved, Artifact) else next(iter(saved.members.values()))


def _join(target: Target, tickets: Sequence[Ticket]) -> AnyTicket:
    """One ticket for the tickets of all members."""
    if target.vote is None:
        return tickets[0]
    return JointTicket(
        tickets,
        vote=target.vote,
        objective=target.task.objective,
        members=len(target.members),
    )


def _make_request(member: Member, example: Example, options: TextOptions) -> GenerationRequest:
    """What the engine generates text for."""
    task = member.task
    if not isinstance(task, TextGenerator):
        msg = "this prompt does not generate text. Ask it at /v1/classify or /v1/predict."
        raise ServingError(msg, kind="invalid", param="model")
    # Baked tokens are not run again, so they would have no log-probabilities.
    is_whole = options.scores is not None and options.scores.has_row
    short, prompt = (example, member.prompt) if is_whole else member.shorten(example)
    try:
        decoding = _choose_decoding(task, options)
    except SoftpromptError as error:
        raise ServingError(str(error), kind="invalid") from error
    return GenerationRequest(
        task,
        short,
        prompt,
        decoding,
        seed=options.seed,
        stop=options.stop,
        stop_token_ids=options.stop_token_ids,
        scores=options.scores,
        whole_ids=example.variants[0].input_ids,
    )


def _list_nearest(
    artifact: Artifact, backbone: Backbone, *, count: int = 3
) -> list[list[str]] | None:
    """The nearest words of each soft token; None if they are not among the input embeddings."""
    prompt = artifact.prompt
    if not isinstance(prompt, InputPrompt) or prompt.start_layer or not prompt.length:
        return None
    model = attach(artifact, backbone)
    return [list(token.words) for token in find_nearest_words(model, count=count)]


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
    if options.min_p is not None:
        changes["min_p"] = options.min_p
    return replace(task.decoding, **changes)
