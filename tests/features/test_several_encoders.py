"""Several encoders in one request: the bytes of each alone, decoded once; what they cannot share is refused."""

import json

import pytest

from tiling.store.patches import PatchStore


def files(out):
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.h5"))}


def test_several_encoders_in_one_pass_give_the_bytes_of_each_alone(extract, stores, tmp_path, monkeypatch):
    run = ("--weights", "random", "--device", "cpu", "--precision", "fp32")
    for name in ("resnet18", "timm:test_vit"):
        assert extract(stores, "--out", tmp_path / name, "--encoder", name, *run) == 0
    decoded = []
    read = PatchStore.read
    monkeypatch.setattr(PatchStore, "read", lambda *of: decoded.extend(of[1]) or read(*of))
    both = (stores, "--out", tmp_path / "both", "--encoder", "resnet18,timm:test_vit", *run)
    assert extract(*both) == 0
    assert len(decoded) == 9 + 4 + 2  # once, and the first of each slide for the batch norms of resnet18
    assert sorted(p.name for p in (tmp_path / "both").iterdir() if p.is_dir()) == ["resnet18", "timm-test_vit"]
    for name, folder in (("resnet18", "resnet18"), ("timm:test_vit", "timm-test_vit")):
        assert files(tmp_path / "both" / folder) == files(tmp_path / name)
        assert (tmp_path / "both" / folder / "statistics.json").read_bytes() == (
            tmp_path / name / "statistics.json"
        ).read_bytes()
    (tmp_path / "both/timm-test_vit/b.h5").unlink()
    before = (tmp_path / "both/resnet18/b.h5").stat().st_mtime_ns
    assert extract(*both) == 0  # what is missing of one is made again, and of the other nothing is touched
    assert (tmp_path / "both/resnet18/b.h5").stat().st_mtime_ns == before
    assert files(tmp_path / "both/timm-test_vit") == files(tmp_path / "timm:test_vit")
    assert json.loads((tmp_path / "both/summary.json").read_text())["counts"] == {"done": 1, "skipped": 2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("resnet18, resnet18",), "two of these are one"),
        (("resnet18,resnet34", "--adapt-bn"), "for one encoder"),
        (("resnet18,resnet34", "--weights", "own.pth"), "for one encoder"),
    ],
)
def test_what_several_encoders_cannot_share_is_refused(extract, stores, tmp_path, capsys, given, said):
    assert extract(stores, "--out", tmp_path / "out", "--encoder", *given) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
