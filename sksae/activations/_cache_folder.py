"""Rows of texts on disk, for later processes and for several at once.

A group is a folder, ``{folder}/{group}``. What one call adds is a segment in it, a zarr group
(format 3) of three arrays, compressed in chunks with a checksum each:

- ``values``, float32 of shape (n_rows, n_features): the rows, text after text;
- ``spans``, int32 of shape (n_rows, 3): start, end, id of an added special token or -1;
- ``texts``, int64 of shape (n_texts, 4): the key (two columns), rows and tokens of each text.

A segment is written under another name, with a list of its files and their sizes, and renamed
when it is whole. It is never changed afterwards. So a reader sees all of it or nothing, whatever
became of the writer. A lock file, which the system lets go of when its holder dies, keeps two
processes from running the model on the same texts; reading needs no lock.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._cache import Entry, warned_once

# Raised when a text comes to give other rows than it did in a release before.
FORMAT = 1

_SEGMENT, _PARTIAL = "segment-", "partial-"
_OWN = {".lock", "about.json"}
_CHUNK_BYTES = 4 * 2**20
_STALE = 3600.0


def import_zarr(owner: str) -> Any:
    """Give the module zarr, of version 3."""
    try:
        import zarr
    except ImportError as exc:
        raise ImportError(
            f"Missing optional dependency 'zarr', needed by {owner} with cache=folder. Try: pip "
            "install 'sksae[cache]'."
        ) from exc
    if not hasattr(zarr, "create_array"):
        raise ImportError(
            f"{owner} with cache=folder needs zarr 3, and {zarr.__version__} is installed. Try: "
            "pip install 'sksae[cache]'."
        )
    return zarr


class Handle(NamedTuple):
    """Where the rows of a text are."""

    segment: Segment
    at: int
    n_rows: int
    n_tokens: int


class Segment:
    """One segment, open for reading.

    Raises
    ------
    ValueError
        If it is not what a writer of this format leaves behind.
    """

    def __init__(self, path: Path, group: bytes, n_features: int):
        self.path = path
        root = import_zarr("the cache").open_group(str(path), mode="r")
        about = root.attrs.asdict()
        if about.get("format") != FORMAT or about.get("group") != group.hex():
            raise ValueError("it is no segment of this cache")
        self.files = about["files"]
        self.check()
        self.values, self.spans = root["values"], root["spans"]
        texts = root["texts"][:]
        self.keys = [row.tobytes() for row in np.ascontiguousarray(texts[:, :2])]
        self.n_rows, self.n_tokens = texts[:, 2], texts[:, 3]
        self.at = np.cumsum(self.n_rows) - self.n_rows
        total = int(self.n_rows.sum())
        if self.values.shape != (total, n_features) or self.spans.shape != (total, 3):
            raise ValueError("its arrays do not fit together")

    def check(self) -> None:
        """Compare the files with those written: zarr reads a chunk that is lost as zeros."""
        for name, size in self.files.items():
            if (self.path / name).stat().st_size != size:
                raise ValueError(f"{name} is not as long as it was written")

    def handles(self) -> Iterator[tuple[bytes, Handle]]:
        """Give the key and place of each text."""
        columns = (self.at.tolist(), self.n_rows.tolist(), self.n_tokens.tolist())
        for key, at, n_rows, n_tokens in zip(self.keys, *columns, strict=True):
            yield key, Handle(self, at, n_rows, n_tokens)


class FolderGroup:
    """One group of the folder.

    Parameters
    ----------
    folder : path
    group : bytes
    about : str
        What the group holds, for those who look into the folder.
    n_features : int
    owner : str
        The estimator's name, for the messages.
    """

    def __init__(self, folder: Any, group: bytes, about: str, n_features: int, owner: str):
        self.path = Path(folder) / group.hex()
        self.group = group
        self.about = about
        self.n_features = n_features
        self.owner = owner
        self._index: dict[bytes, Handle] = {}
        self._seen: set[str] = set()
        self._warned: set[str] = set()
        self._looking = threading.Lock()

    # Reading

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Handle]:
        """Give the places of the texts that are there, those of new segments included."""
        with self._looking:
            self._look()
        index = self._index
        return {key: index[key] for key in keys if key in index}

    def _look(self) -> None:
        there: list[str] = []
        with self._passing(self.path, "cannot be read"):
            with suppress(FileNotFoundError, NotADirectoryError):
                there = os.listdir(self.path)
        for name in sorted(set(there) - self._seen):
            if name not in _OWN and not name.startswith((_PARTIAL, ".")):
                self._seen.add(name)
                self._open(name)

    def _open(self, name: str) -> None:
        path = self.path / name
        with self._passing(path, "is left out, and its texts are run again. Delete it"):
            if not name.startswith(_SEGMENT) or not path.is_dir():
                raise ValueError("it is no part of the cache")
            for key, handle in Segment(path, self.group, self.n_features).handles():
                self._index.setdefault(key, handle)

    def fill(
        self, found: Sequence[tuple[Handle, int]], values: np.ndarray, spans: np.ndarray
    ) -> bool:
        """Copy rows into the output.

        Returns
        -------
        bool
            False where a segment could not be read: its texts are not found any more.
        """
        by_segment: dict[Segment, list[tuple[int, int, int]]] = {}
        for handle, at in found:
            by_segment.setdefault(handle.segment, []).append((handle.at, at, handle.n_rows))
        whole = True
        for segment, places in by_segment.items():
            done = False
            with self._passing(segment.path, "is damaged, and its texts are run again. Delete it"):
                segment.check()
                _copy(segment.values, values, places)
                _copy(segment.spans, spans, places)
                done = True
            if not done:
                whole = False
                self._forget(segment)
        return whole

    def _forget(self, segment: Segment) -> None:
        kept = {key: at for key, at in self._index.items() if at.segment is not segment}
        self._index = kept

    # Writing

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock of the group, where the folder allows one."""
        from filelock import FileLock

        lock = None
        with self._passing(self.path, "cannot be locked or written to"):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire()
            self._clean()
        try:
            yield
        finally:
            if lock is not None and lock.is_locked:
                lock.release()

    def _clean(self) -> None:
        """Remove what writers that were killed left behind."""
        for path in self.path.glob(f"{_PARTIAL}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    shutil.rmtree(path)

    def put(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Write a segment; where that fails, there is none, and a warning."""
        if not items:
            return
        name = uuid.uuid4().hex
        partial = self.path / f"{_PARTIAL}{name}"
        try:
            with self._passing(self.path, "is not written to"):
                self.path.mkdir(parents=True, exist_ok=True)
                self._write(partial, items)
                os.replace(partial, self.path / f"{_SEGMENT}{name}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, partial: Path, items: Sequence[tuple[bytes, Entry]]) -> None:
        about = self.path / "about.json"
        if not about.exists():
            about.write_text(self.about, encoding="utf-8")
        zarr = import_zarr(self.owner)
        root = zarr.open_group(str(partial), mode="w", zarr_format=3)
        texts = np.empty((len(items), 4), dtype=np.int64)
        texts[:, :2] = np.frombuffer(b"".join(key for key, _ in items), np.int64).reshape(-1, 2)
        texts[:, 2:] = [(entry.n_rows, entry.n_tokens) for _, entry in items]
        _create(root, "texts", texts.shape, texts.dtype)[:] = texts
        n_rows = int(texts[:, 2].sum())
        entries = [entry for _, entry in items]
        values = _create(root, "values", (n_rows, self.n_features), np.dtype(np.float32))
        _store(values, [entry.values for entry in entries])
        spans = _create(root, "spans", (n_rows, 3), np.dtype(np.int32))
        _store(spans, [entry.spans for entry in entries])
        root.attrs.update(
            {"format": FORMAT, "group": self.group.hex(), "files": _sizes(partial)},
        )

    @contextmanager
    def _passing(self, path: Path, what: str) -> Iterator[None]:
        with warned_once(self._warned, path, self.owner, what):
            yield


def _create(root: Any, name: str, shape: tuple[int, int], dtype: np.dtype) -> Any:
    """Make an array whose chunks are some megabytes, compressed and with a checksum."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    n_rows = max(1, _CHUNK_BYTES // max(1, dtype.itemsize * shape[1]))
    blosc = BloscCodec(
        typesize=dtype.itemsize, cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=0
    )
    return root.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(n_rows, shape[0])), max(1, shape[1])),
        compressors=(blosc, Crc32cCodec()),
        fill_value=0,
        # Chunks of zeros are not written otherwise, and then look like lost ones.
        config={"write_empty_chunks": True},
    )


def _store(array: Any, parts: Sequence[np.ndarray]) -> None:
    """Write arrays end to end, a chunk at a time."""
    size, at, held, n_held = array.chunks[0], 0, [], 0
    for part in parts:
        while len(part):
            taken, part = part[: size - n_held], part[size - n_held :]
            held.append(taken)
            n_held += len(taken)
            if n_held == size:
                array[at : at + size] = np.concatenate(held)
                at, held, n_held = at + size, [], 0
    if n_held:
        array[at : at + n_held] = np.concatenate(held)


def _copy(array: Any, out: np.ndarray, places: list[tuple[int, int, int]]) -> None:
    """Copy rows ``source:source + n`` to ``target:target + n``, each chunk read once."""
    size, block, last = array.chunks[0], out[:0], -1
    for source, target, n in sorted(places):
        while n:
            number, offset = divmod(source, size)
            if number != last:
                block, last = array[number * size : (number + 1) * size], number
            taken = min(n, size - offset)
            out[target : target + taken] = block[offset : offset + taken]
            source, target, n = source + taken, target + taken, n - taken


def _sizes(path: Path) -> dict[str, int]:
    """List the files of a segment but the one that will hold this list."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
    sizes.pop("zarr.json")
    return sizes
