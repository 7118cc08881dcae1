"""`export-heatmaps`: where the model looked, beside the slide."""

from pathlib import Path

from mil.maps.config import HeatmapConfig
from tiling.jobs.command import config_from, parser_for, run_command
from tiling.jobs.workers import load_ahead


def main() -> None:
    run_command("export-heatmaps", _run)


def _run() -> int:
    parser = parser_for(
        HeatmapConfig,
        "export-heatmaps",
        "Draw where a trained run looked, over its slides, for a browser, QuPath and OpenSlide.",
    )
    parser.add_argument("run", type=Path, help="run directory of train-mil")
    parser.add_argument("features", type=Path, help="folder of feature files, <slide_id>.h5")
    parser.add_argument("--slides", type=str, required=True, help="slide table (.csv), folder or glob of the slides")
    parser.add_argument("--out", type=Path, required=True, help="folder for the heatmaps, <slide_id>.png and so on")
    parser.add_argument(
        "--slide-id",
        type=str,
        nargs="+",
        default=[],
        help="draw only these slides; where patients are bags, all of their patients",
    )
    arguments = parser.parse_args()
    config = config_from(HeatmapConfig, arguments)
    if not config.scheduler:
        load_ahead("mil.maps.export")  # for the workers, while this process loads it, too

    from mil.maps.export import export_heatmaps
    from mil.run.layout import bags_of
    from tiling.jobs.errors import RequestError
    from tiling.jobs.terminal import Terminal, exit_code
    from tiling.manifest import load_slides

    rows = load_slides(arguments.slides)
    unknown = sorted(set(arguments.slide_id) - {row.slide_id for row in rows})
    if unknown:
        raise RequestError(f"--slide-id {' '.join(unknown)}: not in {arguments.slides}")
    if arguments.slide_id:
        wanted = set(arguments.slide_id)
        patients = {row.patient_id for row in rows if row.slide_id in wanted and bags_of(arguments.run) == "patient"}
        rows = [row for row in rows if row.slide_id in wanted or row.patient_id in patients]
    listener = Terminal("export-heatmaps")
    run, features, out = (path.absolute() for path in (arguments.run, arguments.features, arguments.out))
    return exit_code(export_heatmaps(run, features, rows, config, out, listener))  # Dask's workers have other folders
