"""Files that grow, sent whole to where nothing can be appended to."""

import pytest

from neojax.errors import SaveError
from neojax.storage import spool as module
from neojax.storage.remote import BucketPath
from neojax.storage.spool import Spool
from neojax.training.metrics import MetricsWriter, read_metrics


@pytest.fixture(params=["gs", "s3"])
def run(request):
    request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    run = f"{request.param}://bucket/{request.node.name}"
    yield run
    BucketPath(run).rmtree()


def test_a_folder_of_this_machine_is_its_own_spool(tmp_path):
    with Spool(tmp_path) as spool:
        assert spool.folder == tmp_path and spool.named(tmp_path / "a") == tmp_path / "a"
    assert tmp_path.exists()


def test_metrics_of_a_run_and_of_its_resumption_are_one_file(run):
    for start in (0, 3):
        with Spool(run) as spool:
            writer = MetricsWriter(spool, resume_step=start)
            for step in range(start + 1, start + 5):
                writer.write(step, {"loss": step / 2})
            assert start or not BucketPath(f"{run}/metrics.jsonl").exists()  # not at each line
            writer.close()
        assert not spool.folder.exists()
    assert [(r["step"], r["loss"]) for r in read_metrics(run)] == [(i, i / 2) for i in range(1, 8)]
    events = {path.name[:20] for path in (BucketPath(run) / "tensorboard").iterdir()}
    assert events == {
        "events.out.tfevents."
    }  # one of each writer, or both in one: their names have the second


def test_what_has_changed_is_sent_now_and_then_and_the_rest_is_not(run, monkeypatch):
    uploads = []
    real = BucketPath.upload
    monkeypatch.setattr(
        BucketPath, "upload", lambda self, file: (uploads.append(self.name), real(self, file))
    )
    monkeypatch.setattr(module, "EVERY", 0.0)
    with Spool(run) as spool:
        for name in ("a", "b"):
            (spool.folder / name).write_text("one")
        spool.send()
        (spool.folder / "b").write_text("one two")
        spool.poll()
        spool._sending.join()
        assert sorted(uploads) == ["a", "b", "b"]
        assert (BucketPath(run) / "b").read_bytes() == b"one two"


def test_what_cannot_be_sent_is_told_and_sent_later(run, monkeypatch):
    def fail(self, file):
        raise OSError(5, "no such luck")

    with Spool(run) as spool:
        (spool.folder / "a").write_text("one")
        with monkeypatch.context() as patch:
            patch.setattr(BucketPath, "upload", fail)
            with pytest.raises(SaveError, match="no such luck"):
                spool.send()
            patch.setattr(module, "EVERY", 0.0)
            spool.poll()
            spool._sending.join()
            with pytest.raises(SaveError, match="no such luck"):
                spool.poll()
    assert (BucketPath(run) / "a").read_bytes() == b"one"
