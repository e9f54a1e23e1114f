"""Scores are the log-softmax of the logits, in float64, whatever the batch, the mesh and the chunks; long
texts by windows."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import N_VOCAB, layout_of, noisy, tiny

import neojax
from neojax.convert import hf
from neojax.data.batch import Batch
from neojax.data.tokenizer import train
from neojax.errors import NeojaxError
from neojax.evaluate import packing
from neojax.evaluate import score as module
from neojax.evaluate.score import score
from neojax.evaluate.windows import disjoint
from neojax.kernels import chunked_loss
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.inference import for_inference

LAYOUTS = {
    "one device": ("data:1", "", ""),
    "data": ("data:8", "batch:data", ""),
    "vocab": ("model:4", "heads:model, mlp:model, vocab:model", ""),
    "fsdp and model": ("data:4, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
    "embd and sequence": ("x:2, y:4", "embd:x, sequence:y", ""),
}
END = 0
RNG = np.random.default_rng(0)
RAGGED = [RNG.integers(0, N_VOCAB, n).tolist() for n in (24, 3, 1, 17, 11, 0, 23, 24, 2, 9)]


@pytest.fixture(scope="module")
def model():
    model = noisy(tiny(n_layer=2))
    model.eos_token_id = END
    return model


def expected(model, context, tokens):
    """(log-probabilities, whether each is the argmax) of `tokens` after `context`, by the definition in
    float64."""
    n_ctx, whole = model.config.n_ctx, [*context, *tokens]
    padded = np.zeros((1, n_ctx), np.int32)
    padded[0, : len(whole) - 1] = whole[:-1]
    logits = np.asarray(model(padded), np.float64)[0, len(context) - 1 : len(whole) - 1]
    top = logits.max(axis=-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return logs[np.arange(len(tokens)), tokens], logits.argmax(axis=-1) == tokens


def check(found, wanted):
    logs, greedy = wanted
    np.testing.assert_allclose(found.logprobs, logs, atol=1e-5)
    np.testing.assert_array_equal(found.is_greedy, greedy)
    assert found.logprobs.dtype == np.float32 and found.logprob == pytest.approx(logs.sum(), abs=1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_scores_of_a_ragged_batch_are_the_log_softmax_of_each_text_alone(model, name, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 1)  # the least: 128 tokens
    meshed = noisy(model.config, layout_of(*LAYOUTS[name]))
    meshed.eos_token_id = END
    scores = score(meshed, RAGGED)
    assert [found.tokens.tolist() for found in scores] == RAGGED
    for found, tokens in zip(scores, RAGGED):
        check(found, expected(model, [END], tokens))
    assert any(found.is_greedy.any() for found in scores)


def test_a_continuation_is_scored_after_its_context(model):
    contexts = [[5, 9, 11], [2], [], list(range(12))]
    texts = [[1, 2], [3] * 20, [7, 8], [60]]
    for found, context, text in zip(score(model, texts, contexts), contexts, texts):
        check(found, expected(model, context or [END], text))
        assert found.context == context and found.text == text
    one_text = score(model, [1, 2], contexts)
    one_context = score(model, texts, [5, 9, 11])
    for context, text, a, b in zip(contexts, texts, one_text, one_context):
        check(a, expected(model, context or [END], [1, 2]))
        check(b, expected(model, [5, 9, 11], text))


def test_the_argmax_of_equal_logits_is_the_first_on_every_part_of_the_vocabulary(model):
    params = {**model.params(), "wte": np.zeros_like(model.params()["wte"])}
    for name in ("one device", "vocab"):
        meshed = Transformer(model.config, layout_of(*LAYOUTS[name]))
        sized = {n: np.resize(params[n], spec.shape) for n, spec in meshed.stored().items()}
        meshed = meshed.bind({n: jax.device_put(sized[n], s.sharding) for n, s in meshed.stored().items()})
        found = score(meshed, [0, 1, 30, 60], contexts=[5])
        assert found.is_greedy.tolist() == [True, False, False, False]
        np.testing.assert_allclose(found.logprobs, -np.log(N_VOCAB), rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 23, 24, 25, 48, 49, 60])
def test_a_text_longer_than_the_context_is_scored_in_disjoint_windows(model, length):
    n_ctx = model.config.n_ctx
    tokens = np.random.default_rng(length).integers(0, N_VOCAB, length).tolist()
    found, whole, logs = score(model, tokens or [[]]), [END, *tokens], []
    found = found if tokens else found[0]
    for first in range(0, length, n_ctx):
        last = min(
            first + n_ctx, length
        )  # the piece, and then the last n_ctx tokens that can stand before its end
        inputs = whole[max(0, last - n_ctx) : last]
        logs.append(expected(model, inputs[: len(inputs) - (last - first) + 1], tokens[first:last]))
    check(found, [np.concatenate(part) for part in zip(*logs)] if logs else (np.zeros(0), np.zeros(0, bool)))
    assert len(found.logprobs) == length


def test_a_context_that_is_too_long_loses_its_first_tokens_with_a_warning(model):
    context = RNG.integers(0, N_VOCAB, 40).tolist()
    with pytest.warns(
        UserWarning, match="context 2 has 40 tokens .1 more are too long as well.; its last 22 are"
    ):
        scores = score(model, [1, 2, 3], [[4], context, context])
    check(scores[1], expected(model, context[-22:], [1, 2, 3]))
    check(score(model, [1] * 22, context[-3:]), expected(model, context[-3:], [1] * 22))  # just fits


def test_batches_of_few_tokens_change_nothing_and_few_programs_serve_all_lengths(model, monkeypatch):
    whole = score(model, RAGGED)
    for batch, tokens in ((2, 1 << 14), (64, 50)):
        monkeypatch.setattr(packing, "ROWS", batch)
        monkeypatch.setattr(packing, "TOKENS", tokens)
        for a, b in zip(whole, score(model, RAGGED)):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-6)
    monkeypatch.undo()
    score(model, [[1] * 16] * 64)
    before = module._scores._cache_size()
    score(model, [[1] * (1 + i % 16) for i in range(100, 164)])
    assert module._scores._cache_size() == before


@pytest.mark.parametrize("name", LAYOUTS)
def test_texts_that_begin_alike_are_read_together_and_score_as_alone(model, name):
    """Choices of one token after one context, and all that is read of one text within another."""
    meshed = noisy(model.config, layout_of(*LAYOUTS[name]))
    whole = RNG.integers(0, N_VOCAB, 20).tolist()
    contexts = [whole[:5]] * 4 + [whole[:7], whole[:2], [*whole[:5], 1], whole[:5]]
    texts = [[1], [2], whole[5:9], whole[5:], [4, 5], whole[2:6], [3], [2]]
    for found, context, text in zip(score(meshed, texts, contexts), contexts, texts):
        check(found, expected(model, context, text))
    windows = [disjoint(*pair, model.config.n_ctx) for pair in zip(contexts, texts)]
    rows = packing.readings([window for own in windows for window in own])
    assert sorted(len(row.tokens) for row in rows) == [6, 8, 19]


@pytest.mark.parametrize("name", LAYOUTS)
def test_answers_of_several_tokens_share_their_context_and_a_row_and_score_as_alone(model, name, monkeypatch):
    """Contexts that begin alike, too; of one text an answer is how another begins."""
    monkeypatch.setattr(packing, "SHARED", 2)
    monkeypatch.setattr(packing, "ROW", 24)
    meshed = noisy(model.config, layout_of(*LAYOUTS[name]))
    rng = np.random.default_rng(3)
    pairs = []
    for size in (9, 4, 12, 1):
        context = rng.integers(0, N_VOCAB, size).tolist()
        pairs += [([7, *context], rng.integers(0, N_VOCAB, n).tolist()) for n in (4, 1, 2, 6)]
        pairs += [([7, *context], [*pairs[-1][1], 5]), (context, [3, 4])]
    found = score(meshed, [text for _, text in pairs], [context for context, _ in pairs])
    for (context, text), own in zip(pairs, found, strict=True):
        check(own, expected(model, context, text))


def test_what_texts_begin_with_is_read_once_and_little_is_padding():
    rng = np.random.default_rng(0)
    windows, once = [], 0
    for _ in range(40):
        context = rng.integers(0, 99, rng.integers(20, 200)).tolist()
        answers = [rng.integers(0, 99, n).tolist() for n in rng.integers(2, 20, 4)]
        once += len(context) + sum(len(answer) - 1 for answer in answers)
        windows += [window for answer in answers for window in disjoint(context, answer, 512)]
    batches = list(packing.packed(windows, 512))
    read = [batch.segments > 0 for batch, _, _ in batches]
    assert 0.99 * once < sum(each.sum() for each in read) < 1.02 * once
    assert sum(each.size for each in read) < 1.1 * once
    found = sorted(part.window for _, _, parts in batches for part in parts)
    assert found == list(range(len(windows)))


@pytest.mark.parametrize("name, layout", [("gpt-neo", "fsdp and model"), ("gpt2", "one device")])
def test_scores_are_those_of_transformers(name, layout):
    """The tests of `convert` compute the record anew where PyTorch is installed."""
    folder = Path(__file__).parent.parent / "convert" / "data" / "hf" / name
    record = np.load(folder / "expected.npz")
    tokens, logits = record["tokens"], record["logits"].astype(np.float64)
    logs = logits - logits.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    model = hf.load(folder, layout_of(*LAYOUTS[layout]))
    for found, row, of_row in zip(score(model, tokens[:, 1:], tokens[:, :1]), tokens, logs):
        np.testing.assert_allclose(found.logprobs, of_row[np.arange(len(row) - 1), row[1:]], atol=5e-5)
        np.testing.assert_array_equal(found.is_greedy, of_row[:-1].argmax(-1) == row[1:])


@pytest.mark.parametrize(
    "weights, dtype", [("int8", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_scores_of_narrow_weights_and_types_are_float32_log_softmax_of_their_logits(model, weights, dtype):
    narrow = for_inference(
        Transformer(model.config, compute=Compute(dtype=dtype)).bind(model.params()), weights
    )
    check(score(narrow, RAGGED[3], [END]), expected(narrow, [END], RAGGED[3]))


def test_memory_holds_no_logits_of_the_batch():
    model = Transformer(
        tiny(n_layer=1, attention_types=("global",), n_embd=8, n_head=1, n_vocab=1 << 16, n_ctx=512)
    ).init(0)
    tokens = np.zeros((8, 512), np.int32)
    with model.layout.in_force():
        compiled = module._scores.lower(*model.halves(), Batch(tokens, tokens)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens.size * (1 << 16) * 4 / 4


def test_texts_are_encoded_with_what_stands_before_them():
    corpus = "the cat sat on the mat and the dog sat on the log. "
    tokenizer = train([corpus * 3], 270)
    model = noisy(tiny(n_layer=2, n_vocab=tokenizer.get_vocab_size(), n_ctx=32))
    model.tokenizer, model.eos_token_id = tokenizer, END

    def ids(text):
        return tokenizer.encode(text).ids

    alone = neojax.score(model, "the cat sat")
    assert alone.tokens.tolist() == ids("the cat sat")
    check(alone, expected(model, [END], ids("the cat sat")))
    for context, text in (
        ("the cat", " sat"),
        ("the cat ", "sat"),
        ("the c", "at sat"),
        ("über dé", "jà vu"),
    ):
        found = neojax.score(model, text, context)
        whole = ids(context + text)
        ends = np.cumsum(
            [len(tokenizer.id_to_token(token)) for token in whole]
        )  # a byte is a character there
        split = int((ends <= len(context.encode())).sum())
        assert found.tokens.tolist() == whole[split:] and tokenizer.decode(whole[split:]).endswith(text)
        check(found, expected(model, whole[:split] or [END], whole[split:]))
    pieces = neojax.score(model, ["the", ids("the")], ["", ids("the cat")])
    check(pieces[1], expected(model, ids("the cat"), ids("the")))


@pytest.mark.parametrize(
    "texts, contexts, words",
    [
        (b"abc", "", "texts is b'abc'; expected a text, a list of token ids"),
        ([], "", "no text is given"),
        ([1, 61], [1], "the text: token 61 is not in the vocabulary"),
        ([[1], [2]], [[1], [2], [3]], "there are 2 texts and 3 contexts; give one context for every text"),
        ([[1], [2]], [[1]], "there are 2 texts and 1 contexts"),
        ([1], [-1], "the context: token -1"),
        ("abc", [1], "no tokenizer: give texts as lists of token ids"),
        ([1], "abc", "no tokenizer: give contexts as lists of token ids"),
        (
            [[1], [2]],
            "",
            "nothing stands before text 1 and the model has no end-of-document token.*give contexts",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_line(texts, contexts, words):
    model = noisy(tiny(n_layer=2))
    with pytest.raises(NeojaxError, match=words) as error:
        score(model, texts, contexts)
    assert "\n" not in str(error.value)


def test_a_model_of_masked_tokens_and_a_call_within_jit_are_refused(model):
    with pytest.raises(NeojaxError, match=r"causal is false.*cannot score a text token by token"):
        score(noisy(tiny(n_layer=2, causal=False)), [1], [2])
    with pytest.raises(NeojaxError, match="expected a model"):
        score("runs/first", [1])
    with pytest.raises(NeojaxError, match=r"outside of jax\.jit"):
        jax.jit(lambda x: score(model, [1]).logprobs + x)(1.0)
