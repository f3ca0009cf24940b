"""Pickles are read as data: arrays come out, and nothing that a file asks for is imported, called or changed."""

import builtins
import contextlib
import operator
import os
import pickle
import struct
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fantasyid_core.errors import WeightsError, WeightsMissingError
from fantasyid_core.io import unpickle


class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def write(folder, content: bytes):
    path = folder / "file.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(5))
@given(
    data=hnp.arrays(
        st.sampled_from(["<f8", "<f4", ">f4", "<i8", ">i2", "<u4", "|u1", "|b1"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
        elements={"allow_nan": False},
    ),
    order=st.sampled_from("CF"),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_array_of_numbers_comes_back_as_it_was(tmp_path, protocol, data, order):
    data = np.asarray(data, order=order)
    path = write(tmp_path, pickle.dumps({"x": [data, data, "text", 1.5, None]}, protocol))
    first, second, *rest = unpickle.load(path)["x"]
    found = unpickle.array(first, "x")
    assert np.array_equal(found, data)
    assert found.shape == data.shape
    assert found.dtype == data.dtype.newbyteorder("=")
    assert second is first
    assert rest == ["text", 1.5, None]


@pytest.mark.parametrize("kind", ["csc_matrix", "csr_matrix", "coo_matrix", "csr_array"])
def test_sparse_matrices_come_back_without_scipy(tmp_path, kind):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    dense = np.array([[0, 2.0, 0], [1, 0, 3]])
    path = write(tmp_path, pickle.dumps(getattr(scipy_sparse, kind)(dense)))
    found = unpickle.sparse(unpickle.load(path), "matrix")
    again = np.zeros(found.shape)
    again[found.rows, found.columns] = found.values
    assert np.array_equal(again, dense)


def test_the_published_hierarchy_reads_like_pickle_reads_it(flame_dir):
    pytest.importorskip("scipy.sparse")
    with open(flame_dir / "transform.pkl", "rb") as file:
        theirs = pickle.load(file)
    ours = unpickle.load(flame_dir / "transform.pkl")
    assert list(ours) == list(theirs)
    for name in ("vertices", "face"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            assert np.array_equal(unpickle.array(a, name), b)
    for name in ("down_transform", "up_transform"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            found, expected = unpickle.sparse(a, name), b.tocoo()
            assert np.array_equal(found.rows, expected.row)
            assert np.array_equal(found.columns, expected.col)
            assert np.array_equal(found.values, expected.data)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "inside an object array"])
def test_a_file_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path, protocol, nested):
    witness = tmp_path / "was here"
    content = Calls(os.system, f'echo > "{witness}"')
    if nested:
        content = {"v_template": np.array([content, None], dtype=object)}
    path = write(tmp_path, pickle.dumps(content, protocol))
    with pytest.raises(WeightsError, match=r"refers to '(posix|nt)\.system'.*Nothing of it was executed"):
        unpickle.load(path)
    assert not witness.exists()
    pickle.loads(path.read_bytes())
    assert witness.exists(), "the file was harmless, so this test proved nothing"


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Calls(builtins.getattr, "text", "upper")),
        pickle.dumps(Calls(operator.attrgetter, "__class__.__mro__")),
        pickle.dumps(Calls(eval, "1 + 1")),
        pickle.dumps(Calls(np.load, "x.npy")),
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"cos\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"cscipy.sparse.csc\ncsc_matrix\x00os\n.",
        b"(S'echo'\nios\nsystem\n.",
        b"Pid\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x01.",
        b"cchumpy.ch\nCh\n}b.",
        b"]}b.",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_everything_but_arrays_is_refused(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(WeightsError, match=r"file\.pkl was refused"):
        unpickle.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x04",
        b".",
        b"N0.",
        b"NN.",
        b"h\x05.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x04}(]K\x01u.",
        b"}(K\x01u.",
        b"(t(tR.",
        pickle.dumps({"x": np.arange(1000.0)})[:-500],
    ],
    ids=lambda content: repr(content[:24]),
)
def test_damaged_files_are_reported(tmp_path, content):
    with pytest.raises(WeightsError, match=r"file\.pkl"):
        unpickle.load(write(tmp_path, content))


@given(st.binary(max_size=200))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_random_bytes_never_do_anything_but_fail_or_load(tmp_path, content):
    path = write(tmp_path, b"\x80\x04" + content + b".")
    with contextlib.suppress(WeightsError):
        unpickle.load(path)


@pytest.mark.alone
def test_bombs_end_soon(tmp_path):
    """A huge memo index, hash time that doubles with every level, a million instructions, a deep nest."""
    bombs = [
        b"\x80\x04Nr\xff\xff\xff\xff.",
        b"\x80\x04)" + b"2\x86" * 60 + b"\x8c\x01xs.",
        b"\x80\x04})" + b"2\x86" * 60 + b"Ns.",
        b"\x80\x04" + b"N0" * 600_000 + b"N.",
        b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
    ]
    start = time.monotonic()
    for bomb in bombs:
        with contextlib.suppress(WeightsError):
            unpickle.load(write(tmp_path, bomb))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "change",
    [
        lambda state: (state[0], (10**9, 10**9), *state[2:]),
        lambda state: (state[0], (-5,), *state[2:]),
        lambda state: (*state[:4], state[4][:-1]),
        lambda state: state[:3],
        lambda state: (*state[:4], [1, 2]),
        lambda state: (*state[:4], 10**12),
        lambda state: None,
    ],
)
def test_an_array_whose_size_does_not_fit_its_data_is_refused(tmp_path, change):
    record = unpickle.load(write(tmp_path, pickle.dumps(np.arange(6.0), 2)))
    record.state = change((*record.state[:4], record.state[4].args[0].encode("latin1")))
    with pytest.raises(WeightsError, match="the weights: no plain array"):
        unpickle.array(record, "the weights")


@pytest.mark.parametrize("data", [np.array(["text"]), np.array([1 + 2j]), np.array([{}], object), np.zeros(2, "f4,i4")])
def test_arrays_of_other_things_than_numbers_are_refused(tmp_path, data):
    with pytest.raises(WeightsError):
        unpickle.array(unpickle.load(write(tmp_path, pickle.dumps(data))), "the weights")


def test_a_sparse_matrix_with_indices_outside_of_it_is_refused(tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    for name, bad in (("indices", [-1, 0]), ("indices", [9, 0]), ("indptr", [0, 10**12, 2]), ("data", [1.0])):
        matrix = scipy_sparse.csr_matrix(np.eye(2))
        setattr(matrix, name, np.array(bad))
        path = write(tmp_path, pickle.dumps(matrix))
        with pytest.raises(WeightsError, match="no readable sparse matrix"):
            unpickle.sparse(unpickle.load(path), "matrix")


def test_a_missing_or_oversized_file_is_reported_without_reading_it(tmp_path):
    with pytest.raises(WeightsMissingError):
        unpickle.load(tmp_path / "absent.pkl")
    path = tmp_path / "huge.pkl"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(WeightsError, match="larger than 1 GiB"):
        unpickle.load(path)
