"""When to connect to X again: the rules, and what counts as which kind of failure.

Times are in seconds of X's rules, unless stated otherwise; tests make such a second shorter.
"""

import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

# A URL on this machine: there, tests may shorten X's seconds, and the token needs no TLS
LOOPBACK = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)"
SILENCE = 22  # X sends a keep-alive every 20 seconds
X_WINDOW = 900  # X's rate limits apply per 15 minutes
MAX_CONNECTS, CONNECT_WINDOW = 10, 180  # spreads out the 50 connects that X allows in X_WINDOW
# Once a request has been accepted, it takes this many refusals in a row to end the run. With the
# waits in between, they span 20 minutes, more than X_WINDOW, if the same rule sets all the waits
MAX_REFUSALS = 10
MAX_ENDS = 5  # of working connections in CONNECT_WINDOW, before we assume another client


class Rule(NamedTuple):
    """How long to wait after a failure: the first wait and the longest.

    With each consecutive failure by the same rule, the wait doubles, or grows by the first wait.
    """

    name: str  # also tells rules with the same waits apart
    first: float
    longest: float
    doubles: bool = False
    resumes: bool = False  # whether a connection that was working is resumed at once


NO_BACKFILL = Rule("backfill was refused", 0, 0)
UNREACHABLE = Rule("X never saw the connect", 0.25, 16)
NETWORK = Rule("a network error", 0.25, 16, resumes=True)
STALLED = Rule("a silence", 0.25, 16, resumes=True)
ENDED = Rule("the end of the stream", 0.25, 16, resumes=True)
HTTP = Rule("an HTTP error or too many connections", 5, 320, doubles=True)
NO_RULES = Rule("no rules yet", 5, 60, doubles=True)  # people add one, and wait for it
DISCONNECT = Rule("a disconnect message", 5, 320, doubles=True, resumes=True)
RATE_LIMIT = Rule("the rate limit", 60, X_WINDOW, doubles=True)
USED_UP = Rule("credits or a cap are used up", 5, 320, doubles=True)


class Disconnected(Exception):
    """A connection ended, or could not be made.

    It holds the reason in words, the rule that sets the wait, the minimum wait in real seconds,
    whether a line was cut off, and the kind of message this makes, for a Throttle.
    """

    def __init__(
        self,
        reason: str,
        rule: Rule,
        kind: str = "",
        at_least: float = 0.0,
        cuts_line: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rule = rule
        self.kind = f"{rule.name}: {kind}"  # without the other side's words, which may vary
        self.at_least = at_least
        self.cuts_line = cuts_line


class Unusable(Disconnected):
    """A setting, such as a proxy, cannot be used; waiting helps only if it has worked before."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, UNREACHABLE, "a setting")


class Refused(Disconnected):
    """X has refused the request.

    It holds the HTTP status, what to do about it, which is also its kind, and `limit`: how many
    refusals in a row end a run to which X has never sent data. After data, that is MAX_REFUSALS, as
    this may be an error from a server between X and us, or pass when credits are bought.
    """

    def __init__(
        self,
        reason: str,
        status: int,
        advice: str,
        rule: Rule = HTTP,
        limit: int = 1,
        at_least: float = 0.0,
    ) -> None:
        super().__init__(reason, rule, advice, at_least)
        self.status, self.advice, self.limit = status, advice, limit


class Backoff:
    """How long to wait before reconnecting, and when to give up.

    `second` is the length of one second in the rules; `clock` is time.monotonic, or a test's
    replacement. The waits that it returns are in real seconds.
    """

    def __init__(self, second: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._second = second
        self._meter = Meter(MAX_CONNECTS, CONNECT_WINDOW * second, clock)
        self._ends = Meter(MAX_ENDS, CONNECT_WINDOW * second, clock)
        self._is_working = False  # whether this connection has delivered anything
        self._failures: Counter[Rule] = Counter()  # in a row
        self.has_streamed = False  # whether a tweet or a keep-alive has arrived
        self.refusals = 0  # since then

    def data_received(self) -> None:
        """Note a tweet or a keep-alive: X has accepted the request, so all waits restart."""
        self._is_working = True
        self._failures.clear()
        self.has_streamed = True
        self.refusals = 0

    def note_refusal(self, refused: Refused) -> bool:
        """Note a refusal; return whether it ends the run."""
        self.refusals += 1
        return self.refusals >= (MAX_REFUSALS if self.has_streamed else refused.limit)

    def note_end(self, rule: Rule) -> bool:
        """Note the end of a connection; return whether X seems to end them for another client.

        To be called before next_wait.
        """
        if not self._is_working or rule not in (ENDED, DISCONNECT, NETWORK):
            return False
        self._ends.note()
        return self._ends.wait() > 0

    def next_wait(self, rule: Rule, at_least: float = 0.0) -> float:
        """Return the seconds to wait after a connection before the next.

        `at_least` is a number of seconds that X asks for.
        """
        if rule is not UNREACHABLE:  # X saw the connect, earlier
            self._meter.note()
        return max(
            self._wait_by_rule(rule),
            self._meter.wait(),
            min(at_least, X_WINDOW * self._second),
        )

    def _wait_by_rule(self, rule: Rule) -> float:
        """Note a failure, unless the connection was working; return the wait it takes."""
        was_working, self._is_working = self._is_working, False
        if was_working and rule.resumes:
            return 0.0
        self._failures[rule] += 1
        return jittered_wait(rule, self._failures[rule]) * self._second


class Meter:
    """Allows `limit` connections to end in any `window` real seconds."""

    def __init__(self, limit: int, window: float, clock: Callable[[], float]) -> None:
        self._window, self._clock = window, clock
        self._ends = deque([-math.inf] * limit, limit)  # the times of the latest

    def note(self) -> None:
        """Note the end of a connection."""
        self._ends.append(self._clock())

    def wait(self) -> float:
        """Return the seconds until the next one is allowed, or a number below 0."""
        return self._ends[0] + self._window - self._clock()


def jittered_wait(rule: Rule, failures: int) -> float:
    """Return the wait after this many failures in a row, plus up to 20% jitter."""
    growth = 2.0 ** min(failures - 1, 20) if rule.doubles else failures
    return min(rule.first * growth, rule.longest / 1.2) * random.uniform(1, 1.2)
