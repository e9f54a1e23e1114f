"""benchmarks/communication.py: its model of the links against worked figures, and its rows."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import links
from communication_rows import ROWS

from neojax.layout.chips import CHIPS
from neojax.plan.hlo import Collective


def line(n, axis=0, stride=1):
    return [tuple(i * stride if a == axis else 0 for a in range(3)) for i in range(n)]


def test_the_model_of_the_links_against_worked_figures():
    """The scaling book: bf16[2048, 8192] over four v5e chips, 560 us without and 377 us with a ring; V / W n
    over axes."""
    v5e = CHIPS["v5e"]
    gather = Collective("all-gather", (("bf16", (2048, 8192)),), (), rings=1)
    assert links.seconds(gather, line(4), (4, 4, 1), v5e) == pytest.approx(560e-6, rel=0.01)
    whole = gather.bytes / 90e9
    assert links.seconds(gather, line(16), (16, 16, 1), v5e) == pytest.approx(whole * 15 / 16 + 8e-6)
    everything = [(x, y, 0) for x in range(16) for y in range(16)]
    total = Collective("all-reduce", gather.arrays, (), rings=2)
    assert links.seconds(total, everything, (16, 16, 1), v5e) == pytest.approx(whole * 255 / 256 + 32e-6)
    every_fourth = links.seconds(gather, line(4, stride=4), (16, 16, 1), v5e)
    assert every_fourth == pytest.approx(4 * whole * 3 / 4 + 8e-6)  # four groups share the links of the ring
    sent = Collective("transfer", (("f32", (1 << 20,)),), ())
    assert links.seconds(sent, [], (8, 8, 1), v5e) == pytest.approx(4 * 2**20 / 3.125e9)


def test_rows_name_their_slice_and_model():
    assert len(ROWS) == len(set(ROWS)) > 40
    for name, row in ROWS.items():
        assert name.split(" ")[0] in ("v5e-256", "v5p-128", "v6e-256", "2") and row["model"] in name
