"""The variants that are compared: one step of ours, of PEFT's, and of the bare backbone."""

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

# Inner modules, because single steps are timed and PEFT gets the same weights and batches; the
# public API only trains whole runs.
from softprompt.backbone.builtin import resolve_builtin
from softprompt.backbone.loading import convert_gguf
from softprompt.data import group_by_length, read_data
from softprompt.recipe import make_recipe
from softprompt.train import Trainer, make_trainer, setup_run
from softprompt.train.summary import prepare_caches

SMOLLM, MINILM = "builtin:smollm2-135m-instruct", "builtin:minilm"
TEXT = "Overall, the sentiment of the review is"
WORDS = {"rotten": " negative", "fresh": " positive"}
FRONT, BEHIND = "{{soft:{}}}Review: {{text}}\nSentiment:", "Review: {{text}}\nSentiment:{{soft:{}}}"
CUDA = torch.cuda.is_available()
# Runs a batch, given by the indices of its rows.
Step = Callable[[Sequence[int]], None]


def make_recipe_data(
    template: str, *, rows: int, batch: int = 16, **tables: dict[str, Any]
) -> dict[str, Any]:
    """A recipe as a mapping.

    Args:
        template: of the task.
        rows: the number of training rows.
        batch: rows per step.
        **tables: tables of the recipe that replace the defaults here.
    """
    defaults: dict[str, Any] = {
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
    return {name: tables.get(name, table) for name, table in defaults.items()}


def prepare_trainer(data: Mapping[str, Any], *, texts: Sequence[Mapping[str, str]] = ()) -> Trainer:
    """A trainer before its first step, with filled caches, as after a first epoch.

    Args:
        data: a recipe.
        texts: rows to train on, in place of the recipe's.
    """
    tables = None
    if texts:
        splits = {"train": texts, "validation": texts[:1], "test": texts[:1]}
        tables = {name: Dataset.from_list([dict(r) for r in rows]) for name, rows in splits.items()}
    prepared = setup_run(make_recipe(data), tables=tables)
    trainer = make_trainer(prepared, Accelerator(cpu=not CUDA))
    for _ in prepare_caches(trainer, prepared):
        pass
    return trainer


def make_long_texts(count: int, *, tokens: int, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Texts of about a number of tokens, joined from reviews; the label is the first review's."""
    reviews, texts = iter(read_data("builtin:rotten-tomatoes")), []
    for _ in range(count):
        review = next(reviews)
        text = str(review["text"])
        while len(tokenizer(text)["input_ids"]) < tokens:
            text = f"{text} {next(reviews)['text']}"
        ids = tokenizer(text)["input_ids"][:tokens]
        texts.append({"text": tokenizer.decode(ids), "label": str(review["label"])})
    return texts


def make_our_step(trainer: Trainer) -> Step:
    """One optimizer step of our trainer."""

    def step(batch: Sequence[int]) -> None:
        trainer.batches, trainer.batch_index = [list(batch)], 0
        trainer.train_step()

    return step


def get_text_ids(trainer: Trainer, batch: Sequence[int]) -> list[list[int]]:
    """The token ids of rows, without soft tokens."""
    vocab_size = trainer.task.backbone.geometry.vocab_size
    examples = [trainer.rows.examples[i] for i in batch]
    return [[t for t in e.variants[0].input_ids if t < vocab_size] for e in examples]


def make_peft_model(tokens: int) -> torch.nn.Module:
    """PEFT's prompt tuning on the same weights, in bf16.

    Args:
        tokens: the number of soft tokens.
    """
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


def make_peft_step(trainer: Trainer, model: torch.nn.Module) -> Step:
    """One step of PEFT in its best setting: bf16, rows of similar length, loss on the label only.

    Args:
        trainer: ours, for the rows.
        model: PEFT's.
    """
    return _make_peft_step(trainer, model, width=None)


def make_documented_peft_step(trainer: Trainer, model: torch.nn.Module) -> Step:
    """One step as in PEFT's guide to prompt-based methods: random rows, all padded to 64 tokens.

    Args:
        trainer: ours, for the rows.
        model: PEFT's.
    """
    step = _make_peft_step(trainer, model, width=64)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(trainer.rows.examples), generator=generator).tolist()

    def step_on_random_rows(batch: Sequence[int]) -> None:
        rows = [order.pop() for _ in batch]
        order[:0] = rows
        step(rows)

    return step_on_random_rows


def _make_peft_step(trainer: Trainer, model: torch.nn.Module, *, width: int | None) -> Step:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    words = [trainer.task.words.tokens[i][0][0] for i in range(2)]

    def step(batch: Sequence[int]) -> None:
        targets = [trainer.rows.examples[i].target for i in batch]
        pairs = zip(get_text_ids(trainer, batch), targets, strict=True)
        texts = [[*text, words[target]] for text, target in pairs]
        ids, mask = pad_rows(texts, width=width)
        labels = torch.full_like(ids, -100)
        for row, text in enumerate(texts):
            labels[row, len(text) - 1] = text[-1]
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_bare_step(trainer: Trainer) -> Step:
    """The bare backbone as in transformers: forward, and backward to its input embeddings."""
    folder = convert_gguf(resolve_builtin(SMOLLM), torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.requires_grad_(requires_grad=False).to("cuda" if CUDA else "cpu")

    def step(batch: Sequence[int]) -> None:
        ids, mask = pad_rows(get_text_ids(trainer, batch))
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        out = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        out.last_hidden_state[:, -1].float().sum().backward()

    return step


def pad_rows(
    rows: Sequence[Sequence[int]], *, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the right to the longest row, or to a width if that is more."""
    width = max(width or 0, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[*[1] * len(row), *[0] * (width - len(row))] for row in rows])
    return (ids.cuda(), mask.cuda()) if CUDA else (ids, mask)


def make_batches(trainer: Trainer, *, size: int, count: int) -> list[list[int]]:
    """The first full batches of rows of similar length.

    Args:
        trainer: for the rows.
        size: rows per batch.
        count: the most batches.
    """
    lengths = [e.length for e in trainer.rows.examples]
    return [b for b in group_by_length(lengths, size=size, seed=1) if len(b) == size][:count]


def measure_speeds(
    steps: Mapping[str, Step], batches: Sequence[Sequence[int]], *, rounds: int
) -> dict[str, list[float]]:
    """Samples per second of each variant in each round; variants alternate batch by batch."""
    for step in steps.values():
        step(batches[0])  # warm up
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        seconds = dict.fromkeys(steps, 0.0)
        for batch in batches:
            for name, step in steps.items():
                with measure_time() as elapsed:
                    step(batch)
                seconds[name] += elapsed[0]
        for name, total in seconds.items():
            speeds[name].append(round(sum(map(len, batches)) / total, 3))
    return speeds


@contextmanager
def measure_time() -> Iterator[list[float]]:
    """The seconds that a block takes, work on the GPU included, as the only item of a list."""
    elapsed: list[float] = []
    start = perf_counter()
    yield elapsed
    if CUDA:
        torch.cuda.synchronize()
    elapsed.append(perf_counter() - start)


def compute_ratio(speeds: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """The median over rounds of one variant's speed divided by the other's in the same round."""
    pairs = zip(speeds[one], speeds[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)
