"""Command predict-mil: apply the models of a run to other slides."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiling.jobs.command import config_from, parser_for, run_command, setting

if TYPE_CHECKING:
    from mil.run.predict import Predictions

_DESCRIPTION = """Predict slides with the mean over the fold models of a run. Slides and patients that the run was
trained on are judged by the models that did not see them, or refused. Columns: slide_id (of a run with
--bag patient: patient_id and slide_ids, where --slides says whose new slides are); prediction; prob_<class> for
each class, calibrated; fold_spread (standard deviation of the probability over the models); models (how many);
in_training; distance from the training slides (1 is the limit) and unlike_training (beyond it)."""


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `predict-mil`."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:<index>")
    scheduler: str = setting("", "address of a Dask scheduler whose workers do the slides, or patients")
    prevalence: float = setting(
        0.0, "share of the positive class among slides of their kind, above 0 and below 1; 0: as in training"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.prevalence < 1:
            raise ValueError(f"--prevalence is {self.prevalence:g}, expected a share above 0 and below 1")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(PredictConfig, "predict-mil", _DESCRIPTION)
    parser.add_argument("run", type=str, help="run directory of train-mil")
    parser.add_argument("features", type=str, help="folder of feature files <slide_id>.h5 of the same encoder")
    parser.add_argument("--out", type=str, required=True, help="CSV file to write")
    parser.add_argument(
        "--slides",
        type=str,
        default="",
        help="slide table (CSV) that says whose the slides are, with the columns of --covariates",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file that says something else")
    arguments = parser.parse_args(argv)

    def body() -> int:
        config = config_from(PredictConfig, arguments)
        return _predict(
            Path(arguments.run),
            Path(arguments.features),
            Path(arguments.out),
            config,
            arguments.overwrite,
            arguments.slides,
        )

    run_command("predict-mil", body)


def _predict(run: Path, features: Path, out: Path, config: PredictConfig, overwrite: bool, slides: str) -> int:
    from mil.run.predict import predict_folder  # imports torch
    from tiling.jobs.errors import RequestError
    from tiling.manifest import load_table

    if (out.parent / "provenance.json").exists():
        raise RequestError(f"{out}: lies in a run directory, whose files it could replace; choose another --out")
    if out.is_dir():
        raise RequestError(f"{out} is a folder; --out names the CSV file to write")
    rows = load_table(Path(slides), needs_path=False) if slides else []
    found = predict_folder(run, features, rows, config.device, config.prevalence, config.scheduler)
    if out.exists() and not overwrite and out.read_text(encoding="utf-8") != found.table.to_csv(index=False):
        raise RequestError(f"{out} exists and says something else; choose another --out, or use --overwrite")
    _warn(found)
    return _write(found, features, out)


def _what(found: "Predictions") -> str:
    return "slides" if "slide_id" in found.table else "patients"


def _warn(found: "Predictions") -> None:
    for line in found.warnings:
        print(f"warning: {line}", file=sys.stderr)
    if found.table["in_training"].any():
        print(
            f"warning: {found.table['in_training'].sum()} of these {_what(found)} are of patients that the run was "
            "trained on; each was judged by the models that did not see it",
            file=sys.stderr,
        )
    unlike = found.table.loc[found.table["unlike_training"].eq(True)].iloc[:, 0].tolist()
    if unlike:
        print(
            f"warning: {len(unlike)} {_what(found)} are unlike those that the run was trained on; do not rely on them: "
            f"{', '.join(unlike[:8])}{', …' if len(unlike) > 8 else ''}",
            file=sys.stderr,
        )


def _write(found: "Predictions", features: Path, out: Path) -> int:
    """The tables; the exit code."""
    from mil.run.tables import write_reasons, write_table

    write_table(out, found.table)
    failed = out.with_name(f"{out.stem}.failures.csv")
    print(f"{len(found.table)} {_what(found)} predicted by {found.models} models: {out}")
    write_reasons(failed, found.failures, features)
    if not found.failures:
        return 0
    for reason in found.failures.values():
        print(f"failed: {reason}", file=sys.stderr)
    print(f"{len(found.failures)} slides failed: {failed}", file=sys.stderr)
    return 1
