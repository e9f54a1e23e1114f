"""Adafactor's state in a gpt-neo checkpoint, and what it is in ours.

Facts: `AdafactorOptimizer` of Mesh-TensorFlow, `optimize.py`. A variable whose two largest axes are long has
two slots, `_slot_vr` (the mean of its squared gradients over the longest axis) and `_slot_vc` (over the
next), any other one, `_slot_v`; with momentum, each has `_slot_m`, the mean of its updates. What is carried
over of the factors is the estimate of every element's second moment that they stand for: vr may be the factor
that is the column's here.
"""

from collections.abc import Iterable

import numpy as np

from neojax.convert.bundle import Bundle
from neojax.convert.tensor_files import Index, TensorFiles
from neojax.errors import NeojaxError

MOMENTUM = "_slot_m"


class SecondMoments(TensorFiles):
    """The second moments of the variables of `files`, by the variables' names."""

    def __init__(self, files: Bundle):
        self.files = files

    def slots(self, variables: Iterable[str], momentum: bool) -> list[str]:
        """The slots of all `variables`, with those of the momentum if wanted; none where one of them is
        missing. Raises `NeojaxError` for a wrong shape."""
        found: list[str] = []
        for name in variables:
            shape = self.files.shapes[name]
            wanted = {f"{name}_slot_v": shape}
            if f"{name}_slot_vr" in self.files.shapes:
                first, second = longest(shape)
                wanted = {
                    f"{name}_slot_vr": _without(shape, first),
                    f"{name}_slot_vc": _without(shape, second),
                }
            if momentum:
                wanted[name + MOMENTUM] = shape
            for slot, expected in wanted.items():
                have = self.files.shapes.get(slot)
                if have is None:
                    return []
                if have != expected:
                    raise NeojaxError(
                        f"{self.files.prefix}.index: {slot} has shape {list(have)}, but that of a variable "
                        f"of shape {list(shape)} has {list(expected)}"
                    )
            found += wanted
        return found

    def read(self, name: str, index: Index) -> np.ndarray:
        """The part `index` of the second moments of variable `name`."""
        if f"{name}_slot_v" in self.files.shapes:
            return self.files.read(f"{name}_slot_v", index)
        first, second = longest(self.files.shapes[name])
        row, column = (
            np.expand_dims(np.asarray(self.files.read(f"{name}_slot_{factor}", ()), np.float32), axis)
            for factor, axis in (("vr", first), ("vc", second))
        )
        # Both are means of the same squares: their product counts the mean over everything twice.
        row = row / np.maximum(row.mean(second, keepdims=True), np.finfo(np.float32).tiny)
        whole = slice(None)
        rows = row[tuple(whole if axis == first else part for axis, part in enumerate(index))]
        return rows * column[tuple(whole if axis == second else part for axis, part in enumerate(index))]


def longest(shape: tuple[int, ...]) -> tuple[int, int]:
    """The two longest axes, the longest first; of equal ones the earlier."""
    first, second, *_ = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    return first, second


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
