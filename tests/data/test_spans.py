"""Windows of passages, against the overlapping rows that the tokenizers library makes; answers from logits
and their measures, against slow ones and what SQuAD's own program gives."""

import re
from itertools import pairwise

import numpy as np
import pytest

from neojax.config import SquadConfig
from neojax.data import tokenizer as tokenizers
from neojax.data.answers import Reply, Span, replies
from neojax.data.examples import Frame
from neojax.data.questions import Answer, Question, read_questions
from neojax.data.spans import best_windows, spans_of, windows
from neojax.data.squad_scores import exact_match, squad_scores, word_f1
from neojax.errors import NeojaxError

WORDS = re.split(" ", "Rollo, the 1st duke of Normandy (a Viking), was baptised in Rouen; café  and\nnaïve")
PAD, END = 0, 0


def questions(count=12, seed=0):
    """Questions about passages of many lengths, and an answer anywhere in each; every fourth has none."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        passage = " ".join(rng.choice(WORDS, rng.integers(1, 60)))
        start, stop = sorted(rng.choice(len(passage) + 1, 2, replace=False))
        text = passage[start:stop]
        answers = () if number % 4 == 3 or not text.strip() else (Answer(text, int(start)),)
        asked = " ".join(rng.choice(WORDS, rng.integers(1, 9)))
        found.append(Question(f"row {number}", str(number), asked, passage, answers))
    return found


@pytest.fixture(scope="module", params=["wordpiece", "unigram", "bpe"])
def tokenizer(request):
    sizes = {"wordpiece": 90, "unigram": 90, "bpe": 300}
    return tokenizers.train([" ".join(WORDS)] * 3, sizes[request.param], request.param)


def frame_of(tokenizer):
    ids = {name: tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    if None in ids.values():
        return Frame((), (END,), (), PAD, False, causal=True)
    return Frame((ids["[CLS]"],), (ids["[SEP]"],), (ids["[SEP]"],), PAD, True)


MOST, STRIDE, QUERY = 32, 7, 9
SHORT = SquadConfig(doc_stride=STRIDE, max_query_length=QUERY)


def test_windows_and_answers_are_those_of_overlapping_rows(tokenizer):
    """The library parts a passage by what two windows share; the answer is found character by character."""
    asked, frame = questions(), frame_of(tokenizer)
    found = spans_of("a", asked, tokenizer, frame, MOST, SHORT)
    row = apart = 0
    for number, question in enumerate(asked):
        own = tokenizer.encode(question.text, add_special_tokens=False).ids[:QUERY]
        room = MOST - len(own) - 2 - (not frame.causal)
        passage = tokenizer.encode(question.context, add_special_tokens=False)
        offsets = [[c for c in range(*pair) if not question.context[c].isspace()] for pair in passage.offsets]
        passage.truncate(room, stride=max(room - STRIDE, 0))
        whole = False
        for part in (passage, *passage.overflowing):
            head = [*frame.first, *own, *frame.between]
            tokens = [*head, *part.ids, *(frame.between if frame.causal else frame.last)]
            window = found.windows[row]
            example = found.examples[row]
            assert example.tokens.tolist() == tokens and window.question == number
            assert example.types.tolist() == [0] * len(head) + [1] * (len(tokens) - len(head))
            inside = range(window.first, window.first + window.size)
            characters = set()
            if question.answers:
                ((text, start),) = question.answers
                characters = {start + i for i, c in enumerate(text) if not c.isspace()}
            has = [bool(characters & set(each)) for each in offsets]
            first = has.index(True) if any(has) else None
            last = len(has) - 1 - has[::-1].index(True) if any(has) else None
            null = len(tokens) - 1 if frame.causal else 0
            expected = [null, null]
            if first in inside and last in inside:
                expected, whole = [len(head) + at - window.first for at in (first, last)], True
            assert example.label.tolist() == expected and window.null == null
            row += 1
        apart += any(has) and not whole
    assert row == len(found) > len(asked) and apart == found.n_apart > 0
    assert found.n_long == sum(
        len(tokenizer.encode(q.text, add_special_tokens=False).ids) > QUERY for q in asked
    )


def test_windows_cover_a_passage_and_its_tokens_are_told_once():
    for size, room, stride in ((5, 9, 2), (9, 9, 2), (30, 9, 4), (30, 9, 20), (31, 8, 1)):
        parts = windows(size, room, stride)
        assert parts[0][0] == 0 and sum(parts[-1]) == size
        assert all(b[0] - a[0] == min(room, stride) for a, b in pairwise(parts))
        best = best_windows(size, parts)
        told = np.zeros(size, int)
        for (first, count), own in zip(parts, best):
            told[first : first + count] += own
        assert (told == 1).all()
        for token in range(size):
            shown = [
                min(token - first, first + count - 1 - token) + 0.01 * count
                if first <= token < first + count
                else -1
                for first, count in parts
            ]
            first, _ = parts[int(np.argmax(shown))]
            assert best[int(np.argmax(shown))][token - first]


def slow_reply(question, rows, offsets, squad, may_lack):
    """As run_squad.py goes about it, over every pair of tokens. rows: (window, logits)."""
    scored = []
    nulls = []
    for window, logits in rows:
        length = window.at + window.size + 1
        rank = [sorted(range(length), key=lambda i: -logits[i, side])[: squad.n_best_size] for side in (0, 1)]
        nulls.append((logits[window.null, 0], logits[window.null, 1]))
        for start in rank[0]:
            for end in rank[1]:
                a, b = start - window.at, end - window.at
                if not (0 <= a <= b < window.size and b - a < squad.max_answer_length and window.is_best[a]):
                    continue
                (left, _), (_, right) = offsets[window.first + a], offsets[window.first + b]
                if text := question.context[left:right].strip():
                    scored.append((float(logits[start, 0] + logits[end, 1]), text))
    null = min(float(a + b) for a, b in nulls)
    if may_lack:
        scored.append((null, ""))
    listed = []
    for score, text in sorted(scored, key=lambda each: -each[0]):
        if len(listed) < squad.n_best_size and text not in [other for _, other in listed]:
            listed.append((score, text))
    if may_lack and "" not in [text for _, text in listed]:
        listed.append((null, ""))
    texts = [text for _, text in listed]
    total = sum(np.exp(score) for score, _ in listed)
    if not listed:  # nothing may be told, and nothing can
        return "", [""], [1.0], null
    best = next((each for each in listed if each[1]), (0.0, ""))
    answer = "" if may_lack and null - best[0] > squad.null_score_diff_threshold else best[1]
    return answer, texts, [np.exp(score) / total for score, _ in listed], null - best[0]


@pytest.mark.parametrize("may_lack", [False, True])
def test_replies_are_those_of_a_slow_search(tokenizer, may_lack):
    asked = [q for q in questions(seed=3) if len(q.context.split()) > 3]
    squad = SquadConfig(doc_stride=STRIDE, max_query_length=QUERY, n_best_size=6, max_answer_length=5,
                        null_score_diff_threshold=0.25 if may_lack else 0.0)  # fmt: skip
    spans = spans_of("a", asked, tokenizer, frame_of(tokenizer), MOST, squad)
    rng = np.random.default_rng(1)
    logits = {row: rng.normal(size=(MOST + 5, 2)).astype(np.float32) for row in range(len(spans))}
    for row, own in logits.items():
        own[len(spans.examples[row].tokens) :] = 99.0  # padding says nothing
        own[spans.windows[row].null] += 3.0 * (spans.windows[row].question % 2)
    found = replies(spans, logits, squad, may_lack)
    assert len(found) == len(asked)
    lacking = 0
    for number, question in enumerate(asked):
        rows = [(w, logits[row]) for row, w in enumerate(spans.windows) if w.question == number]
        answer, texts, shares, difference = slow_reply(question, rows, spans.offsets[number], squad, may_lack)
        said = found[number]
        assert said.answer.text == answer and [span.text for span in said.n_best] == texts
        np.testing.assert_allclose([span.probability for span in said.n_best], shares, rtol=1e-5)
        for span in said.n_best:
            assert not span.text or question.context[span.start : span.stop] == span.text
        assert said.null_score_diff == (pytest.approx(difference, abs=1e-5) if may_lack else None)
        lacking += not answer
    assert bool(lacking) == may_lack
    del logits[next(r for r, w in enumerate(spans.windows) if w.question == 1)]
    assert sorted(replies(spans, logits, squad, may_lack)) == [0, *range(2, len(asked))]


def test_held_out_windows_of_a_question_come_together(tokenizer):
    spans = spans_of("a", questions(), tokenizer, frame_of(tokenizer), MOST, SHORT)
    order = [row for batch in spans.held_out(5) for row in batch]
    rows = [row for row in order if row >= 0]
    assert sorted(rows) == list(range(len(spans))) and len(order) % 5 == 0
    seen = [spans.windows[row].question for row in rows]
    assert len(set(seen)) == 1 + sum(a != b for a, b in pairwise(seen))


OFFICIAL = [  # right answers, the best text, null_score_diff; exact match and F1 of the text
    (["Denver Broncos", "The Denver Broncos"], "the Denver Broncos!", -4.5, 1, 1.0),
    (["Santa Clara, California", "Levi's"], "Levi’s Stadium in Santa Clara, California.", -2.25, 0, 2 / 3),
    ([], "gold", -1.0, 0, 0),
    (["golden anniversary", "gold-themed"], "the gold-themed", -0.5, 1, 1.0),
    ([], "a", 0.75, 1, 1),
    (["10th and 11th centuries"], "11th  and the 10th centuries 11th", 1.5, 0, 8 / 9),
    (["The A"], "", 2.0, 1, 1),
    ([], "Rollo", 3.0, 0, 0),
    (["an"], "An apple", -3.0, 0, 0),
]  # fmt: skip


def test_measures_are_those_of_the_official_program():
    """The numbers are what evaluate-v2.0.py gives, of answers with the threshold 0."""
    asked, said = [], []
    for number, (golds, text, difference, exact, f1) in enumerate(OFFICIAL):
        answers = tuple(Answer(gold, 0) for gold in golds)
        asked.append(Question("", str(number), "", "", answers))
        best, none = Span(text, 0, 1, 0.5, 0.0, 0.0), Span("", -1, -1, 0.5, 0.0, 0.0)
        said.append(Reply(str(number), none if difference > 0 else best, [best, none], difference))
        rights = golds if golds and golds != ["an"] else [""]
        assert max(exact_match(text, gold) for gold in rights) == exact
        assert max(word_f1(text, gold) for gold in rights) == pytest.approx(f1)
    percent = {name: value * 100 for name, value in squad_scores(asked, said, True).items()}
    assert percent == pytest.approx({
        "exact_match": 55.55555555555556, "f1": 62.96296296296297,
        "has_answer_exact_match": 50.0, "has_answer_f1": 61.111111111111114,
        "no_answer_exact_match": 66.66666666666667, "no_answer_f1": 66.66666666666667,
        "best_exact_match": 44.44444444444444, "best_exact_match_threshold": -450.0,
        "best_f1": 61.728395061728406, "best_f1_threshold": 200.0,
    })  # fmt: skip
    assert squad_scores(asked[:1], said[:1], False) == {"exact_match": 1.0, "f1": 1.0}
    wrong = [
        number for number, own in enumerate(OFFICIAL) if not own[3]
    ]  # no threshold is above that of none
    few = squad_scores([asked[i] for i in wrong], [said[i] for i in wrong], True)
    assert few["best_exact_match"] == pytest.approx(2 / 5)
    assert few["best_exact_match_threshold"] < min(said[i].null_score_diff for i in wrong)


def test_squad_itself_is_read(shared_data):
    from neojax.config import DataConfig

    data = DataConfig(task="squad_v2")
    asked = read_questions(shared_data / "eval" / "squad-v2-small.json", data)
    tokenizer = tokenizers.load(shared_data / "tokenizers" / "bert-uncased.vocab.txt")
    spans = spans_of("squad", asked, tokenizer, Frame((101,), (102,), (102,), 0, True), 128, data.squad)
    whole = 0
    for example, window in zip(spans.examples, spans.windows):
        first, last = example.label
        if first:
            offsets = spans.offsets[window.question]
            at = window.first - window.at
            question = asked[window.question]
            own = question.context[offsets[first + at][0] : offsets[last + at][1]]
            assert own == question.answers[0].text
            whole += 1
    assert whole and any(not question.answers for question in asked)


def test_a_row_without_room_for_a_passage_is_told(tokenizer):
    frame = frame_of(tokenizer)
    with pytest.raises(
        NeojaxError, match="row 0: a row of 4 tokens has no room for a passage beside a question"
    ):
        spans_of("a", questions(1), tokenizer, frame, 4, SquadConfig())
    if frame.causal:
        with pytest.raises(NeojaxError, match="need a token that ends a document"):
            spans_of(
                "a", questions(1), tokenizer, Frame((), (), (), 0, False, causal=True), 40, SquadConfig()
            )
