"""The tensors of a folder, read piece by piece: safetensors or PyTorch files, in one file or sharded with an
index."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from neojax.convert.hf_config import read_json
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    import torch

FILES = ("model.safetensors", "pytorch_model.bin")
FLOATS = ("F16", "BF16", "F32", "F64")

Index = tuple[slice, ...]


class TensorFiles:
    """Tensors by name over one or several files. `shapes`: name -> shape; `file`: name -> where it is.

    `places`: name -> file name, by which a tensor that lies in several files is taken from one.
    """

    def __init__(self, files: list[Path], places: Mapping[str, str]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.file: dict[str, Path] = {}
        self.others: dict[str, str] = {}  # tensors that are no weights, by their type: masks, mostly
        for file in files:
            try:
                open(
                    file, "rb"
                ).close()  # the formats' readers take a file that they may not read for a damaged one
            except OSError as e:
                raise NeojaxError(f"cannot read {file}: {e.strerror}") from None
            for name, shape in self.scan(file).items():
                if places.get(name, file.name) == file.name:
                    self.shapes[name], self.file[name] = shape, file

    def scan(self, file: Path) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors in `file`. Raises `NeojaxError` where it cannot be read."""
        raise NotImplementedError

    def read(self, name: str, index: Index) -> np.ndarray:
        """The part `index` of tensor `name`, in the type it is stored in or float32."""
        raise NotImplementedError


class Safetensors(TensorFiles):
    """Files of the safetensors format. Each is opened for each read only, so that its pages are not kept
    mapped."""

    def scan(self, file: Path) -> dict[str, tuple[int, ...]]:
        try:
            with safe_open(file, framework="numpy") as f:
                slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
                self.others |= {
                    name: s.get_dtype() for name, s in slices.items() if s.get_dtype() not in FLOATS
                }
                return {name: tuple(s.get_shape()) for name, s in slices.items()}
        except (SafetensorError, OSError) as e:
            raise _damaged(file, e) from None

    def read(self, name: str, index: Index) -> np.ndarray:
        with safe_open(self.file[name], framework="numpy") as f:
            return f.get_slice(name)[index]


class TorchFiles(TensorFiles):
    """Files of `torch.save`, mapped rather than read, and never executed. Files of torch < 1.6 are read
    whole."""

    def __init__(self, files: list[Path], places: Mapping[str, str]):
        self.tensors: dict[tuple[Path, str], torch.Tensor] = {}
        super().__init__(files, places)

    def scan(self, file: Path) -> dict[str, tuple[int, ...]]:
        try:
            import torch
        except ImportError:
            raise NeojaxError(
                f"{file} needs PyTorch to be read: pip install neojax[hf], or convert it to safetensors"
            ) from None
        try:
            with open(file, "rb") as f:
                zipped = f.read(2) == b"PK"
            tensors: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as e:
            if "GLOBAL" not in str(e):  # which is how the loader names what it would have had to import
                raise _damaged(file, "not a file of torch.save") from None
            raise NeojaxError(
                f"{file} holds pickled code besides tensors, which is never run; save its tensors as "
                "safetensors"
            ) from None
        except (RuntimeError, ValueError, EOFError, OSError, LookupError) as e:
            raise _damaged(file, e) from None
        if not isinstance(tensors, dict):
            raise NeojaxError(f"{file}: expected a dictionary of tensors, got {type(tensors).__name__}")
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise NeojaxError(f"{file}: {name} is not a tensor but {type(tensor).__name__}")
        self.tensors |= {(file, name): tensor for name, tensor in tensors.items()}
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        return self.tensors[self.file[name], name][index].float().numpy()


def open_tensors(folder: Path) -> TensorFiles:
    """The tensors of `folder`: the first of `FILES` that is there, whole or with an index. Raises
    `NeojaxError`."""
    for single, kind in zip(FILES, (Safetensors, TorchFiles)):
        if (folder / single).is_file():
            return kind([folder / single], {})
        index = folder / f"{single}.index.json"
        if index.is_file():
            return _sharded(index, kind)
    wanted = ", ".join(f"{single} or {single}.index.json" for single in FILES)
    raise NeojaxError(f"{folder} has no weights; expected {wanted}")


def _sharded(index: Path, kind: type[TensorFiles]) -> TensorFiles:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise NeojaxError(f"{index} has no weight_map of tensor names to files")
    files = sorted(set(map(str, places.values())))
    for name in files:
        if not (index.parent / name).is_file():
            raise NeojaxError(f"{index} names {name}, which is not in {index.parent}; copy it there")
    tensors = kind([index.parent / name for name in files], places)
    for name, file in places.items():
        if name not in tensors.file:
            raise NeojaxError(f"{index} places {name} in {file}, but it is not there; copy the file again")
    return tensors


def _damaged(file: Path, cause: Exception | str) -> NeojaxError:
    reason = " ".join(str(cause).split())[:160] or type(cause).__name__
    return NeojaxError(f"{file} is damaged or cut short; copy it again ({reason})")
