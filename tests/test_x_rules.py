"""The parts of twitter-stream.py that implement X's rules, with the tests' own clock, no sockets.

test_twitter_stream.py runs them together, as a process.
"""

import importlib
import io
import itertools
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import formatdate
from http.client import responses
from typing import Any

import x_api
from cli import Stop, Throttle
from delivery import LineSplitter, OversizedLine, Stopped

import pytest
import requests
import urllib3
from urllib3.exceptions import MaxRetryError, ProxyError

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


@pytest.mark.parametrize("line", [b"\r", b"", b" \r", b"\t", b"\r\r", b" "])
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


@pytest.mark.parametrize(
    "text",
    [
        b"Caf\xe9",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"raw\ttab",
        b"raw\x00NUL",
        b"\xff\xfe",
        b"a\rb",
        rb"\x41 \' \u12 \\ \u00e9",
        b'","number":%b,"text":"' % (b"9" * 5000),
    ],
    ids=["latin-1", "CESU-8", "tab", "NUL", "no UTF-8", "CR", "escapes", "a number"],
)
def test_a_tweet_may_have_bytes_that_are_not_strict_json(text: bytes) -> None:
    line = b'{"data":{"id":"12","text":"%b"}}' % text
    assert x.classify(line) == x.classify(b"\xef\xbb\xbf" + line) == (Kind.TWEET, "12")


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
        {"type": f"{DISCONNECT['type']}/", "title": "News", "detail": "bye"},
    ],
    ids=["bare", "wrapped", "not the first", "by its title", "by its type", "with a slash"],
)
def test_x_disconnects_operationally(message: dict[str, object]) -> None:
    for end in (b"", b"\r"):
        kind, text = x.classify(as_json(message) + end)
        assert kind is Kind.DISCONNECT
        assert text.endswith("bye")
    assert x.classify(as_json(DISCONNECT)).text == "operational-disconnect: bye"


STREAMING_CONNECTION = "https://api.x.com/2/problems/streaming-connection"
FREE = f" ({x.FREE_CONNECTIONS})"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (TOO_MANY_CONNECTIONS, "ConnectionException: too many"),
        ({"errors": [TOO_MANY_CONNECTIONS]}, "ConnectionException: too many"),
        ({"connection_issue": "TooManyConnections", "detail": "bye"}, "bye"),
        ({"title": "ConnectionException"}, "ConnectionException"),
        ({"type": STREAMING_CONNECTION, "title": "News"}, "News"),
    ],
    ids=["bare", "wrapped", "by its issue", "by its title", "by its type"],
)
def test_x_disconnects_as_there_are_too_many_connections(
    message: dict[str, object], text: str
) -> None:
    assert x.classify(as_json(message)) == (Kind.TOO_MANY_CONNECTIONS, text + FREE)


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
        (b"[" * 100_000, "[" * x.PAGE_BYTES),
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
        (b"<style>p { color: red }</style><p>Over<SCRIPT>if (1 < 2) {}</SCRIPT> it", "Over it"),
        (b"", ""),
    ],
)
def test_the_words_of_x(body: bytes, text: str) -> None:
    assert x.error_text(body) == text


# ------------------------------------------------------------------ how long to wait


def backoff_with(clock: Clock, second: float = 1.0) -> Any:
    return x.Backoff(second, clock)


def pauses(rule: Any, count: int, second: float = 1.0) -> Iterator[float]:
    """The waits after `count` failures in a row, far enough apart that none is metered."""
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
        (x.RATE_LIMIT, 60, 900),
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
    backoff.tweet_received()
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


@pytest.mark.parametrize("second", [1.0, 0.01])
def test_no_wait_is_shorter_than_x_asks_nor_longer_than_its_window(second: float) -> None:
    clock = Clock()
    backoff = backoff_with(clock, second)
    assert backoff.next_wait(x.AT_ONCE, 400 * second) == 400 * second
    assert backoff.next_wait(x.AT_ONCE, -4000) == 0
    for _ in range(100):
        clock.now += 1000 * second
        assert backoff.next_wait(x.RATE_LIMIT, 901 * second) == 900 * second
    for rule in PACED:
        assert max(pauses(rule, 100, second)) <= 900 * second
    pause = backoff_with(clock).next_wait(x.RATE_LIMIT, 30)
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
    """The times at which X sees a connect, when connections end by these rules at random."""
    chance = random.Random(seed)
    clock = Clock()
    backoff = backoff_with(clock)
    seen = []
    for _ in range(count):
        rule = chance.choice(rules)
        if rule is not x.UNREACHABLE:
            seen.append(clock.now)
            clock.now += chance.choice([0, 0, 0, 0.01, 1, 30])  # how long the connection lasts
            backoff.is_working = chance.random() < 0.5
        if backoff.is_working and chance.random() < 0.5:
            backoff.tweet_received()
        clock.now += backoff.next_wait(rule, chance.choice([-1, -1, -1, 3]))
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
    """They are spread out: no more than 10 in 3 minutes."""
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
    assert backoff.next_wait(x.AT_ONCE) == 0, "nor do they count towards those it saw"


def refused(status: int, is_certain: bool = False) -> Any:
    return x.Refused("no", status, is_certain)


def test_before_the_first_tweet_a_refusal_is_final_and_afterwards_ten_in_a_row() -> None:
    backoff = backoff_with(Clock())
    assert backoff.note_refusal(refused(403))
    backoff.tweet_received()
    for _ in range(3):
        for status in (400, 401, 403, 404, 400, 400, 403, 401, 401):
            assert not backoff.note_refusal(refused(status))
            backoff.next_wait(x.HTTP)
        backoff.tweet_received()
    found = [backoff.note_refusal(refused(404)) for _ in range(10)]
    assert found == [False] * 9 + [True]


def test_ten_refusals_in_a_row_take_longer_than_x_window() -> None:
    waits = list(pauses(x.HTTP, x.MAX_REFUSALS - 1))
    assert x.X_WINDOW < sum(waits) < 30 * 60


def test_x_own_words_are_final_at_once() -> None:
    backoff = backoff_with(Clock())
    backoff.tweet_received()
    assert backoff.note_refusal(refused(402, is_certain=True))


# ------------------------------------------------------------------ what a gap has missed


def gap_with(clock: Clock, second: float = 1.0) -> Any:
    return x.Gap(True, second, clock)


def hear(gap: Any, clock: Clock, seconds: float) -> None:
    """A tweet comes now, and then every second for `seconds` seconds."""
    gap.tweet_received()
    end = clock.now + seconds
    while clock.now < end:
        clock.now += min(1, end - clock.now)
        gap.tweet_received()


def test_nothing_is_asked_for_before_something_has_come() -> None:
    clock = Clock()
    gap = gap_with(clock)
    for seconds in (0, 1, 100, 100_000):
        clock.now += seconds
        assert gap.begin_connection() is None
    gap.tweet_received()
    assert gap.begin_connection() == 1


@pytest.mark.parametrize("second", [1.0, 0.05])
@pytest.mark.parametrize(
    ("seconds", "minutes"),
    [
        *((0, 1), (1, 1), (50, 1), (51, 2), (110, 2), (111, 3), (170, 3), (171, 4), (230, 4)),
        *((231, 5), (300, 5), (301, 5), (3600, 5), (1_000_000, 5)),
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
    assert gap.begin_connection() == 1, "by then it has caught up"


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
    clock.now += 48
    assert gap.begin_connection() == 1


def test_a_connection_that_brought_nothing_fills_no_gap() -> None:
    clock = Clock()
    gap = gap_with(clock)
    gap.tweet_received()
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
    clock.now += 65  # Kafka takes nothing; what comes then was on its way all that time
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


def test_backfill_that_was_refused_is_asked_for_again_at_the_next_gap() -> None:
    clock = Clock()
    gap = gap_with(clock)
    gap.begin_connection()
    hear(gap, clock, 60)
    assert not gap.seen_before("7")
    assert gap.begin_connection() == 1
    gap.backfill_refused()
    assert gap.begin_connection() is None
    hear(gap, clock, 10)
    assert gap.seen_before("7")
    assert gap.begin_connection() == 1


def test_a_connect_that_fails_without_backfill_too_says_nothing_of_backfill() -> None:
    clock = Clock()
    gap = gap_with(clock)
    gap.begin_connection()
    hear(gap, clock, 60)
    for _ in range(2 * x.MAX_BACKFILL_REFUSALS):
        assert gap.begin_connection() == 1
        gap.backfill_refused()
        assert gap.begin_connection() is None
    assert gap.begin_connection() == 1
    clock.now += 30
    assert gap.tweet_received().endswith(" (30 s); asked X for the last minute")


def test_a_keep_alive_counts_only_after_a_tweet() -> None:
    clock = clock_at("14:02:00")
    gap = gap_with(clock)
    gap.begin_connection()
    gap.keep_alive_received()
    assert gap.begin_connection() is None, "nothing has come yet"
    hear(gap, clock, 10)
    for _ in range(3):
        clock.now += 20
        gap.keep_alive_received()
    for minutes in (1, 1, 2, 2, 2, 3, 3, 3, 4, 4):
        clock.now += 20
        assert gap.begin_connection() == minutes
        gap.keep_alive_received()  # and no tweet
    expected = "no tweets from 14:03:10 to 14:06:30 (3 min 20 s); asked X for the last 4 minutes"
    assert gap.tweet_received() == expected


def test_after_three_refusals_in_a_row_of_nothing_but_backfill_it_is_given_up() -> None:
    clock = Clock()
    gap = gap_with(clock)
    gap.begin_connection()
    hear(gap, clock, 60)

    def refuse() -> int | None:
        """Have X refuse backfill; return the minutes that were asked for."""
        minutes: int | None = gap.begin_connection()
        gap.backfill_refused()
        assert gap.begin_connection() is None
        hear(gap, clock, 1)
        return minutes

    assert [refuse(), refuse()] == [1, 1]
    assert gap.begin_connection() == 1
    hear(gap, clock, 1)  # it was accepted, so the count begins again
    assert [refuse(), refuse(), refuse()] == [1, 1, 1]
    assert gap.begin_connection() is None
    assert not gap.seen_before("8")
    assert not gap.seen_before("8"), "what cannot come twice is not remembered"


def clock_at(text: str) -> Clock:
    """A clock set to a local time on 2026-11-25, or on the day in the text."""
    return Clock(datetime.fromisoformat(f"2026-11-25 {text}"[-19:]).timestamp())


def gap_after(
    time_of_day: str, seconds: float, backfill: bool = True, second: float = 1.0
) -> tuple[Any, Clock]:
    """A gap and its clock, after a connection begun at that time with tweets for that long."""
    clock = clock_at(time_of_day)
    gap = x.Gap(backfill, second, clock)
    gap.begin_connection()
    hear(gap, clock, seconds)
    return gap, clock


ASKED_FOR_5 = "asked X for the last 5 minutes"
NOT_ASKED = "not requested again (see --backfill)"


@pytest.mark.parametrize(
    ("backfill", "seconds", "report"),
    [
        (True, 22, None),
        (True, 23, "14:02:33 (23 s); asked X for the last minute"),
        (True, 27 * 60 + 21, f"14:29:31 (27 min 21 s); {ASKED_FOR_5}"),
        (False, 27 * 60 + 21, f"14:29:31 (27 min 21 s); {NOT_ASKED}"),
        (False, 3600, f"15:02:10 (1 h 0 min 0 s); {NOT_ASKED}"),
    ],
)
def test_a_gap_is_reported_once(backfill: bool, seconds: int, report: str | None) -> None:
    gap, clock = gap_after("14:02:00", 10, backfill)
    for _ in range(seconds):
        clock.now += 1
        gap.begin_connection()  # each in vain
    expected = report and f"no tweets from 14:02:10 to {report}"
    assert [gap.tweet_received(), gap.tweet_received()] == [expected, None]
    gap.begin_connection()
    assert gap.tweet_received() is None, "it is over"
    assert gap.unfinished() is None


def test_a_gap_over_midnight_has_dates() -> None:
    gap, clock = gap_after("23:59:50", 0, backfill=False)
    clock.now += 60
    gap.begin_connection()
    times = "2026-11-25 23:59:50 to 2026-11-26 00:00:50"
    assert gap.tweet_received() == f"no tweets from {times} (1 min 0 s); {NOT_ASKED}"


def test_a_gap_that_x_refuses_to_fill_is_reported_so() -> None:
    gap, clock = gap_after("14:02:00", 60)
    for _ in range(x.MAX_BACKFILL_REFUSALS + 1):
        clock.now += 30
        if gap.begin_connection():
            gap.backfill_refused()
            gap.begin_connection()
        assert gap.tweet_received().endswith(" (30 s); X refuses to resend them")


def test_a_gap_that_the_run_does_not_outlive_is_reported_at_its_end() -> None:
    clock = clock_at("14:02:00")
    gap = x.Gap(False, 1.0, clock)
    assert gap.unfinished() is None, "nothing has come yet"
    gap.begin_connection()
    hear(gap, clock, 10)
    clock.now += 22
    assert gap.unfinished() is None
    clock.now += 1
    assert gap.unfinished() is None, "on a connection with tweets it is Kafka that holds it up"
    gap.connection_ended()
    expected = "no tweets from 14:02:10 to 14:02:33 (23 s); the run ended before the stream resumed"
    assert gap.unfinished() == expected


def test_the_length_of_a_gap_is_one_of_x_seconds() -> None:
    gap, clock = gap_after("14:02:00", 0, backfill=False, second=0.1)
    clock.now += 10
    gap.begin_connection()
    assert gap.tweet_received() == f"no tweets from 14:02:00 to 14:02:10 (1 min 40 s); {NOT_ASKED}"


def test_what_comes_late_because_of_kafka_is_no_sign_of_life() -> None:
    """By now X has ended the connection; a little of what it sent before still arrives."""
    gap, clock = gap_after("14:02:00", 10)
    clock.now += 1800
    hear(gap, clock, 5)
    clock.now += 1
    assert gap.begin_connection() == 5
    expected = f"no tweets from 14:02:10 to 14:32:16 (30 min 6 s); {ASKED_FOR_5}"
    assert gap.tweet_received() == expected


# ------------------------------------------------------------------ what the topic remembers


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([100], 100),
        ([100, 110, 120], 120),
        ([0, 100, 110], 0),  # 10 s after a gap it was still catching up
        ([0, 100, 122], 0),
        ([0, 100, 110, 122.1], 122.1),  # this took long enough
        ([0, 300, 302, 330, 331], 0),  # two gaps, neither made up for
        ([0, 300, 320, 330, 340], 340),
        ([5, 5, 5], 5),
    ],
)
def test_a_run_that_ended_while_it_caught_up_leaves_the_gap_open(
    times: list[float], expected: float
) -> None:
    assert x.last_complete_time(times, x.SILENCE) == expected


@pytest.mark.parametrize(
    ("age", "minutes"), [(0, 1), (49, 1), (51, 2), (200, 4), (1000, 5), (-1000, 1)]
)
def test_the_first_connect_asks_for_what_came_after_the_newest_event(
    age: float, minutes: int
) -> None:
    clock = clock_at("14:29:31")
    gap = gap_with(clock)
    gap.resume(x.RecentEvents([clock.now - age], ["1", "2"]))
    assert gap.begin_connection() == minutes
    report = gap.tweet_received()
    assert [gap.seen_before(tweet_id) for tweet_id in "123"] == [True, True, False]
    assert bool(report) == (age > x.SILENCE)
    if age == 1000:
        assert report == f"no tweets from 14:12:51 to 14:29:31 (16 min 40 s); {ASKED_FOR_5}"


# ------------------------------------------------------------------ what to publish, what to count


def sieve_with(second: float = 1.0, backfill: bool = False) -> tuple[Any, Any]:
    """A TweetFilter, and its Backoff."""
    backoff = backoff_with(Clock())
    gap = x.Gap(backfill, second, Clock())
    return x.TweetFilter(backoff, gap, x.Counts(), Throttle(60 * second)), backoff


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
        (TOO_MANY_CONNECTIONS, f"ConnectionException: too many{FREE}", [x.HTTP, x.HTTP, x.HTTP]),
    ],
    ids=["bare", "wrapped", "too many"],
)
def test_what_came_before_a_disconnect_is_published_and_what_follows_is_not(
    message: dict[str, object], reason: str, rules: list[Any]
) -> None:
    """Rubbish, a keep-alive or a tweet comes first; only rubbish is no sign of life."""
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
        ((0, 0, 0, 0), " (0 reconnects, 0 skipped)"),
        ((1, 1, 1, 1), " (1 reconnect, 1 skipped, 1 duplicate, 1 gap)"),
        ((2, 3, 4, 5), " (2 reconnects, 3 skipped, 4 duplicates, 5 gaps)"),
        ((2, 3, 0, 5), " (2 reconnects, 3 skipped, 5 gaps)"),
    ],
)
def test_the_counts_in_words(numbers: tuple[int, int, int, int], note: str) -> None:
    counts = x.Counts()
    counts.reconnects, counts.skipped, counts.duplicates, counts.gaps = numbers
    assert counts.text() == note


# ------------------------------------------------------------------ one connection


class Breaking(io.BytesIO):
    """A body that ends with an error."""

    def read1(self, size: int | None = -1) -> bytes:
        block = super().read1(size)
        if not block:
            raise ConnectionResetError("reset by X")
        return block


class Dripping(io.BytesIO):
    """A body that comes a byte at a time."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(1)


def answer(body: bytes | io.BytesIO = b"", status: int = 200, **headers: str) -> requests.Response:
    """An answer as requests returns it, but not from a socket."""
    file = body if isinstance(body, io.BytesIO) else io.BytesIO(body)
    response = requests.Response()
    response.status_code, response.reason = status, responses[status]
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    response.raw = urllib3.HTTPResponse(file, status=status, preload_content=False)
    return response


class Opener:
    """A StreamOpener without sockets: `connect` provides its responses or errors."""

    target = "x.example"

    def __init__(self, connect: Callable[[int | None], requests.Response]) -> None:
        self._connect = connect
        self.has_reached_x = True
        self.guard = self
        self.has_fired = False

    @contextmanager
    def open(self, minutes: int | None) -> Iterator[requests.Response]:
        yield self._connect(minutes)

    def pause(self) -> None: ...

    def restart(self, at_most: float = 0) -> None: ...


def end_of(opener: Opener, minutes: int | None = None) -> tuple[Any, Any]:
    """The lines that a connection brings, and the Disconnected with which it ends."""
    lines: list[bytes] = []
    try:
        for block in x.read_connection(opener, minutes, Stop()):
            lines += block
    except x.Disconnected as end:
        return lines, end
    pytest.fail(f"it has ended without a reason, after {lines}")


def end_with(body: bytes | io.BytesIO, status: int = 200, **headers: str) -> tuple[Any, Any]:
    return end_of(Opener(lambda _: answer(body, status, **headers)))


TAILS = [b"", b"c", b"c\r", b"\r", b"x" * (2 << 20)]


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
def test_at_a_clean_end_the_last_line_is_a_line_too(tail: bytes) -> None:
    lines, end = end_with(b"a\r\n\r\nb\r\n" + tail)
    assert [len(line) for line in lines] == [len(b"a\r"), 1, 2, *([len(tail)] if tail else [])]
    assert (end.reason, end.rule, end.cuts_line) == ("X ended the stream", x.NETWORK, False)


@pytest.mark.parametrize("has_fired", [False, True])
@pytest.mark.parametrize(
    ("tail", "cuts_line"), list(zip(TAILS, [False, True, True, False, True], strict=True))
)
def test_whole_lines_come_before_a_broken_end(
    tail: bytes, cuts_line: bool, has_fired: bool
) -> None:
    """The guard's shutdown may look like a normal end, but is not."""
    body = b"a\r\n\r\nb\r\n" + tail
    opener = Opener(lambda _: answer(io.BytesIO(body) if has_fired else Breaking(body)))
    opener.has_fired = has_fired
    lines, end = end_of(opener)
    assert lines == [b"a\r", b"\r", b"b\r"]
    reason = "no complete line from X for 22 s" if has_fired else "reset by X"
    assert (end.reason, end.rule, end.cuts_line) == (reason, x.NETWORK, cuts_line)
    assert end.at_least == 0


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html>\n<html><title>Over</title>\n<p>capacity</p></html>",
        b"\xef\xbb\xbf<html>\nOver capacity</html>\n",
        b" \r\n <h1>Over\ncapacity",
    ],
    ids=["HTML", "with a BOM", "after blanks"],
)
@pytest.mark.parametrize("kind", [io.BytesIO, Breaking, Dripping], ids=["", "cut", "bytewise"])
def test_a_page_is_not_a_stream_and_is_reported_in_its_words(
    body: bytes, kind: type[io.BytesIO]
) -> None:
    lines, end = end_with(kind(body), Content_Type="application/json")
    assert [line for line in lines if line.strip()] == []
    assert end.rule is x.HTTP
    assert end.reason == "200, but a web page instead of tweets: Over capacity"


@pytest.mark.parametrize("has_reached_x", [True, False])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(113, "No route to host"), "No route to host"),
        (
            requests.exceptions.ProxyError(
                MaxRetryError(
                    urllib3.HTTPSConnectionPool("localhost"),
                    "/",
                    ProxyError("Unable to connect to proxy", OSError("Tunnel failed: 503 No")),
                )
            ),
            "Tunnel failed: 503 No",
        ),
        (requests.exceptions.InvalidHeader("an\x1b[31m odd\r\none"), "an [31m odd one"),
        (ValueError("an odd port."), "an odd port"),
        (
            ssl.SSLCertVerificationError(1, "[SSL: BAD_THING] certificate is odd (_ssl.c:1006)"),
            "certificate is odd",
        ),
    ],
    ids=["route", "proxy", "header", "value", "certificate"],
)
def test_an_error_is_only_a_reason_to_reconnect(
    error: Exception, reason: str, has_reached_x: bool
) -> None:
    """X counts connects, but not those it never saw."""

    def connect(_: int | None) -> requests.Response:
        raise error

    opener = Opener(connect)
    opener.has_reached_x = has_reached_x
    lines, end = end_of(opener)
    assert lines == []
    if has_reached_x:
        assert (end.reason, end.rule) == (reason, x.NETWORK)
    else:
        assert (end.reason, end.rule) == (f"cannot connect to x.example: {reason}", x.UNREACHABLE)
    assert not end.cuts_line


def test_a_silence_is_called_by_its_name() -> None:
    def connect(_: int | None) -> requests.Response:
        raise requests.ReadTimeout("Read timed out.", TimeoutError())

    assert end_of(Opener(connect))[1].reason == "no complete line from X for 22 s"


def test_a_bug_is_not_taken_for_a_disconnect() -> None:
    def connect(_: int | None) -> requests.Response:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        next(x.read_connection(Opener(connect), None, Stop()))


PROBLEM = as_json({"title": "Title", "detail": "and detail"})
USED_UP = as_json({"title": "UsageCapExceeded", "detail": "Usage cap exceeded: Monthly"})
USED_UP_BY_TYPE = as_json({"errors": [{"type": "https://api.x.com/2/problems/usage-capped"}]})
NO_CREDITS = as_json({"title": "CreditsDepleted", "type": "https://api.x.com/2/problems/credits"})
REFUSED = [
    (400, PROBLEM, 400, False),
    (401, b"", 401, False),
    (402, b"", 402, True),
    (403, PROBLEM, 403, False),
    (404, b"", 404, False),
    (429, USED_UP, 429, True),
    (429, USED_UP_BY_TYPE, 429, True),
    (403, USED_UP_BY_TYPE, 429, True),
    (403, NO_CREDITS, 402, True),
]


@pytest.mark.parametrize(("status", "body", "meaning", "is_certain"), REFUSED)
def test_what_x_refuses(status: int, body: bytes, meaning: int, is_certain: bool) -> None:
    lines, end = end_with(body, status)
    assert lines == []
    assert isinstance(end, x.Refused)
    assert (end.status, end.is_certain, end.rule) == (meaning, is_certain, x.HTTP)
    assert end.reason.startswith(f"{status} ")


def test_each_refusal_is_tested() -> None:
    assert {meaning for _, _, meaning, _ in REFUSED} == set(x.REFUSALS)


@pytest.mark.parametrize(
    ("status", "has_streamed", "exit_status"),
    [(400, False, 2), (400, True, 1), (403, False, 1), (403, True, 1)],
)
def test_a_final_refusal_ends_the_script_with_what_to_do(
    status: int, has_streamed: bool, exit_status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    tweet_filter, backoff = sieve_with()
    if has_streamed:
        backoff.tweet_received()
        for _ in range(x.MAX_REFUSALS - 1):
            tweet_filter.note_end(refused(status))
    with pytest.raises(SystemExit) as end:
        tweet_filter.note_end(refused(status))
    assert end.value.code == exit_status
    how_often = " 10 times in a row" if has_streamed else ""
    assert messages(capfd)[-1] == f"X refuses{how_often}: no. {x.REFUSALS[status]}"


@pytest.mark.parametrize(
    ("status", "body", "minutes", "rule", "reason"),
    [
        (400, PROBLEM, 3, x.NO_BACKFILL, "400 Title: and detail; trying without backfill"),
        (429, PROBLEM, None, x.RATE_LIMIT, "429 Title: and detail"),
        (429, b"", 1, x.RATE_LIMIT, "429 Too Many Requests"),
        (
            429,
            as_json(TOO_MANY_CONNECTIONS),
            1,
            x.HTTP,
            f"429 ConnectionException: too many{FREE}",
        ),
        (302, b"", None, x.HTTP, "302 Found"),
        (500, b"", None, x.HTTP, "500 Internal Server Error"),
        (503, b"<h1>Over\ncapacity</h1>", None, x.HTTP, "503 Over capacity"),
    ],
)
def test_what_x_refuses_for_now(
    status: int, body: bytes, minutes: int | None, rule: Any, reason: str
) -> None:
    lines, end = end_of(Opener(lambda _: answer(body, status)), minutes)
    assert (lines, end.reason, end.rule) == ([], reason, rule)
    assert (end.at_least, end.cuts_line) == (0, False)
    assert not isinstance(end, x.Refused)


@pytest.mark.parametrize(
    ("remaining", "rule"), [("47", x.HTTP), (None, x.HTTP), ("0", x.RATE_LIMIT)]
)
def test_too_many_connections_are_no_rate_limit_unless_that_is_used_up_too(
    remaining: str | None, rule: Any
) -> None:
    headers = {"x_rate_limit_reset": str(int(time.time()) + 840)}
    if remaining:
        headers["x_rate_limit_remaining"] = remaining
    _, end = end_with(as_json(TOO_MANY_CONNECTIONS), 429, **headers)
    assert end.rule is rule
    assert bool(end.at_least) == (rule is x.RATE_LIMIT)


def test_what_has_come_of_a_refusal_is_shown_if_it_breaks_off() -> None:
    _, end = end_with(Breaking(b"half a"), 503)
    assert end.reason == "503 half a"


def test_no_more_than_64_kb_of_a_refusal_are_read() -> None:
    _, end = end_with(b"x" * (10 << 20), 503)
    assert len(end.reason) <= 2 * x.BLOCK_BYTES


def limit(reset: object, remaining: str = "0", date: float | None = None) -> dict[str, str]:
    headers = {"x-rate-limit-reset": str(reset), "x-rate-limit-remaining": remaining}
    return headers if date is None else {**headers, "Date": formatdate(date, usegmt=True)}


@pytest.mark.parametrize(
    "reset", ["", "soon", "-1", "1e9", "9999999999", "99999999999", "１２", "900"]
)
def test_a_reset_that_cannot_be_is_ignored(reset: str) -> None:
    assert x.seconds_until_reset(limit(reset)) == 0


def test_the_reset_is_waited_for_and_spread() -> None:
    reset = int(time.time()) + 900
    waits = [x.seconds_until_reset(limit(reset)) for _ in range(100)]
    assert 899 <= min(waits) < 901 < 903 < max(waits) <= 905


def test_a_reset_without_what_remains_is_waited_for() -> None:
    reset = int(time.time()) + 900
    assert 899 <= x.seconds_until_reset({"x-rate-limit-reset": str(reset)}) <= 905


def test_a_limit_that_is_not_used_up_is_not_waited_for() -> None:
    assert x.seconds_until_reset(limit(int(time.time()) + 900, remaining="47")) == 0


@pytest.mark.parametrize("hours", [-30, -3, 0, 3, 30])
def test_the_clock_of_x_counts_not_that_of_this_machine(hours: int) -> None:
    now = time.time() + 3600 * hours
    assert 299 <= x.seconds_until_reset(limit(int(now) + 300, date=now)) <= 306


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S -0000", "%a %b %d %H:%M:%S %Y"])
def test_a_date_is_utc_whether_it_says_so_or_not(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    now = time.time() + 7200
    headers = {**limit(int(now) + 300), "Date": time.strftime(form, time.gmtime(now))}
    seconds = x.seconds_until_reset(headers)
    monkeypatch.undo()
    time.tzset()
    assert 299 <= seconds <= 306


@pytest.mark.parametrize("date", ["", "now", "Wed, 99 Nov 2026 25:00:00 GMT"])
def test_without_a_date_of_x_this_machine_s_clock_counts(date: str) -> None:
    headers = {**limit(int(time.time()) + 300), "Date": date}
    assert 299 <= x.seconds_until_reset(headers) <= 306


@pytest.mark.parametrize(("status", "has_reset"), [(429, True), (503, False)])
def test_only_a_rate_limit_has_a_reset(status: int, has_reset: bool) -> None:
    _, end = end_with(b"", status, x_rate_limit_reset=str(int(time.time()) + 900))
    assert bool(end.at_least) == has_reset


# ------------------------------------------------------------------ all together


class Script(Opener):
    """What X does: one answer per connect; then the script is stopped.

    `asked` has the minutes of backfill that each connect asked for. The waits take no time.
    """

    def __init__(self, *steps: Any) -> None:
        super().__init__(self.next_answer)
        self.clock, self.stop = Clock(), Stop()
        self.asked: list[int | None] = []
        self._steps = iter(steps)

    def next_answer(self, minutes: int | None) -> requests.Response:
        self.asked.append(minutes)
        step = next(self._steps, None)
        if step is None:
            self.stop.request()
            raise OSError("the script is over")
        if isinstance(step, Exception):
            raise step
        return answer(*step) if isinstance(step, tuple) else answer(step)

    def tweets(self, counts: Any, backfill: bool = False) -> Iterator[tuple[bytes, bytes]]:
        gap = x.Gap(backfill, 1.0, self.clock)
        tweet_filter = x.TweetFilter(x.Backoff(0, self.clock), gap, counts, Throttle(0))
        with suppress(Stopped):
            for batch in x.stream_tweets(self, tweet_filter, self.stop):
                yield from batch


def body_of(*numbers: int) -> bytes:
    """The lines of these tweets."""
    return b"".join(x_api.tweet(number) + b"\r\n" for number in numbers)


def test_the_stream_goes_on_over_as_many_connections_as_it_takes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = Script(
        Breaking(body_of(1, 2) + b'{"data"'),
        OSError("no route"),
        (PROBLEM, 503),
        (PROBLEM, 403),
        b"\r\n" + as_json({"errors": [DISCONNECT]}) + b"\r\n" + body_of(9),
        body_of(2) + x_api.tweet(3),
        b"odd",
    )
    counts = x.Counts()
    found = [line for _, line in script.tweets(counts)]
    assert found == [x_api.tweet(number) for number in (1, 2, 2, 3)]
    assert counts.text() == " (7 reconnects, 2 skipped)"
    assert messages(capfd) == [
        "skipped an incomplete line",
        "reset by X; reconnecting in 0.0 s",
        "no route; reconnecting in 0.0 s",
        "503 Title: and detail; reconnecting in 0.0 s",
        "403 Title: and detail; reconnecting in 0.0 s",
        "operational-disconnect: bye; reconnecting in 0.0 s",
        "X ended the stream; reconnecting in 0.0 s",
        "skipped a line that is not a JSON object: odd",
        "X ended the stream; reconnecting in 0.0 s",
        "the script is over; reconnecting in 0.0 s",
    ]
    assert script.asked == [None] * 8


def test_each_kind_of_trouble_is_reported_once_a_minute_whatever_x_says(
    capfd: pytest.CaptureFixture[str],
) -> None:
    responses = [(503, b"ray 8f2a"), (500, b"ray 77be"), (403, b"id a"), (403, b"id b"), (429, b"")]
    ends = [end_with(body, status)[1] for status, body in responses]
    ends += [end_with(Breaking(b"{}\n"))[1], end_with(Breaking(b"[]\n"))[1]]
    ends += [end_with(page)[1] for page in (b"<p>1</p>", b"<p>two</p>")]
    tweet_filter, backoff = sieve_with(second=3600)
    backoff.tweet_received()
    for end in ends:
        tweet_filter.note_end(end)
    assert [line.partition(";")[0] for line in messages(capfd)] == [
        "503 ray 8f2a",
        "403 id a",
        "429 Too Many Requests",
        "reset by X",
        "200, but a web page instead of tweets: 1",
    ]


def test_backfill_that_x_refuses_is_not_asked_for_the_second_time(
    capfd: pytest.CaptureFixture[str],
) -> None:
    refusals = [(PROBLEM, 400), body_of(3)]
    script = Script(b"", body_of(1), body_of(1, 2), *refusals * 4, (b"", 503))
    counts = x.Counts()
    found = [line for _, line in script.tweets(counts, backfill=True)]
    assert found[:3] == [x_api.tweet(number) for number in (1, 2, 3)]
    # The fourth 400 answers a connect without backfill, and is treated as an edge server's mistake
    asked = [None, None, 1, *[1, None] * 3, None, None, None, None]
    assert script.asked == asked
    expected = "400 Title: and detail; trying without backfill; reconnecting in 0.0 s"
    assert messages(capfd).count(expected) == 3


def test_it_counts_as_a_reconnect_only_if_it_connects_again() -> None:
    script, counts = Script(), x.Counts()
    assert list(script.tweets(counts)) == []
    assert (script.asked, counts.reconnects) == ([None], 0)


def test_a_refusal_for_good_comes_after_all_that_was_read(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = Script(body_of(1, 2), (b"", 402))
    tweets = script.tweets(x.Counts())
    assert [line for _, line in itertools.islice(tweets, 2)] == [x_api.tweet(1), x_api.tweet(2)]
    with pytest.raises(SystemExit):
        next(tweets)
    assert re.fullmatch("X refuses: 402 .*", messages(capfd)[-1])


def test_the_waits_of_a_real_backoff_are_those_of_the_system_clocks() -> None:
    backoff = x.Backoff()
    assert [backoff.next_wait(x.AT_ONCE) for _ in range(9)] == [0] * 9
    assert 179 < backoff.next_wait(x.AT_ONCE) <= 180
    assert backoff.next_wait(x.AT_ONCE, 500) == 500
