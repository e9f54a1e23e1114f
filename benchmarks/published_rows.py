"""Published training steps whose whole configuration is known: what was trained on what, and how long a step
took.

`TABLE` has a row a line: group | number | model | machine | mesh | layout, param_layout | sequences a chip
and pass | passes | tokens a sequence | what is computed again | published | remark. `models` gives shapes:
layers, width, heads, heads of keys, width of a head, of the MLP, vocabulary, gated, tied.

Published is a step's seconds ("s"), tokens a second and device ("t"), or TFLOP a second and chip ("f") by the
formula of the table that it stands in, 6 FLOPs a parameter and token and 6 L T H hd for causal attention.

Sources. mosaic: mosaicml/llm-foundry, its table of training benchmarks. recipes:
AI-Hypercomputer/tpu-recipes, training/trillium, v5p and ironwood. maxtext: AI-Hypercomputer/maxtext, README
and MaxText/configs/v5e and v5p of December 2023, v4 of November 2023, gpu/a3 of April 2024. toolbox:
NVIDIA/JAX-Toolbox, rosetta's pax README and docs/frameworks/maxtext. nanogpt: karpathy/nanoGPT, issue 110.
llm.c: karpathy/llm.c, scripts. titan: pytorch/torchtitan, benchmarks/llama3_h100_202412.
neojax: our own steps, results/h200.json, of shipped configurations (`model` is their file) with the batch and
recomputation of the row.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / "meshconfigs"

MODELS = {
    # layers, width, heads, heads of keys, width of a head, of the MLP, vocabulary, gated, tied
    "125m": (12, 768, 12, 12, 64, 3072, 50368, False, True),
    "350m": (24, 1024, 16, 16, 64, 4096, 50368, False, True),
    "760m": (24, 1536, 12, 12, 128, 6144, 50368, False, True),
    "1b": (24, 2048, 16, 16, 128, 8192, 50368, False, True),
    "3b": (32, 2560, 20, 20, 128, 10240, 50368, False, True),
    "7b": (32, 4096, 32, 32, 128, 16384, 50368, False, True),
    "13b": (40, 5120, 40, 40, 128, 20480, 50368, False, True),
    "30b": (48, 7168, 56, 56, 128, 28672, 50368, False, True),
    "llama3-8b": (32, 4096, 32, 8, 128, 14336, 128256, True, False),
    "llama3-70b": (80, 8192, 64, 8, 128, 28672, 128256, True, False),
    "llama3-405b": (126, 16384, 128, 8, 128, 53248, 128256, True, False),
    "llama2-7b": (32, 4096, 32, 32, 128, 11008, 32000, True, False),
    "llama2-70b": (80, 8192, 64, 8, 128, 28672, 32000, True, False),
    "mistral-7b": (32, 4096, 32, 8, 128, 14336, 32000, True, False),
    "gpt3-175b": (96, 12288, 96, 96, 128, 49152, 50304, False, True),
    "mt-16b": (32, 5120, 32, 32, 256, 32768, 32768, False, True),
    "mt-32b": (32, 10240, 32, 32, 256, 32768, 32768, False, True),
    "mt-64b": (64, 10240, 32, 32, 256, 32768, 32768, False, True),
    "mt-128b": (64, 10240, 64, 64, 256, 65536, 32768, False, True),
    "mt-256b": (64, 20480, 64, 64, 256, 65536, 32768, False, True),
    "mt-512b": (128, 20480, 64, 64, 256, 65536, 32768, False, True),
    "mt-1024b": (128, 20480, 128, 128, 256, 131072, 32768, False, True),
    "mt-22b": (48, 6144, 24, 24, 256, 24576, 32768, False, True),
    "mt-52b": (32, 12288, 32, 32, 384, 49152, 32768, False, True),
    "pax-126m": (12, 768, 12, 12, 64, 3072, 50304, False, True),
    "pax-5b": (24, 4096, 32, 32, 128, 16384, 50304, False, True),
    "nano-124m": (12, 768, 12, 12, 64, 3072, 50304, False, True),
    "nano-1558m": (48, 1600, 25, 25, 64, 6400, 50304, False, True),
}
KEPT = {  # policies of recomputation that are not ours: what is kept, the rest is computed again
    "qkvo": ("query", "key", "value", "attention"),
    "qkv": ("query", "key", "value"),
    "context": ("attention",),
    "kv": ("key", "value"),
}
FSDP = ("batch:data", "embd:data")
TABLE = """
mosaic | 1 | 125m | a100:8 | data:8 | fsdp | 40 | 2 | 2048 | none | 142830 t |
mosaic | 2 | 350m | a100:8 | data:8 | fsdp | 32 | 2 | 2048 | none | 58782 t |
mosaic | 3 | 760m | a100:8 | data:8 | fsdp | 24 | 2 | 2048 | none | 32434 t |
mosaic | 4 | 1b | a100:8 | data:8 | fsdp | 14 | 4 | 2048 | none | 20513 t |
mosaic | 5 | 1b | a100-40:8 | data:8 | fsdp | 8 | 8 | 2048 | none | 19271 t |
mosaic | 6 | 1b | a100-40:128 | data:128 | fsdp | 10 | 1 | 2048 | none | 18647 t |
mosaic | 7 | 3b | a100:8 | data:8 | fsdp | 10 | 2 | 2048 | none | 10811 t |
mosaic | 9 | 3b | a100-40:128 | data:128 | fsdp | 6 | 1 | 2048 | none | 9538 t |
mosaic | 10 | 7b | a100:8 | data:8 | fsdp | 6 | 2 | 2048 | none | 4641 t |
mosaic | 11 | 7b | a100-40:128 | data:128 | fsdp | 18 | 1 | 2048 | full | 3623 t |
mosaic | 12 | 13b | a100:8 | data:8 | fsdp | 2 | 3 | 2048 | none | 2262 t |
mosaic | 13 | 1b | h100:8 | data:8 | fsdp | 14 | 1 | 2048 | none | 45455 t |
mosaic | 14 | 1b | h100:128 | data:128 | zero2 | 12 | 1 | 2048 | none | 44123 t |
mosaic | 17 | 3b | h100:512 | data:512 | zero2 | 8 | 1 | 2048 | none | 21664 t |
mosaic | 18 | 7b | h100:8 | data:8 | fsdp | 6 | 1 | 2048 | none | 10643 t |
mosaic | 19 | 7b | h100:128 | data:128 | fsdp | 6 | 1 | 2048 | none | 10475 t |
mosaic | 20 | 13b | h100:128 | data:128 | fsdp | 16 | 1 | 2048 | full | 5080 t |
mosaic | 21 | 30b | h100:128 | data:128 | fsdp | 8 | 1 | 2048 | full | 2199 t |
recipes | 22 | llama3-8b | v6e:2x4 | data:8 | fsdp | 3 | 1 | 8192 | qkvo | 3.443 s | offloads
recipes | 23 | llama3-8b | v6e:4x4 | data:16 | fsdp | 3 | 1 | 8192 | qkvo | 3.393 s | offloads
recipes | 23 | llama3-8b | v6e:4x8 | data:32 | fsdp | 3 | 1 | 8192 | qkvo | 3.495 s | offloads
recipes | 24 | llama3-8b | v6e:8x8 | data:64 | fsdp | 5 | 1 | 8192 | qkvo | 5.652 s | offloads
recipes | 26 | llama3-70b | v6e:4x8 | data:32 | fsdp | 2 | 1 | 8192 | qkv | 17.790 s | offloads
recipes | 27 | llama3-70b | v6e:8x8 | data:64 | fsdp | 2 | 1 | 8192 | qkv | 18.688 s | offloads
recipes | 27 | llama3-70b | v6e:8x16 | data:128 | fsdp | 4 | 1 | 8192 | qkv | 34.786 s | offloads
recipes | 27 | llama3-70b | v6e:16x16 | data:256 | fsdp | 5 | 1 | 8192 | qkv | 42.656 s | offloads
recipes | 28 | llama2-70b | v6e:16x16 | data:256 | fsdp | 2 | 1 | 4096 | qkv | 9.052 s | offloads
recipes | 29 | gpt3-175b | v6e:16x16 | data:256 | fsdp | 3 | 1 | 2048 | full | 17.182 s |
recipes | 30 | mistral-7b | v6e:2x4 | data:8 | fsdp | 6 | 1 | 8192 | qkvo | 6.320 s | offloads
recipes | 31 | llama3-405b | 2xv6e:16x16 | slices:2, data:256 | across | 1 | 1 | 8192 | full | 54.803 s | offloads
recipes | 32 | llama3-405b | v5p:8x8x8 | data:512 | fsdp | 2 | 1 | 8192 | context | 131.474 s | offloads
recipes | 34 | llama3-70b | 7x:4x4x4 | data:128 | fsdp | 4 | 1 | 8192 | qkvo | 12.20 s |
recipes | 35 | llama3-70b | 7x:4x8x8 | data:512 | fsdp | 4 | 1 | 8192 | qkvo | 12.27 s |
recipes | 36 | llama3-405b | 7x:4x8x8 | data:512 | fsdp | 6 | 1 | 8192 | kv | 98.34 s | offloads
maxtext | 37 | mt-16b | v5e:16x16 | data:256 | fsdp | 6 | 1 | 2048 | full | 120 f |
maxtext | 37 | mt-16b | 2xv5e:16x16 | slices:2, data:256 | copies | 6 | 1 | 2048 | full | 117 f |
maxtext | 37 | mt-16b | 4xv5e:16x16 | slices:4, data:256 | copies | 6 | 1 | 2048 | full | 117 f |
maxtext | 37 | mt-16b | 8xv5e:16x16 | slices:8, data:256 | copies | 6 | 1 | 2048 | full | 115 f |
maxtext | 37 | mt-16b | 16xv5e:16x16 | slices:16, data:256 | copies | 6 | 1 | 2048 | full | 111 f |
maxtext | 37 | mt-16b | 32xv5e:16x16 | slices:32, data:256 | copies | 6 | 1 | 2048 | full | 108 f |
maxtext | 39 | mt-64b | v5e:16x16 | data:256 | fsdp | 2 | 1 | 2048 | full | 118 f |
maxtext | 39 | mt-64b | 2xv5e:16x16 | slices:2, data:256 | copies | 2 | 1 | 2048 | full | 112 f |
maxtext | 39 | mt-64b | 4xv5e:16x16 | slices:4, data:256 | copies | 2 | 1 | 2048 | full | 110 f |
maxtext | 39 | mt-64b | 8xv5e:16x16 | slices:8, data:256 | copies | 2 | 1 | 2048 | full | 108 f |
maxtext | 39 | mt-64b | 16xv5e:16x16 | slices:16, data:256 | copies | 2 | 1 | 2048 | full | 105 f |
maxtext | 39 | mt-64b | 32xv5e:16x16 | slices:32, data:256 | copies | 2 | 1 | 2048 | full | 99 f |
maxtext | 40 | mt-128b | v5e:16x16 | data:16, model:16 | tensor | 1 | 1 | 2048 | full | 110 f |
maxtext | 40 | mt-128b | 2xv5e:16x16 | slices:2, data:16, model:16 | tensor copies | 1 | 1 | 2048 | full | 110 f |
maxtext | 40 | mt-128b | 4xv5e:16x16 | slices:4, data:16, model:16 | tensor copies | 1 | 1 | 2048 | full | 108 f |
maxtext | 40 | mt-128b | 8xv5e:16x16 | slices:8, data:16, model:16 | tensor copies | 1 | 1 | 2048 | full | 104 f |
maxtext | 40 | mt-128b | 16xv5e:16x16 | slices:16, data:16, model:16 | tensor copies | 1 | 1 | 2048 | full | 100 f |
maxtext | 40 | mt-128b | 32xv5e:16x16 | slices:32, data:16, model:16 | tensor copies | 1 | 1 | 2048 | full | 91 f |
maxtext | 41 | mt-32b | v5p:4x4x4 | data:16, model:4 | tensor | 8 | 1 | 2048 | names | 328 f |
maxtext | 41 | mt-32b | 2xv5p:4x4x4 | slices:2, data:16, model:4 | tensor copies | 8 | 1 | 2048 | names | 319 f |
maxtext | 42 | mt-64b | v5p:4x4x4 | data:16, model:4 | tensor | 4 | 1 | 2048 | names | 323 f |
maxtext | 42 | mt-64b | 2xv5p:4x4x4 | slices:2, data:16, model:4 | tensor copies | 4 | 1 | 2048 | names | 309 f |
maxtext | 44 | mt-256b | v5p:8x8x8 | data:64, model:8 | tensor | 2 | 1 | 2048 | names | 308 f |
maxtext | 44 | mt-256b | 2xv5p:8x8x8 | slices:2, data:64, model:8 | tensor copies | 2 | 1 | 2048 | names | 289 f |
maxtext | 45 | mt-512b | v5p:8x8x8 | data:32, model:16 | tensor | 2 | 1 | 2048 | full | 294 f |
maxtext | 45 | mt-512b | 2xv5p:8x8x8 | slices:2, data:32, model:16 | tensor copies | 2 | 1 | 2048 | full | 282 f |
maxtext | 46 | mt-1024b | v5p:8x16x16 | data:128, model:16 | tensor | 2 | 1 | 2048 | full | 297 f |
maxtext | 46 | mt-1024b | 2xv5p:8x16x16 | slices:2, data:128, model:16 | tensor copies | 2 | 1 | 2048 | full | 279 f |
maxtext | 47 | mt-22b | v4:4x4x4 | data:64 | fsdp | 16 | 1 | 2048 | full | 156 f |
maxtext | 47 | mt-22b | 2xv4:4x4x4 | slices:2, data:64 | copies | 16 | 1 | 2048 | full | 152 f |
maxtext | 47 | mt-22b | 4xv4:4x4x4 | slices:4, data:64 | copies | 16 | 1 | 2048 | full | 149 f |
maxtext | 47 | mt-22b | 8xv4:4x4x4 | slices:8, data:64 | copies | 16 | 1 | 2048 | full | 146 f |
maxtext | 48 | mt-52b | v4:4x4x12 | data:192 | fsdp | 10 | 1 | 2048 | full | 154 f |
maxtext | 48 | mt-52b | 2xv4:4x4x12 | slices:2, data:192 | copies | 10 | 1 | 2048 | full | 162 f |
toolbox | 49 | pax-126m | a100:64 | data:64 | data | 4 | 1 | 2048 | none | 0.1013 s | plain attention
toolbox | 50 | pax-126m | h100:64 | data:64 | data | 4 | 1 | 2048 | none | 0.0544 s | plain attention
toolbox | 51 | pax-5b | a100:256 | data:256 | fsdp | 8 | 1 | 2048 | names | 2.852 s |
toolbox | 52 | pax-5b | h100:256 | data:256 | fsdp | 8 | 1 | 2048 | names | 1.236 s |
toolbox | 54 | gpt3-175b | h100:256 | data:256 | fsdp | 6 | 1 | 2048 | full | 30.12 s | what is computed again is not published: what fits
toolbox | 55 | llama2-7b | h100:8 | data:8 | fsdp | 2 | 1 | 4096 | names | 0.721 s |
maxtext | 56 | llama2-7b | h100:8 | data:8 | fsdp | 4 | 1 | 4096 | qkvo | 1.535 s |
maxtext | 56 | llama2-7b | h100:16 | copies:2, data:8 | copies on | 4 | 1 | 4096 | qkvo | 1.790 s |
maxtext | 56 | llama2-7b | h100:32 | copies:4, data:8 | copies on | 4 | 1 | 4096 | qkvo | 1.856 s |
maxtext | 56 | llama2-7b | h100:64 | copies:8, data:8 | copies on | 4 | 1 | 4096 | qkvo | 1.846 s |
maxtext | 56 | llama2-7b | h100:128 | copies:16, data:8 | copies on | 4 | 1 | 4096 | qkvo | 2.014 s |
nanogpt | 57 | nano-124m | a100-40:8 | data:8 | data | 12 | 5 | 1024 | none | 0.562 s | plain attention
llm.c | 58 | nano-124m | a100:8 | data:8 | zero1 | 64 | 1 | 1024 | none | 0.300 s |
llm.c | 60 | nano-1558m | h100:8 | data:8 | zero1 | 16 | 8 | 1024 | none | 2.80 s |
titan | 61 | llama3-8b | h100:8 | data:8 | fsdp | 2 | 1 | 8192 | names | 6667 t | 500 W
titan | 61 | llama3-8b | h100:128 | data:128 | fsdp | 2 | 1 | 8192 | names | 6514 t | 500 W
neojax | 62 | 1.3B | h200:1 | data:1 | data | 16 | 1 | 2048 | none | 0.4994 s | measured here
neojax | 63 | 125M | h200:1 | data:1 | data | 64 | 1 | 2048 | none | 0.2679 s | measured here
neojax | 64 | 1.3B | h200:1 | data:1 | data | 16 | 1 | 2048 | names | 0.5923 s | measured here
neojax | 65 | bert/base | h200:1 | data:1 | data | 256 | 1 | 512 | none | 0.4119 s | measured here; plain attention
"""  # noqa: E501
MODEL = "heads:model, mlp:model, vocab:model"
LAYOUTS = {  # layout, param_layout, dcn_shape
    "fsdp": ("batch:data", "embd:data", ""),
    "zero1": ("batch:data", "embd:data", ""),
    "zero2": ("batch:data", "embd:data", ""),
    "data": ("batch:data", "", ""),
    "copies": ("batch:slices+data", "embd:data", "slices"),
    "across": ("batch:slices+data", "embd:slices+data", "slices"),
    "copies on": ("batch:copies+data", "embd:data", ""),
    "tensor": (f"batch:data, {MODEL}", "embd:data", ""),
    "tensor copies": (f"batch:slices+data, {MODEL}", "embd:data", "slices"),
}


@dataclass(frozen=True)
class Row:
    """One published step; seconds: of the step."""

    group: str
    number: int
    model: str
    machine: str
    mesh: str
    layout: str
    rows: int
    passes: int
    length: int
    again: str
    seconds: float
    remark: str

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.number} {self.model} {self.machine}"

    def config(self) -> Any:
        """The configuration of neojax that does the same."""
        from neojax.config import from_dict, load

        if self.group == "neojax":
            used, stored, _ = LAYOUTS[self.layout]
            mesh = [f"mesh.shape={self.mesh}", f"mesh.layout={used}", f"mesh.param_layout={stored}"]
            kernel = "xla" if "plain" in self.remark else "auto"
            train = [f"batch_size={self.rows * self.passes * chips(self.machine)}", f"remat={self.again}"]
            train += ["precision=bfloat16", f"attention_kernel={kernel}"]
            return load(
                CONFIGS / f"{self.model}.yml",
                [*mesh, *(f"train.{key}" for key in train), f"model.n_ctx={self.length}"],
            )
        layers, width, heads, keys, head, mlp, vocab, gated, tied = MODELS[self.model]
        used, stored, dcn = LAYOUTS[self.layout]
        sizes = dict(part.split(":") for part in self.mesh.split(", "))
        rows = self.rows * chips(self.machine)
        attention = {"heads": heads, "head_dim": head}
        found = from_dict(
            {
                "model": {
                    "family": "llama" if gated else "gpt2",
                    "n_layer": layers,
                    "n_embd": width,
                    "n_ctx": self.length,
                    "n_vocab": vocab,
                    "attention": attention | ({"kv_heads": keys} if keys < heads else {}),
                    "mlp": {"width": mlp},
                    "embedding": {"tied": tied},
                },
                "mesh": {
                    "shape": self.mesh,
                    "layout": used,
                    "param_layout": stored,
                    "dcn_shape": f"{dcn}:{sizes[dcn]}" if dcn else "",
                },
                "train": {
                    "batch_size": rows * self.passes,
                    "microbatch": rows if self.passes > 1 else 0,
                    "remat": "none" if self.again in KEPT else self.again,
                    "precision": "bfloat16",
                    "reduce_dtype": "float32" if self.group == "toolbox" else "bfloat16",
                    "attention_kernel": "xla" if "plain" in self.remark else "auto",
                },
            }
        )
        return replace(found, train=replace(found.train, remat=self.again))


def chips(machine: str) -> int:
    """The chips of a machine by its name."""
    several, shape = re.fullmatch(r"(?:(\d+)x(?=\w+:))?[\w-]+:([\dx]+)", machine).groups()
    return int(several or 1) * math.prod(int(n) for n in shape.split("x"))


def published(text: str, model: str, length: int, rows: int) -> float:
    """Seconds of a step from what is published of it; `rows` of a chip in all passes."""
    value, unit = text.split()
    if unit == "s":
        return float(value)
    if unit == "t":
        return rows * length / float(value)
    layers, width, heads, keys, head, mlp, vocab, gated, _ = MODELS[model]
    each = (3 if gated else 2) * width * mlp + 2 * width * head * (heads + keys)
    parameters = layers * each + width * vocab
    flops = 6 * parameters + 6 * layers * length * heads * head
    return rows * length * flops / (float(value) * 1e12)


def _rows() -> list[Row]:
    found = []
    for line in TABLE.strip().splitlines():
        group, number, model, machine, mesh, layout, rows, passes, length, again, result, remark = (
            part.strip() for part in line.split("|")
        )
        sizes = int(rows), int(passes), int(length)
        seconds = published(result, model, sizes[2], sizes[0] * sizes[1])
        found.append(Row(group, int(number), model, machine, mesh, layout, *sizes, again, seconds, remark))
    return found


ROWS = _rows()
