"""The promises of `generate`: seeds, companions, chunks, ends, long prompts, settings."""

import numpy as np
import pytest
import tokenizers
from helpers import perturbed, tiny
from tokenizers import processors

import neojax
from neojax.data.tokenizer import train
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout
from neojax.models import Transformer
from neojax.sampling import decode
from neojax.sampling import generate as module
from neojax.sampling import rows as rows_module
from neojax.sampling.generate import generate

CORPUS = "the cat sat on the mat and the dog sat on the log. "


@pytest.fixture(scope="module")
def model():
    tokenizer = train([CORPUS * 3], 270)
    model = Transformer(tiny(n_vocab=tokenizer.get_vocab_size(), n_ctx=32)).init(0)
    model = model.bind(perturbed(model.params()))
    model.tokenizer, model.eos_token_id = tokenizer, 0
    return model


def test_one_prompt_gives_a_text_and_several_give_a_list(model):
    text = neojax.generate(model, "the cat", max_new_tokens=5, seed=0)
    assert isinstance(text, str)
    assert neojax.generate(model, ["the cat"], max_new_tokens=5, seed=0) == [text]
    twice = neojax.generate(model, "the cat", max_new_tokens=5, seed=0, num_samples=2)
    assert twice[0] == text and twice[1] != text


def test_the_same_seed_gives_the_same_text_whatever_the_batch(model):
    alone = generate(model, "the dog", max_new_tokens=12, seed=5)
    assert generate(model, "the dog", max_new_tokens=12, seed=5) == alone
    company = ["", "the dog", "a much longer prompt: on the log", "the"]
    assert generate(model, company, max_new_tokens=12, seed=5, num_samples=3)[3] == alone
    assert generate(model, "the dog", max_new_tokens=12, seed=6) != alone


@pytest.mark.parametrize("chunk, batch", [(1, 64), (5, 2)])
def test_chunks_and_batches_change_nothing(model, monkeypatch, chunk, batch):
    settings = {
        "max_new_tokens": 11,
        "seed": 1,
        "num_samples": 3,
        "stop": ("e", "at"),
        "return_samples": True,
    }
    before = generate(model, ["the", "on the mat"], **settings)
    monkeypatch.setattr(rows_module, "STEPS", chunk)
    monkeypatch.setattr(module, "BATCH", batch)
    assert generate(model, ["the", "on the mat"], **settings) == before


def test_a_prompt_is_encoded_as_training_text_is_without_what_a_tokenizer_adds_around_a_text(model):
    plain = generate(model, "the cat", max_new_tokens=5, return_samples=True)
    around = tokenizers.Tokenizer.from_str(model.tokenizer.to_str())
    around.post_processor = processors.TemplateProcessing(single="t $A t", special_tokens=[("t", 84)])
    assert around.encode("the cat").ids != around.encode("the cat", add_special_tokens=False).ids
    other = model.bind(model.params())
    other.tokenizer = around
    assert generate(other, "the cat", max_new_tokens=5, return_samples=True) == plain


def test_every_end_has_its_reason(model):
    (whole,) = generate(model, ["the"], max_new_tokens=10, temperature=0, return_samples=True, eos=())
    assert whole.finish_reason == "length" and len(whole.tokens) == 10 and whole.prompt == "the"
    end = whole.tokens[4]
    (ended,) = generate(model, ["the"], max_new_tokens=10, temperature=0, return_samples=True, eos=end)
    assert ended.finish_reason == "eos" and ended.tokens == whole.tokens[: whole.tokens.index(end)]
    stop = whole.text[2:4]
    (stopped,) = generate(
        model, ["the"], max_new_tokens=10, temperature=0, return_samples=True, eos=(), stop=stop
    )
    assert stopped.finish_reason == "stop" and stopped.text == whole.text[: whole.text.find(stop)]


def test_what_is_streamed_is_what_is_returned(model):
    pieces = {}
    samples = generate(
        *(model, ["the", "on the mat"]),
        max_new_tokens=20,
        seed=2,
        num_samples=2,
        stop="t",
        stream=lambda i, piece: pieces.setdefault(i, []).append(piece),
        return_samples=True,
    )
    assert ["".join(pieces.get(i, [])) for i in range(4)] == [sample.text for sample in samples]


def test_a_prompt_longer_than_the_context_keeps_its_last_tokens(model):
    long = [int(t) for t in np.random.default_rng(0).integers(1, 256, 100)]
    with pytest.warns(UserWarning, match="its last 22 are used"):
        found = generate(model, [long], max_new_tokens=10, temperature=0)
    assert found == generate(model, [long[-22:]], max_new_tokens=10, temperature=0)
    with pytest.warns(UserWarning, match="its last 16 are used"):
        (sample,) = generate(model, [long], max_new_tokens=100, eos=(), return_samples=True)
    assert len(sample.tokens) == 16 and sample.finish_reason == "length"
    with pytest.warns(UserWarning, match="prompt 2 has 100 tokens .1 more") as caught:
        generate(model, [[1], long, long], max_new_tokens=10)
    assert len(caught) == 1


def test_log_probabilities_are_those_that_score_gives_the_tokens_drawn(model):
    prompts = ["the cat", "on the mat and the dog"]
    settings = {"max_new_tokens": 12, "seed": 4, "num_samples": 2, "stop": "ca", "repetition_penalty": 1.5}
    samples = generate(model, prompts, temperature=0.7, top_k=9, return_logprobs=True, **settings)
    assert [s.text for s in samples] == generate(model, prompts, temperature=0.7, top_k=9, **settings)
    for sample in samples:
        context = model.tokenizer.encode(sample.prompt).ids
        scored = neojax.score(model, [sample.tokens], [context])[0]
        assert len(sample.logprobs) == len(sample.tokens)
        np.testing.assert_allclose(sample.logprobs, scored.logprobs, atol=1e-4)
    (plain,) = generate(model, ["the"], max_new_tokens=2, return_samples=True)
    assert plain.logprobs is None


def compiled():
    """How often each compiled part has been compiled."""
    parts = decode._read, decode._read_on, decode._begin, decode._decode
    return [part._cache_size() for part in parts]


def test_prompts_of_one_bucket_and_other_settings_compile_nothing_new(model, monkeypatch):
    monkeypatch.setattr(decode, "PREFILL", 10)  # so that a prompt of 16 is read in two parts
    generate(model, [[1, 2, 3]], max_new_tokens=10)
    sizes = compiled()
    generate(model, [list(range(1, 16))], max_new_tokens=9, temperature=0.3, top_k=4, top_p=0.5, seed=9)
    assert compiled() == sizes
    generate(model, [list(range(1, 18))], max_new_tokens=9)  # the next bucket
    assert compiled() != sizes


def test_tokens_come_to_the_host_once_for_several_and_are_streamed_then(model, monkeypatch):
    events = []
    original = Layout.fetch
    monkeypatch.setattr(Layout, "fetch", lambda *a: events.append("fetch") or original(*a))
    settings = {"max_new_tokens": 21, "temperature": 0, "eos": ()}
    generate(model, "the", stream=lambda *_: events.append("text"), **settings)
    # A token from the prompt, then 8 + 8 + 4, each followed by its text.
    assert events.count("fetch") == 1 + -(-20 // rows_module.STEPS)
    assert "text" in events[: events.index("fetch", 2)] and events[-1] == "text"


@pytest.mark.parametrize("kind, grows", [("local", False), ("global", True)])
def test_a_token_of_a_local_layer_costs_the_same_in_a_longer_context(monkeypatch, kind, grows):
    flops = []
    for n_ctx in (32, 256):
        model = Transformer(tiny(n_layer=1, n_ctx=n_ctx, attention_types=(kind,))).init(0)
        original = decode._decode

        def counted(*args, original=original):
            flops.append(original.lower(*args).cost_analysis()["flops"])
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(decode, "_decode", counted)
            generate(model, [[1, 2, 3]], max_new_tokens=n_ctx - 3, eos=0)
    assert (flops[-1] > 1.2 * flops[0]) == grows


def test_finished_rows_leave_the_batch(model, monkeypatch):
    widths = []
    original = decode.Decoder.decode

    def spy(self, rows, *rest):
        widths.append(rows.token.shape[0])
        return original(self, rows, *rest)

    monkeypatch.setattr(decode.Decoder, "decode", spy)
    prompts = [[1] * n for n in (30, 30, 29, 29, 4)]  # all but the last have little room
    with pytest.warns(UserWarning):
        found = generate(model, prompts, max_new_tokens=26, temperature=0, eos=())
    assert widths[0] == 8 and widths[-1] == 1
    assert found[-1] == generate(model, prompts[-1:], max_new_tokens=26, temperature=0, eos=())[0]


def test_replaced_weights_are_used(model):
    other = model.bind(perturbed(model.params(), 3))
    assert generate(other, [[1, 2]], temperature=0) != generate(model, [[1, 2]], temperature=0)


def test_token_prompts_need_no_tokenizer():
    model = Transformer(tiny()).init(0)
    (tokens,) = generate(model, [[1, 2]], max_new_tokens=3)
    assert len(tokens) == 3
    for prompts, words in ((["text"], "no tokenizer"), ([[61]], "token 61"), ([[]], "prompt is empty")):
        with pytest.raises(NeojaxError, match=words):
            generate(model, prompts)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"max_new_tokens": 0},
        {"num_samples": 0},
        {"stop": ""},
    ],
)
def test_a_setting_out_of_range_is_one_line_that_names_it(model, setting):
    with pytest.raises(NeojaxError, match=next(iter(setting)).split("_")[0]) as caught:
        generate(model, "the", **setting)
    assert "\n" not in str(caught.value)
