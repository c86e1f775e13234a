"""twitter-stream.py, as a process, with a stand-in for X on a real socket, and a real Kafka.

Times in X's rules are in "seconds of the rules"; STREAM_TEST_SECOND is the length of one.
test_x_rules.py tests every row of the rules in process; here is one test for each thing that a
user gets.
"""

import contextlib
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

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType

from broker import Broker
from conftest import (
    GUARD,
    Read,
    Result,
    Running,
    Scripts,
    Summary,
    Terminal,
    deaf_port,
    fits,
    read_summary,
    resume,
    values,
    wait_until,
)
from remote import count_events
from streaming.delivery import MAX_IN_FLIGHT_BYTES
from x_api import TOKEN, Step, XApi

# As the length of a second of the rules: a minute is an hour, so that nothing is said twice, X is
# never silent, and whatever does not reconnect at once is noticed
HOUR = 60.0
TWEET = Step(tweets=1)
ALIVE = Step(body="\r\n", tweets=0)  # a keep-alive and nothing else
DOWN = Step(status=503)
SILENT = "no complete line from X for 22 s"
ENDED = "X ended the stream; reconnecting now"
PASSWORD = "hunter2secret"  # noqa: S105


def env(api: XApi, second: float = HOUR, **more: str) -> dict[str, str]:
    length = {"STREAM_TEST_SECOND": str(second)}
    return {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, **length, **more}


def follow(
    scripts: Scripts, topic: str, count: int, script: list[Step], *flags: str, second: float = HOUR
) -> tuple[Result, XApi]:
    """Publish `count` tweets from a stand-in with the script."""
    with XApi(script) as api:
        settings = env(api, second)
        return scripts.run("twitter-stream", "-t", topic, "-n", count, *flags, env=settings), api


def messages(done: Result) -> list[str]:
    """Standard error's lines, without the script's name and progress, which may come any time."""
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("twitter-stream.py: ") for line in lines), lines
    texts = [line.removeprefix("twitter-stream.py: ") for line in lines]
    return [text for text in texts if not re.match(r"\d+ tweets?, \d+/s", text)]


def reconnects(done: Result) -> list[str]:
    """The reasons for reconnecting."""
    found = (
        re.fullmatch(r"(.*); reconnecting (?:now|in \d+\.\d s)", text) for text in messages(done)
    )
    return [match[1] for match in found if match]


def counted(done: Result) -> Summary:
    """The summary without gaps: where a second of the rules is short, a slow machine makes some."""
    return read_summary(done.stderr)._replace(gaps=0)


def problem(**fields: object) -> str:
    return json.dumps(fields)


def line(number: int, text: str = "") -> bytes:
    """A tweet of our own, with that number as its ID."""
    return json.dumps({"data": {"id": str(number), "text": text}}).encode()


# ------------------------------------------------------------------ what is published


def test_tweets_arrive_as_x_sent_them(scripts: Scripts, topic: str, read: Read) -> None:
    """In chunks of any size, compressed or not."""
    script = [
        Step(tweets=20),
        Step(tweets=20, chunk=1),
        Step(tweets=20, chunk=7),
        Step(tweets=20, chunk=1000, gzip=True),
    ]
    done, api = follow(scripts, topic, 80, script)
    assert (done.returncode, done.stdout) == (0, b"")
    assert messages(done) == [ENDED, f"published 80 tweets to {topic} (3 reconnects, 0 skipped)"]
    found = read(topic)
    assert values(found) == api.sent
    ids = [json.loads(line)["data"]["id"] for line in api.sent]
    assert [record.key.decode() for record in found] == ids
    printed = scripts.run("consumer", "-t", topic, "-e").stdout
    assert printed == b"".join(line + b"\n" for line in api.sent)
    assert "🏃‍♀️".encode() in printed


ODD = [
    b'{"data":{"id":"0","text":"caf\xe9"}}',
    b'{"data":{"id":"1","text":"a\tb\0c"}}',
    b'{"data":{"id":"2","text":"\xed\xa0\xbd\xed\xb8\x80"}}',
    b'\xef\xbb\xbf{"data":{"id":"3"}}',
    b'{"data":{"id":"4","text":"\x0b\x0c\x1c\x85\xe2\x80\xa8\r"}}',
    b' \t{"data":{"id":"5"}} ',
]


def test_a_tweet_is_published_byte_for_byte(scripts: Scripts, topic: str, read: Read) -> None:
    """Whatever bytes it has; and what is not a tweet is skipped, counted and reported."""
    rubbish = '[1]\r\n\r\n[2]\r\n{"data":{}}\r\n' + "x" * (1 << 20) + "y\r\n"
    done, _ = follow(scripts, topic, len(ODD), [Step(body=rubbish, lines=ODD)])
    assert done.returncode == 0
    assert messages(done) == [
        "skipped a line that is not a JSON object: [1]",
        'skipped a message without a tweet ID: {"data":{}}',
        "skipped a line over 1 MiB",
        f"published {len(ODD)} tweets to {topic} (0 reconnects, 4 skipped)",
    ]
    records = read(topic)
    assert values(records) == ODD
    assert [record.key for record in records] == [b"%d" % number for number in range(len(ODD))]


def test_the_request_and_the_token_that_it_has(
    scripts: Scripts, topic: str, tmp_path: Path
) -> None:
    """The one in .env, not ~/.netrc; and no proxy sees it, as there is no TLS."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    params = ["--param", "tweet.fields=created_at,lang", "--param", "expansions=author_id"]
    with XApi(token="a${HOME}#b") as api, XApi() as proxy:  # noqa: S106 # dotenv knows these
        (scripts.folder / ".env").write_text(f"BEARER_TOKEN={api.token}\nSTREAM_URL={api.url}\n")
        (scripts.folder / ".env").chmod(0o600)
        other = {"HOME": str(tmp_path), "NO_PROXY": "", "STREAM_TEST_SECOND": str(HOUR)}
        proxies = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url}
        done = scripts.run("twitter-stream", "-t", topic, "-n", 1, *params, env=other | proxies)
    assert done.returncode == 0
    assert messages(done) == [f"published 1 tweet to {topic} (0 reconnects, 0 skipped)"]
    [request] = api.requests
    assert proxy.requests == []
    assert request.query == {"tweet.fields": "created_at,lang", "expansions": "author_id"}
    assert request.headers["Authorization"] == "Bearer a${HOME}#b"
    assert re.fullmatch(r"twitter-stream\.py/\d+\.\d+", request.headers["User-Agent"])
    assert request.headers["Accept-Encoding"] == "gzip"


def test_a_new_topic_gets_partitions_and_settings(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """An archive, for example, that keeps its events forever; as with producer.py."""
    flags = ("--partitions", "3", "--topic-config", "retention.ms=-1")
    for note in ([], [f"topic {topic} already exists; ignoring --partitions and --topic-config"]):
        done, _ = follow(scripts, topic, 1, [TWEET], *flags)
        assert done.returncode == 0
        assert messages(done)[:-1] == note
        assert len(admin.describe_topics([topic])[0]["partitions"]) == 3
        asked = ConfigResource(ConfigResourceType.TOPIC, topic, ["retention.ms"])
        found = admin.describe_configs([asked])["topic"][topic]
        assert found["retention.ms"]["value"] == "-1"


def test_tweets_that_are_too_large_are_reported_once_a_minute(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    admin.create_topics({topic: {"configs": {"max.message.bytes": "300"}}})
    flood = Step(lines=[line(number, "y" * 280) for number in range(1000)], tweets=0)
    done, _ = follow(scripts, topic, 1000, [flood, Step(status=402)])
    assert done.returncode == 1
    too_large = "(314 bytes): larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE"
    *said, last = messages(done)
    assert [text for text in said if "tweet" in text] == [f"skipped tweet 1 {too_large}"]
    assert last.endswith(f", 1000 failed: tweet 1 {too_large}")


# ------------------------------------------------------------------ how it reconnects


def test_it_reconnects_and_loses_no_whole_line(scripts: Scripts, topic: str, read: Read) -> None:
    """All resume at once, but the first, as what cannot be decoded was not read."""
    faults = [
        Step(tweets=1, headers={"Content-Encoding": "gzip"}),
        Step(tweets=10),
        Step(tweets=10, end="reset"),
        Step(tweets=10, end="cut"),
        Step(tweets=10, end="torn"),
        Step(tweets=10, end="torn", gzip=True),
        Step(tweets=10, end="tail"),
        Step(tweets=0, body=" \r\n \t \r\n\n"),
    ]
    done, api = follow(scripts, topic, 120, [*faults, Step()], second=1)
    assert done.returncode == 0
    assert counted(done) == Summary(published=120, reconnects=len(faults), skipped=2)
    assert values(read(topic)) == api.sent[1:121]
    assert api.most_open == 1
    reasons = "\n".join(reconnects(done))
    for words in ("the response cannot be decompressed", "was cut off", "Connection reset by peer"):
        assert words in reasons
    assert "skipped an incomplete line" in messages(done)
    announced = [
        text.rpartition("; reconnecting ")[2] for text in messages(done) if "reconnecting" in text
    ]
    assert re.fullmatch(r"in 0\.[23] s", announced[0])
    assert set(announced[1:]) == {"now"}


DISCONNECT = problem(title="operational-disconnect", detail="bye")
BUSY = problem(title="ConnectionException", detail="bye", connection_issue="TooManyConnections")
TOO_MANY = (
    "ConnectionException: bye (another instance may be running with this token; "
    "to close stale connections, call DELETE /2/connections/all in X's API)"
)


def test_a_disconnect_message_is_obeyed(scripts: Scripts, topic: str, read: Read) -> None:
    """After a keep-alive come the message and more tweets, which are not waited for."""
    done, api = follow(scripts, topic, 5, [Step(body=f"\r\n{DISCONNECT}\r\n"), Step()])
    assert done.returncode == 0
    assert messages(done) == [
        "operational-disconnect: bye; reconnecting now",
        f"published 5 tweets to {topic} (1 reconnect, 0 skipped)",
    ]
    assert len(read(topic)) == 5
    assert api.most_open == 1


LEFT = {"x-rate-limit-remaining": "47"}
WAITS = [
    (Step(tweets=0), HOUR, "X ended the stream", (15, 18)),
    (Step(status=429, body=BUSY, headers=LEFT, reset_after=840), 10, f"429 {TOO_MANY}", (50, 60)),
    (Step(status=429, reset_after=400), 1, "429 Too Many Requests", (399, 900)),
]


def test_the_wait_is_announced_and_a_signal_ends_it(
    scripts: Scripts, topic: str, port: int
) -> None:
    with contextlib.ExitStack() as stack:
        runs = []
        for step, second, reason, bounds in WAITS:
            settings = env(stack.enter_context(XApi([step])), second)
            running = scripts.start("twitter-stream", "-t", topic, env=settings)
            runs.append((running, reason, bounds))
        settings |= {"STREAM_URL": f"http://127.0.0.1:{port}/", "STREAM_TEST_SECOND": str(HOUR)}
        reason = f"cannot connect to 127.0.0.1:{port}: Connection refused"
        running = scripts.start("twitter-stream", "-t", topic, env=settings)
        runs.append((running, reason, (15, 18)))
        for running, reason, (shortest, longest) in runs:
            running.wait_for(lambda it: b"reconnecting in" in it.err)
            done = running.end(signal.SIGTERM)
            assert done.returncode == 0
            said, last = messages(done)
            found = re.fullmatch(rf"{re.escape(reason)}; reconnecting in (\d+\.\d) s", said)
            assert found, said
            assert shortest <= float(found[1]) <= longest, said
            assert last == f"published 0 tweets to {topic} (0 reconnects, 0 skipped)"


def pauses(api: XApi, second: float) -> list[float]:
    """The times between the connects, in seconds of the rules."""
    times = [request.time for request in api.requests]
    return [(after - before) / second for before, after in itertools.pairwise(times)]


def test_the_waits_grow_as_x_asks(scripts: Scripts, topic: str) -> None:
    """Faults of another kind do not add up, and data starts all again."""
    idle, busy = Step(tweets=0), Step(body=f"\r\n{BUSY}\n", tweets=0)
    script = [idle, DOWN, idle, DOWN, TWEET, busy, DOWN, Step(status=429), Step()]
    done, api = follow(scripts, topic, 2, script, second=0.02)
    assert counted(done) == Summary(published=2, reconnects=8)
    found = pauses(api, 0.02)
    shortest = [0.25, 5, 0.5, 10, 0, 5, 10, 60]
    assert all(pause >= wait for pause, wait in zip(found, shortest, strict=True)), found


def test_no_more_than_50_connects_in_15_minutes(scripts: Scripts, topic: str) -> None:
    """They are spread out: no more than 10 in 3 minutes, whatever the connections bring."""
    faults = [
        Step(body="\r\n", tweets=0),
        Step(tweets=0),
        Step(tweets=1, end="reset"),
        Step(tweets=1, end="torn"),
        Step(tweets=1),
    ]
    second = 0.003
    done, api = follow(scripts, topic, 200, [*faults * 12, Step(tweets=500)], second=second)
    assert done.returncode == 0
    assert counted(done) == Summary(published=200, reconnects=60, skipped=12)
    times = [request.time for request in api.requests]
    assert len(times) == 61
    for count, seconds in ((10, 180), (50, 900)):
        pairs = zip(times, times[count:], strict=False)
        assert min(after - before for before, after in pairs) >= seconds * second


# Silence is six seconds here; beside each step is how many lines it cuts off
UNFINISHED = {
    "tweets": (Step(tweets=10, end="silence"), 0),
    "nothing": (Step(tweets=0, end="silence"), 0),
    "line": (Step(tweets=0, end="drip"), 1),
}


@pytest.mark.long
def test_what_never_comes_whole_is_silence(
    scripts: Scripts, topic: str, read: Read, certificate: tuple[str, str, str]
) -> None:
    """Bytes that come one at a time are no sign of life; nor does a refusal wait for all of them.

    Nor does a handshake wait for an answer.
    """

    def start(name: str, api: XApi, **more: str) -> Running:
        more |= {"STREAM_TEST_PATIENCE": "3", "REQUESTS_CA_BUNDLE": certificate[2]}
        arguments = ("-t", f"{topic}-{name}", "-n", 20)
        return scripts.start("twitter-stream", *arguments, env=env(api, 0.1, **more))

    with contextlib.ExitStack() as stack:
        runs = {}
        for name, (step, _) in UNFINISHED.items():
            files = certificate[:2] if name == "line" else None
            api = stack.enter_context(XApi([step, Step()], certificate=files))
            runs[name] = (start(name, api), api)
        slow = Step(status=401, body="slow " * 999, chunk=5, pause=0.5)
        refusing = stack.enter_context(XApi([slow]))
        refused = start("refused", refusing)
        mute = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        unanswered = start("unanswered", refusing, STREAM_URL=f"https://{address}/")
        for name, (_, skipped) in UNFINISHED.items():
            running, api = runs[name]
            done = running.end()
            assert reconnects(done) == [SILENT], name
            assert counted(done) == Summary(published=20, reconnects=1, skipped=skipped)
            assert pauses(api, 1)[0] >= 6
            assert values(read(f"{topic}-{name}")) == api.sent[:20]
        done = refused.end()
        assert done.returncode == 1
        assert re.match(
            r"X refused the request: 401 slow( slow)+\. The bearer token is", messages(done)[0]
        )
        unanswered.wait_for(lambda it: b"reconnecting" in it.err)
        done = unanswered.end(signal.SIGTERM)
        assert reconnects(done)[0] == f"cannot connect to {address}: no response"


# ------------------------------------------------------------------ what X refuses


@pytest.mark.parametrize(("status", "exit_status"), [(400, 2), (402, 1), (403, 1)])
def test_a_refusal_ends_it_where_nothing_has_come(
    scripts: Scripts, topic: str, status: int, exit_status: int
) -> None:
    script = [Step(tweets=0), Step(status=status), Step()]
    done, api = follow(scripts, topic, 100, script, second=0.01)
    assert done.returncode == exit_status
    _, refusal, last = messages(done)
    assert fits(f"X refused the request: {status} …", refusal)
    assert last == f"published 0 tweets to {topic} (1 reconnect, 0 skipped)"
    assert len(api.requests) == 2


def test_a_refusal_ends_it_ten_times_in_a_row_where_something_has(
    scripts: Scripts, topic: str, read: Read
) -> None:
    """After what was read, and before the summary. That credits are used up is said once more."""
    for step, words in ((ALIVE, "403 Forbidden"), (Step(tweets=50), "402 Payment Required")):
        refusal = Step(status=int(words[:3]))
        done, api = follow(scripts, topic, 100, [step, *[refusal] * 10, Step()], second=0.002)
        assert done.returncode == 1
        first, *between, final, last = [text for text in messages(done) if "no tweets" not in text]
        assert first == ENDED
        assert between
        if words.startswith("402"):
            [said] = between
            assert fits(f"{words}. The account has no credits left. Buy …; reconnecting …", said)
        assert fits(f"X refused the request 10 times in a row: {words}. …", final)
        assert last.startswith(f"published {len(api.sent)} tweets to {topic} (10 reconnects, ")
        assert values(read(topic)) == api.sent
        assert len(api.requests) == 11


def test_a_page_of_an_edge_does_not_end_a_quiet_stream(scripts: Scripts, topic: str) -> None:
    """Nor do credits that are used up until they are bought, nor a redirect."""
    refusals = [Step(status=status, body="<h1>Sorry</h1>") for status in (400, 401, 402, 403, 404)]
    script = [step for refusal in refusals for step in (ALIVE, refusal, refusal)]
    done, _ = follow(scripts, topic, 1, [*script, Step()], second=0.002)
    assert done.returncode == 0
    assert counted(done) == Summary(published=1, reconnects=15)


def test_a_stream_without_rules_waits_for_one(scripts: Scripts, topic: str) -> None:
    issue = {"title": "ConnectionException", "connection_issue": "RuleConfigurationIssue"}
    no_rules = Step(status=409, body=problem(detail="Define rules.", **issue))
    done, api = follow(scripts, topic, 1, [no_rules, no_rules, Step()], second=0.02)
    assert done.returncode == 0
    assert reconnects(done) == [
        "409 ConnectionException: Define rules. (the stream has no rules; to add one, call "
        "POST /2/tweets/search/stream/rules in X's API)"
    ]
    assert all(pause >= wait for pause, wait in zip(pauses(api, 0.02), (5, 10), strict=True))


# ------------------------------------------------------------------ gaps and backfill


def asked(api: XApi) -> list[str]:
    """The minutes that each connect asked for."""
    return [request.query.get("backfill_minutes", "-") for request in api.requests]


MOMENT = r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"
GAP = re.compile(
    rf"no tweets(?: since the last event,)? from ({MOMENT}) to {MOMENT} "
    r"\((?:(\d+) h )?(?:(\d+) min )?(\d+) s\); (.*)"
)


def the_gap(done: Result) -> tuple[str, int, str]:
    """The only gap that was reported: when it began, its seconds, and what is said about it."""
    [found] = [match for text in messages(done) if (match := GAP.fullmatch(text))]
    hours, minutes, seconds = (int(part or 0) for part in found.group(2, 3, 4))
    return found[1], 3600 * hours + 60 * minutes + seconds, found[5]


def test_a_gap_is_reported_once(scripts: Scripts, topic: str) -> None:
    done, api = follow(scripts, topic, 20, [TWEET, *[DOWN] * 3, Step()], second=0.02)
    assert done.returncode == 0
    _, seconds, comment = the_gap(done)
    assert seconds >= 35
    assert comment == "not requested again (see --backfill)"
    assert read_summary(done.stderr).gaps == 1
    assert set(asked(api)) == {"-"}


def test_a_gap_that_has_not_ended_is_reported_at_the_end(scripts: Scripts, topic: str) -> None:
    """The fifth connect is at least 35 s of the rules after the second."""
    with XApi([TWEET, DOWN]) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.02))
        wait_until(lambda: len(api.requests) >= 5)
        done = running.end(signal.SIGTERM)
    assert done.returncode == 0
    _, seconds, comment = the_gap(done)
    assert seconds >= 35
    assert comment == "the run ended before the stream resumed"
    assert re.search(r", 1 gap\)$", messages(done)[-1])


def test_backfill_brings_what_was_missed_and_nothing_twice(
    scripts: Scripts, topic: str, read: Read
) -> None:
    script = [
        Step(tweets=10, end="tail", missed=10),
        Step(body="\r\n", tweets=0, end="reset"),
        Step(tweets=10, missed=5),
        Step(),
    ]
    done, api = follow(scripts, topic, 60, script, "--backfill")
    assert done.returncode == 0
    assert asked(api) == ["-", "1", "1", "1"]
    ids = [int(record.key) for record in read(topic)]
    assert len(set(ids)) == len(ids) == 60
    assert sorted(ids) == list(range(min(ids), max(ids) + 1, 1 << 22)), "none is missing"
    assert len(set(api.sent)) < len(api.sent), "some were sent twice"
    found = read_summary(done.stderr)
    assert found.duplicates >= 10
    assert found == Summary(published=60, reconnects=3, duplicates=found.duplicates)


def test_where_x_refuses_backfill_it_goes_on_without(scripts: Scripts, topic: str) -> None:
    refused = Step(status=400, body=problem(title="Invalid Request", detail="not for your plan"))
    done, api = follow(scripts, topic, 2, [TWEET, *[refused, ALIVE] * 3, TWEET], "--backfill")
    assert done.returncode == 0
    assert " ".join(asked(api)) == "- 1 - 1 - 1 - -"
    reason = "400 Invalid Request: not for your plan; trying without backfill"
    assert messages(done) == [
        ENDED,
        f"{reason}; reconnecting now",
        f"published 2 tweets to {topic} (7 reconnects, 0 skipped)",
    ]


def test_a_restart_asks_for_what_came_since_the_newest_event(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """It is in the last partition; the others' events are 20 or more seconds older.

    What came since then is not known, so it does not count as a gap.
    """
    admin.create_topics({topic: {"num_partitions": 4}})
    newest = int(time.time()) - 7200
    for number in range(4):
        moment = newest - 20 * (3 - number)
        producer.send(topic, line(number), b"%d" % number, None, number, moment * 1000)
    producer.flush()
    done, api = follow(scripts, topic, 1, [Step()], "--backfill", second=1)
    assert done.returncode == 0
    assert asked(api) == ["5"]
    began, seconds, comment = the_gap(done)
    assert b"no tweets since the last event, from" in done.stderr
    assert read_summary(done.stderr).gaps == 0
    assert began.endswith(time.strftime("%H:%M:%S", time.localtime(newest)))
    assert seconds >= 7200
    assert comment == "asked X for the last 5 minutes"


def test_kill_9_loses_nothing_and_publishes_nothing_twice(
    scripts: Scripts, topic: str, read: Read, admin: KafkaAdminClient
) -> None:
    """Tweets are posted all the time, and X resends those of the last minutes when asked."""
    admin.create_topics({topic: {"num_partitions": 4}})
    with XApi([Step(posts=True)], rate=200) as api:
        for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
            before = len(read(topic))
            running = scripts.start("twitter-stream", "-t", topic, "--backfill", env=env(api, 1))
            wait_until(lambda before=before: len(read(topic)) > before + 50)  # type: ignore[misc]
            done = running.end(number)
    first, *others = asked(api)
    assert first == "-"
    assert all(int(minutes) >= 1 for minutes in others)
    assert done.returncode == 0
    records = read(topic)
    found = sorted(int(record.key) for record in records)
    assert found == list(range(found[0], found[-1] + 1, 1 << 22))
    assert {record.partition for record in records} == {0, 1, 2, 3}
    assert counted(done).published > 50


# ------------------------------------------------------------------ the token and the address


def test_a_setting_that_cannot_be_used(lone_scripts: Scripts) -> None:
    """There is no Kafka to connect to."""
    for name, value, message in (
        ("BEARER_TOKEN", "two words", "BEARER_TOKEN is missing or malformed. …"),
        ("STREAM_URL", "http://api.x.com/2", "STREAM_URL must start with https:// …"),
        ("STREAM_URL", f"https://ann:{PASSWORD}@127.0.0.1/", "invalid STREAM_URL or --param: …"),
    ):
        variables = {"BEARER_TOKEN": TOKEN, name: value}
        done = lone_scripts.run("twitter-stream", env=variables)
        assert done.returncode == 2
        [said] = messages(done)
        assert fits(message, said)
        assert PASSWORD not in said


def test_a_proxy_or_a_ca_bundle_that_cannot_be_used(scripts: Scripts, topic: str) -> None:
    """It is noticed at the first connect to X, which no other can improve."""
    for name, value, message in (
        ("HTTPS_PROXY", f"http://ann:{PASSWORD}@", "…: it must be http://HOST:PORT or …"),
        ("ALL_PROXY", f"socks5h://ann:{PASSWORD}@127.0.0.1:1", "…Run: pip install PySocks"),
        ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "cannot use …: /nowhere/ca.pem"),
    ):
        settings = {"BEARER_TOKEN": TOKEN, "STREAM_URL": "https://127.0.0.1:1/", "NO_PROXY": ""}
        done = scripts.run("twitter-stream", "-t", topic, env=settings | {name: value})
        assert done.returncode == 2
        said, last = messages(done)
        assert fits(message, said)
        assert last == f"published 0 tweets to {topic} (0 reconnects, 0 skipped)"
        assert PASSWORD not in said


def test_a_redirect_is_not_followed_as_the_token_is_for_x_alone(
    scripts: Scripts, topic: str
) -> None:
    with XApi() as other:
        redirect = Step(status=302, headers={"Location": other.url})
        odd = Step(status=302, headers={"Location": "http://[bad/"})
        done, _ = follow(scripts, topic, 2, [redirect, TWEET, odd, redirect, Step()], second=0.02)
        again, _ = follow(scripts, topic, 1, [redirect, redirect, Step()], second=0.02)
    target = f"302 Found to {other.url}"
    assert done.returncode == 0
    assert target in reconnects(done)
    assert counted(done) == Summary(published=2, reconnects=4)
    assert again.returncode == 1
    final = messages(again)[1]
    assert fits(f"X refused the request 2 times in a row: {target}. … set STREAM_URL to it.", final)
    assert other.requests == []


LOG_ALL = (
    "import logging, runpy, sys; logging.basicConfig(level=1); "
    "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)


def test_the_token_is_never_shown(scripts: Scripts, topic: str) -> None:
    """Neither where an answer from X contains it, nor by any logger; docker leaves quotes."""
    echo = problem(title="Bad header", detail="x" * 255 + f" Authorization: Bearer {TOKEN}")
    script = [
        Step(status=503, body=echo),
        Step(body=f"{echo}\r\n", tweets=5),
        Step(status=402, body=echo),
    ]
    with XApi(script) as api:
        settings = env(api, 0.002, BEARER_TOKEN=f'"{TOKEN}"', STREAM_URL=f"'{api.url}' ")
        options: dict[str, Any] = {"env": settings, "cwd": scripts.folder}
        command = scripts.call("twitter-stream", ("-t", topic), options)
        running = Running([command[0], "-c", LOG_ALL, *command[1:]], options)
        wait_until(lambda: api.requests)
        listed = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        done = running.end()
    assert done.returncode == 1
    assert b"DEBUG:urllib3" in done.stderr
    assert done.stderr.count(b"Authorization: Bearer ***") == 4, "each of the messages has it"
    assert b"secret" not in listed + done.stdout + done.stderr
    assert b"secret" not in scripts.run("twitter-stream", "--help", env=env(api)).stdout


class Proxy(socketserver.StreamRequestHandler):
    """A proxy that only knows CONNECT; it refuses the first, and repeats the password in it."""

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        targets: list[str] = self.server.targets  # type: ignore[attr-defined]
        targets.append(target)
        if len(targets) == 1:
            self.wfile.write(b"HTTP/1.1 407 not ann:%b\r\n\r\n" % PASSWORD.encode())
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as server:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self.copy, args=(server, self.connection), daemon=True)
            back.start()
            self.copy(self.connection, server)
            back.join(GUARD)

    def copy(self, source: socket.socket, target: socket.socket) -> None:
        """Pass on what one side sends, until it has finished."""
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                target.sendall(block)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.mark.versions
def test_tls_with_an_own_authority_through_a_proxy_whose_password_is_never_shown(
    scripts: Scripts, topic: str, certificate: tuple[str, str, str]
) -> None:
    with (
        XApi(certificate=certificate[:2]) as api,
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy,
    ):
        proxy.daemon_threads = True
        targets: list[str] = []
        proxy.targets = targets  # type: ignore[attr-defined]
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        address = f"127.0.0.1:{proxy.server_address[1]}"
        through = {"HTTPS_PROXY": f"http://ann:{PASSWORD}@{address}", "NO_PROXY": ""}
        settings = env(api, 0.1, REQUESTS_CA_BUNDLE=certificate[2], **through)
        done = scripts.run("twitter-stream", "-v", "-t", topic, "-n", 5, env=settings)
        proxy.shutdown()
    assert done.returncode == 0, done.stderr
    target = api.url.split("/")[2]
    assert targets == [target, target]
    reason = f"{target} through the proxy {address}: Tunnel connection failed: 407 not ann:***"
    assert f"cannot connect to {reason}; reconnecting now" in messages(done)
    assert PASSWORD.encode() not in done.stdout + done.stderr


# ------------------------------------------------------------------ signals

BLOCKED = {
    "read": (Step(tweets=5, end="silence"), signal.SIGINT),
    "flow": (Step(), signal.SIGHUP),
    "refusal": (Step(status=503, body="drips" * 99, chunk=1, pause=0.2), signal.SIGINT),
    "answer": (Step(delay=GUARD), signal.SIGHUP),
}


def connects_to(port: int) -> int:
    """How many connects to a port of 127.0.0.1 have no response yet (Linux)."""
    return Path("/proc/net/tcp").read_text().count(f" 0100007F:{port:04X} 02 ")


def test_a_signal_ends_it_wherever_it_is_blocked(scripts: Scripts, topic: str, read: Read) -> None:
    """It delivers what it has read, and says so, which it does not if it has to be forced."""
    with contextlib.ExitStack() as stack:
        runs = {}
        for place, (step, _) in BLOCKED.items():
            api = stack.enter_context(XApi([step], rate=100))
            running = scripts.start("twitter-stream", "-t", f"{topic}-{place}", env=env(api))
            runs[place] = (running, api)
        port = stack.enter_context(deaf_port())
        others = connects_to(port)
        settings = env(api, STREAM_URL=f"http://127.0.0.1:{port}/")
        connecting = scripts.start("twitter-stream", "-t", topic, env=settings)

        for place in ("read", "flow"):
            wait_until(lambda place=place: len(read(f"{topic}-{place}")) >= 5)  # type: ignore[misc]
        wait_until(lambda: runs["refusal"][1].requests and runs["answer"][1].requests)
        # Linux may leave out a socket while others come and go, so the number alone is not enough
        wait_until(lambda: connecting.takes_signals() and connects_to(port) > others)
        connecting.process.send_signal(signal.SIGTERM)
        for place, (running, _) in runs.items():
            running.process.send_signal(BLOCKED[place][1])

        for place, (running, api) in runs.items():
            done = running.end()
            found = values(read(f"{topic}-{place}"))
            last = f"published {len(found)} tweets to {topic}-{place} (0 reconnects, 0 skipped)"
            assert (done.returncode, messages(done)[-1]) == (0, last)
            assert found == api.sent[: len(found)]
        done = connecting.end()
        last = f"published 0 tweets to {topic} (0 reconnects, 0 skipped)"
        assert (done.returncode, messages(done)) == (0, [last])


def test_a_signal_before_the_count_has_its_own_status(
    scripts: Scripts, topic: str, read: Read
) -> None:
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    arguments = ("twitter-stream", "-t", topic, "-n", 6)
    with contextlib.ExitStack() as stack:
        apis = [stack.enter_context(XApi([Step(tweets=5, end="silence")])) for _ in statuses]
        runs = [scripts.start(*arguments, env=env(api)) for api in apis]
        wait_until(lambda: len(read(topic)) == 15)
        for running, number in zip(runs, statuses, strict=True):
            running.process.send_signal(number)
        for running, status in zip(runs, statuses.values(), strict=True):
            done = running.end()
            assert done.returncode == status
            assert messages(done) == [f"published 5 tweets to {topic} (0 reconnects, 0 skipped)"]


# ------------------------------------------------------------------ when Kafka is away


def wait_full(api: XApi) -> None:
    """Wait until the stand-in seems unable to send any more, as nobody reads."""
    sizes = [-1]

    def is_still() -> bool:
        sizes.append(len(api.sent))
        return len(sizes) > 30 and sizes[-1] == sizes[-30]

    wait_until(is_still)


@pytest.mark.long
def test_an_outage_of_kafka_loses_nothing_that_was_read(
    scripts: Scripts, topic: str, read: Read, mortal: Broker
) -> None:
    """Not even one before the first tweet; nor is a hold-up of Kafka's taken for X's silence.

    That would be noticed after 6 s; lines that say that Kafka is away come every 7.2 s.
    """
    late_topic = f"{topic}-late"
    with XApi([Step(batch=20)]) as api, XApi([DOWN, Step(batch=5)], rate=100) as late_api:
        settings, late_settings = (
            env(each, 0.12, STREAM_TEST_PATIENCE="3") for each in (api, late_api)
        )
        running = scripts.start("twitter-stream", "-t", topic, env=settings)
        late = scripts.start("twitter-stream", "-t", late_topic, env=late_settings)
        wait_until(lambda: len(api.sent) > 1_000)
        late.wait_for(lambda it: b"503" in it.err)
        mortal.kill()
        waiting = rb"\d tweets, \d+/s \(0 reconnects, 0 skipped\), waiting for Kafka: connection re"
        running.wait_for(lambda it: len(re.findall(waiting, it.err)) >= 2)
        late.wait_for(lambda it: b"waiting for Kafka" in it.err)
        mortal.start()
        sent, late_sent = len(api.sent), len(late_api.sent)
        wait_until(lambda: len(api.sent) > sent + 5_000 and len(late_api.sent) > late_sent + 100)
        done, late_done = running.end(signal.SIGTERM), late.end(signal.SIGTERM)
    assert (done.returncode, late_done.returncode) == (0, 0)
    found, late_found = values(read(topic)), values(read(late_topic))
    assert found == api.sent[: len(found)]
    assert late_found == late_api.sent[: len(late_found)]
    assert read_summary(done.stderr) == Summary(len(found))
    assert read_summary(late_done.stderr) == Summary(len(late_found), reconnects=1)


class Later(list[str | bytes]):
    """Lines that the stand-in sends once it may."""

    def __init__(self, lines: list[bytes]) -> None:
        super().__init__(lines)
        self.may_come = threading.Event()

    def __iter__(self) -> Iterator[str | bytes]:
        self.may_come.wait(GUARD)
        return super().__iter__()


# What is in flight, and four blocks of 64 KiB: one in the reader's hands, two in its queue, one in
# the sender's hands; no tweet is shorter than 150 bytes
MOST_FAILED = (MAX_IN_FLIGHT_BYTES + 4 * (1 << 16)) // 150


@pytest.mark.long
def test_an_outage_ends_with_every_tweet_acknowledged_or_counted(
    scripts: Scripts, topic: str, read: Read, stalled: Callable[[], None], kafka: Broker
) -> None:
    """By a signal, or by a delivery that fails while X is silent: the 429 makes it wait an hour."""
    lines = Later([line(number) for number in range(30)])
    script = [Step(lines=lines, tweets=0), Step(status=429)]
    with XApi([Step(batch=20)]) as api, XApi(script) as idle:
        running = scripts.start(
            "twitter-stream", "-t", topic, env=env(api, STREAM_TEST_PATIENCE="2")
        )
        settings = env(idle, KAFKA_DELIVERY_TIMEOUT_MS="10000")
        failing = scripts.start("twitter-stream", "-t", f"{topic}-idle", env=settings)
        wait_until(lambda: count_events(kafka.address, topic) > 1000 and idle.requests)
        stalled()
        lines.may_come.set()
        wait_full(api)
        done = running.end(signal.SIGTERM)
        failed = read_summary(failing.end().stderr)
    too_late = "not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"
    assert re.fullmatch(rf"tweet 1 \(\d+ bytes\): {too_late}", failed.reason)
    assert (failed.published, failed.failed) == (0, 30)
    assert (done.returncode, failing.process.returncode) == (1, 1)
    found = read_summary(done.stderr)
    assert 0 < found.failed <= MOST_FAILED
    reason = r"not acknowledged in time: no response\. .*"
    assert re.fullmatch(rf"tweet {found.published + 1} \(\d+ bytes\): {reason}", found.reason)
    resume(kafka)
    assert values(read(topic))[: found.published] == api.sent[: found.published]


# ------------------------------------------------------------------ what it says meanwhile


def test_a_log_gets_a_line_a_minute(scripts: Scripts, topic: str, port: int) -> None:
    """A minute is 1.2 s. What goes on failing is reported again after one."""
    progress = re.compile(rb"(\d+) tweets, \d+/s \(1 reconnect, 0 skipped(?:, 1 gap)?\)\n")
    with XApi([Step(tweets=5, end="cut"), Step()], rate=100) as api:
        running = scripts.start("twitter-stream", "-t", topic, env=env(api, 0.02))
        nowhere = env(api, 0.02, STREAM_URL=f"http://127.0.0.1:{port}/")
        failing = scripts.start("twitter-stream", "-t", topic, env=nowhere)
        running.wait_for(lambda it: len(progress.findall(it.err)) >= 2)
        failing.wait_for(lambda it: it.err.count(b"Connection refused; reconnecting ") >= 2)
        done = running.end(signal.SIGTERM)
    first, second, *_ = progress.findall(done.stderr)
    assert int(first) < int(second) <= counted(done).published
    assert counted(done).reconnects == 1
    assert counted(failing.end(signal.SIGTERM)).reconnects > 1


def test_a_terminal_gets_a_live_line(scripts: Scripts, topic: str) -> None:
    live = r"\rtwitter-stream\.py: \d+ tweets, \d+/s \(1 reconnect, 1 skipped\) *\r[^\n]"
    with (
        XApi([Step(tweets=5, end="cut"), Step(body="rubbish\n")], rate=50) as api,
        Terminal() as terminal,
    ):
        running = scripts.start("twitter-stream", "-t", topic, env=env(api), stderr=terminal.device)
        terminal.give_away()
        shown = ""
        while not re.search(live, shown):
            shown += terminal.read()
        assert re.search(r"\rtwitter-stream.py: .*; reconnecting now *\r\n", shown)
        running.end(signal.SIGTERM)
