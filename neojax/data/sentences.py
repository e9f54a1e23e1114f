"""Where the sentences of a text end, which pairs of segments are made of (`neojax.data.pairs`).

A sentence holds the blanks before it, so that sentences joined are the text.
"""

import re
from itertools import pairwise

WAYS = ("lines", "marks")

# Initials, and abbreviations that stand before a name or number as a rule.
_SHORT = re.compile(
    r"(?i:mr|mrs|ms|dr|prof|st|sr|jr|gen|col|sgt|capt|lt|rev|hon|gov|sen|rep|pres|vs|etc|cf|vols?|pp|eds?|figs?"
    r"|eq|sec|dept|univ|inc|ltd|corp|bros|approx|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mt|ft|ave|blvd"
    r"|rd|e\.g|i\.e|a\.m|p\.m|u\.s|u\.k|u\.n|ph\.d|b\.c|a\.d)|[^\WI]"
)
_LINE = re.compile(r"(?<=\S)(?=[^\S\n]*\n)")
_PARAGRAPH = re.compile(r"(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n)")
# A mark with what closes behind it, before blanks and what may open; or a full-width mark.
_MARK = re.compile(
    r"(?P<mark>[.!?…]+)(?: ?[\"'”’)\]»]+)?(?=\s+[\"'“‘(\[«¿¡]*\s?(?P<next>\w))|[。！？][」』”’）]*(?=\S)"
)
_WORD_BEFORE = re.compile(r"([^\W\d_](?:[.\w]*\w)?)$")


def split(text: str, way: str) -> list[str]:
    """The sentences of `text`, none of them blank where the text is not; joined, they are `text`.

    way: lines, each line is one; marks, a sentence ends with a full stop, question or exclamation mark before
    what may begin one (no lower case), or with a paragraph. A full stop behind an initial or a usual English
    abbreviation ends none.
    """
    if way == "lines":
        cuts = [found.end() for found in _LINE.finditer(text)]
    else:
        cuts = [found.end() for found in _PARAGRAPH.finditer(text)]
        cuts += [found.end() for found in _MARK.finditer(text) if _ends(text, found)]
        cuts = sorted(set(cuts))
    bounds = [0, *cuts, len(text)]
    parts = [text[a:b] for a, b in pairwise(bounds) if b > a]
    if len(parts) > 1 and not parts[-1].strip():  # the blanks at the end of a text
        parts[-2:] = ["".join(parts[-2:])]
    return parts


def _ends(text: str, found: re.Match[str]) -> bool:
    """Whether a mark ends a sentence: no lower case follows, and no initial or abbreviation is before it."""
    if (found["next"] or "").islower():
        return False
    if found["mark"] != ".":
        return True
    before = _WORD_BEFORE.search(text, max(0, found.start() - 24), found.start())
    if before is None:
        return True
    word = before[1]
    return not _SHORT.fullmatch(word) or word.isdigit() or (len(word) == 1 and word.islower())
