"""Decoding with a cache is the whole forward pass: logits at every position, and the greedy text on every
mesh."""

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import layout_of, noisy, tiny
from jax import numpy as jnp

from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.inference import for_inference
from neojax.sampling import decode
from neojax.sampling.decode import Asked, Decoder
from neojax.sampling.generate import generate
from neojax.sampling.logits import Controls


def asked(limit):
    """Greedy rows of so many tokens each, with no end beside them."""
    rows = len(limit)
    controls = Controls(*(np.full(rows, x, np.float32) for x in (0, 0, 1, 0, 1)), np.zeros(rows, bool))
    return Asked(limit, np.full((rows, 1), -1, np.int32), np.zeros((rows, 2), np.uint32), controls)


PROMPTS = [[1, 2, 3], [5] * 12, [60, 0, 7, 9, 9, 31, 2], [44]]
LAYOUTS = {
    "data": ("data:8", "batch:data", ""),
    "model": ("model:4", "heads:model, mlp:model, vocab:model", ""),
    "fsdp and model": ("data:4, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
    "embd": ("x:2, y:4", "batch:x, embd:y", ""),
    "sequence": ("x:2, y:4", "batch:x, sequence:y", "embd:x+y"),
}


@pytest.fixture(scope="module")
def model():
    return noisy(tiny())


def greedy_without_cache(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, model.config.n_ctx), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(np.argmax(np.asarray(model(padded))[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


OPTIONS = {
    "alternating": {"attention_types": ("global", "local")},
    "local": {"attention_types": ("local",)},
    "rotary, linear, memory, glu": {
        "attention_types": ("global", "linear"),
        "rotary_emb": True,
        "num_mem_kv": 3,
        "mlp_glu": True,
        "scalenorm": True,
    },
    "rotary, rezero, biases": {
        "rotary_emb": True,
        "rezero": True,
        "attention_bias": True,
        "scale_attention": True,
    },
    "axial, macaron, shared, untied, none": {
        "attention_types": ("local", "none"),
        "axial_pos_emb": (4, 6),
        "macaron": True,
        "share_parameters": True,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("options", OPTIONS)
def test_cached_logits_are_those_of_the_whole_pass_past_the_window_with_padding(options):
    config = tiny(n_layer=2, **OPTIONS[options])
    model = noisy(config)
    decoder = Decoder(model)
    single = nnx.merge(*decoder._model)
    lengths, first = [3, 9, 1], 9
    tokens = np.random.default_rng(0).integers(0, 61, (3, 24)).astype(np.int32)
    whole = np.asarray(model(tokens))
    prompts = np.zeros((3, first), np.int32)
    for row, length in enumerate(lengths):
        prompts[row, first - length :] = tokens[row, :length]
    put = decoder.layout.put
    start = put(np.array([first - n for n in lengths], np.int32), "batch")
    slots = {"global": 24, "local": 7}  # the local ring is shorter than the prompt and turns more than once

    @jax.jit
    def prefill(tokens):
        hidden, caches, _ = single.hidden(tokens, Context(start, slots=slots))
        return single.logits(hidden), caches

    @jax.jit
    def step(token, time, caches):
        hidden, caches, _ = single.hidden(token, Context(start, time), caches)
        return single.logits(hidden), caches

    logits, caches = prefill(put(prompts, "batch", "sequence"))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, first - length :], whole[row, :length], atol=2e-4, rtol=2e-4)
    # Until the shortest has filled the context, so that the ring of 24 turns too; whatever a row past its end
    # reads, the others must not notice.
    for i in range(24 - min(lengths)):
        column = np.array([[tokens[row, min(length + i, 23)]] for row, length in enumerate(lengths)])
        logits, caches = step(put(column, "batch", "sequence"), jnp.int32(first + i), caches)
        for row, length in enumerate(lengths):
            if length + i < 24:
                np.testing.assert_allclose(logits[row, 0], whole[row, length + i], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_prompt_read_in_chunks_is_one_read_at_once(options, monkeypatch):
    model = noisy(tiny(n_layer=2, **OPTIONS[options]))
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 61, n).tolist() for n in (16, 11, 2)]  # the last begins in the last chunk
    texts = []
    for chunk in (512, 9, 4):  # longer and shorter than the window of 7
        monkeypatch.setattr(decode, "PREFILL", chunk)
        texts.append(generate(model, prompts, max_new_tokens=8, temperature=0, eos=()))
    assert texts[0] == texts[1] == texts[2]
    decoder, read = Decoder(model), {}
    tokens, start = (
        rng.integers(0, 61, (2, 21)).astype(np.int32),
        np.array([0, 12], np.int32),
    )  # before its start a row holds whatever
    row = np.arange(2, dtype=np.int32)
    for chunk in (512, 9, 4):
        monkeypatch.setattr(decode, "PREFILL", chunk)
        rows = decoder.prefill(
            *(tokens, start, row, asked(row + 9)),
            slots={"global": 24, "local": 7},
        )
        read[chunk] = jax.tree.leaves(rows.caches)
    for whole, *parts in zip(*read.values()):
        for part in parts:
            np.testing.assert_allclose(part[0], whole[0], atol=1e-5, rtol=1e-4)


def test_greedy_text_of_a_mixed_batch_is_that_without_a_cache(model):
    found = generate(model, PROMPTS, max_new_tokens=12, temperature=0)
    assert found == [greedy_without_cache(model, prompt, 12) for prompt in PROMPTS]


def test_the_cache_is_written_in_place(model):
    """The rows that a decoding call returns take the place of those it was given: no second cache."""
    decoder = Decoder(model)
    four = np.zeros(4, np.int32)
    rows = decoder.prefill(
        np.ones((4, 8), np.int32),
        four,
        np.arange(4, dtype=np.int32),
        asked(four + 9),
        {"global": 16, "local": 7},
    )
    done = decoder.layout.put(np.zeros(4, bool), "batch")
    time = decoder.layout.put(np.array(8, np.int32))
    call = decode._decode.lower(*decoder._model, rows, time, done, 4)
    held = sum(x.nbytes for x in jax.tree.leaves(rows))
    assert call.compile().memory_analysis().alias_size_in_bytes == held


@pytest.mark.parametrize("name", LAYOUTS)
def test_text_on_a_mesh_is_that_of_one_device(model, name):
    meshed = noisy(tiny(), layout_of(*LAYOUTS[name]))
    for settings in (
        {"temperature": 0},
        {"seed": 3, "top_p": 0.9, "repetition_penalty": 1.3, "num_samples": 2},
    ):
        one = generate(model, PROMPTS, max_new_tokens=12, **settings)
        assert generate(meshed, PROMPTS, max_new_tokens=12, **settings) == one
        assert all(token < 61 for row in one for token in row)


def test_bfloat16_decoding_keeps_the_float32_weights_of_norms():
    model = Transformer(tiny(), compute=Compute(dtype=jnp.bfloat16)).init(0)
    weights = for_inference(model).params()
    assert weights["norm_f.scale"].dtype == weights["wpe"].dtype == jnp.float32
    matrices = [value.dtype for name, value in weights.items() if "attn" in name and value.ndim > 1]
    assert set(matrices) == {weights["wte"].dtype} == {jnp.dtype("bfloat16")}
    assert len(generate(model, [[1, 2]], max_new_tokens=4)[0]) == 4


def test_an_infinite_output_puts_nothing_into_the_cache():
    """A value that overflowed stays where it is: what is written for the next token is finite, not a NaN."""
    model = noisy(tiny(n_layer=1, attention_types=("global",)))
    tokens = np.array([[1, 2, 3]], np.int32)

    @jax.jit
    def caches(model):
        _, ((keys, values),), _ = model.hidden(tokens, Context(slots={"global": 8}))
        broken = keys, values.at[:, :, 1].set(jnp.inf)
        return model.hidden(tokens[:, :1], Context(time=jnp.int32(3)), (broken,))[1]

    ((keys, values),) = caches(model)
    assert np.isfinite(keys[..., 3]).all() and np.isfinite(values[:, :, 3]).all()
