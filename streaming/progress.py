"""How far the publishing has got: a live line on a terminal, a line a minute in a log."""

import os
import sys
import time

from streaming.console import pluralize, say
from streaming.kafka_client import Kafka
from streaming.sources import Source
from streaming.timing import SECOND


class Progress:
    """Reports progress: every second as a live line on a terminal, every minute in a log.

    In a log it also reports when Kafka starts to keep it waiting.
    """

    def __init__(self, source: Source, kafka: Kafka) -> None:
        self._source, self._kafka = source, kafka
        self._is_live = sys.stderr is not None and os.isatty(2)
        self._interval = 1.0 if self._is_live else 5 * SECOND  # between checks
        self._next_check = time.monotonic() + self._interval
        self._reported_at = time.monotonic()
        self._reported_count = 0
        self._awaited = 0  # at the last check, the number of the event to be settled next, if any
        self._is_stalled = False

    def report(self, read: int, acknowledged: int, failed: int) -> None:
        """If it is time, check whether Kafka keeps us waiting, and say what there is to say.

        The arguments are the numbers of events so far.
        """
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + self._interval
        was_stalled = self._is_stalled
        self._check_stall(read, acknowledged + failed)
        has_just_stalled = self._is_stalled and not was_stalled
        if self._is_live or has_just_stalled or now >= self._reported_at + 60 * SECOND:
            say(self._line(acknowledged, now), live=self._is_live)
            self._reported_at = now
            self._reported_count = acknowledged

    def _check_stall(self, read: int, settled: int) -> None:
        """Note whether it has stalled: the event awaited at the last check is not settled yet."""
        awaited = settled + 1 if settled < read else 0
        self._is_stalled = awaited > 0 and awaited == self._awaited
        self._awaited = awaited
        if not self._is_stalled:
            self._kafka.log.clear_reason()

    def _line(self, acknowledged: int, now: float) -> str:
        rate = (acknowledged - self._reported_count) / (now - self._reported_at)
        line = f"{pluralize(acknowledged, self._source.unit)}, {rate:.0f}/s"
        percent = self._source.percent()
        if percent is not None:
            line += f", {percent}%"
        line += self._source.details()
        if self._is_stalled:
            line += f", waiting for Kafka: {self._kafka.trouble().cause}"
        return line
