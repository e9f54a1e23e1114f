"""How a text that may be longer than the context is cut into windows, in which every token is scored once."""

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Tokens that are read together, of which the last `scored` are scored, each after those before it."""

    tokens: list[int]
    scored: int


def disjoint(context: Sequence[int], tokens: Sequence[int], n_ctx: int) -> list[Window]:
    """The windows of `tokens` after `context`, which is not scored and has one token at least.

    Tokens are scored in pieces of `n_ctx`, each after as many tokens before it as there is room for: one
    before a whole piece, more before the last. These are lm-evaluation-harness's windows
    (`get_rolling_token_windows` with a context of 1, `make_disjoint_window`), and where the text fits one
    piece its truncation from the left.
    """
    whole, windows = [*context, *tokens], []
    for first in range(0, len(tokens), n_ctx):
        scored = min(n_ctx, len(tokens) - first)
        end = len(context) + first + scored
        windows.append(Window(whole[max(0, end - n_ctx - 1) : end], scored))
    return windows


def strided(tokens: Sequence[int], n_ctx: int, stride: int) -> list[Window]:
    """The windows of `tokens`, with nothing before them, that begin every `stride` tokens and are `n_ctx`
    long; each scores what the one before it did not reach, and the first token of all is never scored.

    Where a window begins anew behind the last (`stride` = `n_ctx`) its first token has nothing before it and
    is not scored either. These are the windows of the page on perplexity of Hugging Face's transformers.
    """
    windows, before = [], 0
    for start in range(0, len(tokens), stride):
        end = min(start + n_ctx, len(tokens))
        scored = min(end - before, end - start - 1)
        windows.append(Window(list(tokens[start:end]), scored))
        before = end
        if end == len(tokens):
            break
    return windows
