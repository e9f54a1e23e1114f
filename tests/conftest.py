"""Tests run on eight fake CPU devices, or on the devices that JAX finds where NEOJAX_TEST_DEVICE (gpu, tpu)
is set."""

import gc
import importlib.metadata
import os
import signal
import tempfile
from pathlib import Path

import pytest

ON_DEVICE = bool(os.environ.get("NEOJAX_TEST_DEVICE"))
if not ON_DEVICE:
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Compilation is most of the suite's time, and its shapes are too tiny to gain from optimised code. The
    # emitters that later releases have no choice but to use take twice as long as those before.
    quick = "--xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        quick += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402

from neojax.layout.devices import fake_cpu_devices  # noqa: E402

if not ON_DEVICE:
    fake_cpu_devices(8)
# Shared by xdist workers and by runs: most of the suite's time would be compilation.
CACHE = os.environ.get("NEOJAX_TEST_CACHE") or str(Path(tempfile.gettempdir()) / "neojax-test-cache")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE  # of the programs that tests start
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

MANY_MAPS = 15_000  # of memory; a program has one or a few

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would the programs that tests start to interrupt them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """After a module, programs are dropped where there are many: in a process with tens of thousands of them,
    XLA once in a while ends in a segmentation fault when it compiles or keeps the next."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real reference data beside the repository; skips where there is none."""
    path = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no reference data beside the repository")
    return path


def pytest_terminal_summary(terminalreporter):
    """Lists what was skipped, by reason: a test that does not run here holds nothing here."""
    skipped: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    if skipped:
        terminalreporter.section(f"{sum(map(len, skipped.values()))} skipped")
    for reason, tests in sorted(skipped.items()):
        terminalreporter.write_line(f"{reason}:")
        for test in sorted(tests):
            terminalreporter.write_line(f"  {test}")


@pytest.fixture(scope="session")
def gcs(tmp_path_factory):
    """A Google Cloud Storage server of this machine with a bucket named `bucket`; skips where its package is
    missing."""
    from buckets import FakeGcs

    server = FakeGcs(tmp_path_factory.mktemp("gcs") / "log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3():
    """An S3 server of this machine with a bucket named `bucket`; skips where its package is missing."""
    from buckets import FakeS3

    server = FakeS3()
    yield server
    server.close()
