"""Tasks from local files, in the forms in which they are given out, come to what lm-evaluation-harness makes
of the same rows in the form of Hugging Face's data sets."""

import json
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import noisy, tiny

from neojax.data.tokenizer import train
from neojax.errors import NeojaxError
from neojax.evaluate import local_tasks
from neojax.evaluate.intervals import share_interval
from neojax.evaluate.local_tasks import Local, evaluate, local_task
from neojax.evaluate.score import score
from neojax.evaluate.tasks import TASKS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "a", "dog", "lay", "by", "the", "log", "in", "rain"]
N = 7
DRAW = random.Random(0)


def text(words):
    return " ".join(DRAW.choices(WORDS, k=words))


def texts(*names):
    return [{name: text(3 + i) for i, name in enumerate(names)} for _ in range(N)]


def labelled(rows, classes, name="label"):
    return [{**row, name: i * 5 % classes} for i, row in enumerate(rows)]


def words_of(rows, words, name="label"):
    return [{**row, name: words[row[name]]} for row in rows]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path, rows):
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def write(folder, name, rows):
    """The rows of a task as its own files have them."""
    match name:
        case "piqa":
            lines(folder / "piqa-labels.lst", [row["label"] for row in rows])
            rows = [{key: value for key, value in row.items() if key != "label"} for row in rows]
        case "sst2":
            return lines(folder / "sst2.txt", [f"{row['label']} {row['sentence']}" for row in rows])
        case "cola":
            return lines(folder / "cola.tsv", [f"gj04\t{row['label']}\t\t{row['sentence']}" for row in rows])
        case "mrpc":
            head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
            own = [f"{row['label']}\t1\t2\t{row['sentence1']}\t{row['sentence2']}" for row in rows]
            return lines(folder / "mrpc.tsv", [head, *own])
        case "rte":
            rows = words_of(rows, ["entailment", "not_entailment"])
        case "cb":
            rows = words_of(rows, ["entailment", "contradiction", "neutral"])
        case "boolq" | "wic":
            rows = words_of(rows, [False, True])
        case "wsc":
            rows = words_of(rows, [False, True])
            rows = [
                {"text": r["text"], "label": r["label"], "target": {k: r[k] for k in r if "span" in k}}
                for r in rows
            ]
        case "lambada":
            return lines(folder / "lambada.txt", [row["text"] for row in rows])
    return jsonl(folder / f"{name}.jsonl", rows)


def wsc_row(row):
    words = [*row["text"].split(), "n't", "(", "it", ")", ",", "she", "ran", "."]
    return {
        **row,
        "text": " ".join(words),
        "span1_text": "cat",
        "span2_text": "she",
        "span2_index": len(words) - 3,
    }


ROWS = {
    "lambada": texts("text"),
    "copa": [
        {**row, "premise": row["premise"].capitalize() + ".", "question": ["cause", "effect"][i % 2]}
        for i, row in enumerate(labelled(texts("premise", "choice1", "choice2"), 2))
    ],
    "piqa": labelled(texts("goal", "sol1", "sol2"), 2),
    "hellaswag": [
        {**row, "ctx_b": "[x] the  Dog", "endings": [text(2), text(5) + " [title] a", "[step] in", text(3)]}
        for row in labelled(texts("activity_label", "ctx_a"), 4)
    ],
    "winogrande": [
        {
            "sentence": f"{text(3)} _ {text(4)}",
            "option1": "cat",
            "option2": "the dog",
            "answer": str(1 + i % 2),
        }
        for i in range(N)
    ],
    "blimp": texts("sentence_good", "sentence_bad"),
    "sst2": labelled(texts("sentence"), 2),
    "cola": labelled(texts("sentence"), 2),
    "mrpc": labelled(texts("sentence1", "sentence2"), 2),
    "rte": labelled(texts("premise", "hypothesis"), 2),
    "boolq": labelled(texts("passage", "question"), 2),
    "cb": labelled(texts("premise", "hypothesis"), 3),
    "wic": [{**row, "start1": 0, "end1": 3} for row in labelled(texts("sentence1", "sentence2"), 2)],
    "wsc": [wsc_row(row) for row in labelled(texts("text"), 2)],
}
THEIRS = {
    "lambada": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "blimp": "blimp/_template_yaml",
    **{name: f"glue/{name}/default.yaml" for name in ("sst2", "cola", "mrpc")},
    **{name: f"super_glue/{name}/default.yaml" for name in ("copa", "rte", "boolq", "cb", "wic", "wsc")},
}


@pytest.fixture(scope="module")
def model():
    tokenizer = train([" ".join(WORDS)] * 3, 290)
    model = noisy(tiny(n_layer=2, n_ctx=64, n_vocab=tokenizer.get_vocab_size()))
    return model.accompanied(tokenizer, 0)


@pytest.fixture(scope="module")
def theirs(model, tmp_path_factory):
    """What lm-evaluation-harness makes of all tasks, with so many examples."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from neojax.evaluate.harness import BOOTSTRAP
    from neojax.evaluate.lm_eval import NeojaxLM

    folder = tmp_path_factory.mktemp("theirs")
    installed = Path(lm_eval.__file__).parent / "tasks"
    for name, rows in ROWS.items():
        split = "test" if name == "lambada" else "validation"
        file = jsonl(folder / f"{name}.jsonl", rows)
        keys = {
            "include": str(installed / THEIRS[name]),
            "task": f"ours_{name}",
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file)}, "cache_dir": str(folder / "cache")},
            "training_split": None,
            **({"validation_split": "validation"} if name == "blimp" else {}),
        }
        (folder / f"{name}.yaml").write_text(json.dumps(keys))

    def results(num_fewshot):
        return lm_eval.simple_evaluate(
            NeojaxLM(model),
            tasks=[f"ours_{name}" for name in ROWS],
            num_fewshot=num_fewshot,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
        )["results"]

    return results


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_numbers_and_errors_are_those_of_the_harness(model, theirs, num_fewshot, tmp_path):
    wanted = theirs(num_fewshot)
    assert set(ROWS) == set(TASKS)
    for name, rows in ROWS.items():
        shots = 0 if name == "blimp" else num_fewshot
        (found,) = evaluate(model, Local(name, str(write(tmp_path, name, rows))), num_fewshot=shots)
        for metric in TASKS[name].metrics:
            for key, their in ((metric, f"{metric},none"), (f"{metric}_stderr", f"{metric}_stderr,none")):
                value = wanted[f"ours_{name}"][their]
                if value == "N/A":
                    assert found[key] is None
                else:
                    assert found[key] == pytest.approx(value, rel=1e-5), (name, key)


def test_examples_come_from_their_own_file_where_one_is_given(model, tmp_path):
    own, other = write(tmp_path, "sst2", ROWS["sst2"]), tmp_path / "train.txt"
    lines(other, ["1 good", "0 bad"])
    task = local_task(f"sst2={own}+{other}")
    pool = local_tasks.asking(TASKS["sst2"], local_tasks.read("sst2", other))
    questions = local_tasks.asking(TASKS["sst2"], local_tasks.read("sst2", own))
    for prompt in local_tasks.prompts(TASKS["sst2"], questions, pool, 1):
        assert prompt in (
            "good\nQuestion: Is this sentence positive or negative?\nAnswer: positive\n\n",
            "bad\nQuestion: Is this sentence positive or negative?\nAnswer: negative\n\n",
        )
    assert evaluate(model, task, num_fewshot=1, limit=3)[0]["questions"] == 3


def test_sets_of_a_zip_are_told_apart_and_together(model, tmp_path):
    with zipfile.ZipFile(tmp_path / "blimp.zip", "w") as archive:
        for name, rows in (("b", ROWS["blimp"][:3]), ("a", ROWS["blimp"][3:])):
            archive.writestr(f"data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            archive.writestr(f"__MACOSX/data/._{name}.jsonl", b"\0\xff")
    rows = evaluate(model, Local("blimp", str(tmp_path / "blimp.zip")))
    assert [(row["task"], row["questions"]) for row in rows] == [
        ("blimp_a", 4),
        ("blimp_b", 3),
        ("blimp", 7),
    ]
    assert rows[2]["acc"] == pytest.approx((rows[0]["acc"] * 4 + rows[1]["acc"] * 3) / 7)
    with zipfile.ZipFile(tmp_path / "blimp.zip", "a") as archive:
        archive.writestr("data/c.jsonl", "{}\n")
    with pytest.raises(NeojaxError, match=r"/blimp.zip/data/c.jsonl:1: there is no 'sentence_good'"):
        evaluate(model, Local("blimp", str(tmp_path / "blimp.zip")))


def test_bias_is_the_difference_of_log_likelihoods_with_intervals(model, tmp_path):
    pairs = [(text(4), text(4)) for _ in range(N)]
    head = "sent_more,sent_less,bias_type"
    own = [f"{a},{b},{'age' if i % 2 else 'gender'}" for i, (a, b) in enumerate(pairs)]
    rows = evaluate(model, Local("crows_pairs", str(lines(tmp_path / "crows.csv", [head, *own]))))
    nats = np.array([[found.logprob for found in score(model, list(pair))] for pair in pairs])
    difference = nats[:, 0] - nats[:, 1]
    assert [row["task"] for row in rows] == ["crows_pairs_age", "crows_pairs_gender", "crows_pairs"]
    assert rows[0]["nats_more"] == pytest.approx(difference[1::2].mean(), abs=1e-5)
    share = np.mean(difference > 0)
    assert rows[2]["pct_stereotype"] == share
    assert rows[2]["likelihood_diff"] == pytest.approx(np.abs(difference).mean(), abs=1e-5)
    low, high = rows[2]["pct_stereotype_interval"]
    for bound in (low, high):  # where the share is 1.96 standard errors of that share away
        assert (share - bound) ** 2 == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / N)
    assert share_interval(0, 10)[0] == 0.0 and share_interval(10, 10)[1] == pytest.approx(1.0)
    swaps = [{"template": "the {} sat", "a": a.split()[0], "b": b.split()[0]} for a, b in pairs]
    (row,) = evaluate(model, Local("word_swaps", str(jsonl(tmp_path / "swaps.jsonl", swaps))))
    first = ([f"the {swap[word]} sat" for swap in swaps] for word in "ab")
    a, b = (np.array([found.logprob for found in score(model, some)]) for some in first)
    assert row["nats_more"] == pytest.approx((a - b).mean(), abs=1e-5)
    assert row["nats_more_interval"][0] < row["nats_more"] < row["nats_more_interval"][1]


@pytest.mark.parametrize(
    "name, row, words",
    [
        ("rte", {"premise": "a", "label": 0}, r"rte.jsonl:1: there is no 'hypothesis' or 'sentence2' among"),
        (
            "rte",
            {"premise": "a", "hypothesis": "b", "label": "maybe"},
            "'label' is 'maybe'; expected entailment",
        ),
        ("sst2", {"sentence": "a", "label": 2}, "'label' is 2; expected negative, positive"),
        ("sst2", {"sentence": "a", "label": "²"}, "'label' is '²'; expected negative, positive"),
        ("boolq", {"passage": "a", "question": 3, "label": True}, "'question' is 3; expected a text"),
        (
            "copa",
            {"premise": "a", "question": "why", "choice1": "b", "choice2": "c", "label": 0},
            "cause or effect",
        ),
        (
            "piqa",
            {"goal": "a", "sol1": "b", "sol2": "c", "label": 2},
            "the label is 2, and there are 2 answers",
        ),
        ("winogrande", {"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}, "has no _"),
        (
            "hellaswag",
            {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": "d", "label": 0},
            "a list",
        ),
        ("crows_pairs", {"sent_more": "a"}, "'sent_less' is None; expected a text"),
        ("word_swaps", {"template": "a", "a": "b", "b": "c"}, "the template has no {}"),
    ],
)
def test_a_row_that_is_not_as_its_task_has_it_is_named(name, row, words, model, tmp_path):
    file = jsonl(tmp_path / f"{name}.jsonl", [row])
    with pytest.raises(NeojaxError, match=words) as error:
        evaluate(model, Local(name, str(file)))
    assert str(error.value).startswith(f"{file}:1: ") and "\n" not in str(error.value)


def test_a_blank_behind_a_passage_is_not_the_word_that_is_asked(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one two three \r\n\nfour five\n")
    records = local_tasks.read("lambada", tmp_path / "a.txt")
    assert [record.where[-2:] for record in records] == [":1", ":3"]
    asked = [each.asked for each in local_tasks.asking(TASKS["lambada"], records)]
    assert [(each.contexts[0], each.answers[0]) for each in asked] == [
        ("one two", " three"),
        ("four", " five"),
    ]


def test_what_cannot_be_asked_is_one_line(model, tmp_path):
    file = str(jsonl(tmp_path / "sst2.jsonl", ROWS["sst2"][:2]))
    good, bad = ({"sentence": word, "label": n} for n, word in enumerate(("bad", "good")))
    same = str(jsonl(tmp_path / "same.jsonl", [good] * 3 + [bad]))
    locked = tmp_path / "locked.zip"
    with zipfile.ZipFile(locked, "w") as archive:
        archive.writestr("a.jsonl", "{}")
    content = bytearray(locked.read_bytes())
    content[6] |= 1  # as one with a password has it, before the file and in the list of files
    content[content.find(b"PK\1\2") + 8] |= 1
    locked.write_bytes(content)
    for given, shots, words in (
        (Local("sst2", file), 2, "2 examples are asked for, and 2 rows are there"),
        (Local("sst2", same), 2, "same.jsonl:1: 2 examples are asked for, and 1 rows that differ from this"),
        (Local("blimp", file), 1, "blimp takes no examples"),
        (Local("crows_pairs", file), 1, "crows_pairs takes no examples"),
        (Local("sst2", file, "more.jsonl"), 0, "no examples are asked for, and more.jsonl holds some"),
        (Local("crows_pairs", file, "more.jsonl"), 0, "no examples are asked for"),
        (Local("sst2", str(tmp_path / "no.zip")), 0, "cannot read .*no.zip: No such file"),
        (Local("sst2", str(tmp_path / "no.jsonl")), 0, "cannot read .*no.jsonl: No such file"),
        (Local("blimp", str(tmp_path)), 0, "there is no 'sentence_good'"),
        (Local("blimp", str(locked)), 0, "cannot read .*locked.zip: .* encrypted"),
    ):
        with pytest.raises(NeojaxError, match=words):
            evaluate(model, given, num_fewshot=shots)
    for given, words in (("sst3=a", "is called sst3; did you mean sst2"), ("sst2=", "expected sst2=FILE")):
        with pytest.raises(NeojaxError, match=words):
            local_task(given)
