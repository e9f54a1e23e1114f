"""Low-rank additions: the same on any mesh, in the form for inference, and merged into the matrices."""

import zlib

import jax
import numpy as np
import pytest
from helpers import layout_of, model_config, noisy, random_tokens, tiny

from neojax.config import LoraConfig
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.layout.named import Quantized
from neojax.models import Transformer
from neojax.models.inference import for_inference
from neojax.models.merging import merged

MESH = layout_of("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
TOKENS, BATCH = random_tokens(4, 12), Batch(random_tokens(4, 12), random_tokens(4, 12, 1))
NEOX = model_config(family="gpt_neox", n_layer=2, n_embd=32, n_head=4, n_ctx=24, n_vocab=61)
LLAMA = model_config(
    family="llama", n_layer=1, n_embd=32, n_head=8, n_ctx=24, n_vocab=61, **{"attention.kv_heads": 4}
)
CASES = {
    "gpt_neo, each for itself": (tiny(n_layer=2), ("attn.*", "mlp.down"), "float32"),
    "gpt_neo, int8": (tiny(n_layer=4), ("attn.query", "attn.value"), "int8"),
    "gpt_neox, one for two of three": (NEOX, ("attn.query", "attn.value", "mlp.up"), "bfloat16"),
    "llama, fewer heads of keys": (LLAMA, ("kv_heads", "mlp.gate"), "int8"),
}


def adapted(config, lora, layout=None):
    """A model with noisy weights and additions that are not zero, the same whatever the layout."""
    model = Transformer(config, layout, lora=lora)
    model = model.adapted(noisy(config, layout).params(), 0)
    values = model.params()
    for name, value in values.items():
        if name.endswith("lora_b"):
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            values[name] = jax.device_put(rng.normal(size=value.shape).astype("f4") / 5, value.sharding)
    return model.bind(values)


def gradients(model):
    """The gradients of what is trained."""
    params, frozen = model.params(), model.adapters.frozen
    kept = {name: value for name, value in params.items() if name in frozen}
    trained = {name: value for name, value in params.items() if name not in frozen}

    def objective(trained, kept):
        return model.bind({**trained, **kept}).loss(BATCH).objective

    with model.layout.in_force():
        return jax.tree.map(np.asarray, jax.jit(jax.grad(objective))(trained, kept))


@pytest.mark.parametrize("case", CASES)
def test_an_addition_is_one_thing_on_a_mesh_in_inference_and_merged(case):
    config, targets, base = CASES[case]
    lora = LoraConfig(rank=3, alpha=6.0, targets=targets, base=base, whole=("norm_f.scale",))
    one, spread = adapted(config, lora), adapted(config, lora, MESH)
    logits = np.asarray(one(TOKENS))
    np.testing.assert_allclose(np.asarray(spread(TOKENS)), logits, atol=2e-5)
    for other in (merged(one), for_inference(one), for_inference(spread)):
        np.testing.assert_allclose(np.asarray(other(TOKENS)), logits, atol=2e-5)
    plain = one.bind({n: v * 0 if n.endswith("lora_b") else v for n, v in one.params().items()})
    assert np.abs(np.asarray(plain(TOKENS)) - logits).max() > 0.05
    here, there = gradients(one), gradients(spread)
    assert here.keys() == one.dims().keys() - one.adapters.frozen
    assert {"norm_f.scale"} == {name for name in here if "lora" not in name}
    for name, gradient in here.items():
        size = np.abs(gradient).max()
        assert size > 1e-4
        np.testing.assert_allclose(there[name], gradient, atol=1e-5 * size + 1e-6, err_msg=name)


def test_what_is_frozen_is_kept_as_asked_and_what_is_trained_in_float32():
    lora = LoraConfig(rank=2, targets=("attn.query",), base="int8", whole=("blocks.0.mlp.up",))
    params = adapted(tiny(n_layer=2), lora).params()
    kinds = {n: "int8" if isinstance(v, Quantized) else str(v.dtype) for n, v in params.items()}
    assert kinds["blocks.0.attn.query"] == kinds["blocks.1.mlp.up"] == "int8"
    assert kinds["wte"] == "bfloat16"
    for name in ("blocks.0.mlp.up", "blocks.0.attn.query.lora_a", "norm_f.scale", "wpe"):
        assert kinds[name] == "float32"
    stored = Transformer(tiny(n_layer=2), MESH, lora=lora).stored()
    spread = adapted(tiny(n_layer=2), lora, MESH).params()
    for spec, value in zip(jax.tree.leaves(stored), jax.tree.leaves(dict(sorted(spread.items())))):
        assert (spec.shape, spec.dtype) == (value.shape, value.dtype)
        assert value.sharding.is_equivalent_to(spec.sharding, value.ndim)


def test_matrices_in_one_tensor_of_transformers_share_what_reads_the_input():
    lora = LoraConfig(rank=2, targets=("attn.query", "attn.value"))
    names = {n for n in Transformer(NEOX, lora=lora).dims() if n.endswith(("lora_a", "lora_b"))}
    attn = "blocks.0.attn"
    assert names == {
        f"{attn}.query_key_value.lora_a",
        f"{attn}.query.lora_b",
        f"{attn}.value.lora_b",
    }


def test_an_addition_begins_at_nothing_and_counts_alpha_by_rank_or_by_its_root():
    config = tiny(n_layer=1, attention_types=["global"])
    begin = Transformer(config, lora=LoraConfig(rank=4)).init(0)
    np.testing.assert_array_equal(np.asarray(begin(TOKENS)), np.asarray(Transformer(config).init(0)(TOKENS)))
    a = np.asarray(begin.params()["blocks.0.attn.query.lora_a"])
    bound = config.n_embd**-0.5
    assert np.abs(a).max() <= bound and np.std(a) == pytest.approx(bound / 3**0.5, rel=0.2)
    assert Transformer(config, lora=LoraConfig(rank=4, alpha=8.0)).adapters.scale == 2.0
    assert Transformer(config, lora=LoraConfig(rank=4, alpha=8.0, rs=True)).adapters.scale == 4.0


def test_dropout_is_of_what_an_addition_takes_and_of_training_alone():
    config = tiny(n_layer=2)
    dropped = adapted(config, LoraConfig(rank=2, dropout=0.5))
    calm = adapted(config, LoraConfig(rank=2))
    key = jax.random.key(3)

    def of(model, values):
        @jax.jit
        def losses(values):
            bound = model.bind(values)
            keyed = [bound.loss(BATCH, dropout_key=k).objective for k in (key, key, jax.random.key(4))]
            return [*keyed, bound.loss(BATCH).objective]

        return [float(x) for x in losses(values)]

    one, again, other, without = of(dropped, dropped.params())
    assert one == again != other and without not in (one, other)
    assert set(of(calm, calm.params())) == {without}
    nothing = {n: v * 0 if n.endswith("lora_b") else v for n, v in dropped.params().items()}
    assert len(set(of(dropped, nothing))) == 1


def test_experts_have_no_additions_and_attention_beside_them_has():
    config = tiny(n_layer=2, attention_types=["global"], **{"experts.number": 4})
    lora = LoraConfig(rank=2, targets=("attn.query",), base="int8")
    one, spread = (
        adapted(config, lora),
        adapted(config, lora, layout_of("data:4", "batch:data, experts:data")),
    )
    logits = np.asarray(one(TOKENS))
    for other in (merged(one), for_inference(one), spread):
        np.testing.assert_allclose(np.asarray(other(TOKENS)), logits, atol=2e-5)
    assert all(np.abs(gradient).max() > 1e-4 for gradient in gradients(one).values())
    with pytest.raises(NeojaxError, match="'expert_mlp' matches no matrix of a block"):
        Transformer(config, lora=LoraConfig(rank=2, targets=("expert_mlp",)))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"targets": ("q_proj",)}, r"train.lora.targets: 'q_proj' matches no matrix of a block; known: "),
        ({"targets": ("attn.querry",)}, r"'attn.querry' matches no matrix .* did you mean attn.query\?"),
        ({"targets": ("vocab",)}, r"train.lora.targets: 'vocab' matches no matrix of a block"),
        ({"targets": ()}, r"train.lora.targets is empty"),
        ({"whole": ("nrom*",)}, r"train.lora.whole: 'nrom\*' matches no parameter"),
        ({"whole": ("attn.query",)}, r"both name blocks.0.attn.query"),
    ],
)
def test_what_is_not_there_is_told(keys, message):
    with pytest.raises(NeojaxError, match=message):
        Transformer(tiny(), lora=LoraConfig(rank=2, **keys))


def test_the_head_of_a_task_is_trained_beside_the_additions():
    keys = {"family": "bert", "n_layer": 1, "n_embd": 32, "n_head": 4, "n_ctx": 12, "n_vocab": 61}
    classes = Transformer(
        model_config(**keys, **{"head.kinds": ["sequence_classification"]}), lora=LoraConfig(rank=2)
    )
    scored = Transformer(tiny(**{"head.kinds": ["sequence_classification"]}), lora=LoraConfig(rank=2))
    for model, head in ((classes, {"classifier.weight", "classifier.bias"}), (scored, {"score.weight"})):
        trained = model.dims().keys() - model.adapters.frozen
        assert {name for name in trained if "lora" not in name} == head
