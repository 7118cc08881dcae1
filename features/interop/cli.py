"""`convert-features`: feature files of CLAM, TRIDENT and STAMP to ours, and back."""

from pathlib import Path
from typing import Literal

from features.interop.config import ConvertConfig
from tiling.jobs.command import config_from, parser_for, run_command

_DESCRIPTION = """Convert feature files between slidemil, CLAM, TRIDENT and STAMP. What the files do not say and the
target needs is asked for, slide by slide with --slides, or for all slides with the flags below."""
_LAYOUTS = Literal["slidemil", "clam", "trident", "stamp"]


def main() -> None:
    run_command("convert-features", _run)


def _run() -> int:
    parser = parser_for(ConvertConfig, "convert-features", _DESCRIPTION)
    parser.add_argument("features", type=Path, help="folder of feature files, or one file")
    parser.add_argument("--to", type=_LAYOUTS, required=True, help="whose layout to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--from",
        type=_LAYOUTS | None,
        default=None,
        help="whose layout to read; default: what each file's content says",
    )
    parser.add_argument(
        "--slides",
        type=str,
        default="",
        help="slide table (.csv): convert its slides only; `mpp` and the size of the file at `path` are used",
    )
    arguments = parser.parse_args()
    config = config_from(ConvertConfig, arguments)

    from features.interop.convert import convert_features, find_slides
    from features.interop.reader import open_features
    from tiling.jobs.terminal import Terminal, exit_code

    source = open_features(arguments.features, arguments["from"] or "")
    rows = find_slides(source, Path(arguments.slides) if arguments.slides else None)
    listener = Terminal("convert-features")
    return exit_code(convert_features(source, rows, arguments.to, config, arguments.out, listener))
