"""What was tried for speed and left out: what it would gain, measured."""

from typing import Any

import torch
from arms import BEHIND, FRONT, batches_of, measure, ours, ratio, recipe_of, timed, trainer_of

from softprompt.injection.state_cache import CachedStates


def tried(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Compiled layers beside plain ones, and the share of a step that prefetching could hide."""
    with timed() as spent:
        compiled = _compiled()
    return {
        "ratios": {"compiled_over_plain": ratio(compiled, "compiled", "plain")},
        "samples_per_second": compiled,
        "seconds_with_compilation": round(spent[0], 1),
        "share_of_host_work": round(_host_share(), 4),
    }


def _compiled() -> dict[str, list[float]]:
    """The parts of a layer that the seam does not pass through, compiled for any length."""
    arms = {}
    for name in ("plain", "compiled"):
        trainer = trainer_of(recipe_of(FRONT.format(20), rows=640))
        arms[name] = ours(trainer)
    for layer in trainer.task.backbone.model.model.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.forward = torch.compile(part.forward, dynamic=True)
    batches = batches_of(trainer, size=16, count=3)
    for batch in batches:
        arms["compiled"](batch)
    return measure(arms, batches, rounds=5)


def _host_share() -> float:
    """Of a step with kept text: reading the rows' lines, by far the most that a step reads."""
    trainer = trainer_of(recipe_of(BEHIND.format(10), rows=640))
    spent, arm = [0.0], ours(trainer)
    plain_find = CachedStates.find
    batches = batches_of(trainer, size=16, count=6)

    def find(self: CachedStates, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        with timed() as seconds:
            found = plain_find(self, *args, **more)
        spent[0] += seconds[0]
        return found

    arm(batches[0])
    CachedStates.find = find  # type: ignore[method-assign]
    with timed() as whole:
        for batch in batches:
            arm(batch)
    CachedStates.find = plain_find  # type: ignore[method-assign]
    return spent[0] / whole[0]
