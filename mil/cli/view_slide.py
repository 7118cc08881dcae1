"""`view-slide`: slides of a run in the browser, with deep zoom and what the model saw."""

import sys
from pathlib import Path

import jsonargparse

from tiling.jobs.command import run_command


def main() -> None:
    run_command("view-slide", _run)


def _run() -> int:
    parser = jsonargparse.ArgumentParser(
        prog="view-slide", description="Serve a page on this machine alone that zooms into the slides of a run."
    )
    parser.add_argument("run", type=Path, help="run directory of train-mil")
    parser.add_argument(
        "--slides", type=str, default="", help="slide table (.csv), folder or glob (default: the run's own label table)"
    )
    parser.add_argument("--port", type=int, default=8450, help="port on the loopback address; 0: a free one")
    arguments = parser.parse_args()

    from mil.viewer.server import rows_to_view, serve

    server = serve(arguments.run, rows_to_view(arguments.run, arguments.slides), arguments.port)
    print(f"{len(server.rows):,} slides at {server.address} (Ctrl-C ends)", file=sys.stderr, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0
