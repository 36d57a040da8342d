"""Old names of keys and values, from before 0.1.0, and their new names."""

from collections.abc import Iterable

from softprompt.errors import format_unknown

# By path, without indices of lists. Of several new names, the one that the table has is used.
RENAMED_KEYS: dict[str, tuple[str, ...]] = {
    "backbone.quantization": ("quantization_config",),
    "backbone.dropout": ("keep_dropout",),
    "data.shares": ("split_sizes",),
    "data.group": ("group_by",),
    "data.limit": ("max_rows",),
    "data.names": ("value_map",),
    "task.pool": ("pooling",),
    "task.constrain": ("constrained_decoding",),
    "task.beams": ("num_beams",),
    "task.sample": ("do_sample",),
    "task.max_target_tokens": ("max_target_length",),
    "method.initialise": ("init",),
    "method.shifted": ("shift_positions",),
    "method.hidden_size": ("encoder_hidden_size",),
    "method.encoder_layers": ("encoder_num_layers",),
    "method.dropout": ("encoder_dropout", "prefix_dropout"),
    "train.steps": ("max_steps",),
    "train.token_budget": ("max_tokens_per_batch",),
    "train.accumulate": ("gradient_accumulation_steps",),
    "train.optimizer_options": ("optimizer_args",),
    "train.schedule": ("lr_scheduler",),
    "train.warmup": ("warmup_ratio",),
    "train.clip": ("max_grad_norm",),
    "train.evaluate_every": ("eval_every_steps",),
    "train.evaluate_rows": ("max_eval_rows",),
    "train.evaluate_train": ("eval_train_rows",),
    "train.patience": ("early_stopping_patience",),
    "train.select": ("best_metric",),
    "cache.memory": ("memory_gb",),
    "cache.disk": ("disk_gb",),
    # Of a comparison's file.
    "recipe": ("base",),
    "controls": ("baselines",),
    "arms": ("variants",),
    "variants.set": ("overrides",),
    "seeds": ("num_seeds",),
    "rates": ("lr_multipliers",),
    "share": ("search_fraction",),
    "seconds": ("time_budget_seconds",),
}
# By path: the old value, and what to write for it; None where the key is to be left out.
RENAMED_VALUES: dict[str, dict[str, str | None]] = {
    "task.head": {"unbiased": "linear-no-bias", "mlp": "mlp-tanh"},
    "task.choices": {"any": None, "data": "from-data"},
}


def find_new_key(path: str, *, options: Iterable[str]) -> str | None:
    """The new name of a key; None if it was never renamed, or its table has no such key.

    Args:
        path: of the key, such as ``train.steps`` or ``variants.0.set``.
        options: the keys that its table may have.

    >>> find_new_key("train.steps", options=["epochs", "max_steps"])
    'max_steps'
    """
    key = ".".join(part for part in path.split(".") if not part.isdigit())
    names = [name for name in RENAMED_KEYS.get(key, ()) if name in {*options}]
    return names[0] if len(names) == 1 else None


def explain_unknown_key(path: str, *, options: Iterable[str]) -> str:
    """The message for an unknown key: its new name, or the keys that its table may have.

    Args:
        path: of the key.
        options: the keys that its table may have.

    >>> explain_unknown_key("train.steps", options=["epochs", "max_steps"])
    'renamed to max_steps. Write that.'
    """
    known = [*options]
    name = find_new_key(path, options=known)
    if name is not None:
        return f"renamed to {name}. Write that."
    return format_unknown("key", path.rpartition(".")[2], options=known)


def explain_renamed_value(path: str, value: object) -> str | None:
    """The message for a renamed value; None if it was not renamed.

    Args:
        path: of its key.
        value: in the recipe.

    >>> explain_renamed_value("task.head", "unbiased")
    "'unbiased' was renamed to 'linear-no-bias'. Write that."
    """
    values = RENAMED_VALUES.get(path, {})
    if not isinstance(value, str) or value not in values:
        return None
    name = values[value]
    if name is None:
        return f"{value!r} is the default now. Leave the key out."
    return f"{value!r} was renamed to {name!r}. Write that."
