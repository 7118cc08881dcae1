"""`from features import extract, read, convert`: the commands in Python, without their terminal and their traces."""

import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from features import FeatureConfig, RequestError, SlideError, convert, extract, read
from features.encoders import load_encoder
from features.statistics.adapted_norms import ADAPTED, FILE, adapt, read_norms

SETTINGS = FeatureConfig(encoder="resnet18", weights="random", device="cpu", precision="fp32")


@pytest.fixture
def stores(make_store, tissue, tmp_path):
    """A folder with two stores of 5 and 3 patches of 64 px."""
    for name, count in (("a", 5), ("b", 3)):
        make_store(tmp_path / "patches", name, tissue(count, 64, seed=count))
    return tmp_path / "patches"


@pytest.fixture
def other_settings():
    """Settings of torch that are not its defaults, as a notebook may have made them."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic, torch.get_num_threads()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.deterministic = False
    torch.set_num_threads(2)
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.deterministic = before[1]
    torch.set_num_threads(before[2])


def state():
    """What a call must leave as it was."""
    cudnn = torch.backends.cudnn
    return {
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "errors": np.geterr(),
    }


@pytest.mark.usefixtures("other_settings")
def test_twice_in_one_process_with_the_output_replaced_in_between(stores, tmp_path, capfd):
    before = state()
    seen = []
    first = extract(stores, tmp_path / "out", SETTINGS, on_outcome=lambda *told: seen.append(told))
    assert first.counts == {"done": 2} and first.patches == 8
    assert {told[0] for told in seen} == set(first) and [told[1:] for told in seen] == [(1, 2), (2, 2)]
    one = read(tmp_path / "out/a.h5")
    assert one.features.shape == (5, 512) and one.info.precision == "fp32"
    refused = extract(str(stores), str(tmp_path / "out"), SETTINGS, seed=1)
    assert refused.counts == {"failed": 2} and "weights_sha256" in refused.failed[0].reason
    assert extract(stores, tmp_path / "out", SETTINGS, seed=1, overwrite=True).counts == {"done": 2}
    assert not np.array_equal(read(str(tmp_path / "out/a.h5")).features, one.features)
    assert extract(stores, tmp_path / "out", SETTINGS, overwrite=True).counts == {"done": 2}
    assert np.array_equal(read(tmp_path / "out/a.h5").features, one.features)
    assert state() == before and capfd.readouterr() == ("", "")


def test_the_second_call_embeds_with_batch_norms_of_its_own_slides(stores, make_store, tissue, tmp_path):
    """The same settings and the same files, of which the second call writes others."""
    out = tmp_path / "out"
    extract(stores, out, SETTINGS, adapt_bn=True, overwrite=True)
    first = read(out / "a.h5").info.weights_sha256
    for name in ("a", "b"):
        make_store(stores, name, tissue(4, 64, seed=9) // 3)
    assert extract(stores, out, SETTINGS, adapt_bn=True, overwrite=True).counts == {"done": 2}
    info = read(out / "a.h5").info
    assert info.weights.endswith(ADAPTED) and info.weights_sha256 != first
    assert info.weights_sha256 == adapt(load_encoder("resnet18", "random"), read_norms(out / FILE)).weights_sha256
    for part in ("1/2", "2/2"):  # the parts of one run have one network
        os.utime(out / FILE, (1e9, 1e9))
        assert extract(stores, out, SETTINGS, adapt_bn=True, overwrite=True, part=part).counts == {"done": 1}
        assert (out / FILE).stat().st_mtime == 1e9 and read(out / "a.h5").info.weights_sha256 == info.weights_sha256


def test_a_data_frame_or_a_file_picks_slides(stores, tmp_path):
    frame = pd.DataFrame({"slide_id": ["b", "untiled"], "label": [1, 0]})
    frame.to_csv(tmp_path / "slides.csv", index=False)
    for name, table in (("frame", frame), ("path", tmp_path / "slides.csv"), ("text", str(tmp_path / "slides.csv"))):
        outcomes = extract(stores, tmp_path / name, SETTINGS, table)
        assert {o.slide_id: o.status for o in outcomes} == {"b": "done", "untiled": "failed"}


def test_a_wrong_request_raises_what_the_command_says(stores, tmp_path):
    wrong = {
        "no such encoder; close to it are resnet50": (stores, {"encoder": "resnet51"}),
        "--batch-size is 0": (stores, {"batch_size": 0}),
        "colour": (stores, {"colour": "red"}),
        "no such folder; expected the --out folder of tile-slides": (tmp_path / "none", {}),
        "--part 3/2": (stores, {"part": "3/2"}),
    }
    for said, (folder, given) in wrong.items():
        with pytest.raises(RequestError, match=said):
            extract(folder, tmp_path / "out", SETTINGS, **given)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SlideError, match=r"none\.h5: no such feature file"):
        read(tmp_path / "none.h5")


def test_parts_are_those_of_the_command(stores, tmp_path):
    ended = [extract(stores, tmp_path / "out", SETTINGS, part=f"{i}/2") for i in (1, 2)]
    assert sorted(o.slide_id for part in ended for o in part) == ["a", "b"] and all(len(part) == 1 for part in ended)


def test_features_in_anothers_layout_and_back(stores, tmp_path):
    extract(stores, tmp_path / "ours", SETTINGS)
    assert convert(tmp_path / "ours", tmp_path / "clam", "clam").counts == {"done": 2}
    ours, theirs = read(tmp_path / "ours/a.h5"), read(tmp_path / "clam/h5_files/a.h5")
    assert np.array_equal(ours.features, theirs.features) and ours.info == theirs.info
    only = pd.DataFrame({"slide_id": ["b"]})
    assert [o.slide_id for o in convert(tmp_path / "clam", tmp_path / "back", "slidemil", slides=only)] == ["b"]
    parts = [convert(tmp_path / "ours", tmp_path / "parts", "stamp", part=f"{i}/2") for i in (1, 2)]
    assert [len(part) for part in parts] == [1, 1]
    assert {path.name for path in (tmp_path / "parts").glob("*.json")} == {"summary-1-of-2.json", "summary-2-of-2.json"}


def test_the_package_alone_loads_nothing_heavy_and_is_not_a_users_folder(tmp_path):
    for folder in ("features", "tiling", "mil"):  # as the README names what extract-features writes
        (tmp_path / folder).mkdir()
    code = "import sys, features; print(sorted({'torch', 'h5py', 'numpy', 'pandas', 'zarr'} & set(sys.modules)))"
    code += "; from features import extract; print(callable(extract), 'torch' in sys.modules)"
    code += "; import tiling.api, mil.api"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines() == ["[]", "True True"]
