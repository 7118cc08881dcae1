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
        addresses=["patches", "out"],
    )
    parser.add_argument(
        "patches", type=str, help="folder of patch stores, <slide_id>.zarr, from tile-slides, or its address (s3://…)"
    )
    parser.add_argument(
        "--out", type=str, required=True, help="folder for the feature files, <slide_id>.h5, or an address (s3://…)"
    )
    parser.add_argument("--slides", type=str, default="", help="slide table (.csv): embed its slides only")
    parser.add_argument(
        "--check", action="store_true", help="say what would be done and how long it takes; write nothing"
    )
    arguments = parser.parse_args()
    config = config_from(FeatureConfig, arguments)

    from features.check import check, said
    from features.pipeline import extract_features, find_stores
    from tiling.jobs.terminal import Terminal, exit_code
    from tiling.objects.folder import folder_at, local_folder

    table = Path(arguments.slides) if arguments.slides else None
    if arguments.check:
        patches, out = (local_folder(name, "--check looks").absolute() for name in (arguments.patches, arguments.out))
        checked = check(find_stores(patches, table), config, patches, out)
        print(*said(checked), sep="\n")
        return 1 if checked.faults else 0
    source, target = folder_at(arguments.patches), folder_at(arguments.out)
    rows = find_stores(source, table)
    return exit_code(extract_features(rows, config, source, target, Terminal("extract-features")))
