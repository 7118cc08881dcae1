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
3. Copied labels train eight small patch networks with generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018),
   noise on the input and strong weight decay. They are cross-fitted by patient: no network scores a slide it has seen.
4. Again and again, in turns on the tenth and on the fiftieth of each slide that scored highest, where positive
   patches are denser. Networks of every stage score all patches; a patch's score is the sum over the last five stages
   in units of their deviation, each older one counting half, and so no patch is lost for good.
5. A slide's score is the mean of its top k patches. After each stage a logistic regression on these gives calibrated
   probabilities and the cross-fitted loss; stage and k are those with the lowest. The first stages often find nothing
   (loss at log 2) and a later one does.

The networks of the cross-fit are kept as an ensemble. All of this applies to two classes.

Seen on fresh seeds of tests/benchmarks/accuracy_needle.py: with 10 positive patches in 5,000 slides are told apart at
AUROC 1.00 and patches at 0.99 from 100 or 30 training slides, which is what the oracle reaches.
"""

import math
from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from torch.nn import functional

from mil.heads.bags import Bags
from mil.heads.head import Fitted, HeadShape, MilOutput, OwnRecipe, TrainingSlides
from tiling.jobs.errors import RequestError

_PROTOTYPES = 64
_PATCHES_A_PROTOTYPE = 1000  # fewer training patches get fewer prototypes, at least one
_ALIGNED_PATCHES = 30_000  # sampled to place prototypes
_ALIGN_STEPS = 10
_ALIGN_SHRINKAGE = 50  # patches; the offset of a slide of N is taken off by the part N / (N + this)
_CLIP = 2.0  # largest factor by which balance changes a weight
_NETWORKS = 8  # parts of the cross-fit
_HIDDEN = 64
_FIRST = (1.0, 800, 2048)  # share of a slide's patches, steps, patches a step
_CYCLE = ((0.1, 1000, 512), (0.02, 600, 512))
_CYCLES = 8  # at most
_PATIENCE = 6  # stages without a lower cross-fitted loss
_FOUND = 0.15  # cross-fitted loss at which little is left to find
_PASSES = 40  # most of a stage over its patches
_FADING = 0.5  # of a stage's part of the patch score with each later stage
_RECENT = 5  # stages that have a part
_KEPT_LEAST = 50  # patches of a slide that enter a stage, if it has them
_LEARNING_RATE, _WEIGHT_DECAY = 3e-3, 1.0
_INPUT_NOISE = 0.75  # in standard deviations within a prototype
_NOISE_POOL = 1 << 22  # values; a step's noise is cut out of them at a random place
_GCE_Q = 0.7  # 0 is cross-entropy, 1 the mean absolute error
_TOP = (1, 2, 3, 5, 10, 20, 50, 100, 300, 1_000_000)
_TRAINING_VALUES = 1 << 30  # most float16 values held for training (2 GiB); beyond it patches are sampled
_SMALLEST_STD = 1e-6


class _Detectors(NamedTuple):
    """M patch networks with one hidden layer of H units; Needle keeps those of all stages side by side as one."""

    hidden: Tensor  # (M, H, D)
    hidden_bias: Tensor  # (M, H)
    out: Tensor  # (M, 1, H)
    out_bias: Tensor  # (M, 1)

    def scores(self, m: int, x: Tensor) -> Tensor:
        """Network m on aligned patches: (N, D) -> (N,)."""
        return _network(x, self.hidden[m], self.hidden_bias[m], self.out[m], self.out_bias[m])


class _Labelled(NamedTuple):
    """The training slides as the cross-fit needs them."""

    ids: NDArray[np.str_]  # (S,)
    labels: NDArray[np.int64]  # (S,) 1 for the positive class
    parts: list[NDArray[np.int64]]  # disjoint, by patient


class _Stage(NamedTuple):
    """Networks whose cross-fitted scores have deviation 1, and these scores."""

    networks: _Detectors
    scores: list[Tensor]  # (N,) of each bag, by a network that did not see the bag


class _Calibration(NamedTuple):
    """Log odds of a slide = slope * mean of the top patch scores + intercept."""

    loss: float
    top: int
    slope: float
    intercept: float


class Needle(OwnRecipe):
    """bags (ΣN, D) -> logits (B, 2), attention (ΣN,), patch_logits (ΣN, 2). ValueError unless C = 2."""

    for_classes_alone = True

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(replace(shape, feature_limit=0.0))  # its unit is a deviation within one tissue, others lie far
        if shape.n_classes != 2:
            raise RequestError(
                f"the head needle tells two classes apart, the target has {shape.n_classes}; take gated-abmil"
            )
        self.register_buffer("prototypes", torch.zeros(_PROTOTYPES, shape.dim_in))
        self.register_buffer("top", torch.ones((), dtype=torch.int64))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # slope and intercept of the positive's log odds
        self.register_buffer("positive", torch.ones((), dtype=torch.int64))
        self.register_buffer("hidden", torch.zeros(1, shape.dim_in))  # (U, D), all units of all networks
        self.register_buffer("hidden_bias", torch.zeros(1))
        self.register_buffer("out", torch.zeros(1, 1))
        self.register_buffer("out_bias", torch.zeros(1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in _Detectors._fields:  # as many units as the stages that were kept
            self.register_buffer(name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

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
    def fit(self, slides: TrainingSlides, positive: int | None, rng: np.random.Generator) -> Fitted:
        """Train on all slides; the loss is their cross-fitted log loss. The same seed gives the same weights.

        RequestError if a class has a single patient, or naming the slides where scores are no longer numbers.
        """
        self.eval()
        broken = [str(i) for i, f in zip(slides.slide_ids, slides.features, strict=True) if not f.isfinite().all()]
        if broken:
            _not_finite(broken)
        positive = 1 if positive is None else positive
        self.get_buffer("positive").fill_(positive)
        labels = (slides.labels == positive).astype(np.int64)
        labelled = _Labelled(slides.slide_ids, labels, _parts(slides, labels, rng))
        self._place_prototypes(slides, rng)
        cap = max(1, _TRAINING_VALUES // (len(labels) * self.get_buffer("mean").numel()))
        bags = [self._aligned(_sample(f, cap, rng).to(self.device)).half() for f in slides.features]
        total = [torch.zeros(len(bag)) for bag in bags]  # patch scores so far
        recent: deque[_Stage] = deque(maxlen=_RECENT)
        best, since, held_out = _Calibration(math.inf, 1, 0.0, 0.0), 0, torch.zeros(len(labels))
        for share, *schedule in (_FIRST, *_CYCLES * _CYCLE):
            kept = [_survivors(scores, share) for scores in total]
            if recent and all(len(i) == len(bag) for i, bag in zip(kept, bags, strict=True)):
                break  # the same patches again would teach the same again
            recent.appendleft(self._cross_fit(bags, kept, labelled, schedule, rng))
            of_bags = zip(*(stage.scores for stage in recent), strict=True)
            total = [sum(_FADING**age * scores for age, scores in enumerate(of_bag)) for of_bag in of_bags]
            fitted = _calibrated(total, labels)
            since += 1
            if fitted.loss < best.loss:
                best, since = fitted, 0
                held_out = best.slope * torch.stack([_top_mean(s, best.top) for s in total]).cpu() + best.intercept
                self._keep([stage.networks for stage in recent], best)
            if best.loss < _FOUND or since == _PATIENCE:
                break
        return Fitted(best.loss, self._two_classes(held_out.double()))

    def _aligned(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D) without the slide's offset, standardised by the deviation within prototypes."""
        x = self.standardise(Bags(features, torch.tensor([0, len(features)])))
        prototypes = self.get_buffer("prototypes")
        return x - _offset(x, prototypes) * (len(x) / (len(x) + _ALIGN_SHRINKAGE))

    def _patch_scores(self, x: Tensor) -> Tensor:
        """Aligned (N, D) -> (N,)"""
        return _network(x, *(self.get_buffer(name) for name in _Detectors._fields))

    def _keep(self, stages: list[_Detectors], calibration: _Calibration) -> None:
        """The sum of the scores of all networks, those of the latest stage first, is one wide network."""
        weights = [_FADING**age / _NETWORKS for age in range(len(stages))]
        self.hidden = torch.cat([n.hidden.flatten(0, 1) for n in stages])
        self.hidden_bias = torch.cat([n.hidden_bias.flatten() for n in stages])
        self.out = torch.cat([w * n.out.flatten() for w, n in zip(weights, stages, strict=True)]).unsqueeze(0)
        self.out_bias = torch.stack([w * n.out_bias.sum() for w, n in zip(weights, stages, strict=True)]).sum(0, True)
        self.get_buffer("top").fill_(calibration.top)
        self.get_buffer("calibration").copy_(torch.tensor([calibration.slope, calibration.intercept]))

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
        bags: list[Tensor],
        kept: list[Tensor],
        slides: _Labelled,
        schedule: list[int],
        rng: np.random.Generator,
    ) -> _Stage:
        """Train one network for each part on the `kept` patches of the other parts; they score all patches."""
        parts = slides.parts
        order = np.concatenate(parts)  # the patches of a part stand together
        ends = np.cumsum([len(kept[i]) for i in order])
        x = torch.cat([bags[i][kept[i].to(bags[i].device)] for i in order])
        y = torch.from_numpy(np.repeat(slides.labels[order], np.diff(ends, prepend=0))).to(x.device)
        bounds = np.r_[0, ends[np.cumsum([len(part) for part in parts]) - 1]]
        held_out = [(bounds[m % len(parts)], bounds[m % len(parts) + 1]) for m in range(_NETWORKS)]
        networks, bad = self._train(x, y, held_out, schedule, rng)
        if len(bad):
            _not_finite(sorted({str(i) for i in slides.ids[order[np.searchsorted(ends, bad, side="right")]]}))
        scores: list[Tensor] = [torch.empty(0)] * len(bags)
        for m, part in enumerate(parts):
            for i in part:
                scores[i] = networks.scores(m, bags[i])
                if not scores[i].isfinite().all():
                    _not_finite([str(slides.ids[i])])
        scale = max(torch.cat(scores).std(correction=0).item(), _SMALLEST_STD)
        scaled = networks._replace(out=networks.out / scale, out_bias=networks.out_bias / scale)
        return _Stage(scaled, [s / scale for s in scores])

    @torch.enable_grad()
    def _train(
        self, x: Tensor, y: Tensor, held_out: list[tuple[int, int]], schedule: list[int], rng: np.random.Generator
    ) -> tuple[_Detectors, NDArray[np.int64]]:
        """Train all networks in one pass, each on all patches but its own held-out rows; and rows that broke it."""
        first = np.array([start for start, _ in held_out])[:, None]
        length = np.array([end - start for start, end in held_out])[:, None]
        seen = len(x) - length  # (M, 1)
        steps, size = schedule
        size = min(size, max(32, int(seen.min()) // 8))
        steps = min(steps, math.ceil(_PASSES * int(seen.max()) / size))
        factor, nearest = self._balance(x, y, held_out)
        networks = _new_detectors(x.shape[1], x.device)
        hidden, hidden_bias, out, out_bias = networks
        optimiser = torch.optim.AdamW(networks, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        shape = (_NETWORKS, size, x.shape[1])
        noise = torch.randn(_NOISE_POOL + math.prod(shape), device=x.device).mul_(_INPUT_NOISE)
        network = torch.arange(_NETWORKS, device=x.device).unsqueeze(1)
        for _ in range(steps):
            drawn = rng.integers(seen, size=(_NETWORKS, size))
            at = torch.from_numpy(drawn + length * (drawn >= first)).to(x.device)  # (M, P)
            start = int(rng.integers(_NOISE_POOL))
            patches = x[at].float() + noise[start : start + math.prod(shape)].view(shape)  # (M, P, D)
            embedded = torch.baddbmm(hidden_bias.unsqueeze(1), patches, hidden.transpose(1, 2)).relu()
            log_odds = torch.baddbmm(out_bias.unsqueeze(1), embedded, out.transpose(1, 2)).squeeze(2)  # (M, P)
            right = torch.where(y[at] > 0, log_odds, -log_odds).sigmoid()
            loss = (factor[network, y[at], nearest[at]] * (1 - right**_GCE_Q) / _GCE_Q).mean(1).sum()
            if not math.isfinite(loss.item()):
                rows: NDArray[np.int64] = at[~right.isfinite()].cpu().numpy()
                return networks, rows
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
        return _Detectors(*(weight.detach() for weight in networks)), np.empty(0, np.int64)

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


def _new_detectors(dim_in: int, device: torch.device) -> _Detectors:
    layers = [(nn.Linear(dim_in, _HIDDEN), nn.Linear(_HIDDEN, 1)) for _ in range(_NETWORKS)]
    weights = ((hidden.weight, hidden.bias, out.weight, out.bias) for hidden, out in layers)
    stacked = (torch.stack(same).detach().to(device).requires_grad_() for same in zip(*weights, strict=True))
    return _Detectors(*stacked)


def _network(x: Tensor, hidden: Tensor, hidden_bias: Tensor, out: Tensor, out_bias: Tensor) -> Tensor:
    """(N, D) -> (N,), in parts that bound memory."""
    units = (functional.linear(part.float(), hidden, hidden_bias).relu() for part in x.split(8192))
    return torch.cat([functional.linear(unit, out, out_bias).squeeze(1) for unit in units])


def _calibrated(scores: list[Tensor], labels: NDArray[np.int64]) -> _Calibration:
    """The number of top patches with the lowest log loss, balanced between classes, of a logistic regression."""
    best = _Calibration(math.log(2), 1, 1e-3, 0.0)  # nothing was learned: all candidates rank slides the wrong way
    largest = max(map(len, scores))
    balanced = np.where(labels == 1, 1 / labels.mean(), 1 / (1 - labels.mean()))
    for top in [k for k in _TOP if k <= largest or k == _TOP[-1]]:
        values = np.array([float(_top_mean(s, top)) for s in scores])
        scale = values.std() or 1.0
        fitted = LogisticRegression(class_weight="balanced").fit((values / scale)[:, None], labels)
        odds = fitted.predict_proba((values / scale)[:, None])
        loss = float(log_loss(labels, odds, sample_weight=balanced))
        slope = float(fitted.coef_[0, 0])
        if slope > 0 and loss < best.loss - 1e-9:
            best = _Calibration(loss, top, slope / scale, float(fitted.intercept_[0]))
    return best


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
