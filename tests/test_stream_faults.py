"""What X and the network do to twitter-stream.py, as a process, with a stand-in for X and a Kafka.

Times in X's rules are in "seconds of the rules"; STREAM_TEST_SECOND is the length of one.
test_x_rules.py tests the parts that implement these rules.
"""

import itertools
import json
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from broker import Broker, free_ports
from x_api import TOKEN, Handler, Step, XApi, tweet

import pytest
import test_twitter_stream
from conftest import Read, Result, Scripts, Summary, read_summary, values, wait_until
from kafka import KafkaAdminClient, KafkaProducer
from test_twitter_stream import (
    SILENT,
    Tunnel,
    asked,
    deaf_port,
    env,
    follow,
    messages,
    problem,
    reconnects,
    summary,
)

certificate = test_twitter_stream.certificate  # a fixture

TWEET = Step(tweets=1)
PAGE = "<html><title>Sorry</title><p>by the\nedge</html>"
PASSWORD = "hunter2secret"  # noqa: S105
MOMENT = r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"
GAP = re.compile(
    rf"no tweets from {MOMENT} to {MOMENT} \((?:(\d+) h )?(?:(\d+) min )?(\d+) s\); (.*)"
)


def line(number: int, text: str = "") -> bytes:
    """A tweet of our own, with that number as its ID."""
    return json.dumps({"data": {"id": str(number), "text": text}}).encode()


def pauses(api: XApi) -> list[float]:
    """The seconds between the connects."""
    times = [request.time for request in api.requests]
    return [after - before for before, after in itertools.pairwise(times)]


def gaps(lines: Sequence[str]) -> list[tuple[int, str]]:
    """For each reported gap, its length in seconds and what is said about it."""
    found = [match for text in lines if (match := GAP.fullmatch(text))]
    return [(in_seconds(*match.group(1, 2, 3)), match[4]) for match in found]


def in_seconds(hours: str | None, minutes: str | None, seconds: str | None) -> int:
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + int(seconds or 0)


def told(done: Result) -> list[str]:
    """Its messages without the progress lines, which may come at any time."""
    return [text for text in messages(done) if not re.match(r"\d+ tweets?, \d+/s", text)]


def wait_connected(api: XApi, count: int) -> None:
    wait_until(lambda: len(api.requests) >= count, 20)


# ------------------------------------------------------------------ how long it waits

CONNECTIONS = "streaming-connection"
TOO_MANY = {
    "connection_issue": problem(title="Busy", detail="bye", connection_issue="TooManyConnections"),
    "title": problem(title="ConnectionException", detail="bye"),
    "type": problem(title="Busy", detail="bye", type=f"https://api.x.com/2/problems/{CONNECTIONS}"),
    "errors": problem(
        errors=[{"title": "Busy", "detail": "bye", "connection_issue": "TooManyConnections"}]
    ),
}


@pytest.mark.parametrize("body", TOO_MANY.values(), ids=TOO_MANY)
def test_too_many_connections_are_no_used_up_rate_limit(
    scripts: Scripts, topic: str, body: str
) -> None:
    """The limit would be reset 14 real minutes later; 47 connects are left."""
    second = 0.04
    busy = Step(
        status=429, headers={"x-rate-limit-remaining": "47"}, reset_after=14 * 60, body=body
    )
    done, api = follow(scripts, topic, 2, [TWEET, busy, busy, Step()], second=second)
    assert done.returncode == 0
    name = "ConnectionException" if "ConnectionException" in body else "Busy"
    assert told(done)[1] == (
        f"429 {name}: bye (to close stale connections, call DELETE /2/connections/all of X's API); "
        "reconnecting in 0.2 s"
    )
    first, second_pause = pauses(api)[1:]
    assert 5 * second <= first < 6 * second + 1
    assert 10 * second <= second_pause < 12 * second + 1
    counted = read_summary(done.stderr)._replace(gaps=0)
    assert counted == Summary(published=2, reconnects=3)


def said_wait(scripts: Scripts, topic: str, step: Step, second: float) -> float:
    """The wait in seconds that the script announces after the first answer."""
    with XApi([step]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, second))
        running.wait_for(lambda it: b"reconnecting in" in it.err)
        done = running.end(signal.SIGTERM)
    found = re.fullmatch(r"429 Too Many Requests; reconnecting in (\d+\.\d) s", told(done)[0])
    assert found, told(done)
    return float(found[1])


@pytest.mark.parametrize("hours", [-7, 0, 3])
def test_a_used_up_limit_is_waited_for_by_the_clock_of_x(
    scripts: Scripts, topic: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """X's clock is hours off from ours. Here X's window is 90 s, and the limit's rule waits 6 s."""
    offset = 3600 * hours
    monkeypatch.setattr(
        Handler,
        "date_time_string",
        lambda *_: time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + offset)),
    )
    reset = int(time.time()) + offset + 40
    headers = {"x-rate-limit-remaining": "0", "x-rate-limit-reset": str(reset)}
    wait = said_wait(scripts, topic, Step(status=429, headers=headers), 0.1)
    assert 30 <= wait <= 46, "up to 10 s pass before the answer, and up to 5 s are added"


@pytest.mark.parametrize("reset_after", [60, 3600, 80_000])
def test_no_wait_is_longer_than_the_window_of_x(
    scripts: Scripts, topic: str, reset_after: float
) -> None:
    step = Step(status=429, headers={"x-rate-limit-remaining": "0"}, reset_after=reset_after)
    with XApi([step, Step()]) as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, 0.002))
    assert told(done)[0] == "429 Too Many Requests; reconnecting in 1.8 s"
    [pause] = pauses(api)
    assert 1.8 <= pause < 3.5


class Faulty(Tunnel):
    """A proxy, or with a `target` a machine in front of X, that works after some failures."""

    def handle(self) -> None:
        server: FaultyServer = self.server  # type: ignore[assignment]
        server.connects.append(time.monotonic())
        if len(server.connects) <= server.failures:
            self.fail(server.answer)
        elif server.target:
            with socket.create_connection(("127.0.0.1", server.target)) as target:
                self.relay(target)
        else:
            super().handle()

    def fail(self, answer: bytes) -> None:
        """First read what was sent, so that closing does not reset the connection; then answer."""
        self.connection.recv(1 << 16)
        self.wfile.write(answer)
        if b" 200 " in answer:
            self.connection.recv(1 << 16)


class FaultyServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, failures: int, answer: bytes = b"", target: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Faulty)
        self.failures, self.answer, self.target = failures, answer, target
        self.connects: list[float] = []
        self.targets: list[str] = []  # for Tunnel
        self.port: int = self.server_address[1]

    def __enter__(self) -> "FaultyServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


CLOSED = "EOF occurred in violation of protocol"
PROXY_FAULTS = {
    "502": (
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        "Tunnel connection failed: 502 Bad Gateway",
    ),
    "407": (
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        "Tunnel connection failed: 407 Proxy Authentication Required",
    ),
    "403": (
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        "Tunnel connection failed: 403 Forbidden",
    ),
    "closed": (b"", "Remote end closed connection without response"),
    "garbage": (b"\0who are you?\r\n", "who are you?"),
    "closed after the 200": (b"HTTP/1.1 200 OK\r\n\r\n", CLOSED),
}


@pytest.mark.parametrize(("answer", "reason"), PROXY_FAULTS.values(), ids=PROXY_FAULTS)
def test_connects_that_a_proxy_refuses_are_not_metered(
    scripts: Scripts,
    topic: str,
    certificate: tuple[str, str, str],
    answer: bytes,
    reason: str,
) -> None:
    """X would allow the eleventh no sooner than 3 minutes after the first."""
    with XApi(certificate=certificate[:2]) as api, FaultyServer(12, answer) as proxy:
        settings = {
            "REQUESTS_CA_BUNDLE": certificate[2],
            "HTTPS_PROXY": f"http://ann:{PASSWORD}@127.0.0.1:{proxy.port}",
            "NO_PROXY": "",
        }
        done = scripts.run(
            "twitter-stream", "-t", topic, "-n", 5, "-v", env=env(api, 0.04, **settings)
        )
    check_unmetered(proxy, 0.04)
    assert done.returncode == 0
    lines = [text for text in messages(done) if "reconnecting in" in text]
    target = f"{api.url.split('/')[2]} through the proxy 127.0.0.1:{proxy.port}"
    assert lines[0] == f"cannot connect to {target}: {reason}; reconnecting in 0.0 s"
    assert f"published 5 tweets to {topic} (12 reconnects, 0 skipped)" in messages(done)
    assert PASSWORD.encode() not in done.stdout + done.stderr


def test_handshakes_that_are_closed_are_not_metered(
    scripts: Scripts, topic: str, certificate: tuple[str, str, str]
) -> None:
    with ExitStack() as stack:
        api = stack.enter_context(XApi(certificate=certificate[:2]))
        edge = stack.enter_context(FaultyServer(12, target=api.server.server_address[1]))
        settings = {
            "REQUESTS_CA_BUNDLE": certificate[2],
            "STREAM_URL": f"https://127.0.0.1:{edge.port}/2/stream",
        }
        done = scripts.run("twitter-stream", "-t", topic, "-n", 5, env=env(api, 0.04, **settings))
    check_unmetered(edge, 0.04)
    assert done.returncode == 0
    assert reconnects(done)[0] == f"cannot connect to 127.0.0.1:{edge.port}: {CLOSED}"
    assert read_summary(done.stderr) == Summary(published=5, reconnects=12)


def check_unmetered(server: FaultyServer, second: float) -> None:
    """There were 12 failures; the waits grow by 0.25 s of the rules each time, up to 16 s."""
    assert len(server.connects) == 13
    found = [after - before for before, after in itertools.pairwise(server.connects)]
    assert max(found) < 16 * second + 1, found
    assert all(pause >= 0.25 * count * second for count, pause in enumerate(found, 1)), found


# ------------------------------------------------------------------ what X refuses

WHAT_TO_DO = {
    400: "A parameter is invalid. Check --param.",
    401: "The bearer token is invalid. Check BEARER_TOKEN.",
    403: "The app has no access to the stream. X sells it to Enterprise accounts.",
    404: "There is no stream at this URL. Check STREAM_URL.",
}


@pytest.mark.parametrize(("status", "what_to_do"), WHAT_TO_DO.items(), ids=WHAT_TO_DO)
def test_what_was_right_once_is_refused_for_good_after_ten_in_a_row(
    scripts: Scripts, topic: str, read: Read, status: int, what_to_do: str
) -> None:
    page = Step(status=status, body=PAGE)
    script = [TWEET, *[page] * 9, TWEET, *[page] * 10, Step()]
    with XApi(script) as api:
        done = scripts.run("twitter-stream", "-t", topic, env=env(api, 0.0005))
    assert done.returncode == 1
    assert len(api.requests) == 21
    reason = f"{status} Sorry by the edge"
    assert told(done)[1] == f"{reason}; reconnecting in 0.0 s"
    assert f"X refuses 10 times in a row: {reason}. {what_to_do}" in told(done)
    assert values(read(topic)) == api.sent
    counted = read_summary(done.stderr)._replace(gaps=0)
    assert counted == Summary(published=2, reconnects=20)


@pytest.mark.parametrize(("status", "what_to_do"), WHAT_TO_DO.items(), ids=WHAT_TO_DO)
def test_a_refusal_before_the_first_tweet_ends_it(
    scripts: Scripts, topic: str, status: int, what_to_do: str
) -> None:
    """A keep-alive shows that X has accepted the request, but not that it has a stream for it."""
    script = [Step(body="\r\n", tweets=0), Step(status=status, body=PAGE), Step()]
    done, api = follow(scripts, topic, 1, script, second=1)
    assert done.returncode == (2 if status == 400 else 1)
    assert messages(done) == [
        "X ended the stream; reconnecting in 0.0 s",
        f"X refuses: {status} Sorry by the edge. {what_to_do}",
        f"published 0 tweets to {topic} (1 reconnect, 0 skipped)",
    ]
    assert len(api.requests) == 2


NO_CREDITS = "The account has no credits left. Buy credits in X's developer portal."
USED_UP = "The plan's tweets are used up. Wait for the next billing period, or upgrade the plan."
CERTAIN = {
    "402": (Step(status=402), f"402 Payment Required. {NO_CREDITS}"),
    "credits": (
        Step(status=403, body=problem(title="Broke", type="https://api.x.com/2/problems/credits/")),
        f"403 Broke. {NO_CREDITS}",
    ),
    "usage": (
        Step(
            status=429,
            body=problem(errors=[{"title": "Over", "type": "/2/problems/usage-capped"}]),
        ),
        f"429 Over. {USED_UP}",
    ),
}


@pytest.mark.parametrize("tweets", [0, 1])
@pytest.mark.parametrize(("step", "message"), CERTAIN.values(), ids=CERTAIN)
def test_what_only_money_can_change_ends_it_at_once(
    scripts: Scripts, topic: str, step: Step, message: str, tweets: int
) -> None:
    done, api = follow(scripts, topic, 9, [*[TWEET] * tweets, step, Step()], second=1)
    assert done.returncode == 1
    assert messages(done)[tweets:] == [
        f"X refuses: {message}",
        f"published {'1 tweet' if tweets else '0 tweets'} to {topic} "
        f"({'1 reconnect' if tweets else '0 reconnects'}, 0 skipped)",
    ]
    assert len(api.requests) == tweets + 1


REFUSED = Step(status=400, body=PAGE)


@pytest.mark.parametrize(
    ("script", "minutes"),
    [
        ([TWEET, REFUSED, TWEET, Step()], "- 1 - 1"),
        ([TWEET, *[REFUSED, TWEET] * 3, TWEET, Step()], "- 1 - 1 - 1 - - -"),
        ([TWEET, *[REFUSED, TWEET] * 2, TWEET, REFUSED, TWEET, Step()], "- 1 - 1 - 1 1 - 1"),
    ],
    ids=["once", "three in a row", "three, but not in a row"],
)
def test_after_how_many_refusals_backfill_is_given_up(
    scripts: Scripts, topic: str, script: list[Step], minutes: str
) -> None:
    count = script.count(TWEET) + 1
    with XApi(script) as api:
        arguments = ("-t", topic, "-n", count, "--backfill")
        done = scripts.run("twitter-stream", *arguments, env=env(api, 1))
    assert done.returncode == 0
    assert " ".join(asked(api)) == minutes
    assert messages(done)[1] == (
        "400 Sorry by the edge; trying without backfill; reconnecting in 0.0 s"
    )
    assert read_summary(done.stderr).published == count


# ------------------------------------------------------------------ gaps

NOT_ASKED = "not requested again (see --backfill)"
DOWN = Step(status=503)


@pytest.mark.parametrize(
    ("faults", "second", "flags", "remedy"),
    [
        ([DOWN] * 3, 0.04, [], NOT_ASKED),
        ([DOWN] * 3, 0.2, ["--backfill"], "asked X for the last minute"),
        ([DOWN] * 4, 0.1, ["--backfill"], "asked X for the last 2 minutes"),
        ([DOWN] * 6, 0.01, ["--backfill"], "asked X for the last 5 minutes"),
        ([*[DOWN] * 3, REFUSED], 0.04, ["--backfill"], "X refuses to resend them"),
    ],
    ids=["without backfill", "a minute", "two minutes", "many minutes", "refused"],
)
def test_a_gap_is_reported_once(
    scripts: Scripts, topic: str, faults: list[Step], second: float, flags: list[str], remedy: str
) -> None:
    """The waits after the 503s are 35, 75 or 315 s of the rules, or up to a fifth more."""
    with XApi([TWEET, *faults, Step(tweets=5), Step()]) as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 20, *flags, env=env(api, second))
    assert done.returncode == 0
    [(seconds, comment)] = gaps(messages(done))
    assert comment == remedy
    first, *_, last, _ = (request.time for request in api.requests)
    assert abs(seconds - (last - first) / second) < 0.5 / second
    assert summary(done).endswith(", 1 gap)")


def test_a_gap_that_has_not_ended_is_reported_at_the_end(scripts: Scripts, topic: str) -> None:
    """The fifth connect is 35 to 42 s of the rules after the second."""
    second = 0.02
    with XApi([TWEET, DOWN]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, second))
        wait_connected(api, 5)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    *_, report, last = messages(done)
    [(seconds, comment)] = gaps([report])
    assert 35 <= seconds < 42 + 2 / second
    assert comment == "the run ended before the stream resumed"
    assert last == f"published 1 tweet to {topic} (4 reconnects, 0 skipped, 1 gap)"


def test_what_is_no_longer_than_a_silence_of_x_is_no_gap(scripts: Scripts, topic: str) -> None:
    with XApi([TWEET, DOWN, TWEET, DOWN]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.1))
        wait_connected(api, 4)
        done = running.end(signal.SIGTERM)
    assert gaps(messages(done)) == []
    assert summary(done) == f"published 2 tweets to {topic} (3 reconnects, 0 skipped)"


# ------------------------------------------------------------------ after a restart


@pytest.mark.parametrize("partitions", [1, 4])
def test_a_restart_fills_the_gap_and_publishes_nothing_twice(
    scripts: Scripts, topic: str, read: Read, admin: KafkaAdminClient, partitions: int
) -> None:
    admin.create_topics({topic: {"num_partitions": partitions}})
    arguments = ("twitter-stream", "-t", topic, "--backfill", "-n")
    with XApi([Step(tweets=20, missed=10), Step()]) as api:
        first = scripts.run(*arguments, 20, env=env(api, 1))
        then = scripts.run(*arguments, 30, env=env(api, 1))
    assert (first.returncode, then.returncode) == (0, 0)
    assert asked(api) == ["-", "1"]
    assert messages(first) == [f"published 20 tweets to {topic} (0 reconnects, 0 skipped)"]
    assert messages(then) == [
        f"published 30 tweets to {topic} (0 reconnects, 0 skipped, 20 duplicates)"
    ]
    records = read(topic)
    assert {*values(records)} == {tweet(number) for number in range(50)}
    assert len(records) == 50
    assert len({record.partition for record in records}) == partitions


@pytest.mark.parametrize(
    ("age", "minutes", "partitions"), [(25, "1", 4), (90, "2", 1), (150, "3", 4), (7200, "5", 4)]
)
def test_a_restart_asks_for_the_minutes_since_the_newest_event(
    scripts: Scripts,
    topic: str,
    admin: KafkaAdminClient,
    producer: KafkaProducer,
    age: int,
    minutes: str,
    partitions: int,
) -> None:
    """It is in the last partition; the others' events are 20 or more seconds older."""
    admin.create_topics({topic: {"num_partitions": partitions}})
    now = time.time()
    for number in range(partitions):
        moment = now - age - 20 * (partitions - 1 - number)
        producer.send(topic, line(number), b"%d" % number, None, number, int(moment * 1000))
    producer.flush()
    done, api = follow(scripts, topic, 1, [Step()], "--backfill", second=1)
    assert done.returncode == 0
    assert asked(api) == [minutes]
    [(seconds, comment)] = gaps(messages(done))
    assert age <= seconds < age + 10
    words = "minute" if minutes == "1" else f"{minutes} minutes"
    assert comment == f"asked X for the last {words}"
    assert summary(done) == f"published 1 tweet to {topic} (0 reconnects, 0 skipped, 1 gap)"


@pytest.mark.parametrize("partitions", [0, 1, 4])
def test_an_empty_topic_asks_for_nothing(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, partitions: int
) -> None:
    if partitions:
        admin.create_topics({topic: {"num_partitions": partitions}})
    done, api = follow(scripts, topic, 1, [Step()], "--backfill", second=1)
    assert messages(done) == [f"published 1 tweet to {topic} (0 reconnects, 0 skipped)"]
    assert asked(api) == ["-"]


@pytest.mark.parametrize("partitions", [1, 4])
def test_kill_9_loses_nothing_and_publishes_nothing_twice(
    scripts: Scripts, topic: str, read: Read, admin: KafkaAdminClient, partitions: int
) -> None:
    """Tweets are posted all the time, and X resends those of the last minutes when asked."""
    admin.create_topics({topic: {"num_partitions": partitions}})
    with XApi([Step(posts=True)], rate=200) as api:
        for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
            before = len(read(topic))
            running = scripts.start("twitter-stream", "-t", topic, "--backfill", env=env(api, 1))
            wait_until(lambda before=before: len(read(topic)) > before + 50)  # type: ignore[misc]
            done = running.end(number)
    assert asked(api) == ["-", "1", "1"]
    assert done.returncode == 0
    found = sorted(int(record.key) for record in read(topic))
    assert found == list(range(found[0], found[-1] + 1, 1 << 22))
    counted = read_summary(done.stderr)
    assert counted == Summary(counted.published, duplicates=counted.duplicates)
    assert counted.published + counted.duplicates == len(found)


# ------------------------------------------------------------------ what the lines hold

ODD = {
    "latin-1": b'{"data":{"id":"1","text":"caf\xe9"}}',
    "a raw tab": b'{"data":{"id":"1","text":"a\tb"}}',
    "CESU-8": b'{"data":{"id":"1","text":"\xed\xa0\xbd\xed\xb8\x80"}}',
    "a BOM": b'\xef\xbb\xbf{"data":{"id":"1"}}',
    "NUL": b'{"data":{"id":"1","text":"a\0b"}}',
    "an unknown escape": rb'{"data":{"id":"1","text":"\q"}}',
    "other line breaks": b'{"data":{"id":"1","text":"\x0b\x0c\x1c\x85\xe2\x80\xa8\r"}}',
    "blanks around it": b' \t{"data":{"id":"1"}} ',
}


def test_a_tweet_is_published_byte_for_byte(scripts: Scripts, topic: str, read: Read) -> None:
    """Whatever bytes it has; here each tweet has its own ID."""
    lines = [text.replace(b'"1"', b'"%d"' % number) for number, text in enumerate(ODD.values())]
    done, _ = follow(scripts, topic, len(lines) + 1, [Step(lines=lines)], second=1)
    assert messages(done) == [
        f"published {len(lines) + 1} tweets to {topic} (0 reconnects, 0 skipped)"
    ]
    *records, _ = read(topic)
    assert dict(zip(ODD, values(records), strict=True)) == dict(zip(ODD, lines, strict=True))
    assert [record.key for record in records] == [b"%d" % number for number in range(len(lines))]


@contextmanager
def server_with(*answers: bytes) -> Iterator[str]:
    """The URL of a server that gives each connect the next of these answers, and closes."""

    def serve(server: socket.socket) -> None:
        for answer in answers:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join(20)


def chunked(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def with_length(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def until_closed(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


@pytest.mark.parametrize("answer", [chunked, with_length, until_closed])
def test_at_a_clean_end_the_last_line_needs_no_newline(
    scripts: Scripts, topic: str, read: Read, answer: Callable[[bytes], bytes]
) -> None:
    first, last, cut = line(1), line(2), line(3)[:-3]
    answers = [answer(first + b"\r\n" + last), answer(line(4) + b"\n" + cut), answer(line(5))]
    with server_with(*answers) as url:
        settings = {"STREAM_URL": url, "BEARER_TOKEN": "t0"}
        done = scripts.run("twitter-stream", "-t", topic, "-n", 4, env=settings)
    assert messages(done) == [
        "X ended the stream; reconnecting in 0.0 s",
        f"skipped a line that is not a JSON object: {cut.decode()}",
        f"published 4 tweets to {topic} (2 reconnects, 1 skipped)",
    ]
    assert values(read(topic)) == [first, last, line(4), line(5)]


def test_a_line_that_a_break_cuts_off_is_no_tweet(scripts: Scripts, topic: str, read: Read) -> None:
    """Not even if it parses: the rest of what was promised may have belonged to it."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"
    with server_with(head + line(1) + b"\r\n" + line(2), chunked(line(3))) as url:
        settings = {"STREAM_URL": url, "BEARER_TOKEN": "t0"}
        done = scripts.run("twitter-stream", "-t", topic, "-n", 2, env=settings)
    assert "skipped an incomplete line" in messages(done)
    assert read_summary(done.stderr) == Summary(published=2, reconnects=1, skipped=1)
    assert values(read(topic)) == [line(1), line(3)]


def test_keep_alives_may_have_blanks(scripts: Scripts, topic: str) -> None:
    """They do not count as skipped lines, and a connection with them is resumed at once."""
    script = [Step(body=blanks, tweets=0) for blanks in (" \r\n", "\t\n", " \r\n \t \r\n\n")]
    done, api = follow(scripts, topic, 1, [*script, Step()], second=1)
    assert messages(done) == [
        "X ended the stream; reconnecting in 0.0 s",
        f"published 1 tweet to {topic} (3 reconnects, 0 skipped)",
    ]
    assert pauses(api)[-1] < 0.75, "the wait after a third empty answer"


@pytest.mark.parametrize(
    "step",
    [
        Step(body=PAGE, tweets=0),
        Step(body=f"\r\n \n\n{PAGE}", tweets=0),
        Step(body=f"\ufeff<!DOCTYPE html>\n{PAGE}\n", tweets=0, gzip=True),
        Step(body=f" {PAGE}", tweets=0, chunk=1),
    ],
    ids=["plain", "after blank lines", "compressed", "a byte at a time"],
)
def test_a_web_page_instead_of_tweets_is_reported_in_its_words(
    scripts: Scripts, topic: str, step: Step
) -> None:
    """The wait is as for any answer that is not a stream, and none of its lines is a tweet."""
    done, api = follow(scripts, topic, 2, [TWEET, step, Step()], second=0.04)
    assert told(done)[1] == (
        "200, but a web page instead of tweets: Sorry by the edge; reconnecting in 0.2 s"
    )
    assert pauses(api)[1] >= 5 * 0.04
    counted = read_summary(done.stderr)._replace(gaps=0)
    assert counted == Summary(published=2, reconnects=2)


# ------------------------------------------------------------------ what takes too long

SECOND = 0.1  # a silence is then 2.2 s, just over its minimum of 2 s
DRIPS = {
    "header": (Step(before="drip"), 0),
    "100 Continue": (Step(before="continue"), 0),
    "line": (Step(tweets=0, end="drip"), 1),
}


def check_silence(pause: float) -> None:
    assert 22 * SECOND <= pause < 25 * SECOND + 1


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(("drip", "skipped"), DRIPS.values(), ids=DRIPS)
def test_what_comes_a_byte_at_a_time_is_silence(
    scripts: Scripts,
    topic: str,
    certificate: tuple[str, str, str],
    drip: Step,
    skipped: int,
    tls: bool,
) -> None:
    with XApi([drip, Step()], certificate=certificate[:2] if tls else None) as api:
        settings = env(api, SECOND, REQUESTS_CA_BUNDLE=certificate[2])
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=settings)
    [pause] = pauses(api)
    check_silence(pause)
    assert reconnects(done) == [SILENT]
    assert ("skipped an incomplete line" in messages(done)) is bool(skipped)
    assert read_summary(done.stderr) == Summary(published=1, reconnects=1, skipped=skipped)


def test_a_handshake_without_an_answer_is_silence(scripts: Scripts, topic: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        settings = {
            "STREAM_URL": f"https://{address}/",
            "BEARER_TOKEN": "t0",
            "STREAM_TEST_SECOND": str(SECOND),
        }
        running = scripts.start("twitter-stream", "-t", topic, env=settings)
        with server.accept()[0]:
            began = time.monotonic()
            with server.accept()[0]:
                check_silence(time.monotonic() - began)
                done = running.end(signal.SIGTERM)
    assert reconnects(done) == [f"cannot connect to {address}: no response"]
    assert summary(done) == f"published 0 tweets to {topic} (1 reconnect, 0 skipped)"


def test_early_hints_before_the_answer_cost_nothing(
    scripts: Scripts, topic: str, read: Read
) -> None:
    done, api = follow(scripts, topic, 3, [Step(before="hints", tweets=3), Step()], second=1)
    assert messages(done) == [f"published 3 tweets to {topic} (0 reconnects, 0 skipped)"]
    assert values(read(topic)) == api.sent


RESOLVER = """
import socket, time

system_resolver = socket.getaddrinfo

def resolver(host, port, *arguments, **options):
    if host != "localhost":
        return system_resolver(host, port, *arguments, **options)
    with open({log!r}, "a") as log:
        print(time.monotonic(), file=log)
    targets = [("127.0.0.1", other) for other in {ports}]
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target) for target in targets]

socket.getaddrinfo = resolver
"""


@contextmanager
def closed_port() -> Iterator[int]:
    yield free_ports(1)[0]


@pytest.mark.parametrize("dead_port", [deaf_port, closed_port])
def test_an_address_that_does_not_answer_costs_less_than_a_second(
    scripts: Scripts, topic: str, tmp_path: Path, dead_port: Callable[[], Iterator[int]]
) -> None:
    """The host has two addresses; the first one never answers, or refuses."""
    with XApi([TWEET, TWEET, Step()]) as api, dead_port() as dead:  # type: ignore[attr-defined]
        port = api.server.server_address[1]
        log = tmp_path / "lookups"
        resolver = RESOLVER.format(log=str(log), ports=[dead, port])
        (tmp_path / "sitecustomize.py").write_text(resolver)
        settings = {"STREAM_URL": f"http://localhost:{port}/", "PYTHONPATH": str(tmp_path)}
        done = scripts.run("twitter-stream", "-t", topic, "-n", 3, env=env(api, 1, **settings))
    assert messages(done) == [
        "X ended the stream; reconnecting in 0.0 s",
        f"published 3 tweets to {topic} (2 reconnects, 0 skipped)",
    ]
    lookups = [float(moment) for moment in log.read_text().split()]
    assert len(lookups) == len(api.requests) == 3
    costs = [request.time - moment for request, moment in zip(api.requests, lookups, strict=True)]
    assert all(0 < cost < 1 for cost in costs), costs


def test_while_kafka_holds_it_up_x_is_not_silent(
    scripts: Scripts, topic: str, read: Read, kafka: Broker, stalled: Callable[[], None]
) -> None:
    """Two lines that say so are a minute apart, here 3 s; X's silence would be 2 s.

    There are more tweets than fit in flight and in the socket buffers.
    """
    large = [line(number, "x" * 50_000) for number in range(700)]
    with XApi([Step(delay=0.5, lines=large), Step()], rate=50) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.05))
        wait_connected(api, 1)
        stalled()
        running.wait_for(lambda it: it.err.count(b", waiting for Kafka") == 2)
        assert not api.sent, "X itself has to wait, as nobody reads"
        kafka.server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(api.sent) > len(large) + 75)  # 1.5 s, longer than 22 s of the rules
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    found = values(read(topic))
    assert found == api.sent[: len(found)]
    assert summary(done) == f"published {len(found)} tweets to {topic} (0 reconnects, 0 skipped)"
    assert len(found) >= len(large)
    assert len(api.requests) == 1


# ------------------------------------------------------------------ settings

NOT_A_PROXY = (
    "{} is not a valid proxy URL; it must be http://HOST:PORT or "
    "http://USER:PASSWORD@HOST:PORT, with special characters percent-encoded"
)
NO_SOCKS = "{} is a SOCKS proxy, which needs PySocks. Run: pip install PySocks"
PROXIES = [
    (f"socks5h://ann:{PASSWORD}@127.0.0.1:1080", NO_SOCKS),
    (f"http://ann:{PASSWORD}/x@127.0.0.1:3128", NOT_A_PROXY),
    (f"http://ann:12/{PASSWORD}@127.0.0.1:3128", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}#x@127.0.0.1:3128", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}?x@127.0.0.1:3128", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}@127.0.0.1:99999", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}@127.0.0.1:0", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}@127.0.0.1:port", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}@", NOT_A_PROXY),
    ("http://@", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}@:3128", NOT_A_PROXY),
    (f"http://ann:{PASSWORD}@/", NOT_A_PROXY),
    (f"ftp://ann:{PASSWORD}@127.0.0.1:3128", NOT_A_PROXY),
    (f"http:/ann:{PASSWORD}@127.0.0.1:3128", NOT_A_PROXY),
    (f"ann:{PASSWORD}@proxy:3128", NOT_A_PROXY),
]
VARIABLES = ["HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"]


def check_rejected(scripts: Scripts, settings: dict[str, str], message: str) -> None:
    """The script ends with status 2 and only this message; there is no Kafka to connect to."""
    variables = {"BEARER_TOKEN": TOKEN, "NO_PROXY": "", **settings}
    done = scripts.run("twitter-stream", "-v", env=variables)
    assert messages(done) == [message]
    assert done.returncode == 2
    assert PASSWORD.encode() not in done.stdout + done.stderr


@pytest.mark.parametrize(("proxy", "message"), PROXIES, ids=[proxy for proxy, _ in PROXIES])
def test_a_proxy_that_cannot_be_used(lone_scripts: Scripts, proxy: str, message: str) -> None:
    check_rejected(lone_scripts, {"HTTPS_PROXY": proxy}, message.format("HTTPS_PROXY"))


@pytest.mark.parametrize("variable", VARIABLES[1:])
@pytest.mark.parametrize(("proxy", "message"), PROXIES[:2], ids=["SOCKS", "malformed"])
def test_the_variable_of_the_proxy_is_named(
    lone_scripts: Scripts, variable: str, proxy: str, message: str
) -> None:
    check_rejected(lone_scripts, {variable: proxy}, message.format(variable))


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {} ({}): No such file or directory"),
        ("", "cannot use {} ({}): no certificate or crl found"),
        ("-----BEGIN CERTIFICATE-----\n", "cannot use {} ({}): wrong password or not a PEM file"),
    ],
    ids=["missing", "empty", "damaged"],
)
def test_a_ca_bundle_that_cannot_be_used(
    lone_scripts: Scripts, tmp_path: Path, variable: str, content: str | None, message: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    check_rejected(lone_scripts, {variable: str(path)}, message.format(path, variable))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "https://127.0.0.1:99999/",
            "cannot use STREAM_URL with --param: Failed to parse: https://127.0.0.1:99999/",
        ),
        ("https://127.0.0.1:0/", "cannot use STREAM_URL: it is not a valid URL"),
        (
            f"https://ann:{PASSWORD}@127.0.0.1:99999/",
            "cannot use STREAM_URL with --param: it is not a valid URL",
        ),
        (
            f"https://ann:{PASSWORD}/x@127.0.0.1/",
            "cannot use STREAM_URL with --param: it is not a valid URL",
        ),
    ],
)
def test_an_address_that_cannot_be_used(lone_scripts: Scripts, url: str, message: str) -> None:
    check_rejected(lone_scripts, {"STREAM_URL": url}, message)


@pytest.mark.parametrize("token", [f'"{TOKEN}"', f"'{TOKEN}'", f'"Bearer {TOKEN}"'])
def test_the_token_may_stand_in_quotes(scripts: Scripts, topic: str, token: str) -> None:
    with XApi() as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, BEARER_TOKEN=token))
    assert messages(done) == [f"published 1 tweet to {topic} (0 reconnects, 0 skipped)"]
    [request] = api.requests
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"


# ------------------------------------------------------------------ one line a minute


def test_tweets_that_are_too_large_give_one_line_a_minute(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """A minute is 1.8 s; the wait after the 429 is that long, or up to a fifth longer."""
    admin.create_topics({topic: {"configs": {"max.message.bytes": "300"}}})
    large = [line(number, "y" * 280) for number in range(1000)]
    flood = Step(lines=large, tweets=0)
    with XApi([flood, Step(status=429), flood, Step(status=402)]) as api:
        done = scripts.run("twitter-stream", "-t", topic, env=env(api, 0.03))
    assert done.returncode == 1
    too_large = "(314 bytes): larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE"
    assert [text for text in messages(done) if text.startswith("skipped")] == [
        f"skipped tweet 1 {too_large}",
        f"skipped tweet 1001 {too_large}",
    ]
    assert summary(done).endswith(f", 2000 failed: tweet 1 {too_large}")


@pytest.mark.parametrize(
    ("fault", "count", "second", "reasons"),
    [
        (Step(status=503, body=PAGE), 3, 0.02, ["503 Sorry by the edge"]),
        (Step(before="close"), 11, 0.08, ["Remote end closed connection without response"] * 2),
    ],
    ids=["503", "close"],
)
def test_a_server_that_refuses_for_long_gives_one_line_a_minute(
    scripts: Scripts, topic: str, fault: Step, count: int, second: float, reasons: list[str]
) -> None:
    """The third 503 comes after 15 to 18 s. The eleventh connect is after X's 3 minutes."""
    done, api = follow(scripts, topic, 1, [*[fault] * count, Step()], second=second)
    assert len(api.requests) == count + 1
    assert reconnects(done) == reasons
    assert read_summary(done.stderr) == Summary(published=1, reconnects=count)
