"""`mil-demo`: the whole line on slides that it makes itself."""

from pathlib import Path

from mil.demo.config import DemoConfig
from tiling.jobs.command import config_from, parser_for, run_command


def main() -> None:
    run_command("mil-demo", _run)


def _run() -> int:
    parser = parser_for(
        DemoConfig, "mil-demo", "Make synthetic slides with weak labels and run the four commands on them."
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything the demo makes")
    arguments = parser.parse_args()
    config = config_from(DemoConfig, arguments)

    from mil.demo.demo import run_demo

    return run_demo(config, arguments.out)
