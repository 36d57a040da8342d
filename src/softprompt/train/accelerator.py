"""The machine around a run: device, precision, processes, trackers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, PartialState
from torch.optim import Optimizer

from softprompt.backbone.model import Backbone
from softprompt.errors import MissingPackageError, RecipeError, TrainingError
from softprompt.recipe import BackboneConfig, TrainConfig
from softprompt.train.events import Evaluation, Event, Step

# The environment variables by which accelerate launch selects a wrapper.
_WRAPPERS = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}


def make_accelerator(section: TrainConfig, *, cpu: bool, folder: Path | None) -> Accelerator:
    """Accelerate's view of the machine.

    Args:
        section: precision and trackers.
        cpu: whether to use the CPU only.
        folder: of the run, for trackers that write files; None for no trackers.

    Raises:
        RecipeError: the device does not support the precision.
        TrainingError: accelerate is configured to wrap models in FSDP, DeepSpeed or Megatron.
        MissingPackageError: a tracker's package is not installed.
    """
    _check_wrapping()
    _forget_earlier_runs()
    trackers = [] if folder is None else [*section.trackers]
    accelerator = Accelerator(
        mixed_precision=section.mixed_precision,
        log_with=trackers or None,
        project_dir=folder,
        cpu=cpu,
    )
    # Without a scaler, accelerate computes in fp32 without a warning.
    if section.mixed_precision == "fp16" and accelerator.scaler is None:
        msg = (
            f"train.mixed_precision: fp16 needs a GPU, but this runs on {accelerator.device.type}. "
            'Use "bf16", or "no".'
        )
        raise RecipeError([msg])
    installed = {str(tracker) for tracker in accelerator.log_with}
    missing = [name for name in trackers if name not in installed]
    if missing:
        names = " ".join(missing)
        msg = (
            f"train.trackers names {names}, which is not installed. Install it (pip install "
            f"{names}), or remove it from the list."
        )
        raise MissingPackageError(msg)
    return accelerator


def check_sharding(section: BackboneConfig, accelerator: Accelerator) -> None:
    """Check that there are several processes for a sharded backbone.

    Raises:
        TrainingError: there is only one process.
    """
    if section.shard and accelerator.num_processes == 1:
        msg = (
            "backbone.shard = true distributes the backbone over several processes, but this is "
            "the only one. Start it with: accelerate launch --multi_gpu --num_processes 2 -m "
            "softprompt train …, or set backbone.shard to false."
        )
        raise TrainingError(msg)


def prepare_only(optimizer: Optimizer, accelerator: Accelerator) -> AcceleratedOptimizer:
    """Prepare an optimizer, and make the accelerator forget those of earlier trainers.

    It unscales the gradients of every optimizer that it knows. That of an earlier trainer, such as
    a trial's, has the same parameters, whose gradients would be unscaled again.

    Args:
        optimizer: of the trainer that is used from now on.
        accelerator: of the run.
    """
    accelerator._optimizers.clear()  # noqa: SLF001  # free_memory would also collect garbage
    prepared: AcceleratedOptimizer = accelerator.prepare(optimizer)
    return prepared


def track_event(accelerator: Accelerator, event: Event) -> None:
    """Log an event to the trackers, if there are any."""
    task = f"{event.task}/" if isinstance(event, Step | Evaluation) and event.task else ""
    match event:
        case Step():
            values = {"train/loss": event.loss, "train/learning_rate": event.learning_rate}
        case Evaluation():
            values = {f"validation/{name}": value for name, value in event.metrics.items()}
        case _:
            return
    accelerator.log({f"{task}{name}": value for name, value in values.items()}, step=event.step)


@contextmanager
def use_trackers(
    accelerator: Accelerator, *, wanted: bool, project: str = "softprompt"
) -> Iterator[None]:
    """Start the trackers for a block, and finish them after it.

    Args:
        accelerator: of the run.
        wanted: whether there are any.
        project: the name that they log under.
    """
    if wanted:
        accelerator.init_trackers(project)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers.clear()  # those of the next block would start these again


@contextmanager
def use_gradient_checkpointing(backbone: Backbone, *, wanted: bool) -> Iterator[None]:
    """Enable gradient checkpointing for a block, and restore the backbone afterwards.

    Raises:
        RecipeError: the backbone does not support it.
    """
    model = backbone.model
    if wanted and not model.supports_gradient_checkpointing:
        msg = (
            f"train.gradient_checkpointing: {backbone.geometry.model_type} does not support it. "
            "Set it to false, and raise train.gradient_accumulation_steps if memory is short."
        )
        raise RecipeError([msg])
    if wanted:
        model.activation_checkpointing_enable()
    try:
        yield
    finally:
        if wanted:
            model.activation_checkpointing_disable()
            # Enabling it added a hook that makes every later forward pass build a graph.
            model.disable_input_require_grads()
        model.eval()


def _check_wrapping() -> None:
    """Refuse accelerate's wrappers: they shard trained weights, which are only kilobytes here."""
    for name, key in _WRAPPERS.items():
        if os.environ.get(key, "false").lower() == "true":
            msg = (
                f"accelerate is set to use {name}, which would wrap and split what is trained: "
                "here a prompt of kilobytes, while the backbone is frozen. Launch with --multi_gpu "
                "instead; to split the backbone's weights over the processes, set backbone.shard "
                "= true in the recipe."
            )
            raise TrainingError(msg)


def _forget_earlier_runs() -> None:
    """Accelerate keeps precision and device for the life of a process, and refuses any other."""
    if PartialState._shared_state and PartialState().num_processes > 1:  # noqa: SLF001
        return
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
