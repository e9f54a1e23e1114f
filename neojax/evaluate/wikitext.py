"""WikiText as its raw files have it: its pages, and its spaced-out punctuation put back.

Source: lm-evaluation-harness, `preprocess_wikitext.py` of its task wikitext, and the data set
EleutherAI/wikitext_document_level, whose rows are the pages.
"""

import re
from collections.abc import Iterator

_PAIRS = (("(", ")", ")"), ("[", "]", "]"), ("{", "}", "}"), ('"', '"', '"'), ("'", "'", "'"))
_NUMBERS = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_MARKS = tuple((f" {mark} ", f"{mark} ") for mark in ":;.!?,")
_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def pages(text: str) -> Iterator[str]:
    """The pages of a raw file, each from its head, a line `= Title =`, on. Two lines of the test file only
    look like heads; they begin pages too, as in the data set."""
    page: list[str] = []
    for line in text.split("\n"):
        head = line.replace("= = =", "===").replace("= =", "==").strip()
        if head.startswith("= ") and head.endswith(" ="):
            if "".join(page).strip():
                yield "\n".join(page)
            page = []
        page.append(line)
    if "".join(page).strip():
        yield "\n".join(page)


def detokenized(page: str) -> str:
    """A page as it was before WikiText put blanks around its punctuation, as the harness guesses it."""
    text = page.replace("s '", "s'")
    for old, new in (*_NUMBERS, *_MARKS):
        text = text.replace(old, new)
    for opening, closing, end in _PAIRS:
        a, b, c = map(re.escape, (opening, closing, end))
        text = re.sub(rf"{a}\s*([^{b}]*?)\s*{c}", rf"{opening}\1{closing}", text)
    for old, new in _REST:
        text = text.replace(old, new)
    return text


def joined(text: str) -> str:
    """A raw file as the page on perplexity of Hugging Face's transformers has it: its lines with two line
    ends between them, those of blanks alone empty."""
    lines = text.removesuffix("\n").split("\n")
    return "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)
