"""How a parameter is drawn: as its part declares it, or by the rule of `model.init` for its dimensions."""

from collections.abc import Sequence

from neojax.config import ModelConfig
from neojax.layout.named import Constant, Normal

BRANCH = {"heads", "mlp", "expert_mlp"}  # what attention and the MLP are wide in


def initial(config: ModelConfig, dims: Sequence[str], declared: Normal | Constant) -> Normal | Constant:
    """The initialiser of a parameter with dimensions `dims`, for which its part has `declared` one.

    Constants stay. A matrix that leads from a branch back to `embd` follows `init.output`, all other matrices
    and tables `init.method` and `init.std`. Facts: `init_functions.py` of GPT-NeoX; its small_init is of
    https://arxiv.org/abs/1910.05895.
    """
    if isinstance(declared, Constant):
        return declared
    init, depth, width = config.init, config.n_layer, config.n_embd
    if dims[-1] == "embd" and BRANCH & set(dims):
        if init.output == "wang":
            return Normal(2 / (depth * width**0.5))
        if init.output == "scaled":
            return Normal((declared.std if init.std is None else init.std) / (2 * depth) ** 0.5)
    if init.method == "small":
        return Normal((2 / (5 * width)) ** 0.5)
    return declared if init.std is None else Normal(init.std)
