"""The keys of a run: its mesh, its data and its training; those of the model are in `neojax.config.model`.

`neojax inspect --keys` prints them all; `neojax.config` reads, checks and writes them.
"""

from dataclasses import dataclass

from neojax.config.declare import key
from neojax.config.model import ModelConfig
from neojax.config.tasks import TASKS


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh and which named dimensions its axes split."""

    shape: str = key("data:-1", 'axes and their sizes, "data:4, model:2"; -1 takes the devices that are left')
    layout: str = key(
        "batch:data",
        'where computation lives: "batch:data, heads:model, mlp:model"; a+b splits over two axes; auto: the '
        "layout, shape and param_layout that are best by the analytic model, see docs/plan.md",
    )
    param_layout: str = key(
        "", 'where parameters and optimizer state are stored, on top of layout: "embd:data" is FSDP'
    )
    dcn_shape: str = key("", 'part of each axis that spans slices joined by a data-center network: "data:2"')
    distributed: bool | None = key(
        None,
        "whether this process is one of several: true joins them or fails, false never looks; null: where "
        "the keys below, Slurm, Open MPI or a TPU pod say so",
    )
    coordinator: str = key(
        "", "HOST:PORT, an address of the first process's host and a free port; or JAX_COORDINATOR_ADDRESS"
    )
    num_processes: int | None = key(None, "processes of the run; or JAX_NUM_PROCESSES", least=1)
    process_id: int | None = key(None, "number of this process, from 0 on; or JAX_PROCESS_ID", least=0)
    cpu_devices: int = key(
        0,
        "run on this many fake CPU devices instead of real accelerators; 0 for real ones",
        least=0,
        most=4096,
    )


@dataclass(frozen=True)
class SourceConfig:
    """One source of the training mixture."""

    path: str = key(
        "",
        "a folder that `neojax prepare` wrote; PREFIX of a token store's PREFIX.bin and PREFIX.idx; or "
        "TFRecords: a file, a folder or a glob",
    )
    weight: float = key(1.0, "share of the mixture, relative to the other sources", least=0)
    split: str = key(
        "",
        "shares of a token store's documents for training, validation and testing, cut in their order as "
        'GPT-NeoX and Megatron do, such as "969,30,1"; data.train reads the first of them, data.validation '
        "the second; empty: all documents",
    )


@dataclass(frozen=True)
class SquadConfig:
    """Answers that are spans of a passage: how passages are parted into rows, and which span is the answer.
    The names are those of BERT's run_squad.py."""

    doc_stride: int = key(
        128,
        "a passage that is too long for a row is parted into windows, each so many tokens behind the one "
        "before (less where windows are shorter)",
        least=1,
    )
    max_query_length: int = key(64, "tokens of a question that are kept, the first", least=1)
    max_answer_length: int = key(30, "tokens of an answer, at most", least=1)
    n_best_size: int = key(
        20, "the best starts and ends of a window that are tried, and answers told", least=1
    )
    null_score_diff_threshold: float = key(
        0.0,
        "squad_v2: there is no answer where the score of none is more than so far above that of the best",
        least=-10000,
        most=10000,
    )


@dataclass(frozen=True)
class DataConfig:
    """Token stores and tokenizer."""

    train: tuple[SourceConfig, ...] = key((), "the training mixture: a path, or a list of {path, weight}")
    validation: tuple[SourceConfig, ...] = key(
        (), "held-out stores, each read once in order at every evaluation"
    )
    tokenizer: str = key("", "tokenizer.json; default: the one beside the first training source")
    merges: str = key("", "merges.txt, where data.tokenizer is a vocab.json: the two files of GPT-2's BPE")
    isolate_documents: bool = key(
        False,
        "attention stays within a document, and positions begin with it, where several stand in a window; "
        "false: a token sees all before it in the window",
    )
    pairs: str = key(
        "none",
        "rows are two segments of sentences, [CLS] A [SEP] B [SEP], and masked: nsp, B follows A or is from "
        "another document (BERT); sop, A and B are in order or changed (ALBERT); none: windows of the text",
        choices=("none", "nsp", "sop"),
    )
    short_prob: float = key(
        0.1, "share of the documents whose pairs are of any length below n_ctx", least=0, most=1
    )
    task: str = key(
        "none",
        "data.train and data.validation are files of labelled rows (TSV, CSV, JSON lines), to fine-tune a "
        "model with a head for them: classification; multilabel, of any number of classes; regression; "
        "tagging, of words; multiple_choice; squad and squad_v2, spans of a passage that answer a question; "
        "or a task of GLUE. sft: what `neojax prepare --format sft` wrote, of which answers are learnt. "
        "none: text",
        choices=("none", *TASKS),
    )
    text: str = key("", "task: the column of the text, by name or number (0: the first); empty: a usual name")
    text2: str = key("", "task: the column of a second text, where there is one, as for text")
    label: str = key("", "task: the column of the label, as for text")
    max_tokens: int = key(0, "task: longer rows are cut to so many tokens; 0: model.n_ctx", least=0)
    squad: SquadConfig = key(SquadConfig(), "answers that are spans of a passage")
    prefetch: int = key(8, "batches read ahead of the training step", least=1)


@dataclass(frozen=True)
class LoraConfig:
    """Training by low-rank additions to matrices, which are all that is trained."""

    rank: int = key(0, "rank of the additions; 0: none, and training is of the weights themselves", least=0)
    alpha: float = key(16.0, "an addition counts alpha / rank times", above=0)
    rs: bool = key(False, "rank-stabilised: alpha / sqrt(rank) times, https://arxiv.org/abs/2312.03732")
    targets: tuple[str, ...] = key(
        ("attn.query", "attn.value"),
        "matrices of blocks that have an addition, told as in no_decay: attn.query, attn.*, mlp.down, "
        "blocks.1.*, or a dimension (mlp, heads)",
    )
    dropout: float = key(0.0, "dropout on what an addition takes", least=0, below=1)
    base: str = key(
        "float32",
        "type in which frozen matrices are kept; int8, with a scale for every output channel: those of "
        "blocks, other matrices being bfloat16",
        choices=("float32", "bfloat16", "int8"),
    )
    whole: tuple[str, ...] = key(
        (), "parameters that are trained themselves beside the additions, told as in no_decay (norm_f.*)"
    )


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    run_dir: str = key("", "where config.yml, metrics.jsonl, tensorboard/, checkpoints/ and the tokenizer go")
    batch_size: int = key(8, "sequences in one optimizer step, over all devices", least=1)
    steps: int = key(1000, "optimizer steps in the whole run", least=1)
    epochs: float = key(
        0.0,
        "with data.task, the run goes so often over the rows, and steps follows; 0: as steps says",
        least=0,
    )
    microbatch: int = key(
        0, "sequences in one forward and backward pass, over all devices; 0: batch_size", least=0
    )
    precision: str = key(
        "auto",
        "compute type; auto is bfloat16 on TPU and GPU, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    )
    reduce_dtype: str = key(
        "float32",
        "where compute is bfloat16, the type in which gradients of matrices and tables are added up over "
        "devices: bfloat16 sends half as much, and over 64 devices or more loses more than compute does; "
        "all other sums are float32",
        choices=("float32", "bfloat16"),
    )
    remat: str = key(
        "none",
        "what the backward pass recomputes: none; full: whole blocks; names: all but named matmul outputs; "
        "offload: as names, those being kept in the host's memory",
        choices=("none", "full", "names", "offload"),
    )
    unroll: int | None = key(
        None,
        "repetitions of the layer group compiled into one turn of the loop over layers; more take longer to "
        "compile and more memory, and may run faster; 0: all, the fastest on CPU; null: all on GPUs, "
        "elsewhere 1",
        least=0,
    )
    pipeline_rounds: int = key(
        1,
        "with layers split in mesh.layout, how often a microbatch goes round the stages, each of which has "
        "as many groups of layers: they wait so much less, but weights travel to their stage at every step; "
        "with train.remat",
        least=1,
    )
    attention_kernel: str = key(
        "auto",
        "auto: splash on TPU, cudnn on NVIDIA GPUs, xla elsewhere and for what they cannot do; a kernel "
        "named here is used or refused",
        choices=("auto", "xla", "splash", "cudnn"),
    )
    optimizer: str = key(
        "adamw",
        "update rule; lamb: AdamW's, each parameter's step being as long as the parameter times the learning "
        "rate, for large batches",
        choices=("adamw", "adafactor", "lamb"),
    )
    learning_rate: float = key(6e-4, "peak learning rate", least=0)
    warmup_steps: int = key(100, "steps of linear warmup from zero", least=0)
    warmup_share: float = key(
        0.0,
        "with data.task, the share of the steps that are warmup; 0: as warmup_steps says",
        least=0,
        below=1,
    )
    schedule: str = key(
        "cosine",
        "decay after warmup; linear_to_zero and exponential stop at the floor, others lead to it",
        choices=("cosine", "linear", "linear_to_zero", "exponential", "constant", "inverse_sqrt"),
    )
    warmup_scales_decay: bool = key(
        False, "gpt-neo's schedule: decay runs from step 0, and warmup multiplies it by step / warmup_steps"
    )
    decay_steps: int | None = key(
        None, "step at which the decay ends, that of inverse_sqrt apart; null: steps", least=1
    )
    min_lr_ratio: float = key(
        0.1,
        "floor of the schedules, as a share of the peak; constant and inverse_sqrt have none",
        least=0,
        most=1,
    )
    weight_decay: float = key(0.1, "decoupled weight decay, times the learning rate", least=0)
    no_decay: tuple[str, ...] = key(
        ("ndim<2",),
        'parameters without weight decay: "ndim<2" (vectors and numbers), a dimension name (vocab), or a '
        "name pattern (*norm*)",
    )
    layer_decay: float = key(
        1.0,
        "layer-wise decay: a parameter that stands d layers below the head has layer_decay^d times the "
        "learning rate; the embedding is the lowest layer",
        above=0,
        most=1,
    )
    rate_factors: tuple[str, ...] = key(
        (),
        "parameters, told as in no_decay, with a multiple of the learning rate: "
        '["classifier.*:10", "vocab:0.1"]; where several entries match, their product',
    )
    frozen: tuple[str, ...] = key(
        (),
        "parameters that keep their values, told as in no_decay (vocab, blocks.1.*); all others are "
        "trained. Frozen ones have no gradient, no moments and no weight decay",
    )
    lora: LoraConfig = key(LoraConfig(), "training by low-rank additions (LoRA)")
    beta1: float = key(0.9, "decay of AdamW's and LAMB's first moment", least=0, below=1)
    beta2: float = key(0.95, "decay of AdamW's and LAMB's second moment", least=0, below=1)
    epsilon: float = key(1e-8, "added to AdamW's and LAMB's denominator", above=0)
    moment_dtype: str = key(
        "float32", "type in which AdamW and LAMB keep their first moment", choices=("float32", "bfloat16")
    )
    bias_correction: bool = key(
        True, "correct AdamW's and LAMB's moments for their start at zero; gpt-neo, BERT and ALBERT did not"
    )
    adafactor_decay: float | None = key(
        None,
        "decay of Adafactor's second moments; null: the paper's 1 - step^-0.8. gpt-neo gave it weight_decay",
        least=0,
        below=1,
    )
    adafactor_momentum: float = key(
        0.0, "decay of the mean of Adafactor's updates; 0: no mean, and no memory for it", least=0, below=1
    )
    adafactor_epsilon1: float = key(1e-30, "added to the squared gradients of Adafactor", above=0)
    adafactor_epsilon2: float = key(
        1e-3, "least RMS of a parameter that Adafactor's update is scaled by", least=0
    )
    clip_norm: float = key(1.0, "largest global gradient norm; 0: no clipping", least=0)
    max_bad_steps: int = key(
        10,
        "a step whose loss or gradient is not finite is skipped; after so many in a row the run ends",
        least=1,
    )
    loss: str = key(
        "cross_entropy", "entmax: sparse probabilities (alpha 1.3)", choices=("cross_entropy", "entmax")
    )
    z_loss: float = key(0.0, "weight of the squared log-partition added to the loss", least=0)
    mlm_mask_id: int | None = key(
        None, "train on masked tokens (model.causal: false), with this id in their place", least=0
    )
    mlm_mask_prob: float = key(0.15, "share of the tokens that are masked and scored", least=0, most=1)
    mlm_same_token_prob: float = key(
        0.1, "share of the masked tokens that are shown all the same", least=0, most=1
    )
    mlm_random_token_prob: float = key(
        0.0,
        "share of the masked tokens shown as a random id; with data.pairs: 0.1, where it is not given",
        least=0,
        most=1,
    )
    mlm_whole_words: bool = key(False, "pairs: whole words are masked; sop: true, where it is not given")
    mlm_max_ngram: int = key(
        1,
        "pairs: up to so many words (or tokens) in a row are masked, n of them with a probability in "
        "proportion to 1 / n; sop: 3, where it is not given",
        least=1,
        most=16,
    )
    mlm_max_predictions: int = key(0, "pairs: at most so many masked tokens in a row; 0: no bound", least=0)
    mlm_mask_ignore_ids: tuple = key((), "ids that are never masked")
    mlm_cls_token_id: int | None = key(None, "id in the place of the first token of every row", least=0)
    compiler_options: tuple[str, ...] = key(
        (),
        "XLA options for the training step, as name=value; they take precedence over the platform's own "
        "(neojax/training/compiler.py)",
    )
    deterministic: bool = key(
        False,
        "on GPUs: only operations whose results do not depend on the order in which threads finish, so that "
        "a resumed run equals an uninterrupted one bit for bit; slower. CPUs and TPUs do so without it",
    )
    seed: int = key(
        0,
        "seed of initial weights, data order and dropout; weights and dropout depend on its lower 32 bits "
        "alone",
        least=0,
        most=2**63 - 1,
    )
    log_every: int = key(10, "steps between lines of metrics.jsonl", least=1)
    eval_every: int = key(
        0, "steps between evaluations on data.validation and eval_tasks; 0: only at the end", least=0
    )
    eval_batches: int = key(0, "batches of each validation store to evaluate; 0: all", least=0)
    eval_tasks: tuple[str, ...] = key(
        (),
        "tasks from local files, asked at every evaluation: NAME=FILE or NAME=FILE+FILE_OF_EXAMPLES, as "
        "`neojax eval --tasks` takes them; metrics are NAME_acc and the like",
    )
    eval_tasks_fewshot: int = key(0, "eval_tasks: examples before each question", least=0)
    eval_tasks_limit: int = key(0, "eval_tasks: the first so many questions of each; 0: all", least=0)
    best_metric: str = key(
        "",
        "metric of evaluations, as in metrics.jsonl (validation_loss): a checkpoint is written of the best "
        "evaluation and kept beside the newest; RUN/checkpoints/best",
    )
    best_is: str = key(
        "auto",
        "which value of best_metric is the best; auto: the lowest of a loss or perplexity, else the highest",
        choices=("auto", "lowest", "highest"),
    )
    patience: int = key(
        0,
        "evaluations in a row that are no better than the best, after which the run ends; 0: never",
        least=0,
    )
    min_gain: float = key(0.0, "by how much an evaluation has to be better to count as such", least=0)
    checkpoint_every: int = key(1000, "steps between checkpoints; one is always written at the end", least=1)
    checkpoint_steps: tuple = key(
        (), "further steps at which a checkpoint is written; 0: before the first, of the initial weights"
    )
    grace_seconds: float = key(
        120.0,
        "seconds that a run which SIGTERM, Ctrl-C or SIGHUP stops may take to save; then it ends as it is, "
        "its last whole checkpoint being the one to go on from",
        least=0,
    )
    stall_seconds: float | None = key(
        None,
        "seconds after which a step that has not ended ends its process, with status 75 and every thread's "
        "stack in RUN/logs; null: 50 times the median step, at least 120; 0: never",
        least=0,
    )
    keep: int = key(3, "newest checkpoints to keep", least=1)
    restart: bool = key(
        False,
        "begin anew in a run directory whose checkpoints are gone, keeping its old metrics beside the new; "
        "one that has checkpoints goes on from them",
    )
    init_from: str = key(
        "",
        "start from the weights of this Hugging Face or run directory; keys of model that are not given are "
        "its own",
    )
    on_damage: str = key(
        "stop",
        "what to do where the newest checkpoint is damaged; previous: set it aside and go on from the one "
        "before",
        choices=("stop", "previous"),
    )
    on_save_error: str = key(
        "stop",
        "what to do where a checkpoint or metrics cannot be written, as on a full disk; continue: say so, "
        "train on and try again at the next",
        choices=("stop", "continue"),
    )
    tensorboard: bool = key(True, "write TensorBoard event files")
    profile_steps: tuple = key(
        (),
        "[first, last]: trace these steps into RUN/profile (the first step of a run is 1); empty: no trace",
    )

    @property
    def microbatches(self) -> int:
        """The parts of a batch that pass forward and backward by themselves."""
        return self.batch_size // (self.microbatch or self.batch_size)


@dataclass(frozen=True)
class Config:
    """A whole run: `model`, `mesh`, `data`, `train`."""

    model: ModelConfig = key(ModelConfig(), "the model")
    mesh: MeshConfig = key(MeshConfig(), "the device mesh")
    data: DataConfig = key(DataConfig(), "the data")
    train: TrainConfig = key(TrainConfig(), "the training run")
