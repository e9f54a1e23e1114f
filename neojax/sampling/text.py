"""Text from tokens as they come: no half characters, and nothing that may turn out to be a stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNDECODED = "\ufffd"  # what the tokenizer gives for the first bytes of a character


class Continuation:
    """The text of one growing row of tokens.

    `tokens` are those taken so far and `text` their text, cut before the first stop string; `stopped` says that one
    was found. Tokens after the one that completes a stop string are not taken, so that nothing depends on how many
    come at a time.
    """

    def __init__(self, tokenizer: "Tokenizer | None", stop: Sequence[str] = ()):
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._given = 0

    def push(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Takes more tokens; returns the text that is settled by them. `last` says that no more will come."""
        before = len(self.tokens)
        self.tokens += tokens
        if self._tokenizer is None:
            return ""
        self.text = self._decode()
        if self._stop and self._cut() is not None:
            del self.tokens[before:]
            for token in tokens:  # again, one at a time, up to the token that completes a stop string
                self.tokens.append(token)
                self.text = self._decode()
                if (cut := self._cut()) is not None:
                    self.text, self.stopped = self.text[:cut], True
                    break
        settled = len(self.text) if last or self.stopped else self._settled()
        piece = self.text[self._given : settled]
        self._given = max(self._given, settled)
        return piece

    def _decode(self) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(self.tokens, skip_special_tokens=True)

    def _cut(self) -> int | None:
        """Where the first stop string begins."""
        found = [at for stop in self._stop if (at := self.text.find(stop)) >= 0]
        return min(found, default=None)

    def _settled(self) -> int:
        """The length of the text that later tokens cannot change or make part of a stop string."""
        whole = self.text.rstrip(_UNDECODED)
        longest = max(map(len, self._stop), default=0)
        for at in range(max(0, len(whole) - longest + 1), len(whole)):
            if any(stop.startswith(whole[at:]) for stop in self._stop):
                return at
        return len(whole)
