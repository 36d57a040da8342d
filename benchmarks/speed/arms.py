"""What is measured: one step of ours, of PEFT's in its best setting, and of the bare backbone."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import AutoModelForCausalLM
from transformers import PreTrainedTokenizerBase as Tokenizer

from softprompt.backbone.loading import convert_gguf, resolve_builtin
from softprompt.data import group_by_length, read_data
from softprompt.recipe import make_recipe
from softprompt.train import Trainer, make_trainer, setup_run
from softprompt.train.summary import prepare_caches

SMOLLM, MINILM = "builtin:smollm2-135m-instruct", "builtin:minilm"
TEXT = "Overall, the sentiment of the review is"
WORDS = {"rotten": " negative", "fresh": " positive"}
FRONT, BEHIND = "{{soft:{}}}Review: {{text}}\nSentiment:", "Review: {{text}}\nSentiment:{{soft:{}}}"
CUDA = torch.cuda.is_available()
Arm = Callable[[Sequence[int]], None]
Table, Text = dict[str, Any], dict[str, str]


def recipe_of(
    template: str, *, rows: int, batch: int = 16, **tables: dict[str, Any]
) -> dict[str, Any]:
    """The recipe of one of our arms; further tables replace parts of its own."""
    usual: Table = {
        "seed": 1,
        "backbone": {"name": SMOLLM},
        "data": {
            "train": "builtin:rotten-tomatoes",
            "group_by": "film",
            "max_rows": {"train": rows, "validation": 1, "test": 1},
        },
        "task": {"kind": "classify", "template": template, "verbalizer": WORDS},
        "method": {"name": "prompt-tuning", "init": {"from": "text", "text": TEXT}},
        "train": {"epochs": 2, "batch_size": batch, "learning_rate": 0.01},
    }
    return {name: tables.get(name, table) for name, table in usual.items()}


def trainer_of(data: Mapping[str, Any], *, texts: Sequence[Mapping[str, str]] = ()) -> Trainer:
    """Our loop, ready to step, with what an earlier epoch would have left it.

    Args:
        data: a recipe.
        texts: rows to train on in place of the recipe's.
    """
    tables = None
    if texts:
        parts = {"train": texts, "validation": texts[:1], "test": texts[:1]}
        tables = {name: Dataset.from_list([dict(r) for r in part]) for name, part in parts.items()}
    prepared = setup_run(make_recipe(data), tables=tables)
    trainer = make_trainer(prepared, Accelerator(cpu=not CUDA))
    for _ in prepare_caches(trainer, prepared):
        pass
    return trainer


def long_texts(count: int, *, tokens: int, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Reviews joined to texts of about so many tokens, each with its first review's label."""
    rows, found = iter(read_data("builtin:rotten-tomatoes")), []
    for _ in range(count):
        row = next(rows)
        text = str(row["text"])
        while len(tokenizer(text)["input_ids"]) < tokens:
            text = f"{text} {next(rows)['text']}"
        ids = tokenizer(text)["input_ids"][:tokens]
        found.append({"text": tokenizer.decode(ids), "label": str(row["label"])})
    return found


def ours(trainer: Trainer) -> Arm:
    """One optimiser step of our loop on given rows."""

    def step(batch: Sequence[int]) -> None:
        trainer.batches, trainer.batch_index = [list(batch)], 0
        trainer.train_step()

    return step


def plain_texts(trainer: Trainer, batch: Sequence[int]) -> list[list[int]]:
    """The rows' own tokens."""
    vocabulary = trainer.task.backbone.geometry.vocab_size
    examples = [trainer.rows.examples[i] for i in batch]
    return [[t for t in e.variants[0].input_ids if t < vocabulary] for e in examples]


def peft_model(tokens: int) -> torch.nn.Module:
    """PEFT's prompt tuning on the same weights, in bf16."""
    folder = convert_gguf(resolve_builtin(SMOLLM), torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=tokens,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=TEXT,
        tokenizer_name_or_path=str(folder),
    )
    return get_peft_model(model, config).to("cuda" if CUDA else "cpu")


def peft_arm(trainer: Trainer, model: torch.nn.Module) -> Arm:
    """One step as PEFT does it best: bf16, rows of like length, labels elsewhere ignored."""
    return _peft_steps(trainer, model, width=None)


def documented_arm(trainer: Trainer, model: torch.nn.Module) -> Arm:
    """One step as PEFT's guide to prompt-based methods has it: random rows, all 64 tokens wide."""
    step = _peft_steps(trainer, model, width=64)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(trainer.rows.examples), generator=generator).tolist()

    def of_any_length(batch: Sequence[int]) -> None:
        chosen = [order.pop() for _ in batch]
        order[:0] = chosen
        step(chosen)

    return of_any_length


def _peft_steps(trainer: Trainer, model: torch.nn.Module, *, width: int | None) -> Arm:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    words = [trainer.task.words.tokens[i][0][0] for i in range(2)]

    def step(batch: Sequence[int]) -> None:
        targets = [trainer.rows.examples[i].target for i in batch]
        pairs = zip(plain_texts(trainer, batch), targets, strict=True)
        texts = [[*text, words[target]] for text, target in pairs]
        ids, mask = padded(texts, width=width)
        labels = torch.full_like(ids, -100)
        for row, text in enumerate(texts):
            labels[row, len(text) - 1] = text[-1]
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def floor_arm(trainer: Trainer) -> Arm:
    """The bare backbone as transformers has it, forward and activation backward."""
    folder = convert_gguf(resolve_builtin(SMOLLM), torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.requires_grad_(requires_grad=False).to("cuda" if CUDA else "cpu")

    def step(batch: Sequence[int]) -> None:
        ids, mask = padded(plain_texts(trainer, batch))
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        out = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        out.last_hidden_state[:, -1].float().sum().backward()

    return step


def padded(
    rows: Sequence[Sequence[int]], *, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the right to the longest row or to a width."""
    width = max(width or 0, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[*[1] * len(row), *[0] * (width - len(row))] for row in rows])
    return (ids.cuda(), mask.cuda()) if CUDA else (ids, mask)


def batches_of(trainer: Trainer, *, size: int, count: int) -> list[list[int]]:
    """Whole batches of like length."""
    lengths = [e.length for e in trainer.rows.examples]
    return [b for b in group_by_length(lengths, size=size, seed=1) if len(b) == size][:count]


def measure(
    arms: Mapping[str, Arm], batches: Sequence[Sequence[int]], *, rounds: int
) -> dict[str, list[float]]:
    """Samples per second of each arm in each round; the arms take turns batch by batch."""
    for arm in arms.values():
        arm(batches[0])
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        seconds = dict.fromkeys(arms, 0.0)
        for batch in batches:
            for name, arm in arms.items():
                with timed() as spent:
                    arm(batch)
                seconds[name] += spent[0]
        for name, total in seconds.items():
            speeds[name].append(round(sum(map(len, batches)) / total, 3))
    return speeds


@contextmanager
def timed() -> Iterator[list[float]]:
    """How long a block takes, the device's own work included."""
    found: list[float] = []
    began = perf_counter()
    yield found
    if CUDA:
        torch.cuda.synchronize()
    found.append(perf_counter() - began)


def ratio(speeds: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """The median over rounds of one arm's speed by the other's in the same round."""
    pairs = zip(speeds[one], speeds[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)
