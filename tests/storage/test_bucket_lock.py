"""One owner of a folder in a bucket."""

import json

import pytest

from neojax.errors import NeojaxError
from neojax.storage import lock
from neojax.storage.lock import BucketLock
from neojax.storage.remote import BucketPath


@pytest.fixture(params=["gs", "s3"])
def folder(request, monkeypatch):
    request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    monkeypatch.setattr(lock, "PATIENCE", 0.6)
    monkeypatch.setattr(lock, "SETTLE", 0.2)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    folder = f"{request.param}://bucket/locks"
    yield folder
    (BucketPath(folder) / "lock").unlink(missing_ok=True)


def test_a_second_owner_is_told_of_the_first_which_gives_signs_of_life(folder):
    lines = []
    with (
        BucketLock(folder, "trained"),
        pytest.raises(NeojaxError, match="is being trained by process") as error,
    ):
        BucketLock(folder, "trained", lines.append).take()
    assert folder in str(error.value) and "waiting" in lines[0]
    BucketLock(folder).take()  # it was given back


def test_an_owner_without_a_sign_of_life_is_followed(folder):
    path = BucketPath(folder) / "lock"
    assert path.create(json.dumps({"process": 5, "host": "gone", "since": "then"}).encode())
    lines = []
    with BucketLock(folder, say=lines.append) as owner:
        owner.check()
        assert "by process 5 on gone" in lines[-1] and "taking over" in lines[-1]
    assert not path.exists()


def test_a_lock_that_was_deleted_is_taken_again_and_one_that_was_replaced_is_not(folder):
    path = BucketPath(folder) / "lock"
    owner = BucketLock(folder)
    owner.take()
    path.unlink()
    owner.check()
    assert path.exists()
    path.write_bytes(b'{"process": 6, "host": "other", "token": "x"}')
    with pytest.raises(NeojaxError, match="process 6 on other"):
        owner.check()
    owner.release()
    assert json.loads(path.read_bytes())["process"] == 6  # never the lock of another


def test_only_one_of_many_takes_over(folder):
    """All see the same dead owner, and try at once."""
    import threading

    assert (BucketPath(folder) / "lock").create(b'{"process": 5}')
    owners, errors = [], []

    def attempt():
        mine = BucketLock(folder, say=lambda _: None)
        try:
            mine.take()
            owners.append(mine)
        except NeojaxError as e:
            errors.append(str(e))

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(owners) == 1 and len(errors) == 3
    owners[0].release()
