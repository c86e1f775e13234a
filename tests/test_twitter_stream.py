"""twitter-stream.py against a stand-in for X at a real socket, and a real Kafka."""

import contextlib
import importlib
import itertools
import json
import os
import pty
import random
import re
import signal
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from broker import Broker, free_ports
from x_api import Step, XApi

import pytest
import requests
import trustme
from conftest import Result, Running, Scripts, wait_until

SECOND = 0.1  # of the waiting times, where they do not matter
Read = Callable[[str], list[Any]]


def env(api: XApi, second: float = SECOND, **more: str) -> dict[str, str]:
    return {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, "STREAM_TEST_SECOND": str(second), **more}


def follow(
    scripts: Scripts, topic: str, count: int, script: list[Step], *arguments: str, second: float = SECOND
) -> tuple[Result, XApi]:
    """Publish `count` tweets from a stand-in with the script."""
    with XApi(script) as api:
        return scripts.run("twitter-stream", "-t", topic, "-n", count, *arguments, env=env(api, second)), api


def reconnects(done: Result) -> list[str]:
    """What was told before each reconnect."""
    return re.findall(r"twitter-stream.py: (.*); reconnecting in \d+\.\d s\n", done.stderr.decode())


def summary(done: Result) -> str:
    return done.stderr.decode().splitlines()[-1].removeprefix("twitter-stream.py: ")


@pytest.mark.parametrize(
    "step", [Step(), Step(gzip=True), Step(chunk=1), Step(chunk=7), Step(chunk=1000, gzip=True)], ids=repr
)
def test_tweets_arrive_as_x_sent_them(scripts: Scripts, topic: str, read: Read, step: Step) -> None:
    done, api = follow(scripts, topic, 100, [step])
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"twitter-stream.py: published 100 tweets to {topic} (0 reconnects, 0 skipped)\n"
    found = read(topic)
    assert [record.value for record in found] == api.sent[:100]
    assert [record.key.decode() for record in found] == [json.loads(line)["data"]["id"] for line in api.sent[:100]]
    printed = scripts.run("consumer", "-t", topic, "-e").stdout
    assert printed == b"".join(line + b"\n" for line in api.sent[:100])
    assert "🏃‍♀️".encode() in printed


def test_parameters_and_headers(scripts: Scripts, topic: str, read: Read) -> None:
    fields = "tweet.fields=created_at,lang"
    done, api = follow(scripts, topic, 3, [Step()], "--param", fields, "--param", "expansions=author_id")
    assert done.returncode == 0
    [(_, query, headers)] = api.requests
    assert query == {"tweet.fields": "created_at,lang", "expansions": "author_id"}
    assert headers["Authorization"] == f"Bearer {api.token}"
    assert re.fullmatch(r"twitter-stream\.py/\d+\.\d+", headers["User-Agent"])
    assert headers["Accept-Encoding"] == "gzip"
    assert {"created_at", "lang"} <= json.loads(read(topic)[0].value)["data"].keys()


@pytest.mark.parametrize(
    ("fault", "reason", "skipped", "second"),
    [
        (Step(tweets=10), "X ended the stream", 0, SECOND),
        (Step(tweets=10, end="cut"), ".*IncompleteRead.*", 0, SECOND),
        (Step(tweets=10, end="torn"), ".*IncompleteRead.*", 1, SECOND),
        (Step(tweets=10, end="torn", gzip=True), ".*IncompleteRead.*", 1, SECOND),
        (Step(tweets=10, end="tail"), "X ended the stream", 1, SECOND),
        (Step(tweets=10, end="reset"), ".*Connection reset by peer.*", 0, SECOND),
        (Step(tweets=10, end="silence"), "Read timed out", 0, SECOND),
        (Step(tweets=0, end="silence"), "Read timed out", 0, SECOND),
        (Step(tweets=1, headers={"Content-Encoding": "gzip"}), ".*while decompressing data.*", 0, SECOND),
        (Step(status=503, body="<html><h1>Over\ncapacity</h1></html>"), "503 Over capacity", 0, SECOND),
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
    assert len(reconnects(done)) == 1
    assert re.fullmatch(reason, reconnects(done)[0])
    assert summary(done) == f"published 50 tweets to {topic} (1 reconnects, {skipped} skipped)"
    if fault.end == "silence":
        assert 22 * SECOND <= api.requests[1][0] - api.requests[0][0] <= 25 * SECOND + 1
    if fault.headers:  # what cannot be decoded was not read
        del api.sent[0]
    assert [record.value for record in read(topic)] == api.sent[:50]
    assert len(api.requests) == 2
    assert api.most_open == 1


def test_a_redirect_is_not_followed_nor_read_as_the_token_is_for_x_alone(scripts: Scripts, topic: str) -> None:
    with XApi() as other:
        redirect = Step(status=302, headers={"Location": other.url}, body="drip" * 20, chunk=1, pause=1)
        odd = Step(status=302, headers={"Location": "http://[bad/"})
        began = time.monotonic()
        done, _ = follow(scripts, topic, 1, [redirect, odd, Step()])
    assert re.fullmatch("302 (drip)+d?r?i?", reconnects(done)[0])
    assert reconnects(done)[1] == "302 Found"
    assert time.monotonic() - began < 20, "no more of it is waited for than of any refusal"
    assert other.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://portal/\xe9\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
    ids=range(7),
)
def test_no_answer_ends_it(scripts: Scripts, topic: str, answer: bytes) -> None:
    """Whatever speaks there, a captive portal or a broken proxy: it may be X again the next time."""
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
        running.wait_for(lambda it: it.err.count(b"; reconnecting in ") >= 2)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def problem(**fields: object) -> str:
    return json.dumps(fields)


UNKNOWN = [{"message": "The query parameter [foo] is unknown"}]


UNAUTHORIZED = problem(title="Unauthorized", detail="Unauthorized")
USED_UP = problem(title="UsageCapExceeded", detail="Usage cap exceeded: Monthly", period="Monthly")
PAGE = "<html><title>Forbidden</title><p>by the\x1b[31m proxy\x07</html>"
NOT_VALID = "the token is not valid, check BEARER_TOKEN"


@pytest.mark.parametrize(
    ("step", "status", "sentence"),
    [
        (Step(status=401, body=UNAUTHORIZED), 1, f"401 Unauthorized: Unauthorized; {NOT_VALID}"),
        (Step(status=401, body=UNAUTHORIZED, chunk=9), 1, f"401 Unauthorized: Unauthorized; {NOT_VALID}"),
        (Step(status=401, body="plain", headers={"Content-Encoding": "gzip"}), 1, f"401 Unauthorized; {NOT_VALID}"),
        (Step(status=401, body="cut short", end="cut"), 1, f"401 cut short; {NOT_VALID}"),
        (Step(status=401, body="x" * (10 << 20)), 1, f"401 x{{200,300}} \\.\\.\\. x{{50,200}}; {NOT_VALID}"),
        (
            Step(status=403, body=problem(title="Client Forbidden", detail="enroll", reason="client-not-enrolled")),
            1,
            "403 Client Forbidden: enroll; the app may not read the stream, X sells it to Enterprise accounts",
        ),
        (
            Step(status=403, body=PAGE),
            1,
            r"403 Forbidden by the \[31m proxy; the app may not read the stream, .*",
        ),
        (Step(status=404), 1, "404 Not Found; there is no stream at this address, check STREAM_URL"),
        (
            Step(status=429, body=USED_UP),
            1,
            "429 UsageCapExceeded: Usage cap exceeded: Monthly; the plan's tweets are used up, .*",
        ),
        (
            Step(status=400, gzip=True, body=problem(title="Invalid Request", detail="invalid", errors=UNKNOWN)),
            2,
            r"400 Invalid Request: invalid: The query parameter \[foo\] is unknown; a .* is wrong, check --param",
        ),
    ],
    ids=lambda each: each.status if isinstance(each, Step) else "",
)
def test_a_fatal_refusal_is_told_in_xs_words(
    scripts: Scripts, topic: str, step: Step, status: int, sentence: str
) -> None:
    done, api = follow(scripts, topic, 1, [step])
    assert done.returncode == status
    told = done.stderr.decode().splitlines()
    assert re.fullmatch(f"twitter-stream.py: X refuses: {sentence}", told[0])
    assert told[1:] == [f"twitter-stream.py: published 0 tweets to {topic} (0 reconnects, 0 skipped)"]
    assert len(api.requests) == 1


def test_a_refusal_that_drips_is_told_all_the_same(scripts: Scripts, topic: str) -> None:
    began = time.monotonic()
    done, _ = follow(scripts, topic, 1, [Step(status=401, body="slow " * 100, chunk=5, pause=0.5)])
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert b"X refuses: 401 slow slow" in done.stderr


def test_of_a_huge_refusal_only_the_beginning_is_read(scripts: Scripts, topic: str) -> None:
    with XApi([Step(status=503, body="x" * (200 << 20))]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 1))
        running.wait_for(lambda it: b"reconnecting" in it.err)
        assert running.memory() < 120
        running.end(signal.SIGTERM)


def test_what_is_no_tweet_is_skipped_and_told_once_a_minute_and_kind(scripts: Scripts, topic: str, read: Read) -> None:
    """A minute of 1.2 s: the wait after the 429 is longer, all else before it is shorter."""
    no_json = ["[1]", "not\x1b json", "\r"]
    no_id = ['{"data":{}}', '{"data":{"id":7}}', '{"data":{"id":""}}', '{"errors":[{"title":"Not Found Error"}]}']
    odd = '{"data":{"id":"\\ud800"}}'
    partial = '{"data":{"id":"1","text":"x"},"errors":[{"title":"Not Found Error"}]}'
    rubbish = "".join(f"{line}\r\n" for line in [*no_json, *no_id, "", odd, partial, "x" * (1 << 20) + "y"])
    script = [Step(body=rubbish, tweets=0), Step(body="[2]\n", tweets=0), Step(status=429), Step(body="[3]\n")]
    done, api = follow(scripts, topic, 4, script, second=0.02)
    assert done.returncode == 0
    assert summary(done) == f"published 4 tweets to {topic} (3 reconnects, 10 skipped)"
    assert [record.value for record in read(topic)] == [odd.encode(), partial.encode(), *api.sent[:2]]
    assert re.findall(r"skipped (.*)\n", done.stderr.decode()) == [
        "a line that is no JSON object: [1]",
        'a message without data.id: {"data":{}}',
        "a line over 1 MiB",
        "a line that is no JSON object: [3]",
    ]


DISCONNECT = {
    "title": "operational-disconnect",
    "disconnect_type": "UpstreamOperationalDisconnect",
    "detail": "bye",
    "type": "https://api.x.com/2/problems/operational-disconnect",
}


@pytest.mark.parametrize(
    ("message", "wait"),
    [
        (problem(errors=[DISCONNECT]), 0),
        (problem(**DISCONNECT), 0),
        (problem(title="ConnectionException", detail="bye", connection_issue="TooManyConnections"), 5),
    ],
)
def test_disconnect_messages_are_obeyed(scripts: Scripts, topic: str, read: Read, message: str, wait: float) -> None:
    """After a keep-alive, the message and more tweets, that are not waited for."""
    done, api = follow(scripts, topic, 5, [Step(body=f"\r\n{message}\r\n"), Step()])
    assert done.returncode == 0
    [told] = reconnects(done)
    assert re.fullmatch("(operational-disconnect|ConnectionException): bye", told)
    assert summary(done).endswith("(1 reconnects, 0 skipped)")
    assert len(read(topic)) == 5
    assert api.most_open == 1
    [(first, _, _), (second, _, _)] = api.requests
    assert wait * SECOND <= second - first < (1.2 * wait + 5) * SECOND


def test_a_tweet_that_speaks_of_a_disconnect_is_none(scripts: Scripts, topic: str, read: Read) -> None:
    """Neither a tweet nor a line that is none ends a connection, whatever its text says."""
    line = '{"data":{"text":"operational-disconnect, connection_issue"}}\r\n'
    done, api = follow(scripts, topic, 5, [Step(body=line)])
    assert summary(done) == f"published 5 tweets to {topic} (0 reconnects, 1 skipped)"
    assert [record.value for record in read(topic)] == api.sent[:5]


def waits(script: list[Step], scripts: Scripts, topic: str, second: float, tweets: int = 0) -> list[float]:
    """The pauses between the connects that the script leads to, in seconds of the rules; it has so many tweets."""
    with XApi([*script, Step()]) as api:
        scripts.run("twitter-stream", "-t", topic, "-n", tweets + 1, env=env(api, second))
    times = [moment for moment, _, _ in api.requests]
    assert len(times) == len(script) + 1
    return [(after - before) / second for before, after in itertools.pairwise(times)]


def check_waits(found: list[float], expected: list[float], second: float) -> None:
    """Each wait as long as expected, or up to a fifth longer, and what a connect takes on a busy machine."""
    for each, wait in zip(found, expected, strict=True):
        assert wait <= each <= 1.2 * wait + 1 / second, found


@pytest.mark.parametrize(
    ("fault", "expected", "second"),
    [
        (Step(tweets=0), [0.25, 0.5, 0.75, 1.0], 1),
        (Step(status=503), [5, 10, 20, 40], 0.1),
        (Step(body="\r\n" + problem(connection_issue="TooManyConnections") + "\n", tweets=0), [5, 10, 20], 0.1),
        (Step(status=429), [60, 120], 0.02),
        (Step(status=429, headers={"x-rate-limit-reset": "soon"}), [60], 0.05),
        (Step(status=429, headers={"x-rate-limit-reset": "9999999999"}), [60], 0.05),
        (Step(status=429, headers={"x-rate-limit-reset": "-1"}), [60], 0.05),
    ],
)
def test_the_waits_grow_as_x_asks(
    scripts: Scripts, topic: str, fault: Step, expected: list[float], second: float
) -> None:
    check_waits(waits([fault] * len(expected), scripts, topic, second), expected, second)


def test_a_server_that_is_not_there(scripts: Scripts, topic: str) -> None:
    [port] = free_ports(1)
    settings = {"STREAM_URL": f"http://127.0.0.1:{port}/", "BEARER_TOKEN": "t0", "STREAM_TEST_SECOND": "0.2"}
    running = scripts.start("twitter-stream", "-t", topic, env=settings)
    running.wait_for(lambda it: it.err.count(b"refused") >= 12)
    done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    told = re.findall(r"(.*Connection refused.*); reconnecting in (\d\.\d) s\n", done.stderr.decode())
    for number, (_, pause) in enumerate(told, 1):
        assert 0.05 * number - 0.05 <= float(pause) <= 0.06 * number + 0.05
    assert len(told) >= 12, "what X never sees is not metered"


def test_the_waits_are_bounded_and_spread() -> None:
    wait = importlib.import_module("twitter-stream").wait
    for rule, first, longest in (("network", 0.25, 16), ("http", 5, 320), ("rate", 60, 960)):
        assert all(first <= wait(rule, 1) <= 1.2 * first for _ in range(100))
        many = {wait(rule, 10_000) for _ in range(100)}
        assert longest / 1.2 <= min(many) < max(many) <= longest
        assert len(many) > 90


def test_faults_of_another_kind_do_not_add_up_and_data_starts_all_over(scripts: Scripts, topic: str) -> None:
    down, idle, alive = Step(status=503), Step(tweets=0), Step(tweets=1)
    found = waits([down, idle, down, idle, alive, down], scripts, topic, 0.1, tweets=1)
    check_waits(found, [5, 0.25, 10, 0.5, 0, 5], 0.1)


@pytest.mark.parametrize(("body", "pause"), [("\r\n", "0.0"), ("", "0.3")])
def test_only_a_connection_that_brought_something_is_taken_up_at_once(
    scripts: Scripts, topic: str, body: str, pause: str
) -> None:
    done, _ = follow(scripts, topic, 1, [Step(body=body, tweets=0), Step()], second=1)
    assert f"X ended the stream; reconnecting in {pause} s\n" in done.stderr.decode()


ENDS_AT_ONCE = Step(body="\r\n", tweets=0)


@pytest.mark.parametrize(
    "faults",
    [
        [ENDS_AT_ONCE],
        [Step(tweets=1)],
        [Step(tweets=0)],
        [ENDS_AT_ONCE, Step(tweets=0), Step(tweets=1, end="reset"), Step(tweets=1, end="torn")],
    ],
    ids=["keep-alive", "a tweet", "nothing", "alternating"],
)
def test_no_more_than_50_connects_in_15_minutes(scripts: Scripts, topic: str, faults: list[Step]) -> None:
    """They are spread: no more than 10 in 3 minutes."""
    script = (faults * 60)[:60]
    with XApi([*script, Step(tweets=500)]) as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 200, env=env(api, 0.005))
    assert done.returncode == 0
    times = [moment for moment, _, _ in api.requests]
    for count, seconds in ((10, 180), (50, 900)):
        windows = [(times[end] - times[start]) / 0.005 for start, end in enumerate(range(count, len(times)))]
        assert min(windows) >= seconds


@pytest.mark.parametrize(
    ("second", "minutes"), [(1, "1"), (0.05, "2"), (0.01, "5")], ids=["a moment", "over a minute", "many minutes"]
)
def test_backfill_asks_for_the_minutes_missed(scripts: Scripts, topic: str, second: float, minutes: str) -> None:
    """The gap: a wait of 60 to 72 seconds of the rules in the second case, and of 4 real ones in the third."""
    fault = Step(tweets=10, missed=10)
    limit = {"x-rate-limit-reset": str(int(time.time()) + 6)} if minutes == "5" else {}
    rest = [] if minutes == "1" else [Step(status=429, headers=limit)]
    done, api = follow(scripts, topic, 50, [fault, *rest, Step()], "--backfill", second=second)
    assert done.returncode == 0
    assert "backfill_minutes" not in api.requests[0][1]
    assert api.requests[-1][1]["backfill_minutes"] == minutes


def test_backfill_brings_what_was_missed_and_nothing_twice(scripts: Scripts, topic: str, read: Read) -> None:
    script = [Step(tweets=10, end="tail", missed=10), Step(tweets=0, end="reset"), Step(tweets=10, missed=5), Step()]
    done, api = follow(scripts, topic, 60, script, "--backfill")
    assert done.returncode == 0
    ids = [int(record.key) for record in read(topic)]
    assert len(set(ids)) == len(ids) == 60
    assert sorted(ids) == list(range(min(ids), max(ids) + 1, 1 << 22)), "none is missing"
    assert len(set(api.sent)) < len(api.sent), "some were sent twice"
    assert re.fullmatch(r"published 60 tweets to .* \(3 reconnects, 1 skipped, \d\d duplicates\)", summary(done))


def test_without_backfill_what_x_sends_twice_is_published_twice(scripts: Scripts, topic: str, read: Read) -> None:
    line = '{"data":{"id":"7"}}\r\n'
    done, api = follow(scripts, topic, 10, [Step(body=line + line, tweets=4), Step()])
    assert done.returncode == 0
    assert [record.value for record in read(topic)] == [line.strip().encode()] * 2 + api.sent[:8]
    assert all("backfill_minutes" not in query for _, query, _ in api.requests)


def asked(api: XApi) -> list[str]:
    """The minutes that each connect asked for."""
    return [query.get("backfill_minutes", "-") for _, query, _ in api.requests]


def test_backfill_asks_again_for_what_did_not_come(scripts: Scripts, topic: str) -> None:
    """The gap is 60 to 72 seconds of the rules; what then breaks at once has not filled it."""
    short = Step(body="\r\n", tweets=0)
    script = [Step(tweets=10), Step(status=429), short, Step(tweets=1), short, Step()]
    done, api = follow(scripts, topic, 40, script, "--backfill", second=0.05)
    assert done.returncode == 0
    assert asked(api)[:3] == ["-", "1", "2"]
    assert set(asked(api)[3:]) == {"2"}


def source(api: XApi, counts: Counter[str], second: float) -> Iterator[Any]:
    """The source of tweets alone, with backfill, for what depends on when the next one is taken."""

    def get(minutes: int | None) -> requests.Response:
        headers = {"Authorization": f"Bearer {api.token}"}
        return requests.get(api.url, params={"backfill_minutes": minutes}, headers=headers, stream=True, timeout=9)

    events: Iterator[Any] = importlib.import_module("twitter-stream").stream(get, counts, second, True)
    return events


def test_backfill_asks_for_what_x_dropped_while_kafka_held_it_up() -> None:
    with XApi([Step(tweets=200), Step()]) as api:
        tweets = source(api, Counter(), 0.05)
        taken = list(itertools.islice(tweets, 100))
        time.sleep(4)  # over a minute of the rules; X has ended the connection meanwhile
        taken += itertools.islice(tweets, 101)
    assert asked(api) == ["-", "2"]


def test_the_ids_that_backfill_keeps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("twitter-stream"), "SEEN", 10)
    counts: Counter[str] = Counter()
    with XApi([Step(tweets=30), Step()]) as api:
        assert len(list(itertools.islice(source(api, counts, 0.1), 80))) == 80
    assert counts["duplicates"] == 0, "when the 30 come again each has pushed the next one out"


def test_where_x_refuses_backfill_it_goes_on_without_and_tells_once(scripts: Scripts, topic: str, read: Read) -> None:
    refusal = problem(title="Invalid Request", detail="backfill_minutes is not for your plan")
    script = [Step(tweets=10), Step(status=400, body=refusal), Step(tweets=10), Step()]
    done, api = follow(scripts, topic, 30, script, "--backfill")
    assert done.returncode == 0
    assert ["backfill_minutes" in query for _, query, _ in api.requests] == [False, True, False, False]
    told = "400 Invalid Request: backfill_minutes is not for your plan; going on without backfill"
    assert reconnects(done) == ["X ended the stream", told, "X ended the stream"]
    assert [record.value for record in read(topic)] == api.sent[:30]


def test_not_before_the_rate_limit_is_reset(scripts: Scripts, topic: str) -> None:
    reset = int(time.time()) + 4
    fault = Step(status=429, headers={"x-rate-limit-reset": str(reset)})
    _, api = follow(scripts, topic, 1, [fault, Step()], second=0.02)
    assert time.time() >= reset
    assert len(api.requests) == 2


NO_TOKENS = ["", "  ", "Bearer ", "two words", "tökén", "a\nb"]
TOKENS = [" Bearer secret-token\n", "secret-token\r\n"]


@pytest.mark.parametrize(("token", "status"), [*((each, 2) for each in NO_TOKENS), *((each, 0) for each in TOKENS)])
def test_the_token(scripts: Scripts, topic: str, token: str, status: int) -> None:
    with XApi() as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, BEARER_TOKEN=token))
    assert done.returncode == status
    if status:
        assert re.fullmatch(r"twitter-stream.py: BEARER_TOKEN is not set, or is no token: .*\n", done.stderr.decode())


def test_the_token_from_the_env_file(scripts: Scripts, topic: str) -> None:
    with XApi(token="a${HOME}#b") as api:  # noqa: S106 # what dotenv files give a meaning to, a token may hold
        (scripts.folder / ".env").write_text(f"BEARER_TOKEN={api.token}\nSTREAM_URL={api.url}\n")
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "url", ["http://api.x.com/2", "ftp://localhost", "localhost", "http://localhost.evil.com/", ""]
)
def test_the_token_goes_out_encrypted_only(lone_scripts: Scripts, url: str) -> None:
    done = lone_scripts.run(
        "twitter-stream", env={"BEARER_TOKEN": "t", "STREAM_URL": url, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    )
    assert done.returncode == (2 if url else 1)
    assert (b"STREAM_URL is to begin with https://" in done.stderr) == bool(url)


def test_netrc_does_not_replace_the_token(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    with XApi() as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, HOME=str(tmp_path)))
    assert done.returncode == 0


def wait_full(api: XApi) -> None:
    """Wait until the stand-in cannot send any more, as nobody reads."""
    sizes = [-1]

    def is_still() -> bool:
        sizes.append(len(api.sent))
        return len(sizes) > 30 and sizes[-1] == sizes[-30]  # for 1.5 s

    wait_until(is_still)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "step",
    [
        Step(tweets=5, end="silence"),
        Step(status=503),
        Step(status=503, body="drips" * 50, chunk=1, pause=0.2),
        Step(delay=20),
        Step(),
    ],
    ids=["read", "wait", "refusal", "answer", "flow"],
)
def test_a_signal_ends_it_at_once(scripts: Scripts, topic: str, read: Read, number: int, step: Step) -> None:
    with XApi([step], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 1))
        if step.pause or step.delay:
            wait_until(lambda: api.requests)
        elif step.status == 503:
            running.wait_for(lambda it: b"reconnecting" in it.err)
        else:
            watcher = scripts.start("consumer", "-t", topic, "-n", 5)
            assert watcher.end().returncode == 0
        began = time.monotonic()
        done = running.end(number)
    assert time.monotonic() - began < 5
    assert done.returncode == 0
    published = len(read(topic))
    assert summary(done).startswith(f"published {published} tweets to {topic}")
    assert published >= (0 if step.status == 503 or step.delay else 5)


def test_an_outage_of_kafka_loses_nothing_that_was_read(
    scripts: Scripts, topic: str, read: Read, mortal: Broker
) -> None:
    """The stand-in sends as fast as it can, so that the bound is reached at once."""
    with XApi([Step(batch=20)]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.05))
        wait_until(lambda: len(api.sent) > 20_000)
        mortal.kill()
        wait_full(api)
        full, sent = running.memory(), len(api.sent)
        running.wait_for(lambda it: re.search(rb"\d tweets, 0/s .*, waiting for Kafka: .*ECONNREFUSED\n", it.err))
        assert len(api.sent) == sent
        assert running.memory() <= full + 5 < 120
        mortal.start()
        wait_until(lambda: len(api.sent) > sent + 20_000)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    found = [record.value for record in read(topic)]
    assert summary(done) == f"published {len(found)} tweets to {topic} (0 reconnects, 0 skipped)"
    assert found == api.sent[: len(found)]


def test_kafka_goes_away_before_the_first_tweet(scripts: Scripts, topic: str, read: Read, mortal: Broker) -> None:
    with XApi([Step(status=503), Step(batch=5)], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.2))
        running.wait_for(lambda it: b"503" in it.err)
        mortal.kill()
        began = time.monotonic()
        running.wait_for(lambda it: b"waiting for Kafka" in it.err)
        assert time.monotonic() - began < 9, "sooner than the next line of the minute, of 12 s"
        mortal.start()
        sent = len(api.sent)
        wait_until(lambda: len(api.sent) > sent + 100)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    found = [record.value for record in read(topic)]
    assert len(found) > sent
    assert found == api.sent[: len(found)]


def test_a_failed_delivery_ends_it_even_while_x_is_silent(
    scripts: Scripts, topic: str, stalled: Callable[[], None]
) -> None:
    """The 429 would be waited for a minute."""
    with XApi([Step(tweets=30), Step(status=429)], rate=30) as api:
        settings = env(api, 1, KAFKA_DELIVERY_TIMEOUT_MS="2000")
        running = scripts.start("twitter-stream", "-t", topic, env=settings)
        wait_until(lambda: len(api.sent) > 20)
        stalled()
        began = time.monotonic()
        done = running.end(seconds=40)
    assert time.monotonic() - began < 30
    assert done.returncode == 1
    assert re.fullmatch(r"published \d+ tweets to \S+ \(\d reconnects, 0 skipped\), \d+ failed: .*", summary(done))


@pytest.mark.parametrize("timeout", ["3600000", "2000"], ids=["a signal", "the delivery timeout"])
def test_an_outage_ends_with_every_tweet_acknowledged_or_counted(
    scripts: Scripts, topic: str, read: Read, stalled: Callable[[], None], kafka: Broker, timeout: str
) -> None:
    with XApi([Step(batch=20)]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 1, KAFKA_DELIVERY_TIMEOUT_MS=timeout))
        wait_until(lambda: len(api.sent) > 1000)
        stalled()
        wait_full(api)
        began = time.monotonic()
        done = running.end(signal.SIGTERM if timeout == "3600000" else None)
    assert time.monotonic() - began < 10
    assert done.returncode == 1
    counted = re.fullmatch(
        r"published (\d+) tweets to \S+ \(0 reconnects, 0 skipped\), (\d+) failed: .*", summary(done)
    )
    assert counted, summary(done)
    assert int(counted[2]) <= 16_001
    kafka.server.process.send_signal(signal.SIGCONT)
    values = [record.value for record in read(topic)]
    published = int(counted[1])
    assert values[:published] == api.sent[:published]


def test_a_log_gets_a_line_a_minute(scripts: Scripts, topic: str) -> None:
    with XApi([Step(tweets=5, end="silence"), Step(status=503), Step()], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.05))
        running.wait_for(lambda it: it.err.count(b"/s (2 reconnects") >= 2)
        done = running.end(signal.SIGTERM)
    told = [line.removeprefix("twitter-stream.py: ") for line in done.stderr.decode().splitlines()]
    reconnects = [line for line in told if "reconnecting" in line]
    assert re.fullmatch(r"Read timed out; reconnecting in 0.0 s", reconnects[0])
    assert re.fullmatch(r"503 Service Unavailable; reconnecting in 0.[23] s", reconnects[1])
    minutes = [re.fullmatch(r"(\d+) tweets, (\d+)/s \(\d reconnects, 0 skipped\)", line) for line in told]
    first, second, *_ = [[int(each) for each in found.groups()] for found in minutes if found and "(2 re" in found[0]]
    assert first[0] < second[0]
    assert 10 <= second[1] <= 100, "of the newest minute, not of the whole run"
    assert re.fullmatch(rf"published \d+ tweets to {topic} \(2 reconnects, 0 skipped\)", told[-1])
    assert len(told) == 3 + len([each for each in minutes if each])


def test_a_terminal_gets_a_live_line(scripts: Scripts, topic: str) -> None:
    master, terminal = pty.openpty()
    with XApi([Step(tweets=5, end="cut"), Step(body="rubbish\n")], rate=50) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 1), stderr=terminal)
        os.close(terminal)
        shown, end = b"", time.monotonic() + 20
        while not re.search(rb"\r(twitter-stream.py: \d+ tweets, \d+/s \(1 reconnects, 1 skipped\)) *\r[^\n]", shown):
            assert time.monotonic() < end
            shown += os.read(master, 1000)
        assert re.search(rb"\rtwitter-stream.py: .*; reconnecting in 0.0 s *\r\n", shown)
        running.end(signal.SIGTERM)
    os.close(master)


def test_the_token_is_never_shown(scripts: Scripts, topic: str) -> None:
    """Not where an answer of X holds it, and not by any logger."""
    echo = problem(title="Bad header", detail="x" * 255 + " Authorization: Bearer secret-token")
    script = [Step(status=503, body=echo), Step(body=f"{echo}\r\n", tweets=5), Step(status=401, body=echo)]
    start = (
        "import logging, runpy, sys; logging.basicConfig(level=1); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    with XApi(script) as api:
        path = str(scripts.folder / "twitter-stream.py")
        options: dict[str, Any] = {"env": env(api), "cwd": scripts.folder}
        command = scripts.call("twitter-stream", ("-t", topic), options)
        assert command[1] == path
        running = Running([command[0], "-c", start, *command[1:]], options)
        wait_until(lambda: api.requests)
        listed = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        done = running.end()
    assert done.returncode == 1
    assert b"DEBUG:urllib3" in done.stderr
    assert b"secret" not in listed + done.stdout + done.stderr
    assert b"secret" not in scripts.run("twitter-stream", "--help", env=env(api)).stdout


def test_without_tls_the_token_goes_through_no_proxy(scripts: Scripts, topic: str) -> None:
    with XApi() as api, XApi() as proxy:
        through = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url, "NO_PROXY": ""}
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api) | through)
    assert done.returncode == 0
    assert proxy.requests == []


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy that knows CONNECT alone; it notes to where."""

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.server.targets.append(target)  # type: ignore[attr-defined]
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self.copy, args=(there, self.connection), daemon=True)
            back.start()
            self.copy(self.connection, there)
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


@pytest.mark.parametrize("url", ["https://", "https://127.0.0.1:99999/", "https://[::1/"])
def test_an_address_that_is_none(scripts: Scripts, topic: str, url: str) -> None:
    done = scripts.run("twitter-stream", "-t", topic, env={"STREAM_URL": url, "BEARER_TOKEN": "t0"})
    assert done.returncode == 2
    assert re.match(r"twitter-stream.py: STREAM_URL or --param: .*\n", done.stderr.decode())


def test_split_agrees_with_bytes_split_wherever_the_blocks_end() -> None:
    split = importlib.import_module("producer").split
    chance = random.Random(1)
    for _ in range(500):
        data = b"".join(chance.choice([b"a", b"bb\r", b"\n", b"\r\n", "é🎉".encode()]) for _ in range(40))
        cuts = sorted(chance.randrange(len(data)) for _ in range(6))
        blocks = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        lines = [bytes(line) for line in split(filter(None, blocks), 1000)]
        assert b"".join(lines) == data
        assert [line.removesuffix(b"\n") for line in lines] == data.removesuffix(b"\n").split(b"\n")
