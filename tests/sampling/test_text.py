"""Text that streams is the text that results, whole characters only, and never part of a stop string."""

import pytest
from tokenizers import Tokenizer, decoders, models

from neojax.data.tokenizer import train
from neojax.sampling.text import Continuation

TEXT = "The naïve café — 日本語 🙂 END of it, END"


@pytest.fixture(scope="module")
def tokenizer():
    return train([TEXT], 257)  # bytes alone: every character beyond ASCII is several tokens


def pieces(tokenizer, text, chunk, stop=()):
    tokens = tokenizer.encode(text).ids
    continuation = Continuation(tokenizer, stop)
    given = []
    for i in range(0, len(tokens), chunk):
        given.append(continuation.push(tokens[i : i + chunk], last=i + chunk >= len(tokens)))
        if continuation.stopped:
            break
    return given, continuation


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("stop", [(), ("END",), ("it, END", "never"), ("D of", "END of it")])
def test_the_stream_adds_up_to_the_text_whatever_the_chunk(tokenizer, chunk, stop):
    given, continuation = pieces(tokenizer, TEXT, chunk, stop)
    expected = TEXT[: min([TEXT.find(s) for s in stop if s in TEXT], default=None)]
    if stop == ("D of", "END of it"):  # the one that is complete first ends the text
        expected = TEXT[: TEXT.find("D of")]
    assert "".join(given) == continuation.text == expected
    assert "\ufffd" not in "".join(given)
    assert continuation.stopped == bool(stop)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_tokens_end_with_the_one_that_completes_the_stop_string(tokenizer, chunk):
    _, continuation = pieces(tokenizer, TEXT, chunk, ("END",))
    assert tokenizer.decode(continuation.tokens).endswith("END")


def test_the_beginning_of_a_stop_string_is_given_once_it_is_known_not_to_be_one(tokenizer):
    given, continuation = pieces(tokenizer, "an EN and an E", 1, ("END",))
    assert "".join(given) == continuation.text == "an EN and an E"
    assert given[4] == "" and not continuation.stopped


def test_a_character_that_never_completes_is_given_at_the_end(tokenizer):
    half = tokenizer.encode("x🙂").ids[:-1]
    continuation = Continuation(tokenizer)
    assert continuation.push(half) == "x"
    assert continuation.push([], last=True) == continuation.text[1:] != ""


def test_the_text_goes_on_behind_the_prompt_in_tokenizers_that_write_blanks_between_words():
    words = ["[UNK]", "to", "be", "##gin", ".", "▁to", "▁be"]
    pieces_ = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    pieces_.decoder = decoders.WordPiece()
    meta = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    meta.decoder = decoders.Metaspace()
    for tokenizer, prompt, new, expected in [
        (pieces_, [1], [2], " be"), (pieces_, [2], [3, 4], "gin."), (pieces_, [], [1, 2], "to be"),
        (meta, [5], [6], " be"), (meta, [], [5, 6], "to be"),
    ]:  # fmt: skip
        continuation = Continuation(tokenizer, prompt=prompt)
        given = [continuation.push([token]) for token in new]
        assert "".join([*given, continuation.push([], last=True)]) == continuation.text == expected


def test_a_character_that_the_prompt_begins_is_given_whole(tokenizer):
    tokens = tokenizer.encode("x🙂y").ids
    continuation = Continuation(tokenizer, prompt=tokens[:3])
    assert continuation.push(tokens[3:], last=True) == "🙂y"
