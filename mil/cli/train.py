"""Command train-mil: train a head on slide labels and say how good it is."""

import os
from collections.abc import Sequence
from pathlib import Path

from mil.training.config import TrainConfig
from tiling.jobs.command import config_from, parser_for, run_command

_DESCRIPTION = """Train a model on slide labels by cross-validation over patients. Writes checkpoints, out-of-fold
predictions, attention and metrics with intervals to a run directory. A killed run goes on with the same command."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(TrainConfig, "train-mil", _DESCRIPTION, addresses=["features"])
    parser.add_argument(
        "features", type=str, help="folder of feature files: ours (or their address, s3://…), CLAM's or TRIDENT's"
    )
    parser.add_argument("--labels", type=str, required=True, help="slide table (CSV) with slide_id and labels")
    parser.add_argument(
        *("--target", "--time"),
        type=str,
        required=True,
        help="column of the table that holds the label, or the time; or several of labels, such as er,pr,her2",
    )
    parser.add_argument("--out", type=str, required=True, help="run directory to write")
    arguments = parser.parse_args(argv)

    def body() -> int:
        config = config_from(TrainConfig, arguments)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else threads spin, and a busy machine stalls
        from mil.training.command import train_mil  # imports torch
        from mil.training.display import Display, plain_console

        display = Display(plain_console())
        labels, out = Path(arguments.labels), Path(arguments.out)
        trained = train_mil(arguments.features, labels, arguments.target, out, config, display)
        display.result(trained, config.compare)
        return 1 if trained.unreadable else 0

    run_command("train-mil", body)
