"""The pieces of twitter-stream.py that hold X's rules: with clocks of the test's own, no sockets.

test_twitter_stream.py runs them together, as a process.
"""

import importlib
import io
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from http.client import responses
from typing import Any

import x_api
from cli import Stop
from delivery import LineSplitter, OversizedLine

import pytest
import requests
import urllib3
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError

x: Any = importlib.import_module("twitter-stream")
Kind = x.Kind
PACED = [x.NETWORK, x.UNREACHABLE, x.HTTP, x.RATE_LIMIT]


class Clock:
    """A clock that only the test moves; call it for the time in seconds."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def as_json(message: object) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode()


# ------------------------------------------------------------------ what a line is

DISCONNECT = {
    "title": "operational-disconnect",
    "disconnect_type": "UpstreamOperationalDisconnect",
    "detail": "bye",
    "type": "https://api.x.com/2/problems/operational-disconnect",
}
TOO_MANY_CONNECTIONS = {
    "title": "ConnectionException",
    "detail": "too many",
    "connection_issue": "TooManyConnections",
}
PARTIAL_ERROR = {"title": "Not Found Error", "detail": "a user is gone"}


@pytest.mark.parametrize("line", [b"\r", b""])
def test_a_keep_alive(line: bytes) -> None:
    assert x.classify(line) == (Kind.KEEP_ALIVE, "")


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"includes": {"users": [{"id": "7", "name": "operational-disconnect"}]}},
        {"errors": [PARTIAL_ERROR]},
        {"errors": [DISCONNECT]},
        {"errors": "none"},
        {"matching_rules": [], "connection_issue": "TooManyConnections"},
    ],
    ids=["alone", "includes", "partial error", "disconnect", "odd errors", "connection issue"],
)
def test_what_has_an_id_is_a_tweet_whatever_stands_beside_it(others: dict[str, object]) -> None:
    line = as_json({"data": {"id": "12", "text": "🍜"}, **others})
    assert x.classify(line) == x.classify(line + b"\r") == (Kind.TWEET, "12")


@pytest.mark.parametrize("number", range(len(x_api.TEXTS)))
def test_a_tweet_in_each_script(number: int) -> None:
    line = x_api.tweet(number, ["author_id", "created_at", "lang"])
    assert x.classify(line) == (Kind.TWEET, json.loads(line)["data"]["id"])


@pytest.mark.parametrize(
    "text",
    ["operational-disconnect", "connection_issue", r"\" \\ \n \r   \ud800", "[DONE]", '{"id":1}'],
)
def test_a_tweet_may_speak_of_anything(text: str) -> None:
    line = json.dumps({"data": {"text": text, "title": text, "id": "1"}}).encode()
    assert x.classify(line) == (Kind.TWEET, "1")


def test_an_id_need_not_be_a_number() -> None:
    assert x.classify(rb'{"data":{"id":"\ud800"}}') == (Kind.TWEET, "\ud800")


@pytest.mark.parametrize(
    "message",
    [
        DISCONNECT,
        {"errors": [DISCONNECT]},
        {"errors": ["odd", PARTIAL_ERROR, DISCONNECT]},
        {"title": "operational-disconnect", "detail": "bye"},
        {"type": DISCONNECT["type"], "detail": "bye"},
    ],
    ids=["bare", "wrapped", "not the first", "by its title", "by its type"],
)
def test_x_disconnects_operationally(message: dict[str, object]) -> None:
    for end in (b"", b"\r"):
        kind, text = x.classify(as_json(message) + end)
        assert kind is Kind.DISCONNECT
        assert text.endswith("bye")
    assert x.classify(as_json(DISCONNECT)).text == "operational-disconnect: bye"


@pytest.mark.parametrize(
    "message", [TOO_MANY_CONNECTIONS, {"errors": [TOO_MANY_CONNECTIONS]}], ids=["bare", "wrapped"]
)
def test_x_disconnects_as_there_are_too_many_connections(message: dict[str, object]) -> None:
    assert x.classify(as_json(message)) == (
        Kind.TOO_MANY_CONNECTIONS,
        "ConnectionException: too many",
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"[1]", "[1]"),
        (b'"operational-disconnect"', '"operational-disconnect"'),
        (b"null", "null"),
        (b"not\x1b json\x07", "not json"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"data":{"id":"1"}', '{"data":{"id":"1"}'),
        (b'{"data":{"id":"1"}}{"data":{"id":"2"}}', '{"data":{"id":"1"}}{"data":{"id":"2"}}'),
        (b"<html><h1>Over\tcapacity</h1></html>", "Over capacity"),
        (b"\r\r", ""),
        (b"[" * 100_000, "[" * 100_000),
    ],
    ids=lambda part: repr(part[:20]),
)
def test_a_line_that_is_not_json(line: bytes, text: str) -> None:
    expected = f"a line that is not a JSON object: {text}"
    assert x.classify(line) == (Kind.OTHER, expected)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"data":{}}', '{"data":{}}'),
        ('{"data":{"id":7}}', '{"data":{"id":7}}'),
        ('{"data":{"id":""}}', '{"data":{"id":""}}'),
        ('{"data":{"id":null}}', '{"data":{"id":null}}'),
        ('{"data":[{"id":"7"}]}', '{"data":[{"id":"7"}]}'),
        ('{"data":null,"meta":1}', '{"data":null,"meta":1}'),
        ('{"data":{"text":"operational-disconnect, connection_issue"}}', None),
        ('{"errors":{"title":"operational-disconnect"}}', None),
        ('{"errors":[{"title":"Not Found Error"}]}', "Not Found Error"),
        ('{"errors":[],"title":"News","detail":"of X"}', "News: of X"),
        ('{"errors":7,"title":"News"}', "News"),
    ],
)
def test_a_message_without_an_id(line: str, text: str | None) -> None:
    expected = f"a message without a tweet ID: {line if text is None else text}"
    assert x.classify(line.encode()) == (Kind.OTHER, expected)


@pytest.mark.parametrize(("size", "is_held"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_a_line_over_1_mib_is_not_held(size: int, is_held: bool) -> None:
    frame = b'{"data":{"id":"1","text":""}}'
    line = frame.replace(b'""', b'"%b"' % (b"x" * (size - len(frame))))
    [found, end] = LineSplitter(x.MAX_LINE_BYTES).feed(line + b"\n\r\n")
    assert end == b"\r"
    expected = (Kind.TWEET, "1") if is_held else (Kind.OTHER, "a line over 1 MiB")
    assert x.classify(found) == expected


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (as_json(PARTIAL_ERROR), "Not Found Error: a user is gone"),
        (as_json({"title": "A", "errors": [{"message": "B"}, {"message": "C"}]}), "A: B: C"),
        (as_json({"title": "A", "detail": "", "message": None, "status": 7}), "A"),
        (as_json({"title": ["A"], "detail": 1}), "['A']: 1"),
        (b"<html><title>No</title>\n<p>by the\x1b[31m  proxy\x07</html>", "No by the [31m proxy"),
        (b"", ""),
    ],
)
def test_the_words_of_x(body: bytes, text: str) -> None:
    assert x.error_text(body) == text


# ------------------------------------------------------------------ how long to wait


def backoff_with(clock: Clock, second: float = 1.0) -> Any:
    return x.Backoff(second, clock, clock)


def pauses(rule: Any, count: int, second: float = 1.0) -> Iterator[float]:
    """The waits after so many failures in a row, so far apart that none is metered."""
    clock = Clock()
    backoff = backoff_with(clock, second)
    for _ in range(count):
        clock.now += x.CONNECT_WINDOW
        yield backoff.next_wait(rule)


@pytest.mark.parametrize("second", [1.0, 0.1])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (x.AT_ONCE, [0, 0, 0]),
        (x.NO_BACKFILL, [0, 0, 0]),
        (x.UNREACHABLE, [0.25, 0.5, 0.75, 1.0, 1.25]),
        (x.NETWORK, [0.25, 0.5, 0.75, 1.0, 1.25]),
        (x.HTTP, [5, 10, 20, 40, 80, 160]),
        (x.RATE_LIMIT, [60, 120, 240, 480]),
    ],
    ids=lambda value: value.name if isinstance(value, x.Rule) else "",
)
def test_the_waits_grow_as_x_asks(rule: Any, expected: list[float], second: float) -> None:
    for _ in range(50):
        for pause, wait in zip(pauses(rule, len(expected), second), expected, strict=True):
            assert wait * second <= pause <= 1.2 * wait * second


@pytest.mark.parametrize(
    ("rule", "first", "longest"),
    [
        (x.NETWORK, 0.25, 16),
        (x.UNREACHABLE, 0.25, 16),
        (x.HTTP, 5, 320),
        (x.RATE_LIMIT, 60, 960),
    ],
    ids=lambda value: value.name if isinstance(value, x.Rule) else "",
)
def test_the_waits_are_bounded_and_spread(rule: Any, first: float, longest: float) -> None:
    waits = [x.jittered_wait(rule, 1) for _ in range(100)]
    assert first <= min(waits) < 1.1 * first < max(waits) <= 1.2 * first
    late = list(pauses(rule, 2000))[-100:]
    assert longest / 1.2 <= min(late) < 1.1 * longest / 1.2 < max(late) <= longest
    assert min(len(set(waits)), len(set(late))) > 90


def test_faults_of_another_kind_do_not_add_up_and_a_tweet_starts_all_again() -> None:
    clock = Clock()
    backoff = backoff_with(clock)

    def pause(rule: Any) -> float:
        clock.now += x.CONNECT_WINDOW
        return float(backoff.next_wait(rule))

    found = [pause(rule) for rule in (x.HTTP, x.NETWORK, x.HTTP, x.NETWORK, x.RATE_LIMIT)]
    backoff.forget_failures()
    found += [pause(rule) for rule in (x.HTTP, x.NETWORK, x.RATE_LIMIT, x.HTTP)]
    expected = [5, 0.25, 10, 0.5, 60, 5, 0.25, 60, 10]
    for each, wait in zip(found, expected, strict=True):
        assert wait <= each <= 1.2 * wait


def test_only_a_connection_that_brought_something_is_resumed_at_once() -> None:
    backoff = backoff_with(Clock())
    assert 0.25 <= backoff.next_wait(x.NETWORK) <= 0.3
    backoff.is_working = True
    assert backoff.next_wait(x.NETWORK) == 0
    assert 0.5 <= backoff.next_wait(x.NETWORK) <= 0.6, "the next one has not brought anything yet"
    backoff.is_working = True
    assert 5 <= backoff.next_wait(x.HTTP) <= 6, "X has asked for a wait"
    assert not backoff.is_working


def test_not_before_the_time_that_x_names() -> None:
    clock, wall_clock = Clock(5.0), Clock()
    for second in (1.0, 0.01):
        backoff = x.Backoff(second, clock, wall_clock)
        assert backoff.next_wait(x.AT_ONCE, wall_clock.now + 4000) == 4000
        assert backoff.next_wait(x.RATE_LIMIT, wall_clock.now + 900) == 900
        assert backoff.next_wait(x.AT_ONCE, wall_clock.now - 4000) == 0
    clock.now += x.CONNECT_WINDOW
    pause = x.Backoff(1.0, clock, wall_clock).next_wait(x.RATE_LIMIT, wall_clock.now + 30)
    assert 60 <= pause <= 72, "X's own wait is longer"


def test_ten_connections_that_end_at_once_fill_three_minutes() -> None:
    clock = Clock()
    backoff = backoff_with(clock, 0.5)
    assert [backoff.next_wait(x.AT_ONCE) for _ in range(10)] == [0] * 9 + [90]
    clock.now += 30
    assert backoff.next_wait(x.AT_ONCE) == 60
    clock.now += 60
    assert [backoff.next_wait(x.AT_ONCE) for _ in range(9)] == [0] * 8 + [30]


def connects(rules: list[Any], seed: int, count: int) -> list[float]:
    """The times at which X sees a connect, in a series of ends by these rules at random."""
    chance = random.Random(seed)
    clock = Clock()
    backoff = backoff_with(clock)
    seen = []
    for _ in range(count):
        rule = chance.choice(rules)
        if rule is not x.UNREACHABLE:
            seen.append(clock.now)
            clock.now += chance.choice([0, 0, 0, 0.01, 1, 30])  # so long the connection lasts
            backoff.is_working = chance.random() < 0.5
        if backoff.is_working and chance.random() < 0.5:
            backoff.forget_failures()
        clock.now += backoff.next_wait(rule, clock.now + chance.choice([-1, -1, -1, 3]))
    return seen


@pytest.mark.parametrize(
    "rules",
    [
        [x.AT_ONCE],
        [x.AT_ONCE, x.NETWORK],
        [x.AT_ONCE, x.UNREACHABLE],
        [x.NETWORK, x.NO_BACKFILL, x.UNREACHABLE],
        [*[x.AT_ONCE] * 20, *PACED],
    ],
    ids=lambda rules: f"{len(rules)} rules",
)
def test_no_more_than_50_connects_in_15_minutes(rules: list[Any]) -> None:
    """They are spread: no more than 10 in 3 minutes."""
    for seed in range(10):
        times = connects(rules, seed, 2000)
        for count, seconds in ((10, 180), (50, 900)):
            shortest = min(
                after - before for before, after in zip(times, times[count:], strict=False)
            )
            assert seconds - 1e-6 <= shortest < 1.2 * seconds, seed


def test_connects_that_x_never_saw_are_not_metered() -> None:
    clock = Clock()
    backoff = backoff_with(clock)
    for failures in range(1, 30):
        pause = backoff.next_wait(x.UNREACHABLE)
        assert 0.25 * failures <= pause <= 0.3 * failures
    assert backoff.next_wait(x.AT_ONCE) == 0, "nor do they count with those that it saw"


# ------------------------------------------------------------------ what a gap has missed


def gap_with(clock: Clock, second: float = 1.0) -> Any:
    return x.Gap(True, second, clock)


def hear(gap: Any, clock: Clock, seconds: float) -> None:
    """Something comes now, and each second for so many seconds."""
    gap.data_received()
    end = clock.now + seconds
    while clock.now < end:
        clock.now += min(1, end - clock.now)
        gap.data_received()


def test_nothing_is_asked_for_before_something_has_come() -> None:
    clock = Clock()
    gap = gap_with(clock)
    for seconds in (0, 1, 100, 100_000):
        clock.now += seconds
        assert gap.begin_connection() is None
    gap.data_received()
    assert gap.begin_connection() == 1


@pytest.mark.parametrize("second", [1.0, 0.05])
@pytest.mark.parametrize(
    ("seconds", "minutes"),
    [
        *((0, 1), (1, 1), (60, 1), (61, 2), (120, 2), (121, 3), (180, 3), (181, 4), (240, 4)),
        *((241, 5), (300, 5), (301, 5), (3600, 5), (1_000_000, 5)),
    ],
)
def test_the_minutes_missed_are_asked_for(seconds: int, minutes: int, second: float) -> None:
    clock = Clock()
    gap = gap_with(clock, second)
    assert gap.begin_connection() is None
    hear(gap, clock, 0)
    clock.now += (seconds - 0.5) * second if seconds else 0
    assert gap.begin_connection() == minutes


def test_what_a_short_connection_did_not_bring_is_asked_for_again() -> None:
    clock = Clock()
    gap = gap_with(clock)
    assert gap.begin_connection() is None
    hear(gap, clock, 100)
    clock.now += 70
    assert gap.begin_connection() == 2
    hear(gap, clock, x.SILENCE - 1)
    assert gap.begin_connection() == 2, "91 s are missing: it has not brought them all yet"
    hear(gap, clock, x.SILENCE - 1)
    clock.now += 10
    assert gap.begin_connection() == 3, "122 s are missing"
    hear(gap, clock, x.SILENCE)
    clock.now += 50
    assert gap.begin_connection() == 1, "after so long it has caught up"


def test_catching_up_begins_with_the_connect_however_late_something_comes() -> None:
    clock = Clock()
    gap = gap_with(clock)
    assert gap.begin_connection() is None
    hear(gap, clock, 100)
    clock.now += 65
    assert gap.begin_connection() == 2
    clock.now += 15
    hear(gap, clock, x.SILENCE - 15)
    assert gap.begin_connection() == 1


def test_the_first_connection_has_nothing_to_catch_up_with() -> None:
    clock = Clock()
    gap = gap_with(clock)
    assert gap.begin_connection() is None
    hear(gap, clock, 5)
    clock.now += 58
    assert gap.begin_connection() == 1


def test_a_connection_that_brought_nothing_fills_no_gap() -> None:
    clock = Clock()
    gap = gap_with(clock)
    gap.data_received()
    clock.now += 50
    assert gap.begin_connection() == 1
    clock.now += 50
    assert gap.begin_connection() == 2


@pytest.mark.parametrize("has_backfilled", [False, True])
def test_what_x_dropped_while_kafka_held_us_up_is_asked_for(has_backfilled: bool) -> None:
    clock = Clock()
    gap = gap_with(clock)
    assert gap.begin_connection() is None
    hear(gap, clock, 100)
    if has_backfilled:
        assert gap.begin_connection() == 1
        hear(gap, clock, 100)
    clock.now += 65  # Kafka takes nothing; what then comes was on its way for so long
    hear(gap, clock, 5)
    assert gap.begin_connection() == 2
    hear(gap, clock, x.SILENCE)
    assert gap.begin_connection() == 1


def test_after_it_was_held_up_it_catches_up_on_the_same_connection_too() -> None:
    clock = Clock()
    gap = gap_with(clock)
    assert gap.begin_connection() is None
    hear(gap, clock, 100)
    clock.now += 65
    hear(gap, clock, x.SILENCE)
    assert gap.begin_connection() == 1


def test_a_silence_within_x_own_is_no_hold_up() -> None:
    clock = Clock()
    gap = gap_with(clock)
    assert gap.begin_connection() is None
    for _ in range(10):
        hear(gap, clock, 0)
        clock.now += x.SILENCE
    assert gap.begin_connection() == 1


def test_ids_are_remembered_but_not_for_ever() -> None:
    gap = gap_with(Clock())
    assert not gap.seen_before("the first")
    assert gap.seen_before("the first")
    for number in range(x.MAX_SEEN_IDS - 1):
        assert not gap.seen_before(str(number))
    assert gap.seen_before("the first")
    assert not gap.seen_before("one more")
    assert not gap.seen_before("the first"), "it has been pushed out"
    assert gap.seen_before(str(x.MAX_SEEN_IDS - 2))


def test_without_backfill_nothing_is_asked_for_nor_remembered() -> None:
    clock = Clock()
    gap = x.Gap(False, 1.0, clock)
    for _ in range(3):
        assert gap.begin_connection() is None
        hear(gap, clock, 30)
        assert not gap.seen_before("7")
        clock.now += 100


def test_what_came_twice_before_backfill_was_refused_stays_known() -> None:
    clock = Clock()
    gap = gap_with(clock)
    gap.data_received()
    assert not gap.seen_before("7")
    gap.backfill = False
    assert gap.begin_connection() is None
    assert gap.seen_before("7")
    assert not gap.seen_before("8")
    assert not gap.seen_before("8")


# ------------------------------------------------------------------ what to publish, what to count


def sieve_with(second: float = 1.0, backfill: bool = False) -> tuple[Any, Any]:
    """A TweetFilter, and its Backoff."""
    backoff = backoff_with(Clock())
    return x.TweetFilter(backoff, x.Gap(backfill, second, Clock()), x.Counts(), second), backoff


def sift(tweet_filter: Any, *lines: bytes | OversizedLine) -> list[tuple[bytes, bytes]]:
    [batch] = tweet_filter.tweets(list(lines))
    return [tuple(event) for event in batch]


def messages(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What was written to standard error, without the script's name."""
    return [line.partition(": ")[2] for line in capfd.readouterr().err.splitlines()]


def test_the_tweets_are_picked_out() -> None:
    tweet_filter, backoff = sieve_with()
    first, second = x_api.tweet(1), x_api.tweet(2)
    odd = rb'{"data":{"id":"\ud800"}}'
    found = sift(tweet_filter, first + b"\r", b"\r", b"", odd, second)
    ids = [json.loads(line)["data"]["id"].encode() for line in (first, second)]
    assert found == [(ids[0], first), (b"?", odd), (ids[1], second)]
    assert backoff.is_working
    assert tweet_filter.counts.text() == " (0 reconnects, 0 skipped)"


def test_what_is_not_a_tweet_is_counted_and_reported_once_a_minute_and_kind(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rubbish: list[bytes | OversizedLine] = [b"[1]", b"[2]", b'{"data":{}}', b'{"a":1}']
    rubbish += [OversizedLine(1 << 21), OversizedLine(1 << 22)]
    expected = [
        "skipped a line that is not a JSON object: [1]",
        'skipped a message without a tweet ID: {"data":{}}',
        "skipped a line over 1 MiB",
    ]
    tweet_filter, backoff = sieve_with(second=3600)
    assert sift(tweet_filter, *rubbish) == sift(tweet_filter, *rubbish) == []
    assert messages(capfd) == expected
    assert tweet_filter.counts.text() == " (0 reconnects, 12 skipped)"
    assert not backoff.is_working, "rubbish is no sign of life"
    tweet_filter, _ = sieve_with(second=0)
    assert sift(tweet_filter, *rubbish) == []
    assert len(messages(capfd)) == 6, "the minute is over each time"


@pytest.mark.parametrize(
    ("message", "reason", "rules"),
    [
        (DISCONNECT, "operational-disconnect: bye", [x.HTTP, x.AT_ONCE, x.AT_ONCE]),
        ({"errors": [DISCONNECT]}, "operational-disconnect: bye", [x.HTTP, x.AT_ONCE, x.AT_ONCE]),
        (TOO_MANY_CONNECTIONS, "ConnectionException: too many", [x.HTTP, x.HTTP, x.HTTP]),
    ],
    ids=["bare", "wrapped", "too many"],
)
def test_what_came_before_a_disconnect_is_published_and_what_follows_is_not(
    message: dict[str, object], reason: str, rules: list[Any]
) -> None:
    """Rubbish, a keep-alive or a tweet come before; only the first is no sign of life."""
    tweet = x_api.tweet(1)
    for before, published, rule in zip(
        (b"[1]", b"\r", tweet), ([], [], [tweet]), rules, strict=True
    ):
        tweet_filter, _ = sieve_with()
        batches = tweet_filter.tweets([before, as_json(message), x_api.tweet(2), b"[2]"])
        assert [line for _, line in next(batches)] == published
        with pytest.raises(x.Disconnected) as end:
            next(batches)
        assert (end.value.reason, end.value.rule, end.value.cuts_line) == (reason, rule, False)
        assert tweet_filter.counts.skipped == (before == b"[1]")


def test_a_tweet_forgets_failures_and_a_keep_alive_does_not() -> None:
    tweet_filter, backoff = sieve_with()
    assert 5 <= backoff.next_wait(x.HTTP) <= 6
    assert sift(tweet_filter, b"\r") == []
    assert 10 <= backoff.next_wait(x.HTTP) <= 12
    assert len(sift(tweet_filter, x_api.tweet(1))) == 1
    assert 5 <= backoff.next_wait(x.HTTP) <= 6


@pytest.mark.parametrize("backfill", [False, True])
def test_only_backfill_looks_for_duplicates(backfill: bool) -> None:
    tweet_filter, _ = sieve_with(backfill=backfill)
    found = sift(tweet_filter, x_api.tweet(1), x_api.tweet(2), x_api.tweet(1), x_api.tweet(1))
    assert len(found) == (2 if backfill else 4)
    note = " (0 reconnects, 0 skipped, 2 duplicates)" if backfill else " (0 reconnects, 0 skipped)"
    assert tweet_filter.counts.text() == note


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        ((0, 0, 0), " (0 reconnects, 0 skipped)"),
        ((1, 1, 1), " (1 reconnect, 1 skipped, 1 duplicate)"),
        ((2, 3, 4), " (2 reconnects, 3 skipped, 4 duplicates)"),
    ],
)
def test_the_counts_in_words(numbers: tuple[int, int, int], note: str) -> None:
    counts = x.Counts()
    counts.reconnects, counts.skipped, counts.duplicates = numbers
    assert counts.text() == note


# ------------------------------------------------------------------ one connection


class Breaking(io.BytesIO):
    """A body that ends with an error."""

    def read1(self, size: int | None = -1) -> bytes:
        block = super().read1(size)
        if not block:
            raise ConnectionResetError("reset by X")
        return block


def answer(body: bytes | io.BytesIO = b"", status: int = 200, **headers: str) -> requests.Response:
    """An answer as requests gives it, but from no socket."""
    file = body if isinstance(body, io.BytesIO) else io.BytesIO(body)
    response = requests.Response()
    response.status_code, response.reason = status, responses[status]
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    response.raw = urllib3.HTTPResponse(file, status=status, preload_content=False)
    return response


def end_of(connect: Callable[[int | None], Any], minutes: int | None = None) -> tuple[Any, Any]:
    """The lines that a connection brings, and the Disconnected with which it ends."""
    lines: list[bytes] = []
    try:
        for block in x.read_connection(connect, minutes, Stop()):
            lines += block
    except x.Disconnected as end:
        return lines, end
    pytest.fail(f"it has ended without a reason, after {lines}")


@pytest.mark.parametrize(
    ("tail", "cuts_line"),
    [(b"", False), (b"c", True), (b"c\r", True), (b"\r", False), (b"x" * (2 << 20), True)],
    ids=["none", "half a line", "without its newline", "half a keep-alive", "of a huge line"],
)
@pytest.mark.parametrize(
    ("body", "reason"),
    [(io.BytesIO, "X ended the stream"), (Breaking, "reset by X")],
    ids=["end", "reset"],
)
def test_whole_lines_come_before_the_end(
    body: type[io.BytesIO], reason: str, tail: bytes, cuts_line: bool
) -> None:
    lines, end = end_of(lambda _: answer(body(b"a\r\n\r\nb\r\n" + tail)))
    assert lines == [b"a\r", b"\r", b"b\r"]
    assert (end.reason, end.rule, end.cuts_line) == (reason, x.NETWORK, cuts_line)
    assert end.not_before == 0


@pytest.mark.parametrize(
    ("error", "rule", "reason"),
    [
        (
            requests.ConnectionError(
                MaxRetryError(
                    urllib3.HTTPConnectionPool("localhost"),
                    "/",
                    NewConnectionError(urllib3.connection.HTTPConnection("x"), "It is refused."),
                )
            ),
            x.UNREACHABLE,
            "It is refused",
        ),
        (
            requests.ConnectTimeout(
                MaxRetryError(
                    urllib3.HTTPConnectionPool("localhost"), "/", ConnectTimeoutError("too slow")
                )
            ),
            x.UNREACHABLE,
            "too slow",
        ),
        (requests.ReadTimeout("Read timed out."), x.NETWORK, "Read timed out"),
        (requests.exceptions.InvalidHeader("an\x1b[31m odd\r\none"), x.NETWORK, "an [31m odd one"),
        (OSError("no route"), x.NETWORK, "no route"),
        (ValueError("an odd port"), x.NETWORK, "an odd port"),
    ],
    ids=["refused", "connect", "read", "header", "route", "value"],
)
def test_an_error_is_only_a_reason_to_reconnect(error: Exception, rule: Any, reason: str) -> None:
    def connect(_: int | None) -> requests.Response:
        raise error

    lines, end = end_of(connect)
    assert lines == []
    assert (end.reason, end.rule, end.cuts_line) == (reason, rule, False)


def test_a_bug_is_not_taken_for_a_disconnect() -> None:
    def connect(_: int | None) -> requests.Response:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        next(x.read_connection(connect, None, Stop()))


PROBLEM = as_json({"title": "Title", "detail": "and detail"})
USED_UP = as_json({"title": "UsageCapExceeded", "detail": "Usage cap exceeded: Monthly"})
FATAL = [
    (400, PROBLEM, 2, "400 Title: and detail. A parameter is invalid. Check --param."),
    (401, b"", 1, "401 Unauthorized. The bearer token is invalid. Check BEARER_TOKEN."),
    (
        403,
        PROBLEM,
        1,
        "403 Title: and detail. "
        "The app has no access to the stream. X sells it to Enterprise accounts.",
    ),
    (404, b"", 1, "404 Not Found. There is no stream at this URL. Check STREAM_URL."),
    (
        429,
        USED_UP,
        1,
        "429 UsageCapExceeded: Usage cap exceeded: Monthly. "
        "The plan's tweets are used up. Wait for its next period, or extend it.",
    ),
]


@pytest.mark.parametrize(("status", "body", "exit_status", "message"), FATAL)
def test_what_x_refuses_for_good_ends_the_script(
    status: int,
    body: bytes,
    exit_status: int,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        next(x.read_connection(lambda _: answer(body, status), None, Stop()))
    assert end.value.code == exit_status
    assert messages(capfd) == [f"X refuses: {message}"]


def test_each_refusal_for_good_is_tested() -> None:
    assert {status for status, *_ in FATAL} == set(x.REFUSALS)


@pytest.mark.parametrize(
    ("status", "body", "minutes", "rule", "reason"),
    [
        (400, PROBLEM, 3, x.NO_BACKFILL, "400 Title: and detail; continuing without backfill"),
        (429, PROBLEM, None, x.RATE_LIMIT, "429 Title: and detail"),
        (429, b"", 1, x.RATE_LIMIT, "429 Too Many Requests"),
        (302, b"", None, x.HTTP, "302 Found"),
        (500, b"", None, x.HTTP, "500 Internal Server Error"),
        (503, b"<h1>Over\ncapacity</h1>", None, x.HTTP, "503 Over capacity"),
    ],
)
def test_what_x_refuses_for_now(
    status: int, body: bytes, minutes: int | None, rule: Any, reason: str
) -> None:
    lines, end = end_of(lambda _: answer(body, status), minutes)
    assert (lines, end.reason, end.rule) == ([], reason, rule)
    assert (end.not_before, end.cuts_line) == (0, False)


def test_what_has_come_of_a_refusal_is_shown_if_it_breaks_off() -> None:
    _, end = end_of(lambda _: answer(Breaking(b"half a"), 503))
    assert end.reason == "503 half a"


def test_no_more_than_64_kb_of_a_refusal_are_read() -> None:
    body = io.BytesIO(b"x" * (10 << 20))
    _, end = end_of(lambda _: answer(body, 503))
    assert len(end.reason) <= 2 * x.BLOCK_BYTES


@pytest.mark.parametrize("reset", ["", "soon", "-1", "1e9", "9999999999", "99999999999", "１２"])
def test_a_reset_that_cannot_be_is_ignored(reset: str) -> None:
    assert x.reset_time(answer(status=429, x_rate_limit_reset=reset)) == 0


def test_the_reset_is_waited_for_and_spread() -> None:
    for reset in (100, int(time.time()) + 900):
        response = answer(status=429, x_rate_limit_reset=str(reset))
        moments = [x.reset_time(response) for _ in range(100)]
        assert reset <= min(moments) < reset + 1 < reset + 4 < max(moments) <= reset + 5


@pytest.mark.parametrize(("status", "has_reset"), [(429, True), (503, False)])
def test_only_a_rate_limit_has_a_reset(status: int, has_reset: bool) -> None:
    reset = int(time.time()) + 900
    _, end = end_of(lambda _: answer(status=status, x_rate_limit_reset=str(reset)))
    earliest, latest = (reset, reset + 5) if has_reset else (0, 0)
    assert earliest <= end.not_before <= latest


# ------------------------------------------------------------------ all together


class Script:
    """What X does, as a function to connect with: an answer each time; then the script is stopped.

    `asked` has the minutes of backfill that each connect asked for. The waits take no time.
    """

    def __init__(self, *steps: Any) -> None:
        self.clock, self.stop = Clock(), Stop()
        self.asked: list[int | None] = []
        self._steps = iter(steps)

    def __call__(self, minutes: int | None) -> requests.Response:
        self.asked.append(minutes)
        step = next(self._steps, None)
        if step is None:
            self.stop.request()
            raise OSError("the script is over")
        if isinstance(step, Exception):
            raise step
        return answer(*step) if isinstance(step, tuple) else answer(step)

    def tweets(self, counts: Any, backfill: bool = False) -> Iterator[tuple[bytes, bytes]]:
        backoff = x.Backoff(0, self.clock, self.clock)
        tweet_filter = x.TweetFilter(backoff, x.Gap(backfill, 1.0, self.clock), counts)
        for batch in x.stream_tweets(self, backoff, tweet_filter, self.stop):
            yield from batch


def body_of(*numbers: int) -> bytes:
    """The lines of these tweets."""
    return b"".join(x_api.tweet(number) + b"\r\n" for number in numbers)


def test_the_stream_goes_on_over_as_many_connections_as_it_takes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = Script(
        body_of(1, 2) + b'{"data"',
        OSError("no route"),
        (PROBLEM, 503),
        b"\r\n" + as_json({"errors": [DISCONNECT]}) + b"\r\n" + body_of(9),
        Breaking(body_of(2, 3)),
    )
    counts = x.Counts()
    found = [line for _, line in script.tweets(counts)]
    assert found == [x_api.tweet(number) for number in (1, 2, 2, 3)]
    assert counts.text() == " (5 reconnects, 1 skipped)"
    assert messages(capfd) == [
        "skipped an incomplete line",
        "X ended the stream; reconnecting in 0.0 s",
        "no route; reconnecting in 0.0 s",
        "503 Title: and detail; reconnecting in 0.0 s",
        "operational-disconnect: bye; reconnecting in 0.0 s",
        "reset by X; reconnecting in 0.0 s",
        "the script is over; reconnecting in 0.0 s",
    ]
    assert script.asked == [None] * 6


def test_backfill_is_not_asked_for_again_once_x_has_refused_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = Script(b"", body_of(1), body_of(1, 2), (PROBLEM, 400), body_of(3), (b"", 503))
    counts = x.Counts()
    found = [line for _, line in script.tweets(counts, backfill=True)]
    assert found == [x_api.tweet(number) for number in (1, 2, 3)]
    assert script.asked == [None, None, 1, 1, None, None, None]
    assert counts.text() == " (6 reconnects, 0 skipped, 1 duplicate)"
    expected = "400 Title: and detail; continuing without backfill; reconnecting in 0.0 s"
    assert messages(capfd).count(expected) == 1


def test_it_counts_as_a_reconnect_only_if_it_connects_again() -> None:
    script, counts = Script(), x.Counts()
    assert list(script.tweets(counts)) == []
    assert (script.asked, counts.reconnects) == ([None], 0)


def test_a_refusal_for_good_comes_after_all_that_was_read(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = Script(body_of(1, 2), (b"", 401))
    tweets = script.tweets(x.Counts())
    assert [line for _, line in itertools.islice(tweets, 2)] == [x_api.tweet(1), x_api.tweet(2)]
    with pytest.raises(SystemExit):
        next(tweets)
    assert re.fullmatch("X refuses: 401 .*", messages(capfd)[-1])


def test_the_waits_of_a_real_backoff_are_those_of_the_system_clocks() -> None:
    backoff = x.Backoff()
    assert [backoff.next_wait(x.AT_ONCE) for _ in range(9)] == [0] * 9
    assert 179 < backoff.next_wait(x.AT_ONCE) <= 180
    assert math.isclose(backoff.next_wait(x.AT_ONCE, time.time() + 5000), 5000, abs_tol=1)
