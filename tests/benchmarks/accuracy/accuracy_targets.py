"""What targets that are learnt at once gain or lose against a run for each, on the same slides in the same folds.

Generated cohorts of one slide a patient, 40 patches of 24 features each. Each target shows in a tenth of the patches of
its positive slides, which lie --shift deviations away in a direction of its own; a slide may be positive in both. Of
the second target half of the slides have no label: its own run is on the others. AUROCs out of fold, and the paired
difference over seeds (mean, 95 % interval by t).

    python tests/benchmarks/accuracy/accuracy_targets.py [--seeds 6] [--slides 80] [--head gated-abmil] [--shift 3.5]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mil import train

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from planted_cohorts import write_features

PATCHES, DIM, WITNESS = 40, 24, 0.1
TARGETS = {"first": "all labels", "second": "half of them"}


def make_cohort(folder: Path, slides: int, shift: float, seed: int) -> pd.DataFrame:
    """Feature files in `folder`, and their slide table."""
    rng, rows, shown = np.random.default_rng(seed), [], round(WITNESS * PATCHES)
    directions = shift * np.linalg.qr(rng.normal(size=(DIM, 2)))[0].T
    for i in range(slides):
        truth = i % 2, i // 2 % 2
        features = rng.normal(size=(PATCHES, DIM)) + 0.5 * rng.normal(size=DIM)
        for at, (positive, direction) in enumerate(zip(truth, directions, strict=True)):
            features[at * shown : (at + 1) * shown] += positive * direction
        write_features(folder, f"s{i:03d}", rng.permutation(features))
        rows.append((f"s{i:03d}", str(truth[0]), str(truth[1]) if i // 4 % 2 else ""))
    return pd.DataFrame(rows, columns=["slide_id", *TARGETS])


def aurocs(folder: Path, head: str, slides: int, shift: float, seed: int) -> list[tuple[float, float]]:
    """At once and alone, of each target."""
    features, found = folder / "features", []
    table = make_cohort(features, slides, shift, seed)
    told = dict(head=head, seed=seed, bootstrap=100, device="cpu")
    both = train(features, table, ",".join(TARGETS), folder / "both", **told)
    for name in TARGETS:
        own = table[table[name] != ""]
        splits = folder / f"{name}.csv"
        both.splits[both.splits["slide_id"].isin(own["slide_id"])].to_csv(splits, index=False)
        alone = train(features, own, name, folder / name, splits=str(splits), **told)
        found.append((both.metrics["slide"][f"{name} auroc"]["value"], alone.metrics["slide"]["auroc"]["value"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--slides", type=int, default=80)
    parser.add_argument("--head", default="gated-abmil")
    parser.add_argument("--shift", type=float, default=3.5)
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "features").mkdir()
            found.append(aurocs(Path(folder), arguments.head, arguments.slides, arguments.shift, seed))
        print(f"seed {seed}: {found[-1]}", flush=True)
    print("\n| target | AUROC at once | AUROC of its own run | gained at once |\n| --- | --- | --- | --- |")
    for (name, labels), values in zip(TARGETS.items(), np.array(found).transpose(1, 2, 0), strict=True):
        gained = values[0] - values[1]
        half = stats.t.ppf(0.975, len(gained) - 1) * gained.std(ddof=1) / np.sqrt(len(gained))
        said = f"{gained.mean():+.3f} ({gained.mean() - half:+.3f} to {gained.mean() + half:+.3f})"
        print(f"| {name}, {labels} | {values[0].mean():.3f} | {values[1].mean():.3f} | {said} |")


if __name__ == "__main__":
    main()
