"""What bag-stats stores says the same as scikit-learn's own classifiers, and chooses without test or validation."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mil.heads.bags import pack
from mil.heads.head import HeadShape, TrainingSlides
from mil.heads.registry import build_head, judges_patches
from mil.heads.zoo import bag_stats
from tiling.jobs.errors import RequestError

D = 5


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    monkeypatch.setattr(bag_stats, "_TREES", 50)


def _slides(n=30, n_classes=2, seed=0, patients=None):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    bags = [torch.from_numpy(rng.normal(size=(rng.integers(1, 9), D))).half() for _ in labels]
    bags = [bag + 0.7 * label for bag, label in zip(bags, labels, strict=True)]
    ids = np.array([f"s{i}" for i in range(n)])
    return TrainingSlides(tuple(bags), labels, ids if patients is None else np.array(patients), ids)


def _fitted(slides, n_classes=2):
    head = build_head("bag-stats", HeadShape(D, n_classes, 8, 4, 0.25)).eval()
    head.mean.copy_(torch.arange(D) / 10)
    head.std.copy_(torch.arange(D) / 10 + 1)
    fitted = head.fit(slides, None, np.random.default_rng(0))
    return head, fitted


def _statistics(head, bags):
    standardised = [((b.float() - head.mean) / head.std).numpy() for b in bags]
    return np.stack([np.concatenate([b.mean(0), b.min(0), b.max(0), b.std(0)]) for b in standardised])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_each_kind_is_that_of_scikit_learn(n_classes, monkeypatch):
    monkeypatch.setattr(bag_stats, "_PENALTIES", {"trees": (0.0,), "svm": (2.0,), "linear": (0.1,)})
    slides, new = _slides(n_classes=n_classes), _slides(12, n_classes, seed=1)
    head, _ = _fitted(slides, n_classes)
    scaler = StandardScaler().fit(_statistics(head, slides.features))
    x, x_new = (scaler.transform(_statistics(head, s.features)) for s in (slides, new))
    seed = int(np.random.default_rng(0).integers(1 << 31))
    trees = ExtraTreesClassifier(50, class_weight="balanced", random_state=seed).fit(x, slides.labels)
    linear = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(x, slides.labels)
    machines = OneVsRestClassifier(SVC(C=2.0, class_weight="balanced")).fit(x, slides.labels)
    with torch.no_grad():
        tensor = torch.from_numpy(x_new).float()
        by_trees, by_svm, by_linear = head._by_kind(tensor)
        margins = head._margins(tensor).numpy()
        got = head(pack(new.features)).logits.exp().numpy()
    np.testing.assert_allclose(by_trees, trees.predict_proba(x_new), atol=1e-4)
    np.testing.assert_allclose(by_linear, linear.predict_proba(x_new), atol=1e-4)
    np.testing.assert_allclose(margins.squeeze(), machines.decision_function(x_new), atol=1e-5)
    assert by_svm.sum(1).numpy() == pytest.approx(1) and got.sum(1) == pytest.approx(1, abs=1e-5)
    each = torch.stack([by_trees, by_svm, by_linear]).clamp_min(1e-6).log()
    weighed = (head.factors[:, None, None] * each).sum(0) + head.offset
    np.testing.assert_allclose(got, weighed.softmax(1), atol=1e-5)
    assert (got.argmax(1) == new.labels).mean() > 0.6


def test_a_kind_that_tells_classes_apart_weighs_more_than_those_that_do_not():
    """Classes differ in spread alone, one in the middle of two others, which no line separates."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 2
    scale = np.where(labels == 1, 1.0, rng.choice([0.3, 3.0], 90))
    bags = tuple(torch.from_numpy(s * rng.normal(size=(30, D))).half() for s in scale)
    ids = np.array([f"s{i}" for i in range(90)])
    head, fitted = _fitted(TrainingSlides(bags, labels, ids, ids))
    x = torch.from_numpy(_statistics(head, bags)).double()
    with torch.no_grad():
        each = (
            torch.stack(head._by_kind(((x - head.centre) / head.scale).float())).clamp(1e-6, 1 - 1e-6).logit()[..., 1]
        )
    trees, _, linear = (head.factors * each.std(1)).tolist()
    assert trees > 10 * linear and fitted.loss < 0.2


def test_packing_changes_nothing_and_nothing_is_said_of_a_patch():
    slides = _slides()
    head, _ = _fitted(slides)
    with torch.no_grad():
        together = head(pack(slides.features[:4]))
        alone = [head(pack([bag])) for bag in slides.features[:4]]
    torch.testing.assert_close(together.logits, torch.cat([a.logits for a in alone]))
    assert together.patch_logits.shape == (sum(map(len, slides.features[:4])), 2) and not judges_patches("bag-stats")
    assert together.patch_logits.isnan().all()
    torch.testing.assert_close(together.attention, torch.cat([a.attention for a in alone]))


def test_the_state_alone_gives_the_same_model():
    slides = _slides()
    head, _ = _fitted(slides)
    again = build_head("bag-stats", HeadShape(D, 2, 8, 4, 0.25))
    again.load_state_dict({name: value.clone() for name, value in head.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(pack(slides.features)).logits, head(pack(slides.features)).logits)


def test_noise_gives_the_loss_of_chance_and_a_signal_a_lower_one():
    slides = _slides(60)
    shuffled = np.random.default_rng(5).permutation(slides.labels)
    _, signal = _fitted(slides)
    _, noise = _fitted(TrainingSlides(slides.features, shuffled, slides.patient_ids, slides.slide_ids))
    assert signal.loss < 0.5 < 0.6 < noise.loss
    assert signal.held_out.exp().sum(1).numpy() == pytest.approx(1)
    assert (signal.held_out.argmax(1).numpy() == slides.labels).mean() > 0.8
    assert (noise.held_out.argmax(1).numpy() == shuffled).mean() < 0.65  # of slides that were fitted to, nearly all


def test_a_class_of_one_patient_is_refused():
    slides = _slides(8, patients=["a", "b", "a", "c", "a", "d", "a", "e"])
    with pytest.raises(RequestError, match="2 training patients of each class, found 1"):
        _fitted(slides)
