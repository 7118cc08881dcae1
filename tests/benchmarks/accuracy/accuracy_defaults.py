"""Are the default settings of train-mil good ones? Nested selection over many cohorts, one table in the end.

Each candidate differs from the defaults in one setting. A cohort has outer test slides: 5 folds, or NEW new slides of
the same kind where it is generated. Within each outer training part 3 inner folds judge all candidates by log loss, and
each of these models is what `train-mil` makes of its training slides: 5 members, each stopped on an inner part, and a
calibration (`--inner-folds 0`: one model, nothing stopped, calibrated by what its inner folds said). So choices are
made by inner losses alone, the outer figures report, and neither chose itself.

The table has the mean difference from the defaults over cohorts, with a 95 % interval from a bootstrap over cohorts,
and in how many the candidate is better. Below it: what the inner losses choose, within each cohort, and for each cohort
by the others. `--report`: outer folds alone, which is a quarter of the work, for cohorts that are to choose nothing.

Sets are musk1, fox, ucsb (accuracy_ucsb.py embeds it), `planted-10` (a draw of accuracy_planted.py, 10 of 130 tiles)
and `few-60-20` (60 slides, 20 % positive, of a kind of accuracy_probabilities.py); the seed is the first one plus the
place in the list. UCSB, planted tiles and feature files are in their first 64 principal components.

    python tests/benchmarks/accuracy/accuracy_defaults.py [--sets musk1,few-60-50] [--seed 200] [--candidates A,B]
    python tests/benchmarks/accuracy/accuracy_defaults.py --report --features DIR --labels TABLE --target COLUMN
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from accuracy_heads import embedded_ucsb
from accuracy_probabilities import KINDS, drawn
from few_patches import tcga
from sklearn.decomposition import PCA
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from mil.cohort.cohort import Cohort, load_cohort
from mil.cohort.splits import Fold, make_folds
from mil.heads.bags import pack
from mil.metrics.bootstrap import PERCENTILES, draw_weights
from mil.metrics.classification import macro_auroc
from mil.run.checkpoint import Checkpoint
from mil.run.ensemble import load_head
from mil.tasks.calibration import calibrated, class_shares, fit_calibration
from mil.training import descent
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from classic_bags import cohort_of, load_bags
from real_data import DATA

CPU = torch.device("cpu")
OUTER, INNER, NEW, DRAWS, COMPONENTS = 5, 3, 500, 2000, 64
EARLIEST = "earliest"  # part of all epochs before which none is kept; no flag of train-mil
CANDIDATES: dict[str, dict[str, object]] = {
    "defaults": {},
    "learning_rate 0.0003": {"learning_rate": 3e-4},
    "learning_rate 0.003": {"learning_rate": 3e-3},
    "weight_decay 0": {"weight_decay": 0.0},
    "weight_decay 0.1": {"weight_decay": 0.1},
    "embed_dim 64": {"embed_dim": 64, "attention_dim": 32},
    "embed_dim 256": {"embed_dim": 256, "attention_dim": 128},
    "earliest 0.05": {EARLIEST: 0.05},
    "earliest 0.5": {EARLIEST: 0.5},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "label_smoothing 0.2": {"label_smoothing": 0.2},
    "epochs 50": {"epochs": 50},
    "epochs 200": {"epochs": 200},
    "batch_slides 2": {"batch_slides": 2},
    "feature_limit 0": {"feature_limit": 0.0},
    "feature_limit 6": {"feature_limit": 6.0},
    "feature_limit 10": {"feature_limit": 10.0},
    "dropout 0": {"dropout": 0.0},
    "dropout 0.5": {"dropout": 0.5},
    "focal": {"loss": "focal"},
    "generalised-cross-entropy": {"loss": "generalised-cross-entropy"},
}
ASKED = list(CANDIDATES)[:11]  # without --candidates
CHOOSING = (
    "few-60-50,few-60-20,few-60-80,tenth-60-50,tenth-60-20,all-60-50,all-60-20,spread-60-50,few-150-20,musk1,"
    "hundredth-40-50"
)
CHOICE = "nested choice"
Judge = Callable[[list[Fold]], list[np.ndarray]]  # probabilities (test, C) of each fold


class Figures(NamedTuple):
    """Of a candidate on a cohort."""

    inner: float  # log loss on inner folds; not a number where there are none
    loss: float  # of the outer test slides
    area: float  # their AUROC


SIGNS = Figures(-1, -1, 1)  # of what is better


def splits(cohort: Cohort, nested: bool = True) -> tuple[list[Fold], list[list[Fold]]]:
    """The outer folds and, for each, its inner folds, or none. A cohort with a split has one outer fold."""

    def parts(among: np.ndarray, count: int, state: int) -> list[np.ndarray]:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=state)
        return [among[test] for _, test in splitter.split(among, cohort.labels[among], cohort.patient_ids[among])]

    everyone, none = np.arange(len(cohort.labels)), np.array([], dtype=np.int64)
    tests = parts(everyone, OUTER, 0) if cohort.splits is None else [np.flatnonzero(cohort.splits == "test")]
    outer, inner = [], []
    for k, test in enumerate(tests):
        train = np.setdiff1d(everyone, test)
        outer.append(Fold(k, 0, k, train, none, test))
        held_out = parts(train, INNER, k + 1) if nested else []
        first = len(tests) + k * INNER  # of one repeat, so that all are trained together
        inner.append([Fold(n, 0, n, np.setdiff1d(train, own), none, own) for n, own in enumerate(held_out, first)])
    return outer, inner


def with_members(cohort: Cohort, fold: Fold, config: TrainConfig) -> Fold:
    """As train-mil parts the training slides of a fold."""
    part = np.full(len(cohort.labels), "", dtype="<U5")
    part[fold.train], part[fold.test] = "train", "test"
    [made] = make_folds(replace(cohort, splits=part), config.split_plan())
    return replace(made, number=fold.number, fold=fold.fold)


def judge(cohort: Cohort, folds: list[Fold], config: TrainConfig) -> list[np.ndarray]:
    """Probabilities (test, C) of each fold, calibrated where its members held slides out."""
    if config.inner_folds:
        folds = [with_members(cohort, fold, config) for fold in folds]
    plan = plan_training(cohort, folds, config, CPU)
    trained = [both for group in plan.groups for both in train_folds(cohort, group, config, CPU, lambda *_: None, plan)]
    said = [answers(checkpoint, cohort, fold.test) for fold, (checkpoint, _) in zip(folds, trained, strict=True)]
    if not config.inner_folds:
        return said
    return [cohort.task.calibrated(p, checkpoint.calibration) for p, (checkpoint, _) in zip(said, trained, strict=True)]


@torch.no_grad()
def answers(checkpoint: Checkpoint, cohort: Cohort, slides: np.ndarray) -> np.ndarray:
    return cohort.task.answers(load_head(checkpoint, CPU)(pack([cohort.features[i] for i in slides])).logits.double())


def candidate(cohort: Cohort, config: TrainConfig, settings: Mapping[str, object]) -> Judge:
    own = {name: value for name, value in settings.items() if name != EARLIEST}
    earliest = settings.get(EARLIEST, descent._EARLIEST)

    def judged(folds: list[Fold]) -> list[np.ndarray]:
        with patch.object(descent, "_EARLIEST", earliest):
            return judge(cohort, folds, replace(config, **own))

    return judged


def calibrated_by(
    cohort: Cohort, folds: list[Fold], said: list[np.ndarray], others: list[list[np.ndarray]]
) -> list[list[np.ndarray]]:
    """Probabilities of `others` after the calibration that what is `said` of the folds' test slides asks for."""
    labels = cohort.labels[np.concatenate([fold.test for fold in folds])]
    shares = class_shares(labels, len(cohort.classes))
    temperature, bias = fit_calibration(np.concatenate(said), labels, shares)
    return [[calibrated(p, temperature, bias) for p in of] for of in others]


def figures(cohort: Cohort, folds: list[Fold], probabilities: list[np.ndarray]) -> tuple[float, float]:
    """Log loss and AUROC of all folds' test slides together."""
    labels = cohort.labels[np.concatenate([fold.test for fold in folds])]
    scores = np.concatenate(probabilities)
    return log_loss(labels, scores), roc_auc_score(labels, scores[:, 1])


def gained(cohort: Cohort, folds: list[Fold], said: list[np.ndarray], before: list[np.ndarray]) -> str:
    """AUROC of the folds' test slides together less that of `before`, paired over patients, with its interval."""
    tested = np.concatenate([fold.test for fold in folds])
    weights = draw_weights(cohort.patient_ids[tested].tolist(), DRAWS, 0)
    now, then = (macro_auroc(np.concatenate(p), cohort.labels[tested], weights, 1) for p in (said, before))
    low, high = np.nanpercentile((now - then)[1:], PERCENTILES)
    return f"{now[0] - then[0]:+.3f} ({low:+.3f} to {high:+.3f})"


def bench(
    name: str, cohort: Cohort, candidates: Mapping[str, Judge], nested: bool = True, calibrate: bool = True
) -> dict[str, Figures]:
    """candidates, `defaults` first. calibrate: what they say is not calibrated yet; asks for nested folds."""
    torch.set_num_threads(1)
    outer, inner = splits(cohort, nested)
    of_outer: dict[str, list[np.ndarray]] = {}
    inner_losses: dict[str, list[float]] = {}
    found = {}
    for label, judged in candidates.items():
        results = judged([*outer, *(fold for own in inner for fold in own)])
        of_outer[label], inner_losses[label], left = results[: len(outer)], [], results[len(outer) :]
        for k, own in enumerate(inner):
            said, left = left[: len(own)], left[len(own) :]
            if calibrate:
                said, [of_outer[label][k]] = calibrated_by(cohort, own, said, [said, [of_outer[label][k]]])
            inner_losses[label].append(figures(cohort, own, said)[0] if own else np.nan)
        found[label] = Figures(float(np.mean(inner_losses[label])), *figures(cohort, outer, of_outer[label]))
        more = gained(cohort, outer, of_outer[label], of_outer["defaults"])
        print(f"{name}, {label}: {told(found[label])}, gained {more}", flush=True)
    if nested:
        names = list(candidates)
        chosen = [names[int(np.argmin([inner_losses[of][k] for of in names]))] for k in range(len(outer))]
        picked = [of_outer[pick][k] for k, pick in enumerate(chosen)]
        found[CHOICE] = Figures(np.nan, *figures(cohort, outer, picked))
        more = gained(cohort, outer, picked, of_outer["defaults"])
        print(f"{name}, {CHOICE}: {told(found[CHOICE])}, gained {more}")
        print(f"{name}, chosen: {', '.join(chosen)}", flush=True)
    return found


def told(found: Figures) -> str:
    return f"inner log loss {found.inner:.3f}; outer log loss {found.loss:.3f}, AUROC {found.area:.3f}"


def over_cohorts(differences: np.ndarray, better: int) -> str:
    """Mean of (n,) with its interval, and how many have the sign of `better`; two cells."""
    weights = draw_weights([str(i) for i in range(len(differences))], DRAWS, 0)
    low, high = np.percentile((weights @ differences)[1:] / len(differences), PERCENTILES)
    return f"{differences.mean():+.4f} ({low:+.4f} to {high:+.4f}) | {(better * differences > 0).sum()}"


def table(found: Mapping[str, Mapping[str, Figures]], names: Sequence[str]) -> None:
    """found: by cohort and candidate; names of candidates, `defaults` first."""
    values = np.array([[of[name] for name in names] for of in found.values()])  # (cohorts, candidates, 3)
    gains = values - values[:, :1]
    shown = [at for at in range(3) if np.isfinite(values[..., at]).all()]
    titles = [("inner log loss", "outer log loss", "outer AUROC")[at] for at in shown]
    print(f"\n{len(found)} cohorts: {', '.join(found)}\n")
    print("| setting |", *(f"{title} | better in |" for title in titles))
    print("| --- |", *("--- | --- |" for _ in titles))
    print("| the defaults |", *(f"{values[:, 0, at].mean():.4f} | |" for at in shown))
    for place, name in enumerate(names[1:], 1):
        print(f"| {name} |", *(f"{over_cohorts(gains[:, place, at], SIGNS[at])} |" for at in shown))
    if 0 in shown:
        print_choices(found, names, gains)


def print_choices(found: Mapping[str, Mapping[str, Figures]], names: Sequence[str], gains: np.ndarray) -> None:
    """What inner losses choose, and what it gains on outer test slides. gains: (cohorts, candidates, 3)."""
    inner = gains[..., 0]
    print(f"\nChosen by the inner losses of all cohorts: {names[int(inner.mean(axis=0).argmin())]}")
    picks = [int(np.delete(inner, c, axis=0).mean(axis=0).argmin()) for c in range(len(found))]
    by_others = np.stack([gains[c, pick] for c, pick in enumerate(picks)])
    own = np.array([np.subtract(of[CHOICE], of["defaults"]) for of in found.values()])
    for how, gain in (("by the other cohorts", by_others), ("within it", own)):
        loss, area = (over_cohorts(gain[:, at], SIGNS[at]) for at in (1, 2))
        print(f"Chosen for each cohort {how}: outer log loss | {loss} | outer AUROC | {area}")
    print(f"By the others: {', '.join(f'{names[pick]} {count} times' for pick, count in Counter(picks).items())}")


def get_cohort(name: str, seed: int) -> Cohort:
    if name in ("musk1", "fox"):
        return load_bags(name)
    if name == "ucsb":
        return in_components(embedded_ucsb())
    kind, number, *percent = name.split("-")
    if kind == "planted":
        bags = tcga.plant(int(number), 130, seed)
        return in_components(cohort_of(bags.labels.tolist(), [x.astype(np.float16) for x in bags.tiles]))
    return drawn(kind, int(number), seed, int(percent[0]) / 100 if percent else 0.5, NEW)


def in_components(cohort: Cohort) -> Cohort:
    sizes = np.cumsum([len(f) for f in cohort.features])[:-1]
    found = PCA(COMPONENTS, random_state=0).fit_transform(np.concatenate([f.float().numpy() for f in cohort.features]))
    parts = np.split((found / found.std()).astype(np.float16), sizes)
    return replace(cohort, features=tuple(torch.from_numpy(part) for part in parts))


def get_cohorts(given: argparse.Namespace) -> Iterator[tuple[str, Cohort]]:
    for place, name in enumerate(filter(None, given.sets.split(","))):
        if name.split("-")[0] in KINDS or DATA.is_dir():
            yield f"{name}/{given.seed + place}" if "-" in name else name, get_cohort(name, given.seed + place)
    if given.features:
        yield given.features.parent.name, in_components(load_cohort(given.features, given.labels, given.target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", default="gated-abmil")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--target", default="label")
    parser.add_argument("--sets", default=CHOOSING)
    parser.add_argument("--seed", type=int, default=200)
    parser.add_argument("--candidates", default=",".join(ASKED), help="the defaults first")
    parser.add_argument("--inner-folds", type=int, default=5)
    parser.add_argument("--report", action="store_true", help="outer folds alone; nothing is chosen")
    given = parser.parse_args()
    if given.report and not given.inner_folds:
        parser.error("--report needs --inner-folds, which calibrate")
    base = TrainConfig(head=given.head, inner_folds=given.inner_folds, val_fraction=0.25 if given.inner_folds else 0.0)
    names, found = given.candidates.split(","), {}
    for name, cohort in get_cohorts(given):
        candidates = {of: candidate(cohort, base, CANDIDATES[of]) for of in names}
        found[name] = bench(name, cohort, candidates, not given.report, not given.inner_folds)
    if len(found) > 1:
        table(found, names)


if __name__ == "__main__":
    main()
