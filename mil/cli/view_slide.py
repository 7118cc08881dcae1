"""`view-slide`: slides of a run in the browser, with deep zoom and what the model saw."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tiling.jobs.command import config_from, parser_for, run_command, setting


@dataclass(frozen=True)
class ViewConfig:
    """Settings of `view-slide`."""

    slides: str = setting("", "slide table (.csv), folder or glob (default: the run's own label table)")
    port: int = setting(8450, "port on the loopback address; 0: a free one")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}, expected 0 to 65535")


def main() -> None:
    run_command("view-slide", _run)


def _run() -> int:
    parser = parser_for(
        ViewConfig, "view-slide", "Serve a page on this machine alone that zooms into the slides of a run."
    )
    parser.add_argument("run", type=Path, help="run directory of train-mil")
    arguments = parser.parse_args()
    config = config_from(ViewConfig, arguments)

    from mil.viewer.server import rows_to_view, serve

    server = serve(arguments.run, rows_to_view(arguments.run, config.slides), config.port)
    print(f"{len(server.rows):,} slides at {server.address} (Ctrl-C ends)", file=sys.stderr, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0
