"""Objects are put whole, on their condition, and each fault of a store is told with its remedy."""

import os
import pickle

import pytest

from tiling.jobs.errors import RequestError, SlideError
from tiling.objects import folder as module
from tiling.objects.folder import ABSENT, Taken, folder_at, local_folder


@pytest.fixture
def folder(objects, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    return folder_at(objects.place)


@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_a_put_takes_the_place_of_what_was_expected_alone(folder):
    first = folder.put("a b [é#%].h5", b"1", ABSENT)
    with pytest.raises(Taken):
        folder.put("a b [é#%].h5", b"2", ABSENT)
    second = folder.put("a b [é#%].h5", b"3", first)
    folder.require_writable()
    for stale in (first, ABSENT):
        with pytest.raises(Taken):
            folder.put("a b [é#%].h5", b"4", stale)
    with pytest.raises(Taken):
        folder.put("absent", b"4", second)
    assert folder.read("a b [é#%].h5")[0] == b"3" and folder.find("absent") is None and folder.read("absent") is None
    folder.put("below/c", b"5")
    assert folder.names() == (["below"], ["a b [é#%].h5"])
    assert set(pickle.loads(pickle.dumps(folder)).files()) == {"a b [é#%].h5", "below/c"}
    folder.delete(["below/c", "absent"])
    assert folder.files("below") == {}


@pytest.mark.parametrize("fault", [503, "cut", "lost"])
def test_what_passes_is_tried_again(folder, objects, fault):
    data = os.urandom(300_000)
    objects.faults = {("PUT", "k"): [fault, fault], ("GET", "k"): [fault if fault == 503 else "cut"]}
    folder.put("k", data, ABSENT)  # also where the first try was done and its answer lost
    assert folder.read("k")[0] == data and folder.read("k", 1000)[0] == data[:1000]
    assert objects.count("PUT", "k") > 1 and not any(objects.faults.values())


def test_a_fault_that_stays_is_told_with_its_remedy(folder, objects, monkeypatch):
    objects.faults = {("PUT", "k"): [503] * 9}
    with pytest.raises(SlideError, match=r"/k: the store cannot serve it now \(503 SlowDown\), also after 9 tries"):
        folder.put("k", b"1")
    objects.faults = {("PUT", "k"): [507] * 9}
    with pytest.raises(RequestError, match=r"the store is full.*make room or raise its quota, then run"):
        folder.put("k", b"1")
    objects.faults = {("PUT", "k"): [403]}
    with pytest.raises(RequestError, match=r"refuses it \(403 AccessDenied\).*get, put, delete and list.*AWS_ACCESS"):
        folder.put("k", b"1")
    with pytest.raises(RequestError, match=r"s3://nobucket/x: there is no such bucket \(404 NoSuchBucket\); make it"):
        folder_at("s3://nobucket/x/").require_writable()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(RequestError, match="cannot be reached, or broke off"):
        folder_at("s3://unreachable/x").require_writable()
    said = folder._fault("k", "Error performing PUT http://169.254.169.254/latest/api/token: status code: 403 …")
    assert "no credentials were found" in str(said) and "AWS_SECRET_ACCESS_KEY" in str(said)


def test_a_store_that_puts_without_regard_to_conditions_is_refused(folder, objects):
    folder.require_writable()
    assert objects.count("POST") == 1 and folder.files() == {}
    objects.faults = {("PUT", ""): ["deaf"] * 4}
    with pytest.raises(RequestError, match="without regard to If-None-Match and If-Match"):
        folder.require_writable()
    assert folder.files() == {}


def test_addresses_hold_no_secrets_and_are_no_local_folders(tmp_path):
    assert folder_at(tmp_path) == tmp_path
    for address in ("s3://key:SECRET@bucket/x", "s3://bucket/x?X-Amz-Signature=SECRET", "https://host/x?SECRET"):
        with pytest.raises(RequestError) as refused:
            folder_at(address)
        assert "SECRET" not in str(refused.value).replace("AWS_SECRET_ACCESS_KEY", "")
    for address in ("s3://bucket/run", "s3:/bucket/run"):
        with pytest.raises(RequestError, match="runs are written in local folders alone; copy"):
            local_folder(address, "runs are written")


def test_what_a_killed_job_tried_the_store_with_is_cleared_later(folder, monkeypatch):
    folder.put(".tried/ab", b"first")
    folder.require_writable()  # it may be another job's, now at work
    assert list(folder.files(".tried")) == [".tried/ab"]
    monkeypatch.setattr("tiling.objects.folder._LEFT_AFTER_S", -1.0)
    folder.require_writable()
    assert not folder.files(".tried")
