"""WordPiece and unigrams: the ids that BERT's and ALBERT's own tokenizers give, and those trained here."""

import json
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

from neojax.convert.hf_tokenizer import read_tokenizer
from neojax.data import tokenizer as tokenizers
from neojax.data import unigram
from neojax.data.special_tokens import SpecialTokens
from neojax.data.tokenizer import is_splittable, load, split, train
from neojax.errors import NeojaxError

SCRIPTS = [
    "Der Fluß, die Straße; naïve façade Ünïcödé ÉCOLE",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "敏捷的棕色狐狸跳過懶狗。日本語のテキストと한국어 텍스트도 있다.",
    "نص عربي قصير مَعَ تشكيل\u00a0و ١٢٣",
    "हिन्दी में एक छोटा वाक्य",
    "Ο ΟΔΥΣΣΕΥΣ και ο Σίσυφος",
    "state-of-the-art ``quoted'' text (in 1,945, or 3.14)…\tit costs £5 €6",
    "🙂👩‍👩‍👧 \u200b\u200d zero\u0000width \x1b control \ufffd",
    "a" * 150 + " [MASK] the[MASK]end  [SEP] [CLS] <unk>",
    "",
    "   \n ",
]


@pytest.fixture(scope="module")
def texts(shared_data):
    """Real text: the list of awkward strings, pages of Wikipedia, and several scripts."""
    blns = (shared_data / "archives" / "blns.txt").read_text(encoding="utf-8").splitlines()
    pages = (shared_data / "eval" / "wikitext-2-raw.test.txt").read_text(encoding="utf-8").splitlines()
    return SCRIPTS + blns + pages[:600]


@pytest.fixture(scope="module")
def spiece(shared_data):
    return shared_data / "tokenizers" / "albert-30k-clean.spiece.model"


@pytest.fixture(scope="module")
def vocab(shared_data):
    return shared_data / "tokenizers" / "bert-uncased.vocab.txt"


def ids(tokenizer, texts, pairs=False):
    rows = tokenizer.encode_batch([(t, t) for t in texts] if pairs else list(texts))
    return [(row.ids, row.type_ids) for row in rows]


def test_ids_are_the_published_ones(spiece, vocab):
    albert, bert = load(spiece), load(vocab)
    assert albert.encode("This is a test", add_special_tokens=False).ids == [48, 25, 21, 1289]
    falls = "I was born in 92000, and this is falsé."
    expected = [31, 23, 386, 19, 561, 3050, 15, 17, 48, 25, 4997, 9]
    assert albert.encode(falls, add_special_tokens=False).ids == expected
    assert bert.encode("Hello, my dog is cute").ids == [101, 7592, 1010, 2026, 3899, 2003, 10140, 102]
    assert SpecialTokens.of(bert) == SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103)
    assert SpecialTokens.of(albert) == SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


def test_accents_and_case_are_kept_where_the_folder_says_so(spiece, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"keep_accents": true}')
    found = read_tokenizer(tmp_path).encode("this is falsé.", add_special_tokens=False)
    assert found.ids == [48, 25, 8256, 18, 1, 9]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    with pytest.raises(NeojaxError, match="do_lower_case: expected true or false, got 'no'"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}],
    ids=str,
)
def test_wordpiece_gives_the_ids_of_transformers(settings, vocab, texts, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes(vocab.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)._tokenizer
    ours = read_tokenizer(tmp_path)
    assert ids(ours, texts) == ids(theirs, texts)
    assert ids(ours, texts[:40], pairs=True) == ids(theirs, texts[:40], pairs=True)


def test_unigrams_give_the_ids_of_the_published_tokenizer_of_albert(spiece, texts):
    """Pieces and normalisation are transformers' own conversion of a spiece.model; blanks are taken away
    before, as in its AlbertTokenizer and in the tokenizer.json that was published."""
    slow = pytest.importorskip("transformers.convert_slow_tokenizer")
    original = SimpleNamespace(
        vocab_file=str(spiece),
        keep_accents=False,
        do_lower_case=True,
        convert_tokens_to_ids={"[CLS]": 2, "[SEP]": 3}.get,
    )
    converter = slow.AlbertConverter(original)
    blanks = slow.pre_tokenizers.WhitespaceSplit()
    theirs = slow.Tokenizer(slow.Unigram(converter.vocab(converter.proto), 1, False))
    theirs.normalizer = converter.normalizer(converter.proto)
    words = [blanks, converter.pre_tokenizer("▁", True)]
    theirs.pre_tokenizer = slow.pre_tokenizers.Sequence(words)
    theirs.post_processor = converter.post_processor()
    plain = [text for text in texts if "[" not in text and "<" not in text]  # it has no special tokens
    assert len(plain) > 1000
    assert ids(load(spiece), plain) == ids(theirs, plain)
    assert ids(load(spiece), plain[:40], pairs=True) == ids(theirs, plain[:40], pairs=True)


def test_no_piece_ends_in_a_digit_and_a_comma(spiece):
    albert = load(spiece)
    assert albert.token_to_id("▁2000,") is not None
    assert albert.encode("in 2000, or 1945, there", add_special_tokens=False).tokens == [
        "▁in", "▁2000", ",", "▁or", "▁1945", ",", "▁there"
    ]  # fmt: skip


def test_files_that_are_no_tokenizers_are_named(tmp_path, spiece):
    whole = spiece.read_bytes()
    piece = b"\x0a\x05[CLS]\x15" + struct.pack("<f", -1.0)
    cases = {
        "a.model": (b"\xff\xff\xff", "a.model is not a SentencePiece unigram model: it is cut off"),
        "b.model": (whole[:-100], "b.model is not a SentencePiece unigram model: it is cut off"),
        "c.model": (b"\x0b", "it holds no protocol buffer"),
        "d.model": (b"\x12\x02\x18\x02", "it is of type 2; give its model's tokenizer.json"),
        "e.model": (b"\x0a" + bytes([len(piece)]) + piece, "it has no piece for what is unknown"),
        "f.model": (b"\x0a\x07\x0a\x03<u>\x18\x02", r"no piece \[CLS\] and no piece \[SEP\]"),
        "g.txt": (b"a\nb\n", r"has no line \[UNK\] and no line \[CLS\] and no line \[SEP\]"),
        "h.txt": (b"\xff", "h.txt cannot be read"),
    }
    for name, (content, cause) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NeojaxError, match=cause) as e:
            load(tmp_path / name)
        assert "\n" not in str(e.value)
    with pytest.raises(NeojaxError, match=r"is a folder without tokenizer\.json, vocab\.txt, spiece\.model"):
        load(tmp_path)


def test_a_role_that_a_tokenizer_lacks_is_named(byte_tokenizer):
    special = SpecialTokens.of(load(byte_tokenizer))
    assert special == SpecialTokens(eos=0)
    with pytest.raises(NeojaxError, match=r"no cls and no mask token, as pairs need.*\[CLS\] and \[MASK\]"):
        special.need("cls", "mask", "eos", why="pairs")
    assert SpecialTokens.of(load(byte_tokenizer), {"mask": "a"}).mask is not None


@pytest.fixture(scope="module")
def trained(shared_data):
    pages = (shared_data / "eval" / "wikitext-2-raw.test.txt").read_text(encoding="utf-8")
    lines = pages[:150_000].splitlines()
    return {kind: (lines, train(lines, 600, kind)) for kind in ("wordpiece", "unigram")}


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_trained_tokenizer_has_its_special_tokens_first_and_knows_its_text(kind, trained):
    lines, tokenizer = trained[kind]
    assert tokenizers.n_ids(tokenizer) == 600
    assert SpecialTokens.of(tokenizer) == SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
    assert tokenizers.end_of_document(tokenizer) == ("[SEP]", 3)
    text = "the storm was at its height in the early hours of the morning"
    row = tokenizer.encode(text.upper(), text)
    assert row.ids[0] == 2 and row.ids.count(3) == 2 and 1 not in row.ids
    assert row.type_ids == [0] * (row.ids.index(3) + 1) + [1] * (len(row.ids) - row.ids.index(3) - 1)
    assert tokenizer.decode(tokenizer.encode(text.title()).ids) == text
    unknown = [row.ids.count(1) for row in tokenizer.encode_batch(lines)]
    assert sum(unknown) < len(lines) / 4
    cased = train(lines, 600, kind, cased=True)
    assert cased.decode(cased.encode("The Storm").ids) == "The Storm"


def test_the_same_texts_give_the_same_tokenizer_in_every_process(trained, tmp_path):
    code = (
        "import json, sys; from neojax.data.tokenizer import train\n"
        "lines = json.load(sys.stdin)\n"
        "print(json.dumps([train(lines, 600, kind).to_str() for kind in ('wordpiece', 'unigram')]))"
    )
    lines = json.dumps(trained["unigram"][0])
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True)
    assert json.loads(done.stdout) == [trained[kind][1].to_str() for kind in ("wordpiece", "unigram")]


def test_more_characters_than_a_vocabulary_holds_leave_the_commonest(trained):
    text = ["中文字" * 20 + "".join(map(chr, range(0x4E00, 0x4F00))) + " and some words of English " * 30]
    for kind in ("wordpiece", "unigram"):
        tokenizer = train(text, 100, kind)
        assert tokenizers.n_ids(tokenizer) <= 100
        assert 1 not in tokenizer.encode("中文字").ids and 1 in tokenizer.encode(chr(0x4E80)).ids
    with pytest.raises(NeojaxError, match="expected at least 32"):
        train(text, 10, "unigram")


def test_a_long_text_in_pieces_gives_the_same_tokens(spiece, vocab, texts):
    text = "\n".join(texts)[:60_000]
    for tokenizer in (load(spiece), load(vocab)):
        assert is_splittable(tokenizer)
        pieces = [row.ids for row in tokenizer.encode_batch(list(split(text, 50)), add_special_tokens=False)]
        assert [id for row in pieces for id in row] == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_text_without_a_character_leaves_the_special_tokens(kind):
    assert tokenizers.n_ids(train([" \n "], 300, kind)) == 5


def test_a_piece_without_a_score_or_type_is_an_ordinary_one():
    model = unigram.parse(b"\x0a\x03\x0a\x01a\x0a\x07\x0a\x03<u>\x18\x02")
    assert model == ([("a", 0.0), ("<u>", 0.0)], 1, b"")
