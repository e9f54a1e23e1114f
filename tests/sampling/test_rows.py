"""What a row becomes depends on its prompt and settings alone: not on when it joined a batch, nor on its
neighbours."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import layout_of, noisy, tiny

import neojax
from neojax import Sampling
from neojax.data.tokenizer import train
from neojax.errors import NeojaxError
from neojax.sampling import rows as module
from neojax.sampling.generate import Sampler, generate
from neojax.sampling.rows import Batch

PROMPTS = [[1, 2, 3], [44], [7] * 20, [60, 0, 7, 9, 9, 31, 2], [5] * 12, [8, 8]]
SETTINGS = [
    Sampling(max_new_tokens=20, temperature=0),
    Sampling(max_new_tokens=9, seed=3, top_k=5),
    Sampling(max_new_tokens=4, seed=1, top_p=0.7, temperature=1.7),
    Sampling(max_new_tokens=15, seed=1, min_p=0.05, repetition_penalty=1.6),
    Sampling(max_new_tokens=12, seed=2, entmax=True, eos=[3, 17, 40]),
    Sampling(max_new_tokens=22, seed=9, temperature=0.5, repetition_penalty=1.2, eos=()),
]
MODELS = {
    "alternating": {},
    "rotary, linear, memory": {"attention_types": ("global", "linear"), "rotary_emb": True, "num_mem_kv": 3},
    "local, none": {"attention_types": ("local", "none"), "rotary_emb": True},
}
MESH = ("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")


@pytest.fixture(scope="module")
def model():
    return noisy(tiny(n_layer=2))


def alone(model, number):
    (sample,) = generate(model, PROMPTS[number : number + 1], sampling=SETTINGS[number], return_logprobs=True)
    return sample


def check(row, sample):
    assert (row.continuation.tokens, row.finish_reason) == (sample.tokens, sample.finish_reason)
    np.testing.assert_allclose(row.logprobs[: len(sample.tokens)], sample.logprobs, atol=1e-4)


@pytest.mark.parametrize("name", [*MODELS, "mesh"])
def test_rows_that_join_a_running_batch_become_what_they_are_alone(name, monkeypatch):
    config = tiny(n_layer=2, **MODELS.get(name, {}))
    model = noisy(config)
    expected = [alone(model, i) for i in range(len(PROMPTS))]
    monkeypatch.setattr(module, "STEPS", 3)
    sampler = Sampler(noisy(config, layout_of(*MESH)) if name == "mesh" else model)
    rows = sampler.rows(PROMPTS, SETTINGS)
    batch = Batch(sampler.decoder, 24, logprobs=True)
    batch.join(rows[:2])
    before = batch._time
    batch.step()
    batch.join(rows[2:3])  # its prompt is longer than the clock: the others' rings are turned
    assert batch._time > before + 3
    batch.step()
    batch.step()
    batch.join(rows[3:])  # more than there are places
    while batch.rows:
        batch.step()
    for row, sample in zip(rows, expected):
        check(row, sample)
    assert batch._time > 2 * 16  # rings have gone round


def test_a_row_that_is_taken_out_gets_nothing_more_and_its_place_is_free(model, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 3)
    sampler = Sampler(model)
    rows = sampler.rows(PROMPTS, SETTINGS)
    batch = Batch(sampler.decoder, 24, logprobs=True)
    batch.join(rows[:2])
    batch.step()
    batch.leave(rows[0])
    had = list(rows[0].continuation.tokens)
    assert batch.rows == [rows[1]] and rows[0].finish_reason is None
    batch.join(rows[3:4])
    assert len(batch._places) == 2
    while batch.rows:
        batch.step()
    assert rows[0].continuation.tokens == had == alone(model, 0).tokens[: len(had)]
    check(rows[1], alone(model, 1))
    check(rows[3], alone(model, 3))
    batch.join(rows[5:])  # a batch that has run empty begins anew
    while batch.rows:
        batch.step()
    check(rows[5], alone(model, 5))


def test_prompts_of_one_call_differ_in_every_setting(model):
    expected = [alone(model, i) for i in range(len(PROMPTS))]
    end = expected[5].tokens[4]
    settings = [*SETTINGS[:5], replace(SETTINGS[5], eos=end)]
    together = generate(model, PROMPTS, sampling=settings, return_samples=True)
    assert [sample.tokens for sample in together[:5]] == [sample.tokens for sample in expected[:5]]
    assert together[5].finish_reason == "eos" and together[0].finish_reason == "length"
    assert together[5].tokens == expected[5].tokens[: expected[5].tokens.index(end)]
    changed = generate(model, PROMPTS[:2], sampling=SETTINGS[:2], seed=7, return_samples=True)
    by_hand = generate(model, PROMPTS[1], max_new_tokens=9, seed=7, top_k=5)
    assert changed[1].tokens == by_hand


def test_prompts_of_one_call_have_stop_strings_of_their_own(model):
    tokenizer = train(["the cat sat on the mat and the dog sat on the log. " * 3], 270)
    model = noisy(tiny(n_layer=2, n_vocab=tokenizer.get_vocab_size()))
    model.tokenizer = tokenizer
    whole = generate(model, "the", temperature=0, max_new_tokens=12)
    settings = [Sampling(12, temperature=0, stop=stop) for stop in ((), whole[3:5], [whole[1]])]
    assert generate(model, ["the"] * 3, sampling=settings) == [
        whole,
        whole[: whole.find(whole[3:5])],
        whole[: whole.find(whole[1])],
    ]


def test_more_rows_than_a_batch_holds_join_where_others_are_finished(model, monkeypatch):
    settings = {"sampling": SETTINGS, "num_samples": 3}
    expected = generate(model, PROMPTS, **settings)
    joined = []
    original = Batch.join
    monkeypatch.setattr("neojax.sampling.generate.BATCH", 4)
    monkeypatch.setattr(
        Batch, "join", lambda self, rows: joined.append(len(self.rows)) or original(self, rows)
    )
    assert generate(model, PROMPTS, **settings) == expected
    assert any(joined)


def test_a_row_that_does_not_fit_is_refused(model):
    sampler = Sampler(model)
    with pytest.raises(NeojaxError, match="a row of 12 tokens and 12 more does not fit a batch of 16 slots"):
        Batch(sampler.decoder, 16).join(sampler.rows(PROMPTS, SETTINGS)[4:5])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"temprature": 1}, "generate has no setting temprature; did you mean temperature"),
        ({"sampling": 3}, "sampling is 3; expected a Sampling, or a list of 2, one for every prompt"),
        ({"sampling": [Sampling()]}, "expected a Sampling, or a list of 2"),
        ({"sampling": Sampling(eos=61)}, "eos: token 61 is not in the vocabulary"),
        ({"sampling": Sampling(stop="x")}, "stop strings need a tokenizer"),
        ({"sampling": Sampling(), "top_p": 2}, "top_p is 2; expected above 0"),
    ],
)
def test_settings_that_are_none_are_one_line(model, settings, words):
    with pytest.raises(NeojaxError, match=words) as error:
        neojax.generate(model, [[1], [2]], **settings)
    assert "\n" not in str(error.value)
