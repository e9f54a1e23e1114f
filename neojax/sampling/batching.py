"""Sizes of batches: few of them, so that few programs are compiled."""


def bucket(length: int) -> int:
    """A length of rows rounded up, by at most a quarter, to one of few: a compiled program serves all of a
    bucket."""
    step = max(16, power_of_two(length) // 8)
    return -(-length // step) * step


def rounded(rows: int, parts: int) -> int:
    """The batch that `rows` rows run in: a power of two in every one of the `parts` of the split batch."""
    return parts * power_of_two(-(-rows // parts))


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
