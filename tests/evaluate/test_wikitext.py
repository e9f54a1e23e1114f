"""WikiText's raw test file has the documents, words, bytes and tokens that others count in it."""

from types import SimpleNamespace

import pytest

from neojax.data import tokenizer
from neojax.evaluate import wikitext
from neojax.evaluate.held_out import Reading, documents


@pytest.fixture(scope="module")
def file(shared_data):
    path = shared_data / "eval" / "wikitext-2-raw.test.txt"
    return path if path.is_file() else pytest.skip("no WikiText-2 beside the repository")


@pytest.mark.parametrize(
    "reading, n_documents, n_tokens, n_bytes",
    [
        (Reading(wikitext=True), 62, 272_031, 1_290_527),
        (Reading(wikitext=True, joined=True), 1, 287_644, 1_296_370),
        (Reading(), 1, 286_221, 1_290_590),
    ],
    ids=["pages, as lm-evaluation-harness", "joined, as Hugging Face", "as it is, as gpt-neo"],
)
def test_the_sizes_of_wikitext_2_are_those_that_are_published(
    file, shared_data, reading, n_documents, n_tokens, n_bytes
):
    model = SimpleNamespace(tokenizer=tokenizer.load(shared_data / "gpt2-tokenizer" / "tokenizer.json"))
    found = list(documents(model, str(file), reading))
    assert len(found) == n_documents
    assert sum(len(document.tokens) for document in found) == n_tokens
    assert sum(document.n_bytes for document in found) == n_bytes
    if n_documents > 1:
        assert sum(document.n_words for document in found) == 241_335
        assert max(len(document.tokens) for document in found) == 15_296


def test_pages_are_detokenized_as_the_harness_does(file):
    theirs = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext").wikitext_detokenizer
    for page in wikitext.pages(file.read_text(encoding="utf-8")):
        assert wikitext.detokenized(page) == theirs({"page": page})


def test_blanks_around_punctuation_go_and_heads_begin_pages():
    text = ' \n = A = \n \n He said ( or so ) : " yes " , 3 @.@ 5 of 1 @,@ 000 .\n = = B = = \n = C D = \n x'
    first, second = wikitext.pages(text)
    assert wikitext.detokenized(first) == ' = A =\n\nHe said (or so): "yes", 3.5 of 1,000 .\n== B == '
    assert wikitext.detokenized(second) == " = C D =\nx"
