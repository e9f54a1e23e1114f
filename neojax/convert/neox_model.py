"""The model of a GPT-NeoX config.

- num_layers, hidden_size, num_attention_heads: sizes. n_ctx is the length that is trained on, seq_length: a
  rotary model has no table of max_position_embeddings rows; one with learned positions has, and is refused
  where the two differ.
- gpt_j_residual, gpt_j_tied: model.norm.order; no_weight_tying: model.embedding.tied, negated.
- activation gelu is the exact one; with bias_gelu_fusion it is the tanh form, gelu_new, as GPT-NeoX computed.
  A gated MLP (swiglu, ...) is two thirds as wide as intermediate_size says, and that halved.
- attention_config: flash is global attention; local is a window of blocks, here of as many keys as the last
  token of a block sees; sliding_window_width w lets a token see w before it: a window of w + 1.
- init_method is that of embeddings and of the first matrices of a branch, output_layer_init_method that of
  its last.
- n_vocab is the padded size, as in the weights: make_vocab_size_divisible_by times model_parallel_size.
"""

import math
from functools import partial
from typing import Any

from neojax.convert.keys import Conversion
from neojax.convert.neox_files import NeoxKeys
from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.models.stack import smallest_pattern
from neojax.storage.remote import place

SIZES = {"num_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "attention.heads"}
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "softsign": "softsign",
    "swish": "silu",
    "silu": "silu",
    "mish": "mish",
}
GATED = {"geglu": "gelu", "swiglu": "silu", "reglu": "relu", "glu": "sigmoid", "bilinear": "id"}
NORMS = {  # -> kind of ours, the key of its epsilon, and what stands where that is not given
    "layernorm": ("layer", "layernorm_epsilon", 1e-5),
    "te_layernorm": ("layer", "layernorm_epsilon", 1e-5),
    "rmsnorm": ("rms", "rms_norm_epsilon", 1e-8),
    "te_rmsnorm": ("rms", "rms_norm_epsilon", 1e-8),
}
INIT = {"normal": "normal", "small_init": "small"}
OUTPUT_INIT = {"scaled_normal": "scaled", "wang_init": "wang"}
ATTENTION = {"global": "global", "flash": "global", "local": "local"}
IDS = {"HFTokenizer": 50277, "GPT2BPETokenizer": 50257, "HFGPT2Tokenizer": 50257, "CharLevelTokenizer": 512}
"""Ids of GPT-NeoX's tokenizers; of HFTokenizer, GPT-NeoX-20B's, which all published models use."""
UNREAD_TOKENIZERS = ("SPMTokenizer", "TiktokenTokenizer")


def convert_model(keys: NeoxKeys, out: Conversion) -> None:
    """The section `model`. Raises `NeojaxError` for a model that neojax has not."""
    out.put("model.family", lambda: "gpt_neox", "of GPT-NeoX")
    for key, ours in SIZES.items():
        out.put(f"model.{ours}", partial(required, keys, key, ours), key)
    _check_heads(keys, out)
    out.put("model.n_ctx", partial(_context, keys), "seq_length")
    out.put("model.n_vocab", partial(_vocabulary, keys, out), "padded size of the vocabulary")
    out.put("model.dropout", partial(keys.number, "hidden_dropout", 0.0), "hidden_dropout")
    _attention(keys, out)
    _mlp(keys, out)
    out.put("model.norm.order", partial(_order, keys), "gpt_j_residual")
    _norm(keys, out)
    _positions(keys, out)
    out.put("model.embedding.tied", lambda: not keys.flag("no_weight_tying"), "no_weight_tying, negated")
    out.put("model.embedding.dropout", partial(keys.number, "hidden_dropout", 0.0), "hidden_dropout")
    out.put("model.init.std", partial(keys.number, "init_method_std", 0.02), "init_method_std")
    for ours, key, default, known in (
        ("method", "init_method", "normal", INIT),
        ("output", "output_layer_init_method", "scaled_normal", OUTPUT_INIT),
    ):
        out.put(f"model.init.{ours}", partial(_initial, keys, key, default, known), key)


def required(keys: NeoxKeys, key: str, ours: str, section: str = "model") -> int:
    """A count that a run cannot do without."""
    if key not in keys:
        raise NeojaxError(
            f"{keys.path}: no key {key}, which a GPT-NeoX config needs; add it, or give {section}.{ours}=N"
        )
    return keys.count(key, least=1)


def _check_heads(keys: NeoxKeys, out: Conversion) -> None:
    width, heads = (out.count(f"model.{name}", 1) for name in ("n_embd", "attention.heads"))
    if width % heads:
        raise keys.error("hidden_size", f"{width} is not a multiple of num_attention_heads={heads}")
    kv_heads = keys.count("num_kv_heads", heads, least=1)
    if heads % kv_heads:
        raise keys.error("num_kv_heads", f"{kv_heads} does not divide num_attention_heads={heads}")
    out.put("model.attention.kv_heads", lambda: None if kv_heads == heads else kv_heads, "num_kv_heads")


def _context(keys: NeoxKeys) -> int:
    longest = required(keys, "max_position_embeddings", "n_ctx")
    length = keys.count("seq_length", longest, least=1)
    if length > longest:
        raise keys.error("seq_length", f"{length} is more than max_position_embeddings={longest}")
    if length < longest and keys.text("pos_emb", "learned").lower() == "learned":
        raise keys.error(
            "seq_length",
            f"{length} of the {longest} positions that the model has a table of (max_position_embeddings): "
            "neojax trains on whole contexts; make them equal, or give model.n_ctx",
        )
    return length


def _vocabulary(keys: NeoxKeys, out: Conversion) -> int:
    kind = keys.choice("tokenizer_type", "GPT2BPETokenizer", (*IDS, *UNREAD_TOKENIZERS))
    if kind in UNREAD_TOKENIZERS:
        raise keys.error(
            "tokenizer_type",
            f"{kind} cannot be read, so that the size of the vocabulary is not known; give model.n_vocab=N "
            "(padded as in the weights), and data.tokenizer=tokenizer.json where text is wanted",
        )
    multiple = keys.count("make_vocab_size_divisible_by", 128, least=1)
    multiple *= keys.count("model_parallel_size", 1, least=1)
    file, merges = keys.text("vocab_file"), keys.text("merge_file")
    ids = IDS[kind]
    if kind == "GPT2BPETokenizer" and file and merges and place(file).is_file() and place(merges).is_file():
        ids = tokenizers.n_ids(tokenizers.load(file, merges))
    elif kind == "HFTokenizer" and file and place(file).is_file():
        ids = tokenizers.n_ids(tokenizers.load(file))
    elif kind == "HFTokenizer":
        absent = f"{file} is not here" if file else "no vocab_file is named"
        text = f"{absent}: taken for GPT-NeoX-20B's tokenizer, of {ids} ids; model.n_vocab=N says otherwise"
        out.note("model.n_vocab", text)
    return -(-ids // multiple) * multiple


def _attention(keys: NeoxKeys, out: Conversion) -> None:
    out.put("model.attention.types", partial(_types, keys), "attention_config")
    out.put("model.attention.window", partial(_window, keys, out), "window of local layers")
    biased = partial(keys.flag, "use_bias_in_attn_linear", True)
    for ours in ("bias", "out_bias"):
        out.put(f"model.attention.{ours}", biased, "use_bias_in_attn_linear")
    out.put("model.attention.dropout", partial(keys.number, "attention_dropout", 0.0), "attention_dropout")
    if "sliding_window_width" in keys and out.get("model.attention.dropout"):
        raise keys.error("attention_dropout", "is not supported beside sliding_window_width; set one to 0")


def _types(keys: NeoxKeys) -> list[str]:
    """Our attention type of every layer, as the shortest pattern that repeats to them."""
    count = required(keys, "num_layers", "n_layer")
    names = []
    for name in _expanded(keys, count):
        if not isinstance(name, str) or name.lower() not in ATTENTION:
            known = ", ".join(ATTENTION)
            raise keys.error(
                "attention_config", f"attention of type {name!r} is not supported; neojax has {known}"
            )
        names.append(ATTENTION[name.lower()])
    if "sliding_window_width" in keys:
        if "local" in names:
            raise keys.error("sliding_window_width", "is not supported beside attention of type local")
        names = ["local"] * count
    return list(smallest_pattern(tuple(names)))


def _expanded(keys: NeoxKeys, count: int) -> list[Any]:
    """The type of every layer, of `attention_config` in any of its forms."""
    given = keys.get("attention_config")
    if given is None:
        return ["global"] * count
    expected = 'types of all layers, such as [[["flash"], 12]] or [[["local", "global"], "all"]]'
    if not isinstance(given, list):
        raise keys.wrong("attention_config", expected, given)
    names: list[Any] = []
    if given and all(isinstance(entry, str) for entry in given):
        names = given
    else:
        for entry in given:
            match entry:
                case [[_, *_] as pattern, "all"] if count % len(pattern) == 0:
                    names = pattern * (count // len(pattern))
                    break
                case [[*pattern], int(repeats)] if 0 < repeats <= count:
                    names += pattern * repeats
                case _:
                    raise keys.wrong("attention_config", expected, given)
    if len(names) != count:
        raise keys.error("attention_config", f"is of {len(names)} layers, but num_layers={count}")
    return names


def _window(keys: NeoxKeys, out: Conversion) -> int | None:
    width = keys.count("sliding_window_width", least=1)
    block = keys.count("sparsity_config.block", 16, least=1)
    blocks = keys.count("sparsity_config.num_sliding_window_blocks", 4, least=1)
    blocks = keys.count("sparsity_config.num_local_blocks", blocks, least=1)
    if width is not None:
        return width + 1
    if "local" not in (out.get("model.attention.types") or ()):
        return None
    widest = block * (blocks // 2) + block
    text = f"local attention sees the last {widest} tokens; GPT-NeoX's sees {widest - block + 1} to {widest}"
    out.note("model.attention.window", f"{text}, by the place in a block of {block}")
    return widest


def _mlp(keys: NeoxKeys, out: Conversion) -> None:
    out.put("model.mlp.width", partial(_width, keys, out), "intermediate_size")
    out.put("model.mlp.activation", partial(_activation, keys), "activation, bias_gelu_fusion")
    out.put("model.mlp.gated", lambda: _kind(keys) in GATED or None, "activation")
    out.put("model.mlp.bias", partial(keys.flag, "use_bias_in_mlp", True), "use_bias_in_mlp")


def _width(keys: NeoxKeys, out: Conversion) -> int | None:
    given, factor = keys.count("intermediate_size", least=1), keys.number("expansion_factor")
    if given is not None and factor is not None:
        raise keys.error("expansion_factor", "stands beside intermediate_size; keep one of them")
    multiple = keys.count("mlp_multiple_of", 1, least=1)
    width = out.count("model.n_embd", 1)
    wanted = given or (int(factor * width) if factor else 4 * width)
    if _kind(keys) in GATED:
        both = int(wanted * 2 / 3)
        inner = -(-(both // 2) // multiple) * multiple
        if inner != -(-both // (2 * multiple)) * multiple:
            raise keys.error("activation", f"halves of {both} features are no multiples of {multiple}")
        return inner
    padded = -(-wanted // (2 * multiple)) * 2 * multiple
    return None if padded == 4 * width else padded


def _kind(keys: NeoxKeys) -> str:
    return keys.choice("activation", "gelu", (*ACTIVATIONS, *GATED))


def _activation(keys: NeoxKeys) -> str:
    name, fused = _kind(keys), keys.flag("bias_gelu_fusion")
    return "gelu_new" if name == "gelu" and fused else {**ACTIVATIONS, **GATED}[name]


def _order(keys: NeoxKeys) -> str:
    parallel, shared = keys.flag("gpt_j_residual"), keys.flag("gpt_j_tied")
    return "pre" if not parallel else "parallel_shared" if shared else "parallel"


def _norm(keys: NeoxKeys, out: Conversion) -> None:
    name = keys.text("norm", "layernorm")

    def known() -> tuple[str, str, float]:
        if name.lower() not in NORMS:
            raise keys.error("norm", f"{name} is not supported; neojax has layernorm and rmsnorm")
        return NORMS[name.lower()]

    out.put("model.norm.kind", lambda: known()[0], "norm")
    out.put("model.norm.epsilon", lambda: keys.number(*known()[1:]), "layernorm_epsilon, rms_norm_epsilon")


def _positions(keys: NeoxKeys, out: Conversion) -> None:
    def kind() -> str:
        found = keys.text("pos_emb", "learned").lower()
        if found not in ("learned", "rotary"):
            raise keys.error(
                "pos_emb", f"positions of kind {found!r} are not supported; rotary and learned are"
            )
        return found

    out.put("model.positions.kind", kind, "pos_emb")
    share, base = keys.number("rotary_pct", 1.0), keys.number("rotary_emb_base", 10000.0, least=1.0)
    if out.get("model.positions.kind") != "rotary":
        return
    out.put("model.positions.rotary_dims", partial(_rotary_dims, keys, out, share), "rotary_pct")
    out.put("model.positions.base", lambda: base, "rotary_emb_base")


def _rotary_dims(keys: NeoxKeys, out: Conversion, share: float) -> int | None:
    if share == 1:
        return None
    head = out.count("model.n_embd", 1) // out.count("model.attention.heads", 1)
    dims = math.floor(head * share)
    if not 0 < share < 1 or dims < 2 or dims % 2:
        raise keys.error(
            "rotary_pct",
            f"{share:g} of heads of {head} features are {dims}: expected an even number of them, from 2 to "
            f"{head}; or give model.positions.rotary_dims",
        )
    return dims


def _initial(keys: NeoxKeys, key: str, default: str, known: dict[str, str]) -> str:
    name = keys.text(key, default).lower()
    if name not in known:
        ours = "method" if known is INIT else "output"
        raise keys.error(
            key, f"{name} is not supported; {' and '.join(known)} are: give one, or model.init.{ours}"
        )
    return known[name]
