"""`extract-features`: patch stores to feature files."""

from features.config import FeatureConfig
from tiling.command import absolute_path, config_from, parser_for, run_command


def main() -> None:
    run_command("extract-features", _run)


def _run() -> int:
    parser = parser_for(
        FeatureConfig,
        "extract-features",
        "Turn every patch into a vector with an ImageNet network, one HDF5 file a slide.",
    )
    parser.add_argument("patches", type=absolute_path, help="folder of patch stores, <slide_id>.zarr, from tile-slides")
    parser.add_argument("--out", type=absolute_path, required=True, help="folder for the feature files, <slide_id>.h5")
    parser.add_argument("--slides", type=str, default="", help="slide table (.csv): embed its slides only")
    arguments = parser.parse_args()
    config = config_from(FeatureConfig, arguments)

    from features.extract import extract_features, find_stores

    rows = find_stores(arguments.patches, arguments.slides, config.part)
    return extract_features(rows, config, arguments.patches, arguments.out)
