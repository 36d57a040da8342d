"""What is checked of each family, against transformers' own eager model of the same weights."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from build import BOS, END, PAD
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_utils import PreTrainedModel

from softprompt import (
    BatchInputs,
    Classify,
    InputPrompt,
    KVPrefix,
    PromptModel,
    TrainingConfig,
    fit,
    forward,
    load_backbone,
)
from softprompt.backbone import Backbone
from softprompt.errors import SoftpromptError
from softprompt.injection.capture import to_kv_prefix
from softprompt.injection.compatibility import (
    explain_no_late_entry,
    explain_unshiftable,
    explain_unsplittable,
)
from softprompt.injection.generation import Decoding, generate
from softprompt.injection.running_rows import (
    NewRow,
    RunningRows,
    can_store_prefixes,
    explain_no_joining,
)
from softprompt.prompt import Prompt
from softprompt.tasks.binding import build_task

# Relative to the largest number of the right result, in fp32.
TOLERANCE = 1e-4
WORDS = ["good", " bad", " film"]
TEXTS = ["the film is a good film", "a bad one", "it was great. It was terrible! Was it good?"]
ROWS = [{"text": t, "label": ("no", "yes")[i % 2]} for i, t in enumerate(TEXTS * 2)]


@dataclass
class Case:
    """One family: the backbone, transformers' model, and rows of different lengths.

    Args:
        backbone: as users load it.
        plain: transformers' eager model of the same folder, untouched.
        rows: token ids of different lengths.
    """

    backbone: Backbone
    plain: PreTrainedModel
    rows: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = [torch.randint(60, 300, (n,), generator=generator) for n in (9, 5, 7)]

    @property
    def seq2seq(self) -> bool:
        """Whether there is a decoder with an input of its own."""
        return self.backbone.geometry.architecture == "encoder-decoder"

    def batch(self, rows: list[Tensor], *, side: str = "right") -> BatchInputs:
        """Rows with padding."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.backbone.pad_token_id)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[at, where], mask[at, where] = row, 1
        decoder = torch.tensor([[72, 70, 71]] * len(rows)) if self.seq2seq else None
        return BatchInputs(ids, mask, decoder_input_ids=decoder)

    def states(
        self,
        rows: list[Tensor],
        prompts: list[Prompt | None],
        *,
        side: str = "right",
        which: list[int] | None = None,
    ) -> list[Tensor]:
        """The states of each row's real tokens (of a decoder all)."""
        inputs = self.batch(rows, side=side)
        index = None if which is None else torch.tensor(which)
        found = forward(self.backbone, inputs, prompts=prompts, rows=index)
        if self.seq2seq:
            return [*found]
        return [s[m.bool()] for s, m in zip(found, inputs.attention_mask, strict=True)]

    def alone(self, rows: list[Tensor], prompt: Prompt | None) -> list[Tensor]:
        """The states of each row, run alone."""
        return [self.states([row], [prompt])[0] for row in rows]

    def soft(self, count: int) -> Tensor:
        """The ids of soft tokens."""
        return torch.arange(count) + self.backbone.geometry.vocab_size

    def prefix(self) -> KVPrefix:
        """A random prefix on all sites."""
        geometry, generator = self.backbone.geometry, torch.Generator().manual_seed(1)
        shape = (geometry.num_attention_sites, geometry.num_kv_heads, 3, geometry.head_dim)
        keys, values = (torch.randn(*shape, generator=generator) for _ in range(2))
        return KVPrefix(keys, values, tuple(range(geometry.num_attention_sites)))


class WrongResultError(Exception):
    """A result that differs."""


class LimitError(SoftpromptError):
    """The backbone is limited by name.

    Args:
        reason: the limit, as a verb phrase.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"it {reason}")


def same(found: list[Tensor], right: list[Tensor]) -> None:
    """Compare results, relative to the largest number of the right one."""
    for left, expected in zip(found, right, strict=True):
        off = (left - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
        if not off <= TOLERANCE:
            msg = f"off by {off:.3g}"
            raise WrongResultError(msg)


def equal(found: object, right: object) -> None:
    """Compare results that must be equal."""
    if found != right:
        msg = f"{found} instead of {right}"[:200]
        raise WrongResultError(msg)


@torch.no_grad()
def bare(case: Case) -> None:
    """Without a prompt: the states and logits of transformers' eager model."""
    plain, logits = case.plain, []
    for row in case.rows:
        inputs = {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]}
        if case.seq2seq:
            inputs["decoder_input_ids"] = torch.tensor([[72, 70, 71]])
        logits.append(plain(**inputs).logits[0])
    found = case.alone(case.rows, None)
    head = case.backbone.lm_head
    if head is None:
        raise LimitError(str(case.backbone.geometry.limits.head))
    same([head(states) for states in found], logits)


@torch.no_grad()
def words(case: Case) -> None:
    """Soft tokens made of words are these words, in front, in the middle and at the end."""
    if (limit := case.backbone.geometry.limits.words) is not None:
        raise LimitError(limit)
    for at in (0, 3, 6):
        row = case.rows[0]
        prompt = InputPrompt(case.backbone.embed(row[at : at + 3]))
        soft = torch.cat([row[:at], case.soft(3), row[at + 3 :]])
        same(case.alone([soft], prompt), case.alone([row], None))


@torch.no_grad()
def padding(case: Case) -> None:
    """A row in a batch is the row alone, with padding on either side."""
    prompt = InputPrompt(case.backbone.embed(torch.tensor([80, 90])))
    rows = [torch.cat([case.soft(2), row]) for row in case.rows]
    # An encoder-decoder's rows are always padded on the right.
    for side in ("right",) if case.seq2seq else ("right", "left"):
        same(case.states(case.rows, [None], side=side), case.alone(case.rows, None))
        same(case.states(rows, [prompt], side=side), case.alone(rows, prompt))


# transformers' defaults for a family, such as BART's forced last token, are not its weights.
_GREEDY = GenerationConfig(
    max_new_tokens=6,
    do_sample=False,
    bos_token_id=BOS,
    eos_token_id=END,
    pad_token_id=PAD,
)


@torch.no_grad()
def generation(case: Case) -> None:
    """Greedy text is transformers', with and without a cache; a row in a batch is it alone."""
    if case.backbone.geometry.architecture == "encoder" or case.backbone.lm_head is None:
        return
    short, case.plain.generation_config = Decoding(max_new_tokens=6), GenerationConfig()
    texts = []
    for row in case.rows:
        one = case.batch([row])
        one = replace(one, decoder_input_ids=None)
        own = case.plain.generate(
            input_ids=one.input_ids,
            attention_mask=one.attention_mask,
            generation_config=_GREEDY,
        )
        begin = 1 if case.seq2seq else len(row)
        ids = own[0, begin:].tolist()
        ids = ids[: ids.index(END)] if END in ids else ids
        texts.append(ids)
        equal(generate(case.backbone, one, prompts=[None], decoding=short), [ids])
        equal(
            generate(case.backbone, one, prompts=[None], decoding=replace(short, cache="none")),
            [ids],
        )
    side = "right" if case.seq2seq else "left"
    inputs = replace(case.batch(case.rows, side=side), decoder_input_ids=None)
    equal(generate(case.backbone, inputs, prompts=[None], decoding=short), texts)


def prefixes(case: Case) -> None:
    """Every part of a prefix has an effect and a gradient; none is the bare backbone; batches."""
    backbone = case.backbone
    if (limit := backbone.geometry.limits.prefix) is not None:
        raise LimitError(limit)
    prefix = case.prefix()
    for tensor in (prefix.keys, prefix.values):
        tensor.requires_grad_()
    states = case.states(case.rows[:1], [prefix])[0]
    weights = torch.linspace(-1, 1, states.shape[-1])
    for gradient in torch.autograd.grad((states * weights).sum(), (prefix.keys, prefix.values)):
        if not gradient.flatten(1).any(dim=1).all():
            msg = "a site has no gradient"
            raise WrongResultError(msg)
    with torch.no_grad():
        alone, none = case.alone(case.rows, prefix), case.alone(case.rows, None)
        same(case.states(case.rows, [prefix]), alone)
        mixed = case.states(case.rows, [prefix, None], which=[0, 1, 0])
        same(mixed, [alone[0], none[1], alone[2]])
        if backbone.geometry.architecture != "encoder" and backbone.lm_head is not None:
            _generate_with_prefix(case, prefix)


def _generate_with_prefix(case: Case, prefix: KVPrefix) -> None:
    short = Decoding(max_new_tokens=4)
    side = "right" if case.seq2seq else "left"
    inputs = replace(case.batch(case.rows, side=side), decoder_input_ids=None)
    singles = [replace(case.batch([row]), decoder_input_ids=None) for row in case.rows]
    for cache in ("dynamic", "none"):
        settings = replace(short, cache=cache)
        together = generate(case.backbone, inputs, prompts=[prefix], decoding=settings)
        single = [
            generate(case.backbone, one, prompts=[prefix], decoding=settings)[0] for one in singles
        ]
        equal(together, single)


def joining(case: Case) -> None:
    """Rows that join and leave a running batch, with different prompts, are written as if alone."""
    backbone = case.backbone
    if backbone.geometry.architecture == "encoder" or backbone.lm_head is None:
        return
    if (limit := explain_no_joining(backbone)) is not None:
        raise LimitError(limit)
    words = InputPrompt(backbone.embed(case.rows[1][:3]))
    prompts: list[Prompt | None] = [None, words]
    if backbone.geometry.limits.prefix is None:
        prompts.append(case.prefix())
        if explain_unshiftable(backbone.geometry) is None and not case.seq2seq:
            prompts.append(replace(case.prefix(), shift_positions=True))
    rows = []
    for number in range(8):
        ids, prompt = case.rows[number % 3], prompts[number % len(prompts)]
        whole = torch.cat([ids[:1], case.soft(3), ids[4:]]) if prompt is words else ids
        rows.append(NewRow(tuple(whole.tolist()), prompt))
    stores = can_store_prefixes(backbone)
    texts = _write_joined(RunningRows(backbone, store_prefixes=stores), rows, backbone)
    for row, text in zip(rows, texts, strict=True):
        inputs = replace(case.batch([torch.tensor(row.ids)]), decoder_input_ids=None)
        decoding = Decoding(max_new_tokens=_LONG)
        equal([text], generate(backbone, inputs, prompts=[row.prompt], decoding=decoding))


def _write_joined(running: RunningRows, rows: list[NewRow], backbone: Backbone) -> list[list[int]]:
    """Greedy texts of rows of which two join at every step, and which leave at their end."""
    order, texts = list[int](), [list[int]() for _ in rows]
    waiting = [*range(len(rows))]

    def append(to: list[int], scores: Tensor) -> None:
        for row, token in zip(to, scores.argmax(dim=-1).tolist(), strict=True):
            texts[row].append(token)

    while waiting or order:
        if order:
            append(order, running.advance([texts[row][-1] for row in order]))
        joined, waiting = waiting[:2], waiting[2:]
        if joined:
            append(joined, running.join([rows[row] for row in joined]))
            order += joined
        ended = [
            len(texts[row]) == _LONG or texts[row][-1] in backbone.eos_token_ids for row in order
        ]
        for at in reversed([at for at, end in enumerate(ended) if end]):
            running.drop(at)
            order[at] = order[-1]
            order.pop()
    return [[t for t in text if t not in backbone.eos_token_ids] for text in texts]


# More tokens than the windows of the shrunk configurations.
_LONG = 24

# HRM trains through the last of its cycles alone.
_TRUNCATED = {"hrm_text"}


def gradients(case: Case) -> None:
    """Gradients are the slopes of finite differences."""
    backbone = case.backbone
    if backbone.geometry.model_type in _TRUNCATED:
        return
    vectors = backbone.embed(torch.tensor([80, 90]))
    rows = [torch.cat([row[:2], case.soft(2), row[2:]]) for row in case.rows]
    _compare_slopes(case, rows, lambda change: InputPrompt(vectors + change), vectors)
    if backbone.geometry.limits.prefix is None:
        prefix = case.prefix()
        for change in (
            lambda change: replace(prefix, keys=prefix.keys + change),
            lambda change: replace(prefix, values=prefix.values + change),
        ):
            _compare_slopes(case, case.rows, change, prefix.keys)


def _compare_slopes(
    case: Case, rows: list[Tensor], make: Callable[[Tensor], Prompt], like: Tensor
) -> None:
    """The slope along a gradient is its length; a part that is missing would show."""

    def total(change: Tensor) -> Tensor:
        states = case.states(rows, [make(change)])
        weights = torch.linspace(-1, 1, states[0].shape[-1])
        return sum(((s * weights).sum() for s in states), torch.zeros(()))

    zero = torch.zeros_like(like).requires_grad_()
    [gradient] = torch.autograd.grad(total(zero), zero)
    length = float(gradient.norm())
    slopes = []
    for size in _STEPS:
        step = (size * gradient / length).requires_grad_()  # on the path of training
        slopes.append(float(total(step) - total(-step)) / (2 * size))
        if abs(slopes[-1] - length) <= _SLOPE_TOLERANCE * length:
            return
    listed = ", ".join(f"{slope:.3g}" for slope in slopes)
    msg = f"slopes of {listed} for a gradient of {length:.3g}"
    raise WrongResultError(msg)


# A long step may cross the border between two experts; a short one has more rounding.
_STEPS, _SLOPE_TOLERANCE = (1e-2, 1e-3, 1e-4), 0.02


@torch.no_grad()
def bake(case: Case) -> None:
    """A prompt baked into keys and values is the prompt with its soft tokens."""
    backbone = case.backbone
    reason = explain_unsplittable(backbone.geometry)
    if backbone.geometry.architecture != "causal":
        return
    if reason is not None:
        raise LimitError(reason)
    prompt = InputPrompt(backbone.embed(torch.tensor([80, 90, 100])))
    prefix = to_kv_prefix(backbone, prompt, head=case.soft(3))
    whole = [torch.cat([case.soft(3), row]) for row in case.rows]
    expected = [states[3:] for states in case.alone(whole, prompt)]
    same(case.states(case.rows, [prefix]), expected)


@torch.no_grad()
def late(case: Case) -> None:
    """A late prompt in a batch is that alone, and does not depend on the token in its place."""
    geometry = case.backbone.geometry
    reason = explain_no_late_entry(geometry)
    if reason is not None:
        raise LimitError(reason)
    if geometry.num_layers <= 1:
        return
    vectors = torch.randn(2, geometry.layer_width, generator=torch.Generator().manual_seed(3))
    prompt = InputPrompt(vectors, start_layer=1)
    rows = [torch.cat([case.soft(2), row]) for row in case.rows]
    before = case.states(rows, [prompt])
    same(before, case.alone(rows, prompt))
    table = case.backbone.input_embeddings.weight
    kept = table[0].clone()
    table[0] = table[1] + 1
    try:
        same(case.states(rows, [prompt]), before)
    finally:
        table[0] = kept


# methods and templates
SOFT = (("prompt-tuning", "{soft:2}{text}"), ("prompt-tuning", "{text}{soft:2} it was"))
KEYS_AND_VALUES = (("p-tuning-v2", "{text}"),)


def training(case: Case) -> None:
    """Two steps: finite, the backbone untouched, a row in a batch alone, batches as whole rows."""
    _train(case, SOFT)


def prefix_training(case: Case) -> None:
    """The same with keys and values in all layers."""
    if (limit := case.backbone.geometry.limits.prefix) is not None:
        raise LimitError(limit)
    _train(case, KEYS_AND_VALUES)


def _train(case: Case, settings: Sequence[tuple[str, str]]) -> None:
    backbone = case.backbone
    before = {name: t.clone() for name, t in backbone.model.state_dict().items()}
    for method, template in settings:
        task = _make_task(case, template)
        config = TrainingConfig(max_steps=2, batch_size=4)
        model = fit(backbone, task, ROWS, validation=ROWS[:3], method=method, config=config)
        together = model.predict_proba(TEXTS, batch_size=8)
        single = torch.tensor([model.predict_proba([text])[0] for text in TEXTS])
        same([torch.tensor(together)], [single])
        _compare_with_whole_rows(case, model)
        _save_and_load(model, together)
    for name, tensor in backbone.model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            msg = f"{name} has changed"
            raise WrongResultError(msg)


def _make_task(case: Case, template: str) -> Classify:
    """A trained head; an encoder-decoder answers in words."""
    words = {"no": " bad", "yes": " good"}
    return Classify(template, verbalizer=words if case.seq2seq else None)


def _compare_with_whole_rows(case: Case, model: PromptModel) -> None:
    """Loss and gradient of a batch, and the sum over single rows that are run whole."""
    geometry = case.backbone.geometry
    whole = replace(geometry, limits=replace(geometry.limits, split="is run whole here"))
    found = []
    tensors = {k: v.detach().clone() for k, v in model.artifact.prompt.to_tensors().items()}
    for backbone, size in ((case.backbone, len(ROWS)), (replace(case.backbone, geometry=whole), 1)):
        template = model.artifact.manifest.template
        settings = _make_task(case, template)
        task = build_task(settings, backbone, labels=model.labels, template=template)
        if task.head is not None and model.task.head is not None:
            task.head.load_state_dict(model.task.head.state_dict())
        leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}
        prompt = replace(model.artifact.prompt, **leaves)
        examples = [task.make_example(row) for row in ROWS]
        total = torch.zeros(())
        for begin in range(0, len(ROWS), size):
            part = examples[begin : begin + size]
            total = total + task.compute_loss(part, [prompt]).total
        gradients = torch.autograd.grad(total, [*leaves.values()])
        found.append([total.detach()[None], *gradients])
    same(*found)


def _save_and_load(model: PromptModel, answers: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "prompt")
        again = PromptModel.from_pretrained(Path(folder) / "prompt", backbone=model.backbone)
        equal(again.predict_proba(TEXTS, batch_size=8).tolist(), answers.tolist())


CHECKS: dict[str, Callable[[Case], None]] = {
    "bare": bare,
    "words": words,
    "padding": padding,
    "generation": generation,
    "joining": joining,
    "late": late,
    "training": training,
    "gradients": gradients,
    "bake": bake,
    "prefixes": prefixes,
    "prefix_training": prefix_training,
}
# What a family must do right to count: with soft tokens alone, and with keys and values.
PROMPT = ("bare", "words", "padding", "generation", "training", "gradients")
PREFIX = ("prefixes", "prefix_training")


def check(folder: Path, load_plain: Callable[[], PreTrainedModel]) -> Iterator[tuple[str, str]]:
    """Yield each check with ``right``, or ``refused``, ``wrong`` or ``crashed`` and why."""
    try:
        backbone = load_backbone(folder, dtype="float32", device="cpu")
    except SoftpromptError as error:
        yield "load", f"refused: {error}".replace(str(folder), "tiny")
        return
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        yield "load", f"crashed: {type(error).__name__}: {str(error)[:200]}"
        return
    yield "load", "right"
    case = Case(backbone, load_plain())
    for name, run in CHECKS.items():
        try:
            run(case)
        except WrongResultError as error:
            yield name, f"wrong: {error}"
        except SoftpromptError as error:
            yield name, f"refused: {error}".replace(str(folder), "tiny")
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            yield name, f"crashed: {type(error).__name__}: {str(error)[:200]}"
        else:
            yield name, "right"
