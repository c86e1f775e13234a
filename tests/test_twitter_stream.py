"""twitter-stream.py against a stand-in for X at a real socket, and a real Kafka."""

import importlib
import itertools
import json
import random
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from x_api import Step, XApi

import pytest
from conftest import Result, Scripts

SECOND = 0.02  # of the waiting times
Read = Callable[[str], list[Any]]


def env(api: XApi, **more: str) -> dict[str, str]:
    return {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, "STREAM_TEST_SECOND": str(SECOND), **more}


def follow(
    scripts: Scripts, topic: str, count: int, script: list[Step], *arguments: str, **options: Any
) -> tuple[Result, XApi]:
    """Publish `count` tweets from a stand-in with the script."""
    with XApi(script, **options) as api:
        return scripts.run("twitter-stream", "-t", topic, "-n", count, *arguments, env=env(api)), api


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
    ("fault", "reason"),
    [
        (Step(tweets=10), "X ended the stream"),
        (Step(tweets=10, end="cut"), ".*"),
        (Step(tweets=10, end="torn"), ".*"),
        (Step(tweets=10, end="tail"), "X ended the stream"),
        (Step(tweets=10, end="silence"), "Read timed out."),
        (Step(status=503, body="<html><h1>Over\ncapacity</h1></html>"), "503 Over capacity"),
        (Step(status=500), "500 Internal Server Error"),
        (Step(status=302, headers={"Location": "http://localhost:1/"}), "302 Found"),
        (Step(status=429, body='{"title":"Slow","detail":"down"}'), "429 Slow: down"),
        (Step(tweets=0), "X ended the stream"),
    ],
)  # fmt: skip
def test_it_reconnects_and_loses_no_whole_line(
    scripts: Scripts, topic: str, read: Read, fault: Step, reason: str
) -> None:
    done, api = follow(scripts, topic, 50, [fault, Step()])
    assert done.returncode == 0
    assert len(reconnects(done)) == 1
    assert re.fullmatch(reason, reconnects(done)[0])
    assert summary(done) == f"published 50 tweets to {topic} (1 reconnects, 0 skipped)"
    assert [record.value for record in read(topic)] == api.sent[:50]
    assert len(api.requests) == 2
    assert api.most_open == 1


def problem(**fields: object) -> str:
    return json.dumps(fields)


UNKNOWN = [{"message": "The query parameter [foo] is unknown"}]


@pytest.mark.parametrize(
    ("step", "status", "sentence"),
    [
        (
            Step(status=401, body=problem(title="Unauthorized", detail="Unauthorized")),
            1,
            "401 Unauthorized: Unauthorized; check BEARER_TOKEN",
        ),
        (
            Step(status=403, body=problem(title="Client Forbidden", detail="enroll", reason="client-not-enrolled")),
            1,
            "403 Client Forbidden: enroll; .*Enterprise.*",
        ),
        (Step(status=404), 1, "404 Not Found; check STREAM_URL"),
        (
            Step(status=429, body=problem(title="UsageCapExceeded", detail="Usage cap exceeded: Monthly")),
            1,
            "429 UsageCapExceeded: Usage cap exceeded: Monthly; waiting does not help",
        ),
        (
            Step(status=400, gzip=True, body=problem(title="Invalid Request", detail="invalid", errors=UNKNOWN)),
            2,
            r"400 Invalid Request: invalid: The query parameter \[foo\] is unknown; check --param",
        ),
    ],
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


def test_what_is_no_tweet_is_skipped(scripts: Scripts, topic: str, read: Read) -> None:
    rubbish = ["[1]", "not json", '{"data":{}}', '{"data":{"id":7}}', '{"errors":[{"title":"Not Found Error"}]}', "\r"]
    odd = '{"data":{"id":"\\ud800"}}'
    partial = '{"data":{"id":"1","text":"x"},"errors":[{"title":"Not Found Error"}]}'
    body = "".join(f"{line}\r\n" for line in [*rubbish[:5], "", odd, partial, "x" * (1 << 20) + "y"])
    done, api = follow(scripts, topic, 4, [Step(body=body)])
    assert done.returncode == 0
    assert summary(done) == f"published 4 tweets to {topic} (0 reconnects, 6 skipped)"
    assert [record.value for record in read(topic)] == [odd.encode(), partial.encode(), *api.sent[:2]]
    assert done.stderr.count(b"skipped a line that is no tweet") >= 1


DISCONNECT = {
    "title": "operational-disconnect",
    "disconnect_type": "UpstreamOperationalDisconnect",
    "detail": "bye",
    "type": "https://api.x.com/2/problems/operational-disconnect",
}


@pytest.mark.parametrize(
    "message",
    [
        problem(errors=[DISCONNECT]),
        problem(**DISCONNECT),
        problem(title="ConnectionException", detail="bye", connection_issue="TooManyConnections"),
    ],
)
def test_disconnect_messages_are_obeyed(scripts: Scripts, topic: str, read: Read, message: str) -> None:
    done, _ = follow(scripts, topic, 5, [Step(body=f"{message}\r\n"), Step()])
    assert done.returncode == 0
    assert len(reconnects(done)) == 1
    assert re.fullmatch("(operational-disconnect|ConnectionException): bye", reconnects(done)[0])
    assert len(read(topic)) == 5


def waits(script: list[Step], scripts: Scripts, topic: str, second: float = SECOND) -> list[float]:
    """The pauses between the connects that the script leads to, in seconds of the rules."""
    with XApi([*script, Step()]) as api:
        scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, STREAM_TEST_SECOND=str(second)))
    times = [moment for moment, _, _ in api.requests]
    return [(after - before) / second for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Step(tweets=0), [0.25, 0.5, 0.75, 1.0]),
        (Step(status=503), [5, 10, 20, 40]),
        (Step(status=429), [60, 120]),
        (Step(status=429, headers={"x-rate-limit-reset": "soon"}), [60]),
        (Step(status=429, headers={"x-rate-limit-reset": "99999999999999"}), [60]),
    ],
)
def test_the_waits_grow_as_x_asks(scripts: Scripts, topic: str, fault: Step, expected: list[float]) -> None:
    found = waits([fault] * len(expected), scripts, topic)
    slack = 0.2 / SECOND  # what a connect may take, and the tests' machine
    assert [wait <= each <= wait * 1.25 + slack for wait, each in zip(expected, found, strict=True)] == [True] * len(
        found
    )


def test_the_waits_start_over_after_data(scripts: Scripts, topic: str) -> None:
    faults = [Step(status=503), Step(status=503), Step(body="\r\n", tweets=0), Step(status=503)]
    found = waits(faults, scripts, topic)
    slack = 0.2 / SECOND
    assert found[2] < slack, "a connection that had brought something is taken up again at once"
    assert 5 <= found[3] <= 6.25 + slack


@pytest.mark.parametrize(("body", "pause"), [("\r\n", "0.0"), ("", "0.3")])
def test_only_a_connection_that_brought_something_is_taken_up_at_once(
    scripts: Scripts, topic: str, body: str, pause: str
) -> None:
    with XApi([Step(body=body, tweets=0), Step()]) as api:
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api, STREAM_TEST_SECOND="1"))
    assert f"X ended the stream; reconnecting in {pause} s\n" in done.stderr.decode()


def test_no_more_than_50_connects_in_15_minutes(scripts: Scripts, topic: str) -> None:
    found = waits([Step(body="\r\n", tweets=0)] * 52, scripts, topic, second=0.005)
    assert 899 <= sum(found[:50]) < 1000
    assert max(found[:49]) < 200


def test_not_before_the_rate_limit_is_reset(scripts: Scripts, topic: str) -> None:
    reset = int(time.time()) + 4
    with XApi([Step(status=429, headers={"x-rate-limit-reset": str(reset)}), Step()]) as api:
        scripts.run("twitter-stream", "-t", topic, "-n", 1, env=env(api))
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "step", [Step(tweets=5, end="silence"), Step(status=503), Step()], ids=["read", "wait", "flow"]
)
def test_a_signal_ends_it_at_once(scripts: Scripts, topic: str, read: Read, number: int, step: Step) -> None:
    with XApi([step], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, STREAM_TEST_SECOND="1"))
        if step.status == 503:
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
    assert published >= (0 if step.status == 503 else 5)


def test_the_token_is_never_shown(scripts: Scripts, topic: str) -> None:
    with XApi([Step(status=503), Step(tweets=5, end="silence")]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, STREAM_TEST_SECOND="0.5"))
        watcher = scripts.start("consumer", "-t", topic, "-n", 5)
        watcher.end()
        command = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        done = running.end(signal.SIGTERM)
    assert api.token.encode() not in command + done.stdout + done.stderr


def test_split_agrees_with_bytes_split_wherever_the_blocks_end() -> None:
    split = importlib.import_module("producer").split
    chance = random.Random(1)
    for _ in range(500):
        data = b"".join(chance.choice([b"a", b"bb\r", b"\n", b"\r\n", "é🎉".encode()]) for _ in range(40))
        cuts = sorted(chance.randrange(len(data)) for _ in range(6))
        blocks = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        lines: list[bytes] = []

        def collect(blocks: Iterable[bytes] = blocks, lines: list[bytes] = lines) -> Iterable[bytes]:
            lines.append((yield from split(filter(None, blocks), 1000)))

        found = list(collect())
        assert [*found, *lines] == data.split(b"\n")
