"""Prompts and answers become tokens of which the answers are scored, in rows that hold several."""

import json

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from neojax.data import tokenizer as tokenizers
from neojax.data.batch import NOT_SCORED
from neojax.data.chat_template import DEFAULT, FILE, ChatTemplate
from neojax.data.packed import Packed, best_fit
from neojax.data.prepare_sft import prepare_sft
from neojax.data.store import StoreWriter, TokenStore
from neojax.errors import NeojaxError

EOS = "<|endoftext|>"
RECORDS = [
    {"prompt": "2 + 2 =", "completion": " 4"},
    {"prompt": "Q", "completion": f" A{EOS}"},
    {"prompt": "Q", "completion": f" A{EOS} and B"},
    {"prompt": "Q", "completion": f" A{EOS}\n"},
    {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Bye"},
                  {"role": "assistant", "content": "Ciao"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    {"instruction": "Add", "input": "1 1", "output": "2"},
    {"instruction": "Add", "context": "", "response": "2"},
    {"text": "all of it"},
]  # fmt: skip
SAID = [
    ("2 + 2 =", [f" 4{EOS}"]),
    ("Q", [f" A{EOS}"]),
    ("Q", [f" A{EOS} and B{EOS}"]),
    ("Q", [f" A{EOS}\n"]),
    ("System: Be brief\nUser: Hi\nAssistant:", [f" Ho{EOS}", f" Ciao{EOS}"]),
    ("User: Hi\nAssistant:", [f" Ho{EOS}"]),
    ("User: Add\n\n1 1\nAssistant:", [f" 2{EOS}"]),
    ("User: Add\nAssistant:", [f" 2{EOS}"]),
    ("", [f"all of it{EOS}"]),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizers.train(["the text of all of it"], 270).save(str(path))
    return path


def written(folder, records, tokenizer, **options):
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = prepare_sft([folder / "rows.jsonl"], folder / "out", tokenizer=tokenizer, **options)
    return counts, folder / "out"


def test_answers_and_what_ends_them_are_scored_and_nothing_else(tokenizer, tmp_path):
    counts, out = written(tmp_path, RECORDS, tokenizer, validation=0.0)
    tokens, scored = TokenStore(out / "train"), TokenStore(out / "train_scored")
    assert counts.train.documents == tokens.n_documents == len(RECORDS)
    decode = tokenizers.load(tokenizer).decode
    for start, stop, (before, said) in zip(tokens.starts, tokens.starts[1:], SAID):
        ids, marks = tokens.read(start, stop), scored.read(start, stop)
        assert decode(ids[marks > 0], skip_special_tokens=False) == "".join(said)
        first = int(np.argmax(marks))
        assert decode(ids[:first], skip_special_tokens=False) == before
    assert (out / FILE).read_text() == DEFAULT
    assert json.loads((out / "prepared.json").read_text())["format"] == "sft"


def test_a_prompt_has_the_tokens_that_it_has_alone(tokenizer, tmp_path):
    _, out = written(tmp_path, [{"prompt": "all o", "completion": "f it"}], tokenizer, validation=0.0)
    own = tokenizers.load(tokenizer)
    expected = own.encode("all o").ids + own.encode("f it").ids
    assert TokenStore(out / "train").read(0, 99)[:-1].tolist() == expected
    assert not (out / FILE).exists()


def test_what_a_tokenizer_puts_before_a_text_stands_before_a_prompt_as_in_sampling(tokenizer, tmp_path):
    own = tokenizers.load(tokenizer)
    begin = own.token_to_id(EOS)
    own.post_processor = TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, begin)])
    own.save(str(tmp_path / "tokenizer.json"))
    records = [{"prompt": "all", "completion": " of"}, {"text": "it"}, RECORDS[5]]
    _, out = written(tmp_path, records, tmp_path / "tokenizer.json", validation=0.0)
    tokens, scored = TokenStore(out / "train"), TokenStore(out / "train_scored")
    begins = [tokens.read(start, start + 1)[0] == begin for start in tokens.starts[:-1]]
    assert begins == [True, True, False]  # a template writes what it wants there
    assert not scored.read(0, 99)[tokens.starts[:-1]].any()


BAD = [
    ({"prompt": "a"}, "rows.jsonl:1 has prompt; expected prompt and completion; messages"),
    ({"prompt": "a", "completion": 3}, "rows.jsonl:1: 'completion' is 3; expected a text"),
    ({"messages": "a"}, "'messages' is a; expected a list of messages"),
    ({"messages": [{"role": "user"}]}, "'messages', message 1: expected an object with role and content"),
    ({"messages": [{"role": "asistant", "content": "a"}]}, "role 'asistant' is none; did you mean assistant"),
    ({"messages": [{"role": "User", "content": "a"}]}, "role 'User' is none; did you mean user"),
    ({"prompt": "a", "completion": " "}, "no record has an answer to learn: .* has an empty answer"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no record has an answer to learn"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_what_is_wrong_with_a_record_is_told(record, message, tokenizer, tmp_path):
    with pytest.raises(NeojaxError, match=message):
        written(tmp_path, [record], tokenizer)
    assert not (tmp_path / "out" / "prepared.json").exists()


def test_inputs_within_the_folder_to_write_are_passed_over_and_a_file_is_no_folder(tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    with pytest.raises(NeojaxError, match="every input lies in --out"):
        prepare_sft([tmp_path / "out"], tmp_path / "out", tokenizer=tokenizer)
    (tmp_path / "rows.jsonl").write_text(json.dumps(RECORDS[1]) + "\n")
    both = [tmp_path / "rows.jsonl", tmp_path / "out" / "old.jsonl"]
    counts = prepare_sft(both, tmp_path / "out", tokenizer=tokenizer, validation=0.0)
    assert counts.train.documents == 1 and counts.skipped == {"lies in --out": 1}
    with pytest.raises(NeojaxError, match=r"rows\.jsonl is a file; expected a folder"):
        prepare_sft(both, tmp_path / "rows.jsonl", tokenizer=tokenizer)


def test_templates_may_have_what_transformers_gives_them():
    source = (
        "{{ strftime_now('%Y')[:2] }}{% for m in messages %}|{{ m.role }}:"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}|assistant:{% endif %}"
    )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ChatTemplate(source, EOS).pieces(talk) == [("20|user:a|assistant:", False), ("b", True)]


def test_templates_are_rendered_in_a_sandbox_and_their_errors_told(tokenizer, tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    cases = [
        ("{{ raise_exception('no system') }}", "raises ValueError: no system"),
        ("{{ messages.append(1) }}", "raises SecurityError"),
        ("{{ ().__class__.__bases__[0].__subclasses__() }}", "raises SecurityError"),
        ("{% for %}", "is not valid Jinja"),
        ("{{ messages | length }}", "does not write a conversation message by message"),
    ]
    for source, message in cases:
        with pytest.raises(NeojaxError, match=message):
            ChatTemplate(source, EOS).pieces(talk)
    (tmp_path / "own.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                                        "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
    _, out = written(
        tmp_path, [{"messages": talk}], tokenizer, chat_template=tmp_path / "own.jinja", validation=0
    )
    text = tokenizers.load(tokenizer).decode(TokenStore(out / "train").read(0, 99), skip_special_tokens=False)
    assert text == f"<user>a<assistant>b{EOS}"


def test_best_fit_holds_everything_once_and_wastes_little():
    sizes = np.random.default_rng(0).integers(1, 60, 400)
    bins = best_fit(sizes, 64)
    assert sorted(i for own in bins for i in own) == list(range(400))
    assert all(sizes[own].sum() <= 64 for own in bins)
    assert len(bins) <= 1.06 * np.ceil(sizes.sum() / 64)
    assert best_fit(np.array([5, 3, 2]), 5) == [[0], [1, 2]]


def test_packed_sequences_stand_apart_and_begin_at_0(tmp_path):
    """Sequences of 4, 6, 9 (too long for rows of 7: cut), and one whose answer is cut away."""
    marks = [[0, 0, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1], [0] * 9 + [1]]
    ids = [np.arange(10 * n, 10 * n + len(own)) for n, own in enumerate(marks, 1)]
    for name, parts in (("a", ids), ("a_scored", marks)):
        with StoreWriter(tmp_path / name, 100) as writer:
            writer.add(np.concatenate(parts), np.array(list(map(len, parts))))
    rows = Packed("a", TokenStore(tmp_path / "a"), TokenStore(tmp_path / "a_scored"), 7)
    assert (len(rows), rows.n_cut, rows.n_empty, rows.n_sequences, rows.n_scored) == (3, 2, 1, 3, 2 + 5 + 5)
    batch = rows.batch([*range(3), -1])
    by_first = {int(row[0]): i for i, row in enumerate(batch.tokens)}
    long, short, middle = (by_first[first] for first in (30, 10, 20))
    assert batch.tokens[long].tolist() == list(range(30, 37))
    assert batch.targets[long].tolist() == [NOT_SCORED] * 2 + list(range(33, 38))
    assert batch.tokens[short].tolist() == [10, 11, 12, 0, 0, 0, 0]
    assert batch.targets[short].tolist() == [NOT_SCORED, 12, 13] + [NOT_SCORED] * 4
    assert batch.segments[middle].tolist() == [1] * 5 + [0] * 2
    assert (batch.targets[3] == NOT_SCORED).all() and not batch.segments[3].any()
    longer = rows.batch([*range(3), -1], multiple=3)  # as a layout that splits rows into three wants them
    assert longer.tokens.shape == (4, 9) and not longer.segments[:, 7:].any()
    assert (longer.targets[:, 7:] == NOT_SCORED).all()
    wide = Packed("a", TokenStore(tmp_path / "a"), TokenStore(tmp_path / "a_scored"), 8).batch([0, 1])
    both = next(i for i in range(2) if wide.segments[i].max() == 2)
    assert wide.tokens[both].tolist() == [20, 21, 22, 23, 24, 10, 11, 12]
    assert wide.segments[both].tolist() == [1] * 5 + [2] * 3
    assert wide.positions[both].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert wide.targets[both].tolist() == [21, 22, 23, 24, 25, NOT_SCORED, 12, 13]
