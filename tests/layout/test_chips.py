"""The table of chips agrees with itself, and with what JAX calls their devices."""

from types import SimpleNamespace

import pytest

from neojax.layout.chips import CHIPS, PEAK_FLOPS, chip_of, peak_flops


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_a_chip_is_its_devices(chip):
    for kind in chip.kinds:
        device = SimpleNamespace(device_kind=kind)
        assert chip_of(device) is chip
        assert peak_flops(device) * chip.cores == chip.flops


def test_no_device_is_of_two_chips():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
    assert chip_of(SimpleNamespace(device_kind="cpu")) is None


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_links_are_slower_than_memory_and_faster_than_the_network(chip):
    assert chip.network < chip.link < chip.bandwidth


@pytest.mark.parametrize("name, cores", [("v3", 2), ("7x", 2), ("v5e", 1), ("h100", 1)])
def test_peaks_are_of_devices(name, cores):
    assert PEAK_FLOPS[CHIPS[name].kinds[0]] == CHIPS[name].flops / cores
