"""CLAM's files: what its training reads of ours, and what its files say and do not say."""

import math
import pickle
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import torch
from foreign_features import as_clam, as_clam_patches, made, ours, reasons, statuses

from features.feature_file import UNKNOWN, read_embeddings
from features.interop.reader import LAYOUTS, open_features


def test_what_clam_reads(convert, tmp_path):
    embeddings = ours(tmp_path / "ours", "s")
    assert convert(tmp_path / "ours", "--to", "clam", "--out", tmp_path / "out") == 0
    tensor = torch.load(tmp_path / "out/pt_files/s.pt", weights_only=True)
    assert tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), embeddings.features)
    with h5py.File(tmp_path / "out/h5_files/s.h5") as file:
        assert file["features"].dtype == np.float32 and np.array_equal(file["features"][:], embeddings.features)
        assert file["coords"].dtype == np.int32 and np.array_equal(file["coords"][:], embeddings.coords_l0)


def test_clam_with_flags_and_without(convert, tmp_path):
    embeddings = made(dtype=np.float32)
    as_clam(tmp_path / "clam", "s", embeddings.features, embeddings.coords_l0)
    assert convert(tmp_path / "clam", "--to", "slidemil", "--out", tmp_path / "out") == 1
    assert reasons(tmp_path / "out")["s"].endswith(
        "slidemil needs what this clam file does not say: encoder, patch_size_px, patch_size_l0, overlap_px, width_l0, "
        "height_l0, mpp_l0; give --encoder, --patch-px, --patch-size-l0 (or --patch-um), --overlap-px, --width-l0 "
        "(or a table with `path`: --slides), --height-l0 (or a table with `path`: --slides), --mpp-l0 (or a table with "
        "`mpp`: --slides)"
    )
    flags = ["--encoder", "uni", "--patch-px", 256, "--patch-size-l0", 512, "--overlap-px", 0, "--width-l0", 90_000]
    flags += ["--height-l0", 70_000, "--mpp-l0", 0.25]
    assert convert(tmp_path / "clam", "--to", "slidemil", "--out", tmp_path / "out", *flags) == 0
    found = read_embeddings(tmp_path / "out/s.h5")
    assert np.array_equal(found.features, embeddings.features) and found.features.dtype == np.float32
    assert np.array_equal(found.coords_l0, embeddings.coords_l0)
    digest = found.info.store_digest
    assert digest.startswith("clam:") and len(digest) == 5 + 64
    assert asdict(found.info) == dict(
        slide_id="s", store_digest=digest, encoder="uni", weights=UNKNOWN, weights_sha256=UNKNOWN, input_px=0,
        normalisation=UNKNOWN, precision=UNKNOWN, resizing=UNKNOWN, decoder=UNKNOWN, engine=UNKNOWN,
        patch_size_px=256, patch_size_l0=512, overlap_px=0, width_l0=90_000,
        height_l0=70_000, mpp_l0=0.25, mpp=0.5, slide_fingerprint="", calibration="",
    )  # fmt: skip
    unscaled = [*flags[:-1], "none"]
    assert convert(tmp_path / "clam", "--to", "slidemil", "--out", tmp_path / "unscaled", *unscaled) == 0
    assert math.isnan(read_embeddings(tmp_path / "unscaled/s.h5").info.mpp)


def test_clams_patching_files_know_the_patch_size(convert, tmp_path):
    embeddings = made(dtype=np.float32)
    as_clam(tmp_path / "clam", "s", embeddings.features, embeddings.coords_l0)
    flags = ["--to", "slidemil", "--encoder", "uni", "--overlap-px", 0, "--mpp-l0", 0.25]
    as_clam_patches(tmp_path / "p0", "s", embeddings.coords_l0)
    assert convert(tmp_path / "clam", "--out", tmp_path / "a", "--clam-patches", tmp_path / "p0", *flags) == 0
    info = read_embeddings(tmp_path / "a/s.h5").info
    assert (info.patch_size_px, info.patch_size_l0, info.width_l0, info.mpp) == (256, 256, 90_000, 0.25)
    as_clam_patches(tmp_path / "p1", "s", embeddings.coords_l0, level=1)  # its size is that of level 1: asked for
    there = ["--clam-patches", tmp_path / "p1", *flags]
    assert convert(tmp_path / "clam", "--out", tmp_path / "b", *there) == 1
    assert "does not say: width_l0, height_l0; give" in reasons(tmp_path / "b")["s"]
    assert convert(tmp_path / "clam", "--out", tmp_path / "b", *there, "--width-l0", 90_000, "--height-l0", 70_000) == 0
    assert read_embeddings(tmp_path / "b/s.h5").info.patch_size_l0 == 1024
    as_clam_patches(tmp_path / "p2", "s", embeddings.coords_l0[::-1])
    assert convert(tmp_path / "clam", "--out", tmp_path / "c", "--clam-patches", tmp_path / "p2", *flags) == 1
    assert "its coordinates are not those of" in reasons(tmp_path / "c")["s"]


def test_tensors_alone_need_the_patching_files_and_never_run_code(convert, tmp_path):
    embeddings = made(dtype=np.float32)
    as_clam(tmp_path / "clam", "s", embeddings.features, embeddings.coords_l0).unlink()
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (mark,))

    (tmp_path / "clam/pt_files/evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"features": Evil()}, tmp_path / "clam/pt_files/evil2.pt")
    torch.save([1], tmp_path / "clam/pt_files/list.pt")
    (tmp_path / "clam/pt_files/cut.pt").write_bytes((tmp_path / "clam/pt_files/s.pt").read_bytes()[:300])
    as_clam_patches(tmp_path / "p", "s", embeddings.coords_l0)
    arguments = ["--to", "clam", "--out", tmp_path / "out"]
    assert convert(tmp_path / "clam", *arguments) == 1
    assert "holds no coordinates; convert it with convert-features --clam-patches" in reasons(tmp_path / "out")["s"]
    assert convert(tmp_path / "clam", *arguments, "--clam-patches", tmp_path / "p") == 1
    assert statuses(tmp_path / "out") == {n: "failed" for n in ("cut", "evil", "evil2", "list")} | {"s": "done"}
    found = reasons(tmp_path / "out")
    assert "holds list, expected one tensor" in found["list"] and "could run code" in found["evil2"]
    assert not mark.exists()
    assert np.array_equal(open_features(tmp_path / "out").read("s").coords_l0, embeddings.coords_l0)


def test_changed_features_keep_their_own_type(tmp_path):
    """What came from our float16 and was changed by others is not pressed into float16 again."""
    LAYOUTS["clam"].write(tmp_path / "h5_files/s.h5", made(slide_id="s"))
    assert open_features(tmp_path).read("s").features.dtype == np.float16
    with h5py.File(tmp_path / "h5_files/s.h5", "a") as file:
        file["features"][0, 0] = np.float32(1 / 3)
    found = open_features(tmp_path).read("s").features
    assert found.dtype == np.float32 and found[0, 0] == np.float32(1 / 3)


def test_clams_two_files_belong_together(convert, tmp_path):
    for name in ("a", "b"):
        ours(tmp_path / "ours", name)
    flags = [tmp_path / "ours", "--to", "clam", "--out", tmp_path / "out"]
    assert convert(*flags) == 0
    (tmp_path / "out/pt_files/a.pt").unlink()
    torch.save(torch.ones(5, 4), tmp_path / "out/pt_files/b.pt")
    assert convert(*flags) == 1
    found = reasons(tmp_path / "out")
    assert "a.pt is missing" in found["a"] and "b.pt: other values" in found["b"]
    assert convert(*flags, "--overwrite") == 0 and convert(*flags) == 0
    assert statuses(tmp_path / "out") == {"a": "skipped", "b": "skipped"}
