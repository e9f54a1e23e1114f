"""Initial weights, losses and gradients of every feature are those that an earlier version computed
(`pins.py`)."""

import json

import numpy as np
import pins
import pytest
from recorded import circumstances

KEPT = json.loads(pins.KEPT.read_text())
EXACT = KEPT.items() >= circumstances().items()


def compare(now, was, what):
    """Bit for bit with the same JAX on a like processor; elsewhere up to rounding."""
    if isinstance(was, float):
        assert now == (was if EXACT else pytest.approx(was, rel=2e-6)), what
        return
    assert set(now) == set(was), what
    for name, then in was.items():
        here = now[name]
        assert here["shape"] == then["shape"], f"{what} of {name}"
        atol = 0 if EXACT else 1e-5 * then["numbers"][0] + 1e-7  # the bias of keys has a gradient of 0
        np.testing.assert_allclose(
            here["numbers"], then["numbers"], rtol=0, atol=atol, err_msg=f"{what} of {name}"
        )
        assert not EXACT or here["crc32"] == then["crc32"], f"{what} of {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", pins.CONFIGS)
def test_a_feature_computes_what_it_did(name):
    now, was = pins.measured(name), KEPT["pins"][name]
    assert set(now) == set(was)
    for what in was:
        compare(now[what], was[what], what)


def test_every_configuration_is_kept_and_has_numbers_of_its_own():
    assert set(KEPT["pins"]) == set(pins.CONFIGS)
    assert len({pin["loss"] for pin in KEPT["pins"].values()}) == len(pins.CONFIGS)
    for pin in KEPT["pins"].values():
        assert pin["loss"] != pin["loss with dropout"]
        assert all(g["numbers"][0] > 1e-6 for n, g in pin["gradients"].items() if "key_bias" not in n)
