"""Pickles of NumPy arrays and plain containers, in which data sets are passed on. Nothing else in them is loaded, or called."""

import pickle
from pathlib import Path
from typing import Any

# What reading a pickle that is damaged, or is none, raises, and taking from it what is not there.
BROKEN = (
    *(OSError, pickle.UnpicklingError, ImportError, EOFError),
    *(KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, MemoryError),
)
# Everything else that a pickle names could be called, and with any argument.
_ALLOWED = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # of the bytes of an array, in pickles that are to be read by Python 2 as well
    ("collections", "OrderedDict"),
}


def load(path: Path) -> Any:
    """What a file holds; raises one of `BROKEN` if it is no such pickle. Texts of Python 2 are read as Latin-1."""
    with open(path, "rb") as file:
        return _ArraysAlone(file, encoding="latin1").load()


class _ArraysAlone(pickle.Unpickler):
    """Reads NumPy arrays and plain containers, and refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which no array or container needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
