"""configs/Snakefile, run by Snakemake on eight small slides, one of them damaged; killed in its midst and run again.

Snakemake is in no extra (it brings some forty packages): install it beside, in an environment of its own.

    python tests/stress/snakemake_line.py /path/to/snakemake
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiling.phantom.phantom import PhantomSpec, write_phantom

ROOT = Path(__file__).parents[2]
GIVEN = {
    "tile": "--mpp 1.0 --patch-px 128",
    "extract": "--encoder mobilenet-v3-small --weights random --device cpu",
    "train": "--folds 2 --inner-folds 0 --val-fraction 0 --epochs 2 --device cpu",
    "heatmaps": "--formats geojson",
}


def main(snakemake: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["slide_id,path,patient_id,tumour", "bad,bad.svs,p9,no"]
        (folder / "bad.svs").write_bytes(b"no slide")
        for number in range(8):
            write_phantom(PhantomSpec(1504, 1504, seed=number, tumour=False), folder / f"s{number}.svs")
            lines.append(f"s{number},s{number}.svs,p{number},{'yes' if number % 2 else 'no'}")
        (folder / "slides.csv").write_text("\n".join(lines) + "\n")
        config = {"slides": folder / "slides.csv", "target": "tumour", "study": folder / "study", "parts": 2, **GIVEN}
        given = [f"{key}={value}" for key, value in config.items()]
        command = [snakemake, "--snakefile", ROOT / "configs/Snakefile", "--cores", "2", "--directory", folder]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

        def start() -> subprocess.Popen[str]:
            environment, pipe = {**os.environ, "PATH": path}, subprocess.PIPE
            arguments = [*command, "--rerun-incomplete", "--config", *given]
            return subprocess.Popen(arguments, env=environment, stderr=pipe, text=True, start_new_session=True)

        killed = start()
        while killed.poll() is None and not list(folder.glob("study/features/*.h5")):
            time.sleep(0.1)
        assert killed.poll() is None, killed.communicate()[1]
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        subprocess.run([*command, "--unlock", "--config", *given], env={**os.environ, "PATH": path}, check=True)
        again = start()
        told = again.communicate()[1]
        assert again.returncode == 0, told
        study = folder / "study"
        assert len(list(study.glob("features/*.h5"))) == len(list(study.glob("heatmaps/*.geojson"))) == 8
        assert "bad" in "".join(file.read_text() for file in study.glob("patches/failures-*.csv"))
        once_more = start()
        assert "Nothing to be done" in once_more.communicate()[1] and once_more.returncode == 0
        print("killed, taken up, finished; then nothing was left to do")


if __name__ == "__main__":
    main(sys.argv[1])
