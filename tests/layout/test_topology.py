"""Meshes on TPU slices that are not here, with the devices that libtpu describes: every shipped configuration
on each."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neojax import config as configuration
from neojax.cli import main
from neojax.data.share import Share
from neojax.layout.mesh import make_layout
from neojax.layout.names import parse_shape
from neojax.layout.topology import tpu_devices
from neojax.plan.slice_view import ranges

CONFIGS = Path(__file__).resolve().parents[2] / "meshconfigs"
SLICES = {
    "v4": ["2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"],
    "v5e": ["2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    "v5p": ["2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"],
    "v6e": ["2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
}


def test_runs_of_numbers():
    assert ranges([]) == "" and ranges([3]) == "3" and ranges(np.array([0, 1, 2, 5, 7, 8])) == "0-2, 5, 7-8"


@pytest.mark.parametrize("topology", [f"{chip}:{size}" for chip, sizes in SLICES.items() for size in sizes])
def test_every_row_is_read_by_the_hosts_that_hold_it_and_no_other(topology):
    pytest.importorskip("libtpu")
    devices = tpu_devices(topology)
    hosts = sorted({d.process_index for d in devices})
    for path in sorted(CONFIGS.glob("*.yml")):
        mesh = replace(configuration.load(path).mesh, cpu_devices=0)
        sizes = parse_shape(mesh.shape).values()
        if -1 not in sizes or len(devices) % math.prod(abs(n) for n in sizes):
            continue  # made for a certain number of devices, or a multiple of another
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of axes of the torus that are split
            layout = make_layout(mesh, devices)
        assert sorted(d.id for d in layout.mesh.devices.flat) == sorted(d.id for d in devices)
        batch = 2 * layout.split("batch")
        where = layout.sharding(("batch",)).devices_indices_map((batch,))
        readers = np.zeros(batch, int)
        for host in hosts:
            own = [d for d in devices if d.process_index == host]
            held = Share(layout, batch, own).held
            assert set(held) == {row for d in own for row in range(batch)[where[d][0]]}, (path, host)
            readers[held] += 1
        holders = [
            len({d.process_index for d in devices if row in range(batch)[where[d][0]]})
            for row in range(batch)
        ]
        assert list(readers) == holders and min(holders) > 0


def test_inspect_draws_the_mesh_on_the_slice(capsys):
    pytest.importorskip("libtpu")
    config = str(CONFIGS / "1.3B.yml")
    assert main(["inspect", config, "--topology", "v5e:4x4", "mesh.shape=data:4,model:4"]) == 0
    drawn = capsys.readouterr().out.partition("number along data model\n")[2]
    cells = [line.split() for line in drawn.splitlines()[:4]]
    assert sorted(cell for row in cells for cell in row) == sorted(
        f"{i},{j}" for i in range(4) for j in range(4)
    )
    assert len([line for line in drawn.splitlines() if line.startswith("host ")]) == 4
    assert main(["inspect", config, "--topology", "v9:4x4"]) == 2
    assert "v9:4x4" in capsys.readouterr().err


def test_inspect_draws_the_mesh_on_every_slice(capsys):
    """Two slices of 16 chips, the batch over both axes: every host of either reads the rows that it holds."""
    pytest.importorskip("libtpu")
    run = ["inspect", str(CONFIGS / "1.3B.yml"), "--topology", "2xv5e:4x4", "train.batch_size=64"]
    mesh = ["mesh.shape=slices:2,data:16", "mesh.dcn_shape=slices:2", "mesh.layout=batch:slices+data"]
    assert main([*run, *mesh]) == 0
    out = capsys.readouterr().out
    drawn = out.partition("number along slices data\n")[2].splitlines()
    for number in range(2):
        at = drawn.index(f"slice {number}")
        cells = " ".join(drawn[at + 1 : at + 5]).split()
        assert sorted(cells) == sorted(f"{number},{i}" for i in range(16))
    hosts = [line for line in drawn if line.startswith("host ")]
    rows = [row for line in hosts for row in numbers(line.partition(" rows ")[2])]
    assert len(hosts) == 8 and sorted(rows) == list(range(64))
    assert main(run) == 2  # no axis is said to cross the network
    assert "mesh.dcn_shape=data:2" in capsys.readouterr().err
    assert main(["inspect", str(CONFIGS / "1.3B.yml"), "--topology", "2xv9:4x4"]) == 2
    assert "2xv9:4x4" in capsys.readouterr().err


def numbers(text):
    """The reverse of `ranges`."""
    pairs = [run.split("-") for run in text.split(", ")]
    return [n for pair in pairs for n in range(int(pair[0]), int(pair[-1]) + 1)]
