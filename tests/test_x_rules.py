"""The parts of twitter-stream.py, in process: every row of X's rules, with the tests' own clock.

test_twitter_stream.py runs them together, as a process, with a Kafka.
"""

import importlib
import io
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from http.client import responses
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cli
import delivery
import x_api
from cli import Stop, Throttle
from delivery import Job, LineSplitter, OversizedLine, Stopped
from http_stream import StreamOpener, check_network_settings

import pytest
import requests
import urllib3
from conftest import GUARD, deaf_port, server_with
from urllib3.exceptions import MaxRetryError, ProxyError

pytestmark = pytest.mark.versions

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
    "detail": "bye",
    "type": "https://api.x.com/2/problems/operational-disconnect",
}
ISSUE = {"connection_issue": "TooManyConnections"}
TOO_MANY_CONNECTIONS = {"title": "ConnectionException", "detail": "too many", **ISSUE}
PARTIAL_ERROR = {"title": "Not Found Error", "detail": "a user is gone"}


def test_a_keep_alive() -> None:
    for line in (b"\r", b"", b" \r", b"\t", b"\r\r", b" "):
        assert x.classify(line) == (Kind.KEEP_ALIVE, "")


BESIDE: list[dict[str, object]] = [
    {},
    {"includes": {"users": [{"id": "7", "name": "operational-disconnect"}]}},
    {"errors": [PARTIAL_ERROR, DISCONNECT]},
    {"errors": "none"},
    {"matching_rules": [], **ISSUE},
]
TEXTS = ["🍜", "operational-disconnect, connection_issue", r"\" \\ \n \ud800", '{"id":1}']
NOT_STRICT = [b"Caf\xe9", b"\xed\xa0\xbd\xed\xb8\x80", b"raw\ttab\x00", b"a\rb", rb"\x41 \u12"]


def test_what_has_an_id_is_a_tweet_whatever_else_it_has() -> None:
    lines = [as_json({"data": {"id": "12", "text": "🍜"}, **others}) for others in BESIDE]
    for text in TEXTS:
        lines.append(json.dumps({"data": {"text": text, "title": text, "id": "12"}}).encode())
    lines += [b'{"data":{"id":"12","text":"%b"}}' % text for text in NOT_STRICT]
    for line in lines:
        for each in (line, line + b"\r", b"\xef\xbb\xbf" + line):
            assert x.classify(each) == (Kind.TWEET, "12")


FREE = f" ({x.FREE_CONNECTIONS})"
TOO_MANY = Kind.TOO_MANY_CONNECTIONS
DISCONNECTS: list[tuple[Any, object, str]] = [
    (Kind.DISCONNECT, DISCONNECT, "operational-disconnect: bye"),
    (Kind.DISCONNECT, {"errors": ["odd", DISCONNECT]}, "operational-disconnect: bye"),
    (Kind.DISCONNECT, {"title": "operational-disconnect"}, "operational-disconnect"),
    (Kind.DISCONNECT, {"type": f"{DISCONNECT['type']}/", "title": "News"}, "News"),
    (TOO_MANY, {"errors": [TOO_MANY_CONNECTIONS]}, f"ConnectionException: too many{FREE}"),
    (TOO_MANY, {**ISSUE, "detail": "bye"}, f"bye{FREE}"),
    (TOO_MANY, {"title": "ConnectionException"}, f"ConnectionException{FREE}"),
    (TOO_MANY, {"type": "/problems/streaming-connection", "title": "News"}, f"News{FREE}"),
]


def test_x_disconnects() -> None:
    for kind, message, text in DISCONNECTS:
        for end in (b"", b"\r"):
            assert x.classify(as_json(message) + end) == (kind, text)


def test_a_line_that_is_not_json() -> None:
    shown = {
        b"[1]": "[1]",
        b'"operational-disconnect"': '"operational-disconnect"',
        b"not\x1b json\x07": "not json",
        b"\xff\xfe": "\ufffd\ufffd",
        b'{"data":{"id":"1"}}{"data":{"id":"2"}}': '{"data":{"id":"1"}}{"data":{"id":"2"}}',
        b"<html><h1>Over\tcapacity</h1></html>": "Over capacity",
        b"[" * 100_000: "[" * x.PAGE_BYTES,
    }
    for line, text in shown.items():
        assert x.classify(line) == (Kind.OTHER, f"a line that is not a JSON object: {text}")


def test_a_message_without_an_id() -> None:
    shown = {
        '{"errors":[{"title":"Not Found Error"}]}': "Not Found Error",
        '{"errors":7,"title":"News","detail":"of X"}': "News: of X",
    }
    for data in ("{}", '{"id":7}', '{"id":""}', '[{"id":"7"}]', "null", '{"text":"a"}'):
        shown[f'{{"data":{data}}}'] = f'{{"data":{data}}}'
    for line, text in shown.items():
        assert x.classify(line.encode()) == (Kind.OTHER, f"a message without a tweet ID: {text}")


def test_a_line_over_1_mib_is_not_held() -> None:
    frame = b'{"data":{"id":"1","text":""}}'
    for size, message in {0: (Kind.TWEET, "1"), 1: (Kind.OTHER, "a line over 1 MiB")}.items():
        line = frame.replace(b'""', b'"%b"' % (b"x" * ((1 << 20) + size - len(frame))))
        [found, end] = LineSplitter(x.MAX_LINE_BYTES).feed(line + b"\n\r\n")
        assert (x.classify(found), end) == (message, b"\r")


def test_the_words_of_x() -> None:
    words = {
        as_json(PARTIAL_ERROR): "Not Found Error: a user is gone",
        as_json({"title": "A", "errors": [{"message": "B"}, {"message": "C"}]}): "A: B: C",
        as_json({"title": "A", "detail": "", "message": None, "status": 7}): "A",
        as_json({"title": ["A"], "detail": 1}): "['A']: 1",
        b"<title>No</title>\n<p>by the\x1b[31m  proxy\x07": "No by the [31m proxy",
        b"<style>p { color: red }</style><p>Over<SCRIPT>if (1 < 2) {}</SCRIPT> it": "Over it",
        b"": "",
    }
    assert {body: x.error_text(body) for body in words} == words


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


WAITS: dict[Any, tuple[list[float], float]] = {
    x.AT_ONCE: ([0, 0, 0], 0),
    x.NO_BACKFILL: ([0, 0, 0], 0),
    x.UNREACHABLE: ([0.25, 0.5, 0.75, 1.0, 1.25], 16),
    x.NETWORK: ([0.25, 0.5, 0.75, 1.0, 1.25], 16),
    x.HTTP: ([5, 10, 20, 40, 80, 160], 320),
    x.RATE_LIMIT: ([60, 120, 240, 480], 900),
}


def test_the_waits_grow_as_x_asks() -> None:
    for rule, (expected, _) in WAITS.items():
        for second in [1.0, 0.1] * 50:
            for pause, wait in zip(pauses(rule, len(expected), second), expected, strict=True):
                assert wait * second <= pause <= 1.2 * wait * second


def test_the_waits_are_bounded_and_spread() -> None:
    for rule in PACED:
        [first, *_], longest = WAITS[rule]
        waits = [x.jittered_wait(rule, 1) for _ in range(100)]
        assert first <= min(waits) < 1.1 * first < max(waits) <= 1.2 * first
        late = list(pauses(rule, 2000))[-100:]
        assert longest / 1.2 <= min(late) < 1.1 * longest / 1.2 < max(late) <= longest


def test_faults_of_another_kind_do_not_add_up_and_a_tweet_starts_all_again() -> None:
    """A keep-alive does not."""
    tweet_filter, backoff = sieve_with()
    rules = (x.HTTP, x.UNREACHABLE, x.HTTP, x.UNREACHABLE, x.RATE_LIMIT)
    found = [backoff.next_wait(rule) for rule in rules]
    assert sift(tweet_filter, b"\r") == []
    found.append(backoff.next_wait(x.HTTP))
    assert len(sift(tweet_filter, x_api.tweet(1))) == 1
    found += [backoff.next_wait(rule) for rule in rules[1:]]
    expected = [5, 0.25, 10, 0.5, 60, 20, 0.25, 5, 0.5, 60]
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


def test_no_wait_is_shorter_than_x_asks_nor_longer_than_its_window() -> None:
    clock = Clock()
    backoff = backoff_with(clock, 0.5)
    assert backoff.next_wait(x.AT_ONCE, 200) == 200
    assert backoff.next_wait(x.AT_ONCE, -4000) == 0
    for _ in range(100):
        clock.now += 500
        assert backoff.next_wait(x.RATE_LIMIT, 451) == 450
    pause = backoff_with(clock).next_wait(x.RATE_LIMIT, 30)
    assert 60 <= pause <= 72, "X's own wait is longer"


def test_ten_connections_that_end_at_once_fill_three_minutes() -> None:
    backoff = backoff_with(Clock(), 0.5)
    assert [backoff.next_wait(x.AT_ONCE) for _ in range(10)] == [0] * 9 + [90]


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
        [x.AT_ONCE, x.UNREACHABLE],
        [x.NETWORK, x.NO_BACKFILL, x.UNREACHABLE],
        [*[x.AT_ONCE] * 20, *PACED],
    ],
)
def test_no_more_than_50_connects_in_15_minutes(rules: list[Any]) -> None:
    """They are spread out: no more than 10 in 3 minutes."""
    for seed in range(10):
        times = connects(rules, seed, 2000)
        for count, seconds in ((10, 180), (50, 900)):
            pairs = zip(times, times[count:], strict=False)
            shortest = min(after - before for before, after in pairs)
            assert seconds - 1e-6 <= shortest < 1.2 * seconds, seed


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
    backoff.tweet_received()
    assert backoff.note_refusal(refused(402, is_certain=True)), "X's own words are final at once"


def test_ten_refusals_in_a_row_take_longer_than_x_window() -> None:
    waits = list(pauses(x.HTTP, x.MAX_REFUSALS - 1))
    assert x.X_WINDOW < sum(waits) < 30 * 60


# ------------------------------------------------------------------ what a gap has missed


def gap_with(clock: Clock, second: float = 1.0) -> Any:
    return x.Gap(True, second, clock)


def clock_at(text: str) -> Clock:
    """A clock set to a local time on 2026-11-25."""
    return Clock(datetime.fromisoformat(f"2026-11-25 {text}").timestamp())


def gap_after(
    seconds: float, time_of_day: str = "14:02:00", backfill: bool = True
) -> tuple[Any, Clock]:
    """A gap and its clock, after a connection begun at that time with tweets for that long."""
    clock = clock_at(time_of_day)
    gap = x.Gap(backfill, 1.0, clock)
    assert gap.begin_connection() is None
    hear(gap, clock, seconds)
    return gap, clock


def hear(gap: Any, clock: Clock, seconds: float) -> None:
    """A tweet comes now, and then every second for `seconds` seconds."""
    gap.tweet_received()
    end = clock.now + seconds
    while clock.now < end:
        clock.now += min(1, end - clock.now)
        gap.tweet_received()


def test_the_minutes_missed_are_asked_for() -> None:
    expected = {0: 1, 1: 1, 50: 1, 51: 2, 110: 2, 111: 3, 170: 3, 171: 4, 230: 4, 231: 5, 10**6: 5}
    for second in (1.0, 0.05):
        found = {}
        for seconds in expected:
            clock = Clock()
            gap = gap_with(clock, second)
            assert gap.begin_connection() is None
            hear(gap, clock, 0)
            clock.now += (seconds - 0.5) * second if seconds else 0
            found[seconds] = gap.begin_connection()
        assert found == expected


def test_what_a_short_connection_did_not_bring_is_asked_for_again() -> None:
    gap, clock = gap_after(100)
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
    gap, clock = gap_after(100)
    clock.now += 65
    assert gap.begin_connection() == 2
    clock.now += 15
    hear(gap, clock, x.SILENCE - 15)
    assert gap.begin_connection() == 1


def test_what_x_dropped_while_kafka_held_us_up_is_asked_for() -> None:
    for has_backfilled in (False, True):
        gap, clock = gap_after(100)
        if has_backfilled:
            assert gap.begin_connection() == 1
            hear(gap, clock, 100)
        clock.now += 65  # Kafka takes nothing; what comes then was on its way all that time
        hear(gap, clock, 5)
        assert gap.begin_connection() == 2
        hear(gap, clock, x.SILENCE)
        clock.now += 65
        hear(gap, clock, x.SILENCE)
        assert gap.begin_connection() == 1, "it catches up on the same connection, too"


def test_a_silence_within_x_own_is_no_hold_up() -> None:
    gap, clock = gap_after(0)
    for _ in range(10):
        clock.now += x.SILENCE
        hear(gap, clock, 0)
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


def test_a_connect_that_fails_without_backfill_too_says_nothing_of_backfill() -> None:
    gap, clock = gap_after(60)
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
    gap, clock = gap_after(60)

    def refuse() -> int | None:
        """Have X refuse backfill; return the minutes that were asked for."""
        minutes: int | None = gap.begin_connection()
        gap.backfill_refused()
        assert gap.begin_connection() is None
        hear(gap, clock, 1)
        return minutes

    assert not gap.seen_before("7")
    assert [refuse(), refuse()] == [1, 1]
    assert gap.seen_before("7")
    assert gap.begin_connection() == 1
    hear(gap, clock, 1)  # it was accepted, so the count begins again
    assert [refuse(), refuse(), refuse()] == [1, 1, 1]
    assert gap.begin_connection() is None
    assert not gap.seen_before("8")
    assert not gap.seen_before("8"), "what cannot come twice is not remembered"


ASKED_FOR_5 = "asked X for the last 5 minutes"
NOT_ASKED = "not requested again (see --backfill)"
OVER_MIDNIGHT = "2026-11-25 23:59:50 to 2026-11-26 00:00:50"


@pytest.mark.parametrize(
    ("began", "backfill", "seconds", "report"),
    [
        ("14:02:00", True, 22, None),
        ("14:02:00", True, 23, "14:02:10 to 14:02:33 (23 s); asked X for the last minute"),
        ("14:02:00", True, 1641, f"14:02:10 to 14:29:31 (27 min 21 s); {ASKED_FOR_5}"),
        ("14:02:00", False, 3600, f"14:02:10 to 15:02:10 (1 h 0 min 0 s); {NOT_ASKED}"),
        ("23:59:40", False, 60, f"{OVER_MIDNIGHT} (1 min 0 s); {NOT_ASKED}"),
    ],
)
def test_a_gap_is_reported_once(
    began: str, backfill: bool, seconds: int, report: str | None
) -> None:
    gap, clock = gap_after(10, began, backfill)
    for _ in range(seconds):
        clock.now += 1
        gap.begin_connection()  # each in vain
    expected = report and f"no tweets from {report}"
    assert [gap.tweet_received(), gap.tweet_received()] == [expected, None]
    gap.begin_connection()
    assert gap.tweet_received() is None, "it is over"
    assert gap.unfinished() is None


def test_a_gap_that_x_refuses_to_fill_is_reported_so() -> None:
    gap, clock = gap_after(60)
    for _ in range(x.MAX_BACKFILL_REFUSALS + 1):
        clock.now += 30
        if gap.begin_connection():
            gap.backfill_refused()
            gap.begin_connection()
        assert gap.tweet_received().endswith(" (30 s); X refuses to resend them")


def test_a_gap_that_the_run_does_not_outlive_is_reported_at_its_end() -> None:
    assert gap_with(Clock()).unfinished() is None, "nothing has come yet"
    gap, clock = gap_after(10, backfill=False)
    clock.now += 23
    assert gap.unfinished() is None, "on a connection with tweets it is Kafka that holds it up"
    gap.connection_ended()
    expected = "no tweets from 14:02:10 to 14:02:33 (23 s); the run ended before the stream resumed"
    assert gap.unfinished() == expected


def test_what_comes_late_because_of_kafka_is_no_sign_of_life() -> None:
    """By now X has ended the connection; a little of what it sent before still arrives."""
    gap, clock = gap_after(10)
    clock.now += 1800
    hear(gap, clock, 5)
    clock.now += 1
    assert gap.begin_connection() == 5
    expected = f"no tweets from 14:02:10 to 14:32:16 (30 min 6 s); {ASKED_FOR_5}"
    assert gap.tweet_received() == expected


# ------------------------------------------------------------------ what the topic remembers


def test_a_run_that_ended_while_it_caught_up_leaves_the_gap_open() -> None:
    expected = {
        (100,): 100,
        (100, 110, 120): 120,
        (0, 100, 110): 0,  # 10 s after a gap it was still catching up
        (0, 100, 122): 0,
        (0, 100, 110, 122.1): 122.1,  # this took long enough
        (0, 300, 302, 330, 331): 0,  # two gaps, neither made up for
        (0, 300, 320, 330, 340): 340,
    }
    assert {times: x.last_complete_time(list(times), x.SILENCE) for times in expected} == expected


def test_the_first_connect_asks_for_what_came_after_the_newest_event() -> None:
    for age, minutes in {0: 1, 49: 1, 51: 2, 200: 4, 1000: 5, -1000: 1}.items():
        clock = clock_at("14:29:31")
        gap = gap_with(clock)
        gap.resume(x.RecentEvents([clock.now - age], ["1", "2"]))
        assert gap.begin_connection() == minutes, age
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


def test_a_key_is_utf_8_whatever_the_id_is() -> None:
    tweet_filter, _ = sieve_with()
    odd = rb'{"data":{"id":"\ud800"}}'
    assert sift(tweet_filter, odd + b"\r", b"\r", b"") == [(b"?", odd)]
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


def test_what_came_before_a_disconnect_is_published_and_what_follows_is_not() -> None:
    """Rubbish, a keep-alive or a tweet comes first; only rubbish is no sign of life."""
    tweet = x_api.tweet(1)
    for message, before, published, rule in (
        (DISCONNECT, b"[1]", [], x.HTTP),
        (DISCONNECT, b"\r", [], x.AT_ONCE),
        (DISCONNECT, tweet, [tweet], x.AT_ONCE),
        (TOO_MANY_CONNECTIONS, tweet, [tweet], x.HTTP),
    ):
        tweet_filter, _ = sieve_with()
        batches = tweet_filter.tweets([before, as_json(message), x_api.tweet(2), b"[2]"])
        assert [line for _, line in next(batches)] == published
        with pytest.raises(x.Disconnected) as end:
            next(batches)
        assert (end.value.rule, end.value.cuts_line) == (rule, False)
        assert tweet_filter.counts.skipped == (before == b"[1]")


def test_only_backfill_looks_for_duplicates() -> None:
    for backfill, count, note in ((False, 4, ""), (True, 2, ", 2 duplicates")):
        tweet_filter, _ = sieve_with(backfill=backfill)
        lines = [x_api.tweet(number) for number in (1, 2, 1, 1)]
        assert len(sift(tweet_filter, *lines)) == count
        assert tweet_filter.counts.text() == f" (0 reconnects, 0 skipped{note})"


def test_the_counts_in_words() -> None:
    counts = x.Counts()
    counts.reconnects = counts.skipped = counts.duplicates = counts.gaps = 1
    assert counts.text() == " (1 reconnect, 1 skipped, 1 duplicate, 1 gap)"
    counts.reconnects, counts.skipped, counts.duplicates, counts.gaps = 2, 3, 0, 5
    assert counts.text() == " (2 reconnects, 3 skipped, 5 gaps)"


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


def end_of(opener: Any, minutes: int | None = None) -> tuple[Any, Any]:
    """The lines that a connection brings, and the Disconnected with which it ends."""
    lines: list[bytes] = []
    try:
        for block in x.read_connection(opener, minutes, Stop()):
            lines += block
    except x.Disconnected as end:
        return lines, end
    pytest.fail(f"it has ended without a reason, after {lines}")


def opener_with(body: bytes | io.BytesIO, status: int = 200, **headers: str) -> Opener:
    return Opener(lambda _: answer(body, status, **headers))


def end_with(body: bytes | io.BytesIO, status: int = 200, **headers: str) -> tuple[Any, Any]:
    return end_of(opener_with(body, status, **headers))


def failing(error: Exception) -> Opener:
    return Opener(Mock(side_effect=error))


TAILS = [b"", b"c", b"c\r", b"\r", b"x" * (2 << 20)]
TLS_CLOSED = "the TLS connection was closed"


def test_at_a_clean_end_the_last_line_is_a_line_too() -> None:
    for tail in TAILS:
        lines, end = end_with(b"a\r\n\r\nb\r\n" + tail)
        expected = [len(b"a\r"), 1, 2, *([len(tail)] if tail else [])]
        assert [len(line) for line in lines] == expected
        assert (end.reason, end.rule, end.cuts_line) == ("X ended the stream", x.NETWORK, False)


@pytest.mark.parametrize("has_fired", [False, True], ids=["broken", "silent"])
def test_whole_lines_come_before_a_broken_end(has_fired: bool) -> None:
    """The guard's shutdown may look like a normal end, but is not."""
    for tail, cuts_line in zip(TAILS, [False, True, True, False, True], strict=True):
        body = b"a\r\n\r\nb\r\n" + tail
        opener = opener_with(io.BytesIO(body) if has_fired else Breaking(body))
        opener.has_fired = has_fired
        lines, end = end_of(opener)
        assert lines == [b"a\r", b"\r", b"b\r"]
        reason = "no complete line from X for 22 s" if has_fired else "reset by X"
        assert (end.reason, end.rule, end.cuts_line) == (reason, x.NETWORK, cuts_line)
        assert end.at_least == 0


@pytest.mark.parametrize("kind", [io.BytesIO, Dripping])
def test_a_page_is_not_a_stream_and_is_reported_in_its_words(kind: type[io.BytesIO]) -> None:
    for body in (
        b"<!DOCTYPE html>\n<html><title>Over</title>\n<p>capacity</p></html>",
        b"\xef\xbb\xbf<html>\nOver capacity</html>\n",
        b" \r\n <h1>Over\ncapacity",
    ):
        lines, end = end_with(kind(body), Content_Type="application/json")
        assert not b"".join(lines).strip()
        assert end.rule is x.HTTP
        assert end.reason == "200, but a web page instead of tweets: Over capacity"


TUNNEL = ProxyError("Unable to connect to proxy", OSError("Tunnel failed: 503 No"))
REFUSED_BY_PROXY = MaxRetryError(urllib3.HTTPSConnectionPool("localhost"), "/", TUNNEL)
ERRORS = [
    (OSError(113, "No route to host"), "No route to host"),
    (requests.exceptions.ProxyError(REFUSED_BY_PROXY), "Tunnel failed: 503 No"),
    (requests.exceptions.InvalidHeader("an\x1b[31m odd\r\none."), "an [31m odd one"),
    (ssl.SSLCertVerificationError(1, "[SSL: BAD_THING] it is odd (_ssl.c:1006)"), "it is odd"),
    (requests.exceptions.SSLError(ssl.SSLEOFError(8, "EOF (_ssl.c:1006)")), TLS_CLOSED),
    (ssl.SSLZeroReturnError(6, "(EOF) (_ssl.c:992)"), TLS_CLOSED),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS)
def test_an_error_is_only_a_reason_to_reconnect(error: Exception, reason: str) -> None:
    """X counts connects, but not those it never saw."""
    opener = failing(error)
    for has_reached_x, text, rule in (
        (True, reason, x.NETWORK),
        (False, f"cannot connect to x.example: {reason}", x.UNREACHABLE),
    ):
        opener.has_reached_x = has_reached_x
        lines, end = end_of(opener)
        assert (lines, end.reason, end.rule, end.cuts_line) == ([], text, rule, False)


def test_a_silence_is_called_by_its_name() -> None:
    _, end = end_of(failing(requests.ReadTimeout("Read timed out.", TimeoutError())))
    assert end.reason == "no complete line from X for 22 s"


def test_a_bug_is_not_taken_for_a_disconnect() -> None:
    with pytest.raises(TypeError, match="a bug"):
        end_of(failing(TypeError("a bug")))


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


def test_what_x_refuses() -> None:
    assert {meaning for _, _, meaning, _ in REFUSED} == set(x.REFUSALS), "each is tested"
    for status, body, meaning, is_certain in REFUSED:
        lines, end = end_with(body, status)
        assert lines == []
        assert isinstance(end, x.Refused)
        assert (end.status, end.is_certain, end.rule) == (meaning, is_certain, x.HTTP)
        assert end.reason.startswith(f"{status} ")


def test_a_final_refusal_ends_the_script_with_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    for status, times, exit_status in ((400, 1, 2), (403, 1, 1), (400, 10, 1), (403, 10, 1)):
        tweet_filter, backoff = sieve_with()
        if times > 1:
            backoff.tweet_received()
            for _ in range(times - 1):
                tweet_filter.note_end(refused(status))
        with pytest.raises(SystemExit) as end:
            tweet_filter.note_end(refused(status))
        assert end.value.code == exit_status
        how_often = " 10 times in a row" if times > 1 else ""
        assert messages(capfd)[-1] == f"X refuses{how_often}: no. {x.REFUSALS[status]}"


FOR_NOW = [
    (400, PROBLEM, 3, x.NO_BACKFILL, "400 Title: and detail; trying without backfill"),
    (429, PROBLEM, None, x.RATE_LIMIT, "429 Title: and detail"),
    (429, as_json(TOO_MANY_CONNECTIONS), 1, x.HTTP, f"429 ConnectionException: too many{FREE}"),
    (302, b"", None, x.HTTP, "302 Found"),
    (503, b"<h1>Over\ncapacity</h1>", None, x.HTTP, "503 Over capacity"),
]


def test_what_x_refuses_for_now() -> None:
    for status, body, minutes, rule, reason in FOR_NOW:
        lines, end = end_of(opener_with(body, status), minutes)
        assert (lines, end.reason, end.rule) == ([], reason, rule)
        assert (end.at_least, end.cuts_line) == (0, False)
        assert not isinstance(end, x.Refused)


def test_too_many_connections_are_no_rate_limit_unless_that_is_used_up_too() -> None:
    headers = {"x_rate_limit_reset": str(int(time.time()) + 840)}
    for remaining, rule in {None: x.HTTP, "47": x.HTTP, "0": x.RATE_LIMIT}.items():
        if remaining:
            headers["x_rate_limit_remaining"] = remaining
        _, end = end_with(as_json(TOO_MANY_CONNECTIONS), 429, **headers)
        assert end.rule is rule
        assert bool(end.at_least) == (rule is x.RATE_LIMIT)


def test_of_a_refusal_is_shown_what_has_come_and_no_more_than_64_kb() -> None:
    assert end_with(Breaking(b"half a"), 503)[1].reason == "503 half a"
    assert len(end_with(b"x" * (10 << 20), 503)[1].reason) <= 2 * x.BLOCK_BYTES


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's clock stands still, at a whole second."""
    now = float(int(time.time()))
    monkeypatch.setattr(x, "time", SimpleNamespace(time=lambda: now, monotonic=time.monotonic))


def limit(reset: object, remaining: str = "0") -> dict[str, str]:
    return {"x-rate-limit-reset": str(reset), "x-rate-limit-remaining": remaining}


def test_a_reset_that_cannot_be_is_ignored() -> None:
    for reset in ("", "soon", "-1", "1e9", "9999999999", "99999999999", "１２", "900"):
        assert x.seconds_until_reset(limit(reset)) == 0


@pytest.mark.usefixtures("still")
def test_the_reset_is_waited_for_and_spread() -> None:
    reset = int(x.time.time()) + 900
    waits = [x.seconds_until_reset(limit(reset)) for _ in range(100)]
    assert 900 <= min(waits) < 901 < 904 < max(waits) <= 905
    waits = [x.seconds_until_reset({"x-rate-limit-reset": str(reset)}) for _ in range(100)]
    assert 900 <= min(waits) < max(waits) <= 905, "without what remains it is used up"
    assert x.seconds_until_reset(limit(reset, remaining="47")) == 0


def test_the_clock_of_x_counts_not_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its date is UTC, whether it says so or not."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    waits = []
    for hours in (-30, -3, 0, 3, 30):
        now = time.time() + 3600 * hours
        for form in ("%a, %d %b %Y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"):
            headers = {**limit(int(now) + 300), "Date": time.strftime(form, time.gmtime(now))}
            waits.append(x.seconds_until_reset(headers))
    monkeypatch.undo()
    time.tzset()
    assert 299 <= min(waits) <= max(waits) <= 306


@pytest.mark.usefixtures("still")
def test_without_a_date_of_x_this_machine_s_clock_counts() -> None:
    for date in ("", "now", "Wed, 99 Nov 2026 25:00:00 GMT"):
        headers = {**limit(int(x.time.time()) + 300), "Date": date}
        assert 300 <= x.seconds_until_reset(headers) <= 305


def test_only_a_rate_limit_has_a_reset() -> None:
    for status, has_reset in {429: True, 503: False}.items():
        _, end = end_with(b"", status, x_rate_limit_reset=str(int(time.time()) + 900))
        assert bool(end.at_least) == has_reset


# ------------------------------------------------------------------ over many connections


def test_each_kind_of_trouble_is_reported_once_a_minute_whatever_x_says(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tweet_filter, backoff = sieve_with(second=3600)
    backoff.tweet_received()
    for body, status in (
        *((b"ray 8f2a", 503), (b"ray 77be", 500), (b"id a", 403), (b"id b", 403)),
        *((Breaking(b"{}\n"), 200), (Breaking(b"[]\n"), 200), (b"<p>1</p>", 200), (b"<p>2", 200)),
    ):
        tweet_filter.note_end(end_with(body, status)[1])
    assert [line.partition(";")[0] for line in messages(capfd)] == [
        "503 ray 8f2a",
        "403 id a",
        "reset by X",
        "200, but a web page instead of tweets: 1",
    ]


def test_what_x_dropped_while_kafka_held_us_up_is_asked_for_at_the_next_connect() -> None:
    clock, stop = Clock(), Stop()
    asked: list[int | None] = []

    def connect(minutes: int | None) -> requests.Response:
        asked.append(minutes)
        if minutes:
            stop.request()
        return answer(Dripping(x_api.tweet(1) + b"\n" + x_api.tweet(2) + b"\n"))

    gap = x.Gap(True, 1.0, clock)
    tweet_filter = x.TweetFilter(backoff_with(clock), gap, x.Counts(), Throttle(0))
    batches = x.stream_tweets(Opener(connect), tweet_filter, stop)
    assert len(next(batches)) == 1
    clock.now += 80  # nobody takes the next one; by now X has ended the connection
    with suppress(Stopped):
        list(batches)
    assert asked == [None, 2]


def test_a_backoff_without_a_clock_goes_by_the_system_s() -> None:
    backoff = x.Backoff()
    assert [backoff.next_wait(x.AT_ONCE) for _ in range(9)] == [0] * 9
    assert 0 < backoff.next_wait(x.AT_ONCE) <= 180


# ------------------------------------------------------------------ over a real socket


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's names a proxy or a CA bundle."""
    for name in (*VARIABLES, "NO_PROXY", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def end_at(url: str) -> tuple[Any, Any]:
    return end_of(StreamOpener(url, {"Authorization": f"Bearer {x_api.TOKEN}"}, [], GUARD))


NOT_X = {
    b"": "Remote end closed connection without response",
    b"SSH-2.0-OpenSSH_9.2\r\n": "SSH-2.0-OpenSSH_9.2",
    b"HTTP/1.1 302 Found\r\nLocation: http://\xe9\r\nContent-Length: 0\r\n\r\n": "302 Found",
}


@pytest.mark.usefixtures("no_proxy")
def test_whoever_answers_it_is_only_a_reason_to_reconnect() -> None:
    """A captive portal or a broken proxy: next time it may be X again."""
    for data, reason in NOT_X.items():
        with server_with(data) as address:
            lines, end = end_at(f"http://{address}/")
        assert (lines, end.reason) == ([], reason)
        assert end.rule is (x.HTTP if reason == "302 Found" else x.NETWORK)


@pytest.mark.usefixtures("no_proxy")
def test_however_a_body_is_framed_its_last_line_needs_no_newline() -> None:
    body = x_api.tweet(1) + b"\r\n" + x_api.tweet(2)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    for data in (
        chunked % (len(body), body),
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
        b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.0 200 OK\r\n\r\n%b" % body,
    ):
        with server_with(data) as address:
            lines, end = end_at(f"http://{address}/")
        assert lines == [x_api.tweet(1) + b"\r", x_api.tweet(2)]
        assert (end.reason, end.cuts_line) == ("X ended the stream", False)


PASSWORD = "hunter2secret"  # noqa: S105


@pytest.mark.usefixtures("no_proxy")
def test_connects_that_a_proxy_refuses_have_not_reached_x(monkeypatch: pytest.MonkeyPatch) -> None:
    """So they are not metered. The proxy is named, but not its password."""
    for data, reason in (
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "Tunnel connection failed: 502 Bad Gateway"),
        (b"\0who are you?\r\n", "who are you?"),
        (b"HTTP/1.1 200 OK\r\n\r\n", TLS_CLOSED),
    ):
        with server_with(data) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://ann:{PASSWORD}@{proxy}")
            _, end = end_at("https://127.0.0.1:1/")
        target = f"127.0.0.1:1 through the proxy {proxy}"
        assert end.reason == f"cannot connect to {target}: {reason}"
        assert end.rule is x.UNREACHABLE


@pytest.mark.usefixtures("no_proxy")
def test_a_handshake_that_fails_has_not_reached_x(certificate: tuple[str, str, str]) -> None:
    with server_with(b"") as address:
        _, end = end_at(f"https://{address}/")
    assert end.reason == f"cannot connect to {address}: {TLS_CLOSED}"
    assert end.rule is x.UNREACHABLE
    with x_api.XApi(certificate=certificate[:2]) as api:
        _, end = end_at(api.url)
    assert "certificate verify failed" in end.reason
    assert (end.rule, api.requests) == (x.UNREACHABLE, [])


@pytest.mark.usefixtures("no_proxy")
def test_the_other_address_of_a_host_is_tried_where_one_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with x_api.XApi([x_api.Step(tweets=3)]) as api, deaf_port() as dead:
        port = api.server.server_address[1]
        targets = [("127.0.0.1", number) for number in (dead, port)]
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target) for target in targets]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        lines, end = end_at(f"http://localhost:{port}/")
    assert end.reason == "X ended the stream"
    assert [line.removesuffix(b"\r") for line in lines] == api.sent


@pytest.mark.usefixtures("no_proxy")
def test_a_refusal_may_be_compressed_or_only_say_so() -> None:
    for step, text in (
        (x_api.Step(status=400, body=PROBLEM, gzip=True), "400 Title: and detail"),
        (x_api.Step(status=400, headers={"Content-Encoding": "gzip"}), "400 Bad Request"),
    ):
        with x_api.XApi([step]) as api:
            assert end_at(api.url)[1].reason == text


# ------------------------------------------------------------------ settings

Refusal = Callable[..., tuple[Any, str]]
Configure = Callable[..., object]
MALFORMED = (
    "BEARER_TOKEN is missing or malformed; "
    "copy your X app's bearer token to .env or the environment"
)
UNENCRYPTED = (
    "STREAM_URL must start with https:// to keep the token secret "
    "(http:// is for this machine only)"
)


def test_what_cannot_be_a_token(
    configure: Configure, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("", "  ", "Bearer ", '""', "two words", "tökén", "a\nb"):
        monkeypatch.setenv("BEARER_TOKEN", token)
        configure()
        assert refusal(x.bearer_token) == (2, MALFORMED)


@pytest.mark.parametrize("text", [" Bearer {}\n", "{}\r\n", "'{}'", '"Bearer {}"', ' "{}" '])
def test_the_token_is_used_without_what_stands_around_it_and_never_shown(
    text: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker's --env-file leaves quotes around a value."""
    monkeypatch.setenv("BEARER_TOKEN", text.format(x_api.TOKEN))
    configure()
    assert x.bearer_token() == x_api.TOKEN
    assert cli.mask(f"Authorization: Bearer {x_api.TOKEN}") == "Authorization: Bearer ***"


def test_the_token_goes_out_encrypted_only(
    configure: Configure, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (
        *("http://api.x.com/2", "ftp://localhost", "localhost"),
        *("http://localhost.evil.com/", "http://localhost@evil.com/", "HTTP://127.0.0.1.evil.com"),
    ):
        monkeypatch.setenv("STREAM_URL", url)
        configure()
        assert refusal(x.stream_url, []) == (2, UNENCRYPTED)
    for url in ("https://proxy.example/2", "http://localhost:80/", "http://[::1]", ""):
        monkeypatch.setenv("STREAM_URL", url)
        configure()
        assert x.stream_url([("a", "b")]) == (url or x.X_URL)


INVALID_URL = "it is not a valid URL"
URLS = {
    "https://": "Invalid URL 'https://': No host supplied",
    "https://127.0.0.1:99999/": "Failed to parse: https://127.0.0.1:99999/",
    f"https://ann:{PASSWORD}@127.0.0.1:99999/": INVALID_URL,
}


def test_a_stream_url_that_cannot_be_used(
    configure: Configure, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {url: f"cannot use STREAM_URL with --param: {URLS[url]}" for url in URLS}
    expected["https://127.0.0.1:0/"] = f"cannot use STREAM_URL: {INVALID_URL}"
    for url, message in expected.items():
        monkeypatch.setenv("STREAM_URL", url)
        configure()
        assert refusal(x.stream_url, []) == (2, message)


NOT_A_PROXY = (
    "{} is not a valid proxy URL; it must be http://HOST:PORT or "
    "http://USER:PASSWORD@HOST:PORT, with special characters percent-encoded"
)
NO_SOCKS = "{} is a SOCKS proxy, which needs PySocks. Run: pip install PySocks"
PROXIES = [
    f"http://ann:{PASSWORD}@127.0.0.1:port",
    f"http://ann:12/{PASSWORD}@127.0.0.1:3128",
    f"http://ann:{PASSWORD}#x@127.0.0.1:3128",
    f"http://ann:{PASSWORD}@127.0.0.1:0",
    f"http://ann:{PASSWORD}@:3128",
    f"ftp://ann:{PASSWORD}@127.0.0.1:3128",
    f"ann:{PASSWORD}@proxy:3128",
]
VARIABLES = ["HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"]


@pytest.mark.usefixtures("no_proxy")
def test_a_proxy_that_cannot_be_used(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable."""
    messages = dict.fromkeys(PROXIES, NOT_A_PROXY)
    messages[f"socks5h://ann:{PASSWORD}@127.0.0.1:1080"] = NO_SOCKS
    for variable in VARIABLES:
        for proxy, message in messages.items():
            monkeypatch.setenv(variable, proxy)
            expected = (2, message.format(variable))
            assert refusal(check_network_settings, x.X_URL) == expected, proxy
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HTTPS_PROXY", f"http://ann:{PASSWORD}@127.0.0.1:3128")
    check_network_settings(x.X_URL)


@pytest.mark.usefixtures("no_proxy")
def test_a_ca_bundle_that_cannot_be_used(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    words = "cannot read /nowhere/ca.pem (REQUESTS_CA_BUNDLE): No such file or directory"
    assert refusal(check_network_settings, x.X_URL) == (2, words)


# ------------------------------------------------------------------ what it says meanwhile


def test_the_rate_in_the_log_is_that_of_the_newest_minute(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(delivery, "time", SimpleNamespace(monotonic=clock))
    job = Job(iter(()), unit="tweet", details=x.Counts().text)
    progress, state = delivery.Progress(job), Mock(failed=0, events_read=0)
    for state.acknowledged in (0, 600, 600 + 3000):
        for _ in range(60):
            clock.now += 1
            progress.report(state)
    assert messages(capfd) == [
        "0 tweets, 0/s (0 reconnects, 0 skipped)",
        "600 tweets, 10/s (0 reconnects, 0 skipped)",
        "3600 tweets, 50/s (0 reconnects, 0 skipped)",
    ]
