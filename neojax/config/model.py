"""The keys of the model: its sizes, and a group of keys for each of its parts.

Each family gives its own defaults (`neojax.config.families`); those here are gpt-neo's.
"""

from dataclasses import dataclass

from neojax.config.declare import key
from neojax.config.families import FAMILIES
from neojax.errors import NeojaxError, suggest

ATTENTION_TYPES = ("global", "local", "linear", "none")
EXPERTS = "+experts"
HEADS = (
    "lm",
    "mlm",
    "pair",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "multiple_choice",
)
WITH_SCALARS = ("aria", "prelu", "parcsinh", "psoftplus", "proottanh")  # activations that learn some
ACTIVATIONS = (
    "gelu_new",
    "gelu",
    "relu",
    "silu",
    "sigmoid",
    "tanh",
    "selu",
    "elu",
    "softplus",
    "mish",
    "abs",
    "sin",
    "cos",
    "sign",
    "lrelu001",
    "lrelu020",
    "id",
    "triangle_relax",
    "square_relax",
    "spike",
    "spike2",
    "tanhshrink",
    "softsign",
    "softmax",
    "logsoftmax",
    "bipolarsigmoid",
    "elish",
    "arcsinh",
    "maxsig",
    "cosid",
    "minsin",
    "maxtanh",
    "tanhexp",
    "lisht",
    "seagull",
    "snake",
    "roottanh",
    "softplusmone",
    "rrelu",
    *WITH_SCALARS,
)
WITHOUT_SCALARS = tuple(name for name in ACTIVATIONS if name not in WITH_SCALARS)


@dataclass(frozen=True)
class AttentionConfig:
    """Attention of every block."""

    heads: int = key(12, "attention heads; must divide n_embd, unless head_dim is given", least=1)
    kv_heads: int | None = key(
        None,
        "heads of keys and values, each read by as many of queries (grouped-query attention); must divide "
        "heads; null: as many as heads",
        least=1,
    )
    head_dim: int | None = key(None, "width of a head; null: n_embd / heads", least=1)
    types: tuple = key(
        ("global", "local"),
        "a pattern of global, local, linear, none repeated to n_layer ([global, local]) or gpt-neo's form "
        "([[[global, local], 6]])",
    )
    window: int = key(256, "keys a local layer sees, the token itself included", least=1)
    bias: bool = key(False, "give queries, keys and values a bias, as GPT-2 does")
    out_bias: bool = key(True, "give the output projection a bias")
    scale: bool = key(False, "divide attention scores by sqrt(head_dim), as GPT-2 does")
    memory_slots: int = key(0, "learned keys and values that every global layer also sees", least=0)
    dropout: float = key(
        0.0, "dropout rate on attention probabilities (global layers only)", least=0, below=1
    )


@dataclass(frozen=True)
class MlpConfig:
    """The MLP of every block."""

    width: int | None = key(None, "width of the MLP; null means 4 * n_embd", least=1)
    activation: str = key(
        "gelu_new", "non-linearity; gelu_new is gpt-neo's gelu, gelu the exact one", choices=ACTIVATIONS
    )
    gated: bool = key(False, "gate the MLP: up(x) * activation(gate(x)); with silu this is SwiGLU")
    bias: bool = key(True, "give its projections a bias")
    macaron: bool = key(False, "an MLP before attention too, both at half weight")


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of the MLP: small MLPs without bias, of which a router picks some for
    each token."""

    number: int = key(0, "experts of a layer; 0: none, every layer has the MLP", least=0)
    layers: tuple = key((), "the layers, numbered from 0, that have experts in place of the MLP; []: all")
    width: int | None = key(None, "width of an expert; null: that of the MLP", least=1)
    activation: str = key("relu", "non-linearity of the experts", choices=WITHOUT_SCALARS)
    top_k: int = key(
        2,
        "experts of a token, those the router holds likeliest; 1: their output times the probability, as in "
        "Switch Transformer; else times probabilities that add up to 1",
        least=1,
    )
    second: str = key(
        "all",
        "with top_k=2, which tokens go to the second expert too; all; random: in training as often as its "
        "share over second_threshold, as in gpt-neo and GShard; threshold: those whose share is above it; "
        "none: no token, which has its first expert's output times its share of the two",
        choices=("all", "random", "threshold", "none"),
    )
    second_threshold: float = key(0.2, "of second=random and second=threshold", above=0, most=1)
    sampled: bool = key(
        False, "with top_k=1, in training draw the expert by the router's probabilities, not the likeliest"
    )
    jitter: float = key(
        0.0, "in training, what the router reads is times 1 - jitter to 1 + jitter", least=0, below=1
    )
    input_dropout: float = key(
        0.0, "in training, share of what the router reads that is set to 0", least=0, below=1
    )
    capacity_factor: float = key(
        1.25,
        "in training, tokens of a group that an expert takes, as a multiple of top_k * group / number; those "
        "that come later pass it by",
        above=0,
    )
    group_size: int | None = key(
        None,
        "tokens that share this capacity, at most: each row is cut into equal groups; null: a row",
        least=1,
    )
    min_capacity: int = key(1, "in training, tokens of a group that an expert takes at least", least=1)
    tries: int = key(
        1,
        "with top_k=1, in training, the experts that a token asks for room, the likeliest first; 1: a token "
        "whose expert is full passes it by; more: Mesh-TensorFlow's no-token-left-behind",
        least=1,
    )
    dropless: bool = key(False, "in training, as ever otherwise, experts take all that are sent")
    balance_loss: float = key(
        0.01, "weight of the loss that spreads tokens over experts, 1 where they are evenly spread", least=0
    )
    z_loss: float = key(0.0, "weight of the square of the router's log-partition function", least=0)


@dataclass(frozen=True)
class NormConfig:
    """Normalisation in every block."""

    kind: str = key(
        "layer",
        "layer: the input of each branch by its mean and variance; rms: by its root mean square, without "
        "bias (RMSNorm); scale: as layer with one number as scale, without bias; rezero: none in blocks, "
        "each branch times a number that starts at 0",
        choices=("layer", "rms", "scale", "rezero"),
    )
    order: str = key(
        "pre",
        "where it stands in a block: pre: x + branch(norm(x)); post: norm(x + branch(x)); parallel: both "
        "branches read x, each after a norm of its own; parallel_shared: both after one norm",
        choices=("pre", "post", "parallel", "parallel_shared"),
    )
    epsilon: float = key(1e-5, "added to the variance", least=0)


@dataclass(frozen=True)
class PositionsConfig:
    """How the model is told where a token stands."""

    kind: str = key(
        "learned",
        "learned: a table of n_ctx rows; axial: two tables, of the rows and columns that `axial` says; "
        "rotary: queries and keys are turned by their position, and there is no table",
        choices=("learned", "axial", "rotary"),
    )
    axial: tuple = key((), "[a, b], a * b >= n_ctx: rows of the two tables of kind axial")
    rotary_dims: int | None = key(
        None, "features of each head that rotary positions rotate, its first ones; null: all", least=2
    )
    base: float = key(10000.0, "of the wavelengths of rotary positions", above=1)
    interleaved: bool = key(
        False,
        "rotate neighbours, features 2i and 2i + 1, as GPT-J does; false: feature i of either half",
    )
    scaling: str = key(
        "none",
        "how wavelengths of rotary positions are stretched for a longer context; linear: all by "
        "scaling_factor; llama3: long ones by it, short ones not, those between by part of it",
        choices=("none", "linear", "llama3"),
    )
    scaling_factor: float = key(1.0, "of scaling linear and llama3", least=1)
    scaling_context: int = key(
        8192, "context length before scaling llama3; its wavelengths are measured by it", least=1
    )
    scaling_long: float = key(
        1.0, "llama3: wavelengths above scaling_context / this are stretched whole", above=0
    )
    scaling_short: float = key(
        4.0, "llama3: wavelengths below scaling_context / this are left as they are", above=0
    )


@dataclass(frozen=True)
class EmbeddingConfig:
    """The token embedding."""

    tied: bool = key(True, "use the token embedding as the output table too")
    output_bias: bool = key(False, "give the output table a bias, as GPT-J does")
    width: int | None = key(
        None,
        "width of the tables of embeddings, which a matrix then brings to n_embd, as in ALBERT; null: "
        "n_embd, and no such matrix",
        least=1,
    )
    token_types: int = key(0, "rows of the table of token types, such as BERT's 2; 0: no such table", least=0)
    norm: bool = key(False, "normalise the sum of the embeddings, as BERT does")
    dropout: float = key(0.0, "dropout rate on the sum of token and position embedding", least=0, below=1)


@dataclass(frozen=True)
class HeadConfig:
    """What the model says of its input."""

    kinds: tuple[str, ...] = key(
        ("lm",),
        "lm: the next token. Of bert and albert: mlm, masked tokens; pair, whether B follows A; [mlm, pair] "
        "go together; []: none, the model gives its hidden states. Of all families: sequence_classification; "
        "token_classification; question_answering; multiple_choice",
    )
    labels: tuple[str, ...] = key(
        ("LABEL_0", "LABEL_1"),
        "names of the classes of sequence_classification and token_classification, in their order; one: "
        "sequence_classification gives a number",
    )
    multilabel: bool = key(
        False, "sequence_classification: any number of the classes may hold, each told by itself"
    )
    dropout: float | None = key(
        None, "dropout rate before a classifier; null: as model.dropout", least=0, below=1
    )


@dataclass(frozen=True)
class InitConfig:
    """Initial weights."""

    std: float | None = key(
        None, "standard deviation of all initial matrices, as in GPT-2; null: gpt-neo's own for each", least=0
    )
    scale_by_depth: bool = key(False, "initialise the MLP's output projection smaller by sqrt(n_layer)")
    scale_by_in: bool = key(False, "initialise MLP weights smaller by sqrt of their inputs")
    method: str = key(
        "normal",
        "standard deviation of all matrices and tables but those of `output`; normal: as std says; small: "
        "sqrt(2 / (5 n_embd)), as GPT-NeoX's small_init",
        choices=("normal", "small"),
    )
    output: str = key(
        "same",
        "standard deviation of the matrices that write into the residual stream, the last ones of attention "
        "and MLP; same: as the others; scaled: std / sqrt(2 n_layer), as GPT-NeoX's scaled_normal; wang: "
        "2 / (n_layer sqrt(n_embd)), its wang_init",
        choices=("same", "scaled", "wang"),
    )


@dataclass(frozen=True)
class ModelConfig:
    """The model: its family, its sizes, and its parts."""

    family: str = key(
        "gpt_neo", "whose model it is: it gives keys that are left out their defaults", choices=FAMILIES
    )
    n_layer: int = key(12, "number of blocks", least=1, most=100_000)
    n_embd: int = key(768, "width of the residual stream", least=1)
    n_ctx: int = key(2048, "context length in tokens", least=1)
    n_vocab: int = key(
        50257, "number of token ids; padded internally so that a mesh axis can split it", least=2
    )
    causal: bool = key(True, "false: every token sees those after it; trained with train.mlm_mask_id")
    share_parameters: bool = key(False, "one set of weights for all layers, or `layer_groups` of them")
    layer_groups: int = key(
        1, "with share_parameters: so many sets of weights, each for as many layers that follow", least=1
    )
    inner_layers: int = key(
        1, "with share_parameters: layers in a set, which take turns; n_layer counts all turns", least=1
    )
    dropout: float = key(0.0, "dropout rate on the output of each attention and MLP branch", least=0, below=1)
    attention: AttentionConfig = key(AttentionConfig(), "attention")
    mlp: MlpConfig = key(MlpConfig(), "the MLP")
    experts: ExpertsConfig = key(ExpertsConfig(), "experts in place of the MLP")
    norm: NormConfig = key(NormConfig(), "normalisation")
    positions: PositionsConfig = key(PositionsConfig(), "positions")
    embedding: EmbeddingConfig = key(EmbeddingConfig(), "the token embedding")
    head: HeadConfig = key(HeadConfig(), "the head")
    init: InitConfig = key(InitConfig(), "initial weights")

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.n_embd // self.attention.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.attention.kv_heads or self.attention.heads

    @property
    def mlp_dim(self) -> int:
        return self.mlp.width or 4 * self.n_embd

    @property
    def expert_dim(self) -> int:
        """The width of an expert."""
        return self.experts.width or self.mlp_dim

    @property
    def expert_layers(self) -> tuple[bool, ...]:
        """Of every layer, whether it has experts in place of the MLP."""
        experts = self.experts
        return tuple(
            experts.number > 0 and (not experts.layers or layer in experts.layers)
            for layer in range(self.n_layer)
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The kind of every layer: its attention type, and where it has experts `EXPERTS` after it."""
        return tuple(
            attention + EXPERTS * has for attention, has in zip(self.attention_layers, self.expert_layers)
        )

    @property
    def token_embd(self) -> int:
        """The width of the token embedding."""
        return self.embedding.width or self.n_embd

    @property
    def is_encoder(self) -> bool:
        """Whether its family has heads for masked tokens and pairs, in place of one for the next token."""
        return "lm" not in FAMILIES[self.family].get("head", {}).get("kinds", ["lm"])

    @property
    def head_dropout(self) -> float:
        """The dropout rate before a classifier."""
        return self.dropout if self.head.dropout is None else self.head.dropout

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """The attention type of every layer, `n_layer` of them."""
        return expand_attention_types(self.attention.types, self.n_layer)


def expand_attention_types(spec: tuple, n_layer: int) -> tuple[str, ...]:
    """Expands `[[[types], n], ...]` or a repeating pattern of names to `n_layer` names.

    Source: `attention_types` of gpt-neo's and Hugging Face's configs.
    """
    where = "model.attention.types"
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
                            f"{where}: {pattern} is repeated {repeats} times; expected 1 to "
                            f"model.n_layer={n_layer}"
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
