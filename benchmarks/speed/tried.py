"""Optimizations that were left out: what they would save."""

from typing import Any

import torch
from arms import (
    BEHIND,
    FRONT,
    compute_ratio,
    make_batches,
    make_our_step,
    make_recipe_data,
    measure_speeds,
    measure_time,
    prepare_trainer,
)

# An inner module: its method is replaced by one that is timed.
from softprompt.injection.state_cache import CachedStates


def measure_left_out(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Compiled layers compared with plain ones, and the share of a step that prefetching saves."""
    with measure_time() as elapsed:
        speeds = _measure_compiled()
    return {
        "ratios": {"compiled_over_plain": compute_ratio(speeds, "compiled", "plain")},
        "samples_per_second": speeds,
        "seconds_with_compilation": round(elapsed[0], 1),
        "share_of_host_work": round(_measure_host_share(), 4),
    }


def _measure_compiled() -> dict[str, list[float]]:
    """Speeds with and without compilation, for any length, of the parts that use no hook."""
    steps = {}
    for name in ("plain", "compiled"):
        trainer = prepare_trainer(make_recipe_data(FRONT.format(20), rows=640))
        steps[name] = make_our_step(trainer)
    for layer in trainer.task.backbone.model.model.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.forward = torch.compile(part.forward, dynamic=True)
    batches = make_batches(trainer, size=16, count=3)
    for batch in batches:
        steps["compiled"](batch)  # compiles
    return measure_speeds(steps, batches, rounds=5)


def _measure_host_share() -> float:
    """The share of a step with cached text that reads the cached states.

    Reading them is by far the most work on the CPU that a thread could do in advance.
    """
    trainer = prepare_trainer(make_recipe_data(BEHIND.format(10), rows=640))
    seconds, step = [0.0], make_our_step(trainer)
    find = CachedStates.find
    batches = make_batches(trainer, size=16, count=6)

    def find_timed(self: CachedStates, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with measure_time() as elapsed:
            states = find(self, *args, **kwargs)
        seconds[0] += elapsed[0]
        return states

    step(batches[0])
    CachedStates.find = find_timed  # type: ignore[method-assign]
    with measure_time() as total:
        for batch in batches:
            step(batch)
    CachedStates.find = find  # type: ignore[method-assign]
    return seconds[0] / total[0]
