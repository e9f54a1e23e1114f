"""Every key of a run's configuration, declared once with its type, default and meaning.

`neojax inspect --keys` prints them; `neojax.config` reads, checks and writes them.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neojax.errors import NeojaxError, suggest

ATTENTION_TYPES = ("global", "local", "linear", "none")
ACTIVATIONS = (
    *("gelu_new", "gelu", "relu", "silu", "sigmoid", "tanh", "selu", "elu", "softplus", "mish", "abs", "sin"),
    *("cos", "sign", "lrelu001", "lrelu020", "id", "triangle_relax", "square_relax", "spike", "spike2"),
    *(
        "tanhshrink",
        "softsign",
        "softmax",
        "logsoftmax",
        "bipolarsigmoid",
        "elish",
        "arcsinh",
        "maxsig",
        "cosid",
    ),
    *("minsin", "maxtanh", "tanhexp", "lisht", "seagull", "snake", "roottanh", "softplusmone"),
    *("rrelu", "aria", "prelu", "parcsinh", "psoftplus", "proottanh"),
)


LARGEST_COUNT = 2**31 - 1  # sizes, ids and steps are int32 on the devices
LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Range:
    """The numbers that a key takes: `least` and `most` are in it, `above` and `below` are not."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Whether `number`, as the device will see it (in float32, where it is no whole number), is in the range."""
        seen: float = number if isinstance(number, int) else float(np.float32(number))
        return (
            (self.least is None or seen >= self.least)
            and (self.above is None or seen > self.above)
            and (self.most is None or seen <= self.most)
            and (self.below is None or seen < self.below)
        )

    def __str__(self) -> str:
        words = ("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below)
        return " and ".join(f"{word} {bound}" for word, bound in words if bound is not None)

    def of_counts(self) -> "Range":
        """The same range for whole numbers, which end where int32 does unless the key says otherwise."""
        return self if self.most is not None else dataclasses.replace(self, most=LARGEST_COUNT)


def _key(default: Any, doc: str, *, choices: Iterable[str] = (), **bounds: float) -> Any:
    """Declares a key: its default, its meaning, and what values it takes, a number within the `Range` of `bounds`."""
    meta = {"doc": doc, "choices": tuple(choices), "range": Range(**bounds)}
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the Transformer, in gpt-neo's terms."""

    n_layer: int = _key(12, "number of blocks", least=1, most=100_000)
    n_embd: int = _key(768, "width of the residual stream", least=1)
    n_head: int = _key(12, "attention heads; must divide n_embd", least=1)
    n_ctx: int = _key(2048, "context length in tokens", least=1)
    n_vocab: int = _key(
        50257, "number of token ids; padded internally so that a mesh axis can split it", least=2
    )
    n_inner: int | None = _key(None, "width of the MLP; null means 4 * n_embd", least=1)
    attention_types: tuple = _key(
        ("global", "local"),
        "a pattern of global, local, linear, none repeated to n_layer ([global, local]) or gpt-neo's form "
        "([[[global, local], 6]])",
    )
    window_size: int = _key(256, "keys a local layer sees, the token itself included", least=1)
    attention_bias: bool = _key(False, "give queries, keys and values a bias, as GPT-2 does")
    scale_attention: bool = _key(False, "divide attention scores by sqrt(head_dim), as GPT-2 does")
    activation_function: str = _key(
        "gelu_new", "MLP non-linearity; gelu_new is gpt-neo's gelu, gelu the exact one", choices=ACTIVATIONS
    )
    mlp_glu: bool = _key(False, "gate the MLP: up(x) * activation(gate(x))")
    macaron: bool = _key(False, "an MLP before attention too, both at half weight")
    causal: bool = _key(True, "false: every token sees those after it; trained with train.mlm_mask_id")
    rotary_emb: bool = _key(False, "turn queries and keys by their position; there is no position table then")
    axial_pos_emb: tuple = _key(
        (), "[a, b], a * b >= n_ctx: two position tables of a and b rows instead of one"
    )
    num_mem_kv: int = _key(0, "learned keys and values that every global layer also sees", least=0)
    scalenorm: bool = _key(False, "normalise the input of each branch with one number as scale, without bias")
    rezero: bool = _key(False, "no normalisation in blocks; each branch times a number that starts at 0")
    share_parameters: bool = _key(False, "one set of weights for all layers")
    tie_word_embeddings: bool = _key(True, "use the token embedding as the output table too")
    layer_norm_epsilon: float = _key(1e-5, "added to the variance in layer normalisation", least=0)
    embed_dropout: float = _key(
        0.0, "dropout rate on the sum of token and position embedding", least=0, below=1
    )
    attn_dropout: float = _key(
        0.0, "dropout rate on attention probabilities (global layers only)", least=0, below=1
    )
    res_dropout: float = _key(
        0.0, "dropout rate on the output of each attention and MLP branch", least=0, below=1
    )
    initializer_range: float | None = _key(
        None, "standard deviation of all initial matrices, as in GPT-2; null: gpt-neo's own for each", least=0
    )
    scale_by_depth: bool = _key(False, "initialise the MLP's output projection smaller by sqrt(n_layer)")
    scale_by_in: bool = _key(False, "initialise MLP weights smaller by sqrt of their inputs")
    init_from: str = _key(
        "",
        "start from the weights of this Hugging Face or run directory; keys of model that are not given are its own",
    )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def mlp_dim(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """The attention type of every layer, `n_layer` of them."""
        return expand_attention_types(self.attention_types, self.n_layer)


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh and which named dimensions its axes split."""

    shape: str = _key(
        "data:-1", 'axes and their sizes, "data:4, model:2"; -1 takes the devices that are left'
    )
    layout: str = _key(
        "batch:data",
        'where computation lives: "batch:data, heads:model, mlp:model"; a+b splits over two axes',
    )
    param_layout: str = _key(
        "", 'where parameters and optimizer state are stored, on top of layout: "embd:data" is FSDP'
    )
    dcn_shape: str = _key("", 'part of each axis that spans slices joined by a data-center network: "data:2"')
    distributed: bool | None = _key(
        None,
        "whether this process is one of several: true joins them or fails, false never looks; null: where the keys below, "
        "Slurm, Open MPI or a TPU pod say so",
    )
    coordinator: str = _key(
        "", "HOST:PORT, an address of the first process's host and a free port; or JAX_COORDINATOR_ADDRESS"
    )
    num_processes: int | None = _key(None, "processes of the run; or JAX_NUM_PROCESSES", least=1)
    process_id: int | None = _key(None, "number of this process, from 0 on; or JAX_PROCESS_ID", least=0)
    cpu_devices: int = _key(
        0,
        "run on this many fake CPU devices instead of real accelerators; 0 for real ones",
        least=0,
        most=4096,
    )


@dataclass(frozen=True)
class SourceConfig:
    """One source of the training mixture."""

    path: str = _key(
        "",
        "a folder that `neojax prepare` wrote; PREFIX of a token store's PREFIX.bin and PREFIX.idx; or TFRecords: "
        "a file, a folder or a glob",
    )
    weight: float = _key(1.0, "share of the mixture, relative to the other sources", least=0)


@dataclass(frozen=True)
class DataConfig:
    """Token stores and tokenizer."""

    train: tuple[SourceConfig, ...] = _key((), "the training mixture: a path, or a list of {path, weight}")
    validation: tuple[SourceConfig, ...] = _key(
        (), "held-out stores, each read once in order at every evaluation"
    )
    tokenizer: str = _key("", "tokenizer.json; default: the one beside the first training source")
    prefetch: int = _key(8, "batches read ahead of the training step", least=1)


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    run_dir: str = _key(
        "", "where config.yml, metrics.jsonl, tensorboard/, checkpoints/ and the tokenizer go"
    )
    batch_size: int = _key(8, "sequences in one optimizer step, over all devices", least=1)
    steps: int = _key(1000, "optimizer steps in the whole run", least=1)
    microbatch: int = _key(
        0, "sequences in one forward and backward pass, over all devices; 0: batch_size", least=0
    )
    precision: str = _key(
        "auto",
        "compute type; auto is bfloat16 on TPU and GPU, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    )
    reduce_dtype: str = _key(
        "float32",
        "where compute is bfloat16, the type in which gradients of matrices and tables are added up over devices: "
        "bfloat16 sends half as much, and over 64 devices or more loses more than compute does; all other sums are float32",
        choices=("float32", "bfloat16"),
    )
    remat: str = _key(
        "none",
        "what the backward pass recomputes: none; full: whole blocks; names: all but named matmul outputs; "
        "offload: as names, those being kept in the host's memory",
        choices=("none", "full", "names", "offload"),
    )
    unroll: int = _key(
        1,
        "repetitions of the layer group compiled into one turn of the loop over layers; more take longer to compile and "
        "more memory, and may run faster; 0: all, the fastest on CPU",
        least=0,
    )
    attention_kernel: str = _key(
        "auto",
        "auto: splash on TPU, cudnn on NVIDIA GPUs, xla elsewhere and for what they cannot do; a kernel named here is "
        "used or refused",
        choices=("auto", "xla", "splash", "cudnn"),
    )
    optimizer: str = _key("adamw", "update rule", choices=("adamw", "adafactor"))
    learning_rate: float = _key(6e-4, "peak learning rate", least=0)
    warmup_steps: int = _key(100, "steps of linear warmup from zero", least=0)
    schedule: str = _key(
        "cosine", "decay after warmup", choices=("cosine", "linear", "constant", "inverse_sqrt")
    )
    warmup_scales_decay: bool = _key(
        False, "gpt-neo's schedule: decay runs from step 0, and warmup multiplies it by step / warmup_steps"
    )
    decay_steps: int | None = _key(
        None, "step at which cosine and linear decay reach their floor; null: steps", least=1
    )
    min_lr_ratio: float = _key(
        0.1, "floor of the cosine and linear schedules, as a share of the peak", least=0, most=1
    )
    weight_decay: float = _key(0.1, "decoupled weight decay, times the learning rate", least=0)
    no_decay: tuple[str, ...] = _key(
        ("ndim<2",),
        'parameters without weight decay: "ndim<2" (vectors and numbers), a dimension name (vocab), or a name pattern '
        "(*norm*)",
    )
    beta1: float = _key(0.9, "decay of AdamW's first moment", least=0, below=1)
    beta2: float = _key(0.95, "decay of AdamW's second moment", least=0, below=1)
    epsilon: float = _key(1e-8, "added to AdamW's denominator", above=0)
    moment_dtype: str = _key(
        "float32", "type in which AdamW keeps its first moment", choices=("float32", "bfloat16")
    )
    bias_correction: bool = _key(True, "correct AdamW's moments for their start at zero; gpt-neo did not")
    adafactor_decay: float | None = _key(
        None,
        "decay of Adafactor's second moments; null: the paper's 1 - step^-0.8. gpt-neo gave it weight_decay",
        least=0,
        below=1,
    )
    adafactor_momentum: float = _key(
        0.0, "decay of the mean of Adafactor's updates; 0: no mean, and no memory for it", least=0, below=1
    )
    adafactor_epsilon1: float = _key(1e-30, "added to the squared gradients of Adafactor", above=0)
    adafactor_epsilon2: float = _key(
        1e-3, "least RMS of a parameter that Adafactor's update is scaled by", least=0
    )
    clip_norm: float = _key(1.0, "largest global gradient norm; 0: no clipping", least=0)
    max_bad_steps: int = _key(
        10,
        "a step whose loss or gradient is not finite is skipped; after so many in a row the run ends",
        least=1,
    )
    loss: str = _key(
        "cross_entropy", "entmax: sparse probabilities (alpha 1.3)", choices=("cross_entropy", "entmax")
    )
    z_loss: float = _key(0.0, "weight of the squared log-partition added to the loss", least=0)
    mlm_mask_id: int | None = _key(
        None, "train on masked tokens (model.causal: false), with this id in their place", least=0
    )
    mlm_mask_prob: float = _key(0.15, "share of the tokens that are masked and scored", least=0, most=1)
    mlm_same_token_prob: float = _key(
        0.1, "share of the masked tokens that are shown all the same", least=0, most=1
    )
    mlm_random_token_prob: float = _key(
        0.0, "share of the masked tokens shown as a random id", least=0, most=1
    )
    mlm_mask_ignore_ids: tuple = _key((), "ids that are never masked")
    mlm_cls_token_id: int | None = _key(None, "id in the place of the first token of every row", least=0)
    compiler_options: tuple[str, ...] = _key(
        (),
        "XLA options for the training step, as name=value; they take precedence over the platform's own "
        "(neojax/training/compiler.py)",
    )
    deterministic: bool = _key(
        False,
        "on GPUs: only operations whose results do not depend on the order in which threads finish, so that a resumed "
        "run equals an uninterrupted one bit for bit; slower. CPUs and TPUs do so without it",
    )
    seed: int = _key(
        0,
        "seed of initial weights, data order and dropout; weights and dropout depend on its lower 32 bits alone",
        least=0,
        most=2**63 - 1,
    )
    log_every: int = _key(10, "steps between lines of metrics.jsonl", least=1)
    eval_every: int = _key(0, "steps between evaluations on data.validation; 0: only at the end", least=0)
    eval_batches: int = _key(0, "batches of each validation store to evaluate; 0: all", least=0)
    checkpoint_every: int = _key(1000, "steps between checkpoints; one is always written at the end", least=1)
    grace_seconds: float = _key(
        120.0,
        "seconds that a run which SIGTERM, Ctrl-C or SIGHUP stops may take to save; then it ends as it is, its last whole "
        "checkpoint being the one to go on from",
        least=0,
    )
    stall_seconds: float | None = _key(
        None,
        "seconds after which a step that has not ended ends its process, with status 75 and every thread's stack in "
        "RUN/logs; null: 50 times the median step, at least 120; 0: never",
        least=0,
    )
    keep: int = _key(3, "newest checkpoints to keep", least=1)
    restart: bool = _key(
        False,
        "begin anew in a run directory whose checkpoints are gone, keeping its old metrics beside the new; one that has "
        "checkpoints goes on from them",
    )
    on_damage: str = _key(
        "stop",
        "what to do where the newest checkpoint is damaged; previous: set it aside and go on from the one before",
        choices=("stop", "previous"),
    )
    on_save_error: str = _key(
        "stop",
        "what to do where a checkpoint or metrics cannot be written, as on a full disk; continue: say so, train on and try "
        "again at the next",
        choices=("stop", "continue"),
    )
    tensorboard: bool = _key(True, "write TensorBoard event files")
    profile_steps: tuple = _key(
        (),
        "[first, last]: trace these steps into RUN/profile (the first step of a run is 1); empty: no trace",
    )


@dataclass(frozen=True)
class Config:
    """A whole run: `model`, `mesh`, `data`, `train`."""

    model: ModelConfig = _key(ModelConfig(), "the model")
    mesh: MeshConfig = _key(MeshConfig(), "the device mesh")
    data: DataConfig = _key(DataConfig(), "the data")
    train: TrainConfig = _key(TrainConfig(), "the training run")


def expand_attention_types(spec: tuple, n_layer: int) -> tuple[str, ...]:
    """Expands `[[[types], n], ...]` or a repeating pattern of names to `n_layer` names.

    Source: `attention_types` of gpt-neo's and Hugging Face's configs.
    """
    where = "model.attention_types"
    if all(isinstance(entry, str) for entry in spec):
        names = list(spec)
        if names and n_layer % len(names) == 0:
            names *= n_layer // len(names)
    else:
        names = []
        for entry in spec:
            match entry:
                case [[*pattern], int(repeats)]:
                    if not 0 < repeats <= n_layer:
                        raise NeojaxError(
                            f"{where}: {pattern} is repeated {repeats} times; expected 1 to model.n_layer={n_layer}"
                        )
                    names += pattern * repeats
                case _:
                    raise NeojaxError(f"{where}: expected [[types], count] or a list of names, got {entry!r}")
    for name in names:
        if name not in ATTENTION_TYPES:
            raise NeojaxError(
                f"{where}: unknown attention type {name!r}{suggest(str(name), ATTENTION_TYPES)}"
            )
    if len(names) != n_layer:
        raise NeojaxError(
            f"{where}: {spec} gives {len(names)} layers but model.n_layer is {n_layer}; "
            "make the pattern divide n_layer or the counts add up to it"
        )
    return tuple(names)
