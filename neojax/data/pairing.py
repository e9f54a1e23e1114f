"""What a run's rows of pairs are made with: the special tokens of its tokenizer, and how it masks."""

from neojax.config import Config
from neojax.data import tokenizer as tokenizers
from neojax.data.masking import Masking
from neojax.data.pairs import Pairing
from neojax.data.special_tokens import SpecialTokens
from neojax.data.words import word_starts
from neojax.errors import NeojaxError


def pairing_of(config: Config, tokenizer: str | None) -> Pairing | None:
    """The `Pairing` of `data.pairs`; None where rows are windows. tokenizer: the text of the data's
    tokenizer.json. Raises `NeojaxError` where it lacks a special token."""
    data, train = config.data, config.train
    if data.pairs == "none":
        return None
    why = f"data.pairs={data.pairs}"
    if tokenizer is None:
        raise NeojaxError(f"{why} needs the tokenizer of the data; set data.tokenizer to its tokenizer.json")
    parsed = tokenizers.parse(tokenizer, "data.tokenizer")
    special = SpecialTokens.of(parsed)
    cls, sep, mask = special.need("cls", "sep", "mask", why=why)
    pad = sep if special.pad is None else special.pad
    n_ids = tokenizers.n_ids(parsed)
    masking = Masking(
        mask_id=mask,
        n_vocab=n_ids,
        prob=train.mlm_mask_prob,
        same=train.mlm_same_token_prob,
        random=train.mlm_random_token_prob,
        word_starts=word_starts(parsed, config.model.n_vocab) if train.mlm_whole_words else None,
        max_ngram=train.mlm_max_ngram,
        max_predictions=train.mlm_max_predictions,
        # Special tokens that a text spells out, too.
        never=tuple({*train.mlm_mask_ignore_ids, cls, sep, mask, pad}),
    )
    return Pairing(data.pairs, data.short_prob, cls, sep, pad, masking)
