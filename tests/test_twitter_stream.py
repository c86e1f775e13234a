"""twitter-stream.py, as a process, with a stand-in for X on a real socket, and a real Kafka.

test_x_rules.py tests the parts of it that implement X's rules.
"""

import contextlib
import importlib
import itertools
import json
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from broker import Broker, free_ports
from cli import Stop, Throttle
from delivery import MAX_IN_FLIGHT
from http_stream import StreamOpener
from x_api import Step, XApi

import pytest
import trustme
from conftest import (
    Read,
    Result,
    Running,
    Scripts,
    Summary,
    Terminal,
    read_summary,
    values,
    wait_until,
)

SECOND = 0.1  # the length of a second of X's rules, where nothing depends on it


def env(api: XApi, second: float = SECOND, **more: str) -> dict[str, str]:
    return {
        "STREAM_URL": api.url,
        "BEARER_TOKEN": api.token,
        "STREAM_TEST_SECOND": str(second),
        **more,
    }


def follow(
    scripts: Scripts,
    topic: str,
    count: int,
    script: list[Step],
    *arguments: str,
    second: float = SECOND,
) -> tuple[Result, XApi]:
    """Publish `count` tweets from a stand-in with the script."""
    with XApi(script) as api:
        done = scripts.run(
            "twitter-stream", "-t", topic, "-n", count, *arguments, env=env(api, second)
        )
    return done, api


def messages(done: Result) -> list[str]:
    """Standard error's lines, without the script's name."""
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("twitter-stream.py: ") for line in lines), lines
    return [line.removeprefix("twitter-stream.py: ") for line in lines]


def summary(done: Result) -> str:
    return messages(done)[-1]


def reconnects(done: Result) -> list[str]:
    """The reason for each reconnect."""
    found = (re.fullmatch(r"(.*); reconnecting in \d+\.\d s", line) for line in messages(done))
    return [match[1] for match in found if match]


# ------------------------------------------------------------------ what is published


@pytest.mark.parametrize(
    "step",
    [Step(), Step(gzip=True), Step(chunk=1), Step(chunk=7), Step(chunk=1000, gzip=True)],
    ids=repr,
)
def test_tweets_arrive_as_x_sent_them(scripts: Scripts, topic: str, read: Read, step: Step) -> None:
    done, api = follow(scripts, topic, 100, [step], second=1)
    assert (done.returncode, done.stdout) == (0, b"")
    assert messages(done) == [f"published 100 tweets to {topic} (0 reconnects, 0 skipped)"]
    found = read(topic)
    assert values(found) == api.sent[:100]
    ids = [json.loads(line)["data"]["id"] for line in api.sent[:100]]
    assert [record.key.decode() for record in found] == ids
    printed = scripts.run("consumer", "-t", topic, "-e").stdout
    assert printed == b"".join(line + b"\n" for line in api.sent[:100])
    assert "🏃‍♀️".encode() in printed


def test_parameters_and_headers(scripts: Scripts, topic: str, read: Read) -> None:
    fields = "tweet.fields=created_at,lang"
    params = ["--param", fields, "--param", "expansions=author_id"]
    done, api = follow(scripts, topic, 1, [Step()], *params, second=1)
    assert done.returncode == 0
    assert messages(done) == [f"published 1 tweet to {topic} (0 reconnects, 0 skipped)"]
    [request] = api.requests
    assert request.query == {"tweet.fields": "created_at,lang", "expansions": "author_id"}
    assert request.headers["Authorization"] == f"Bearer {api.token}"
    assert re.fullmatch(r"twitter-stream\.py/\d+\.\d+", request.headers["User-Agent"])
    assert request.headers["Accept-Encoding"] == "gzip"
    [record] = read(topic)
    assert {"created_at", "lang"} <= json.loads(record.value)["data"].keys()


SILENT = "no complete line from X for 22 s"


@pytest.mark.parametrize(
    ("fault", "reason", "skipped", "second"),
    [
        (Step(tweets=10), "X ended the stream", 0, SECOND),
        (Step(tweets=10, end="cut"), ".*IncompleteRead.*", 0, SECOND),
        (Step(tweets=10, end="torn"), ".*IncompleteRead.*", 1, SECOND),
        (Step(tweets=10, end="torn", gzip=True), ".*IncompleteRead.*", 1, SECOND),
        (Step(tweets=10, end="tail"), "X ended the stream", 0, SECOND),
        (Step(tweets=10, end="reset"), ".*Connection reset by peer.*", 0, SECOND),
        (Step(tweets=10, end="silence"), SILENT, 0, SECOND),
        (Step(tweets=0, end="silence"), SILENT, 0, SECOND),
        (
            Step(tweets=1, headers={"Content-Encoding": "gzip"}),
            ".*while decompressing data.*",
            0,
            SECOND,
        ),
        (
            Step(status=503, body="<html><h1>Over\ncapacity</h1></html>"),
            "503 Over capacity",
            0,
            SECOND,
        ),
        (Step(status=500), "500 Internal Server Error", 0, SECOND),
        (Step(status=429, body='{"title":"Slow","detail":"down"}'), "429 Slow: down", 0, 0.02),
        (Step(tweets=0), "X ended the stream", 0, SECOND),
    ],
    ids=repr,
)
def test_it_reconnects_and_loses_no_whole_line(
    scripts: Scripts, topic: str, read: Read, fault: Step, reason: str, skipped: int, second: float
) -> None:
    done, api = follow(scripts, topic, 50, [fault, Step()], second=second)
    assert done.returncode == 0
    [found] = reconnects(done)
    assert re.fullmatch(reason, found)
    counted = read_summary(done.stderr)._replace(gaps=0)
    assert counted == Summary(published=50, reconnects=1, skipped=skipped)
    if fault.end == "silence":
        pause = api.requests[1].time - api.requests[0].time
        assert 22 * SECOND <= pause <= 25 * SECOND + 1
    if fault.headers:  # what cannot be decoded was not read
        del api.sent[0]
    assert values(read(topic)) == api.sent[:50]
    assert len(api.requests) == 2
    assert api.most_open == 1


def test_what_is_not_a_tweet_is_skipped_and_reported_once_a_minute_and_kind(
    scripts: Scripts, topic: str, read: Read
) -> None:
    """A minute is 1.2 s: the wait after the 429 is longer; everything before it is shorter."""
    not_json = ["[1]", "not\x1b json", "-"]
    no_id = [
        '{"data":{}}',
        '{"data":{"id":7}}',
        '{"data":{"id":""}}',
        '{"errors":[{"title":"Not Found Error"}]}',
    ]
    odd = '{"data":{"id":"\\ud800"}}'
    partial = '{"data":{"id":"1","text":"x"},"errors":[{"title":"Not Found Error"}]}'
    lines = [*not_json, *no_id, "", odd, partial, "x" * (1 << 20) + "y"]
    script = [
        Step(body="".join(f"{line}\r\n" for line in lines), tweets=0),
        Step(body="[2]\n", tweets=0),
        Step(status=429),
        Step(body="[3]\n"),
    ]
    done, api = follow(scripts, topic, 4, script, second=0.02)
    assert done.returncode == 0
    counted = read_summary(done.stderr)._replace(gaps=0)
    assert counted == Summary(published=4, reconnects=3, skipped=10)
    assert values(read(topic)) == [odd.encode(), partial.encode(), *api.sent[:2]]
    assert [line for line in messages(done) if line.startswith("skipped")] == [
        "skipped a line that is not a JSON object: [1]",
        'skipped a message without a tweet ID: {"data":{}}',
        "skipped a line over 1 MiB",
        "skipped a line that is not a JSON object: [3]",
    ]


def test_what_speaks_of_a_disconnect_is_none(scripts: Scripts, topic: str, read: Read) -> None:
    """Neither a tweet nor a line that is not one ends a connection, whatever its text says."""
    text = '"text":"operational-disconnect, connection_issue"'
    line, tweet = f'{{"data":{{{text}}}}}', f'{{"data":{{"id":"1",{text}}}}}'
    done, api = follow(scripts, topic, 5, [Step(body=f"{line}\r\n{tweet}\r\n")], second=1)
    assert messages(done) == [
        f"skipped a message without a tweet ID: {line}",
        f"published 5 tweets to {topic} (0 reconnects, 1 skipped)",
    ]
    assert values(read(topic)) == [tweet.encode(), *api.sent[:4]]


# ------------------------------------------------------------------ what X or others answer


def test_a_redirect_is_not_followed_nor_read_as_the_token_is_for_x_alone(
    scripts: Scripts, topic: str
) -> None:
    with XApi() as other:
        redirect = Step(
            status=302, headers={"Location": other.url}, body="drip" * 20, chunk=1, pause=1
        )
        odd = Step(status=302, headers={"Location": "http://[bad/"})
        began = time.monotonic()
        done, _ = follow(scripts, topic, 1, [redirect, odd, Step()])
    [reason] = reconnects(done)
    assert re.fullmatch("302 (drip)*(d|dr|dri|drip)", reason)
    assert read_summary(done.stderr).reconnects == 2
    assert time.monotonic() - began < 20, "it waits no longer for it than for any refusal"
    assert other.requests == []


LONG = b"x" * 70_000
NOT_X = {
    b"": "Remote end closed connection without response",
    b"HTTP/1.1 nonsense\r\n\r\n": "HTTP/1.1 nonsense",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n": (
        "Content-Length contained multiple unmatching values (5, 6)"
    ),
    b"HTTP/1.1 302 Found\r\nLocation: http://portal/\xe9\r\nContent-Length: 0\r\n\r\n": "302 Found",
    b"SSH-2.0-OpenSSH_9.2\r\n": "SSH-2.0-OpenSSH_9.2",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffffffff\r\n": (
        "IncompleteRead(0 bytes read)"
    ),
    b"HTTP/1.1 200 OK\r\nX-Long: %b\r\n\r\n" % LONG: (
        "got more than 65536 bytes when reading header line"
    ),
}


@pytest.mark.parametrize(("answer", "reason"), NOT_X.items(), ids=range(len(NOT_X)))
def test_no_answer_ends_it(scripts: Scripts, topic: str, answer: bytes, reason: str) -> None:
    """Whoever answers, a captive portal or a broken proxy: next time it may be X again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        settings = {"STREAM_URL": url, "BEARER_TOKEN": "secret-token", "STREAM_TEST_SECOND": "0.1"}
        running = scripts.start("twitter-stream", "-t", topic, env=settings)
        server.settimeout(20)
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    *lines, last = messages(done)
    assert reconnects(done)[0] == reason
    assert len(reconnects(done)) == len(lines)
    assert re.fullmatch(rf"published 0 tweets to {topic} \(\d reconnects?, 0 skipped\)", last)


def problem(**fields: object) -> str:
    return json.dumps(fields)


UNAUTHORIZED = problem(title="Unauthorized", detail="Unauthorized")
FORBIDDEN = problem(title="Client Forbidden", detail="enroll", reason="client-not-enrolled")
USED_UP = problem(title="UsageCapExceeded", detail="Usage cap exceeded: Monthly", period="Monthly")
INVALID = problem(
    title="Invalid Request",
    detail="invalid",
    errors=[{"message": "The query parameter [foo] is unknown"}],
)
PAGE = "<html><title>Forbidden</title><p>by the\x1b[31m proxy\x07</html>"
NOT_VALID = "The bearer token is invalid. Check BEARER_TOKEN."
NOT_SOLD = "The app has no access to the stream. X sells it to Enterprise accounts."
REFUSALS = {
    "401": (
        Step(status=401, body=UNAUTHORIZED),
        f"401 Unauthorized: Unauthorized. {NOT_VALID}",
    ),
    "401 in pieces": (
        Step(status=401, body=UNAUTHORIZED, chunk=9),
        f"401 Unauthorized: Unauthorized. {NOT_VALID}",
    ),
    "401 that cannot be decoded": (
        Step(status=401, body="plain", headers={"Content-Encoding": "gzip"}),
        f"401 Unauthorized. {NOT_VALID}",
    ),
    "401 cut short": (
        Step(status=401, body="cut short", end="cut"),
        f"401 cut short. {NOT_VALID}",
    ),
    "403": (
        Step(status=403, body=FORBIDDEN),
        f"403 Client Forbidden: enroll. {NOT_SOLD}",
    ),
    "403 of a proxy": (
        Step(status=403, body=PAGE),
        f"403 Forbidden by the [31m proxy. {NOT_SOLD}",
    ),
    "404": (
        Step(status=404),
        "404 Not Found. There is no stream at this URL. Check STREAM_URL.",
    ),
    "429": (
        Step(status=429, body=USED_UP),
        "429 UsageCapExceeded: Usage cap exceeded: Monthly. "
        "The plan's tweets are used up. Wait for the next billing period, or upgrade the plan.",
    ),
    "400": (
        Step(status=400, gzip=True, body=INVALID),
        "400 Invalid Request: invalid: The query parameter [foo] is unknown. "
        "A parameter is invalid. Check --param.",
    ),
}


@pytest.mark.parametrize(("step", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_fatal_refusal_is_reported_in_xs_words(
    scripts: Scripts, topic: str, step: Step, message: str
) -> None:
    done, api = follow(scripts, topic, 1, [step], second=1)
    assert done.returncode == (2 if step.status == 400 else 1)
    assert messages(done) == [
        f"X refuses: {message}",
        f"published 0 tweets to {topic} (0 reconnects, 0 skipped)",
    ]
    assert len(api.requests) == 1


def test_of_a_long_refusal_both_ends_are_shown(scripts: Scripts, topic: str) -> None:
    done, _ = follow(scripts, topic, 1, [Step(status=401, body="x" * (10 << 20))], second=1)
    assert done.returncode == 1
    refusal, last = messages(done)
    shown = re.fullmatch(rf"X refuses: 401 (x+) \.\.\. (x+)\. {re.escape(NOT_VALID)}", refusal)
    assert shown
    assert 200 <= len(shown[1]) <= 300
    assert 50 <= len(shown[2]) <= 200
    assert last == f"published 0 tweets to {topic} (0 reconnects, 0 skipped)"


def test_a_fatal_refusal_comes_after_what_was_read_and_before_the_summary(
    scripts: Scripts, topic: str, read: Read
) -> None:
    done, api = follow(scripts, topic, 100, [Step(tweets=50), Step(status=402)], second=1)
    assert done.returncode == 1
    assert messages(done) == [
        "X ended the stream; reconnecting in 0.0 s",
        "X refuses: 402 Payment Required. The account has no credits left. "
        "Buy credits in X's developer portal.",
        f"published 50 tweets to {topic} (1 reconnect, 0 skipped)",
    ]
    assert values(read(topic)) == api.sent
    assert len(api.requests) == 2


def test_a_refusal_that_drips_is_reported_all_the_same(scripts: Scripts, topic: str) -> None:
    began = time.monotonic()
    step = Step(status=401, body="slow " * 100, chunk=5, pause=0.5)
    done, _ = follow(scripts, topic, 1, [step], second=1)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    refusal, last = messages(done)
    assert re.fullmatch(rf"X refuses: 401 slow( slow)+\. {re.escape(NOT_VALID)}", refusal)
    assert last == f"published 0 tweets to {topic} (0 reconnects, 0 skipped)"


def test_of_a_huge_refusal_only_the_beginning_is_read(scripts: Scripts, topic: str) -> None:
    with XApi([Step(status=503, body="x" * (200 << 20))]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 1))
        running.wait_for(lambda it: b"reconnecting" in it.err)
        assert running.memory() < 120
        done = running.end(signal.SIGTERM)
    assert re.fullmatch(r"503 x+ \.\.\. x+", reconnects(done)[0])


DISCONNECT = {
    "title": "operational-disconnect",
    "disconnect_type": "UpstreamOperationalDisconnect",
    "detail": "bye",
    "type": "https://api.x.com/2/problems/operational-disconnect",
}
TOO_MANY_CONNECTIONS = problem(
    title="ConnectionException", detail="bye", connection_issue="TooManyConnections"
)


@pytest.mark.parametrize(
    ("message", "reason", "wait"),
    [
        (problem(errors=[DISCONNECT]), "operational-disconnect: bye", 0),
        (problem(**DISCONNECT), "operational-disconnect: bye", 0),
        (
            TOO_MANY_CONNECTIONS,
            "ConnectionException: bye "
            "(to close stale connections, call DELETE /2/connections/all of X's API)",
            5,
        ),
    ],
    ids=["wrapped", "bare", "too many connections"],
)
def test_disconnect_messages_are_obeyed(
    scripts: Scripts, topic: str, read: Read, message: str, reason: str, wait: float
) -> None:
    """After a keep-alive come the message and more tweets, which are not waited for."""
    done, api = follow(scripts, topic, 5, [Step(body=f"\r\n{message}\r\n"), Step()])
    assert done.returncode == 0
    assert reconnects(done) == [reason]
    assert summary(done) == f"published 5 tweets to {topic} (1 reconnect, 0 skipped)"
    assert len(read(topic)) == 5
    assert api.most_open == 1
    first, second = (request.time for request in api.requests)
    assert wait * SECOND <= second - first < (1.2 * wait + 5) * SECOND


# ------------------------------------------------------------------ when it connects again


def waits(
    script: list[Step], scripts: Scripts, topic: str, second: float, tweets: int = 0
) -> list[float]:
    """The pauses between the connects, in seconds of the rules; the script has `tweets` tweets."""
    with XApi([*script, Step()]) as api:
        scripts.run("twitter-stream", "-t", topic, "-n", tweets + 1, env=env(api, second))
    times = [request.time for request in api.requests]
    assert len(times) == len(script) + 1
    return [(after - before) / second for before, after in itertools.pairwise(times)]


def check_waits(found: list[float], expected: list[float], second: float) -> None:
    """Each is as long as expected, or up to a fifth longer; a connect may take a second."""
    for each, wait in zip(found, expected, strict=True):
        assert wait <= each <= 1.2 * wait + 1 / second, found


def odd_limit(reset: str) -> Step:
    return Step(status=429, headers={"x-rate-limit-reset": reset})


@pytest.mark.parametrize(
    ("faults", "expected", "second"),
    [
        ([Step(tweets=0)] * 4, [0.25, 0.5, 0.75, 1.0], 1),
        ([Step(status=503)] * 4, [5, 10, 20, 40], 0.1),
        ([Step(body=f"\r\n{TOO_MANY_CONNECTIONS}\n", tweets=0)] * 3, [5, 10, 20], 0.1),
        ([odd_limit("soon"), odd_limit("9999999999")], [60, 120], 0.02),
    ],
    ids=["network", "http", "too many connections", "rate limit"],
)
def test_the_waits_grow_as_x_asks(
    scripts: Scripts, topic: str, faults: list[Step], expected: list[float], second: float
) -> None:
    check_waits(waits(faults, scripts, topic, second), expected, second)


def test_a_server_that_is_not_there(scripts: Scripts, topic: str) -> None:
    """It is reported once a minute, here every 9 s; connects X never sees are not metered."""
    [port] = free_ports(1)
    settings = {
        "STREAM_URL": f"http://127.0.0.1:{port}/",
        "BEARER_TOKEN": "t0",
        "STREAM_TEST_SECOND": "0.15",
    }
    running = scripts.start("twitter-stream", "-t", topic, env=settings)
    running.wait_for(lambda it: it.err.count(b"refused") >= 2)
    done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    reason = f"cannot connect to 127.0.0.1:{port}: Connection refused"
    assert reconnects(done) == [reason, reason]
    # The waits grow by 0.25 s each time: 21 of them fit in the first minute
    assert 15 <= read_summary(done.stderr).reconnects <= 25


def test_faults_of_another_kind_do_not_add_up_and_a_tweet_starts_all_again(
    scripts: Scripts, topic: str
) -> None:
    down, idle, alive = Step(status=503), Step(tweets=0), Step(tweets=1)
    found = waits([down, idle, down, idle, alive, down], scripts, topic, 0.1, tweets=1)
    check_waits(found, [5, 0.25, 10, 0.5, 0, 5], 0.1)


@pytest.mark.parametrize(("body", "pause"), [("\r\n", "0.0"), ("", "0.3")])
def test_only_a_connection_that_brought_something_is_resumed_at_once(
    scripts: Scripts, topic: str, body: str, pause: str
) -> None:
    done, _ = follow(scripts, topic, 1, [Step(body=body, tweets=0), Step()], second=1)
    assert messages(done) == [
        f"X ended the stream; reconnecting in {pause} s",
        f"published 1 tweet to {topic} (1 reconnect, 0 skipped)",
    ]


def test_no_more_than_50_connects_in_15_minutes(scripts: Scripts, topic: str) -> None:
    """They are spread out: no more than 10 in 3 minutes, whatever the connections bring."""
    faults = [
        Step(body="\r\n", tweets=0),
        Step(tweets=0),
        Step(tweets=1, end="reset"),
        Step(tweets=1, end="torn"),
        Step(tweets=1),
    ]
    with XApi([*faults * 12, Step(tweets=500)]) as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 200, env=env(api, 0.005))
    assert done.returncode == 0
    counted = read_summary(done.stderr)._replace(gaps=0)
    assert counted == Summary(published=200, reconnects=60, skipped=12)
    times = [request.time for request in api.requests]
    assert len(times) == 61
    for count, seconds in ((10, 180), (50, 900)):
        pairs = zip(times, times[count:], strict=False)
        assert min(after - before for before, after in pairs) >= seconds * 0.005


def test_not_before_the_rate_limit_is_reset(scripts: Scripts, topic: str) -> None:
    reset = int(time.time()) + 4
    fault = Step(status=429, headers={"x-rate-limit-reset": str(reset)})
    _, api = follow(scripts, topic, 1, [fault, Step()], second=0.02)
    assert time.time() >= reset
    assert len(api.requests) == 2


# ------------------------------------------------------------------ backfill


def asked(api: XApi) -> list[str]:
    """The minutes that each connect asked for."""
    return [request.query.get("backfill_minutes", "-") for request in api.requests]


@pytest.mark.parametrize(
    ("limits", "second", "minutes"),
    [(0, 1, "1"), (1, 0.05, "2"), (3, 0.005, "5")],
    ids=["a moment", "over a minute", "many minutes"],
)
def test_backfill_asks_for_the_minutes_missed(
    scripts: Scripts, topic: str, limits: int, second: float, minutes: str
) -> None:
    """The gap is a wait of 60 to 72 seconds of the rules in the second case, 420 in the third."""
    script = [Step(tweets=10, missed=10), *[Step(status=429)] * limits, Step()]
    done, api = follow(scripts, topic, 50, script, "--backfill", second=second)
    assert done.returncode == 0
    assert asked(api)[0] == "-"
    assert asked(api)[-1] == minutes


def test_backfill_brings_what_was_missed_and_nothing_twice(
    scripts: Scripts, topic: str, read: Read
) -> None:
    script = [
        Step(tweets=10, end="tail", missed=10),
        Step(tweets=0, end="reset"),
        Step(tweets=10, missed=5),
        Step(),
    ]
    done, api = follow(scripts, topic, 60, script, "--backfill")
    assert done.returncode == 0
    ids = [int(record.key) for record in read(topic)]
    assert len(set(ids)) == len(ids) == 60
    assert sorted(ids) == list(range(min(ids), max(ids) + 1, 1 << 22)), "none is missing"
    assert len(set(api.sent)) < len(api.sent), "some were sent twice"
    assert re.fullmatch(
        rf"published 60 tweets to {topic} \(3 reconnects, 0 skipped, \d\d duplicates\)",
        summary(done),
    )


def test_without_backfill_what_x_sends_twice_is_published_twice(
    scripts: Scripts, topic: str, read: Read
) -> None:
    line = '{"data":{"id":"7"}}\r\n'
    done, api = follow(scripts, topic, 10, [Step(body=line + line, tweets=4), Step()])
    assert done.returncode == 0
    assert values(read(topic)) == [line.strip().encode()] * 2 + api.sent[:8]
    assert asked(api) == ["-", "-"]


def test_backfill_asks_again_for_what_did_not_come(scripts: Scripts, topic: str) -> None:
    """The gap is 60 to 72 seconds of the rules; a connection that breaks at once cannot fill it."""
    short = Step(body="\r\n", tweets=0)
    script = [Step(tweets=10), Step(status=429), short, Step(tweets=1), short, Step()]
    done, api = follow(scripts, topic, 40, script, "--backfill", second=0.05)
    assert done.returncode == 0
    assert asked(api) == ["-", "1", "2", "2", "2", "2"]


def test_backfill_asks_for_what_x_dropped_while_kafka_held_it_up() -> None:
    """Only the source, whose clock runs on while nobody takes its tweets."""
    twitter_stream: Any = importlib.import_module("twitter-stream")
    now = [time.time()]
    tweet_filter = twitter_stream.TweetFilter(
        twitter_stream.Backoff(SECOND),
        twitter_stream.Gap(True, 1.0, lambda: now[0]),
        twitter_stream.Counts(),
        Throttle(60),
    )
    with XApi([Step(tweets=200), Step()]) as api:
        headers = {"Authorization": f"Bearer {api.token}"}
        opener = StreamOpener(api.url, headers, [], 22)
        batches = twitter_stream.stream_tweets(opener, tweet_filter, Stop())
        tweets = itertools.chain.from_iterable(batches)
        taken = list(itertools.islice(tweets, 1))
        now[0] += 80  # by now X has ended the connection
        taken += itertools.islice(tweets, 200)
    assert asked(api) == ["-", "2"]
    assert [tweet.value for tweet in taken[:200]] == api.sent[:200]


def test_where_x_refuses_backfill_it_goes_on_without(
    scripts: Scripts, topic: str, read: Read
) -> None:
    refusal = problem(title="Invalid Request", detail="backfill_minutes is not for your plan")
    script = [Step(tweets=10), Step(status=400, body=refusal), Step(tweets=10), Step()]
    done, api = follow(scripts, topic, 30, script, "--backfill")
    assert done.returncode == 0
    assert asked(api) == ["-", "1", "-", "1"]
    assert reconnects(done) == [
        "X ended the stream",
        "400 Invalid Request: backfill_minutes is not for your plan; trying without backfill",
    ]
    assert values(read(topic)) == api.sent[:20] + api.sent[40:50]


# ------------------------------------------------------------------ the token and the address

NO_TOKENS = ["", "  ", "Bearer ", "two words", "tökén", "a\nb"]
TOKENS = [" Bearer secret-token\n", "secret-token\r\n"]


@pytest.mark.parametrize("token", NO_TOKENS)
def test_what_cannot_be_a_token(lone_scripts: Scripts, token: str) -> None:
    done = lone_scripts.run("twitter-stream", env={"BEARER_TOKEN": token})
    assert done.returncode == 2
    assert messages(done) == [
        "BEARER_TOKEN is missing or malformed; "
        "copy your X app's bearer token to .env or the environment"
    ]


@pytest.mark.parametrize("token", TOKENS)
def test_the_token_may_stand_between_blanks(scripts: Scripts, topic: str, token: str) -> None:
    with XApi() as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, BEARER_TOKEN=token))
    assert done.returncode == 0


def test_the_token_from_the_env_file(scripts: Scripts, topic: str) -> None:
    with XApi(token="a${HOME}#b") as api:  # noqa: S106 # python-dotenv gives these a meaning
        (scripts.folder / ".env").write_text(f"BEARER_TOKEN={api.token}\nSTREAM_URL={api.url}\n")
        (scripts.folder / ".env").chmod(0o600)
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1)
    assert done.returncode == 0
    assert summary(done) == f"published 1 tweet to {topic} (0 reconnects, 0 skipped)"


SETTINGS = {"BEARER_TOKEN": "secret-token", "KAFKA_RETRIES": "many"}


@pytest.mark.parametrize(
    "url", ["http://api.x.com/2", "ftp://localhost", "localhost", "http://localhost.evil.com/"]
)
def test_the_token_goes_out_encrypted_only(lone_scripts: Scripts, url: str) -> None:
    done = lone_scripts.run("twitter-stream", env={**SETTINGS, "STREAM_URL": url})
    assert done.returncode == 2
    assert messages(done) == [
        "STREAM_URL must start with https:// to keep the token secret "
        "(http:// is for this machine only)"
    ]


def test_an_empty_address_is_x_itself(lone_scripts: Scripts) -> None:
    """So the next setting is checked."""
    done = lone_scripts.run("twitter-stream", env={**SETTINGS, "STREAM_URL": ""})
    assert done.returncode == 2
    assert messages(done) == ["KAFKA_RETRIES must be a number. See .env.example."]


NO_HOST = "Invalid URL 'https://': No host supplied"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://", NO_HOST),
        ("https://127.0.0.1:99999/", "Failed to parse: https://127.0.0.1:99999/"),
        ("https://[::1/", "Failed to parse: '[::1' is not a valid host or port"),
    ],
)
def test_an_address_that_is_none(lone_scripts: Scripts, url: str, reason: str) -> None:
    done = lone_scripts.run("twitter-stream", env={**SETTINGS, "STREAM_URL": url})
    assert done.returncode == 2
    assert messages(done) == [f"cannot use STREAM_URL with --param: {reason}"]


def test_netrc_does_not_replace_the_token(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    with XApi() as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, HOME=str(tmp_path)))
    assert done.returncode == 0


LOG_ALL = (
    "import logging, runpy, sys; logging.basicConfig(level=1); "
    "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)


def test_the_token_is_never_shown(scripts: Scripts, topic: str) -> None:
    """Neither where an answer from X contains it, nor by any logger."""
    echo = problem(title="Bad header", detail="x" * 255 + " Authorization: Bearer secret-token")
    script = [
        Step(status=503, body=echo),
        Step(body=f"{echo}\r\n", tweets=5),
        Step(status=402, body=echo),
    ]
    with XApi(script) as api:
        path = str(scripts.folder / "twitter-stream.py")
        options: dict[str, Any] = {"env": env(api), "cwd": scripts.folder}
        command = scripts.call("twitter-stream", ("-t", topic), options)
        assert command[1] == path
        running = Running([command[0], "-c", LOG_ALL, *command[1:]], options)
        wait_until(lambda: api.requests)
        listed = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        done = running.end()
    assert done.returncode == 1
    assert b"DEBUG:urllib3" in done.stderr
    assert done.stderr.count(b"Authorization: Bearer ***") == 3, "each of the messages has it"
    assert b"secret" not in listed + done.stdout + done.stderr
    assert b"secret" not in scripts.run("twitter-stream", "--help", env=env(api)).stdout


def test_without_tls_the_token_goes_through_no_proxy(scripts: Scripts, topic: str) -> None:
    with XApi() as api, XApi() as proxy:
        through = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url, "NO_PROXY": ""}
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api) | through)
    assert done.returncode == 0
    assert proxy.requests == []


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy that only knows CONNECT; it records the targets."""

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.server.targets.append(target)  # type: ignore[attr-defined]
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as server:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.relay(server)

    def relay(self, server: socket.socket) -> None:
        """Pass on what each side sends, until both have finished."""
        back = threading.Thread(target=self.copy, args=(server, self.connection), daemon=True)
        back.start()
        self.copy(self.connection, server)
        back.join(5)

    def copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                target.sendall(block)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, str]:
    """Files: a certificate for localhost, its key, and the authority that signed it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key, root = (tmp_path / name for name in ("chain.pem", "key.pem", "root.pem"))
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    return str(chain), str(key), str(root)


def test_tls_with_an_own_authority_and_through_a_proxy(
    scripts: Scripts, topic: str, certificate: tuple[str, str, str]
) -> None:
    with XApi(certificate=certificate[:2]) as api:
        trusting = env(api, REQUESTS_CA_BUNDLE=certificate[2])
        done = scripts.run("twitter-stream", "-t", topic, "-n", 5, env=trusting)
        assert done.returncode == 0, done.stderr
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as proxy:
            proxy.daemon_threads = True
            targets: list[str] = []
            proxy.targets = targets  # type: ignore[attr-defined]
            threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
            through = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.server_address[1]}", "NO_PROXY": ""}
            done = scripts.run("twitter-stream", "-t", topic, "-n", 5, env=trusting | through)
            proxy.shutdown()
    assert done.returncode == 0, done.stderr
    assert targets == [api.url.split("/")[2]]


def test_a_certificate_that_nobody_knows_is_not_trusted(
    scripts: Scripts, topic: str, certificate: tuple[str, str, str]
) -> None:
    with XApi(certificate=certificate[:2]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 1))
        running.wait_for(lambda it: b"reconnecting" in it.err)
        done = running.end(signal.SIGTERM)
    assert "certificate verify failed" in reconnects(done)[0]
    assert api.requests == []


# ------------------------------------------------------------------ signals

BLOCKED = {
    "read": Step(tweets=5, end="silence"),
    "wait": Step(status=503),
    "refusal": Step(status=503, body="drips" * 50, chunk=1, pause=0.2),
    "answer": Step(delay=20),
    "flow": Step(),
}


@pytest.mark.parametrize(
    ("number", "blocked"),
    [
        *itertools.product([signal.SIGINT, signal.SIGTERM], BLOCKED),
        (signal.SIGHUP, "read"),
    ],
)
def test_a_signal_ends_it_at_once(
    scripts: Scripts, topic: str, read: Read, number: signal.Signals, blocked: str
) -> None:
    step = BLOCKED[blocked]
    with XApi([step], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 1))
        if blocked in ("refusal", "answer"):
            wait_until(lambda: api.requests)
        elif blocked == "wait":
            running.wait_for(lambda it: b"reconnecting" in it.err)
        else:
            watcher = scripts.start("consumer", "-t", topic, "-n", 5)
            assert watcher.end().returncode == 0
        began = time.monotonic()
        done = running.end(number)
    assert time.monotonic() - began < 5
    assert done.returncode == 0
    found = values(read(topic))
    assert summary(done) == f"published {len(found)} tweets to {topic} (0 reconnects, 0 skipped)"
    assert len(found) >= (5 if blocked in ("read", "flow") else 0)
    assert found == api.sent[: len(found)]


def test_a_signal_before_the_count_has_its_own_status(scripts: Scripts, topic: str) -> None:
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    arguments = ("twitter-stream", "-t", topic, "-n", 6)
    with XApi([Step(tweets=5, end="silence")]) as api:
        running = [scripts.start(*arguments, env=env(api, 1)) for _ in statuses]
        watcher = scripts.start("consumer", "-t", topic, "-n", 15)
        assert watcher.end().returncode == 0
        for script, (number, status) in zip(running, statuses.items(), strict=True):
            done = script.end(number)
            assert done.returncode == status
            assert messages(done) == [f"published 5 tweets to {topic} (0 reconnects, 0 skipped)"]


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port where no connect ever completes, as too many are waiting already (Linux)."""
    with socket.socket() as server, contextlib.ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def connects_to(port: int) -> int:
    """How many connects to a port of 127.0.0.1 have no response yet (Linux)."""
    return Path("/proc/net/tcp").read_text().count(f" 0100007F:{port:04X} 02 ")


def test_a_signal_ends_it_while_a_connect_hangs(scripts: Scripts, topic: str) -> None:
    with deaf_port() as port:
        others = connects_to(port)
        settings = {"STREAM_URL": f"http://127.0.0.1:{port}/", "BEARER_TOKEN": "t0"}
        running = scripts.start("twitter-stream", "-t", topic, env=settings)
        # Linux may leave out a socket while others come and go, so the number alone is not enough
        wait_until(lambda: running.takes_signals() and connects_to(port) > others)
        began = time.monotonic()
        done = running.end(signal.SIGTERM)
    assert time.monotonic() - began < 5
    assert done.returncode == 0
    assert messages(done) == [f"published 0 tweets to {topic} (0 reconnects, 0 skipped)"]


# ------------------------------------------------------------------ when Kafka is away


def wait_full(api: XApi) -> None:
    """Wait until the stand-in cannot send any more, as nobody reads."""
    sizes = [-1]

    def is_still() -> bool:
        sizes.append(len(api.sent))
        return len(sizes) > 30 and sizes[-1] == sizes[-30]  # for 1.5 s

    wait_until(is_still)


def test_an_outage_of_kafka_loses_nothing_that_was_read(
    scripts: Scripts, topic: str, read: Read, mortal: Broker
) -> None:
    """The stand-in sends as fast as it can, so that the bound is reached at once."""
    with XApi([Step(batch=20)]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.05))
        wait_until(lambda: len(api.sent) > 1_000)
        mortal.kill()
        wait_full(api)
        full, sent = running.memory(), len(api.sent)
        running.wait_for(
            lambda it: re.search(
                rb"\d tweets, 0/s \(0 reconnects, 0 skipped\), "
                rb"waiting for Kafka: connection refused\n",
                it.err,
            )
        )
        assert len(api.sent) == sent
        assert running.memory() <= full + 5 < 120
        mortal.start()
        wait_until(lambda: len(api.sent) > sent + 5_000)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    found = values(read(topic))
    assert summary(done) == f"published {len(found)} tweets to {topic} (0 reconnects, 0 skipped)"
    assert found == api.sent[: len(found)]


def test_kafka_goes_away_before_the_first_tweet(
    scripts: Scripts, topic: str, read: Read, mortal: Broker
) -> None:
    with XApi([Step(status=503), Step(batch=5)], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.2))
        running.wait_for(lambda it: b"503" in it.err)
        mortal.kill()
        began = time.monotonic()
        running.wait_for(lambda it: b"waiting for Kafka" in it.err)
        assert time.monotonic() - began < 9, "sooner than the next minute's line, after 12 s"
        mortal.start()
        sent = len(api.sent)
        wait_until(lambda: len(api.sent) > sent + 100)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    found = values(read(topic))
    assert len(found) > sent
    assert found == api.sent[: len(found)]
    assert summary(done) == f"published {len(found)} tweets to {topic} (1 reconnect, 0 skipped)"


TOO_LATE = "not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"


def test_a_failed_delivery_ends_it_even_while_x_is_silent(
    scripts: Scripts, topic: str, stalled: Callable[[], None]
) -> None:
    """The wait after the 429 would take a minute."""
    with XApi([Step(tweets=30), Step(status=429)], rate=30) as api:
        settings = env(api, 1, KAFKA_DELIVERY_TIMEOUT_MS="2000")
        running = scripts.start("twitter-stream", "-t", topic, env=settings)
        wait_until(lambda: len(api.sent) > 20)
        stalled()
        began = time.monotonic()
        done = running.end(seconds=40)
    assert time.monotonic() - began < 30
    assert done.returncode == 1
    found = read_summary(done.stderr)
    assert found.published + found.failed <= 30
    assert re.fullmatch(rf"tweet {found.published + 1} \(\d+ bytes\): {TOO_LATE}", found.reason)
    assert (found.reconnects, found.skipped) == (1, 0)


# Four blocks of 64 KiB: one in the reader's hands, two in its queue, one in the sender's hands;
# no tweet is shorter than 150 bytes
READ_AHEAD = 4 * (1 << 16) // 150


@pytest.mark.parametrize(
    ("number", "timeout", "reason"),
    [
        (signal.SIGTERM, "3600000", "not acknowledged in time: no response\\. .*"),
        (None, "2000", TOO_LATE),
    ],
    ids=["a signal", "the delivery timeout"],
)
def test_an_outage_ends_with_every_tweet_acknowledged_or_counted(
    scripts: Scripts,
    topic: str,
    read: Read,
    stalled: Callable[[], None],
    kafka: Broker,
    number: int | None,
    timeout: str,
    reason: str,
) -> None:
    with XApi([Step(batch=20)]) as api:
        running = scripts.start(
            "twitter-stream", "-t", topic, env=env(api, 1, KAFKA_DELIVERY_TIMEOUT_MS=timeout)
        )
        wait_until(lambda: len(api.sent) > 1000)
        stalled()
        wait_full(api)
        began = time.monotonic()
        done = running.end(number)
    assert time.monotonic() - began < 10
    assert done.returncode == 1
    found = read_summary(done.stderr)
    assert 0 < found.failed <= MAX_IN_FLIGHT + READ_AHEAD
    assert (found.reconnects, found.skipped) == (0, 0)
    assert re.fullmatch(rf"tweet {found.published + 1} \(\d+ bytes\): {reason}", found.reason)
    kafka.server.process.send_signal(signal.SIGCONT)
    assert values(read(topic))[: found.published] == api.sent[: found.published]


# ------------------------------------------------------------------ what it says meanwhile


def test_a_log_gets_a_line_a_minute(scripts: Scripts, topic: str) -> None:
    with XApi([Step(tweets=5, end="silence"), Step(status=503), Step()], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.05))
        running.wait_for(lambda it: it.err.count(b"/s (2 reconnects") >= 2)
        done = running.end(signal.SIGTERM)
    lines = messages(done)
    silent, down = (line for line in lines if "reconnecting" in line)
    assert silent == f"{SILENT}; reconnecting in 0.0 s"
    assert re.fullmatch(r"503 Service Unavailable; reconnecting in 0.[23] s", down)
    pattern = r"(\d+) tweets, (\d+)/s \(\d reconnects?, 0 skipped(, 1 gap)?\)"
    minutes = [found for line in lines if (found := re.fullmatch(pattern, line))]
    first, second, *_ = (found for found in minutes if "(2 re" in found[0])
    assert int(first[1]) < int(second[1])
    assert 10 <= int(second[2]) <= 100, "for the newest minute, not for the whole run"
    counted = read_summary(done.stderr)
    assert (counted.reconnects, counted.skipped, counted.gaps) == (2, 0, 1)
    assert len(lines) == 4 + len(minutes), "including the gap's line"


def test_a_terminal_gets_a_live_line(scripts: Scripts, topic: str) -> None:
    live = r"\rtwitter-stream\.py: \d+ tweets, \d+/s \(1 reconnect, 1 skipped\) *\r[^\n]"
    with (
        XApi([Step(tweets=5, end="cut"), Step(body="rubbish\n")], rate=50) as api,
        Terminal() as terminal,
    ):
        running = scripts.start(
            "twitter-stream", "-t", topic, env=env(api, 1), stderr=terminal.device
        )
        terminal.give_away()
        shown, end = "", time.monotonic() + 20
        while not re.search(live, shown):
            assert time.monotonic() < end, shown
            shown += terminal.read()
        assert re.search(r"\rtwitter-stream.py: .*; reconnecting in 0.0 s *\r\n", shown)
        running.end(signal.SIGTERM)
