"""The characters that a new vocabulary begins with: the commonest of a text, in an order of their own.

The trainers of the tokenizers library number inner characters, and leave out rare ones, in the order of a
hash table, which is another in every process.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer


def alphabet(texts: Iterable[str], normalizer: "Normalizer", most: int) -> list[str]:
    """The `most` commonest characters of `texts` after normalisation, without blanks, sorted."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    found = [c for c in counts if not c.isspace()]
    return sorted(sorted(found, key=lambda c: (-counts[c], c))[:most])


def within(texts: Iterable[str], normalizer: "Normalizer", characters: Iterable[str]) -> Iterable[str]:
    """The normalised `texts`, in which a blank stands for what is not one of `characters`."""
    known = set(characters)
    for text in texts:
        text = normalizer.normalize_str(text)
        rare = set(text) - known
        yield text.translate({ord(c): " " for c in rare if not c.isspace()}) if rare else text
