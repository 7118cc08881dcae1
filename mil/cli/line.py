"""`mil-line`: a slide table to a trained run and its maps, by the four commands."""

from pathlib import Path

from mil.line import LineConfig, run_line
from tiling.jobs.command import config_from, parser_for, run_command


def main() -> None:
    run_command("mil-line", _run)


def _run() -> int:
    parser = parser_for(
        LineConfig,
        "mil-line",
        "Run tile-slides, extract-features, train-mil and export-heatmaps for one slide table, or go on with them.",
    )
    parser.add_argument("slides", type=Path, help="slide table (.csv) with paths and labels")
    parser.add_argument("--target", type=str, required=True, help="column of the table that holds the label")
    parser.add_argument("--out", type=Path, required=True, help="folder for patches, features, run and heatmaps")
    arguments = parser.parse_args()
    config = config_from(LineConfig, arguments)

    from tiling.jobs.terminal import Terminal

    return run_line(arguments.slides, arguments.target, config, arguments.out, Terminal("mil-line"))
