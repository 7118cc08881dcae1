"""`tile-slides`: slides to patch stores."""

import sys
from pathlib import Path

from tiling.config import TilingConfig
from tiling.jobs.command import config_from, parser_for, run_command

_REPAIR = (
    "verify: to repair, delete the folders of the stores that are not whole and run the same command without "
    "--verify, which makes what is missing; or run it with --overwrite, which makes all of them again"
)


def main() -> None:
    run_command("tile-slides", _run)


def _run() -> int:
    parser = parser_for(
        TilingConfig,
        "tile-slides",
        "Cut slides into tissue-masked patches at an exact scale, one zarr store a slide.",
        addresses=["out"],
    )
    parser.add_argument("slides", type=str, help="a slide table (.csv), a folder, one slide, or a glob")
    parser.add_argument(
        "--out", type=str, required=True, help="folder for the patch stores, <slide_id>.zarr, or an address (s3://…)"
    )
    parser.add_argument("--verify", action="store_true", help="only read the stores again and name those not whole")
    arguments = parser.parse_args()
    config = config_from(TilingConfig, arguments)

    from tiling.all_slides import tile_slides
    from tiling.jobs.terminal import Terminal, exit_code
    from tiling.manifest import load_slides, load_table, select_part
    from tiling.objects.folder import folder_at, local_folder
    from tiling.verify import verify_stores

    source = arguments.slides
    if arguments.verify and source.lower().endswith(".csv"):
        rows = load_table(Path(source), needs_path=False)  # the slides themselves may be gone
    else:
        rows = load_slides(source, urls=True)
    rows = select_part(rows, config.part) if config.part else rows
    if not arguments.verify:
        return exit_code(tile_slides(rows, config, folder_at(arguments.out), Terminal("tile-slides")))
    out = local_folder(arguments.out, "stores are verified").absolute()
    code = exit_code(verify_stores(rows, config, out, Terminal("verify")))
    if code:
        print(_REPAIR, file=sys.stderr)
    return code
