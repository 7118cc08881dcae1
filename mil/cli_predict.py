"""Command predict-mil: apply the models of a run to other slides."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.command import config_from, parser_for, run_command, setting

_DESCRIPTION = """Predict slides with the mean over all fold models of a run. Columns: slide_id, prediction,
prob_<class> for each class, fold_spread (standard deviation over the models of the probability)."""


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `predict-mil`."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:<index>")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(PredictConfig, "predict-mil", _DESCRIPTION)
    parser.add_argument("run", type=str, help="run directory of train-mil")
    parser.add_argument("features", type=str, help="folder of feature files <slide_id>.h5 of the same encoder")
    parser.add_argument("--out", type=str, required=True, help="CSV file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file that says something else")
    arguments = parser.parse_args(argv)

    def body() -> int:
        config = config_from(PredictConfig, arguments)
        return _predict(
            Path(arguments.run), Path(arguments.features), Path(arguments.out), config.device, arguments.overwrite
        )

    run_command("predict-mil", body)


def _predict(run: Path, features: Path, out: Path, device: str, overwrite: bool) -> int:
    import pandas as pd

    from mil.predict import load_ensemble, predict_folder, write_table  # imports torch
    from mil.run import read_splits
    from tiling.errors import RequestError

    if (out.parent / "provenance.json").exists():
        raise RequestError(f"{out}: lies in a run directory, whose files it could replace; choose another --out")
    ensemble = load_ensemble(run, device)
    table, failures = predict_folder(ensemble, features)
    if out.exists() and not overwrite and out.read_text(encoding="utf-8") != table.to_csv(index=False):
        raise RequestError(f"{out} exists and says something else; choose another --out, or use --overwrite")
    seen = table["slide_id"].isin(read_splits(run)["slide_id"]).sum()
    if seen:
        print(
            f"warning: {seen} of these slides were used in training, so their predictions look better than they are; "
            f"the honest ones are in {run / 'predictions.csv'}",
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
