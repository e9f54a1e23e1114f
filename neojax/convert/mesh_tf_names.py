"""Which variable of a gpt-neo checkpoint holds which parameter, and which models were not the same there as
here.

Facts: the variable scopes of gpt-neo's `models/gpt2/gpt2.py` and `models/layers.py`.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from neojax.config import ModelConfig
from neojax.convert.hf_tensors import Place, axes_of
from neojax.errors import NeojaxError
from neojax.models.activations import LEARNED
from neojax.models.pieces import Piece

# role of a parameter -> its variable, and the dimensions of its axes
VARIABLES = {
    "wte": ("wte", "vocab embd"),
    "wpe": ("wpe", "positions embd"),
    "wpe.row": ("axial_wpe_1", "axial_rows embd"),
    "wpe.column": ("axial_wpe_2", "axial_columns embd"),
    "norm_f.scale": ("ln_f/g", "embd"),
    "norm_f.bias": ("ln_f/b", "embd"),
    "norm_1.scale": ("norm_1/g", "embd"),
    "norm_1.bias": ("norm_1/b", "embd"),
    "norm_2.scale": ("norm_2/g", "embd"),
    "norm_2.bias": ("norm_2/b", "embd"),
    "gate_1.scale": ("norm_rezero_1/g", ""),
    "gate_2.scale": ("norm_rezero_2/g", ""),
    "attn.query": ("attn/q", "embd heads*head_dim"),
    "attn.key": ("attn/k", "embd heads*head_dim"),
    "attn.value": ("attn/v", "embd heads*head_dim"),
    "attn.out": ("attn/o", "heads*head_dim embd"),
    "attn.out_bias": ("attn/compute_output_bias/o_b", "embd"),
    "attn.memory_key": ("attn/attention/mem_k", "memory_slots heads head_dim"),
    "attn.memory_value": ("attn/attention/mem_v", "memory_slots heads head_dim"),
}
# The same of an MLP, within its scope: mlp or mlp_macaron.
MLP = {
    "up": ("conv1d_main/c_fc/kernel", "embd mlp"),
    "up_bias": ("conv1d_main/c_fc/bias", "mlp"),
    "down": ("conv1d_main/c_proj/kernel", "mlp embd"),
    "down_bias": ("conv1d_main/c_proj/bias", "embd"),
}
# Of experts, in the block's own scope; the router's is named after its gating, of
# which models of one expert a token have two.
EXPERTS = {
    "experts.up": ("wi/kernel", "experts embd expert_mlp"),
    "experts.down": ("wo/kernel", "experts expert_mlp embd"),
}
# A gated MLP's first layer holds two: what is gated, and the gate.
GATED = {
    "up": ("conv1d_main/c_fc/kernel", "embd 0/2*mlp"),
    "up_bias": ("conv1d_main/c_fc/bias", "0/2*mlp"),
    "gate": ("conv1d_main/c_fc/kernel", "embd 1/2*mlp"),
    "gate_bias": ("conv1d_main/c_fc/bias", "1/2*mlp"),
}


def check_readable(model: ModelConfig, source: Path) -> None:
    """Raises `NeojaxError` where weights that gpt-neo trained for the config `source` mean something else
    here."""
    if "none" in model.attention_layers:
        raise NeojaxError(
            f"{source}: attention_types has layers of type none, at which gpt-neo doubled its activations; "
            "weights trained so mean something else here and are not converted"
        )
    if not model.embedding.tied:
        raise NeojaxError(
            f"{source}: no_weight_tie: gpt-neo's own output table had a bias and no normalisation before "
            "it, here it is the other way round; such weights are not converted"
        )
    if model.mlp.activation in LEARNED:
        raise NeojaxError(
            f"{source}: activation {model.mlp.activation}: gpt-neo saved its scalars under random names, so "
            "that which is which is lost; such weights are not converted"
        )


def variables(model: ModelConfig, kept: Collection[str] = ()) -> dict[str, tuple[str, str]]:
    """Role of a parameter -> its variable within its scope, and the dimensions of its axes. `kept`: the
    variables of the checkpoint."""
    mlp = {**MLP, **GATED} if model.mlp.gated else MLP
    own = {
        f"{scope}.{role}": (f"{scope}/{name}", axes)
        for scope in ("mlp", "mlp_macaron")
        for role, (name, axes) in mlp.items()
    }
    gatings = ("top_2_gating",) if model.experts.top_k == 2 else ("switch_gating", "rand_1_gating")
    gating = next((g for g in gatings if any(f"/{g}/" in name for name in kept)), gatings[0])
    return {**VARIABLES, **own, **EXPERTS, "experts.router": (f"{gating}/kernel", "embd routes")}


def places(model: ModelConfig, pieces: Iterable[Piece], kept: Collection[str] = ()) -> list[Place]:
    """Where gpt-neo kept each of the `pieces` of `model`, in a checkpoint with the variables `kept`."""
    found, names = [], variables(model, kept)
    for piece in pieces:
        name, axes = names[piece.role]
        scope = "gpt2/" if piece.layer is None else f"gpt2/h{piece.layer}/"
        if model.share_parameters and piece.layer is not None:
            scope = "gpt2//"  # a variable scope without a name
        # The scale of ScaleNorm is a number, that of LayerNorm a vector.
        found.append(Place(piece, scope + name, axes_of(axes if piece.dims else "")))
    return found
