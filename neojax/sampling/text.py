"""Text from tokens as they come: no half characters, and nothing that may turn out to be a stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BEFORE = 8  # tokens of a prompt, enough to hold a whole character or word
_UNDECODED = "\ufffd"  # what the tokenizer gives for the first bytes of a character


class Continuation:
    """The text of one growing row of tokens.

    `tokens` are those taken so far and `text` their text, cut before the first stop string; `stopped` says
    that one was found. Tokens after the one that completes a stop string are not taken, so that nothing
    depends on how many come at a time.

    The text is what stands behind that of `prompt`, the tokens before the row: many tokenizers write the
    blank between two words only where there is a word before.
    """

    def __init__(self, tokenizer: "Tokenizer | None", stop: Sequence[str] = (), prompt: Sequence[int] = ()):
        self.tokens: list[int] = []
        self._prompt = list(prompt[-_BEFORE:])
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._given = 0
        # Half a character at the prompt's end is given when it is whole.
        self._before = self._text(self._prompt).rstrip(_UNDECODED) if tokenizer and prompt else ""

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
        if self._before and (both := self._text(self._prompt + self.tokens)).startswith(self._before):
            return both.removeprefix(self._before)
        return self._text(self.tokens)

    def _text(self, tokens: list[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

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
