import json
import os
import random
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from neojax.commands import prepare as command
from neojax.config import DataConfig, SourceConfig
from neojax.data import memory, workers
from neojax.data import prepare as module
from neojax.data import tokenizer as tokenizers
from neojax.data.encode import split_of
from neojax.data.loader import train_batches
from neojax.data.prepare import prepare
from neojax.data.store import TokenStore
from neojax.data.tokenizer import is_splittable, split
from neojax.errors import NeojaxError


def lines(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def words(seed, n):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(n))


def decoded(prefix, tokenizer):
    tokenizer = Tokenizer.from_file(str(tokenizer))
    store = TokenStore(prefix)
    return [tokenizer.decode(store.documents(i)[:-1].tolist()) for i in range(store.n_documents)]


def test_real_text_gives_the_very_tokens_that_gpt_neox_wrote(shared_data, tmp_path):
    folder = shared_data / "megatron"
    vocabulary = ByteLevelBPETokenizer(
        str(folder / "gpt2-tiny-vocab.json"), str(folder / "gpt2-tiny-merges.txt")
    )
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    source = folder / "openwebtext-1000.decoded.jsonl"
    counts = prepare([source], tmp_path / "out", tokenizer=tmp_path / "tokenizer.json", validation=0)
    assert (counts.documents, counts.tokens, counts.skipped) == (1000, 1_361_845, {})
    for suffix in (".bin", ".idx"):
        theirs = (folder / f"meg-gpt2-openwebtext_text_document{suffix}").read_bytes()
        assert (tmp_path / "out" / f"train{suffix}").read_bytes() == theirs


def test_awkward_unicode_comes_back_from_every_archive(shared_data, tmp_path):
    archives = shared_data / "archives"
    tokenizer = shared_data / "gpt2-tokenizer" / "tokenizer.json"
    names = ["blns.txt", "blns.txt.tar.gz", "blns.txt.zip", "blns.jsonl.zst.tar"]
    counts = prepare([archives / n for n in names], tmp_path / "out", tokenizer=tokenizer, validation=0)
    blns = (archives / "blns.txt").read_bytes().decode()
    assert counts.documents == 11 and not counts.skipped
    texts = decoded(tmp_path / "out" / "train", tokenizer)
    assert texts[:4] == [blns] * 4 and texts[4] == "testing 123\n\ntesting 345"
    assert TokenStore(tmp_path / "out" / "train").documents(0)[-1] == 50256


def test_every_document_is_kept_in_order_with_its_end_however_short(tmp_path, byte_tokenizer):
    texts = ["a", "", "b" * 3000, " ", "\n", "ü", *(words(i, i) for i in range(1, 200))]
    counts = prepare(
        [lines(tmp_path / "a.jsonl", texts)], tmp_path / "out", tokenizer=byte_tokenizer, validation=0.2
    )
    assert counts.skipped == {"empty": 1}
    kept = [t for t in texts if t]
    sides = {s: [t for t in kept if split_of(t.encode(), 0.2) == s] for s in ("train", "validation")}
    for side, expected in sides.items():
        store = TokenStore(tmp_path / "out" / side)
        assert decoded(store.prefix, byte_tokenizer) == expected
        assert all(store.documents(i)[-1] == 0 for i in range(store.n_documents))
        part = getattr(counts, side)
        assert (part.documents, part.tokens) == (store.n_documents, store.n_tokens)
        assert part.bytes == sum(len(t.encode()) for t in expected)
    assert 20 < counts.validation.documents < 60
    about = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert about["train"]["tokens"] == counts.train.tokens and about["tokenizer"]["end_of_document_id"] == 0


def test_the_result_depends_on_neither_workers_nor_task_sizes(tmp_path, byte_tokenizer, monkeypatch):
    lines(tmp_path / "a.jsonl", [words(i, 40) for i in range(300)])
    (tmp_path / "b.txt").write_text(words("long", 4000))
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    prepare(inputs, tmp_path / "1", train_tokenizer=400, workers=1, validation=0.1)
    monkeypatch.setattr(module, "_TASK", 2000)
    monkeypatch.setattr(module, "_LONG", 5000)  # cuts b.txt into pieces
    prepare(inputs, tmp_path / "2", train_tokenizer=400, workers=3, validation=0.1)
    files = sorted(p.name for p in (tmp_path / "1").iterdir() if not p.name.startswith("."))
    assert files == sorted(
        ["train.bin", "train.idx", "validation.bin", "validation.idx", "tokenizer.json", "prepared.json"]
    )
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_long_text_in_pieces_gives_the_same_tokens(shared_data):
    tokenizer = Tokenizer.from_file(str(shared_data / "gpt2-tokenizer" / "tokenizer.json"))
    assert is_splittable(tokenizer)
    text = (shared_data / "archives" / "blns.txt").read_bytes().decode()
    text += "a  b\n\nc \n d\t e\n\n\n  f's g\u00a0 h\u2003i\x85 j\x1c k"
    text += (shared_data / "tinyshakespeare.txt").read_text()[:20_000]
    for size in (1, 7, 100):
        pieces = list(split(text, size))
        assert "".join(pieces) == text and len(pieces) > len(text) / (size + 100)
        encoded = [e.ids for e in tokenizer.encode_batch(pieces)]
        assert [i for ids in encoded for i in ids] == tokenizer.encode(text).ids


def test_bad_records_are_counted_with_their_reasons_and_the_rest_is_kept(tmp_path, byte_tokenizer):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "good"}\nnot json\n{"other": 1}\n{"text": 5}\n{"text": ""}\n[1]\n{"text": "\\ud800x"}\n\xff\n'  # noqa: E501
    )
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b"")
    counts = prepare([tmp_path], tmp_path / "out", tokenizer=byte_tokenizer, validation=0)
    assert decoded(tmp_path / "out" / "train", byte_tokenizer) == ["good", "\ufffdx"]
    assert counts.skipped == {
        "not valid JSON": 1,
        "no 'text'": 2,
        "'text' is not a text": 1,
        "empty": 2,
        "not UTF-8 text": 2,
    }
    assert any("no 'text' (the first: " in line and "a.jsonl:3" in line for line in counts.lines())


FRAGILE = """
import os, signal
from neojax.data import workers
own = workers.Encoder.__call__

def call(self, task):
    for record in task:
        if b"spare me" in record.data:
            if b"quietly" in record.data:
                raise MemoryError
            os.kill(os.getpid(), signal.SIGKILL)
    return own(self, task)

workers.Encoder.__call__ = call
workers.main()
"""


def test_a_document_that_ends_its_encoder_is_passed_over_and_the_rest_is_kept(
    tmp_path, byte_tokenizer, monkeypatch, capfd
):
    monkeypatch.setattr(workers.Pool, "command", (sys.executable, "-c", FRAGILE))
    monkeypatch.setattr(workers, "SUSPECT", 1000)
    long = ["spare me" + "x" * 2000, "y" * 3000, "quietly spare me" + "x" * 2000]
    texts = [*(words(i, 5) for i in range(30)), *long, *(words(i, 5) for i in range(30, 60)), long[0], "last"]
    source = lines(tmp_path / "a.jsonl", texts)
    counts = prepare([source], tmp_path / "out", tokenizer=byte_tokenizer, validation=0, workers=2)
    kept = [t for t in texts if "spare me" not in t]
    assert decoded(tmp_path / "out" / "train", byte_tokenizer) == kept
    assert counts.skipped == {"needs more memory than an encoding process had": 3}
    assert list(counts.first_skipped.values()) == [f"{source}:31"]
    assert "Traceback" not in capfd.readouterr().err
    source = lines(tmp_path / "b.jsonl", ["spare me", "x"])  # too short to be the cause
    with pytest.raises(NeojaxError, match="an encoding process ended with status -9"):
        prepare([source], tmp_path / "out2", tokenizer=byte_tokenizer, validation=0)
    assert not (tmp_path / "out2").exists()


def test_a_text_that_cannot_be_cut_is_passed_over_where_memory_does_not_hold_it(
    tmp_path, byte_tokenizer, monkeypatch
):
    monkeypatch.setattr(module, "_TASK", 100)
    monkeypatch.setattr(module, "_LONG", 500)
    monkeypatch.setattr(memory, "memory", lambda: 1000 * memory.ENCODING * 2)
    for name, text in {"a": "x y " * 200, "b": "x y " * 50 + "z" * 2000, "c": "short"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    source = sorted(tmp_path.glob("*.txt"))
    counts = prepare(source, tmp_path / "out", tokenizer=byte_tokenizer, validation=0, workers=2)
    assert decoded(tmp_path / "out" / "train", byte_tokenizer) == ["x y " * 200, "short"]
    assert counts.first_skipped == {
        "holds more without a blank than can be encoded at once": str(tmp_path / "b.txt")
    }


def test_a_copy_of_a_document_lands_on_the_same_side(tmp_path, byte_tokenizer):
    texts = [words(i, 5) for i in range(100)]
    for name, order in {"1": texts, "2": texts[::-1]}.items():
        prepare(
            [lines(tmp_path / "a.jsonl", order)], tmp_path / name, tokenizer=byte_tokenizer, validation=0.3
        )
    one, two = (decoded(tmp_path / n / "validation", byte_tokenizer) for n in "12")
    assert one == two[::-1] and len(one) > 10


def test_what_a_tokenizer_says_of_truncation_padding_and_extra_tokens_is_not_followed(
    tmp_path, byte_tokenizer
):
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(byte_tokenizer))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 257)])
    tokenizer.save(str(tmp_path / "t.json"))
    prepare(
        [lines(tmp_path / "a.jsonl", ["abcdefgh"])],
        tmp_path / "o",
        tokenizer=tmp_path / "t.json",
        validation=0,
        eod="</s>",
    )
    tokens = TokenStore(tmp_path / "o" / "train").documents(0)
    assert len(tokens) == 9 and tokens[-1] == 257 and 257 not in tokens[:-1]


def test_errors_are_one_line_and_leave_no_folder(tmp_path, byte_tokenizer):
    good = lines(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.json").write_text("{}")
    cases = [
        ({"inputs": [tmp_path / "none"]}, "none' does not exist"),
        ({"tokenizer": None}, "either --tokenizer"),
        ({"tokenizer": tmp_path / "none.json"}, "none.json does not exist"),
        ({"tokenizer": tmp_path / "bad.json"}, "bad.json is not a tokenizer"),
        ({"tokenizer": None, "train_tokenizer": 100}, "at least 257"),
        ({"tokenizer_kind": "unigram"}, "for a tokenizer that --train-tokenizer"),
        ({"tokenizer": None, "train_tokenizer": 300, "cased": True}, "bpe always keeps case"),
        ({"eod": "<|end|>"}, "<|end|>"),
        ({"validation": 1.0}, "--validation"),
        ({"workers": 0}, "--workers"),
        ({"inputs": [tmp_path / "empty.txt"]}, "no documents .*1 empty"),
        ({"validation": 0.9999999}, "fell into validation"),
        ({"text_key": "content"}, "no 'content'"),
        ({"out": good}, "is a file"),
    ]
    for change, cause in cases:
        options = {"inputs": [good], "out": tmp_path / "out", "tokenizer": byte_tokenizer, **change}
        with pytest.raises(NeojaxError, match=cause.replace("|", r"\|")) as e:
            prepare(**options)
        assert "\n" not in str(e.value)
        assert not (tmp_path / "out").exists(), cause


def test_a_finished_folder_is_replaced_only_by_force(tmp_path, byte_tokenizer):
    source = lines(tmp_path / "a.jsonl", ["x"])
    options = {"tokenizer": byte_tokenizer, "validation": 0}
    prepare([source], tmp_path / "out", **options)
    lines(source, ["y", "z"])
    with pytest.raises(NeojaxError, match="--force"):
        prepare([source], tmp_path / "out", **options)
    assert decoded(tmp_path / "out" / "train", byte_tokenizer) == ["x"]
    prepare([source], tmp_path / "out", force=True, **options)
    assert decoded(tmp_path / "out" / "train", byte_tokenizer) == ["y", "z"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing_finished_no_process_and_can_be_run_again(
    tmp_path, byte_tokenizer, how
):
    lines(tmp_path / "a.jsonl", [words(i, 2000) for i in range(50)] * 80)
    code = (
        "import sys; from argparse import ArgumentParser; from neojax.commands import prepare\n"
        "parser = ArgumentParser(); prepare.add_arguments(parser); prepare.run(parser.parse_args())"
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "a.jsonl"),
        "--out",
        str(out),
        "--tokenizer",
        str(byte_tokenizer),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    partial = out / "unfinished" / "train.bin.partial"
    while not (partial.exists() and partial.stat().st_size > 0):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(20) != 0
    assert not list(out.glob("**/*.idx")) and not list(out.glob("**/*.json"))
    with pytest.raises(NeojaxError):
        train_batches(DataConfig(train=(SourceConfig(str(out)),)), 8, 1, 0)
    deadline = time.time() + 20
    while _group_is_alive(process.pid):
        assert time.time() < deadline, "encoding processes outlive the run"
        time.sleep(0.05)
    if how != signal.SIGKILL:
        assert not out.exists()
    lines(tmp_path / "a.jsonl", ["x"])
    assert prepare([tmp_path / "a.jsonl"], out, tokenizer=byte_tokenizer, validation=0).documents == 1
    assert not (out / "unfinished").exists()


def _group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_trained_tokenizer_round_trips_any_text_and_is_the_same_every_time(tmp_path):
    source = lines(tmp_path / "a.jsonl", [words(i, 50) for i in range(100)])
    for name in "12":
        prepare([source], tmp_path / name, train_tokenizer=500)
    assert (tmp_path / "1/tokenizer.json").read_bytes() == (tmp_path / "2/tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_file(str(tmp_path / "1/tokenizer.json"))
    assert tokenizer.get_vocab_size() == 500
    text = " A\u0000ß漢🙂\r\n\t  z"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_command_line_prints_the_counts(tmp_path, byte_tokenizer, capsys):
    parser = ArgumentParser()
    command.add_arguments(parser)
    source = lines(tmp_path / "a.jsonl", ["x", "", "yy"])
    args = [
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--tokenizer",
        str(byte_tokenizer),
        "--validation",
        "0",
    ]
    command.run(parser.parse_args(args))
    printed = capsys.readouterr().out
    assert "2 documents" in printed and "5 tokens" in printed and "1 empty" in printed
    np.testing.assert_array_equal(TokenStore(tmp_path / "out" / "train").documents(0)[-1:], [0])


def test_an_end_of_document_token_that_is_no_text_is_named():
    with pytest.raises(NeojaxError, match=r"end-of-document token '\\udcff' is not in the tokenizer's"):
        tokenizers.end_of_document(tokenizers.train(["a"], 257), "\udcff")
