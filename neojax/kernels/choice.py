"""Which attention kernel runs: one rule, for training, scoring and prefill alike.

`train.attention_kernel: auto` takes the kernel of the devices where it can do what the layer asks for, else
XLA:

| kernel | devices | types | what else |
|-|-|-|-|
| `splash` | TPU | float32, bfloat16 | at least 128 tokens (shorter ones if named); documents apart or not |
| `cudnn` | NVIDIA GPU, compute capability 8.0 | bfloat16, float16 | head_dim and what is not causal, below |
| `xla` | any | all | everything |

The first two are for attention without dropout and learned keys, Splash for causal attention alone. cuDNN
takes a head_dim that is a multiple of 8 and at most 128, or 256 from capability 9.0 on; rows of an even
length where documents stand apart; without a causal mask no window, and no rows padded at the left.

A kernel that is asked for by name and cannot do it is refused. No kernel but XLA's `reference` works where
the layout splits `memory_length` or `head_dim`, since each needs them whole, and cuDNN does not where it
splits `sequence`. Within XLA, with both of the former whole:

| way | when |
|-|-|
| `local` | twice the window, three times if not causal, is shorter than the sequence |
| `ring` | else, where `sequence` is split, whatever is asked for: keys and values go round the devices |
| `blocked` | causal with a longer window or none, and the sequence is longer than 256 |
| `reference` | all else, dropout and learned keys among it: the whole matrix of scores |

Where `sequence` is split, a device's neighbours send it the keys of a window that stand beside its own.
Splash gathers the keys and values of global layers, a few heads of one row at a time (`split_splash`). It
takes parts of a multiple of 128 tokens and no rows padded at the left, and leaves rows to the ring whose
keys, values and gradients of these would take more than 1 GiB for one head: beyond 1 million tokens with a
bfloat16 head_dim of 128.

Documents stand apart where `data.isolate_documents` is true: each token has a segment and sees no other. To
cuDNN that is a bias of [batch, 1, sequence, sequence], since of its own form JAX has no public function.
That, and attention that is not causal, it does where it is named; `auto` leaves both to XLA, since on a GPU
they have not been run yet.

Texts that are scored may share what they begin with (`branches` of `data.batch.Batch`); such rows are XLA's,
and never `local`.

Decoding one token at a time, and linear attention, have no choice of kernels. Linear attention without a
causal mask has one sum for the whole row, and is refused where documents stand apart.
"""

import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from neojax.config import ModelConfig
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout

BLOCK = 256  # queries that XLA works on together, where the whole matrix of scores would be too large
SHORTEST = 128  # tokens in the smallest block of Splash
GATHERED = 1 << 30  # bytes of one head's keys, values and their gradients, of a whole row
NOT_CAUSAL = "the model is not causal"
BRANCHES = "texts share what they begin with, which only XLA's attention knows"
WHOLE = ("sequence", "memory_length", "head_dim")


@dataclass(frozen=True)
class Call:
    """What a layer asks of a kernel: `length` tokens a row, keys in a `window` (None: all before), and so on.

    `capability` is that of a CUDA device, (9, 0) for Hopper, else (0, 0); `split` names dimensions of
    `WHOLE`, `parts` are those of `sequence`.
    """

    platform: str
    capability: tuple[int, int]
    split: tuple[str, ...]
    length: int
    head_dim: int
    dtype: str
    window: int | None = None
    causal: bool = True
    memory: bool = False
    dropout: bool = False
    segments: bool = False
    branches: bool = False  # segments are trees
    padded: bool = False  # at the left
    parts: int = 1

    @staticmethod
    def on(layout: Layout, **asked: Any) -> "Call":
        """A call on the devices of `layout`."""
        device = layout.device
        found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
        capability = (int(found[1]), int(found[2])) if found else (0, 0)
        rows = layout.spec(("batch", "sequence", "heads", "head_dim"), what="queries")[1] or ()
        parts = layout.split_over((rows,) if isinstance(rows, str) else rows)
        split = tuple(dim for dim in WHOLE if (parts > 1 if dim == "sequence" else layout.axes(dim)))
        return Call(device.platform, capability, split, parts=parts, **asked)


@dataclass(frozen=True)
class Choice:
    """The kernel that runs: splash, cudnn, or XLA's local, blocked or reference; and why not the devices'
    own."""

    kernel: str
    because: str = ""

    def __str__(self) -> str:
        if self.kernel in ("splash", "cudnn"):
            return self.kernel
        return f"xla, {self.kernel}" + (f" ({self.because})" if self.because else "")


def choose(wanted: str, call: Call) -> Choice:
    """The kernel for `call` by the rule above; `wanted` is auto, xla, splash or cudnn.

    Raises `NeojaxError` where a kernel is wanted by name and cannot do what is asked.
    """
    own = {"tpu": "splash", "gpu": "cudnn"}.get(call.platform, "xla")
    kernel = own if wanted == "auto" else wanted
    if kernel == "xla":
        return Choice(_xla(call), _general_obstacle(call) or ("" if call.causal else NOT_CAUSAL))
    obstacle = _general_obstacle(call) or (BRANCHES if call.branches else "")
    obstacle = obstacle or (_splash_obstacle if kernel == "splash" else _cudnn_obstacle)(call)
    if wanted == "auto" and not obstacle:
        obstacle = _reserve(kernel, call)
    if not obstacle:
        return Choice(kernel)
    if wanted != "auto":
        layer = "global" if call.window is None else "local"
        raise NeojaxError(
            f"train.attention_kernel={wanted} cannot run the {layer} layers: {obstacle}; use auto or xla"
        )
    return Choice(_xla(call), obstacle)


def _reserve(kernel: str, call: Call) -> str:
    """Why a kernel that can do what is asked does it only if named, if so."""
    if kernel == "splash" and call.length < SHORTEST:
        return f"splash works on blocks of {SHORTEST} tokens, these are {call.length}"
    if kernel == "cudnn" and (call.segments or not call.causal):
        return "cudnn is untried on documents apart and without a causal mask: name it to try it"
    return ""


def _xla(call: Call) -> str:
    if _split_obstacle(call):
        return "reference"
    is_whole = call.branches or call.memory or call.dropout  # what is asked of all keys at once
    if not is_whole and call.window is not None and (2 if call.causal else 3) * call.window < call.length:
        return "local"
    if "sequence" in call.split:
        return "ring"
    is_plain = call.causal and not call.memory and not call.dropout
    return "blocked" if is_plain and call.length > BLOCK else "reference"


def _general_obstacle(call: Call) -> str:
    """What none but XLA's can do, causal or not, if anything."""
    if call.memory:
        return "model.attention.memory_slots adds learned keys"
    if call.dropout:
        return "model.attention.dropout drops single weights"
    return _split_obstacle(call)


def _split_obstacle(call: Call) -> str:
    """What no kernel but the reference can do, if anything."""
    split = [dim for dim in call.split if dim != "sequence"]
    return f"mesh.layout splits {' and '.join(split)}, which blocks need whole" if split else ""


def _splash_obstacle(call: Call) -> str:
    if call.platform != "tpu":
        return f"splash runs on TPUs and the devices are {call.platform}"
    if call.dtype not in ("float32", "bfloat16"):
        return f"splash computes in float32 and bfloat16, not {call.dtype}"
    return (_parts_obstacle(call) if "sequence" in call.split else "") if call.causal else NOT_CAUSAL


def _parts_obstacle(call: Call) -> str:
    """What Splash cannot do where rows are split, if anything."""
    if call.padded:
        return "mesh.layout splits sequence, and splash then takes no rows padded at the left"
    if (part := call.length // call.parts) % SHORTEST:
        return f"mesh.layout splits sequence, and splash takes parts of a multiple of {SHORTEST}, not {part}"
    head = 4 * call.length * call.head_dim * jnp.dtype(call.dtype).itemsize
    if call.window is None and head > GATHERED:
        return f"the keys and values of {call.length} tokens are too many to be gathered for one head"
    return ""


def _cudnn_obstacle(call: Call) -> str:
    if call.platform != "gpu" or call.capability < (8, 0):
        what = f"compute capability {call.capability[0]}.{call.capability[1]}"
        have = what if call.platform == "gpu" else call.platform
        return f"cudnn runs on NVIDIA GPUs of compute capability 8.0 or more and the devices are {have}"
    if "sequence" in call.split:
        return "mesh.layout splits sequence, and cudnn needs whole rows"
    if call.dtype not in ("bfloat16", "float16"):
        return f"cudnn computes in bfloat16 and float16, not {call.dtype}"
    if call.segments and call.length % 2:
        return f"cudnn keeps documents apart in rows of an even length, not {call.length}"
    if not call.causal and (call.padded or call.window is not None):
        return f"{NOT_CAUSAL}, and cudnn then takes no window, and no rows padded at the left"
    most = 256 if call.capability >= (9, 0) else 128
    if call.head_dim % 8 or call.head_dim > most:
        return f"cudnn takes a head_dim that is a multiple of 8 and at most {most} here, not {call.head_dim}"
    return ""


def check_linear(causal: bool, segments: bool) -> None:
    """Raises `NeojaxError` where linear attention is to keep documents apart and cannot."""
    if segments and not causal:
        raise NeojaxError(
            "data.isolate_documents cannot keep documents apart in linear attention without a causal mask, "
            "which has one sum for the whole row; use other attention types, or data.isolate_documents=false"
        )


def of_layers(
    wanted: str, config: ModelConfig, layout: Layout, dtype: Any, segments: bool = False
) -> dict[str, Choice]:
    """What trains whole sequences of n_ctx tokens: attention type -> choice, for those that have one.

    `segments`: whether documents stand apart. Raises `NeojaxError` as `choose` and `check_linear` do.
    """
    choices: dict[str, Choice] = {}
    if "linear" in config.attention_layers:
        check_linear(config.causal, segments)
    for kind in ("global", "local"):
        if kind in config.attention_layers:
            everything = kind == "global"  # dropout and learned keys belong to global layers alone
            call = Call.on(
                layout,
                length=config.n_ctx,
                head_dim=config.head_dim,
                dtype=jnp.dtype(dtype).name,
                window=None if everything else config.attention.window,
                causal=config.causal,
                memory=everything and config.attention.memory_slots > 0,
                dropout=everything and config.attention.dropout > 0,
                segments=segments,
            )
            choices[kind] = choose(wanted, call)
    return choices


def describe(choices: dict[str, Choice]) -> str:
    """One line on the choices, such as "global attention: splash; local attention: splash"."""
    return "; ".join(f"{kind} attention: {choice}" for kind, choice in choices.items())
