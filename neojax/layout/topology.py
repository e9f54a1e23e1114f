"""The chips of a TPU slice that is not here, to compile for and never to run on. Needs libtpu, `pip install
.[tpu]`."""

import importlib.util
import math
import os
from collections.abc import MutableMapping
from typing import Any

import jax
from jax.experimental import topologies

from neojax.errors import NeojaxError
from neojax.layout.slice_names import ALONE, near, parse

# What libtpu otherwise asks the network for as it starts, and says on stderr.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


NAMES = {"7x": "tpu7x"}  # as libtpu has them, where it has another


def hush(environ: MutableMapping[str, str]) -> None:
    """Keeps libtpu, where it is installed and begins in this process, from asking and from saying things; not
    for machines with a TPU that is to be used."""
    for name, value in QUIET.items():
        environ.setdefault(name, value)


def tpu_devices(topology: str) -> list[jax.Device]:
    """The devices of `topology`, such as "v5e:16x16" or "v5p:4x4x4", in JAX's order; "2xv5e:8x8" is two
    slices of v5e:8x8, which a network joins.

    JAX itself is to run on something else (JAX_PLATFORMS=cpu). Raises `NeojaxError` without libtpu, or where
    there is no such topology.
    """
    several, chip, shape = parse(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise NeojaxError(
            "compiling for a TPU needs libtpu; install neojax with its extra: pip install '.[tpu]'"
        )
    hush(os.environ)
    wanted: dict[str, Any] = {"num_slices": several} if several > 1 else {}
    if chip.name == "v4":
        wanted["chip_config_name"] = "megacore"
    if math.prod(shape) == 1 and chip.name in ALONE:  # a host has four chips, if nothing else is said
        wanted["chips_per_host_bounds"] = (1, 1, 1)
    one = f"{NAMES.get(chip.name, chip.name)}:{'x'.join(map(str, shape))}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=one, **wanted)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as e:
        cause = " ".join(str(e).removeprefix("INVALID_ARGUMENT: ").split())[:200]
        if "chips_per_host_bounds" in cause:
            alone = ", or is one chip" if chip.name in ALONE else ""
            cause = f"a slice of {chip.name} is made of hosts with 2x2 chips{alone}"
        raise NeojaxError(f"TPU topology {topology!r}: {cause}; try {near(several, chip, shape)}") from None
    return list(found.devices)
