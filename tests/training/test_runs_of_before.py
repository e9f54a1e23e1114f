"""Run directories that an earlier version wrote are read, and their runs go on, as that version did
(`runs_of_before/`)."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from recorded import circumstances

pytestmark = pytest.mark.slow
KEPT = Path(__file__).parent.parent / "runs_of_before"
EXACT = json.loads((KEPT / "made.json").read_text()).items() >= circumstances().items()
FOUND = ("gpt_neo/8", "gpt2/8", "axial/8", "gpt_neo/2", "gpt_neo/4", "gpt2/4", "rotary/4", "axial/4")


INFERRED = ("logits", "logprobs")


@pytest.fixture(scope="module")
def expected():
    with np.load(KEPT / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `read.py` finds in a copy of the runs, in a process like a user's."""
    folder = tmp_path_factory.mktemp("runs_of_before")
    with tarfile.open(KEPT / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_FLAGS", "JAX_"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    command = [sys.executable, KEPT / "read.py", "found.npz"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "found.npz") as file:
        return dict(file)


def test_all_that_was_recorded_is_compared(expected, found):
    assert set(found) == set(expected)
    assert {key.rpartition("/")[0] for key in expected} == set(FOUND)


@pytest.mark.parametrize("run", FOUND)
def test_a_run_of_before_gives_what_it_gave(run, expected, found):
    """Training, bit for bit with the same JAX on a like processor; elsewhere up to rounding, which training
    magnifies. What a loaded model gives, up to rounding: that version multiplied by queries, keys and values
    one by one."""
    for key in (key for key in expected if key.startswith(f"{run}/")):
        was, now = expected[key], found[key]
        assert was.dtype == now.dtype and was.shape == now.shape, key
        if was.dtype.kind != "f" or (EXACT and not key.endswith(INFERRED)):
            np.testing.assert_array_equal(now, was, err_msg=key)
        elif EXACT:
            np.testing.assert_allclose(now, was, rtol=0, atol=1e-6 * np.abs(was).max(), err_msg=key)
        else:
            np.testing.assert_allclose(now, was, rtol=1e-4, atol=1e-4 * np.abs(was).max(), err_msg=key)
