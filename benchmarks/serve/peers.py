"""The same work without our server: the bare backbone, PEFT prompt by prompt, `generate`."""

from typing import Any

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from settings import CUDA, LENGTH, SETTINGS, SMOLLM, WORDS, make_name
from torch import nn
from transformers import AutoModelForCausalLM
from world import World, compute_ratio, measure_rates, open_world

# Inner modules: peers get the same weights.
from softprompt.backbone.builtin import resolve_builtin
from softprompt.backbone.loading import convert_gguf
from softprompt.data import group_by_length
from softprompt.inference import PromptModel
from softprompt.serve.targets import RowOrder, TextOptions

PROMPTS, STREAMS, STREAM_TOKENS = 32, 16, 32
DEVICE = "cuda" if CUDA else "cpu"


def load_model() -> nn.Module:
    """Transformers' own model of the same weights, in bf16."""
    folder = convert_gguf(resolve_builtin(SMOLLM), torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(DEVICE).eval()


def measure_over_bare(*, quick: bool) -> dict[str, Any]:
    """32 different prompts ÷ the bare backbone on the same texts without soft tokens."""
    rounds, rows = 5, 64 if quick else 128
    with open_world(SETTINGS["classify"], prompts=PROMPTS) as world:
        model = load_model()
        world.warm_up(range(PROMPTS))
        batches = [world.texts[n * rows : (n + 1) * rows] for n in range(rounds + 1)]
        rates = measure_rates(
            {
                "32 different prompts": lambda n: len(
                    world.run([(i % PROMPTS, text) for i, text in enumerate(batches[n])])
                ),
                "bare backbone": lambda n: _run_bare(world, model, texts=batches[n]),
            },
            rounds=rounds,
        )
    ratio = compute_ratio(rates, "32 different prompts", "bare backbone")
    return {"rates": rates, "ratios": {"served_over_bare": ratio}, "setting": {"rows": rows}}


@torch.no_grad()
def _run_bare(world: World, model: nn.Module, *, texts: list[str]) -> int:
    """Tokenize, run batches of 32 rows of similar length, and score the label words."""
    tokenizer = world.backbone.tokenizer
    rows = tokenizer([f"Review: {text}\nSentiment:" for text in texts])["input_ids"]
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS.values()]
    for batch in group_by_length([len(row) for row in rows], size=32, seed=None):
        ids, mask, last = _pad([rows[index] for index in batch])
        states = model.model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        scores = states[torch.arange(len(ids)), last] @ model.lm_head.weight[words].T
        scores.float().softmax(dim=-1).tolist()
    return len(texts)


def _pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=DEVICE)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=DEVICE)
    return ids, mask, mask.sum(dim=1) - 1


def measure_over_peft(*, quick: bool) -> dict[str, Any]:
    """Each row with another prompt ÷ PEFT, which runs one prompt at a time.

    PEFT's best batch is all rows of one prompt; where each row has another prompt, that is one row.
    Its rate where all rows have one prompt, in batches of 32, is measured too.
    """
    rounds, rows = 3, PROMPTS if quick else 4 * PROMPTS
    with open_world(SETTINGS["classify"], prompts=rows) as world:
        model = _load_peft(world, count=rows)
        world.warm_up(range(rows))
        batches = [world.texts[n * rows : (n + 1) * rows] for n in range(rounds + 1)]
        rates = measure_rates(
            {
                "distinct, ours": lambda n: len(world.run([*enumerate(batches[n])])),
                "distinct, PEFT": lambda n: _run_peft(world, model, texts=batches[n], size=1),
                "identical, PEFT": lambda n: _run_peft(world, model, texts=batches[n], size=32),
            },
            rounds=rounds,
        )
    ratio = compute_ratio(rates, "distinct, ours", "distinct, PEFT")
    return {"rates": rates, "ratios": {"over_peft_switching": ratio}, "setting": {"rows": rows}}


def _load_peft(world: World, *, count: int) -> nn.Module:
    """PEFT's prompt tuning with the same vectors, one adapter for each prompt."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=LENGTH)
    model = get_peft_model(load_model(), config, adapter_name="0")
    for number in range(1, count):
        model.add_adapter(str(number), config)
    for number in range(count):
        path = world.registry / f"{make_name(number)}@1"
        vectors = PromptModel.from_pretrained(path, backbone=world.backbone).prompt.vectors
        model.prompt_encoder[str(number)].embedding.weight.data = vectors.to(torch.bfloat16)
    return model.to(DEVICE).eval()


@torch.no_grad()
def _run_peft(world: World, model: nn.Module, *, texts: list[str], size: int) -> int:
    tokenizer = world.backbone.tokenizer
    rows = tokenizer([f"Review: {text}\nSentiment:" for text in texts])["input_ids"]
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS.values()]
    for number, batch in enumerate(
        group_by_length([len(row) for row in rows], size=size, seed=None)
    ):
        model.set_adapter(str(number))
        ids, mask, last = _pad([rows[index] for index in batch])
        more = {"logits_to_keep": 1} if size == 1 else {}
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits
        at = -1 if more else last + LENGTH
        logits[torch.arange(len(ids)), at][:, words].float().softmax(dim=-1).tolist()
    return len(texts)


def measure_over_static(*, quick: bool) -> dict[str, Any]:
    """Tokens per second of 16 mixed streams ÷ transformers' `generate` on one static batch."""
    rounds = 3 if quick else 7
    with open_world(SETTINGS["generate"], prompts=STREAMS) as world:
        model = load_model()
        world.warm_up(range(STREAMS))
        chosen = choose_long_streams(world)
        rates = measure_rates(
            {
                "16 mixed streams": lambda _: run_streams(world, chosen),
                "one static batch": lambda _: _run_static(world, model, texts=chosen),
            },
            rounds=rounds,
        )
    ratio = compute_ratio(rates, "16 mixed streams", "one static batch")
    facts = {"streams": STREAMS, "tokens": STREAM_TOKENS}
    return {"rates": rates, "ratios": {"generate_over_static": ratio}, "setting": facts}


def embed_rows(world: World, model: nn.Module, *, texts: list[str]) -> list[torch.Tensor]:
    """The vectors of a text for each prompt, with its soft tokens before it."""
    service, rows = world.service, list[torch.Tensor]()
    for number, text in enumerate(texts):
        target = service.open(make_name(number))
        (example,) = service.render(target, text).views
        ids = torch.tensor(example.variants[0].input_ids, device=DEVICE)
        words = ids[ids < world.backbone.geometry.vocab_size]
        embedded = model.get_input_embeddings()(words)
        rows.append(torch.cat([target.members[0].prompt.vectors.to(embedded), embedded]))
        service.close(target)
    return rows


def choose_long_streams(world: World) -> list[str]:
    """For each prompt a text whose answer does not end by itself, so that all are equally long."""
    chosen: dict[int, str] = {}
    for begin in range(0, 40 * STREAMS, STREAMS):
        numbers = [n for n in range(STREAMS) if n not in chosen]
        texts = {n: world.texts[begin + n] for n in numbers}
        outcomes = _generate(world, texts)
        chosen |= {n: texts[n] for n in numbers if outcomes[n] == STREAM_TOKENS}
        if len(chosen) == STREAMS:
            break
    return [chosen.get(n, world.texts[n]) for n in range(STREAMS)]


def run_streams(world: World, texts: list[str]) -> int:
    """The number of tokens that are written for a text of each prompt, all at once."""
    return sum(_generate(world, dict(enumerate(texts))).values())


def _generate(world: World, texts: dict[int, str]) -> dict[int, int]:
    """The number of tokens that is written for the text of each prompt."""
    service, tickets = world.service, {}
    options = TextOptions(max_tokens=STREAM_TOKENS, temperature=0)
    for number, text in texts.items():
        target = service.open(make_name(number))
        order = RowOrder(service.render(target, text), options)
        [tickets[number]] = service.submit(target, [order], deadline=None)
        service.close(target)
    outcomes = {number: ticket.future.result()[0] for number, ticket in tickets.items()}
    return {number: len(outcome.token_ids or ()) for number, outcome in outcomes.items()}


@torch.no_grad()
def _run_static(world: World, model: nn.Module, *, texts: list[str]) -> int:
    """One call of `generate` on the same rows with their soft tokens, padded on the left."""
    rows = embed_rows(world, model, texts=texts)
    width = max(map(len, rows))
    embeds = rows[0].new_zeros(len(rows), width, rows[0].shape[1])
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=DEVICE)
    for at, row in enumerate(rows):
        embeds[at, width - len(row) :] = row
        mask[at, width - len(row) :] = 1
    written = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=STREAM_TOKENS,
        min_new_tokens=STREAM_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return int(written.numel())
