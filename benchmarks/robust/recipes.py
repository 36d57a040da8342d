"""Damaged recipes: values, files of TOML, and settings on the command line; some are run."""

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import tomli_w
from damage import ODD_VALUES, damage_bytes, damage_tree, repr_short
from judge import require, require_consistent
from tiny import PROMPTS, TEXTS, make_recipe_data
from trials import Given, Kind, Trial

from softprompt.data import parse_template
from softprompt.errors import SoftpromptError, TrainingError, UnreachableError
from softprompt.inference import PromptModel
from softprompt.recipe import BackboneConfig, Recipe, load_recipe, make_recipe, read_recipe
from softprompt.recipe.schema import CacheConfig, DataConfig, InitConfig, TrainConfig
from softprompt.tasks import TASKS, LengthBudget, build_task
from softprompt.train import stages, train_recipe
from softprompt.train.recipe_backbone import load_recipe_backbone
from softprompt.train.validation import check_recipe

Outcome = Literal["refused", "answered"]
ODD_SETTINGS = (
    *ODD_VALUES,
    *("cuda", "cuda:7", "gpu", "mps", "meta", "cpu:1", "xla", "float16", "bfloat16", "auto", "all"),
    *("p-tuning", "prefix-tuning", "sgd", "SGD", "Adam", "LBFGS", "adafactor", "f1", "loss", "0:"),
    *("labels", "text", "random", "artifact", "vocabulary", "12:", "-1:", "from-data", "cosine"),
    *(
        "{text}{soft:4}",
        "{soft:300000000}{text}",
        "{soft:" + "9" * 5000 + "}{text}",
        "{text}{mask}",
    ),
    *(10**6, 10**9, 2**31 - 1, 0.0, 1e-3, 0.5, 1e30, -0.0, {"eps": float("inf")}, {"lr": "x"}),
    *(
        {"capturable": True},
        {"foreach": True, "fused": True},
        {"betas": [2, 3]},
        {"x": 1},
        ["wandb"],
    ),
    *({"no": "", "yes": " good"}, {"no": " bad", "yes": " bad"}, {"no": ["a", []], "yes": "b"}),
    *(
        {"quant_method": "fp8"},
        {"load_in_4bit": True},
        "rows.csv[x]",
        "é\ud800.csv",
        "~/x",
        "a:b@c",
    ),
)


def list_kinds() -> list[Kind]:
    """Recipes that are read, checked with their data and backbone, or run; and templates."""
    return [
        Kind("recipe: values", 900, partial(_prepare, _try_values)),
        Kind("recipe: file", 700, partial(_prepare, _try_file)),
        Kind("recipe: --set", 700, partial(_prepare, _try_settings)),
        Kind("recipe: checked", 700, partial(_prepare, _try_check)),
        Kind("recipe: run", 250, partial(_prepare, _try_run)),
        Kind("template", 1000, _prepare_templates),
    ]


def _prepare(attempt: Callable[[Given, dict[str, Any]], Outcome], place: Path) -> Trial:
    originals = [make_recipe_data(place, prompt) for prompt in PROMPTS]
    for original in originals:  # several keys that are usually left out
        original["data"]["validation"] = original["data"]["train"]
        original["train"] |= {"warmup_ratio": 0.1, "optimizer": "adamw", "optimizer_args": {}}
        original["seed"] = 7
    _share_backbones()

    def trial(given: Given) -> Outcome:
        return attempt(given, given.random.choice(originals))

    return trial


def _share_backbones() -> None:
    """Load each backbone once: damaged ones are kinds of their own."""

    @lru_cache(maxsize=4)
    def load(text: str) -> Any:  # noqa: ANN401  # a backbone
        return load_recipe_backbone(BackboneConfig.model_validate_json(text))

    def load_shared(section: BackboneConfig) -> Any:  # noqa: ANN401  # a backbone
        return load(section.model_dump_json())

    stages.load_recipe_backbone = load_shared


def _require_recorded(recipe: Recipe) -> None:
    """Require that a recipe can be written down, and read as the same one."""
    data = recipe.as_data()
    try:
        json.dumps(data, allow_nan=False)
        tomli_w.dumps(data).encode()
    except (ValueError, TypeError) as error:
        require(holds=False, rule=f"an artifact cannot record it: {error}")
    require(make_recipe(data).as_data() == data, "read again, it is another recipe")


def _add_settings(data: dict[str, Any], chance: Random) -> str:
    """Set one setting of any table to an odd value."""
    sections: dict[str, Any] = {
        "backbone": BackboneConfig.model_fields,
        "data": DataConfig.model_fields,
        "train": TrainConfig.model_fields,
        "cache": CacheConfig.model_fields,
        "method": (
            "name",
            "length",
            "layers",
            "shift_positions",
            "encoder_hidden_size",
            "init",
            "x",
        ),
        "task": [f.name for one in TASKS.values() for f in dataclasses.fields(one)],
    }
    section = chance.choice(list(sections))
    key, value = chance.choice(list(sections[section])), chance.choice(ODD_SETTINGS)
    if key == "init" and chance.random() < 0.7:  # noqa: PLR2004
        inner = chance.choice([f.alias or n for n, f in InitConfig.model_fields.items()])
        value = {"from": "vocabulary", inner: value}
    data[section] = {**data.get(section, {}), key: value}
    return f"{section}.{key} = {repr_short(value)}"


def _change(original: dict[str, Any], given: Given) -> dict[str, Any]:
    if given.random.random() < 0.5:  # noqa: PLR2004
        data, given.damage = damage_tree(original, given.random, odd=ODD_SETTINGS)
        return data
    data = json.loads(json.dumps(original))
    given.damage = _add_settings(data, given.random)
    return data


def _try_values(given: Given, original: dict[str, Any]) -> Outcome:
    _require_recorded(make_recipe(_change(original, given)))
    return "answered"


_TOML_PIECES = (
    *(
        "[",
        "]",
        "[[",
        "]]",
        "=",
        '"',
        '"""',
        "'''",
        "#",
        "\\",
        "\n",
        "\r",
        "\x00",
        "\x7f",
        "\ufeff",
    ),
    *(
        "inf",
        "nan",
        "-inf",
        "1e999",
        "0x",
        "1_",
        "9" * 5000,
        "1979-05-27",
        "{",
        "}",
        ".",
        ",",
        "a.b",
    ),
    *("[" * 3000, '"\\ud800"', '"\\U00110000"', "x = " + "[" * 3000 + "]" * 3000, "[train]", "é"),
)


def _try_file(given: Given, original: dict[str, Any]) -> Outcome:
    chance, path = given.random, given.folder / "recipe.toml"
    raw = tomli_w.dumps(original).encode()
    if chance.random() < 0.5:  # noqa: PLR2004
        raw, given.damage = damage_bytes(raw, chance)
    else:
        text, piece = raw.decode(), chance.choice(_TOML_PIECES)
        at = chance.choice([i for i, char in enumerate(text) if char in "\n= ["])
        raw = (text[: at + 1] + piece + text[at + 1 :]).encode("utf-8", "surrogatepass")
        given.damage = f"{piece[:40]!r} behind {at}"
    path.write_bytes(raw)
    _require_recorded(read_recipe(path))
    return "answered"


_ODD_CHANGES = (
    *(
        "",
        "=",
        "a",
        "a=",
        "=1",
        "a.b.c.d=1",
        "train=1",
        "train.=1",
        ".train=1",
        "train..x=1",
        "x.y=1",
    ),
    *("train.epochs", "train.epochs.x=1", "train.epochs=[", "train.epochs=1\nseed = 5", "seed=1 #"),
    *(
        "data.train=\udce9.csv",
        "data.train=~nosuch/x.csv",
        "data.train=\x00",
        "backbone.name=\ud800",
    ),
    *("method.init.path=~nosuch/x", "task.template=\ud800{text}", "train.learning_rate=1979-05-27"),
)


def _try_settings(given: Given, original: dict[str, Any]) -> Outcome:
    chance = given.random
    path = given.folder / "recipe.toml"
    path.write_bytes(tomli_w.dumps(original).encode())
    if chance.random() < 0.3:  # noqa: PLR2004
        change = chance.choice(_ODD_CHANGES)
    else:
        data: dict[str, Any] = {}
        _add_settings(data, chance)
        ((section, table),) = data.items()
        ((key, value),) = table.items()
        change = f"{section}.{key}={_write_value(value, chance)}"
    given.damage = change[:200]
    _require_recorded(load_recipe(path, [change]))
    return "answered"


def _write_value(value: Any, chance: Random) -> str:  # noqa: ANN401  # plain data
    piece = chance.choice(_TOML_PIECES)
    if chance.random() < 0.3:  # noqa: PLR2004
        return piece
    if isinstance(value, str):
        return value
    if isinstance(value, int) and abs(value) >= 10**4000:  # Python refuses to write it
        return "9" * 5000
    try:
        return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
    except (TypeError, ValueError):
        return repr_short(value)


def _try_check(given: Given, original: dict[str, Any]) -> Outcome:
    data = _change(original, given)
    result = check_recipe(data)
    if result.faults:
        require(all(fault.strip() for fault in result.faults), "a fault without words")
        return "refused"
    _require_recorded(make_recipe(data))
    return "answered"


def _try_run(given: Given, original: dict[str, Any]) -> Outcome:
    """Train for two steps what `check` finds no fault in: it must end with a prompt on disk."""
    chance = given.random
    data = json.loads(json.dumps(original))
    if chance.random() < 0.5:  # noqa: PLR2004
        numbers = [value for value in ODD_SETTINGS if isinstance(value, int | float)]
        section = chance.choice(("train", "train", "cache", "method"))
        keys = {"train": TrainConfig.model_fields, "cache": CacheConfig.model_fields}
        key = chance.choice(list(keys.get(section, ("length", "encoder_hidden_size"))))
        data[section] |= {key: chance.choice(numbers)}
        given.damage = f"{section}.{key} = {repr_short(data[section][key])}"
    else:
        given.damage = _add_settings(data, chance)
    data["train"].setdefault("max_steps", 2)
    try:
        recipe = make_recipe(data)
    except SoftpromptError:
        return "refused"
    result = check_recipe(recipe)
    if result.faults or result.plan is None:  # or a note on a backbone that is not on this machine
        return "refused"
    try:
        train_recipe(recipe, given.folder / "run", progress=False)
    except (TrainingError, UnreachableError):  # such as a loss that is not a number
        return "refused"
    except SoftpromptError as error:
        require(holds=False, rule=f"no fault for check, but training says: {error}")
    _share_backbones()
    backbone = stages.load_recipe_backbone(recipe.backbone)
    require_consistent(PromptModel.from_pretrained(given.folder / "run", backbone=backbone))
    return "answered"


_PIECES = (
    *("{text}", "{label}", "{soft:4}", "{soft:1}", "{soft:0}", "{soft:-3}", "{soft:x}", "{soft}"),
    *(
        "{soft:" + "9" * 20 + "}",
        "{soft:" + "9" * 5000 + "}",
        "{soft:300000000}",
        "{soft:٤}",
        "{mask}",
    ),
    *("{sep}", "{bos}", "{", "}", "{{", "}}", "{}", "{ text }", "{text:3}", "{x}", "{0}", "{a.b}"),
    *(" ", "it was", "\n", "\x00", "é", "\u2028", "<s>", "</s>", "<mask>", "\ud800", "\U0001f600"),
    *("x" * 5000, "{text}" * 200, "\u0301", "﷽" * 50, "\r\n", "\t"),
)
_CELLS = (
    *(
        "",
        " ",
        "good",
        *TEXTS,
        "{soft:4}",
        "{text}",
        "<s></s><mask>",
        "\ud800",
        "\x00",
        "\U0001f600",
    ),
    *(
        "x" * 20_000,
        "\n",
        "é\u0301",
        "\u2028",
        None,
        1.5,
        float("nan"),
        3,
        True,
        [],
        {},
        b"x",
        "a\tb",
    ),
)


def _prepare_templates(place: Path) -> Trial:
    """Templates and rows of odd pieces: what is rendered has the template's soft tokens."""
    backbones = [
        load_recipe_backbone(BackboneConfig.model_validate(make_recipe_data(place, p)["backbone"]))
        for p in ("vectors", "masked")
    ]

    def trial(given: Given) -> Outcome:
        chance = given.random
        text = "".join(chance.choice(_PIECES) for _ in range(chance.randrange(1, 4)))
        text = text if chance.random() < 0.3 else f"{{text}}{text}"  # noqa: PLR2004
        backbone = chance.choice(backbones)
        if "{mask}" not in text and backbone.geometry.architecture == "encoder":
            text += " {mask}"
        row = dict.fromkeys(("text", "label", "x", "0", "a.b"), "good")
        row[chance.choice(("text", "text", "label", "x"))] = chance.choice(_CELLS)
        given.damage = f"{text[:150]!r} and {str(row)[:120]!r}"
        kind = chance.choice((TASKS["classify"], TASKS["generate"]))
        words = {"verbalizer": {"no": " bad", "yes": " good"}} if kind is TASKS["classify"] else {}
        limit = chance.choice((None, 8, 100))
        task = build_task(kind(text, **words), backbone, template=text, budget=LengthBudget(limit))
        example = task.make_example(row, target=False)
        soft, size = parse_template(text).soft_length, backbone.geometry.vocab_size
        for variant in example.variants:
            ids = [int(token) for token in variant.input_ids]
            require(
                sum(token >= size for token in ids) == soft, f"{ids} has not {soft} soft tokens"
            )
            require(len(ids) <= (limit or 128), f"{len(ids)} tokens")
        return "answered"

    return trial
