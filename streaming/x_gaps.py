"""What may be missing, what X is asked to send again, and what has come before.

Times are those of time.time(), which keeps running while the machine sleeps, or of a test's clock.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from streaming.x_pacing import SILENCE

MAX_BACKFILL_MINUTES = 5
BACKFILL_MARGIN = 10  # seconds, for the time that a connect takes, and for tweets lost in flight
MAX_BACKFILL_REFUSALS = 3  # in a row, before we assume that the plan has no backfill
MAX_SEEN_IDS = 125_000  # six minutes at six times the usual rate


class Watermark:
    """The moment up to which something holds. It follows the data, which proves it.

    After something that casts doubt on the data, it stands still for `rest` seconds.
    """

    def __init__(self, rest: float) -> None:
        self._rest = rest
        self._doubted_at = -math.inf
        self.at = 0.0  # 0: no data yet

    def trust(self) -> None:
        """Forget any doubt."""
        self._doubted_at = -math.inf

    def doubt(self, now: float) -> None:
        """Stand still from now on."""
        self._doubted_at = now

    def data_received(self, now: float) -> None:
        """Follow the data, unless there was doubt a moment ago."""
        # The clock may have been set back since
        if not self._doubted_at <= now < self._doubted_at + self._rest:
            self.at = now


class Backfill:
    """How many of the last minutes each connect asks X to send again.

    Up to its watermark nothing is missing; backfill is requested from there. A connection that asks
    for backfill may break before all of it has come; so the watermark rests at its beginning, and
    the next one asks for the same minutes again.
    """

    def __init__(self, is_wanted: bool, second: float = 1.0) -> None:
        self._is_wanted, self._second = is_wanted, second
        self.complete = Watermark(SILENCE * second)
        self._minutes: int | None = None  # that this connection has asked for
        self._is_refused = False  # whether this connection was refused because of them
        self._is_awaited = False  # whether this connection has not brought any of them yet
        self._goes_without = False  # whether it goes without, as the one before was refused
        self._refusals = 0  # in a row

    def resume(self, times: Iterable[float]) -> None:
        """Continue where an earlier run ended, given the sorted times at which data came.

        If that run was catching up after a gap, its backfill may not have been complete.
        """
        previous = math.inf
        for moment in times:
            if moment > previous + SILENCE * self._second:
                self.complete.doubt(moment)
            self.complete.data_received(moment)
            previous = moment

    def begin_connection(self, now: float) -> int | None:
        """Note a new connection; return the minutes to ask for, None for none."""
        self._goes_without, self._is_refused = self._is_refused, False
        self._minutes = None
        if self._is_wanted and self.complete.at and not self._goes_without:
            self.complete.doubt(now)
            seconds = (now - self.complete.at) / self._second + BACKFILL_MARGIN
            self._minutes = min(max(math.ceil(seconds / 60), 1), MAX_BACKFILL_MINUTES)
        self._is_awaited = self._minutes is not None
        return self._minutes

    def note_refusal(self) -> None:
        """Note that X has refused the connection, so that the next one goes without backfill."""
        self._is_refused = True

    def note_success(self) -> None:
        """Note the connection's first data. Now it is certain what the one before was refused for.

        Give up on backfill after some refusals of nothing else.
        """
        if self._minutes:
            self._refusals = 0
        elif self._goes_without:
            self._refusals += 1
            self._is_wanted = self._refusals < MAX_BACKFILL_REFUSALS

    def data_received(self, now: float, is_tweet: bool) -> None:
        """Note a tweet or a keep-alive; keep-alives alone do not prove that the backfill has come.

        If none was due, X is asked for too many minutes next time, which brings only duplicates.
        """
        self._is_awaited = self._is_awaited and not is_tweet
        if not self._is_awaited:
            self.complete.data_received(now)

    def describe(self) -> str:
        """Say how much of a gap this connection brings."""
        if self._minutes:
            minutes = "minute" if self._minutes == 1 else f"{self._minutes} minutes"
            return f"asked X for the last {minutes}"
        if self._refusals:
            return "X refused to resend them"
        return "not requested again (see --backfill)"


class Duplicates:
    """The newest `size` IDs of tweets."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ids: OrderedDict[str, None] = OrderedDict()

    def seen_before(self, tweet_id: str) -> bool:
        """Return whether this tweet has come before, and remember it."""
        if tweet_id in self._ids:
            return True
        self._ids[tweet_id] = None
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)
        return False


class Report(NamedTuple):
    """What to say about a time without data, and whether it certainly is a gap."""

    text: str
    is_gap: bool


class Gaps:
    """Notices when no connection has worked for longer than X is ever silent.

    Data is tweets and keep-alives. A gap runs from the last timely data until X accepts the
    connection that brings the next. (A quiet stream's first keep-alive comes 20 s after that.) Late
    data means that Kafka held us up, and X may have dropped the connection since, while what was on
    its way still arrives; so for a while, what follows does not move the watermarks.
    """

    def __init__(
        self, has_backfill: bool, second: float = 1.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._second, self._clock = second, clock
        self._live = Watermark(SILENCE * second)
        # When the live watermark was taken from an event, with keep-alives unknown; 0: it was not
        self._resumed_at = 0.0
        self._accepted_at = 0.0  # when X accepted this connection; 0: it has not
        self._received_at = 0.0  # the latest data on this connection; 0: none
        self._backfill = Backfill(has_backfill, second)
        self._duplicates = Duplicates(MAX_SEEN_IDS if has_backfill else 0)

    def resume(self, times: list[float], tweet_ids: list[str]) -> None:
        """Continue where an earlier run ended: when tweets came, in order, and which."""
        now = self._clock()
        past = [min(moment, now) for moment in times]  # the clock may have been set back
        self._live.at = past[-1] if past else 0.0
        self._resumed_at = now
        self._backfill.resume(past)
        for tweet_id in tweet_ids:
            self.seen_before(tweet_id)

    def begin_connection(self) -> int | None:
        """Note a new connection; return the minutes of backfill to request, None for none."""
        self.end_connection()
        self._live.trust()
        return self._backfill.begin_connection(self._clock())

    def connection_accepted(self) -> None:
        """Note that X sends from now on what there is, as the first data will prove."""
        self._accepted_at = self._clock()

    def end_connection(self) -> None:
        """Note the end of a connection: if none follows, what is missing now remains so."""
        self._accepted_at = self._received_at = 0.0

    def backfill_refused(self) -> None:
        """Note that X has refused the connection because of backfill."""
        self._backfill.note_refusal()

    def data_received(self, is_tweet: bool) -> Report | None:
        """Note that a tweet or a keep-alive has arrived; return a report if it ends a gap."""
        report = None
        if not self._received_at:
            self._backfill.note_success()
            report = self._report(self._backfill.describe())
            self._resumed_at = 0.0
        self._note_data(is_tweet)
        return report

    def _note_data(self, is_tweet: bool) -> None:
        now = self._clock()
        if now > (self._received_at or now) + SILENCE * self._second:
            self._live.doubt(now)
            self._backfill.complete.doubt(now)
        self._live.data_received(now)
        self._backfill.data_received(now, is_tweet)
        self._received_at = now

    def seen_before(self, tweet_id: str) -> bool:
        """Return whether this tweet has come before, as backfill may bring it twice."""
        return self._duplicates.seen_before(tweet_id)

    def unfinished(self) -> Report | None:
        """Return a report on a gap that has not ended yet, if there is one.

        A connection that has delivered data has none: if data is late, Kafka is holding us up.
        """
        if self._received_at:
            return None
        return self._report("the run ended before the stream resumed")

    def _report(self, comment: str) -> Report | None:
        """Return a report if no data has arrived for longer than X is ever silent."""
        began, ended = self._live.at, self._accepted_at or self._clock()
        seconds = (ended - began) / self._second
        if not began or seconds <= SILENCE:
            return None
        since = " since the last event," if self._resumed_at else ""
        period = f"from {period_text(began, ended)} ({duration_text(seconds)})"
        is_gap = ended - self._resumed_at > SILENCE * self._second
        return Report(f"no tweets{since} {period}; {comment}", is_gap)


def period_text(began: float, ended: float) -> str:
    """Format two points in time: `14:02:10 to 14:29:31`, with dates if they differ."""
    first, last = time.localtime(began), time.localtime(ended)
    pattern = "%H:%M:%S" if first[:3] == last[:3] else "%Y-%m-%d %H:%M:%S"
    return f"{time.strftime(pattern, first)} to {time.strftime(pattern, last)}"


def duration_text(seconds: float) -> str:
    """Format a duration: `27 min 21 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] if hours else []
    if minutes or hours:
        parts.append(f"{minutes} min")
    return " ".join([*parts, f"{rest} s"])
