"""Standard output, written in pieces, so that a slow reader holds up nothing else.

A pager may stand still for an hour, and a worker may take minutes for what fits a pipe.
"""

import enum
import queue
import select
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from io import RawIOBase
from itertools import accumulate

from streaming.timing import PATIENCE

# A pipe that is ready takes this much in one write (POSIX); Windows has no such rule
PIECE_BYTES = getattr(select, "PIPE_BUF", 4096)
MARGIN = 1.0 * PATIENCE  # how many seconds late the thread may be before it counts as stuck


class Next(enum.Enum):
    """What to do with lines that have not been written yet."""

    GO_ON = enum.auto()
    FINISH_LINE = enum.auto()  # write nothing but the rest of what has been begun
    LEAVE = enum.auto()


class Block:
    r"""Lines on their way out, given without their \n, and how far they have been written.

    They are written in pieces; or all at once, and then they count as one line until that is done.
    """

    def __init__(self, lines: list[bytes], in_pieces: bool) -> None:
        self._data = memoryview(b"\n".join(lines) + b"\n")
        self._line_count = len(lines)
        # Positions in bytes: where lines begin, and where the last one ends
        self._bounds = [0, len(self._data)]
        self._piece_ends = iter([len(self._data)])
        if in_pieces:
            self._bounds = [0, *accumulate(len(line) + 1 for line in lines)]
            self._piece_ends = self._find_piece_ends()
        self._lock = threading.Lock()  # held to begin a piece, and to cut
        self._written = 0
        self._begun = 0  # the end of the piece that is being written, or was written last
        self._end = len(self._data)

    def _find_piece_ends(self) -> Iterator[int]:
        """Yield where pieces end: after as many whole lines as fit, or within a longer one.

        The last piece of such a line has nothing else.
        """
        line = 0
        while line < self._line_count:
            start = self._bounds[line]
            fitting = bisect_right(self._bounds, start + PIECE_BYTES) - 1
            if fitting == line:
                fitting += 1
                yield from range(start + PIECE_BYTES, self._bounds[fitting], PIECE_BYTES)
            line = fitting
            yield self._bounds[line]

    @property
    def is_done(self) -> bool:
        return self._written >= self._end

    @property
    def lines_written(self) -> int:
        """How many lines have been written to their end."""
        if self._written == len(self._data):
            return self._line_count
        return bisect_right(self._bounds, self._written) - 1

    @property
    def lines_begun(self) -> int:
        """How many lines have been written, or may be written already."""
        return bisect_left(self._bounds, self._begun)

    def cut(self) -> None:
        """Write nothing more, except for the rest of a piece and of a line that have been begun."""
        with self._lock:
            self._end = self._bounds[self.lines_begun]

    def write_until(self, deadline: float, output: RawIOBase) -> None:
        """Write as much as the reader takes until a time.monotonic(); raise OSError."""
        while not self.is_done:
            seconds = deadline - time.monotonic()
            if seconds < 0 or not is_writable(seconds):
                return
            with self._lock:
                if self.is_done:
                    return
                if self._written == self._begun:
                    self._begun = next(self._piece_ends)
            # None: another writer to the same pipe, which does not block, was faster
            self._written += output.write(self._data[self._written : self._begun]) or 0


def is_writable(seconds: float) -> bool:
    """Wait until standard output can take a piece; always true on Windows, which cannot tell."""
    if sys.platform == "win32":
        return True
    _, writable, _ = select.select([], [1], [], seconds)
    return bool(writable)


class BackgroundWriter:
    """Writes blocks, one at a time, in a thread of its own, which may get stuck in a write.

    A terminal that was stopped (Ctrl-S) keeps it, and any pipe on Windows.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Block, float]] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        self._is_busy = False
        # Not os.write: a Windows console would decode the bytes in its own code page
        self._output = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115
        threading.Thread(target=self._run, daemon=True).start()

    def write(self, block: Block, seconds: float) -> None:
        """Write the block, or what the reader takes in that time; raise OSError.

        On return, nothing more is written until the next call, unless a write is stuck.
        """
        if not self._is_busy:
            self._is_busy = True
            self._work.put((block, time.monotonic() + seconds))
        try:
            error = self._outcomes.get(timeout=seconds + MARGIN)
        except queue.Empty:
            return
        self._is_busy = False
        if error:
            raise error

    def _run(self) -> None:
        while True:
            block, deadline = self._work.get()
            try:
                block.write_until(deadline, self._output)
                self._outcomes.put(None)
            except OSError as error:  # raised in the calling thread
                self._outcomes.put(error)
