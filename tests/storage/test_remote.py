"""Paths in buckets behave as paths do, as far as an object store lets them."""

from pathlib import Path

import pytest

from neojax.errors import NeojaxError
from neojax.storage import remote
from neojax.storage.remote import BucketPath, is_on_no_machine, is_remote, place


@pytest.fixture(params=["gs", "s3"])
def folder(request):
    request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    folder = BucketPath(f"{request.param}://bucket/remote")
    yield folder
    folder.rmtree()


def test_names(gcs):
    path = place("gs://bucket/a/b.c")
    assert str(path) == "gs://bucket/a/b.c" and path.name == "b.c" and path.suffix == ".c"
    assert str(path.parent) == "gs://bucket/a" and str(path.with_suffix(".d") / "e") == "gs://bucket/a/b.d/e"
    assert place(Path("gs://bucket/a/b.c")) == path  # pathlib has made one slash of two
    assert place("gs/x") == Path("gs/x") and not is_remote("gs:") and is_remote("s3://b/c")
    assert is_on_no_machine("hdfs://a/b") and not is_on_no_machine("gs://a/b") and not is_on_no_machine("a/b")


def test_what_is_written_is_there_for_all(folder):
    assert not folder.exists() and not folder.is_dir()
    (folder / "a" / "one").write_text("äb")
    (folder / "two").write_bytes(b"12345")
    assert (folder / "a" / "one").read_text() == "äb" and (folder / "two").read_range(1, 3) == b"23"
    assert folder.is_dir() and (folder / "a").is_dir() and (folder / "two").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "two"]
    assert {n: i["size"] for n, i in folder.objects().items()} == {"a/one": 3, "two": 5}
    assert [path.name for path in folder.glob("t*")] == ["two"]
    assert not (folder / "two").create(b"new") and (folder / "three").create(b"new")
    folder.rename(BucketPath(f"{folder}2"))
    assert not folder.exists() and (BucketPath(f"{folder}2") / "a" / "one").read_text() == "äb"
    BucketPath(f"{folder}2").rmtree()
    with pytest.raises(FileNotFoundError):
        (folder / "two").read_bytes()
    folder.rmtree()  # of nothing


def test_what_goes_wrong_is_an_error_of_one_line(folder):
    with pytest.raises(OSError) as error:
        BucketPath(f"{str(folder)[:5]}no-such-bucket/a").write_bytes(b"a")
    assert "\n" not in str(error.value)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None)
    remote.file_system.cache_clear()
    with pytest.raises(NeojaxError, match=r"gs:// is read with gcsfs.*pip install 'neojax\[gcs\]'"):
        place("gs://bucket/a")
    remote.file_system.cache_clear()
