"""Rows that join and leave a batch while they are generated, each with its own prompt.

New rows are run as a batch of their own, which fills their part of the cache. From then on every
step is one pass of one token per row.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from softprompt.backbone.hooks import PassHook, PromptHook, use_hook
from softprompt.backbone.introspection import is_close, keep_attributes, make_probe_ids
from softprompt.backbone.model import Backbone, BatchInputs, can_accept
from softprompt.injection.capture import capture_keys_and_values
from softprompt.injection.compatibility import explain_unsplittable
from softprompt.injection.forward import build_row_prompts, compute_position_ids, inject_prompts
from softprompt.injection.row_cache import RowCache
from softprompt.injection.row_prompts import RowPrompts
from softprompt.injection.site_shapes import cut_to_site
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


@dataclass(frozen=True, eq=False)
class NewRow:
    """A row to generate from.

    Args:
        ids: its tokens, in which soft token k is ``V + k``; of an encoder-decoder the encoder's.
        prompt: its prompt, if it has one.
    """

    ids: tuple[int, ...]
    prompt: Prompt | None


class RunningRows:
    """The rows that are being generated, and their cache.

    Args:
        backbone: that is run; `explain_no_joining` says whether its rows can join and leave.
        store_prefixes: whether prefixes are copied into the cache when a row joins, if
            `can_store_prefixes`. Otherwise every step puts them before the cache again.
    """

    def __init__(self, backbone: Backbone, *, store_prefixes: bool = False) -> None:
        self._backbone, self._store_prefixes = backbone, store_prefixes
        self._is_causal = backbone.geometry.architecture == "causal"
        self._rows: list[NewRow] = []
        self._stored: list[int] = []  # the columns of the cache that are those of a row's prefix
        self._cache = RowCache(backbone.geometry.architecture)
        self._hook: PromptHook | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def join(self, rows: Sequence[NewRow]) -> Float[Tensor, "B V"]:
        """Run new rows, and append them.

        Args:
            rows: the rows.

        Returns:
            The scores of the next token of each new row.

        Raises:
            PromptError: a prompt does not fit the backbone or its row.
        """
        inputs, new = self._pad(rows), RowCache(self._backbone.geometry.architecture)
        prompts, index = list_prompts([row.prompt for row in rows], self._backbone.device)
        with inject_prompts(self._backbone, inputs, prompts=prompts, rows=index) as hook:
            arguments = self._make_arguments(inputs, hook)
            scores = self._run(arguments, new)
        lengths = [len(row.ids) for row in rows]
        if self._is_causal:
            width = max(lengths)
            columns = {row: slice(width - count, width) for row, count in enumerate(lengths)}
            self._cache.join(new, columns)
        else:
            encoded = {row: slice(0, count) for row, count in enumerate(lengths)}
            self._cache.join(new, dict.fromkeys(encoded, slice(0, 1)), encoded=encoded)
        self._rows += rows
        self._stored += [0] * len(rows)
        for row in range(len(self._rows) - len(rows), len(self._rows)):
            self._store_prefix(row)
        self._hook = None
        return scores

    @torch.no_grad()
    def advance(self, tokens: Sequence[int]) -> Float[Tensor, "B V"]:
        """Append a token to every row, in one pass.

        Args:
            tokens: of each row.

        Returns:
            The scores of each row's next token. If the pass raises, the rows are as before it.
        """
        if self._hook is None:
            self._hook = self._make_hook()
        try:
            with use_hook(self._hook):
                scores = self._run(self._make_step(tokens), self._cache)
        except BaseException:
            self._cache.own.rewind()
            raise
        self._cache.advance()
        return scores

    def drop(self, row: int) -> None:
        """Remove a row, whose place the last row takes.

        Args:
            row: its index.
        """
        self._rows[row], self._stored[row] = self._rows[-1], self._stored[-1]
        self._rows.pop()
        self._stored.pop()
        self._cache.drop(row)
        self._hook = None

    def copy_row(self, row: int) -> "RunningRows":
        """One of the rows alone, with its part of the cache."""
        new = RunningRows(self._backbone, store_prefixes=self._store_prefixes)
        new._rows.append(self._rows[row])
        new._stored.append(self._stored[row])
        new._cache.take_row(self._cache, row)
        return new

    def _pad(self, rows: Sequence[NewRow]) -> BatchInputs:
        device, pad = self._backbone.device, self._backbone.pad_token_id
        ids = [torch.tensor(row.ids, device=device) for row in rows]
        masks = [torch.ones_like(row) for row in ids]
        side = "left" if self._is_causal else "right"
        padded = (
            pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
            for tensors, value in ((ids, pad), (masks, 0))
        )
        return BatchInputs(*padded)

    def _make_arguments(self, inputs: BatchInputs, hook: RowPrompts) -> dict[str, Any]:
        """The model's arguments for new rows."""
        if self._is_causal:
            positions = compute_position_ids(self._backbone, inputs, hook=hook)
            optional = {} if positions is None else {"position_ids": positions}
            return {
                "input_ids": inputs.input_ids,
                "attention_mask": inputs.attention_mask,
                **optional,
            }
        start = self._backbone.decoder_start_token_id
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=self._backbone.encode(inputs)),
            "attention_mask": inputs.attention_mask,
            "decoder_input_ids": torch.full_like(inputs.input_ids[:, :1], start),
        }

    def _make_step(self, tokens: Sequence[int]) -> dict[str, Any]:
        """The model's arguments for one more token of every row."""
        backbone, own, encoded = self._backbone, self._cache.own, self._cache.encoded
        ids = torch.tensor(tokens, device=backbone.device)[:, None]
        mask = own.make_mask(after=1).to(backbone.device)
        if encoded is None:
            return {"input_ids": ids, "attention_mask": mask, **self._count_positions()}
        # The encoder's states are not read again, but their shape is.
        shape = len(ids), encoded.width, backbone.geometry.hidden_size
        states = torch.zeros(1, dtype=backbone.dtype, device=backbone.device).expand(shape)
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "attention_mask": encoded.make_mask().to(backbone.device),
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
        }

    def _count_positions(self) -> dict[str, Tensor]:
        """The position of every row's next token, if the backbone takes position ids."""
        offset = self._backbone.geometry.position_offset
        if offset is None:
            return {}
        prompts = [0 if row.prompt is None else row.prompt.num_positions for row in self._rows]
        columns = zip(self._cache.own.lengths, self._stored, prompts, strict=True)
        positions = [[length - stored + prompt + offset] for length, stored, prompt in columns]
        return {"position_ids": torch.tensor(positions, device=self._backbone.device)}

    def _run(self, arguments: dict[str, Any], cache: RowCache) -> Float[Tensor, "B V"]:
        model: Any = self._backbone.model
        only = {"logits_to_keep": 1} if can_accept(model, "logits_to_keep") else {}
        output = model(**arguments, **only, past_key_values=cache.argument, use_cache=True)
        scores: Tensor = output.logits[:, -1].to(torch.float32, copy=True)
        return scores

    def _make_hook(self) -> PromptHook:
        """The hook for steps, in which no token is a soft one."""
        pairs = zip(self._rows, self._stored, strict=True)
        kept = [None if stored else self._keep_prompt(row.prompt) for row, stored in pairs]
        prompts, index = list_prompts(kept, self._backbone.device)
        hook = build_row_prompts(self._backbone, prompts, rows=index, ids=self._align_ids())
        if self._is_causal:
            return hook
        lag = [self._cache.own.width - length for length in self._cache.own.lengths]
        return _LaggingRows(hook, torch.tensor(lag, device=index.device))

    def _store_prefix(self, row: int) -> None:
        """Copy a new row's prefix before its keys and values, if that comes to the same."""
        prompt, geometry = self._rows[row].prompt, self._backbone.geometry
        if not self._store_prefixes or not isinstance(prompt, KVPrefix) or not prompt.length:
            return
        # Without positions of its own, a prefix is visible from everywhere, at no distance.
        is_near = geometry.sliding_window is None and not self._backbone.bias_of
        is_placed = prompt.shift_positions or (is_near and geometry.position_offset is not None)
        is_whole = prompt.sites == tuple(range(geometry.num_attention_sites))
        if is_placed and is_whole and prompt.visible is None:
            pairs = zip(prompt.keys, prompt.values, strict=True)
            self._cache.own.prepend(
                row, [cut_to_site(geometry, n, keys=k, values=v) for n, (k, v) in enumerate(pairs)]
            )
            self._stored[row] = prompt.length

    def _keep_prompt(self, prompt: Prompt | None) -> Prompt | None:
        """What steps need of a prompt: not the vectors of soft tokens, which are in the cache.

        Only the places of those that entered late are needed, for the layers that do not see them.
        """
        if isinstance(prompt, InputPrompt) and not (self._is_causal and prompt.start_layer):
            return None
        return prompt

    def _align_ids(self) -> Int[Tensor, "B T"]:
        """The ids of the rows at their columns."""
        ids = torch.zeros(len(self._rows), max(self._cache.own.width, 1), dtype=torch.long)
        if self._is_causal:
            columns = zip(ids, self._rows, self._cache.own.lengths, self._stored, strict=True)
            for line, row, length, stored in columns:
                begin = len(line) - length + stored
                line[begin : begin + len(row.ids)] = torch.tensor(row.ids)
        return ids.to(self._backbone.device)


@dataclass(frozen=True, eq=False)
class _LaggingRows:
    """The hook of a decoder that counts positions by columns, in which rows begin later.

    Args:
        prompts: the rows' prompts.
        lag: the number of columns before each row.
    """

    prompts: RowPrompts
    lag: Int[Tensor, " B"]

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Embed as the rows' prompts do."""
        return self.prompts.embed(ids, table)

    def replace_soft(self, ids: Tensor) -> Tensor:
        """Replace as the rows' prompts do."""
        return self.prompts.replace_soft(ids)

    def get_position_shift(self, batch: int) -> Tensor:
        """The shift of each row's prompt, and back over the columns before the row."""
        shift = self.prompts.get_position_shift(batch)
        return -self.lag if shift is None else shift - self.lag

    def begin_pass(self, positions: Tensor) -> PassHook:
        """Start a pass at each row's own positions."""
        return self.prompts.begin_pass(positions - self.lag[:, None])


def list_prompts(
    prompts: Sequence[Prompt | None], device: torch.device
) -> tuple[list[Prompt | None], Int[Tensor, " B"]]:
    """Each prompt once, and the index of each row's."""
    numbers = {key: n for n, key in enumerate(dict.fromkeys(map(id, prompts)))}
    once = list({id(prompt): prompt for prompt in prompts}.values())
    return once, torch.tensor([numbers[id(prompt)] for prompt in prompts], device=device)


# Enough tokens that a window is shorter than all rows of the trial but one.
_PROBE, _WINDOW = 9, 4


@torch.no_grad()
def explain_no_joining(backbone: Backbone) -> str | None:
    """Find out in a trial whether rows can join and leave a batch while they are generated.

    Three rows of different lengths join and leave, and each step's scores must be those of the
    row's tokens run whole. If there is a sliding window, they do it again with one so short that
    they leave it.

    Args:
        backbone: the backbone.

    Returns:
        None if they can; otherwise why not, as a verb phrase.
    """
    if backbone.geometry.limits.padding is not None:
        return backbone.geometry.limits.padding
    if _has_other_window(backbone):
        return "has a window of attention that rows of a few tokens cannot test"
    try:
        with keep_attributes(backbone.model):
            same = _try_joining(backbone)
            if same and backbone.geometry.sliding_window is not None:
                with _shorten_window(backbone) as shortened:
                    if not shortened:
                        return "has a sliding window that rows of a few tokens cannot test"
                    same = _try_joining(backbone)
    except Exception:  # noqa: BLE001  # any family's own code
        return "does not keep plain keys and values from token to token"
    return None if same else "computes other scores for rows that join"


@torch.no_grad()
def can_store_prefixes(backbone: Backbone) -> bool:
    """Find out in a trial whether a prefix in the cache acts like one that is put before it.

    The prefix is made of words, after which a row's scores must be those of the words and the row.

    Args:
        backbone: the backbone.
    """
    is_causal = backbone.geometry.architecture == "causal"
    if not is_causal or explain_unsplittable(backbone.geometry) or _has_other_window(backbone):
        return False
    ids = make_probe_ids(backbone.model, _PROBE)[0].tolist()
    words = torch.tensor(ids[:3], device=backbone.device)
    try:
        with keep_attributes(backbone.model), _shorten_window(backbone) as shortened:
            captured = capture_keys_and_values(backbone, words)
            prefix = replace(captured, shift_positions=True)
            running = RunningRows(backbone, store_prefixes=True)
            scores = [running.join([NewRow(tuple(ids[3:6]), prefix)])]
            scores += [running.advance([token]) for token in ids[6:]]
            whole = _run_whole(backbone, ids[:6], ids[6:])
            return shortened and is_close(torch.cat(scores), whole.to(backbone.dtype))
    except Exception:  # noqa: BLE001  # any family's own code
        return False


# Sizes of windows in configurations: GPT-Neo's window_size, Doge's keep_window_size, BLT's
# local_attention_window_len, LongT5's local_radius …
_OTHER_WINDOW = re.compile(r"(.*_)?window(_size|_len)?|local_(attention|radius)")


def _has_other_window(backbone: Backbone) -> bool:
    """Whether there seems to be a window other than the one that a trial can make short."""
    config = vars(backbone.model.config.get_text_config())
    sizes = [k for k, v in config.items() if isinstance(v, int | list) and not isinstance(v, bool)]
    return any(_OTHER_WINDOW.fullmatch(k) and k != "sliding_window" for k in sizes)


def _try_joining(backbone: Backbone) -> bool:
    ids = make_probe_ids(backbone.model, _PROBE)[0].tolist()
    rows = [tuple(ids[:3]), tuple(ids[4:8]), tuple(reversed(ids))]
    running, fed = RunningRows(backbone), [list[int](), list[int](), list[int]()]
    scores = [[running.join([NewRow(rows[0], None)])[0]], [], []]
    present = [0]

    def feed() -> None:
        for row in present:
            fed[row].append(ids[len(fed[row]) + row])
        for row, found in zip(present, running.advance([fed[r][-1] for r in present]), strict=True):
            scores[row].append(found)

    feed()
    joined = running.join([NewRow(row, None) for row in rows[1:]])
    present += [1, 2]
    scores[1].append(joined[0])
    scores[2].append(joined[1])
    feed()
    running.drop(0)
    present[:] = [2, 1]
    feed()
    feed()
    # Scores are in fp32, but no closer than the dtype that they were computed in.
    whole = [
        _run_whole(backbone, row, more).to(backbone.dtype)
        for row, more in zip(rows, fed, strict=True)
    ]
    return all(is_close(torch.stack(a), b) for a, b in zip(scores, whole, strict=True))


def _run_whole(backbone: Backbone, row: Sequence[int], more: Sequence[int]) -> Float[Tensor, "S V"]:
    """The scores after a row and after each of the tokens that follow, in one pass."""
    model: Any = backbone.model
    if backbone.geometry.architecture == "causal":
        ids = torch.tensor([[*row, *more]], device=backbone.device)
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return logits[0, len(row) - 1 :].float()
    ids = torch.tensor([row], device=backbone.device)
    start = [backbone.decoder_start_token_id, *more]
    decoder = torch.tensor([start], device=backbone.device)
    output = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=decoder
    ).logits
    return output[0].float()  # type: ignore[no-any-return]  # a model of transformers


@contextmanager
def _shorten_window(backbone: Backbone) -> Iterator[bool]:
    """Make a sliding window short; False if that has no effect. Modules are restored elsewhere."""
    window, name = backbone.geometry.sliding_window, "sliding_window"
    if window is None:
        yield True
        return
    ids = make_probe_ids(backbone.model, _PROBE)[0].tolist()
    before = _run_whole(backbone, ids, [])
    configs = {id(c): c for c in (backbone.model.config, backbone.model.config.get_text_config())}
    owners = [c for c in configs.values() if vars(c).get(name) == window]
    for owner in (*owners, *backbone.model.modules()):
        if vars(owner).get(name) == window:
            vars(owner)[name] = _WINDOW
    try:
        yield not is_close(_run_whole(backbone, ids, []), before)
    finally:
        for config in owners:
            vars(config)[name] = window
