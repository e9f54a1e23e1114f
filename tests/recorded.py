"""Whether numbers that were recorded once must come out bit for bit here: the same JAX and the same vector
instructions."""

import platform
from pathlib import Path

import jax
import jaxlib


def circumstances() -> dict[str, str]:
    """What the rounding of a compiled program depends on besides the program."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    vectors = sorted(f for f in flags if f.startswith(("avx", "fma", "amx", "f16c")))
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "processor": " ".join([platform.machine(), *vectors]),
    }
