"""The rows of `communication.py`: slices, models, layouts. A name is SLICE MODEL LAYOUT [what else]."""

from typing import Any

SLICES = {"v5e-256": "v5e:16x16", "v6e-256": "v6e:16x16", "v5p-128": "v5p:4x4x4", "2 x v5e-64": "2xv5e:8x8"}
BATCHES = {"125M": 256, "350M": 256, "1.3B": 512, "2.7B": 512}  # those of the shipped configurations
MODEL = "heads:model, mlp:model, vocab:model"
BOTH = {"shape": "x:16, y:16", "layout": "batch:x+y"}  # the two axes of the torus
ACROSS = {"shape": "slices:2, data:-1", "dcn_shape": "slices:2", "layout": "batch:slices+data"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data parallel": {"param_layout": ""},
    "one axis": {},
    "two axes": {**BOTH, "param_layout": "embd:x+y"},
    "stored over x of x+y": {**BOTH, "param_layout": "embd:x"},
    "tensor 2": {
        "shape": "data:-1, model:2",
        "layout": f"batch:data, {MODEL}",
        "param_layout": "embd:data",
    },
    "tensor 4": {
        "shape": "data:-1, model:4",
        "layout": f"batch:data, {MODEL}",
        "param_layout": "embd:data",
    },
    "three axes": {"shape": "x:4, y:4, z:4", "layout": "batch:x+y+z", "param_layout": "embd:x+y+z"},
    "stored over 16 of 64": {
        "shape": "copies:4, data:16",
        "layout": "batch:copies+data",
        "param_layout": "embd:data",
    },
    "copies on slices": ACROSS,
    "copies on slices and over y": {
        "shape": "slices:2, x:8, y:8",
        "dcn_shape": "slices:2",
        "layout": "batch:slices+x+y",
        "param_layout": "embd:x",
    },
    "data parallel over slices": {**ACROSS, "param_layout": ""},
    "stored over slices too": {**ACROSS, "param_layout": "embd:slices+data"},
    "one axis over slices": {"dcn_shape": "data:2"},
}
BFLOAT16 = {"reduce_dtype": "bfloat16"}
JOINED = {"joined": True}
SUMS = (
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",
    "xla_enable_async_all_reduce=true",
)
SCATTERS = (
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter=true",
    "xla_enable_async_reduce_scatter_fusion=true",
    "xla_tpu_scoped_vmem_limit_kib=32768",
)
WITH: dict[str, dict[str, Any]] = {
    "": {},
    "bfloat16 sums": BFLOAT16,
    "joined": JOINED,
    "joined, bfloat16 sums": {**JOINED, **BFLOAT16},
    "full effort": {"effort": 0.0},
    "asynchronous sums, full effort": {"compiler_options": SUMS, "effort": 0.0},
    "asynchronous scatters, full effort": {"compiler_options": SCATTERS, "effort": 0.0},
}
CHOSEN = """
v5e-256 | 1.3B | one axis | ; bfloat16 sums; joined; joined, bfloat16 sums; full effort; asynchronous sums, full effort
v5e-256 | 1.3B | two axes | ; bfloat16 sums; asynchronous scatters, full effort
v5e-256 | 1.3B | stored over x of x+y | ; bfloat16 sums; joined
v5e-256 | 1.3B | tensor 2; tensor 4 |
2 x v5e-64 | 1.3B | copies on slices | ; bfloat16 sums; asynchronous sums, full effort
2 x v5e-64 | 1.3B | copies on slices and over y; stored over slices too |
v5p-128 | 1.3B | one axis; three axes; stored over 16 of 64; tensor 4 |
v6e-256 | 1.3B | one axis; two axes; stored over x of x+y |
v6e-256 | 1.3B | one axis | bfloat16 sums
v5e-256 | 125M | data parallel; one axis; stored over x of x+y |
v5e-256 | 350M | data parallel; one axis; stored over x of x+y |
v5e-256 | 2.7B | one axis | ; bfloat16 sums; joined
v5e-256 | 2.7B | two axes; stored over x of x+y; tensor 2; tensor 4 |
2 x v5e-64 | 125M; 350M | data parallel over slices; copies on slices |
2 x v5e-64 | 2.7B | copies on slices; stored over slices too |
v5p-128 | 125M; 350M | data parallel; one axis |
v5p-128 | 2.7B | one axis; three axes; stored over 16 of 64; tensor 4 |
v6e-256 | 125M; 350M | data parallel; one axis |
v6e-256 | 2.7B | one axis; two axes; stored over x of x+y |
"""  # noqa: E501


def _rows() -> dict[str, dict[str, Any]]:
    found = {}
    for text in CHOSEN.strip().splitlines():
        name, models, layouts, extras = (part.strip() for part in text.split("|"))
        for model in models.split("; "):
            for layout in layouts.split("; "):
                for extra in extras.split(";"):
                    what = f"{name} {model} {layout}" + (f", {extra.strip()}" if extra.strip() else "")
                    common = {"topology": SLICES[name], "model": model, "batch": BATCHES[model]}
                    found[what] = {**common, **LAYOUTS[layout], **WITH[extra.strip()]}
    return found


ROWS = _rows()
