"""`check-machine`: what a machine lacks for the work that it is to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.jobs.command import config_from, parser_for, run_command, setting


@dataclass(frozen=True)
class CheckConfig:
    """Settings of `check-machine`."""

    folder: str = setting(".", "folder for outputs, in which writing, renaming, locking and mapping are tried")
    require: str = setting("", "what this machine must have besides, separated by commas: gpu, s3, dicom, cluster …")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(
        CheckConfig, "check-machine", "Say what this machine lacks. Ends with 1 where something needed is missing."
    )
    arguments = parser.parse_args(argv)

    def body() -> int:
        config = config_from(CheckConfig, arguments)
        from mil.machine import OPTIONAL, check_machine  # imports torch
        from tiling.jobs.errors import RequestError

        required = frozenset(name.strip() for name in config.require.split(",") if name.strip())
        if unknown := sorted(required - set(OPTIONAL)):
            raise RequestError(f"--require {', '.join(unknown)}: expected some of {', '.join(OPTIONAL)}")
        findings = check_machine(Path(config.folder), required)
        for finding in findings:
            state = "ok" if finding.there else "MISSING" if finding.needed else "not there"
            print(f"{finding.part:24} {state:10} {finding.text}")
        return int(any(finding.needed and not finding.there for finding in findings))

    run_command("check-machine", body)
