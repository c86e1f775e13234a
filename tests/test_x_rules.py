"""The rooms about X, in process: every row of X's rules, with the tests' own clock.

test_twitter_stream.py runs them together, as a process, with a Kafka.
"""

import importlib
import io
import json
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from http.client import responses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import requests
import urllib3
from urllib3.exceptions import (
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    SSLError,
)

import x_api
from conftest import GUARD, deaf_port, fits, server_with
from streaming import console, progress, recent, x_http, x_messages, x_source
from streaming.sources import LineSplitter, Stopped
from streaming.stop import Stop
from streaming.x_gaps import (
    MAX_BACKFILL_REFUSALS,
    Backfill,
    Duplicates,
    Gaps,
    Report,
    period_text,
)
from streaming.x_http import Connection, XStream, broken_stream, failed_connect
from streaming.x_messages import (
    HINTS,
    Meaning,
    classify,
    own_words,
    refusal,
    seconds_until_reset,
)
from streaming.x_pacing import (
    CONNECT_WINDOW,
    DISCONNECT,
    ENDED,
    HTTP,
    MAX_ENDS,
    MAX_REFUSALS,
    NETWORK,
    NO_BACKFILL,
    NO_RULES,
    RATE_LIMIT,
    SILENCE,
    STALLED,
    UNREACHABLE,
    USED_UP,
    X_WINDOW,
    Backoff,
    Disconnected,
    Refused,
    Rule,
    Unusable,
    jittered_wait,
)
from streaming.x_source import Counts, TweetSource

pytestmark = pytest.mark.versions

script: Any = importlib.import_module("twitter-stream")
PACED = [NETWORK, STALLED, ENDED, UNREACHABLE, HTTP, NO_RULES, USED_UP, DISCONNECT, RATE_LIMIT]


class Clock:
    """A clock that only the test moves; call it for the time in seconds."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def as_json(message: object) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode()


# ------------------------------------------------------------------ what a line is

GOODBYE = {
    "title": "operational-disconnect",
    "detail": "bye",
    "type": "https://api.x.com/2/problems/operational-disconnect",
}
ISSUE = {"connection_issue": "TooManyConnections"}
TOO_MANY_CONNECTIONS = {"title": "ConnectionException", "detail": "too many", **ISSUE}
PARTIAL_ERROR = {"title": "Not Found Error", "detail": "a user is gone"}


def test_a_keep_alive() -> None:
    for line in (b"\r", b"", b" \r", b"\t", b"\r\r", b" "):
        assert classify(line) == (Meaning.KEEP_ALIVE, "")


BESIDE: list[dict[str, object]] = [
    {},
    {"includes": {"users": [{"id": "7", "name": "operational-disconnect"}]}},
    {"errors": [PARTIAL_ERROR, GOODBYE]},
    {"errors": "none"},
    {"matching_rules": [], **ISSUE},
]
TEXTS = ["🍜", "operational-disconnect, connection_issue", r"\" \\ \n \ud800", '{"id":1}']
NOT_STRICT = [b"Caf\xe9", b"\xed\xa0\xbd\xed\xb8\x80", b"raw\ttab\x00", b"a\rb"]


def test_what_has_an_id_is_a_tweet_whatever_else_it_has() -> None:
    lines = [as_json({"data": {"id": "12", "text": "🍜"}, **others}) for others in BESIDE]
    for text in TEXTS:
        lines.append(json.dumps({"data": {"text": text, "title": text, "id": "12"}}).encode())
    lines += [b'{"data":{"id":"12","text":"%b"}}' % text for text in NOT_STRICT]
    for line in lines:
        for each in (line, line + b"\r", b"\xef\xbb\xbf" + line):
            assert classify(each) == (Meaning.TWEET, "12")


FREE = f" ({HINTS['TooManyConnections']})"
ADD_RULE = f" ({HINTS['RuleConfigurationIssue']})"
WITHOUT_RULES = {
    **TOO_MANY_CONNECTIONS,
    "detail": "no rules",
    "connection_issue": "RuleConfigurationIssue",
}
CONNECTION = Meaning.CONNECTION_ISSUE
DISCONNECTS: list[tuple[Any, object, str]] = [
    (Meaning.DISCONNECT, GOODBYE, "operational-disconnect: bye"),
    (Meaning.DISCONNECT, {"errors": ["odd", GOODBYE]}, "operational-disconnect: bye"),
    (Meaning.DISCONNECT, {"title": "operational-disconnect"}, "operational-disconnect"),
    (Meaning.DISCONNECT, {"type": f"{GOODBYE['type']}/", "title": "News"}, "News"),
    (CONNECTION, {"errors": [TOO_MANY_CONNECTIONS]}, f"ConnectionException: too many{FREE}"),
    (CONNECTION, {**ISSUE, "detail": "bye"}, f"bye{FREE}"),
    (CONNECTION, WITHOUT_RULES, f"ConnectionException: no rules{ADD_RULE}"),
    (CONNECTION, {"title": "ConnectionException"}, "ConnectionException"),
    (CONNECTION, {"connection_issue": "of another kind", "detail": "bye"}, "bye"),
    (CONNECTION, {"type": "/problems/streaming-connection", "title": "News"}, "News"),
]


def test_x_disconnects() -> None:
    for kind, message, text in DISCONNECTS:
        for end in (b"", b"\r"):
            assert classify(as_json(message) + end) == (kind, text)


def test_a_line_that_is_not_json() -> None:
    shown = {
        b"[1]": "[1]",
        b'"operational-disconnect"': '"operational-disconnect"',
        b"not\x1b json\x07": "not json",
        b"\xff\xfe": "\ufffd\ufffd",
        rb'{"data":{"id":"1","text":"\x41"}}': r'{"data":{"id":"1","text":"\x41"}}',
        b'{"data":{"id":"1"}}{"data":{"id":"2"}}': '{"data":{"id":"1"}}{"data":{"id":"2"}}',
        b"<html><h1>Over\tcapacity</h1></html>": "Over capacity",
        b"[" * 100_000: "[" * x_messages.PAGE_BYTES,
    }
    for line, text in shown.items():
        assert classify(line) == (Meaning.NOT_JSON, f"a line that is not a JSON object: {text}")


def test_a_message_without_an_id() -> None:
    shown = {
        '{"errors":[{"title":"Not Found Error"}]}': "Not Found Error",
        '{"errors":7,"title":"News","detail":"of X"}': "News: of X",
    }
    for data in ("{}", '{"id":7}', '{"id":""}', '[{"id":"7"}]', "null", '{"text":"a"}'):
        shown[f'{{"data":{data}}}'] = f'{{"data":{data}}}'
    for line, text in shown.items():
        assert classify(line.encode()) == (
            Meaning.NO_TWEET,
            f"a message without a tweet ID: {text}",
        )


def test_a_line_over_1_mib_is_not_held() -> None:
    frame = b'{"data":{"id":"1","text":""}}'
    for size, message in {
        0: (Meaning.TWEET, "1"),
        1: (Meaning.TOO_LONG, "a line over 1 MiB"),
    }.items():
        line = frame.replace(b'""', b'"%b"' % (b"x" * ((1 << 20) + size - len(frame))))
        [found, end] = LineSplitter(x_http.MAX_LINE_BYTES).feed(line + b"\n\r\n")
        assert (classify(found), end) == (message, b"\r")


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
    assert {body: own_words(body) for body in words} == words


# ------------------------------------------------------------------ how long to wait


def pauses(rule: Rule, count: int, second: float = 1.0) -> Iterator[float]:
    """The waits after `count` failures in a row, far enough apart that none is metered."""
    clock = Clock()
    backoff = Backoff(second, clock)
    for _ in range(count):
        clock.now += CONNECT_WINDOW
        yield backoff.next_wait(rule)


WAITS: dict[Rule, tuple[list[float], float]] = {
    NO_BACKFILL: ([0, 0, 0], 0),
    UNREACHABLE: ([0.25, 0.5, 0.75, 1.0, 1.25], 16),
    NETWORK: ([0.25, 0.5, 0.75, 1.0, 1.25], 16),
    STALLED: ([0.25, 0.5, 0.75, 1.0, 1.25], 16),
    ENDED: ([0.25, 0.5, 0.75, 1.0, 1.25], 16),
    USED_UP: ([5, 10, 20, 40, 80, 160], 320),
    HTTP: ([5, 10, 20, 40, 80, 160], 320),
    NO_RULES: ([5, 10, 20, 40], 60),
    DISCONNECT: ([5, 10, 20, 40, 80, 160], 320),
    RATE_LIMIT: ([60, 120, 240, 480], 900),
}


def test_the_waits_grow_as_x_asks() -> None:
    for rule, (expected, _) in WAITS.items():
        for second in [1.0, 0.1] * 50:
            for pause, wait in zip(pauses(rule, len(expected), second), expected, strict=True):
                assert wait * second <= pause <= 1.2 * wait * second


def test_the_waits_are_bounded_and_spread() -> None:
    for rule in PACED:
        [first, *_], longest = WAITS[rule]
        waits = [jittered_wait(rule, 1) for _ in range(100)]
        assert first <= min(waits) < 1.1 * first < max(waits) <= 1.2 * first
        late = list(pauses(rule, 2000))[-100:]
        assert longest / 1.2 <= min(late) < 1.1 * longest / 1.2 < max(late) <= longest


def test_failures_by_another_rule_do_not_add_up_and_data_starts_all_again() -> None:
    backoff = Backoff(1.0, Clock())
    rules = (HTTP, UNREACHABLE, HTTP, UNREACHABLE, RATE_LIMIT)
    found = [backoff.next_wait(rule) for rule in (*rules, HTTP)]
    backoff.data_received()
    found += [backoff.next_wait(rule) for rule in rules[1:]]
    expected = [5, 0.25, 10, 0.5, 60, 20, 0.25, 5, 0.5, 60]
    for each, wait in zip(found, expected, strict=True):
        assert wait <= each <= 1.2 * wait


def test_only_a_connection_that_brought_something_is_resumed_at_once() -> None:
    for rule in (NETWORK, STALLED, ENDED, DISCONNECT):
        first = WAITS[rule][0][0]
        backoff = Backoff(1.0, Clock())
        assert first <= backoff.next_wait(rule) <= 1.2 * first
        backoff.data_received()
        assert backoff.next_wait(rule) == 0
        second = backoff.next_wait(rule)
        assert first <= second <= 1.2 * first, "the next one has not brought anything yet"
        backoff.data_received()
        assert backoff.next_wait(HTTP) >= 5, "X has asked for a wait"
        assert backoff.next_wait(rule) > 0, "by then it has ended"


def test_no_wait_is_shorter_than_x_asks_nor_longer_than_its_window() -> None:
    clock = Clock()
    backoff = Backoff(0.5, clock)
    assert backoff.next_wait(NO_BACKFILL, 200) == 200
    assert backoff.next_wait(NO_BACKFILL, -4000) == 0
    for _ in range(100):
        clock.now += 500
        assert backoff.next_wait(RATE_LIMIT, 451) == 450
    pause = Backoff(1.0, clock).next_wait(RATE_LIMIT, 30)
    assert 60 <= pause <= 72, "X's own wait is longer"


def test_ten_connections_that_end_at_once_fill_three_minutes() -> None:
    backoff = Backoff(0.5, Clock())
    assert [backoff.next_wait(NO_BACKFILL) for _ in range(10)] == [0] * 9 + [90]


def connects(rules: list[Rule], seed: int, count: int) -> list[float]:
    """The times at which X sees a connect, when connections end by these rules at random."""
    chance = random.Random(seed)
    clock = Clock()
    backoff = Backoff(1.0, clock)
    seen = []
    for _ in range(count):
        rule = chance.choice(rules)
        if rule is not UNREACHABLE:
            seen.append(clock.now)
            clock.now += chance.choice([0, 0, 0, 0.01, 1, 30])  # how long the connection lasts
            if chance.choice([False, True, True]):
                backoff.data_received()
        clock.now += backoff.next_wait(rule, chance.choice([-1, -1, -1, 3]))
    return seen


@pytest.mark.parametrize(
    "rules",
    [
        [NO_BACKFILL],
        [NO_BACKFILL, UNREACHABLE],
        [NETWORK, NO_BACKFILL, UNREACHABLE],
        [*[NO_BACKFILL] * 20, *PACED],
    ],
)
def test_no_more_than_50_connects_in_15_minutes(rules: list[Rule]) -> None:
    """They are spread out: no more than 10 in 3 minutes."""
    for seed in range(10):
        times = connects(rules, seed, 2000)
        for count, seconds in ((10, 180), (50, 900)):
            pairs = zip(times, times[count:], strict=False)
            shortest = min(after - before for before, after in pairs)
            assert seconds - 1e-6 <= shortest < 1.2 * seconds, seed


def test_five_working_connections_that_end_in_three_minutes_look_like_another_client() -> None:
    """However they end, but for a silence; what has brought nothing says nothing."""
    for seconds, expected in {0: True, 44: True, 46: False, 300: False}.items():
        clock = Clock()
        backoff = Backoff(1.0, clock)
        for number, rule in enumerate([ENDED, NETWORK, DISCONNECT, ENDED, NETWORK], 1):
            backoff.data_received()
            assert not any(backoff.note_end(rule) for rule in (STALLED, HTTP, UNREACHABLE))
            assert backoff.note_end(rule) == (expected and number == MAX_ENDS), seconds
            backoff.next_wait(rule)
            assert not any(backoff.note_end(rule) for rule in (ENDED, NETWORK, DISCONNECT))
            clock.now += seconds


def refused(status: int, rule: Rule = HTTP, limit: int = 1) -> Refused:
    return Refused("no", status, "Do this.", rule, limit)


def test_before_the_first_data_a_refusal_is_final_and_afterwards_ten_in_a_row() -> None:
    """But X's cap or credits may come back, and a redirect may be an error once."""
    assert Backoff(1.0, Clock()).note_refusal(refused(402, USED_UP))
    backoff = Backoff(1.0, Clock())
    assert [backoff.note_refusal(refused(302, limit=2)) for _ in range(2)] == [False, True]
    assert backoff.note_refusal(refused(403))
    backoff.data_received()
    for _ in range(3):
        for status in (400, 401, 403, 404, 402, 302, 403, 401, 401):
            assert not backoff.note_refusal(refused(status))
            backoff.next_wait(HTTP)
        backoff.data_received()
    for rule, limit in ((HTTP, 1), (USED_UP, 1), (HTTP, 2)):
        found = [backoff.note_refusal(refused(404, rule, limit)) for _ in range(10)]
        assert found == [False] * 9 + [True]
        backoff.data_received()


def test_ten_refusals_in_a_row_take_longer_than_x_window() -> None:
    waits = list(pauses(HTTP, MAX_REFUSALS - 1))
    assert X_WINDOW < sum(waits) < 30 * 60


def test_a_backoff_without_a_clock_goes_by_the_system_s() -> None:
    backoff = Backoff()
    assert [backoff.next_wait(NO_BACKFILL) for _ in range(9)] == [0] * 9
    assert 0 < backoff.next_wait(NO_BACKFILL) <= 180


# ------------------------------------------------------------------ what a gap has missed


def clock_at(text: str) -> Clock:
    """A clock set to a local time on 2026-11-25."""
    return Clock(datetime.fromisoformat(f"2026-11-25 {text}").timestamp())


def gap_after(
    seconds: float, time_of_day: str = "14:02:00", backfill: bool = True
) -> tuple[Gaps, Clock]:
    """A gap and its clock, after a connection begun at that time with tweets for that long."""
    clock = clock_at(time_of_day)
    gaps = Gaps(backfill, 1.0, clock)
    assert gaps.begin_connection() is None
    hear(gaps, clock, seconds)
    return gaps, clock


def hear(gaps: Gaps, clock: Clock, seconds: float) -> None:
    """A tweet comes now, and then every second for `seconds` seconds."""
    gaps.data_received(is_tweet=True)
    end = clock.now + seconds
    while clock.now < end:
        clock.now += min(1, end - clock.now)
        gaps.data_received(is_tweet=True)


def said(report: Report | None) -> str:
    """The text of a report on a gap, which certainly is one; "" for none."""
    assert not report or report.is_gap
    return report.text if report else ""


def test_the_minutes_missed_are_asked_for() -> None:
    expected = {0: 1, 1: 1, 50: 1, 51: 2, 110: 2, 111: 3, 170: 3, 171: 4, 230: 4, 231: 5, 10**6: 5}
    for second in (1.0, 0.05):
        found = {}
        for seconds in expected:
            clock = Clock()
            gaps = Gaps(True, second, clock)
            assert gaps.begin_connection() is None
            hear(gaps, clock, 0)
            clock.now += (seconds - 0.5) * second if seconds else 0
            found[seconds] = gaps.begin_connection()
        assert found == expected


def test_what_a_short_connection_did_not_bring_is_asked_for_again() -> None:
    gaps, clock = gap_after(100)
    clock.now += 70
    assert gaps.begin_connection() == 2
    hear(gaps, clock, SILENCE - 1)
    assert gaps.begin_connection() == 2, "91 s are missing: it has not brought them all yet"
    hear(gaps, clock, SILENCE - 1)
    clock.now += 10
    assert gaps.begin_connection() == 3, "122 s are missing"
    hear(gaps, clock, SILENCE)
    clock.now += 50
    assert gaps.begin_connection() == 1, "by then it has caught up"


def test_catching_up_begins_with_the_connect_however_late_something_comes() -> None:
    gaps, clock = gap_after(100)
    clock.now += 65
    assert gaps.begin_connection() == 2
    clock.now += 15
    hear(gaps, clock, SILENCE - 15)
    assert gaps.begin_connection() == 1


def test_what_x_dropped_while_kafka_held_us_up_is_asked_for() -> None:
    for has_backfilled in (False, True):
        gaps, clock = gap_after(100)
        if has_backfilled:
            assert gaps.begin_connection() == 1
            hear(gaps, clock, 100)
        clock.now += 65  # Kafka takes nothing; what comes then was on its way all that time
        hear(gaps, clock, 5)
        assert gaps.begin_connection() == 2
        hear(gaps, clock, SILENCE)
        clock.now += 65
        hear(gaps, clock, SILENCE)
        assert gaps.begin_connection() == 1, "it catches up on the same connection, too"


def test_a_silence_within_x_own_is_no_hold_up() -> None:
    gaps, clock = gap_after(0)
    for _ in range(10):
        clock.now += SILENCE
        hear(gaps, clock, 0)
    assert gaps.begin_connection() == 1


def test_a_clock_that_is_set_back_hides_no_gap() -> None:
    gaps, clock = gap_after(100)
    assert gaps.begin_connection() == 1
    hear(gaps, clock, SILENCE / 2)
    clock.now -= 3600
    hear(gaps, clock, 60)
    clock.now += 240
    assert gaps.begin_connection() == 5
    assert " (4 min 0 s); asked" in said(gaps.data_received(is_tweet=True))


def test_ids_are_remembered_but_not_for_ever() -> None:
    duplicates = Duplicates(4)
    assert [duplicates.seen_before(tweet_id) for tweet_id in "AA123A"] == [0, 1, 0, 0, 0, 1]
    assert not duplicates.seen_before("4")
    assert [duplicates.seen_before(tweet_id) for tweet_id in "432A"] == [1, 1, 1, 0], "the oldest"


def test_without_backfill_no_id_is_remembered() -> None:
    for has_backfill in (False, True):
        gaps = Gaps(has_backfill, 1.0, Clock())
        assert [gaps.seen_before("A"), gaps.seen_before("A")] == [False, has_backfill]


def test_a_connect_that_fails_without_backfill_too_says_nothing_of_backfill() -> None:
    gaps, clock = gap_after(60)
    for _ in range(2 * MAX_BACKFILL_REFUSALS):
        assert gaps.begin_connection() == 1
        gaps.backfill_refused()
        assert gaps.begin_connection() is None
    assert gaps.begin_connection() == 1
    clock.now += 30
    assert said(gaps.data_received(is_tweet=True)).endswith(" (30 s); asked X for the last minute")


def keep_alive(gaps: Gaps, clock: Clock, minutes: int) -> None:
    """X accepts a connection now, and has keep-alives for that long, which end no gap."""
    gaps.connection_accepted()
    for _ in range(3 * minutes):
        clock.now += 20
        assert gaps.data_received(is_tweet=False) is None


def test_a_time_with_keep_alives_is_no_gap() -> None:
    """Nor is that until the first, which may come 20 s after X has accepted a connection."""
    gaps, clock = gap_after(0, backfill=False)
    for seconds in (1, 20, SILENCE):
        keep_alive(gaps, clock, minutes=60)
        assert gaps.unfinished() is None
        clock.now += seconds
        gaps.end_connection()
        assert gaps.unfinished() is None
        gaps.begin_connection()


def test_a_gap_lasts_from_the_last_data_until_x_accepts_a_connection() -> None:
    expected = f"no tweets from 14:03:00 to 14:05:00 (2 min 0 s); {NOT_ASKED}"
    for is_tweet in (False, True):
        clock = clock_at("14:02:00")
        gaps = Gaps(False, 1.0, clock)
        gaps.begin_connection()
        keep_alive(gaps, clock, minutes=1)
        for seconds in (19, 91):  # the first of these brings nothing
            clock.now += seconds
            gaps.begin_connection()
            clock.now += 5
            gaps.connection_accepted()
        clock.now += 20
        [ended] = re.findall(r"\(.*; the", said(gaps.unfinished()))
        assert ended == "(2 min 0 s); the"
        assert said(gaps.data_received(is_tweet)) == expected
        assert gaps.data_received(is_tweet) is None


def test_keep_alives_do_not_prove_that_a_backfill_has_come() -> None:
    clock = Clock()
    gaps = Gaps(True, 1.0, clock)
    assert gaps.begin_connection() is None
    keep_alive(gaps, clock, minutes=60)
    clock.now += 70
    assert gaps.begin_connection() == 2, "none was asked for, so nothing was missing"
    gaps.connection_accepted()
    for _ in range(3):
        clock.now += 20
        gaps.data_received(is_tweet=False)
    assert gaps.begin_connection() == 3
    keep_alive(gaps, clock, minutes=60)
    assert gaps.begin_connection() == 5
    keep_alive(gaps, clock, minutes=1)
    hear(gaps, clock, 0)
    keep_alive(gaps, clock, minutes=1)
    clock.now += 40
    assert gaps.begin_connection() == 1


def test_after_three_refusals_in_a_row_of_nothing_but_backfill_it_is_given_up() -> None:
    for is_tweet in (True, False):
        gaps, _ = gap_after(60)

        def refuse(gaps: Gaps = gaps, is_tweet: bool = is_tweet) -> int | None:
            """Have X refuse backfill; return the minutes that were asked for."""
            minutes = gaps.begin_connection()
            gaps.backfill_refused()
            assert gaps.begin_connection() is None
            gaps.data_received(is_tweet)
            return minutes

        assert [refuse(), refuse()] == [1, 1]
        assert gaps.begin_connection() == 1
        gaps.data_received(is_tweet)  # it was accepted, so the count begins again
        assert [refuse(), refuse(), refuse()] == [1, 1, 1]
        assert gaps.begin_connection() is None


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
    gaps, clock = gap_after(10, began, backfill)
    for _ in range(seconds):
        clock.now += 1
        gaps.begin_connection()  # each in vain
    expected = f"no tweets from {report}" if report else ""
    assert said(gaps.data_received(is_tweet=True)) == expected
    assert gaps.data_received(is_tweet=True) is None
    gaps.begin_connection()
    assert gaps.data_received(is_tweet=True) is None, "it is over"
    assert gaps.unfinished() is None


def test_a_gap_that_x_refuses_to_fill_is_reported_so() -> None:
    gaps, clock = gap_after(60)
    for _ in range(MAX_BACKFILL_REFUSALS + 1):
        clock.now += 30
        if gaps.begin_connection():
            gaps.backfill_refused()
            gaps.begin_connection()
        assert said(gaps.data_received(is_tweet=True)).endswith(" (30 s); X refused to resend them")


def test_a_gap_that_the_run_does_not_outlive_is_reported_at_its_end() -> None:
    assert Gaps(True, 1.0, Clock()).unfinished() is None, "nothing has come yet"
    gaps, clock = gap_after(10, backfill=False)
    clock.now += 23
    assert gaps.unfinished() is None, "on a connection with tweets it is Kafka that holds it up"
    gaps.end_connection()
    expected = "no tweets from 14:02:10 to 14:02:33 (23 s); the run ended before the stream resumed"
    assert said(gaps.unfinished()) == expected


def test_what_comes_late_because_of_kafka_is_no_sign_of_life() -> None:
    """By now X has ended the connection; a little of what it sent before still arrives."""
    gaps, clock = gap_after(10)
    clock.now += 1800
    hear(gaps, clock, 5)
    clock.now += 1
    assert gaps.begin_connection() == 5
    expected = f"no tweets from 14:02:10 to 14:32:16 (30 min 6 s); {ASKED_FOR_5}"
    assert said(gaps.data_received(is_tweet=True)) == expected
    gaps.begin_connection()
    assert gaps.data_received(is_tweet=True) is None, "once is enough"


# ------------------------------------------------------------------ what the topic remembers


def test_a_run_that_ended_while_it_caught_up_leaves_the_gap_open() -> None:
    """The times of its tweets, and until when nothing is missing."""
    expected = {
        (): 0,
        (101,): 101,
        (101, 110, 120): 120,
        (1, 100, 110): 1,  # 10 s after a gap it was still catching up
        (1, 100, 121.9): 1,
        (1, 100, 122): 122,  # this took long enough
        (1, 300, 302, 330, 331): 1,  # two gaps, neither made up for
        (1, 300, 320, 330, 340): 340,
    }
    for times, complete_until in expected.items():
        backfill = Backfill(True)
        backfill.resume(times)
        assert backfill.complete.at == complete_until, times


def test_the_first_connect_asks_for_what_came_after_the_newest_event() -> None:
    for age, minutes in {0: 1, 49: 1, 51: 2, 200: 4, 1000: 5, -1000: 1}.items():
        clock = clock_at("14:29:31")
        gaps = Gaps(True, 1.0, clock)
        gaps.resume([clock.now - age], ["1", "2"])
        assert gaps.begin_connection() == minutes, age
        report = gaps.data_received(is_tweet=True)
        assert [gaps.seen_before(tweet_id) for tweet_id in "123"] == [True, True, False]
        assert bool(report) == (age > SILENCE)


def test_the_time_since_the_last_event_may_have_had_keep_alives_and_is_not_counted() -> None:
    for is_tweet, ending in ((None, "the run ended …"), (True, ASKED_FOR_5), (False, ASKED_FOR_5)):
        clock = clock_at("14:29:31")
        gaps = Gaps(True, 1.0, clock)
        gaps.resume([clock.now - 1000], [])
        gaps.begin_connection()
        report = gaps.unfinished() if is_tweet is None else gaps.data_received(is_tweet)
        assert report
        period = "from 14:12:51 to 14:29:31 (16 min 40 s)"
        assert fits(f"no tweets since the last event, {period}; {ending}", report.text)
        assert not report.is_gap
    clock.now += 60
    gaps.begin_connection()
    assert " (1 min 0 s); asked" in said(gaps.data_received(is_tweet=True)), "this is a real one"


def test_a_run_that_x_does_not_let_in_has_a_gap_of_its_own() -> None:
    for seconds in (SILENCE, SILENCE + 1):
        clock = clock_at("14:29:31")
        gaps = Gaps(True, 1.0, clock)
        gaps.resume([clock.now - 10], [])
        gaps.begin_connection()
        clock.now += seconds
        gaps.connection_accepted()
        clock.now += 20
        report = gaps.data_received(is_tweet=True)
        assert report
        assert report.is_gap == (seconds > SILENCE)


def test_events_from_the_future_hide_no_gap() -> None:
    """The clock may have been set back since."""
    clock = Clock()
    gaps = Gaps(True, 1.0, clock)
    gaps.resume([clock.now + 1000], [])
    clock.now += 60
    report = gaps.unfinished()
    assert report
    assert " (1 min 0 s); the run ended before" in report.text


def test_of_a_full_topic_the_newest_events_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are: partitions are read one after the other."""
    monkeypatch.setattr(recent, "MAX_EVENTS", 3)
    polls = [
        {0: [Mock(records=lambda event=event: [event])]}
        for event in (
            SimpleNamespace(timestamp=1000 * second, key=b"%d" % second)
            for second in (101, 103, 105, 1, 2, 3, 102, -1)
        )
    ]
    consumer = Mock(poll=Mock(side_effect=polls))
    consumer.position = lambda partition: consumer.poll.call_count
    found = recent.read_to(consumer, {"a partition": len(polls)})
    assert [(event.time, event.key) for event in found] == [
        (102, b"102"),
        (103, b"103"),
        (105, b"105"),
    ]


# ------------------------------------------------------------------ one connection


class Breaking(io.BytesIO):
    """A body that ends with an error."""

    error: Exception = ConnectionResetError("reset by X")

    def read1(self, size: int | None = -1) -> bytes:
        block = super().read1(size)
        if not block:
            raise self.error
        return block


class TimingOut(Breaking):
    """A body that ends with silence."""

    error = TimeoutError("timed out")


class Dripping(io.BytesIO):
    """A body that comes a byte at a time, a second after the other."""

    def __init__(self, body: bytes, clock: Clock | None = None) -> None:
        super().__init__(body)
        self.clock = clock or Clock()

    def read1(self, size: int | None = -1) -> bytes:
        self.clock.now += 1
        return super().read1(1)


FILTERED = "https://api.x.com/2/tweets/search/stream"


def answer(body: bytes | io.BytesIO = b"", status: int = 200, **headers: str) -> requests.Response:
    """An answer as requests returns it, but not from a socket, and of the filtered stream."""
    file = body if isinstance(body, io.BytesIO) else io.BytesIO(body)
    response = requests.Response()
    response.url = FILTERED
    response.status_code, response.reason = status, responses[status]
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    response.raw = urllib3.HTTPResponse(file, status=status, preload_content=False)
    return response


def end_of(connection: Connection, asks_backfill: bool = False) -> tuple[list[Any], Disconnected]:
    """The lines that a connection brings, and the Disconnected with which it ends."""
    lines: list[Any] = []
    if connection.status != 200:
        return lines, refusal(connection.answer(), asks_backfill)
    try:
        for block in connection.lines():
            lines += block
    except Disconnected as end:
        return lines, end
    pytest.fail(f"it has ended without a reason, after {lines}")


def end_with(
    body: bytes | io.BytesIO, status: int = 200, **headers: str
) -> tuple[list[Any], Disconnected]:
    return end_of(Connection(answer(body, status, **headers), GUARD))


TAILS = [b"", b"c", b"c\r", b"\r", b"x" * (2 << 20)]
TLS_CLOSED = "the TLS connection was closed"
SILENT = "no complete line from X for 22 s"


def test_at_a_clean_end_the_last_line_is_a_line_too() -> None:
    for tail in TAILS:
        lines, end = end_with(b"a\r\n\r\nb\r\n" + tail)
        expected = [len(b"a\r"), 1, 2, *([len(tail)] if tail else [])]
        assert [len(line) for line in lines] == expected
        assert (end.reason, end.rule, end.cuts_line) == ("X ended the stream", ENDED, False)


@pytest.mark.parametrize(
    ("kind", "reason", "rule"),
    [(Breaking, "reset by X", NETWORK), (TimingOut, SILENT, STALLED)],
)
def test_whole_lines_come_before_a_broken_end(
    kind: type[Breaking], reason: str, rule: Rule
) -> None:
    for tail, cuts_line in zip(TAILS, [False, True, True, False, True], strict=True):
        lines, end = end_with(kind(b"a\r\n\r\nb\r\n" + tail))
        assert lines == [b"a\r", b"\r", b"b\r"]
        assert (end.reason, end.rule, end.cuts_line) == (reason, rule, cuts_line)
        assert end.at_least == 0


def test_bytes_that_never_make_a_line_are_silence() -> None:
    """Here they come a byte a second; after 22 of them, the end of the line is just in time."""
    for size, brings in {22: True, 23: False}.items():
        clock = Clock()
        body = b"\r\n" + b"x" * size + b"\n" + b"y" * 100
        lines, end = end_of(Connection(answer(Dripping(body, clock)), SILENCE, clock))
        assert lines == [b"\r", *([b"x" * size] if brings else [])]
        assert (end.reason, end.rule, end.cuts_line) == (SILENT, STALLED, True)


def test_the_time_that_the_reader_takes_is_no_silence() -> None:
    clock = Clock()
    blocks = Connection(answer(Dripping(b"\nxx\n", clock)), SILENCE, clock).lines()
    assert next(blocks) == [b""]
    clock.now += 1000  # Kafka takes nothing
    assert next(blocks) == [b"xx"]


@pytest.mark.parametrize("kind", [io.BytesIO, Dripping])
def test_a_page_is_not_a_stream_and_is_reported_in_its_words(kind: type[io.BytesIO]) -> None:
    for body in (
        b"<!DOCTYPE html>\n<html><title>Over</title>\n<p>capacity</p></html>",
        b"\xef\xbb\xbf<html>\nOver capacity</html>\n",
        b" \r\n <h1>Over\ncapacity",
    ):
        lines, end = end_with(kind(body), Content_Type="application/json")
        assert not b"".join(lines).strip()
        assert end.rule is HTTP
        assert end.reason == "200, but a web page instead of tweets: Over capacity"


def test_only_what_comes_first_shows_that_it_is_a_page() -> None:
    assert len(end_with(Dripping(b"{}\n<b>\n"))[0]) == 2


POOL = urllib3.HTTPSConnectionPool("localhost")
TUNNEL = ProxyError("Unable to connect to proxy", OSError("Tunnel failed: 503 No"))
REFUSED = NewConnectionError(Mock(), "Failed to establish a new connection")
REFUSED.__cause__ = ConnectionRefusedError(111, "Connection refused")
BROKEN_TLS = SSLError(ssl.SSLEOFError(8, "EOF (_ssl.c:1006)"))
UNTRUSTED = ssl.SSLCertVerificationError(1, "[SSL: BAD_THING] it is odd (_ssl.c:1006)")
ODD_HEADER = requests.exceptions.InvalidHeader("an\x1b[31m odd\r\none.")


def wrapped(error: Exception) -> requests.RequestException:
    """An error of urllib3 as requests raises it."""
    return requests.ConnectionError(MaxRetryError(POOL, "/", error))


@pytest.mark.parametrize(
    ("error", "reason", "rule"),
    [
        (wrapped(REFUSED), "Connection refused", UNREACHABLE),
        (wrapped(TUNNEL), "Tunnel failed: 503 No", UNREACHABLE),
        (wrapped(SSLError(UNTRUSTED)), "it is odd", UNREACHABLE),
        (wrapped(BROKEN_TLS), TLS_CLOSED, UNREACHABLE),
        (requests.ReadTimeout("Read timed out.", TimeoutError()), "no response", NETWORK),
        (requests.ConnectionError(ProtocolError("a", OSError(113, "No"))), "No", NETWORK),
        (ODD_HEADER, "an [31m odd one", NETWORK),
    ],
)
def test_a_failed_connect_is_only_a_reason_to_try_again(
    error: Exception, reason: str, rule: Rule
) -> None:
    """X counts connects, but not those it never saw."""
    end = failed_connect(error, "x.example")
    assert (end.rule, end.cuts_line) == (rule, False)
    names_target = rule is UNREACHABLE or reason == "no response"
    assert end.reason == f"cannot connect to x.example: {reason}" if names_target else reason


def test_an_error_while_reading_is_only_a_reason_to_reconnect() -> None:
    """Whatever its type, X has seen this connect."""
    for error, reason in {
        OSError(113, "No route to host"): "No route to host",
        BROKEN_TLS: TLS_CLOSED,
        ssl.SSLZeroReturnError(6, "(EOF) (_ssl.c:992)"): TLS_CLOSED,
        ProtocolError("Connection broken", ConnectionResetError(104, "reset")): "reset",
    }.items():
        end = broken_stream(error, LineSplitter(100))
        assert (end.reason, end.rule) == (reason, NETWORK)


def test_a_bug_is_not_taken_for_a_disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Breaking()
    body.error = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        end_with(body)
    monkeypatch.setattr(requests.Session, "get", Mock(side_effect=body.error))
    with pytest.raises(TypeError, match="a bug"), XStream("http://x", "t", []).connect(None):
        pass


PROBLEM = as_json({"title": "Title", "detail": "and detail"})


def problem(**fields: str) -> bytes:
    """A problem as X describes it; the type is the end of one."""
    if "type" in fields:
        fields["type"] = f"https://api.x.com/2/problems/{fields['type']}"
    return as_json({"detail": "and detail", **fields})


NOT_ENROLLED = {"title": "Client Forbidden", "reason": "client-not-enrolled"}
TO_A_PROJECT = {**NOT_ENROLLED, "detail": "of an App that is attached to a Project. You can …"}
LASTING = x_messages.USED_UP_ADVICE
ADVICE = x_messages.ADVICE
# The status, the body, and the advice
REFUSALS = [
    (400, PROBLEM, ADVICE[400]),
    (401, b"", ADVICE[401]),
    (402, b"<h1>No</h1>", x_messages.BUY_CREDITS),
    (403, PROBLEM, ADVICE[403]),
    (404, b"", ADVICE[404]),
    (404, problem(title="403", reason="402"), ADVICE[404]),
    (401, problem(title="Unauthorized", detail="It is suspended."), ADVICE[401]),
    *((status, problem(type=name), LASTING[name]) for status in (403, 503) for name in LASTING),
    (403, problem(title="SpendCapReached", type="credits"), LASTING["SpendCapReached"]),
    (402, problem(title="UsageCapExceeded", type="credits"), x_messages.RAISE_CAP),
    (429, as_json({"errors": [{"type": "/problems/usage-capped"}]}), x_messages.RAISE_CAP),
    *(
        (403, problem(**{field: "This APP has been Suspended."}), x_messages.SUSPENDED)
        for field in ("title", "reason", "detail", "message")
    ),
    (403, problem(type="unsupported-authentication"), x_messages.NEEDS_APP_ONLY),
    (403, problem(**NOT_ENROLLED), x_messages.NEEDS_PROJECT),
    (403, problem(title="Client Forbidden"), ADVICE[403]),
    (403, b"<h1>Account suspended: unsupported-authentication, credits</h1>", ADVICE[403]),
]


def test_what_x_refuses_and_what_to_do_by_its_own_names() -> None:
    for status, body, advice in REFUSALS:
        _, end = end_with(body, status)
        assert isinstance(end, Refused)
        assert end.advice == advice, body
        assert (end.status, end.limit) == (status, 1)
        assert end.rule is (USED_UP if advice in LASTING.values() else HTTP)
        assert end.reason.startswith(f"{status} ")


def test_only_the_sampled_stream_is_for_enterprise_accounts() -> None:
    """Unless X says something more specific."""
    suspended = problem(title="Client Forbidden", detail="It is suspended.")
    for body, expected in {
        problem(**NOT_ENROLLED): x_messages.ENTERPRISE_ONLY,
        problem(title="Client Forbidden"): x_messages.ENTERPRISE_ONLY,
        problem(**TO_A_PROJECT): x_messages.NEEDS_PROJECT,
        suspended: x_messages.SUSPENDED,
        problem(title="Client Forbidden", type="unsupported-authentication"): (
            x_messages.NEEDS_APP_ONLY
        ),
        b"<h1>Forbidden</h1>": ADVICE[403],
    }.items():
        for stream in ("sample", "sample10"):
            found = answer(body, 403)
            found.url = f"https://api.x.com/2/tweets/{stream}/stream?partition=1"
            _, end = end_of(Connection(found, GUARD))
            assert isinstance(end, Refused)
            assert end.advice == expected


def test_until_when_a_cap_holds_is_shown_if_x_says_so(still: float) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(still - still % 60 + 7200))
    reset = str(int(still - still % 60) + 7200)
    for name in ("x_app_limit_24hour", "x_user_limit_24hour", "x_rate_limit"):
        for remaining, until in {"0": f" (until {moment})", "47": ""}.items():
            headers = {f"{name}_reset": reset, f"{name}_remaining": remaining}
            _, end = end_with(problem(title="UsageCapExceeded"), 429, **headers)
            assert end.reason == f"429 UsageCapExceeded: and detail{until}"
            assert end.at_least == 0, "the waits are those of an HTTP error"
    _, end = end_with(problem(title="UsageCapExceeded"), 429, Retry_After="7200")
    assert end.reason == f"429 UsageCapExceeded: and detail{later(still, 7200)}"
    assert end.at_least == 7200


def later(now: float, seconds: float) -> str:
    return time.strftime(" (until %Y-%m-%d %H:%M)", time.localtime(now + seconds))


def test_a_rate_limit_of_24_hours_is_a_cap(still: float) -> None:
    for name in ("x_app_limit_24hour", "x_user_limit_24hour"):
        for remaining, rule in {"0": USED_UP, "47": RATE_LIMIT}.items():
            _, end = end_with(b"", 429, Retry_After="7200", **{f"{name}_remaining": remaining})
            assert end.rule is rule
            if isinstance(end, Refused):
                assert end.advice == x_messages.RAISE_CAP
                assert end.reason == f"429 Too Many Requests{later(still, 7200)}"
    assert end_with(b"", 503, x_app_limit_24hour_remaining="0")[1].rule is HTTP


REDIRECTS = {
    "https://ann:hunter2@x.example/2/stream?token=hunter2#a": "https://x.example/2/stream",
    "//x.example": "https://x.example",
    "/moved\x1b[31m": "https://api.x.com/moved [31m",
    "http://127.0.0.1:8080/2": "http://127.0.0.1:8080/2",
}


def test_a_redirect_is_named_and_final_the_second_time() -> None:
    for location, target in REDIRECTS.items():
        for status in (301, 302, 303, 307, 308):
            _, end = end_with(b"<h1>Moved</h1>", status, Location=location)
            assert isinstance(end, Refused)
            assert (end.reason, end.rule) == (f"{status} {responses[status]} to {target}", HTTP)
            assert (end.advice, end.limit) == (x_messages.CHECK_REDIRECT, 2)
    _, end = end_with(b"", 302, Location="http://x.example/?http://localhost/")
    assert isinstance(end, Refused)
    assert (end.reason, end.limit) == ("302 Found to http://x.example/", 2)
    assert end.advice == x_messages.UNENCRYPTED, "nobody should set STREAM_URL to that"


def test_what_redirects_to_nowhere_passes() -> None:
    for status, location in (
        *((302, ""), (301, " \t"), (302, "http://[bad/"), (307, "ftp://x/"), (300, "http:///")),
        (304, "https://x.example/"),
    ):
        _, end = end_with(b"<h1>Moved</h1>", status, Location=location)
        assert not isinstance(end, Refused), location
        assert (end.reason, end.rule) == (f"{status} Moved", HTTP)


FOR_NOW = [
    (400, PROBLEM, True, NO_BACKFILL, "400 Title: and detail; trying without backfill"),
    (429, PROBLEM, False, RATE_LIMIT, "429 Title: and detail"),
    (429, as_json(TOO_MANY_CONNECTIONS), True, HTTP, f"429 ConnectionException: too many{FREE}"),
    (409, as_json(WITHOUT_RULES), False, NO_RULES, f"409 ConnectionException: no rules{ADD_RULE}"),
    (409, b"", False, HTTP, "409 Conflict"),
    (503, b"<h1>Over\ncapacity</h1>", False, HTTP, "503 Over capacity"),
    (503, problem(detail="Temporarily suspended"), False, HTTP, "503 Temporarily suspended"),
    (503, problem(title="404"), False, HTTP, "503 404: and detail"),
    (500, problem(**NOT_ENROLLED), False, HTTP, "500 Client Forbidden: and detail"),
]


def test_what_x_refuses_for_now() -> None:
    for status, body, asks_backfill, rule, reason in FOR_NOW:
        _, end = end_of(Connection(answer(body, status), GUARD), asks_backfill)
        assert (end.reason, end.rule) == (reason, rule)
        assert (end.at_least, end.cuts_line) == (0, False)
        assert not isinstance(end, Refused)


def test_retry_after_is_waited_for_by_x_s_own_clock(still: float) -> None:
    for hours in (-30, 0, 30):
        date = still + 3600 * hours
        pattern = "%a, %d %b %Y %H:%M:%S GMT"
        for value, seconds in {
            "120": 120,
            "999999": 999999,  # no wait is longer than X's window, whatever it asks for
            time.strftime(pattern, time.gmtime(date + 300)): 300,
            time.strftime(pattern, time.gmtime(date - 300)): 0,
            "soon": 0,
            "-5": 0,
            "１２": 0,
        }.items():
            headers = {"Retry_After": value, "Date": time.strftime(pattern, time.gmtime(date))}
            for status, rule in {429: RATE_LIMIT, 503: HTTP}.items():
                _, end = end_with(b"busy", status, **headers)
                assert (end.rule, end.at_least) == (rule, seconds), value
            for status in (400, 402, 403):
                assert end_with(b"", status, **headers)[1].at_least == seconds
            redirect = end_with(b"", 302, Location="https://x.example/", **headers)[1]
            assert redirect.at_least == seconds
            connection = Connection(answer(b"", 403, **headers), GUARD)
            assert end_of(connection, asks_backfill=True)[1].at_least == seconds
    _, end = end_with(b"busy", 429, Retry_After="100", x_rate_limit_reset=str(int(still) + 50))
    assert end.at_least == 100, "the later one counts"


def test_too_many_connections_are_no_rate_limit_unless_that_is_used_up_too() -> None:
    headers = {"x_rate_limit_reset": str(int(time.time()) + 840)}
    for remaining, rule in {None: HTTP, "47": HTTP, "0": RATE_LIMIT}.items():
        if remaining:
            headers["x_rate_limit_remaining"] = remaining
        _, end = end_with(as_json(TOO_MANY_CONNECTIONS), 429, **headers)
        assert end.rule is rule
        assert bool(end.at_least) == (rule is RATE_LIMIT)


def test_of_a_refusal_is_shown_what_has_come_and_no_more_than_64_kb() -> None:
    assert end_with(Breaking(b"half a"), 503)[1].reason == "503 half a"
    long = io.BytesIO(b"x" * (10 << 20))
    connection = Connection(answer(long, 503), GUARD)
    end_of(connection)
    assert long.tell() <= 2 * x_http.BLOCK_BYTES
    clock = Clock()
    slow = Connection(answer(Dripping(b"x" * 100, clock), 503), SILENCE, clock)
    assert end_of(slow)[1].reason == "503 " + SILENCE * "x", "nor is the rest waited for"


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> float:
    """The system's clock stands still, at this whole second."""
    now = float(int(time.time()))
    stopped = SimpleNamespace(time=lambda: now, strftime=time.strftime, localtime=time.localtime)
    monkeypatch.setattr(x_messages, "time", stopped)
    return now


def limit(reset: object, remaining: str = "0") -> dict[str, str]:
    return {"x-rate-limit-reset": str(reset), "x-rate-limit-remaining": remaining}


def test_a_reset_that_cannot_be_is_ignored() -> None:
    for reset in ("", "soon", "-1", "1e9", "9999999999", "99999999999", "１２", "900"):
        assert seconds_until_reset(limit(reset)) == 0


def test_the_reset_is_waited_for_and_spread(still: float) -> None:
    reset = int(still) + 900
    waits = [seconds_until_reset(limit(reset)) for _ in range(100)]
    assert 900 <= min(waits) < 901 < 904 < max(waits) <= 905
    waits = [seconds_until_reset({"x-rate-limit-reset": str(reset)}) for _ in range(100)]
    assert 900 <= min(waits) < max(waits) <= 905, "without what remains it is used up"
    assert seconds_until_reset(limit(reset, remaining="47")) == 0


def test_the_clock_of_x_counts_not_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its date is UTC, whether it says so or not."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    waits = []
    for hours in (-30, -3, 0, 3, 30):
        now = time.time() + 3600 * hours
        for form in ("%a, %d %b %Y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"):
            headers = {**limit(int(now) + 300), "Date": time.strftime(form, time.gmtime(now))}
            waits.append(seconds_until_reset(headers))
    monkeypatch.undo()
    time.tzset()
    assert 299 <= min(waits) <= max(waits) <= 306


def test_without_a_date_of_x_this_machine_s_clock_counts(still: float) -> None:
    for date in ("", "now", "Wed, 99 Nov 2026 25:00:00 GMT"):
        headers = {**limit(int(still) + 300), "Date": date}
        assert 300 <= seconds_until_reset(headers) <= 305


def test_only_a_rate_limit_has_a_reset() -> None:
    for status, has_reset in {429: True, 503: False}.items():
        _, end = end_with(b"", status, x_rate_limit_reset=str(int(time.time()) + 900))
        assert bool(end.at_least) == has_reset


# ------------------------------------------------------------------ over a real socket

VARIABLES = ["HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"]


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's names a proxy or a CA bundle."""
    for name in (*VARIABLES, "NO_PROXY", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def end_at(url: str) -> tuple[list[Any], Disconnected]:
    try:
        with XStream(url, x_api.TOKEN, [], GUARD).connect(None) as connection:
            return end_of(connection)
    except Disconnected as end:
        return [], end


FOUND = "302 Found to http://\xe9"
NOT_X = {
    b"": "Remote end closed connection without response",
    b"SSH-2.0-OpenSSH_9.2\r\n": "SSH-2.0-OpenSSH_9.2",
    b"HTTP/1.1 302 Found\r\nLocation: http://\xe9\r\nContent-Length: 0\r\n\r\n": FOUND,
}


@pytest.mark.usefixtures("no_proxy")
def test_whoever_answers_it_is_only_a_reason_to_reconnect() -> None:
    """A captive portal or a broken proxy: next time it may be X again."""
    for data, reason in NOT_X.items():
        with server_with(data) as address:
            lines, end = end_at(f"http://{address}/")
        assert (lines, end.reason) == ([], reason)
        assert end.rule is (HTTP if reason is FOUND else NETWORK)


@pytest.mark.usefixtures("no_proxy")
def test_however_a_body_is_framed_its_last_line_needs_no_newline() -> None:
    body = x_api.tweet(1) + b"\r\n" + x_api.tweet(2)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    for data in (
        chunked % (len(body), body),
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
        b"HTTP/1.0 200 OK\r\n\r\n%b" % body,
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
        (b"HTTP/1.1 200 OK\r\n\r\n", TLS_CLOSED),
    ):
        with server_with(data) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://ann:{PASSWORD}@{proxy}")
            _, end = end_at("https://127.0.0.1:1/")
        target = f"127.0.0.1:1 through the proxy {proxy}"
        assert end.reason == f"cannot connect to {target}: {reason}"
        assert end.rule is UNREACHABLE
        assert not isinstance(end, Unusable)


@pytest.mark.usefixtures("no_proxy")
def test_a_handshake_that_fails_has_not_reached_x(certificate: tuple[str, str, str]) -> None:
    with server_with(b"") as address:
        _, end = end_at(f"https://{address}/")
    assert end.reason == f"cannot connect to {address}: {TLS_CLOSED}"
    assert end.rule is UNREACHABLE
    with x_api.XApi(certificate=certificate[:2]) as api:
        _, end = end_at(api.url)
    assert "certificate verify failed" in end.reason
    assert (end.rule, api.requests) == (UNREACHABLE, [])
    assert not isinstance(end, Unusable)


@pytest.mark.usefixtures("no_proxy")
def test_a_server_that_is_not_there_has_not_been_reached(port: int) -> None:
    _, end = end_at(f"http://127.0.0.1:{port}/")
    assert end.reason == f"cannot connect to 127.0.0.1:{port}: Connection refused"
    assert end.rule is UNREACHABLE
    _, end = end_at("https://nowhere.invalid/")
    assert end.reason.startswith("cannot connect to nowhere.invalid: ")
    assert end.rule is UNREACHABLE


@pytest.mark.usefixtures("no_proxy")
def test_the_other_address_of_a_host_is_tried_where_one_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(x_http, "CONNECT_TIMEOUT", 0.5)
    with x_api.XApi([x_api.Step(tweets=3)]) as api, deaf_port() as dead:
        port = api.server.server_address[1]
        for ports in ((dead, port), (dead,)):
            targets = [("127.0.0.1", number) for number in ports]
            addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target) for target in targets]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=addresses, **__: found)
            lines, end = end_at(f"http://localhost:{port}/")
            if port in ports:
                assert end.reason == "X ended the stream"
                assert [line.removesuffix(b"\r") for line in lines] == api.sent
    assert end.reason == f"cannot connect to localhost:{port}: no response"
    assert end.rule is UNREACHABLE


CHUNK = "the response was cut off or is not valid HTTP"
NOT_GZIP = "the response cannot be decompressed"
ZSTD = "the response is compressed with zstd, which was not requested"
BROTLI = "the response is compressed with br, which was not requested"


@pytest.mark.usefixtures("no_proxy")
def test_what_cannot_be_decoded_is_described_in_words() -> None:
    """Nor is any of it taken for lines."""
    step = x_api.Step
    for fault, text in (
        (step(status=400, body=PROBLEM, gzip=True), "400 Title: and detail"),
        (step(status=400, headers={"Content-Encoding": "gzip"}), "400 Bad Request"),
        (step(status=400, body=PROBLEM, headers={"Content-Encoding": "zstd"}), "400 Bad Request"),
        (step(body="\x0b[1]\n", headers={"Content-Encoding": "BR"}, tweets=0), BROTLI),
        (step(body="[1]\n", headers={"Content-Encoding": "gzip, zstd"}, tweets=0), ZSTD),
        (step(body="[1]\n", headers={"Content-Encoding": "gzip"}, tweets=0), NOT_GZIP),
        (step(tweets=0, end="garbled"), CHUNK),
        (step(tweets=0, end="torn"), CHUNK),
    ):
        with x_api.XApi([fault]) as api:
            lines, end = end_at(api.url)
        assert end.reason == text
        assert [line.rstrip(b"\r") for line in lines] == api.sent


def test_an_encoding_that_nobody_knows_is_none() -> None:
    for encoding in ("", "identity", "utf-8", "x-br", "none"):
        lines, end = end_with(b"a\nb\n", Content_Encoding=encoding)
        assert (lines, end.reason) == ([b"a", b"b"], "X ended the stream")


# ------------------------------------------------------------------ settings

Refusal = Callable[..., tuple[Any, str]]
MALFORMED = (
    "BEARER_TOKEN is missing or malformed. "
    "Copy your X app's bearer token to .env or the environment."
)
UNENCRYPTED = (
    "STREAM_URL must start with https:// to keep the token secret "
    "(http:// is for this machine only)"
)


def test_what_cannot_be_a_token(refusal: Refusal) -> None:
    for token in ("", "  ", "Bearer ", '""', "two words", "tökén", "a\nb"):
        assert refusal(script.bearer_token, token) == (2, MALFORMED)


@pytest.mark.usefixtures("configure")
@pytest.mark.parametrize("text", [" Bearer {}\n", "{}\r\n", "'{}'", '"Bearer {}"', ' "{}" '])
def test_the_token_is_used_without_what_stands_around_it_and_never_shown(text: str) -> None:
    """docker's --env-file leaves quotes around a value."""
    assert script.bearer_token(text.format(x_api.TOKEN)) == x_api.TOKEN
    assert console.mask(f"Authorization: Bearer {x_api.TOKEN}") == "Authorization: Bearer ***"


def test_the_token_goes_out_encrypted_only(refusal: Refusal) -> None:
    for url in (
        *("http://api.x.com/2", "ftp://localhost", "localhost"),
        *("http://localhost.evil.com/", "http://localhost@evil.com/", "HTTP://127.0.0.1.evil.com"),
    ):
        assert refusal(script.stream_url, url) == (2, UNENCRYPTED)
    for url in ("https://proxy.example/2", "http://localhost:80/", "http://[::1]", ""):
        for form in ("{}", '"{}"', "'{}' ", " {}\r\n"):  # docker's --env-file leaves quotes
            assert script.stream_url(form.format(url)) == (url or script.X_URL)
        XStream(url or script.X_URL, x_api.TOKEN, [("a", "b")])
    for url in ("HTTPS://proxy.example/2?start=1", "Http://localhost"):
        scheme, _, rest = url.partition(":")
        assert script.stream_url(url) == f"{scheme.lower()}:{rest}", "a scheme is of any case"


def test_what_would_repeat_tweets_at_every_reconnect_is_refused(refusal: Refusal) -> None:
    for name in ("start_time", "end_time", "backfill_minutes"):
        would = (
            "would make X send the same tweets on every reconnect. Remove it; "
            "--backfill fills gaps."
        )
        found = refusal(script.parse_flags, ["--param", f"{name}=1"])
        assert found == (2, f"--param {name} {would} See --help.")
        for query in (f"?{name}=1", f"?a=b&{name}", f"?{name.replace('_', '%5F')}=1#a"):
            found = refusal(script.stream_url, script.X_URL + query)
            assert found == (2, f"{name} in STREAM_URL {would}")


NO_USER = "the URL must not contain @, as in USER:PASSWORD@HOST"
URLS = {
    "https://": "Invalid URL 'https://': No host supplied",
    "https://127.0.0.1:99999/": "Failed to parse: https://127.0.0.1:99999/",
    f"https://ann:{PASSWORD}@127.0.0.1:99999/": NO_USER,
    f"https://ann:1/{PASSWORD}@127.0.0.1/": NO_USER,
    "https://x..com/": "encoding with 'idna' codec failed (UnicodeError: label empty or too long)",
}


def test_a_stream_url_that_cannot_be_used(refusal: Refusal) -> None:
    for url, reason in URLS.items():
        status, message = refusal(XStream, url, x_api.TOKEN, [])
        assert (status, message.partition(": ")[0]) == (2, "invalid STREAM_URL or --param")
        assert message.partition(": ")[2] == reason or ".." in url


INVALID_PROXY = (
    "cannot use the proxy in HTTPS_PROXY, ALL_PROXY or the system's settings: it must be "
    "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with special characters percent-encoded"
)
NO_SOCKS = (
    "cannot use the proxy in HTTPS_PROXY, ALL_PROXY or the system's settings: SOCKS needs the "
    "package PySocks. Run: pip install PySocks"
)
PROXIES = {
    f"http://ann:{PASSWORD}@127.0.0.1:port": INVALID_PROXY,
    f"http://ann:{PASSWORD}/x@127.0.0.1:3128": INVALID_PROXY,
    f"http://ann:{PASSWORD}#x@127.0.0.1:3128": INVALID_PROXY,
    f"http://ann:{PASSWORD}@:3128": INVALID_PROXY,
    f"http://ann:{PASSWORD}@": INVALID_PROXY,
    f"http://ann:{PASSWORD}@a..b:3128": INVALID_PROXY,
    f"http://ann:123/{PASSWORD}@proxy:3128": INVALID_PROXY,  # 123 and a path?
    f"http://ann:123?{PASSWORD}@proxy:3128": INVALID_PROXY,
    f'"http://ann:{PASSWORD}@proxy:3128"': INVALID_PROXY,
    f"http://ann:{PASSWORD}@proxy:0": INVALID_PROXY,
    f"ftp://ann:{PASSWORD}@127.0.0.1:3128": INVALID_PROXY,
    f"ann:{PASSWORD}@proxy:3128": INVALID_PROXY,
    f"socks5h://ann:{PASSWORD}@127.0.0.1:1080": NO_SOCKS,
}


@pytest.mark.usefixtures("no_proxy")
def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        for proxy, reason in PROXIES.items():
            monkeypatch.setenv(variable, proxy)
            _, end = end_at("https://127.0.0.1:1/")
            assert isinstance(end, Unusable), proxy
            assert end.reason == reason, proxy
        monkeypatch.delenv(variable)


@pytest.mark.usefixtures("no_proxy")
def test_a_ca_bundle_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marked = "-----BEGIN CERTIFICATE-----\nabcd\n-----END CERTIFICATE-----\n"
    path = tmp_path / "ca.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with server_with(b"") as address:
        for content in (None, "", "hello\n", marked):
            if content is not None:
                path.write_text(content)
            _, end = end_at(f"https://{address}/")
            assert isinstance(end, Unusable), content
            assert end.reason.startswith("cannot use the CA bundle in REQUESTS_CA_BUNDLE or C")
            assert str(path) in end.reason or content is not None


# ------------------------------------------------------------------ what to publish, what to count


class Hurried(Stop):
    """It waits for nothing, but notes for how long; after some connections it asks to stop."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        self.connections = connections
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == self.connections:
            self.request()


class Stream(XStream):
    """An XStream without sockets: its answers, or the reasons for which there is none."""

    def __init__(self, *answers: requests.Response | Disconnected) -> None:
        self.answers = iter(answers)
        self.asked: list[int | None] = []  # the minutes of backfill

    @contextmanager
    def connect(self, backfill_minutes: int | None) -> Iterator[Connection]:
        self.asked.append(backfill_minutes)
        found = next(self.answers)
        if isinstance(found, Disconnected):
            raise found
        yield Connection(found, GUARD)


Event = tuple[bytes | None, Any]


def publish(
    *answers: requests.Response | Disconnected, second: float = 1.0, has_backfill: bool = False
) -> tuple[list[Event], str]:
    """What is published of these answers, and the counts."""
    stop = Hurried(len(answers))
    source = TweetSource(Stream(*answers), Gaps(has_backfill, second, Clock()), second, stop)
    events: list[Event] = []
    with suppress(Stopped):
        for batch in source.chunks():
            events += zip(batch.keys or [], batch.values, strict=True)
    return events, source.details()


def messages(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What was written to standard error, without the script's name."""
    return [line.partition(": ")[2] for line in capfd.readouterr().err.splitlines()]


def test_a_key_is_utf_8_whatever_the_id_is() -> None:
    odd = rb'{"data":{"id":"\ud800"}}'
    expected = [(b"?", odd)], " (0 reconnects, 0 skipped)"
    assert publish(answer(odd + b"\r\n\r\n\n")) == expected


RUBBISH = [b"[1]", b"[2]", b'{"data":{}}', b'{"a":1}', b"x" * (2 << 20), b"y" * (3 << 20)]


def test_what_is_not_a_tweet_is_counted_and_reported_once_a_minute_and_kind(
    capfd: pytest.CaptureFixture[str],
) -> None:
    body = b"".join(line + b"\n" for line in RUBBISH)
    assert publish(answer(body * 2), second=3600) == ([], " (0 reconnects, 12 skipped)")
    *said, ended = messages(capfd)
    assert said == [
        "skipped a line that is not a JSON object: [1]",
        'skipped a message without a tweet ID: {"data":{}}',
        "skipped a line over 1 MiB",
    ]
    assert not ended.endswith(" in 0.0 s"), "rubbish is no sign of life"
    publish(answer(body), second=0)
    assert len(messages(capfd)) == 7, "the minute is over each time"


def test_what_came_before_a_disconnect_is_published_and_what_follows_is_not() -> None:
    """Rubbish, a keep-alive or a tweet comes first; only rubbish is no sign of life."""
    tweet = x_api.tweet(1)
    for message, before, published, at_once in (
        (GOODBYE, b"[1]", [], False),
        (GOODBYE, b"\r", [], True),
        (GOODBYE, tweet, [tweet], True),
        (TOO_MANY_CONNECTIONS, tweet, [tweet], False),
    ):
        stop = Hurried(1)
        body = b"\n".join([before, as_json(message), x_api.tweet(2), b"[2]", b""])
        source = TweetSource(Stream(answer(body)), Gaps(False), 1.0, stop)
        batches = source.chunks()
        assert next(batches).values == published
        with pytest.raises(Stopped):
            next(batches)
        [wait] = stop.waits
        assert wait == 0 if at_once else wait >= 5
        assert source.details() == f" (0 reconnects, {int(before == b'[1]')} skipped)"


def test_only_backfill_looks_for_duplicates() -> None:
    lines = b"".join(x_api.tweet(number) + b"\r\n" for number in (1, 2, 1, 1))
    for has_backfill, count, note in ((False, 4, ""), (True, 2, ", 2 duplicates")):
        events, details = publish(answer(lines), has_backfill=has_backfill)
        assert len(events) == count
        assert details == f" (0 reconnects, 0 skipped{note})"


def test_the_counts_in_words() -> None:
    assert Counts(1, 1, 1, 1).text() == " (1 reconnect, 1 skipped, 1 duplicate, 1 gap)"
    assert Counts(2, 3, 0, 5).text() == " (2 reconnects, 3 skipped, 5 gaps)"


# ------------------------------------------------------------------ over many connections


def test_a_final_refusal_ends_the_script_with_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    tweet = answer(x_api.tweet(1) + b"\n")
    for status, times, exit_status in (
        *((400, 1, 2), (402, 1, 1), (403, 1, 1)),
        *((400, 10, 1), (402, 10, 1), (403, 10, 1)),
    ):
        first = [tweet] if times > 1 else []
        with pytest.raises(SystemExit) as end:
            publish(*first, *[refused(status)] * times, refused(404))
        assert end.value.code == exit_status
        repeated = " 10 times in a row" if times > 1 else ""
        assert messages(capfd)[-1] == f"X refused the request{repeated}: no. Do this."
        tweet = answer(x_api.tweet(1) + b"\n")


def test_credits_that_are_used_up_are_reported_once_and_may_come_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After keep-alives, too; once in a row."""
    body = problem(title="CreditsDepleted", detail="none left")
    none_left = [answer(body, 403) for _ in range(9)]
    tweet = x_api.tweet(1) + b"\n"
    events, _ = publish(answer(b"\r\n"), *none_left, answer(tweet), answer(body, 402), second=1e-9)
    assert len(events) == 1
    advice = "The account has no credits left. Buy credits in X's developer console"
    assert [text for text in messages(capfd) if "credits" in text] == [
        f"403 CreditsDepleted: none left. {advice}; reconnecting now",
        f"402 CreditsDepleted: none left. {advice}; reconnecting now",
    ]


def test_what_else_is_used_up_is_reported_too(capfd: pytest.CaptureFixture[str]) -> None:
    """Within the minute, and however X words it."""
    titles = ("CreditsDepleted", "CreditsDepleted", "SpendCapReached", "SpendCapReached")
    spent = [answer(problem(title=title, detail=f"{n}"), 403) for n, title in enumerate(titles)]
    publish(answer(b"\r\n"), *spent, second=3600)
    [_, credits_left, cap] = messages(capfd)
    assert credits_left.startswith("403 CreditsDepleted: 0. The account has no credits left. Buy ")
    assert cap.startswith("403 SpendCapReached: 2. The spending limit has been reached. Raise it ")


def test_another_instance_may_be_why_x_ends_one_connection_after_the_other(
    capfd: pytest.CaptureFixture[str],
) -> None:
    reset = [answer(Breaking(b"\r\n")) for _ in range(2)]
    publish(*(answer(b"\r\n") for _ in range(MAX_ENDS - 2)), *reset, second=3600)
    another = (
        "(at least 5 connections ended in 3 minutes; "
        "another instance may be running with this token)"
    )
    assert messages(capfd) == [
        "X ended the stream; reconnecting now",
        "reset by X; reconnecting now",
        f"reset by X {another}; reconnecting now",
    ]
    publish(*(answer(b"[1]\n") for _ in range(MAX_ENDS)), second=3600)
    assert "another" not in "".join(messages(capfd)), "none of these was a stream"


def test_a_setting_that_cannot_be_used_ends_the_script_unless_it_has_worked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The file of a CA bundle, for example, may be missing while it is replaced."""
    with pytest.raises(SystemExit) as end:
        publish(Unusable("cannot use it"), answer())
    assert end.value.code == 2
    assert messages(capfd) == ["cannot use it"]
    lines = [x_api.tweet(number) + b"\n" for number in (1, 2)]
    events, _ = publish(answer(lines[0]), Unusable("cannot use it"), answer(lines[1]))
    assert len(events) == 2


def test_each_kind_of_trouble_is_reported_once_a_minute_whatever_x_says(
    capfd: pytest.CaptureFixture[str],
) -> None:
    publish(
        answer(x_api.tweet(1) + b"\n"),
        *(answer(b"ray 8f2a", 503), answer(b"ray 77be", 500)),
        *(answer(b"id a", 403), answer(b"id b", 403)),
        *(answer(Breaking(b"{}\n")), answer(Breaking(b"[]\n"))),
        *(answer(b"<p>1</p>"), answer(b"<p>2")),
        second=3600,
    )
    assert [line.partition("; reconnecting")[0] for line in messages(capfd)] == [
        "X ended the stream",
        "503 ray 8f2a",
        "403 id a",
        "skipped a line that is not a JSON object: {}",
        "reset by X",
        "200, but a web page instead of tweets: 1",
    ]


def test_what_x_dropped_while_kafka_held_us_up_is_asked_for_at_the_next_connect() -> None:
    clock, stop = Clock(), Hurried(2)
    stream = Stream(answer(Dripping(x_api.tweet(1) + b"\n" + x_api.tweet(2) + b"\n")), answer())
    batches = TweetSource(stream, Gaps(True, 1.0, clock), 1.0, stop).chunks()
    assert len(next(batches).values) == 1
    clock.now += 80  # nobody takes the next one; by now X has ended the connection
    with suppress(Stopped):
        list(batches)
    assert stream.asked == [None, 2]


def test_a_gap_is_reported_if_the_run_ends_while_it_waits(
    capfd: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    body = x_api.tweet(1) + b"\n" + as_json(TOO_MANY_CONNECTIONS) + b"\n"
    source = TweetSource(Stream(answer(body)), Gaps(False, 1.0, clock), 1.0, Hurried(1))
    with suppress(Stopped):
        list(source.chunks())
    clock.now += 60
    source.ended_early()
    assert messages(capfd)[-1].endswith("; the run ended before the stream resumed")
    assert source.details() == " (0 reconnects, 0 skipped, 1 gap)"


def test_a_gap_is_not_reported_again_once_the_run_is_over(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The source may still be reading then, and the stream may even resume."""
    clock, stop = Clock(), Hurried(2)
    gaps = Gaps(False, 1.0, clock)
    stream = Stream(*(answer(x_api.tweet(number) + b"\n") for number in (1, 2)))
    source = TweetSource(stream, gaps, 1.0, stop)
    batches = source.chunks()
    next(batches)
    gaps.end_connection()
    clock.now += 60
    source.ended_early()
    with suppress(Stopped):
        list(batches)
    assert [line for line in messages(capfd) if "no tweets" in line] == [
        f"no tweets from {period_text(clock.now - 60, clock.now)} (1 min 0 s); "
        "the run ended before the stream resumed"
    ]
    assert source.details() == " (1 reconnect, 0 skipped, 1 gap)"


# ------------------------------------------------------------------ a quiet stream


class Timed(io.BytesIO):
    """A body whose parts come after that many seconds each; None is a silence that ends it."""

    def __init__(self, clock: Clock, parts: list[tuple[float, bytes | None]]) -> None:
        super().__init__()
        self.clock, self.parts = clock, iter(parts)

    def read1(self, _size: int | None = -1) -> bytes:
        seconds, part = next(self.parts, (0, b""))
        self.clock.now += seconds
        if part is None:
            raise TimeoutError
        return part


class Patient(Hurried):
    """By the test's clock it waits."""

    def __init__(self, clock: Clock, connections: int) -> None:
        super().__init__(connections)
        self.clock = clock

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        super().wait(seconds)


KEEP_ALIVE = (20.0, b"\r\n")
SORRY = b"<h1>Sorry</h1>"  # of an edge, without a word of X
LATER = {"Retry_After": "120"}


class Trouble(NamedTuple):
    """How a connection ends, and after how many seconds; the answers to the next connects."""

    after: float
    end: bytes | None
    answers: list[tuple[int, dict[str, str]]]
    waits: list[int]  # the shortest before each connect
    gap: int = 0  # seconds; 0: there was a connection, or none for no longer than X is ever silent


TROUBLES = [
    Trouble(19, b"", [], [0]),
    Trouble(19, as_json(GOODBYE) + b"\r\n", [], [0]),
    Trouble(3, b"", [(503, {})], [0, 5]),
    Trouble(3, b"", [(403, {})], [0, 5]),
    Trouble(3, b"", [(400, {}), (404, {})], [0, 5, 10]),
    Trouble(3, b"", [(401, {}), (403, {}), (404, {})], [0, 5, 10, 20], gap=38),
    Trouble(3, b"", [(503, LATER)], [0, 120], gap=123),
    Trouble(22.1, None, [], [0], gap=22),
]


def quiet_stream(clock: Clock, troubles: list[Trouble]) -> Iterator[requests.Response]:
    """A tweet an hour, keep-alives, and trouble every 20 minutes."""
    for number, trouble in enumerate(troubles):
        tweet = (10.0, x_api.tweet(number) + b"\r\n" if number % 3 == 0 else b"\r\n")
        end = (trouble.after, trouble.end)
        yield answer(Timed(clock, [KEEP_ALIVE, tweet, *[KEEP_ALIVE] * 60, end]))
        yield from (answer(SORRY, status, **headers) for status, headers in trouble.answers)
    yield answer(Timed(clock, [KEEP_ALIVE] * 60))


def test_eight_hours_of_a_quiet_stream(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """18 pages refuse it, which do not end it; the waits start anew; each gap is a real one."""
    clock = Clock()
    monkeypatch.setattr(x_source, "Backoff", lambda second: Backoff(second, clock))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=clock))
    troubles = TROUBLES * 3
    expected = [wait for trouble in troubles for wait in trouble.waits] + [0]
    gaps = [trouble.gap for trouble in troubles if trouble.gap]
    stop = Patient(clock, connections=len(expected))
    stream = Stream(*quiet_stream(clock, troubles))
    source = TweetSource(stream, Gaps(False, 1.0, clock), 1.0, stop)
    values = []
    with suppress(Stopped):
        for chunk in source.chunks():
            values += chunk.values
    source.ended_early()
    assert values == [x_api.tweet(number) for number in range(0, len(troubles), 3)]
    assert 8 * 3600 < clock.now - Clock().now < 9 * 3600
    for wait, found in zip(expected, stop.waits, strict=True):
        assert wait <= found <= 1.2 * wait
    lengths = re.findall(r"no tweets from .* \((?:(\d) min )?(\d+) s\)", "\n".join(messages(capfd)))
    for gap, (minutes, seconds) in zip(gaps, lengths, strict=True):
        assert gap <= 60 * int(minutes or 0) + int(seconds) <= 1.2 * gap
    counts = f"{len(expected) - 1} reconnects, 0 skipped, {len(gaps)} gaps"
    assert source.details() == f" ({counts})"


# ------------------------------------------------------------------ what it says meanwhile


def test_the_rate_in_the_log_is_that_of_the_newest_minute(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    source = TweetSource(Stream(), Gaps(False), 1.0, Stop())
    reports = progress.Progress(source, Mock())
    for acknowledged in (0, 600, 600 + 3000):
        for _ in range(60):
            clock.now += 1
            reports.report(acknowledged, acknowledged, 0)
    assert messages(capfd) == [
        "0 tweets, 0/s (0 reconnects, 0 skipped)",
        "600 tweets, 10/s (0 reconnects, 0 skipped)",
        "3600 tweets, 50/s (0 reconnects, 0 skipped)",
    ]
