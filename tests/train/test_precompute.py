"""Cached states change no number, and whatever they depend on is part of the cache's key."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from softprompt.data.disk_cache import DiskCache
from softprompt.train import PrecomputePlanned, PrecomputeProgress, Step, TrainingWarning
from softprompt.train import precompute as module
from softprompt.train.gradients import accumulate_gradients
from softprompt.train.precompute import plan_precompute
from softprompt.train.readout import ReadoutChoice
from softprompt.train.setup import setup_run
from softprompt.train.summary import describe_savings, prepare_caches

ROWS = [{"text": f"good film {n}", "label": "positive" if n % 2 else "negative"} for n in range(8)]
LATE = {"layers": "1:"}
# Family, method, task, settings, the layer whose input is cached.
CASES = {
    "text": ("llama", "prompt-tuning", "generate", {}, None),
    "text, sliding window": ("gemma3", "p-tuning", "generate", {}, None),
    "late keys and values": ("bert", "p-tuning-v2", "head", LATE, 1),
    "late prefix, generation": ("gpt2", "prefix-tuning", "generate", LATE, 1),
    "late words": ("roberta", "p-tuning-v2", "words", LATE, 1),
    "late soft tokens": ("albert", "prompt-tuning", "head", LATE, 1),
    "late soft tokens in front": ("llama", "prompt-tuning", "words", LATE, 1),
    "late encoder": ("t5", "p-tuning-v2", "words", LATE, 1),
    "decoder alone": ("t5", "p-tuning-v2", "generate", {"layers": "2:"}, 2),
    "decoder of bart": ("bart", "prefix-tuning", "generate", {"layers": "2:"}, 2),
}


# The same with heads that pool whole rows.
POOLED = {
    "late keys and values, mean": ("bert", "p-tuning-v2", "head", LATE, 1),
    "late soft tokens, max": ("albert", "prompt-tuning", "head", LATE, 1),
    "late soft tokens in front, mean": ("llama", "prompt-tuning", "head", LATE, 1),
    "late keys and values of a causal backbone, max": ("gpt2", "p-tuning-v2", "head", LATE, 1),
}


@pytest.fixture(params=(CASES | POOLED).items(), ids=CASES | POOLED)
def case(request, parts):
    name, (family, method, task, settings, layer) = request.param
    prepared = parts(family, method, task=task, settings=settings)
    if name in POOLED:
        choice = ReadoutChoice(name.rpartition(", ")[2], {}, "planted")
        prepared = prepared.with_readout(choice)
    return prepared, layer


def fill_cache(trainer, prepared) -> list[object]:
    """Compute and cache the states; the events of it."""
    events = [*prepare_caches(trainer, prepared)]
    (planned,) = [at for at, event in enumerate(events) if isinstance(event, PrecomputePlanned)]
    return events[planned + 1 :]


def test_loss_and_gradient_are_those_of_whole_rows(case, trainer_of, monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))  # other tests may have filled theirs
    prepared, layer = case
    trainer = trainer_of(prepared)
    events = fill_cache(trainer, prepared)
    assert events, "something must be computed"
    assert trainer.task.cached.layer == layer
    found = {}
    for name, task in (("cached", trainer.task), ("whole", prepared.task)):
        prepared.method.zero_grad()
        batch = prepared.rows["train"].examples
        loss, _ = accumulate_gradients(
            task, prepared.method, batch=batch, parts=2, accelerator=trainer.accelerator
        )
        found[name] = loss, [p.grad.clone() for p in prepared.method.parameters()]
        monkeypatch.setattr(
            "softprompt.injection.prefix_sharing.plan_split", lambda *_a, **_k: None
        )
    assert found["cached"][0] == pytest.approx(found["whole"][0], rel=1e-5)
    assert any(g.abs().max() > 1e-4 for g in found["whole"][1])
    assert_close(found["cached"][1], found["whole"][1], rtol=1e-3, atol=1e-4)


def test_all_rows_are_found_in_the_cache(case, trainer_of, monkeypatch):
    """Those of training and of validation."""
    prepared, _ = case
    trainer = trainer_of(prepared)
    fill_cache(trainer, prepared)
    misses = []
    find = type(trainer.task.cached).find

    def watched(self, keys, **more):
        found = find(self, keys, **more)
        misses.append(found is None)
        return found

    monkeypatch.setattr(type(trainer.task.cached), "find", watched)
    for split in ("train", "validation"):
        trainer.task.compute_loss(prepared.rows[split].examples, [trainer.prompt()])
    assert misses == [False, False]


def test_a_second_run_computes_nothing(case, trainer_of):
    prepared, _ = case
    first, second = trainer_of(prepared), trainer_of(prepared)
    fill_cache(first, prepared)
    assert fill_cache(second, prepared) == []
    assert torch.equal(first.task.cached.states, second.task.cached.states)


def cache_key(prepared) -> str:
    return module._compute_cache_key(prepared, plan_precompute(prepared))


def test_any_change_has_another_cache_key(parts, new_backbone, rows):
    kind = ("llama", "prompt-tuning")
    base = cache_key(parts(*kind, task="generate"))
    other = new_backbone("llama")
    with torch.no_grad():
        other.model.base_model.layers[0].mlp.up_proj.weight.mul_(-1)
    changed = replace(other, fingerprint="another")
    swapped = rows(11, 0)
    swapped[3] = swapped[3] | {"text": swapped[3]["text"] + " film"}
    found = [
        cache_key(parts(*kind, task="generate", own=changed)),
        cache_key(parts(*kind, task="generate", own=new_backbone("llama", dtype=torch.bfloat16))),
        cache_key(parts(*kind, task="generate", tables={"train": swapped})),
        cache_key(parts(*kind, task="generate", mixed_precision="bf16")),
        cache_key(parts(*kind, task="words", settings=LATE)),
    ]
    assert len({base, *found}) == 1 + len(found)
    assert cache_key(parts(*kind, task="generate", learning_rate=0.3)) == base


def test_rows_that_are_run_once_are_not_cached(parts):
    prepared = parts("llama", "prompt-tuning", task="generate", epochs=1)
    assert plan_precompute(prepared).splits == ("validation",)
    assert plan_precompute(parts("llama", "prompt-tuning", task="words")) is None
    checkpointed = parts("llama", "prompt-tuning", task="generate", gradient_checkpointing=True)
    assert plan_precompute(checkpointed).splits == ("train", "validation")


def limited(prepared, **cache: float):
    recipe = prepared.recipe
    return replace(
        prepared, recipe=recipe.model_copy(update={"cache": recipe.cache.model_copy(update=cache)})
    )


def test_the_budgets_decide_where_states_are_cached(parts, trainer_of):
    prepared = parts("llama", "prompt-tuning", task="generate")
    assert plan_precompute(prepared).place == "file"
    in_memory = limited(prepared, disk_gb=0.0)
    assert plan_precompute(in_memory).place == "memory"
    nowhere = limited(prepared, disk_gb=0.0, memory_gb=0.0)
    assert plan_precompute(nowhere).place == "nowhere"
    states = []
    for chosen in (prepared, in_memory, limited(prepared, memory_gb=0.0)):
        trainer = trainer_of(chosen)
        fill_cache(trainer, chosen)
        states.append(trainer.task.cached.states)
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    trainer = trainer_of(nowhere)
    assert fill_cache(trainer, nowhere) == []
    assert trainer.task.cached is None


def test_a_large_file_is_written_only_if_the_recipe_allows_it(parts, monkeypatch):
    prepared = parts("llama", "prompt-tuning", task="generate")
    size = plan_precompute(prepared).shape.size
    small = limited(prepared, memory_gb=0.0)
    for name, value in (("_DEFAULT_FILE_LIMIT", size - 1), ("_DEFAULT_SHARE", 10**15)):
        with monkeypatch.context() as changed:
            changed.setattr(f"softprompt.data.disk_cache.{name}", value)
            assert plan_precompute(prepared).place == "memory"
            plan = plan_precompute(small)
            assert plan.place == "nowhere"
            line = describe_savings(small, plan)[0]
            assert "run in every step: a cache would take 0.00 GB" in line
            assert line.endswith("to cache them, set cache.disk_gb = 1 or more")
            assert plan_precompute(limited(prepared, memory_gb=0.0, disk_gb=1.0)).place == "file"
    assert plan_precompute(small).place == "file"


def test_a_disk_that_cannot_be_written_warns(parts, trainer_of, monkeypatch):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(DiskCache, "write", full)
    monkeypatch.setattr(DiskCache, "load", lambda *_args, **_more: None)
    prepared = parts("llama", "prompt-tuning", task="generate")
    trainer = trainer_of(prepared)
    [warning] = fill_cache(trainer, prepared)
    assert isinstance(warning, TrainingWarning)
    assert "No space left on device" in warning.message
    assert warning.message.endswith(
        "They are computed in every step instead. Free some space, set SOFTPROMPT_CACHE to another "
        "folder, or set cache.disk_gb to 0 in the recipe."
    )
    assert sum(isinstance(event, Step) for event in trainer.run()) == trainer.total


def test_progress_counts_tokens(parts, trainer_of, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_TOKENS", 8)
    monkeypatch.setattr(DiskCache, "load", lambda *_args, **_more: None)
    prepared = limited(parts("llama", "prompt-tuning", task="generate"), disk_gb=0.0)
    events = fill_cache(trainer_of(prepared), prepared)
    assert all(isinstance(event, PrecomputeProgress) for event in events)
    assert [e.done for e in events] == sorted({e.done for e in events})
    assert events[-1].done == events[-1].total == plan_precompute(prepared).shape.rows


@pytest.mark.parametrize(
    ("layer", "beginning", "middle"),
    [
        (None, "text before the prompt (train and validation rows, ", " tokens) is run once and"),
        (1, "layer 0 (train and validation rows, ", " tokens) is run once and"),
        (3, "layers 0 to 2 (train and validation rows, ", " tokens) are run once and"),
        (2, "the encoder (train and validation rows, ", " tokens) is run once and"),
    ],
)
def test_the_summary_says_what_is_cached(parts, layer, beginning, middle):
    prepared = parts("llama", "prompt-tuning", task="generate")  # of two layers
    plan = replace(plan_precompute(prepared), layer=layer)
    line = describe_savings(prepared, plan)[0]
    assert line.startswith(beginning)
    assert middle in line


def test_keys_and_values_of_text_are_not_cached_for_a_head_that_pools_it(parts):
    """Their states are read too, so whole rows are run."""
    prepared = parts("llama", "prompt-tuning", task="head")
    task = prepared.recipe.task.model_copy(update={"template": "it was {text}{soft:3} movie"})
    recipe = prepared.recipe.model_copy(update={"task": task})
    behind = setup_run(
        recipe,
        backbone=prepared.backbone,
        tables={name: Dataset.from_list(ROWS) for name in ("train", "validation")},
    )
    assert plan_precompute(behind).layer is None
    pooled = behind.with_readout(ReadoutChoice("mean", {}, "planted"))
    assert plan_precompute(pooled) is None
    assert not any("before the prompt" in line for line in describe_savings(pooled, None))
