"""Copied labels are held against MIL, without choosing the better head on the slides that judge."""

from dataclasses import replace

import pytest

from mil.diagnosis.findings import copied_labels
from mil.metrics.difference import Difference

NONE = Difference(0.01, -0.03, 0.05, 0.5, None)


def _judged(gains, unlike=""):
    return copied_labels._judge(gains, copied_labels._corrected(gains), unlike)


def test_copied_labels_are_held_against_mil(build, monkeypatch):
    monkeypatch.setattr(copied_labels, "_STEPS", 60)
    inputs = build("rare", witness=0.2, patches=40)
    found = copied_labels.find(replace(inputs, folds=inputs.folds[:2]))
    assert found.numbers["gated-abmil: AUROC of slides"]["value"] > 0.8
    gains = [of for name, of in found.numbers.items() if "less patch-label-copy" in name]
    assert any(f"p = {of['p']:.3f})" in found.verdict for of in gains)  # one p in the sentence and on the card
    patch = found.numbers["patch-label-copy: accuracy of patches, by copied labels"]["value"]
    assert 0.45 < patch < 0.75  # four in five copied labels of tumour slides are wrong
    assert found.numbers["patches of tumour slides that are unlike others, at least (95 % sure)"]["value"] < 0.2


@pytest.mark.parametrize(
    ("second", "severity", "said"),
    [
        (Difference(0.10, 0.02, 0.20, 0.01, None), "look", "gated-abmil +0.10 (+0.02 to +0.20; p = 0.020)"),
        (Difference(0.10, 0.01, 0.20, 0.03, None), "fine", "not shown to do better"),  # sure if it were tested alone
        (Difference(0.01, 0.005, 0.02, 0.001, None), "fine", "not shown to do better"),  # sure and of no use
    ],
)
def test_two_heads_are_tested_and_p_is_corrected_for_both(second, severity, said):
    found = _judged({"mean": NONE, "gated-abmil": second}, " Words.")
    assert found[0] == severity and said in found[1] and found[1].endswith(". Words.")


def test_a_tie_of_both_heads_below_copied_labels_is_said():
    worse = Difference(-0.1, -0.2, -0.05, 0.01, None)
    assert "Copied labels do better" in _judged({"mean": worse, "gated-abmil": worse})[1]
    assert "not shown" in _judged({"mean": NONE, "gated-abmil": worse})[1]
