"""Command diagnose-cohort: why is validation accuracy stuck?"""

import os
from collections.abc import Sequence
from pathlib import Path

from mil.diagnosis.config import DiagnoseConfig
from tiling.jobs.command import config_from, parser_for, run_command

_DESCRIPTION = """Say in plain words why a model does not get better: normalisation, distance from ImageNet, signal,
shortcuts, copied labels, training, single slides, scale. Writes diagnosis.html and diagnosis.json."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(DiagnoseConfig, "diagnose-cohort", _DESCRIPTION)
    parser.add_argument("features", type=str, help="folder of feature files: ours, CLAM's or TRIDENT's")
    parser.add_argument("--labels", type=str, required=True, help="slide table (CSV) with slide_id and labels")
    parser.add_argument("--target", type=str, required=True, help="column of the table that holds the label")
    parser.add_argument("--out", type=str, required=True, help="folder for diagnosis.html and diagnosis.json")
    parser.add_argument("--patches", type=str, default="", help="folder of the patch stores of these features")
    parser.add_argument("--run", type=str, default="", help="run directory of train-mil on these features")
    parser.add_argument(
        "--features-random", type=str, default="", help="folder of features with random weights: the floor"
    )
    parser.add_argument(
        "--scales", type=str, nargs="+", default=[], help="folders of features of the same slides at other scales"
    )
    arguments = parser.parse_args(argv)

    def body() -> int:
        config = config_from(DiagnoseConfig, arguments)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else threads spin, and a busy machine stalls
        from mil.diagnosis.diagnose import diagnose  # imports torch
        from mil.diagnosis.display import Display
        from mil.diagnosis.inputs import Sources

        sources = Sources(
            Path(arguments.features),
            Path(arguments.labels),
            arguments.target,
            patches=Path(arguments.patches) if arguments.patches else None,
            run=Path(arguments.run) if arguments.run else None,
            random_features=Path(arguments.features_random) if arguments.features_random else None,
            scales=tuple(map(Path, arguments.scales)),
        )
        show, out = Display(), Path(arguments.out)
        diagnosis = diagnose(sources, config, out=out, progress=show.progress, warn=show.warning)
        show.result(diagnosis, out)
        return int(diagnosis.failed)

    run_command("diagnose-cohort", body)
