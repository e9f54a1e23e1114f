"""What tells the data of a run from other data under the same path, without reading all of it.

The checksum is over SPANS spans of SPAN tokens, spread evenly from the first token to the last: up to 4
million tokens that is every token, beyond it what was encoded anew from other text or with another tokenizer
differs, while a change of a few tokens between two spans, which leaves their number as it was, is not seen.
"""

from typing import Any

import google_crc32c
import numpy as np

from neojax.data.sources import TokenSource

SPANS = 64
SPAN = 1 << 16


def fingerprint(source: TokenSource) -> dict[str, Any]:
    """Documents (of TFRecords: examples), tokens, and the CRC-32C of the spans, in hexadecimal."""
    last = max(0, source.n_tokens - SPAN)
    crc = 0
    for start in (
        np.linspace(0, last, SPANS, dtype=np.int64)
        if last >= SPANS * SPAN
        else range(0, source.n_tokens, SPAN)
    ):
        span = np.ascontiguousarray(source.read(int(start), int(start) + SPAN), "<i4")
        crc = google_crc32c.extend(crc, span.tobytes())
    return {"documents": source.n_documents, "tokens": source.n_tokens, "crc32c": f"{crc:08x}"}
