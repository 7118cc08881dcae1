"""What a patient's label loses when it is copied to each of his slides: slides as bags against patients as bags.

Generated cohorts of three slides a patient, 20 patches of 8 features each. Positive patients have tumour in one slide
of three, in a fifth of its patches, which lie --shift deviations away; patients differ from each other as well. Both
ways have the same patients in the same folds. A patient's answer is the mean over slides, their highest, or
that of the bag; AUROCs by patient, out of fold, and their paired difference over seeds (mean, 95 % interval by t).

With --phantoms the slides are drawn, tiled and embedded, one cohort a seed in the folder; a tumour slide has a lesion
in 4 % of its tissue (some minutes a cohort of 40 patients on two cores).

    python tests/benchmarks/accuracy/accuracy_patients.py [--seeds 6] [--first-seed 0] [--patients 60]
        [--head gated-abmil] [--shift 5]
    python tests/benchmarks/accuracy/accuracy_patients.py --phantoms FOLDER --seeds 2 --patients 40
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import roc_auc_score

from features import extract
from mil import train
from tiling import tile

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from planted_cohorts import write_features

from tiling.phantom.phantom import PhantomSpec, write_phantom

SLIDES, PATCHES, DIM, WITNESS = 3, 20, 8, 0.2
SIDE_PX, LESION = 6144, 0.04  # of phantoms
WAYS = ("slides, mean over a patient's", "slides, highest of a patient's", "patients")


def make_cohort(folder: Path, patients: int, shift: float, seed: int) -> Path:
    """The folder of feature files, with their slide table."""
    rng, rows = np.random.default_rng(seed), []
    direction = rng.normal(size=DIM)
    direction *= shift / np.linalg.norm(direction)
    for p in range(patients):
        own, tumour = 0.5 * rng.normal(size=DIM), p % 2
        for s in range(SLIDES):
            features = rng.normal(size=(PATCHES, DIM)) + own
            if tumour and s == 0:
                features[: round(WITNESS * PATCHES)] += direction
            write_features(folder, f"p{p:03d}-{s}", rng.permutation(features))
            rows.append((f"p{p:03d}-{s}", f"p{p:03d}", ("normal", "tumour")[tumour]))
    return _with_table(folder, rows)


def draw_cohort(folder: Path, patients: int, seed: int) -> Path:
    """The same of phantom slides, where they are not there already. Scanners do not go with the label."""
    rng, rows = np.random.default_rng(seed), []
    slides, patches, features = (folder / f"{seed}" / name for name in ("slides", "patches", "features"))
    slides.mkdir(parents=True, exist_ok=True)
    for p, s in np.ndindex(patients, SLIDES):
        spec = PhantomSpec(
            SIDE_PX,
            SIDE_PX,
            seed=1_000_000 * (seed + 1) + 10 * p + s,
            tumour=p % 2 == 1 and s == 0,
            scanner="A" if rng.random() < 0.5 else "B",
            lesion_fraction=LESION,
        )
        name = f"p{p:03d}-{s}"
        if not (slides / f"{name}.svs").exists():
            write_phantom(spec, slides / f"{name}.svs")
        rows.append((name, f"p{p:03d}", ("normal", "tumour")[p % 2]))
    tile(slides, patches, mpp=0.25)
    extract(patches, features, encoder="efficientnet-lite0")
    return _with_table(features, rows)


def _with_table(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "diagnosis"])
    table.to_csv(folder / "slides.csv", index=False)
    return folder


def aurocs(features: Path, out: Path, head: str, seed: int) -> list[float]:
    """By patient, one a way."""
    told = dict(head=head, seed=seed, folds=3, inner_folds=0, bootstrap=100, device="cpu")
    table = features / "slides.csv"
    of_patients = train(features, table, "diagnosis", out / "patients", bag="patient", **told)
    splits = str(of_patients.path / "splits.csv")
    of_slides = train(features, table, "diagnosis", out / "slides", splits=splits, **told)
    by_patient = of_slides.predictions.groupby("patient_id").agg(
        label=("label", "first"), highest=("prob_tumour", "max")
    )
    mean = of_slides.patient_predictions.set_index("patient_id")["prob_tumour"]
    bags = of_patients.predictions.set_index("patient_id")["prob_tumour"]
    truth = by_patient["label"] == "tumour"
    said = (mean, by_patient["highest"], bags)
    return [float(roc_auc_score(truth, of.reindex(by_patient.index))) for of in said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--head", default="gated-abmil")
    parser.add_argument("--shift", type=float, default=5.0)
    parser.add_argument("--phantoms", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            if arguments.phantoms:
                features = draw_cohort(arguments.phantoms, arguments.patients, seed)
            else:
                features = make_cohort(out / "features", arguments.patients, arguments.shift, seed)
            found.append(aurocs(features, out, arguments.head, seed))
        print(
            f"seed {seed}: " + ", ".join(f"{way} {value:.3f}" for way, value in zip(WAYS, found[-1], strict=True)),
            flush=True,
        )
    table = np.array(found)  # (seeds, ways)
    print("\n| bags | patient AUROC, mean over seeds | lowest to highest | lost against patients as bags |")
    print("| --- | --- | --- | --- |")
    for at, way in enumerate(WAYS):
        own, lost = table[:, at], table[:, -1] - table[:, at]
        half = stats.t.ppf(0.975, len(lost) - 1) * lost.std(ddof=1) / np.sqrt(len(lost))
        said = "–" if at == len(WAYS) - 1 else f"{lost.mean():.3f} ({lost.mean() - half:.3f}–{lost.mean() + half:.3f})"
        print(f"| {way} | {own.mean():.3f} | {own.min():.3f}–{own.max():.3f} | {said} |")


if __name__ == "__main__":
    main()
