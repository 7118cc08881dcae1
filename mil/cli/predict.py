"""Command predict-mil: apply the models of a run to other slides."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.jobs.command import config_from, parser_for, run_command, setting

_DESCRIPTION = """Predict slides with the mean over the fold models of a run. Slides and patients that the run was
trained on are judged by the models that did not see them, or refused. Columns: slide_id; prediction; prob_<class> for
each class, calibrated; fold_spread (standard deviation of the probability over the models); models (how many);
in_training; distance from the training slides (1 is the limit) and unlike_training (beyond it)."""


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `predict-mil`."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:<index>")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(PredictConfig, "predict-mil", _DESCRIPTION)
    parser.add_argument("run", type=str, help="run directory of train-mil")
    parser.add_argument("features", type=str, help="folder of feature files <slide_id>.h5 of the same encoder")
    parser.add_argument("--out", type=str, required=True, help="CSV file to write")
    parser.add_argument("--slides", type=str, default="", help="slide table (CSV) that says whose the slides are")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file that says something else")
    arguments = parser.parse_args(argv)

    def body() -> int:
        config = config_from(PredictConfig, arguments)
        return _predict(
            Path(arguments.run),
            Path(arguments.features),
            Path(arguments.out),
            config.device,
            arguments.overwrite,
            arguments.slides,
        )

    run_command("predict-mil", body)


def _predict(run: Path, features: Path, out: Path, device: str, overwrite: bool, slides: str) -> int:
    import pandas as pd

    from mil.run.ensemble import load_ensemble, predict_folder, write_table
    from mil.run.novelty import read_training_slides
    from mil.run.trained_on import read_trained_on
    from tiling.jobs.errors import RequestError
    from tiling.manifest import load_table

    if (out.parent / "provenance.json").exists():
        raise RequestError(f"{out}: lies in a run directory, whose files it could replace; choose another --out")
    ensemble = load_ensemble(run, device)
    patients = {row.slide_id: row.patient_id for row in load_table(Path(slides), needs_path=False)} if slides else {}
    table, failures = predict_folder(
        ensemble, features, read_trained_on(run), training=read_training_slides(run)[0], patients=patients
    )
    if out.exists() and not overwrite and out.read_text(encoding="utf-8") != table.to_csv(index=False):
        raise RequestError(f"{out} exists and says something else; choose another --out, or use --overwrite")
    if table["in_training"].any():
        print(
            f"warning: {table['in_training'].sum()} of these slides are of patients that the run was trained on; "
            "each was judged by the models that did not see it",
            file=sys.stderr,
        )
    unlike = table.loc[table["unlike_training"].eq(True), "slide_id"].tolist()
    if unlike:
        print(
            f"warning: {len(unlike)} slides are unlike those that the run was trained on; do not rely on them: "
            f"{', '.join(unlike[:8])}{', …' if len(unlike) > 8 else ''}",
            file=sys.stderr,
        )
    write_table(out, table)
    failed = out.with_name(f"{out.stem}.failures.csv")
    print(f"{len(table)} slides predicted by {len(ensemble.heads)} models: {out}")
    if not failures:
        failed.unlink(missing_ok=True)  # of an earlier call
        return 0
    write_table(failed, pd.DataFrame({"slide_id": list(failures), "reason": list(failures.values())}))
    for reason in failures.values():
        print(f"failed: {reason}", file=sys.stderr)
    print(f"{len(failures)} slides failed: {failed}", file=sys.stderr)
    return 1
