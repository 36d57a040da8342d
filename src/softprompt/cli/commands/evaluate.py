"""``softprompt evaluate``: metrics of a prompt, or of an ensemble, on labelled rows."""

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from softprompt.cli.console import (
    format_columns,
    format_scores,
    print_json,
    print_progress,
    print_status,
)
from softprompt.cli.options import (
    AnswerChanges,
    ArtifactPath,
    AsJson,
    BatchSize,
    BestSoFar,
    CellSeparator,
    HasHeader,
    PromptBackbone,
    TextEncoding,
    load_prompt,
)

if TYPE_CHECKING:
    from softprompt.data import Table
    from softprompt.inference import Ensemble, EvaluationReport, PromptModel, Vote

    # What is evaluated, and its name, or those of its members.
    _Loaded: TypeAlias = tuple[PromptModel | Ensemble, list[str]]

# The most confusions that are printed.
_MAX_CONFUSIONS = 10

OtherArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA|ARTIFACT",
        help="A file or data set (default: the recipe's test split); with --ensemble, more "
        "artifacts.",
    ),
]
PredictionsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write rows, predictions and whether they are right to a .csv, .tsv, .jsonl or "
        ".parquet.",
    ),
]

VoteOfMembers = Annotated[
    Literal["majority", "mean"] | None,
    typer.Option(help="With --ensemble: majority of labels, or mean of probabilities."),
]


def evaluate(
    artifact: ArtifactPath,
    more: OtherArguments = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Evaluate several artifacts as an ensemble.")
    ] = False,
    vote: VoteOfMembers = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Data to evaluate on (instead of the DATA argument)."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the recipe's data (default test), or of a Hub data set."),
    ] = None,
    predictions: PredictionsFile = None,
    backbone: PromptBackbone = None,
    best: BestSoFar = False,
    separator: CellSeparator = None,
    encoding: TextEncoding = None,
    header: HasHeader = None,
    changes: AnswerChanges = None,
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Evaluate a prompt: metrics, also of each label."""
    print_progress(f"loading {artifact} and its backbone …")
    how = (separator, encoding, header)
    if ensemble:
        _check_artifacts(more or [], best=best, changes=changes)
        rows, paths = _Rows(data, split, *how), [artifact, *map(Path, more or [])]
        loaded = _load_members(paths, vote, backbone=backbone)
    else:
        _check_vote(vote, artifact)
        rows = _Rows(_choose_source(artifact, more or [], data), split, *how)
        model = load_prompt(artifact, backbone=backbone, best=best, changes=changes or ())
        loaded = _name_members(model, artifact, vote)
    _evaluate_model(loaded, rows, _Options(backbone, batch_size, predictions, as_json=as_json))


@dataclass(frozen=True)
class _Options:
    """Options of both kinds of evaluation.

    Args:
        backbone: where it is now; None for the recorded place.
        batch_size: rows per batch.
        predictions: a file to write; None for no file.
        as_json: whether the result is printed as JSON.
    """

    backbone: str | None
    batch_size: int
    predictions: Path | None
    as_json: bool


@dataclass(frozen=True)
class _Rows:
    """The rows to evaluate on.

    Args:
        source: a file or data set; None for the data of the artifact's recipe.
        split: of that data; None for the default.
        separator: between the cells of a csv file; None to recognise it, like the next ones.
        encoding: of a file of text.
        header: whether its first line has the names of the columns.
    """

    source: str | None
    split: str | None
    separator: str | None = None
    encoding: str | None = None
    header: bool | None = None

    @property
    def name(self) -> str:
        """The name of the rows in the result."""
        if self.source is None:
            return self.split or "test"
        return self.source if self.split is None else f"{self.source} {self.split}"

    @property
    def recipe_split(self) -> str | None:
        """The split of the recipe's data; None if there is a source, or for the default."""
        return self.split if self.source is None else None

    def read(self) -> "Table | None":
        """Read the source; None without one."""
        from softprompt.data import TextFormat, read_source

        if self.source is None:
            return None
        how = TextFormat(self.separator, self.encoding, self.header)
        return read_source(self.source, split=self.split, text_format=how)


def _evaluate_model(loaded: "_Loaded", rows: _Rows, options: _Options) -> None:
    from softprompt.inference import PromptModel

    model, names = loaded
    if isinstance(model, PromptModel):
        _evaluate_one(model, names[0], rows, options=options)
    else:
        _evaluate_ensemble(model, names, rows, options=options)


def _evaluate_one(model: "PromptModel", artifact: str, rows: _Rows, *, options: _Options) -> None:
    from softprompt.train import to_dict

    table = rows.read()
    own = _read_own_rows(model, table, rows=rows, file=options.predictions)
    print_progress(f"evaluating the {rows.name} rows …")
    report = model.evaluate(
        table, split=rows.recipe_split, batch_size=options.batch_size, name=rows.name
    )
    _report_truncated(report.truncated, report.rows)
    _write_predictions(options.predictions, own, report)
    metrics, classes = to_dict(report), _describe_classes(report)
    if options.as_json:
        print_json({"artifact": artifact, "data": rows.name, **metrics, **classes})
    else:
        print(format_scores(metrics) + _format_classes(classes))


def _read_own_rows(
    model: "PromptModel", table: "Table | None", *, rows: _Rows, file: Path | None
) -> list[dict[str, object]]:
    """The rows with all their columns, for the file of predictions; none without a file.

    Raises:
        DataError: the file cannot be written, or would replace rows or one of their columns.
    """
    from softprompt.data.writers import check_writable, is_flat
    from softprompt.errors import SoftpromptWarning
    from softprompt.inference.answers import check_own_columns, name_answer_columns

    if file is None:
        return []
    recorded = model.artifact.manifest.recipe.get("data")
    sources = recorded.values() if isinstance(recorded, dict) else ()
    check_writable(file, sources=[rows.source or "", *(s for s in sources if isinstance(s, str))])
    if table is None:
        with warnings.catch_warnings():  # that the data has changed is reported once, below
            warnings.simplefilter("ignore", SoftpromptWarning)
            table = model.read_split(rows.name)
    added = name_answer_columns(model.task, flat=is_flat(file), evaluated=True)
    check_own_columns(table.column_names, added, where=f"the {rows.name} data")
    return list(table.to_list())


def _write_predictions(
    file: Path | None, own: Sequence[dict[str, object]], report: "EvaluationReport"
) -> None:
    """Write the rows with their predictions, if there is a file for them."""
    from softprompt.data.writers import is_flat, write_rows
    from softprompt.inference.answers import make_answer_row

    if file is None:
        return
    answers = zip(own, report.predictions, report.right, strict=True)
    flat = is_flat(file)
    write_rows(file, [make_answer_row(r, p, flat=flat, right=right) for r, p, right in answers])
    print_status(f"{len(own):,} rows are written to {file}")


def _describe_classes(report: "EvaluationReport") -> dict[str, Any]:
    """The scores of each label, and the labels that are confused; nothing for free text."""
    if not report.classes:
        return {}
    return {
        "classes": [asdict(scores) for scores in report.classes],
        "confusions": [asdict(pair) for pair in report.confusions],
    }


def _format_classes(described: dict[str, Any]) -> str:
    """A line for each label, and one for each of the commonest confusions."""
    if not described:
        return ""
    numbers = ("precision", "recall", "f1")
    counts = ("rows", "predicted")
    lines = [
        [c["label"], *(f"{c[name]:.4f}" for name in numbers), *(f"{c[name]:,}" for name in counts)]
        for c in described["classes"]
    ]
    text = f"\n\n{format_columns([['label', *numbers, *counts], *lines])}"
    confusions = described["confusions"]
    if not confusions:
        return text
    shown = [
        [f"{c['label']} → {c['predicted']}", f"{c['rows']:,}", f"{c['share']:.1%}"]
        for c in confusions[:_MAX_CONFUSIONS]
    ]
    text += f"\n\n{format_columns([['true → predicted', 'rows', 'of the label'], *shown])}"
    rest = len(confusions) - len(shown)
    return f"{text}\n… and {rest:,} more: see --json" if rest else text


def _name_members(
    model: "PromptModel | Ensemble", artifact: Path, vote: "Vote | None"
) -> "_Loaded":
    """A prompt, or an ensemble with the names of its members."""
    from softprompt.artifact.ensembles import is_ensemble, list_members
    from softprompt.inference import Ensemble, PromptModel

    if isinstance(model, PromptModel):
        return model, [str(artifact)]
    names = [f"member {number}" for number in range(1, len(model.members) + 1)]
    if is_ensemble(artifact):
        names = [str(path) for path in list_members(artifact)]
    return (model if vote is None else Ensemble(model.members, vote=vote)), names


def _load_members(paths: Sequence[Path], vote: "Vote | None", *, backbone: str | None) -> "_Loaded":
    """Load artifacts, and all members of ensembles, as one ensemble; and their names."""
    from softprompt.artifact.ensembles import list_members
    from softprompt.inference import Ensemble, PromptModel

    members = [member for path in paths for member in list_members(path)]
    first = PromptModel.from_pretrained(members[0], backbone=backbone)
    others = [PromptModel.from_pretrained(path, backbone=first.backbone) for path in members[1:]]
    return Ensemble([first, *others], vote=vote or "majority"), [str(path) for path in members]


def _evaluate_ensemble(
    model: "Ensemble", names: Sequence[str], rows: _Rows, *, options: _Options
) -> None:
    """Evaluate an ensemble and its members, and print."""
    from softprompt.train.api import to_dict

    table, vote = rows.read(), model.vote
    own = _read_own_rows(model.members[0], table, rows=rows, file=options.predictions)
    print_progress(f"evaluating the {rows.name} rows …")
    reports = model.evaluate_members(
        table, split=rows.recipe_split, batch_size=options.batch_size, name=rows.name
    )
    _write_predictions(options.predictions, own, reports.ensemble)
    members = []
    for name, report in zip(names, reports.members, strict=True):
        _report_truncated(report.truncated, report.rows, prefix=f"{name}: ")
        members.append({"artifact": name, **to_dict(report)})
    metrics, summary = to_dict(reports.ensemble), _summarize_members(members)
    classes = _describe_classes(reports.ensemble)
    if options.as_json:
        result = {"data": rows.name, "vote": vote, **metrics, **classes, **summary}
        print_json({**result, "members": members})
    else:
        _print_ensemble(metrics, summary, members=members, vote=vote)
        if classes:
            print(_format_classes(classes)[1:])


def _report_truncated(truncated: int, rows: int, *, prefix: str = "") -> None:
    if truncated:
        print_status(f"{prefix}{truncated:,} of {rows:,} rows are too long and were truncated")


def _summarize_members(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean and the best of the members by accuracy or exact match."""
    metric = "accuracy" if "accuracy" in members[0] else "exact_match"
    values = [float(member[metric]) for member in members]
    return {"metric": metric, "mean": sum(values) / len(values), "best": max(values)}


def _print_ensemble(
    metrics: dict[str, Any],
    summary: dict[str, Any],
    *,
    members: Sequence[dict[str, Any]],
    vote: "Vote",
) -> None:
    metric = summary["metric"]
    losses = [member["loss"] for member in members]
    rows = [
        *([member["artifact"], member[metric], member["loss"]] for member in members),
        ["mean of the members", summary["mean"], sum(losses) / len(losses)],
        ["best of the members", summary["best"], min(losses)],
        [f"ensemble ({vote})", metrics[metric], metrics["loss"]],
    ]
    cells = [[name, *(f"{value:.4f}" for value in values)] for name, *values in rows]
    print(format_columns([["", metric, "loss"], *cells]))
    print(f"\nensemble\n{format_scores(metrics)}")


def _check_vote(vote: str | None, artifact: Path) -> None:
    from softprompt.artifact.ensembles import is_ensemble

    if vote is not None and not is_ensemble(artifact):
        msg = "--vote is for an ensemble. Leave it out, or add --ensemble."
        raise typer.BadParameter(msg)


def _choose_source(artifact: Path, others: Sequence[str], data: str | None) -> str | None:
    """The data to evaluate on; None for the data of the artifact's recipe."""
    sources = [*others, *([] if data is None else [data])]
    artifacts = [path for path in sources if _is_artifact(path)]
    if artifacts:
        files = [path for path in sources if path not in artifacts]
        command = ["softprompt", "evaluate", str(artifact), *artifacts, "--ensemble"]
        command += ["--data", files[0]] if files else []
        msg = (
            f"{artifacts[0]} is an artifact, not data. To evaluate an ensemble: "
            f"{shlex.join(command)}"
        )
        raise typer.BadParameter(msg)
    if len(sources) > 1:
        msg = (
            f"{len(sources)} data sets are given ({', '.join(sources)}), but a prompt is evaluated "
            "on one at a time. Give one."
        )
        raise typer.BadParameter(msg)
    return sources[0] if sources else None


def _check_artifacts(paths: Sequence[str], *, best: bool, changes: Sequence[str] | None) -> None:
    """With ``--ensemble`` all arguments are artifacts, of finished runs."""
    for option, is_given in {"--best": best, "--set": bool(changes)}.items():
        if is_given:
            msg = f"{option} is for a single run. Leave it out, or leave out --ensemble."
            raise typer.BadParameter(msg)
    files = [path for path in paths if not Path(path).is_dir() and Path(path).suffix]
    if files:
        msg = (
            f"{files[0]} is not the folder of an artifact. With --ensemble, give data by --data "
            f"{files[0]}."
        )
        raise typer.BadParameter(msg)


def _is_artifact(path: str) -> bool:
    """Whether it is the folder of an artifact or an ensemble, or of a run with one."""
    from softprompt.artifact.ensembles import is_ensemble
    from softprompt.artifact.store import MANIFEST, find_artifact

    folder = Path(path)
    is_single = folder.is_dir() and (find_artifact(folder) / MANIFEST).is_file()
    return is_single or is_ensemble(folder)
