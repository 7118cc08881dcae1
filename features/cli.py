"""`extract-features`: patch stores to feature files."""

from pathlib import Path

from features.config import FeatureConfig
from tiling.jobs.command import config_from, parser_for, run_command


def main() -> None:
    run_command("extract-features", _run)


def _run() -> int:
    parser = parser_for(
        FeatureConfig,
        "extract-features",
        "Turn every patch into a vector with a frozen network, one HDF5 file a slide.",
    )
    parser.add_argument("patches", type=Path, help="folder of patch stores, <slide_id>.zarr, from tile-slides")
    parser.add_argument("--out", type=Path, required=True, help="folder for the feature files, <slide_id>.h5")
    parser.add_argument("--slides", type=str, default="", help="slide table (.csv): embed its slides only")
    parser.add_argument(
        "--check", action="store_true", help="say what would be done and how long it takes; write nothing"
    )
    arguments = parser.parse_args()
    config = config_from(FeatureConfig, arguments)

    from features.check import check, said
    from features.pipeline import extract_features, find_stores
    from tiling.jobs.terminal import Terminal, exit_code

    patches, out = arguments.patches.absolute(), arguments.out.absolute()  # a Dask worker has another working folder
    rows = find_stores(patches, Path(arguments.slides) if arguments.slides else None)
    if arguments.check:
        checked = check(rows, config, patches, out)
        print(*said(checked), sep="\n")
        return 1 if checked.faults else 0
    return exit_code(extract_features(rows, config, patches, out, Terminal("extract-features")))
