"""The machine around a run: device, precision, processes, trackers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from softprompt.backbone.model import Backbone
from softprompt.errors import MissingPackageError, RecipeError
from softprompt.recipe import TrainSection
from softprompt.train.events import Evaluation, Event, Step


def make_accelerator(section: TrainSection, *, cpu: bool, folder: Path | None) -> Accelerator:
    """Accelerate's view of the machine.

    Args:
        section: precision and trackers.
        cpu: whether to leave other devices alone.
        folder: of the run, where trackers that write files write them; None for no trackers.

    Raises:
        RecipeError: the device cannot compute in the precision.
        MissingPackageError: a tracker's package is not installed.
    """
    _forget_earlier_runs()
    wanted = [] if folder is None else [*section.trackers]
    made = Accelerator(
        mixed_precision=section.mixed_precision,
        log_with=wanted or None,
        project_dir=folder,
        cpu=cpu,
    )
    # Accelerate computes in fp32 then, and does not say so.
    if section.mixed_precision == "fp16" and made.scaler is None:
        msg = (
            f"train.mixed_precision: fp16 needs a GPU, but this runs on {made.device.type}. Use "
            '"bf16", or "no".'
        )
        raise RecipeError([msg])
    there = {str(tracker) for tracker in made.log_with}
    lacking = [name for name in wanted if name not in there]
    if lacking:
        names = " ".join(lacking)
        msg = (
            f"train.trackers names {names}, which is not installed. Install it (pip install "
            f"{names}), or take it out."
        )
        raise MissingPackageError(msg)
    return made


def track(accelerator: Accelerator, event: Event) -> None:
    """Tell the trackers, if there are any."""
    match event:
        case _ if not accelerator.trackers:
            return
        case Step():
            values = {"train/loss": event.loss, "train/learning_rate": event.learning_rate}
        case Evaluation():
            values = {f"validation/{name}": value for name, value in event.metrics.items()}
        case _:
            return
    accelerator.log(values, step=event.step)


@contextmanager
def checkpointing(backbone: Backbone, *, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing while a run goes on; the backbone is afterwards as it was.

    Raises:
        RecipeError: the backbone cannot do it.
    """
    model = backbone.model
    if wanted and not model.supports_gradient_checkpointing:
        msg = (
            f"train.gradient_checkpointing: {backbone.geometry.family} does not support it. Set it "
            "to false, and train.accumulate higher if memory is short."
        )
        raise RecipeError([msg])
    if wanted:
        model.activation_checkpointing_enable()
    try:
        yield
    finally:
        if wanted:
            model.activation_checkpointing_disable()
            # Left behind by it: a hook that makes every later pass build a graph.
            model.disable_input_require_grads()
        model.eval()


def _forget_earlier_runs() -> None:
    """Accelerate keeps precision and device for the life of a process, and refuses any other."""
    if PartialState._shared_state and PartialState().num_processes > 1:  # noqa: SLF001
        return
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
