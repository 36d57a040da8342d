"""The leaderboard: its numbers are those of `compare`, its rows are drawn, its cells resume."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from softprompt.compare.api import compare_methods
from softprompt.data import read_source
from softprompt.errors import MissingPackageError, RecipeError
from support.reviews import make_plain_reviews, write_rows
from support.tiny_models import save_checkpoint

HERE = Path(__file__).parents[2] / "benchmarks" / "leaderboard"
NAMES = ("cells", "page", "run", "logistic_head")
BOARD = """
[protocol]
rows = [4, 100]
seeds = 2
max_train_rows = 20
max_validation_rows = 12
max_test_rows = 15
length = 3
batch_size = 8
epochs = 1
min_steps = 4
lr_multipliers = [1.0, 3.0]
search_fraction = 0.5

[backbones]
llama = { name = "LLAMA", settings = { dtype = "float32", device = "cpu" } }
bert = { name = "BERT", head = true, settings = { dtype = "float32", device = "cpu" } }

[tasks]
films = { train = "DATA", question = "{text} sentiment", words = { negative = " negative", positive = " positive" } }

[methods]
prompt-tuning = { method = "prompt-tuning" }
prefixes = { method = "p-tuning-v2", overrides = { "train.learning_rate" = 0.01 } }
majority = { baseline = "majority" }
probe = { baseline = "linear-probe" }
head = { function = "logistic_head:fit_logistic_head", backbones = ["bert"] }
tuned = { baseline = "fine-tuning", backbones = ["bert"] }
"""  # noqa: E501  # a line is a data set


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of the benchmark, whose names are not taken afterwards."""
    sys.path.insert(0, str(HERE))
    shown = datasets.utils.logging.is_progress_bar_enabled()
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(HERE))
        for name in NAMES:
            sys.modules.pop(name, None)
        if shown:
            datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> SimpleNamespace:
    """A leaderboard of tiny backbones."""
    folder = tmp_path_factory.mktemp("leaderboard")
    texts = {row["text"]: row for row in make_plain_reviews(150, seed=0)}
    rows = [{**row, "text": f"{row['text']}"} for row in texts.values()]
    data = write_rows(folder / "films.jsonl", rows)
    board = BOARD.replace("DATA", str(data))
    for family in ("llama", "bert"):
        path = save_checkpoint(folder / family, family)
        board = board.replace(family.upper(), str(path))
    file = folder / "leaderboard.toml"
    file.write_text(board, "utf-8")
    return SimpleNamespace(folder=folder, file=file, rows=rows)


def call(bench, home, folder, *more):
    folder.mkdir(exist_ok=True)
    options = {"--file": home.file, "--results": folder / "cells.jsonl", "--runs": folder / "runs"}
    options["--page"] = folder / "page.md"
    return bench.run.main([*map(str, (part for pair in options.items() for part in pair)), *more])


# The cells that are run.
ONLY = ("--only", "rows=4", "seed=2")


def read_lines(folder):
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text("utf-8").splitlines()]


def identify(record):
    return tuple(record[name] for name in ("backbone", "task", "rows", "seed", "method"))


@pytest.fixture(scope="module")
def finished(bench, home, tmp_path_factory) -> SimpleNamespace:
    """All cells of a seed with four rows a class."""
    folder = tmp_path_factory.mktemp("finished")
    assert call(bench, home, folder, *ONLY) == 0
    return SimpleNamespace(folder=folder, records=read_lines(folder))


def test_the_numbers_are_those_of_compare(bench, home, finished, tmp_path):
    """Of the public function, on files of the same rows."""
    board = bench.cells.read_leaderboard(home.file)
    found = {identify(record): record for record in finished.records}
    only = {"rows": ["4"], "seed": ["2"], "method": ["prompt-tuning"]}
    cells = [*bench.cells.list_cells(board, only)]
    assert len(cells) == 2
    for cell in cells:
        tables = bench.cells.draw_tables(board, cell)
        folder = tmp_path / f"{cell.backbone}-{cell.seed}"
        paths = bench.cells.write_tables(tables, folder / "rows")
        recipe = bench.cells.make_recipe_data(board, cell, paths=paths, train_rows=8)
        tuned = ["fine-tuning"] if cell.backbone == "bert" else []
        comparison = compare_methods(
            {
                "base": recipe,
                "methods": ["prompt-tuning"],
                "variants": [
                    {
                        "name": "prefixes",
                        "method": "p-tuning-v2",
                        "overrides": {"train.learning_rate": 0.01},
                    }
                ],
                "baselines": ["majority", "linear-probe", *tuned],
                "num_seeds": 1,
                "lr_multipliers": [1.0, 3.0],
                "search_fraction": 0.5,
            },
            folder / "comparison",
        )
        names = {"linear-probe": "probe", "fine-tuning": "tuned"}
        assert len(comparison.summaries) == 4 + len(tuned)
        for summary in comparison.summaries:
            (result,) = summary.results
            key = (*cell.group, names.get(result.variant, result.variant))
            record = found[key]
            assert record["accuracy"] == result.score, key
            assert record["metrics"] == dict(result.metrics)
            assert record["validation"] == dict(result.validation)
            assert record["learning_rate"] == result.rate
            if result.cost is not None:
                assert record["trainable"] == result.cost.trainable
                assert record["saved_bytes"] == result.cost.size


def test_every_cell_is_recorded_once_with_its_circumstances(finished):
    keys = [identify(record) for record in finished.records]
    assert len(keys) == len({*keys}) == 4 + 6
    for record in finished.records:
        assert record["test_rows"] == 15
        assert record["wall_seconds"] >= 0
        assert {"softprompt", "torch"} <= {*record["versions"]}
        assert {*record["machine"]} == {"cpu", "cores", "threads", "python"}
        assert str(Path.home()) not in json.dumps(record)
    assert [*(finished.folder / "runs").glob("*-*")] == []


def test_the_logistic_head_is_scikit_learns_on_means_of_length_one(bench, backbone):
    """Its answers do not change with the length of the states, and separable rows are learnt."""
    from softprompt.recipe import make_recipe

    rows = [{"text": t, "label": t.split()[0]} for t in ("good film", "bad film", "the music")] * 4
    data = {"backbone": {"name": "x"}, "data": {"train": "x"}, "task": {"kind": "classify"}}
    recipe = make_recipe(
        data
        | {"task": {"kind": "classify", "template": "{text}"}, "method": {"name": "p-tuning-v2"}}
    )
    tables = {"train": datasets.Dataset.from_list(rows)}
    head = bench.logistic_head.fit_logistic_head(recipe, backbone("bert"), tables)
    assert head(rows) == [row["label"] for row in rows]
    means = head.reader.read(rows)["mean"]
    shifted = means / (means**2).sum(1, keepdims=True) ** 0.5 @ head.fitted.coef_.T
    best = (shifted + head.fitted.intercept_).argmax(1)
    assert head(rows) == [head.fitted.classes_[index] for index in best]
    assert head.cost.trainable == 3 * (32 + 1)


@pytest.mark.parametrize("rows", [4, 100])
def test_rows_are_drawn_by_seed_from_parts_that_share_none(bench, home, rows):
    board = bench.cells.read_leaderboard(home.file)
    draws = {}
    for seed in (1, 2):
        cell = bench.cells.Cell("llama", "films", rows, seed, "majority")
        draws[seed] = bench.cells.draw_tables(board, cell)
        again = bench.cells.draw_tables(board, cell)
        assert {n: t.to_list() for n, t in again.items()} == {
            n: t.to_list() for n, t in draws[seed].items()
        }
    for tables in draws.values():
        expected = {"train": min(rows, 10), "validation": min(rows, 6)}
        for split, count in expected.items():
            have = Counter(tables[split]["label"])
            assert {*have} == {"negative", "positive"}
            # The validation part may have fewer of a label than are wanted.
            assert all(found <= count for found in have.values())
            assert split == "validation" or {*have.values()} == {count}
        texts = [{*table["text"]} for table in tables.values()]
        assert not any(a & b for i, a in enumerate(texts) for b in texts[i + 1 :])
    assert draws[1]["test"].to_list() == draws[2]["test"].to_list()
    assert len(draws[1]["test"]) == 15
    assert draws[1]["train"].to_list() != draws[2]["train"].to_list()


def test_no_method_sees_test_rows(bench, home, tmp_path, monkeypatch):
    """A function that looks for them finds none in what it is given."""
    board = bench.cells.read_leaderboard(home.file)
    cell = bench.cells.Cell("bert", "films", 4, 1, "head")
    tables = bench.cells.draw_tables(board, cell)
    paths = bench.cells.write_tables(tables, tmp_path)
    data = bench.cells.make_recipe_data(board, cell, paths=paths, train_rows=8)
    plan = bench.run.make_plan(board, data, [cell])
    seen, test_set = bench.run.read_rows(plan)
    assert sorted(seen) == ["train", "validation"]
    assert [row["text"] for row in test_set.rows] == tables["test"]["text"][:]
    given = {}

    class Runner(bench.run.ComparisonRunner):
        def __init__(self, backbone, tables, **options):
            given.update(tables)
            super().__init__(backbone, tables, **options)

    monkeypatch.setattr(bench.run, "ComparisonRunner", Runner)
    assert call(bench, home, tmp_path / "out", "--only", "rows=4", "seed=1", "method=majority") == 0
    assert sorted(given) == ["train", "validation"]


def test_finished_cells_are_not_run_again_but_changed_lines_are(
    bench, home, finished, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "cells.jsonl").write_bytes((finished.folder / "cells.jsonl").read_bytes())
    asked = []

    def note(_session, cells):
        asked.extend(cells)
        return iter(())

    monkeypatch.setattr(bench.run, "run_group", note)
    assert call(bench, home, folder, *ONLY) == 0
    assert asked == []
    assert "10 of 10 cells are done" in capsys.readouterr().err
    changed = home.file.read_text("utf-8").replace("= 0.01 }", "= 0.02 }")
    (folder / "changed.toml").write_text(changed, "utf-8")
    call(bench, SimpleNamespace(file=folder / "changed.toml"), folder, *ONLY)
    assert {cell.method for cell in asked} == {"prefixes"}
    assert len(asked) == 2
    asked.clear()
    call(bench, home, folder, "--only", "rows=4")
    assert {cell.seed for cell in asked} == {1}, "the other seed's"
    assert len(asked) == 10
    asked.clear()
    monkeypatch.setattr(bench.run, "find_commit", lambda: "another")
    call(bench, home, folder, *ONLY, "method=majority")
    assert len(asked) == 2


def test_a_stopped_group_resumes_with_the_same_numbers(
    bench, home, finished, tmp_path, monkeypatch
):
    """Stopped in the middle of each run of a group; what is recorded is not run again."""
    only = (*ONLY, "backbone=llama")
    clock = SimpleNamespace(calls=0)

    class Stopping(bench.run.Session):
        def __init__(self, *arguments):
            super().__init__(*arguments)

            def stop():
                clock.calls += 1
                return clock.calls % 9 == 0

            self.should_stop = stop

    monkeypatch.setattr(bench.run, "Session", Stopping)
    for _ in range(20):
        assert call(bench, home, tmp_path, *only) == 0
        if len(read_lines(tmp_path)) == 4:
            break
    assert clock.calls > 9, "it was never stopped"
    again = {identify(record): record["accuracy"] for record in read_lines(tmp_path)}
    assert len(again) == len(read_lines(tmp_path)) == 4
    first = {identify(record): record["accuracy"] for record in finished.records}
    assert again == {key: first[key] for key in again}


def test_a_line_that_a_kill_cut_off_is_dropped(bench, tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert bench.run.read_records(path) == [{"a": 1}]
    bench.run.append_record(path, {"a": 3})
    assert bench.run.read_records(path) == [{"a": 1}, {"a": 3}]


def test_an_unknown_name_lists_the_names(bench, home, tmp_path, capsys):
    assert call(bench, home, tmp_path, "--only", "method=majorty") == 2
    assert "unknown method 'majorty'." in capsys.readouterr().err
    assert call(bench, home, tmp_path, "--only", "metod=majority") == 2
    assert "unknown metod" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('{ baseline = "majority" }', "{ }", "give one of method, baseline and function"),
        ('backbones = ["bert"] }\ntuned', 'backbones = ["brt"] }\ntuned', "Did you mean 'bert'?"),
        ("seeds = 2", "seed = 2", "seed"),
    ],
)
def test_faults_of_the_file(bench, home, tmp_path, before, after, said):
    text = home.file.read_text("utf-8")
    assert before in text
    (tmp_path / "board.toml").write_text(text.replace(before, after), "utf-8")
    with pytest.raises(RecipeError) as caught:
        bench.cells.read_leaderboard(tmp_path / "board.toml")
    assert said in str(caught.value)


def test_the_file_of_the_project_makes_valid_comparisons(bench):
    """Every backbone, task and method, with the names of files instead of rows."""
    board = bench.cells.read_leaderboard(HERE / "leaderboard.toml")
    only = {"seed": ["1"], "rows": ["8"]}
    groups = {}
    for cell in bench.cells.list_cells(board, only):
        groups.setdefault(cell.group, []).append(cell)
    paths = {split: f"{split}.jsonl" for split in bench.cells.SPLITS}
    for cells in groups.values():
        data = bench.cells.make_recipe_data(board, cells[0], paths=paths, train_rows=16)
        plan = bench.run.make_plan(board, data, cells)
        assert plan.num_seeds == 1
        assert plan.base.seed == 1
    assert len(groups) == len(board.backbones) * len(board.tasks)


def test_the_words_of_the_project_are_for_the_labels_of_its_data(bench):
    board = bench.cells.read_leaderboard(HERE / "leaderboard.toml")
    checked = 0
    for task in board.tasks.values():
        try:
            labels = {*read_source(task.train)["label"]}
        except MissingPackageError:
            continue
        checked += 1
        assert task.words is None or {*task.words} == labels
        assert task.question is None or "{text}" in task.question
    assert checked >= 1


def make_records(bench, board, accuracies, **changes):
    base = {"backbone": "bert", "task": "films", "rows": 4, "method": "majority"} | changes
    return [
        base
        | {
            "seed": seed,
            "accuracy": accuracy,
            "metrics": {"macro_f1": accuracy / 2},
            "trainable": 33,
            "saved_bytes": 132_000,
            "seconds": 10.0 * seed,
            "commit": "abc",
            "lines": bench.cells.digest_cell(board, bench.cells.Cell(**base, seed=seed)),
            "machine": {"cpu": "CPU", "threads": 2},
            "versions": {"softprompt": "0.1.0"},
        }
        for seed, accuracy in enumerate(accuracies, start=1)
    ]


def test_the_page_has_means_over_seeds_of_the_present_lines(bench, home):
    board = bench.cells.read_leaderboard(home.file)
    better = make_records(bench, board, [0.8, 0.9], method="probe")
    worse = make_records(bench, board, [0.5, 0.7])
    corrected = make_records(bench, board, [0.6])
    outdated = [{**record, "lines": "old"} for record in make_records(bench, board, [1.0])]
    unknown = [{**record, "method": "gone"} for record in better]
    page = bench.page.format_page(board, [*worse, *better, *corrected, *outdated, *unknown])
    rows = [line for line in page.splitlines() if line.startswith("| films")]
    assert rows == [
        "| films | 4 | bert | probe | **85.0** | 7.1 | 42.5 | 2 | 33 | 132.0 | 15 |",
        "| films | 4 | bert | majority | 65.0 | 7.1 | 32.5 | 2 | 33 | 132.0 | 15 |",
    ]
    assert page.endswith("Measured on CPU, 2 threads, with softprompt 0.1.0, at the commit abc.\n")
    assert "Nothing is measured yet." in bench.page.format_page(board, [])


def test_the_page_compares_the_default_cell_by_cell(bench):
    board = bench.cells.read_leaderboard(HERE / "leaderboard.toml")

    def make(method: str, rows: int, accuracies: list[float]) -> list[dict]:
        where = {"backbone": "minilm", "task": "spam", "rows": rows, "method": method}
        found = make_records(bench, board, accuracies, **where)
        return [record | {"test_rows": 100} for record in found]

    records = [
        *make("default", 16, [0.80, 0.80, 0.80]),
        *make("search", 16, [0.80, 0.81, 0.82]),  # the last is 2 points above
        *make("linear-probe", 16, [0.70, 0.86, 0.87]),  # 86.7 is the end of 80.0's interval
        *make("logistic-head", 16, [0.80, 0.81]),
        *make("default", 64, [0.90, 0.90]),
        *make("linear-probe", 64, [0.89, 0.90]),
        *make("logistic-head", 64, [0.99, 0.99]),  # not a matter of few rows
    ]
    page = bench.page.format_page(board, records)
    found = [line.split(" | ")[-2] for line in page.splitlines() if line.endswith("% |")]
    assert found == ["2 of 3", "1 of 2", "1 of 2"]
    assert "95 % interval | 4 of 5 | all |" in page


def test_the_page_in_the_documentation_is_that_of_the_results(bench):
    board = bench.cells.read_leaderboard(HERE / "leaderboard.toml")
    records = bench.run.read_records(bench.run.RESULTS)
    assert bench.run.PAGE.read_text("utf-8") == bench.page.format_page(board, records)


def test_what_is_not_installed_is_left_out_and_said_once(bench, home, tmp_path, capsys):
    """Here the package of a backbone; the other cells are run."""
    text = home.file.read_text("utf-8").replace(
        "[tasks]", 'absent = { name = "builtin:gemma3-270m" }\n\n[tasks]'
    )
    (tmp_path / "board.toml").write_text(text, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("softprompt.backbone.builtin.find_spec", lambda _: None)
        status = call(
            bench,
            SimpleNamespace(file=tmp_path / "board.toml"),
            tmp_path,
            *("--only", "rows=4", "method=majority", "backbone=absent,llama"),
        )
    said = capsys.readouterr().err
    assert status == 0
    assert said.count("which is not installed. Install it: pip install gemma3-270m") == 1
    assert len(read_lines(tmp_path)) == 2
