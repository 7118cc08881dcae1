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
@pytest.mark.parametrize("kind", ["trees", "svm", "linear"])
def test_probabilities_are_those_of_scikit_learn(kind, n_classes, monkeypatch):
    monkeypatch.setattr(bag_stats, "KINDS", (kind,))
    monkeypatch.setattr(bag_stats, "_PENALTIES", {"svm": (2.0,), "linear": (0.1,)})
    slides, new = _slides(n_classes=n_classes), _slides(12, n_classes, seed=1)
    head, _ = _fitted(slides, n_classes)
    scaler = StandardScaler().fit(_statistics(head, slides.features))
    x, x_new = (scaler.transform(_statistics(head, s.features)) for s in (slides, new))
    if kind == "trees":
        seed = int(np.random.default_rng(0).integers(1 << 31))
        model = ExtraTreesClassifier(50, class_weight="balanced", random_state=seed).fit(x, slides.labels)
        expected = model.predict_proba(x_new)
    elif kind == "linear":
        model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(x, slides.labels)
        expected = model.predict_proba(x_new)
    else:
        model = OneVsRestClassifier(SVC(C=2.0, class_weight="balanced")).fit(x, slides.labels)
        with torch.no_grad():
            margins = head._margins(torch.from_numpy(x_new).float()).numpy()
        np.testing.assert_allclose(margins.squeeze(), model.decision_function(x_new), atol=1e-5)
        expected = None
    with torch.no_grad():
        got = head(pack(new.features)).logits.exp().numpy()
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    if expected is not None:
        np.testing.assert_allclose(got, np.clip(expected, 1e-6, 1), atol=1e-4)
    assert (got.argmax(1) == new.labels).mean() > 0.6


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
