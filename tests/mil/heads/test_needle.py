"""The head needle finds few patches among many through the whole of train-mil, and does so the same way each time."""

import html

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mil.heads.bags import pack
from mil.heads.committee import Committee, joined
from mil.heads.head import HeadShape, TrainingSlides
from mil.heads.registry import build_head
from mil.heads.search import neighbours as by_neighbours
from mil.heads.search import refinement
from mil.heads.search.choice import logistic_regressions
from mil.heads.search.kinds import of_slides
from mil.heads.search.learners import Learners
from mil.heads.search.local_discriminants import _aligned, _negative_means, _without_each_patient, local_discriminants
from mil.heads.search.neighbours import neighbours
from mil.pages.words import found_sentence
from mil.run.attention import attention_path, read_attention
from mil.run.checkpoint import Checkpoint, read_checkpoint
from mil.run.ensemble import load_head
from mil.run.predict import predict_folder
from mil.run.tables import read_metrics
from mil.tasks.classification import Classification
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError


def _slides(count, patches=300, positives=6, shift=0.3, dim=16, seed=0, distance=6.0, kinds=1):
    """Clusters mixed in other proportions in each slide, each slide shifted; the first patches of odd ones are odd."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((5, dim))
    ways = rng.standard_normal((kinds, dim))
    odd = centres[:kinds] + distance * ways / np.linalg.norm(ways, axis=1, keepdims=True)
    features = []
    for i in range(count):
        x = centres[rng.choice(5, patches, p=rng.dirichlet(np.full(5, 2.0)))]
        if i % 2:
            x[:positives] = odd[i // 2 % kinds]
        noise = 0.8 * rng.standard_normal((patches, dim)) + shift * rng.standard_normal(dim)
        features.append(torch.from_numpy(x + noise).half())
    ids = np.array([f"s{i:02d}" for i in range(count)])
    return TrainingSlides(tuple(features), np.arange(count) % 2, ids, ids)


def _fitted(slides, seed=0, positive=1):
    torch.manual_seed(seed)
    head = build_head("needle", HeadShape(slides.features[0].shape[1], 2, 16, 8, 0.25))
    return head, head.fit(slides, positive, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def fitted():
    head, loss = _fitted(_slides(40))
    return head.eval(), loss


@torch.no_grad()
def test_unseen_slides_and_their_patches_are_told_apart(fitted):
    head, result = fitted
    unseen = _slides(60)  # the same tissue: the first 40 are those trained on, the rest are new
    new = slice(40, 60)
    output = head(pack(unseen.features[new]))
    assert roc_auc_score(unseen.labels[new], output.logits[:, 1]) > 0.95
    assert output.logits.softmax(1)[unseen.labels[new] == 1, 1].mean() > 0.6
    of_bags = zip(unseen.labels[new], output.patch_logits[:, 1].split(300), strict=True)
    aurocs = [roc_auc_score(np.arange(300) < 6, of_bag) for label, of_bag in of_bags if label]
    assert np.mean(aurocs) > 0.95
    assert 0 < result.loss < 0.5


@torch.no_grad()
def test_order_of_patches_and_company_of_slides_change_nothing(fitted):
    head, _ = fitted
    a, b = _slides(42, seed=0).features[40:]
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    alone, mixed, shuffled = head(pack([a])), head(pack([b, a])), head(pack([a[order]]))
    torch.testing.assert_close(mixed.logits[1], alone.logits[0])
    torch.testing.assert_close(shuffled.logits, alone.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shuffled.attention, alone.attention[order], rtol=1e-2, atol=1e-5)
    assert alone.attention.min() >= 0
    for of_bag in mixed.attention.split(300):
        assert of_bag.sum().item() == pytest.approx(1, abs=1e-5)


def _three(kinds, positive, count):
    """(3, count) of the last `count` positive slides, 1 where one is of a kind."""
    return np.arange(3)[:, None] == kinds[positive][-count:]


def test_a_patient_left_out_is_as_if_the_patient_were_not_there():
    """What the sums say without a patient's slides, against learning without them; two slides a patient."""
    slides = _slides(24, patches=60)
    x = [torch.nn.functional.normalize(f.float() - f.float().mean(0)) for f in slides.features]
    positive, patient = slides.labels == 1, np.array([f"p{i // 4}{i % 2}" for i in range(24)])
    learners = Learners.cross_fit(positive, patient, [np.arange(8)])
    means, covariance = torch.stack([s.double().mean(0) for s in x]), torch.cat(x).double().T.cov()
    variances, axes = torch.linalg.eigh(covariance)
    guess = {i: np.tile(np.arange(60.0)[::-1], (2, 1)) for i in np.flatnonzero(positive).tolist()}  # the first are best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refinement, "_ROUNDS", 0)
        patch.setattr(refinement, "BEST", (3,))
        kinds = np.arange(24) // 2 % 3
        patch.setattr(refinement, "of_slides", lambda m, _: torch.from_numpy(_three(kinds, positive, len(m))).double())
        search = refinement.Refinement(x.__getitem__, means, variances, axes, learners)
        (of_kinds, directions), said = search.run([guess], np.random.default_rng(0))
        patch.setattr(refinement, "_ROUNDS", 1)
        refined, _ = search.run([guess], np.random.default_rng(0))
    torch.testing.assert_close(refined[:2], torch.stack([of_kinds, directions]))  # candidates beside what follows
    assert len(refined) == 3 and not torch.allclose(refined[2], directions)

    def direction(known, learned_from=12):
        found = torch.cat([x[i][:3].double() for i in np.flatnonzero(known & positive)]).mean(0)
        ridge = 16 / (16 + 3 * learned_from) * covariance.diagonal().mean() * torch.eye(16)
        v = torch.linalg.inv(covariance + ridge) @ (found - means[known & ~positive].mean(0))
        return v / (v @ covariance @ v).sqrt()

    for q, learns in enumerate(learners.learns):
        torch.testing.assert_close(directions[q], direction(learns).expand(3, -1))
        for k in range(3):
            torch.testing.assert_close(of_kinds[q, k], direction(learns & (~positive | (kinds == k)), 4))
        for i in (0, 1, 2, 9, 23):  # of both classes, learned from by both and by the last learner alone
            known = learns & (patient != patient[i])
            each = [direction(known & (~positive | (kinds == k)), 4) for k in range(3)]
            for candidate, of in enumerate((each, [direction(known)])):
                scores = (x[i].double() @ torch.stack(of).T).amax(1)
                expected = [scores.topk(top).values.mean().item() for top in refinement.TOPS]
                np.testing.assert_allclose(said[candidate, q, i], expected, rtol=1e-4)


def test_neighbours_are_asked_in_other_patients_slides_alone():
    """Against a loop, one patch at a time."""
    slides = _slides(12, patches=30)
    x = [f.float() for f in slides.features]
    patient = np.array([f"p{i // 4}{i % 2}" for i in range(12)])
    learners = Learners.cross_fit(slides.labels == 1, patient, [np.array([1, 2])])
    guess = neighbours(x, learners, np.random.default_rng(0))
    assert sorted(guess) == [1, 3, 5, 7, 9, 11]
    for i, q in ((3, 0), (3, 1), (9, 1)):
        others = [j for j in range(12) if learners.learns[q, j] and patient[j] != patient[i]]
        for n in (0, 20):
            near = [min(1 - torch.cosine_similarity(x[i][n], y, dim=0).item() for y in x[j]) for j in others]
            of = [np.log([d for d, j in zip(near, others, strict=True) if j % 2 == c]) for c in (0, 1)]
            t = (of[0].mean() - of[1].mean()) / np.sqrt(of[0].var() / len(of[0]) + of[1].var() / len(of[1]))
            assert guess[i][q, n] == pytest.approx(t, rel=1e-3)


def _guessed(guess, slides, positives):
    """How well the guess tells apart the first patches of positive slides, which are the positive ones."""
    found = [scores[-1] for i, scores in guess.items() if slides.labels[i]]
    return np.mean([roc_auc_score(np.arange(len(scores)) < positives, scores) for scores in found])


def test_neighbours_put_patches_of_the_new_kind_first():
    slides = _slides(60, patches=400, positives=12, shift=0.0)
    learners = Learners.cross_fit(slides.labels == 1, slides.patient_ids, [np.arange(8)])
    guess = neighbours([f.float() for f in slides.features], learners, np.random.default_rng(0))
    assert _guessed(guess, slides, 12) > 0.9


@pytest.mark.parametrize(("distance", "positives", "cells"), [(3.0, 3, 5), (30.0, 40, 6)])
def test_local_discriminants_find_few_that_overlap_and_kinds_with_a_cell_of_their_own(distance, positives, cells):
    slides = _slides(40, patches=400, positives=positives, distance=distance)
    learners = Learners.cross_fit(slides.labels == 1, slides.patient_ids, [])
    x = [f.float() for f in slides.features]
    guess = local_discriminants(x, torch.ones(16), cells, learners, np.random.default_rng(0))
    assert _guessed(guess, slides, positives) > 0.98  # the first are at 0.95 where outlying patches are not asked again


def test_what_shifts_all_patches_of_a_slide_is_taken_off_whatever_tissue_it_has():
    shifts = 0.3 * np.random.default_rng(1).standard_normal((40, 16))
    own = [f.float() for f in _slides(40, shift=0.0).features]
    shifted = [x + torch.from_numpy(by).float() for x, by in zip(own, shifts, strict=True)]
    offsets = torch.stack(_aligned(shifted, 5, np.random.default_rng(0))[0]).numpy() * 350 / 300  # not shrunk
    assert np.abs((offsets - offsets.mean(axis=0)) - (shifts - shifts.mean(axis=0))).mean() < 0.06  # a shift is 0.24


def test_negative_patches_are_where_they_are_expected_as_long_as_there_are_few():
    expected = np.full((1, 2, 3), 7.0)
    sums = np.array([[[0.0, 0, 0, 0], [1000, 2000, 3000, 4000]]])
    np.testing.assert_allclose(_negative_means(sums, expected)[0], [[7, 7, 7], [2, 3, 4]], atol=0.05)


def test_local_discriminants_judge_a_patient_by_what_they_know_of_others():
    patient, half = np.array([f"p{i // 4}{i % 2}" for i in range(12)]), np.arange(12) // 4 % 2
    learners = Learners.cross_fit(np.arange(12) % 2 == 1, patient, [np.array([1, 2])])
    sums = np.random.default_rng(0).standard_normal((12, 2, 3, 5)).astype(np.float32)  # (S, Q, cells, 1 + d)
    for i, known in enumerate(_without_each_patient(sums, half, learners)):
        for q, h, c in np.ndindex(2, 2, 2):
            others = [
                j for j in np.flatnonzero(learners.learns[q] & (patient != patient[i])) if (half[j], j % 2) == (h, c)
            ]
            np.testing.assert_allclose(known[q, h, c], sums[others, q].sum(axis=0), atol=1e-5)


def test_many_patches_are_asked_of_a_part_of_the_slides(monkeypatch):
    slides = _slides(40, patches=100)
    monkeypatch.setattr(by_neighbours, "_PAIRS", 200_000)
    monkeypatch.setattr(by_neighbours, "_REFERENCES", 6)
    learners = Learners.cross_fit(slides.labels == 1, slides.patient_ids, [np.arange(8)])
    guess = neighbours([f.float() for f in slides.features], learners, np.random.default_rng(0))
    assert len(guess) == 4 and set(guess) <= set(np.flatnonzero(slides.labels == 1))
    assert len(_fitted(slides)[1].held_out) == 40


def test_positive_slides_are_divided_by_kind():
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.arange(30) % 3)
    means = 3 * rng.standard_normal((3, 40))[kinds] / 4 + 0.5 * rng.standard_normal((30, 40))
    divided = of_slides(torch.from_numpy(means), 0)
    assert (divided.sum(0) == 1).all() and divided.sum(1).tolist() == [10, 10, 10]
    assert all(len(set(kinds[own == 1])) == 1 for own in divided.numpy())
    assert of_slides(torch.from_numpy(means[:2]), 0).tolist() == [[1, 1]] * 3


@torch.no_grad()
def test_patches_of_kinds_that_take_turns_are_all_found():
    slides = _slides(120, kinds=3)
    known = TrainingSlides(slides.features[:72], slides.labels[:72], slides.patient_ids[:72], slides.slide_ids[:72])
    head, result = _fitted(known)
    output = head.eval()(pack(slides.features[72:]))
    assert roc_auc_score(slides.labels[72:], output.logits[:, 1]) > 0.95
    positive = torch.stack(output.patch_logits[:, 1].split(300))[1::2]
    aurocs = [roc_auc_score(np.tile(np.arange(300) < 6, 8), positive[kind::3].ravel()) for kind in range(3)]
    assert min(aurocs) > 0.95 and result.loss < 0.5


@torch.no_grad()
def test_a_model_with_one_direction_says_what_it_said():
    head = _fitted(_slides(16))[0].eval()
    slides, direction = (
        pack(_slides(16).features),
        torch.from_numpy(np.random.default_rng(0).standard_normal(16)).float(),
    )
    head.get_buffer("directions").copy_(direction)
    earlier = {name: value for name, value in head.state_dict().items() if name != "directions"}
    earlier["direction"] = direction
    alone, member = (build_head("needle", HeadShape(16, 2, 16, 8, 0.25)) for _ in range(2))
    committee = Committee([member], 2)
    alone.load_state_dict(earlier)
    committee.load_state_dict(joined([earlier], torch.ones(1), torch.zeros(2)))
    for restored in (alone, committee):
        torch.testing.assert_close(restored.eval()(slides).logits, head(slides).logits)


def test_shuffled_labels_teach_nothing():
    slides = _slides(40)
    labels = np.random.default_rng(5).permutation(slides.labels)
    head, result = _fitted(TrainingSlides(slides.features, labels, slides.patient_ids, slides.slide_ids))
    assert result.loss > 0.5 and (result.held_out.argmax(1).numpy() == labels).mean() < 0.75
    with torch.no_grad():
        probabilities = head(pack(_slides(60).features[40:])).logits.softmax(1)[:, 1]
    assert probabilities.min() > 0.02 and probabilities.max() < 0.98


def test_the_same_seed_gives_the_same_weights_and_the_positive_class_may_come_first():
    slides = _slides(16)
    a, b = _fitted(slides)[0].state_dict(), _fitted(slides)[0].state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    turned = TrainingSlides(slides.features, 1 - slides.labels, slides.patient_ids, slides.slide_ids)
    head, _ = _fitted(turned, positive=0)
    with torch.no_grad():
        logits = head(pack(slides.features)).logits
        straight = _fitted(slides)[0](pack(slides.features)).logits
    torch.testing.assert_close(straight, logits.flip(1))


def test_what_it_cannot_do_is_said():
    slides = _slides(8)
    with pytest.raises(RequestError, match="two classes apart, the target has 3"):
        build_head("needle", HeadShape(4, 3, 16, 8, 0.0))
    patients = np.where(slides.labels == 1, "p", slides.slide_ids)
    one = TrainingSlides(slides.features, slides.labels, patients, slides.slide_ids)
    with pytest.raises(RequestError, match="2 training patients of each class, found 1"):
        _fitted(one)
    broken = list(slides.features)
    broken[3] = broken[3].clone()
    broken[3][7, 2] = torch.nan
    with pytest.raises(RequestError, match=r"with slides s03;"):
        _fitted(TrainingSlides(tuple(broken), slides.labels, slides.patient_ids, slides.slide_ids))


def test_a_model_of_an_earlier_recipe_is_refused_with_the_remedy():
    shape = {"dim_in": 4, "n_classes": 2, "embed_dim": 8, "attention_dim": 4, "dropout": 0.0}
    of_old = {
        "mean": np.zeros(4, np.float32),
        "std": np.ones(4, np.float32),
        "prototypes": np.zeros((64, 4), np.float32),
    }
    checkpoint = Checkpoint("needle", shape, Classification(("a", "b"), 1), {}, of_old, ("needle",))
    with pytest.raises(RequestError, match=r"--head needle was trained by a recipe that .* train again"):
        load_head(checkpoint, torch.device("cpu"))


def test_from_feature_files_to_predictions(tmp_path, write_features):
    slides = _slides(24, patches=120)
    folder = tmp_path / "features"
    folder.mkdir()
    (tmp_path / "new").mkdir()
    for slide_id, features in zip(slides.slide_ids, slides.features, strict=True):
        write_features(folder, str(slide_id), features.numpy())
    table = tmp_path / "slides.csv"
    names = np.array(["normal", "tumour"])[slides.labels]
    pd.DataFrame({"slide_id": slides.slide_ids, "diagnosis": names}).to_csv(table, index=False)
    config = TrainConfig(head="needle", folds=2, bootstrap=200, device="cpu")
    assert not train_mil(folder, table, "diagnosis", tmp_path / "run", config).unreadable
    said = found_sentence(read_metrics(tmp_path / "run")["found"])
    assert said in html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    slide = read_attention(attention_path(tmp_path / "run", "s01"))
    assert slide.attention.sum() == pytest.approx(1, abs=1e-4) and slide.patch_logits.shape == (120, 2)
    assert read_checkpoint(tmp_path / "run", 0).tensors["directions"].shape == (3, 16)
    for slide_id, features in zip(slides.slide_ids, slides.features, strict=True):  # strangers, for all models
        write_features(tmp_path / "new", f"new-{slide_id}", features.numpy())
    found = predict_folder(tmp_path / "run", tmp_path / "new", {}, "cpu")
    scores = found.table["prob_tumour"]
    assert not found.failures and roc_auc_score(slides.labels, scores) > 0.7  # 9 slides trained each model


def test_regressions_at_once_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = np.arange(48) % 3 == 0
    x = np.stack([rng.standard_normal(48), y + 0.0, 5 * y + rng.standard_normal(48), rng.standard_cauchy(48)], axis=1)
    x = x / x.std(axis=0) + np.array([0, 0, 8, -8])  # top scores lie many deviations from 0
    slopes, intercepts, _ = logistic_regressions(x, y)
    for m, column in enumerate(x.T[..., None]):
        alone = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=1000).fit(column, y)
        assert [slopes[m], intercepts[m]] == pytest.approx([alone.coef_[0, 0], alone.intercept_[0]], abs=1e-3)


def test_the_best_of_many_choices_does_not_flatter_what_is_said_of_noise():
    aurocs = []
    for seed in range(8):
        slides = _slides(30, patches=40, positives=0, seed=seed)
        _, result = _fitted(slides)
        aurocs.append(roc_auc_score(slides.labels, (result.held_out[:, 1] - result.held_out[:, 0]).numpy()))
    assert np.mean(aurocs) < 0.62
