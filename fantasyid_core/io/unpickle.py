"""Read pickled arrays as data: a pickle interpreter of its own that imports nothing and calls nothing the file names.

FLAME's `generic_model.pkl` and the mesh hierarchy `transform.pkl` are pickles, and a pickle is a program: `pickle.load`
would import and call whatever the file asks for. Here the opcodes build plain dicts, lists, tuples, strings and
numbers, and every object of a class becomes a passive `Record` of its name and arguments. `array` and `sparse` turn
the records of NumPy, chumpy and SciPy into numbers, without chumpy and SciPy.
"""

import io
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WeightsError, WeightsMissingError
from .formats import refuse_foreign

MAX_BYTES = 1 << 30
MAX_OPCODES = 1_000_000  # FLAME and the hierarchy have a few hundred

_SPARSE = re.compile(r"scipy\.sparse\.(_?(csc|csr|coo)\.)?(csc|csr|coo)_(matrix|array)")
_PASSIVE = {
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "chumpy.ch.Ch",
    "chumpy.reordering.Select",
    "collections.OrderedDict",
    "_codecs.encode",
    *(f"{module}._reconstructor" for module in ("copyreg", "copy_reg")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("object", "set", "bytes")),
}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MARK = object()


@dataclass(frozen=True)
class Global:
    """A name that the file refers to; never imported."""

    name: str


@dataclass
class Record:
    """An object that the file describes: what it would have been made of; never made."""

    name: str
    args: tuple
    state: Any = None


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix: `rows`, `columns` (N,) int64, `values` (N,) as stored, `shape` (rows, columns)."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]


def load(path: str | Path) -> Any:
    """Read a pickle (protocol 0 to 5, Python 2's included) into plain containers and `Record`s.

    Raises:
        WeightsMissingError: there is no such file.
        WeightsError: the file is larger than 1 GiB, truncated, no pickle, or refers to anything but NumPy, SciPy's
            sparse and chumpy arrays. Nothing of it has been executed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(
                f"{path} is larger than 1 GiB, which no file of this kind is: it was not read. "
                "Choose the right file, or download it again."
            )
        refuse_foreign(path)
        data = path.read_bytes()
    except OSError as error:
        raise WeightsMissingError(
            f"{path} cannot be read ({error}). Check that the file is there and may be read."
        ) from error
    try:
        return _Machine().run(data)
    except _Refused as error:
        raise WeightsError(
            f"{path} was refused: it {error}, which a file of arrays has no need of. Nothing of it was executed. "
            "Use the file from its official source only."
        ) from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise WeightsError(
            f"{path} is not a readable pickle ({type(error).__name__}: {error}): it may be cut short. "
            "Nothing of it was executed; download it again."
        ) from error


def array(value: Any, what: str) -> np.ndarray:
    """The numbers of a NumPy or chumpy record as a plain array (bool, integer or float); `what` names it in errors.

    Raises:
        WeightsError: it is no array of numbers, or its size does not fit its shape.
    """
    try:
        return _array(value)
    except (ValueError, IndexError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{what}: no plain array of numbers ({error}). The file is damaged; download it again."
        ) from error


def sparse(value: Any, what: str) -> Sparse:
    """The entries of a SciPy csc, csr or coo matrix record, or of a dense array.

    Raises:
        WeightsError: it is neither, or an index lies outside of its shape.
    """
    if not (isinstance(value, Record) and _SPARSE.fullmatch(value.name)):
        dense = array(value, what)
        if dense.ndim != 2:
            raise WeightsError(
                f"{what}: no matrix, its shape is {dense.shape}. The file is damaged; download it again."
            )
        rows, columns = np.nonzero(dense)
        return Sparse(rows, columns, dense[rows, columns], dense.shape)
    try:
        state, kind = value.state, value.name.rpartition(".")[2][:3]
        count_rows, count_columns = (int(n) for n in state["_shape"])
        values = _array(state["data"])
        if kind == "coo":
            coordinates = state.get("coords") or (state["row"], state["col"])
            rows, columns = (_array(x).astype(np.int64) for x in coordinates)
        else:
            inner, pointers = _array(state["indices"]).astype(np.int64), _array(state["indptr"]).astype(np.int64)
            if (np.diff(pointers) < 0).any() or pointers[-1] != len(inner):  # else repeat could fill the memory
                raise ValueError("its pointers do not fit its indices")
            outer = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
            rows, columns = (inner, outer) if kind == "csc" else (outer, inner)
        if not (rows.shape == columns.shape == values.shape and values.ndim == 1):
            raise ValueError("indices and values differ in number")
        inside = (rows >= 0) & (rows < count_rows) & (columns >= 0) & (columns < count_columns)
        if not inside.all():
            raise ValueError("an index lies outside of the matrix")
        return Sparse(rows, columns, values, (count_rows, count_columns))
    except (ValueError, IndexError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise WeightsError(
            f"{what}: no readable sparse matrix ({error}). The file is damaged; download it again."
        ) from error


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Record) and value.name == "chumpy.ch.Ch":
        return _array(value.state["x"])
    if isinstance(value, Record) and value.name == "chumpy.reordering.Select":
        state = value.state
        return _array(state["a"]).ravel()[_array(state["idxs"])].reshape(state["preferred_shape"])
    if not (isinstance(value, Record) and value.name.endswith("multiarray._reconstruct")):
        raise TypeError(f"it is {value.name if isinstance(value, Record) else type(value).__name__}")
    _, shape, dtype, fortran, raw = value.state
    kind, order = dtype.args[0], dtype.state[1]
    if dtype.name != "numpy.dtype" or not re.fullmatch(r"b1|[iu][1248]|f[248]", kind) or order not in "<>|=":
        raise TypeError(f"its elements are {kind!r}")
    if any(length < 0 for length in shape):
        raise ValueError("a negative length")
    if isinstance(raw, Record):  # protocol 2 under Python 3 wraps bytes as _codecs.encode(text, "latin1")
        raw = raw.args[0]
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(data, bytes):  # of a number, bytes() would make as many zeros
        raise TypeError(f"its elements are {type(data).__name__}")
    numbers = np.frombuffer(data, np.dtype(kind).newbyteorder(order)).reshape(shape, order="F" if fortran else "C")
    return numbers.astype(kind)


class _Refused(Exception):
    pass


class _Machine:
    """The stack machine of the pickle format, for the opcodes that data needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count > MAX_OPCODES:
                raise _Refused(f"has more than {MAX_OPCODES} instructions")
            self.step(opcode.name, arg)
        (result,) = self.stack
        return result

    def step(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else arg] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("LIST", "TUPLE", "DICT"):
            items = self.since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _update({}, items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = self.top(int(name[-1]))
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = self.top(1) if name == "APPEND" else self.since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.top(2) if name == "SETITEM" else self.since_mark()
            _update(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = arg.split(" ", 1) if name == "GLOBAL" else self.top(2)
            stack.append(_global(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(_describe(*self.top(2)))
        elif name == "BUILD":
            _build(self.top(1)[0], stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"uses the pickle instruction {name}")

    def top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("nothing on the stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _global(name: str) -> Global:
    if name not in _PASSIVE and not _SPARSE.fullmatch(name):
        raise _Refused(f"refers to '{name}'")
    return Global(name)


def _describe(made_by: Any, args: Any) -> Any:
    """What `made_by(*args)` would have made; dicts and sets become a plain dict and list."""
    if not isinstance(made_by, Global) or not isinstance(args, tuple):
        raise _Refused("calls something that is not a known class")
    if made_by.name.endswith("._reconstructor"):
        made_by, args = args[0], ()
        if not isinstance(made_by, Global):
            raise _Refused("makes an object of an unknown class")
    if made_by.name == "collections.OrderedDict":
        return _update({}, [x for pair in (args[0] if args else ()) for x in pair])
    if made_by.name.endswith(".bytes"):  # how Python 3 writes empty bytes for Python 2
        if args:
            raise _Refused("makes bytes in an unknown way")
        return b""
    if made_by.name.endswith(".set"):
        return list(args[0]) if args else []
    return Record(made_by.name, args)


def _build(state: Any, target: Any) -> None:
    if not isinstance(target, Record):
        raise _Refused("sets the state of something that is not an array")
    target.state = state


def _update(target: dict, items: list[Any]) -> dict:
    # Only keys of constant hashing cost: a nest of shared tuples would take exponential time.
    if not isinstance(target, dict) or not all(isinstance(key, str | int | bytes) for key in items[::2]):
        raise TypeError("a dictionary with keys other than text and numbers")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target
