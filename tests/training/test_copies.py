"""Batches that are copied to a CUDA device while the one before is worked on, without one."""

import contextlib

import numpy as np
import pytest
import torch
from scipy import sparse

from sksae.training import _data
from sksae.training._data import (
    BatchIterator,
    ColumnBlock,
    PairedRows,
    RowBatches,
    RowSubset,
    SharedRows,
    copied_ahead,
)

CUDA = torch.device("cuda")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_rows", [1, 7, 1000])
def test_all_rows_are_copied_in_pieces(n_rows, order, monkeypatch):
    log = []

    class Waits:
        def synchronize(self):
            log.append("wait")

    def pin_memory(tensor):
        assert tensor.is_contiguous()
        log.append(len(tensor))
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Waits())
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(_data, "_PINNED_BYTES", 50 * 3 * 8)
    rows = torch.from_numpy(np.asarray(np.random.rand(n_rows, 3), order=order))
    there = _data.copied(rows, torch.device("cpu"))
    assert torch.equal(there, rows) and there.is_contiguous()
    pieces = [n for n in log if n != "wait"]
    assert sum(pieces) == n_rows and max(pieces) <= 50
    assert log.count("wait") == -(-len(pieces) // 8)


class Tensor:
    """Stands for a tensor on the device."""

    def __init__(self, number, log):
        self.number, self.log = number, log

    def record_stream(self, stream):
        assert stream.name == "main"
        self.log.append(("keep", self.number))


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        assert (self.name, other.name) == ("main", "side")
        self.log.append("wait")


class Log(list):
    """What the streams are asked for, and which of them is in use."""

    current = "main"

    @contextlib.contextmanager
    def use(self, stream):
        self.current = stream.name
        yield
        self.current = "main"


@pytest.fixture
def log(monkeypatch):
    log = Log()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(log.current, log))
    monkeypatch.setattr(torch.cuda, "stream", log.use)
    return log


def batches(n, log):
    for number in range(n):
        log.append((f"copy on {log.current}", number))
        yield Tensor(number, log), Tensor(number, log)


def test_each_copy_begins_before_the_batch_before_it_is_given(log):
    for x, y in copied_ahead(batches(3, log), CUDA):
        assert x.number == y.number
        log.append(("given", x.number))
    expected = [("copy on side", 0)]
    for number in range(3):
        ahead = [("copy on side", number + 1)] if number < 2 else []
        expected += ["wait", *ahead, ("keep", number), ("keep", number), ("given", number)]
    assert log == expected
    assert list(copied_ahead(batches(0, log), CUDA)) == []


def test_an_error_in_a_copy_is_raised(log):
    def broken():
        yield from batches(1, log)
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        list(copied_ahead(broken(), CUDA))


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_what_is_copied(monkeypatch, make):
    """Rows that do not fit on the device are, each batch through pinned memory."""
    X = np.arange(12.0).reshape(6, 2)
    cpu = RowBatches(make(X), torch.device("cpu"), torch.float32)
    assert not cpu.copies and not PairedRows(cpu, cpu).copies
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (X.nbytes, X.nbytes))
    rows = RowBatches(make(X), CUDA, torch.float32)
    assert rows.copies and PairedRows(cpu, rows).copies
    assert ColumnBlock(rows, slice(1)).copies and not SharedRows(make(X), CUDA, X.dtype).copies

    pinned, moved = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *args, **how: moved.append((args, how)) or t)
    batch = rows.take(torch.tensor([4, 1]))
    assert pinned == [batch] and moved[-1] == ((CUDA, torch.float32), {"non_blocking": True})
    np.testing.assert_array_equal(batch.numpy(), X[[4, 1]])
    cpu.take(torch.tensor([4, 1]))
    assert len(pinned) == 1


def test_the_iterator_copies_ahead(log, monkeypatch):
    data = RowBatches(np.arange(10.0).reshape(5, 2), torch.device("cpu"), torch.float32)
    plain = [x.tolist() for x, _ in BatchIterator(data, 2)]
    assert not log
    monkeypatch.setattr(RowBatches, "copies", True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: log.append("keep"))
    assert [x.tolist() for x, _ in BatchIterator(data, 2)] == plain
    assert log.count("wait") == len(plain)


def test_some_of_the_rows_are_not_copied():
    X, numbers = torch.arange(30.0).view(10, 3), np.array([1, 4, 5, 9])
    rows = RowBatches(X, torch.device("cpu"), torch.float64)
    some = RowSubset(rows, numbers)
    assert rows.rows is X and some.rows is X and some.shape == (4, 3) and len(some) == 4
    expected = X[numbers].double()
    assert torch.equal(some.take(torch.tensor([3, 0])), expected[[3, 0]])
    assert torch.equal(torch.cat(list(some.blocks())), expected)
    (batch, _), (last, target) = BatchIterator(some, 2)
    assert torch.equal(torch.cat([batch, last]), expected) and target is last
    plain = RowBatches(expected, torch.device("cpu"), torch.float64)
    assert torch.equal(some.statistics.distances, plain.statistics.distances)


def test_the_order_of_rows_in_two_places_stays_on_the_cpu():
    order, there = torch.arange(5), torch.device("meta")
    on_device = RowBatches(torch.empty(5, 3, device=there), there, torch.float32)
    on_host = RowBatches(sparse.csr_matrix(np.eye(5)), there, torch.float32)
    for pair in (PairedRows(on_device, on_host), PairedRows(on_host, on_device)):
        assert pair.placed(order).device.type == "cpu"
    assert PairedRows(on_device, on_device).placed(order).device.type == "meta"


def test_rows_on_another_device_move_if_they_fit(monkeypatch):
    class Rows(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda:1")

        def to(self, device):
            return "moved"

        def cpu(self):
            return "on the CPU"

    rows = torch.zeros(4, 2).as_subclass(Rows)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    free = {"bytes": 1000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 0))
    assert _data._brought(rows, CUDA) == "moved"
    free["bytes"] = 10
    assert _data._brought(rows, CUDA) == "on the CPU"
    assert _data._brought(rows, torch.device("cuda:1")) == "moved"  # a call that does nothing
    assert _data._brought(rows, torch.device("cpu")) == "moved"
