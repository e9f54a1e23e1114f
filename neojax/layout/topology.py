"""The chips of a TPU slice that is not here, to compile for and never to run on. Needs libtpu, `pip install
.[tpu]`."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from neojax.errors import NeojaxError

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


def tpu_devices(topology: str) -> list[jax.Device]:
    """The devices of `topology`, such as "v5e:16x16" or "v5p:4x4x4", in JAX's order; "2xv5e:8x8" is two
    slices of v5e:8x8, which a network joins.

    JAX itself is to run on something else (JAX_PLATFORMS=cpu). Raises `NeojaxError` without libtpu, or where
    there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise NeojaxError(
            "compiling for a TPU needs libtpu; install neojax with its extra: pip install '.[tpu]'"
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    several = re.match(r"([1-9]\d*)x(?=[a-z])", topology)
    one = topology[several.end() :] if several else topology
    wanted: dict[str, str | int] = {"num_slices": int(several[1])} if several else {}
    if one.startswith("v4:"):
        wanted["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=one, **wanted)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as e:
        cause = " ".join(str(e).split())[:200]
        raise NeojaxError(
            f"TPU topology {topology!r}: {cause}; expected a chip and a shape such as v5e:4x4, v5p:2x2x4 or "
            "v6e:16x16, or several such slices, as 2xv5e:8x8"
        ) from None
    return list(found.devices)
