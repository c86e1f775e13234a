"""X's tweets as a source of events, over as many connections as it takes."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from streaming.console import Throttle, fail, pluralize, say
from streaming.sources import Chunk, Line, Source, Stopped
from streaming.stop import Stop
from streaming.x_gaps import Gaps, Report
from streaming.x_http import XStream
from streaming.x_messages import Meaning, Message, classify, refusal
from streaming.x_pacing import (
    CONNECT_WINDOW,
    DISCONNECT,
    HTTP,
    MAX_ENDS,
    NO_BACKFILL,
    USED_UP,
    Backoff,
    Disconnected,
    Refused,
    Unusable,
)

# The messages after which X closes the connection, and the rule that then sets the wait
CLOSING = {Meaning.DISCONNECT: DISCONNECT, Meaning.CONNECTION_ISSUE: HTTP}
ANOTHER_INSTANCE = (
    f"at least {MAX_ENDS} connections ended in {CONNECT_WINDOW // 60} minutes; "
    "another instance may be running with this token"
)


@dataclass
class Counts:
    """What happened besides tweets. The source's thread counts it; the main thread shows it."""

    reconnects: int = 0
    skipped: int = 0
    duplicates: int = 0
    gaps: int = 0

    def text(self) -> str:
        """Format the counts for messages: ` (1 reconnect, 0 skipped)`."""
        counts = f"{pluralize(self.reconnects, 'reconnect')}, {self.skipped} skipped"
        if self.duplicates:
            counts += f", {pluralize(self.duplicates, 'duplicate')}"
        if self.gaps:
            counts += f", {pluralize(self.gaps, 'gap')}"
        return f" ({counts})"


class TweetSource(Source):
    """Each tweet's line, as X sent it, with the tweet's ID as its key.

    Data is tweets and keep-alives; any other line is skipped and counted. Each kind of trouble is
    reported at most once a minute, and used-up credits once in a row; every gap is reported.
    `second` is the length of a second in X's rules.
    """

    unit = "tweet"
    is_endless = True

    def __init__(self, stream: XStream, gaps: Gaps, second: float, stop: Stop) -> None:
        self._stream, self._gaps, self._stop = stream, gaps, stop
        self._backoff = Backoff(second)
        self._throttle = Throttle(60 * second)
        self._counts = Counts()
        self._last_kind = ""  # of the last connection's end
        self._is_over = False  # whether the run is over; the source may still be reading

    def details(self) -> str:
        return self._counts.text()

    def report_skipped(self, what: str) -> None:
        self._throttle.say("an event that is too large", f"skipped {what}")

    def ended_early(self) -> None:
        """Report a gap that has not ended when the run does; report none after that."""
        self._note_gap(self._gaps.unfinished())
        self._is_over = True

    def chunks(self) -> Iterator[Chunk]:
        """Yield X's tweets until asked to stop; exit if X refuses for good."""
        while not self._stop.requested:
            seconds = 0.0
            try:
                yield from self._read_connection()
            except Disconnected as end:
                seconds = self._note_end(end)
            # A failed connection is a reference cycle in urllib3 that holds a whole CA bundle:
            # without this, 600 in a row take 460 MB
            gc.collect()
            self._stop.wait(seconds)
            if not self._stop.requested:
                self._counts.reconnects += 1
        raise Stopped

    def _read_connection(self) -> Iterator[Chunk]:
        """Yield the tweets of one connection; raise Disconnected when it ends."""
        minutes = self._gaps.begin_connection()
        with self._stream.connect(minutes) as connection:
            if connection.status != 200:
                raise refusal(connection.answer(), minutes is not None)
            self._gaps.connection_accepted()
            for lines in connection.lines():
                yield from self._read_lines(lines)
                if self._stop.requested:
                    return

    def _read_lines(self, lines: list[Line]) -> Iterator[Chunk]:
        """Yield one chunk of tweets, then raise Disconnected if X says so."""
        keys: list[bytes | None] = []
        values: list[Line | None] = []
        for line in lines:
            message = classify(line)
            if message.meaning in CLOSING:
                yield Chunk(keys, values)
                raise Disconnected(message.text, CLOSING[message.meaning])
            if self._accept(message) and isinstance(line, bytes):
                keys.append(message.text.encode(errors="replace"))
                values.append(line.removesuffix(b"\r"))
        yield Chunk(keys, values)

    def _accept(self, message: Message) -> bool:
        """Note what a line says; return whether to publish it."""
        is_tweet = message.meaning is Meaning.TWEET
        if not is_tweet and message.meaning is not Meaning.KEEP_ALIVE:
            self._skip(message.meaning.name, message.text)
            return False
        self._backoff.data_received()
        self._note_gap(self._gaps.data_received(is_tweet))
        if is_tweet and self._gaps.seen_before(message.text):
            self._counts.duplicates += 1
            return False
        return is_tweet

    def _skip(self, kind: str, what: str) -> None:
        self._counts.skipped += 1
        self._throttle.say(kind, f"skipped {what}")

    def _note_gap(self, report: Report | None) -> None:
        if report and not self._is_over:
            self._counts.gaps += report.is_gap
            say(report.text)

    def _note_end(self, end: Disconnected) -> float:
        """Note the end of a connection; return the seconds to wait before the next.

        Exit if waiting cannot help.
        """
        if end.cuts_line:
            self._skip("an incomplete line", "an incomplete line")
        if end.rule is NO_BACKFILL:
            self._gaps.backfill_refused()
        self._gaps.end_connection()
        if isinstance(end, Unusable) and not self._backoff.has_streamed:
            fail(end.reason, status=2)
        if isinstance(end, Refused) and self._backoff.note_refusal(end):
            self._give_up(end)
        is_contested = self._backoff.note_end(end.rule)
        seconds = self._backoff.next_wait(end.rule, end.at_least)
        self._report_end(end, is_contested, seconds)
        return seconds

    def _report_end(self, end: Disconnected, is_contested: bool, seconds: float) -> None:
        """Say why the connection ended, unless that has just been said."""
        kind, reason = end.kind, end.reason
        if is_contested:
            kind, reason = "another instance", f"{reason} ({ANOTHER_INSTANCE})"
        if isinstance(end, Refused) and end.rule is USED_UP:
            reason = f"{reason}. {end.advice.rstrip('.')}"
        is_repeated = end.rule is USED_UP and end.kind == self._last_kind
        self._last_kind = end.kind
        if not is_repeated:
            when = f"in {seconds:.1f} s" if seconds >= 0.05 else "now"
            self._throttle.say(kind, f"{reason}; reconnecting {when}")

    def _give_up(self, refused: Refused) -> NoReturn:
        """Exit with what X said, and what to do."""
        times = self._backoff.refusals
        repeated = f" {times} times in a row" if times > 1 else ""
        # The same parameters may have been accepted before
        is_usage_error = refused.status == 400 and not self._backoff.has_streamed
        message = f"X refused the request{repeated}: {refused.reason}. {refused.advice}"
        fail(message, 2 if is_usage_error else 1)
