"""The class centres of a slice in memory or in a sparse file.

They are one array (count, W, D) float32: weight and slots of a class side by side, so that a row of the file of SGD is
one page at D = 512. Only the rows asked for are read or written.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faceshards.errors import why
from faceshards.files import bytes_text
from training.centers.store import First, Floats, Ledger, Rows, StoreError

CHUNK = 256  # rows moved at a time, 1 MB at D = 512: stays in the cache; a whole sample at once is six times slower
HEADROOM = 64 << 20  # bytes that stay free on the disk


class HostStore:
    """Rows in memory (pages nobody touched cost nothing) or, with a folder, in a sparse file mapped into memory.

    The file has no name: it disappears with the process, however that ends; what shall last is in the checkpoints.
    Its pages are the page cache's, not this process's anonymous memory. A disk that fills up under a mapped file
    would end the process by SIGBUS, so free space is looked at before new rows are written.

    Args:
        count: rows.
        width: W, 1 + the number of slots.
        dim: D.
        folder: for the file; None keeps the rows in memory.
        threads: workers that share the rows of a call; a file gains from more than there are cores.

    Raises:
        StoreError: the folder cannot be written, or so much memory is not there.
    """

    def __init__(self, count: int, width: int, dim: int, folder: Path | None = None, threads: int = 0) -> None:
        self.folder = folder
        self.file: int | None = None
        self._maps: list[mmap.mmap] = []
        self.data = self._mapped((count, width, dim), np.float32)
        self.ledger = Ledger(self._mapped((count,), np.int32))
        self._sample = np.empty((0, dim), np.float32)  # what weights() gave last
        threads = threads or (8 if folder else min(4, len(os.sched_getaffinity(0))))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="centers")
        self._local = threading.local()

    def _mapped(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """Returns an array of zeros, in anonymous memory or over a new sparse file without a name."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            if self.folder is None:
                area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                advice = "MADV_NOHUGEPAGE"  # one row would bring a page of 2 MB into being
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder) as file:
                    os.truncate(file.fileno(), size)
                    area = mmap.mmap(file.fileno(), size)
                    if self.file is None:
                        self.file = os.dup(file.fileno())
                advice = "MADV_RANDOM"  # reading ahead would fetch the rows between the sampled ones
        except OSError as error:
            where = f"{self.folder}: " if self.folder else "memory: "
            raise StoreError(f"{where}cannot keep {bytes_text(size)} of class centres: {why(error)}") from error
        if hasattr(mmap, advice):
            area.madvise(getattr(mmap, advice))
        self._maps.append(area)
        return np.frombuffer(area, dtype).reshape(shape)

    def disk_bytes(self) -> tuple[int, int]:
        """Returns (apparent, real) bytes of the file of rows; (0, 0) in memory."""
        if self.file is None:
            return 0, 0
        status = os.fstat(self.file)
        return status.st_size, status.st_blocks * 512

    def _each(self, rows: Rows, work: Callable[[slice, Floats], None], read: bool = True) -> None:
        """Calls work(part, buffer (m, W, D)) for parts of the rows, with what they hold in the buffer."""

        def one(low: int) -> None:
            part = slice(low, min(low + CHUNK, len(rows)))
            if not hasattr(self._local, "buffer"):
                self._local.buffer = np.empty((CHUNK, *self.data.shape[1:]), np.float32)
                self._local.spare = np.empty((CHUNK, self.data.shape[2]), np.float32)
            buffer = self._local.buffer[: part.stop - part.start]
            if read:
                np.take(self.data, rows[part], axis=0, out=buffer, mode="clip")
            work(part, buffer)

        list(self._pool.map(one, range(0, len(rows), CHUNK)))

    def weights(self, rows: Rows, factors: Floats | None) -> Floats:
        """Returns (n, D); see Store. The array is filled again by the next call: samples have a fixed size."""
        if len(self._sample) != len(rows):
            self._sample = np.empty((len(rows), self.data.shape[2]), np.float32)
        out = self._sample

        def work(part: slice, buffer: Floats) -> None:
            np.copyto(out[part], buffer[:, 0])
            if factors is not None:
                buffer *= factors[part, :, None]
                out[part] += buffer[:, 0]
                out[part] += buffer[:, 1]

        self._each(rows, work)
        return out

    def records(self, rows: Rows) -> Floats:
        """Returns (n, W, D); see Store."""
        return np.take(self.data, rows, axis=0)

    def create(self, rows: Rows, first: First, factors: Sequence[float]) -> None:
        """Stores first values times factors; see Store."""

        def work(part: slice, buffer: Floats) -> None:
            values = first(rows[part])  # (m, D)
            for slot, factor in enumerate(factors):
                np.multiply(values, np.float32(factor), out=buffer[:, slot])
            self.data[rows[part]] = buffer

        self._each(rows, work, read=False)

    def write(self, rows: Rows, records: Floats) -> None:
        """Stores (n, W, D); see Store."""

        def work(part: slice, buffer: Floats) -> None:
            self.data[rows[part]] = records[part]

        self._each(rows, work, read=False)

    def reserve(self, rows: int) -> None:
        """Refuses to go on when the disk has no room for so many new rows; a row may take a page more than its size.

        Raises:
            StoreError: names the folder and the bytes.
        """
        if self.folder is None or rows == 0:
            return
        need = rows * (self.data[0].nbytes + mmap.PAGESIZE) + HEADROOM
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise StoreError(
                f"{self.folder}: disk full: {rows} new class centres need {bytes_text(need)}, {bytes_text(free)} free"
            )

    def linear(self, rows: Rows, factors: Floats, grads: Any = None, lr: float = 0.0) -> None:
        """Applies (n, 2, 2) to (weight, momentum) and adds the gradient's part; see Store."""
        grads = _on_host(grads)

        def work(part: slice, buffer: Floats) -> None:
            weight, momentum = buffer[:, 0], buffer[:, 1]  # (m, D)
            spare = self._local.spare[: len(buffer)]
            move = np.multiply(weight, factors[part, 0, :1])
            np.multiply(momentum, factors[part, 0, 1:], out=spare)
            move += spare
            np.multiply(weight, factors[part, 1, :1], out=spare)
            momentum *= factors[part, 1, 1:]
            momentum += spare
            if grads is not None:
                momentum += grads[part]
                np.multiply(grads[part], np.float32(lr), out=spare)
                move -= spare
            weight += move
            self.data[rows[part]] = buffer

        self._each(rows, work)

    def adam(self, rows: Rows, factors: Floats, grads: Any, *, betas: tuple[float, float], eps: float) -> None:
        """Takes one AdamW step at the rows; see Store."""
        grads = _on_host(grads)

        def work(part: slice, buffer: Floats) -> None:
            weight, first, second = buffer[:, 0], buffer[:, 1], buffer[:, 2]  # (m, D)
            first *= np.float32(betas[0])
            first += grads[part] * np.float32(1 - betas[0])
            second *= np.float32(betas[1])
            second += np.square(grads[part]) * np.float32(1 - betas[1])
            weight *= factors[part, :1]
            weight -= first * factors[part, 1:2] / (np.sqrt(second * factors[part, 2:]) + np.float32(eps))
            self.data[rows[part]] = buffer

        self._each(rows, work)

    def close(self) -> None:
        """Gives the memory or the file back."""
        self._pool.shutdown()
        self.data = np.zeros((0, *self.data.shape[1:]), np.float32)
        self.ledger = Ledger(np.zeros(0, np.int32))
        self._sample = self._sample[:0]
        self._maps.clear()  # unmapped when the last array over it is gone
        if self.file is not None:
            os.close(self.file)
            self.file = None


def _on_host(grads: Any) -> Any:
    """Returns gradients as a NumPy array; a Tensor of the processor is not copied."""
    return grads.asnumpy() if hasattr(grads, "asnumpy") else grads
