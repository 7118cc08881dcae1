"""Few positive patches among thousands: a cascade of patch detectors pre-trained on copied slide labels.

Attention that starts at random averages ten positive patches in five thousand away and gets no gradient from them.
Here every patch first inherits its slide's label, but only as noisy pre-training, never as truth:

1. Alignment. Patches are assigned to shared prototypes (k-means) and the slide's offset, the mean residual to them,
   is taken off, again and again (the idea of Harmony, Korsunsky et al., Nature Methods 2019). Subtracting the slide's
   mean also takes off the mean of its tissue composition, and so leaves an offset of its own: 0.14 where the stain
   put 0.30; alignment leaves 0.01.
2. Balance. Each prototype weighs nearly the same in both classes, so that a chance difference in composition, which
   is larger than the signal, is not learned. A prototype found almost only in one class keeps its signal: weights are
   clipped at a factor of 2.
3. Copied labels train small patch networks with generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018), noise on
   the input and strong weight decay. They are cross-fitted by patient: no network scores a slide it has seen.
4. Twice more, on the tenth and on the fiftieth of each slide that scored highest, where positive patches are denser.
5. The slide's score is the mean of its top k patches; k and the number of stages are those with the lowest
   cross-fitted loss, of a logistic regression that also gives calibrated probabilities.

The networks of the cross-fit are kept as an ensemble. All of this applies to two classes.

Seen: 10 positive patches in 5,000, 100 training slides, slide shift 0.3, one cohort that chose nothing
(tests/benchmarks/accuracy_needle.py): slide AUROC 1.000, patch AUROC 0.989, as the oracle's 1.000 and 1.000. While the
recipe was chosen, one stage alone gave slides 0.89 and two 1.00; with nearer clusters (distance 2.5) one gave 0.67, two
0.77, three 0.91. A positive patch that the first stage leaves out cannot be won back and is ranked low.
"""

import math
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import Bags
from mil.models import HeadShape
from mil.models.head import MilOutput, OwnRecipe, TrainingSlides
from tiling.errors import RequestError

_PROTOTYPES = 64
_PATCHES_A_PROTOTYPE = 1000  # fewer training patches get fewer prototypes, at least one
_ALIGNED_PATCHES = 30_000  # sampled to place prototypes
_ALIGN_STEPS = 10
_ALIGN_SHRINKAGE = 50  # patches; the offset of a slide of N is taken off by the part N / (N + this)
_CLIP = 2.0  # largest factor by which balance changes a weight
_NETWORKS = 4  # parts of the cross-fit
_HIDDEN = 64
_STAGES = ((1.0, 800, 2048), (0.1, 1000, 512), (0.02, 600, 512))  # share of a slide's patches, steps, patches a step
_KEPT_LEAST = 50  # patches of a slide that enter a stage, if it has them
_LEARNING_RATE, _WEIGHT_DECAY = 3e-3, 1.0
_INPUT_NOISE = 0.75  # in standard deviations within a prototype
_NOISE_POOL = 1 << 22  # values; a step's noise is cut out of them at a random place
_GCE_Q = 0.7  # 0 is cross-entropy, 1 the mean absolute error
_TOP = (1, 2, 3, 5, 10, 20, 50, 100, 300, 1_000_000)
_TRAINING_VALUES = 1 << 30  # most float16 values held for training (2 GiB); beyond it patches are sampled
_SMALLEST_STD = 1e-6


class Needle(OwnRecipe):
    """bags (ΣN, D) -> logits (B, 2), attention (ΣN,), patch_logits (ΣN, 2). ValueError unless C = 2."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        if shape.n_classes != 2:
            raise RequestError(
                f"the head needle tells two classes apart, the target has {shape.n_classes}; take gated-abmil"
            )
        self.register_buffer("prototypes", torch.zeros(_PROTOTYPES, shape.dim_in))
        self.register_buffer("top", torch.ones((), dtype=torch.int64))
        self.register_buffer("stages", torch.ones((), dtype=torch.int64))
        self.register_buffer("scales", torch.ones(len(_STAGES)))  # deviation of cross-fitted scores in each stage
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # slope and intercept of the positive's log odds
        self.register_buffer("positive", torch.ones((), dtype=torch.int64))
        self.cascade = nn.ModuleList(nn.ModuleList(_detector(shape.dim_in) for _ in range(_NETWORKS)) for _ in _STAGES)

    def forward(self, bags: Bags) -> MilOutput:
        logits, attention, patch_logits = [], [], []
        slope, intercept = self.get_buffer("calibration")
        for features in bags.features.split(bags.sizes):
            scores = self._patch_scores(self._aligned(features))
            patch = slope * scores + intercept  # (N,)
            logits.append(slope * _top_mean(scores, int(self.get_buffer("top"))) + intercept)
            attention.append((slope.abs() * scores).softmax(0))
            patch_logits.append(patch)
        return MilOutput(
            self._two_classes(torch.stack(logits)), torch.cat(attention), self._two_classes(torch.cat(patch_logits))
        )

    @torch.no_grad()
    def fit(self, slides: TrainingSlides, positive: int | None, rng: np.random.Generator) -> float:
        """Train on all slides; returns their cross-fitted log loss. The same seed gives the same weights.

        RequestError if a class has a single patient, or naming the slides where scores are no longer numbers.
        """
        self.eval()
        broken = [str(i) for i, f in zip(slides.slide_ids, slides.features, strict=True) if not f.isfinite().all()]
        if broken:
            _not_finite(broken)
        positive = 1 if positive is None else positive
        self.get_buffer("positive").fill_(positive)
        labels = (slides.labels == positive).astype(np.int64)
        parts = _parts(slides, labels, rng)
        self._place_prototypes(slides, rng)
        cap = max(1, _TRAINING_VALUES // (len(labels) * self.get_buffer("mean").numel()))
        bags = [self._aligned(_sample(f, cap, rng).to(self.device)).half() for f in slides.features]
        stages: list[list[Tensor]] = []  # of each, the sum of scores so far of each slide's patches
        for number, (share, *schedule) in enumerate(_STAGES):
            kept = [_survivors(s, share) for s in stages[-1]] if stages else [torch.arange(len(bag)) for bag in bags]
            if stages and all(len(i) == len(bag) for i, bag in zip(kept, bags, strict=True)):
                break  # the same patches again would teach the same again
            scores = self._cross_fit(self.cascade[number], bags, kept, labels, parts, slides.slide_ids, schedule, rng)
            scale = torch.cat(scores).std(correction=0).clamp_min(_SMALLEST_STD)
            self.get_buffer("scales")[number] = scale
            before = stages[-1] if stages else [torch.zeros_like(s) for s in scores]
            stages.append([b + s / scale for b, s in zip(before, scores, strict=True)])
        return self._calibrate(stages, labels)

    def _aligned(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D) without the slide's offset, standardised by the deviation within prototypes."""
        x = self.standardise(Bags(features, torch.tensor([0, len(features)])))
        prototypes = self.get_buffer("prototypes")
        return x - _offset(x, prototypes) * (len(x) / (len(x) + _ALIGN_SHRINKAGE))

    def _patch_scores(self, x: Tensor) -> Tensor:
        """Aligned (N, D) -> (N,), the sum over stages of what each says in units of its own deviation."""
        used = zip(self.cascade, self.get_buffer("scales"), strict=True)
        return sum((_ensemble(n, x) / s for n, s in list(used)[: int(self.get_buffer("stages"))]), x.new_zeros(len(x)))

    def _two_classes(self, log_odds: Tensor) -> Tensor:
        """Log odds of the positive class (…,) -> logits (…, 2)."""
        sign = 1.0 if int(self.get_buffer("positive")) == 1 else -1.0
        return torch.stack([-sign * log_odds / 2, sign * log_odds / 2], dim=1)

    def _place_prototypes(self, slides: TrainingSlides, rng: np.random.Generator) -> None:
        """Prototypes and slide offsets in turns, then the deviation within prototypes as the unit of each feature."""
        share = max(10, _ALIGNED_PATCHES // len(slides.features))
        x = [_sample(f, share, rng).to(self.device, torch.float32) for f in slides.features]
        x = [self.standardise(Bags(s, torch.tensor([0, len(s)]))) for s in x]
        shrink = [len(f) / (len(f) + _ALIGN_SHRINKAGE) for f in slides.features]
        k = int(np.clip(sum(map(len, slides.features)) // _PATCHES_A_PROTOTYPE, 1, _PROTOTYPES))
        aligned = [s - c * s.mean(0) for s, c in zip(x, shrink, strict=True)]
        together = torch.cat(aligned)
        k = min(k, len(together))
        means = MiniBatchKMeans(k, batch_size=4096, n_init=1, max_iter=30, random_state=int(rng.integers(1 << 31)))
        prototypes = torch.from_numpy(means.fit(together.cpu().numpy()).cluster_centers_).to(together)
        for _ in range(2 * _ALIGN_STEPS):
            aligned = [s - c * _offset(s, prototypes) for s, c in zip(x, shrink, strict=True)]
            together = torch.cat(aligned)
            nearest = _nearest(together, prototypes)
            one_hot = functional.one_hot(nearest, k).to(together.dtype)
            counts = one_hot.sum(0).unsqueeze(1)
            prototypes = torch.where(counts > 0, one_hot.T @ together / counts.clamp_min(1), prototypes)
        within = (together - prototypes[_nearest(together, prototypes)]).std(0, correction=0)
        within = torch.where(within > _SMALLEST_STD, within, 1.0)
        self.get_buffer("std").mul_(within)
        padding = prototypes[:1].expand(_PROTOTYPES - k, -1)
        self.get_buffer("prototypes").copy_(torch.cat([prototypes, padding]) / within)

    def _cross_fit(
        self,
        networks: nn.Module,
        bags: list[Tensor],
        kept: list[Tensor],
        labels: NDArray[np.int64],
        parts: list[NDArray[np.int64]],
        slide_ids: NDArray[np.str_],
        schedule: list[int],
        rng: np.random.Generator,
    ) -> list[Tensor]:
        """Train one network for each part on the `kept` patches of the other parts.

        Returns scores (N,) of all patches of each bag by a network that did not see the bag.
        """
        order = np.concatenate(parts)  # the patches of a part stand together
        ends = np.cumsum([len(kept[i]) for i in order])
        x = torch.cat([bags[i][kept[i].to(bags[i].device)] for i in order])
        y = torch.from_numpy(np.repeat(labels[order], np.diff(ends, prepend=0))).to(x.device)
        bounds = np.r_[0, ends[np.cumsum([len(part) for part in parts]) - 1]]
        held_out = [(bounds[m % len(parts)], bounds[m % len(parts) + 1]) for m in range(_NETWORKS)]
        bad = self._train(list(networks.children()), x, y, held_out, schedule, rng)
        if len(bad):
            _not_finite(sorted({str(i) for i in slide_ids[order[np.searchsorted(ends, bad, side="right")]]}))
        scores: list[Tensor] = [torch.empty(0)] * len(bags)
        for network, part in zip(networks.children(), parts, strict=False):
            for i in part:
                scores[i] = _score(network, bags[i])
                if not scores[i].isfinite().all():
                    _not_finite([str(slide_ids[i])])
        return scores

    @torch.enable_grad()
    def _train(
        self,
        networks: list[nn.Module],
        x: Tensor,
        y: Tensor,
        held_out: list[tuple[int, int]],
        schedule: list[int],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Train all networks in one pass, each on all patches but its own held-out rows; rows that break it, if any."""
        first = np.array([start for start, _ in held_out])[:, None]
        length = np.array([end - start for start, end in held_out])[:, None]
        seen = len(x) - length  # (M, 1)
        steps, size = schedule
        size = min(size, max(32, int(seen.min()) // 8))
        factor, nearest = self._balance(x, y, held_out)
        weights = [nn.Parameter(torch.stack(same).detach()) for same in zip(*(n.parameters() for n in networks))]
        hidden, hidden_bias, out, out_bias = weights
        optimiser = torch.optim.AdamW(weights, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        shape = (len(networks), size, x.shape[1])
        noise = torch.randn(_NOISE_POOL + math.prod(shape), device=x.device).mul_(_INPUT_NOISE)
        network = torch.arange(len(networks), device=x.device).unsqueeze(1)
        for _ in range(steps):
            drawn = rng.integers(seen, size=(len(networks), size))
            at = torch.from_numpy(drawn + length * (drawn >= first)).to(x.device)  # (M, P)
            start = int(rng.integers(_NOISE_POOL))
            patches = x[at].float() + noise[start : start + math.prod(shape)].view(shape)  # (M, P, D)
            embedded = torch.baddbmm(hidden_bias.unsqueeze(1), patches, hidden.transpose(1, 2)).relu()
            log_odds = torch.baddbmm(out_bias.unsqueeze(1), embedded, out.transpose(1, 2)).squeeze(2)  # (M, P)
            right = torch.where(y[at] > 0, log_odds, -log_odds).sigmoid()
            loss = (factor[network, y[at], nearest[at]] * (1 - right**_GCE_Q) / _GCE_Q).mean(1).sum()
            if not math.isfinite(loss.item()):
                rows: NDArray[np.int64] = at[~right.isfinite()].cpu().numpy()
                return rows
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
        with torch.no_grad():
            for same, stacked in zip(zip(*(n.parameters() for n in networks)), weights, strict=True):
                for parameter, value in zip(same, stacked, strict=True):
                    parameter.copy_(value)
        return np.empty(0, np.int64)

    @torch.no_grad()
    def _balance(self, x: Tensor, y: Tensor, held_out: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Weights (M, 2, prototypes) with which both classes weigh the same to each network, and nearly the same in
        each prototype; the nearest prototype (N,)."""
        nearest = torch.cat([_nearest(chunk.float(), self.get_buffer("prototypes")) for chunk in x.split(8192)])
        cell = y * _PROTOTYPES + nearest
        everything = torch.bincount(cell, minlength=2 * _PROTOTYPES)
        own = torch.stack([torch.bincount(cell[a:b], minlength=2 * _PROTOTYPES) for a, b in held_out])
        counts = (everything - own).float().view(-1, 2, _PROTOTYPES)
        totals = counts.sum(2, keepdim=True)
        shares = (counts + 1) / totals
        factor = (shares.mean(1, keepdim=True) / shares).clamp(1 / _CLIP, _CLIP)
        return factor * totals.sum(1, keepdim=True) / (2 * totals), nearest

    def _calibrate(self, stages: list[list[Tensor]], labels: NDArray[np.int64]) -> float:
        best = (math.inf, 1, 1, 1.0, 0.0)
        largest = max(len(s) for s in stages[0])
        for number, scores in enumerate(stages, start=1):
            for top in [k for k in _TOP if k <= largest or k == _TOP[-1]]:
                values = np.array([float(_top_mean(s, top)) for s in scores])
                scale = values.std() or 1.0
                fitted = LogisticRegression(class_weight="balanced").fit((values / scale)[:, None], labels)
                balanced = np.where(labels == 1, 1 / labels.mean(), 1 / (1 - labels.mean()))
                odds = fitted.predict_proba((values / scale)[:, None])
                loss = float(log_loss(labels, odds, sample_weight=balanced))
                slope = float(fitted.coef_[0, 0])
                if slope > 0 and loss < best[0] - 1e-9:
                    best = (loss, number, top, slope / scale, float(fitted.intercept_[0]))
        loss, number, top, slope, intercept = best
        if math.isinf(loss):  # nothing was learned: every candidate ranks slides the wrong way round
            loss, slope = math.log(2), 1e-3
        self.get_buffer("stages").fill_(number)
        self.get_buffer("top").fill_(top)
        self.get_buffer("calibration").copy_(torch.tensor([slope, intercept]))
        return loss


def _detector(dim_in: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))


def _score(network: nn.Module, x: Tensor) -> Tensor:
    """(N, D) -> (N,)"""
    return torch.cat([network(chunk.float()).squeeze(1) for chunk in x.split(8192)])


def _ensemble(networks: nn.Module, x: Tensor) -> Tensor:
    """The mean over networks: (N, D) -> (N,)."""
    return torch.stack([_score(network, x) for network in networks.children()]).mean(0)


def _survivors(scores: Tensor, share: float) -> Tensor:
    """Indices, rising, of the patches that enter the next stage."""
    kept = min(len(scores), max(_KEPT_LEAST, round(share * len(scores))))
    return scores.topk(kept).indices.sort().values


def _top_mean(scores: Tensor, top: int) -> Tensor:
    return scores.topk(min(top, len(scores))).values.mean()


def _nearest(x: Tensor, prototypes: Tensor) -> Tensor:
    """Index (N,) of the nearest prototype."""
    return (prototypes.square().sum(1) - 2 * x @ prototypes.T).argmin(1)


def _offset(x: Tensor, prototypes: Tensor) -> Tensor:
    """(N, D) -> (D,), what to take off a slide so that its patches lie around the prototypes."""
    mean = offset = x.mean(0)
    norms, products = prototypes.square().sum(1), x @ prototypes.T
    for _ in range(_ALIGN_STEPS):
        nearest = (norms + 2 * prototypes @ offset - 2 * products).argmin(1)  # of x - offset
        of_prototype = torch.bincount(nearest, minlength=len(prototypes)).to(x.dtype)
        offset = mean - of_prototype @ prototypes / len(x)
    return offset


def _sample(features: Tensor, most: int, rng: np.random.Generator) -> Tensor:
    if len(features) <= most:
        return features
    return features[torch.from_numpy(np.sort(rng.choice(len(features), most, replace=False)))]


def _parts(slides: TrainingSlides, labels: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Disjoint parts of the slides, by patient and stratified."""
    fewest = min(len(set(slides.patient_ids[labels == c])) for c in (0, 1))
    if fewest < 2:
        raise RequestError(
            f"the head needle scores slides by networks that have not seen their patient and needs 2 training patients "
            f"of each class, found {fewest}; add patients, use fewer folds, or take gated-abmil"
        )
    splitter = StratifiedGroupKFold(min(_NETWORKS, fewest), shuffle=True, random_state=int(rng.integers(1 << 31)))
    return [held_out for _, held_out in splitter.split(labels, labels, slides.patient_ids)]


def _not_finite(slide_ids: list[str]) -> NoReturn:
    raise RequestError(
        f"features or patch scores are not numbers, with slides {', '.join(slide_ids)}; look at their features"
    )


def build(shape: HeadShape) -> Needle:
    return Needle(shape)
