"""A stand-in for X's streams: real HTTP/1.1 on a real socket, with scripted faults.

It serves the sampled stream and, at /2/tweets/search/stream, the filtered stream with its rules. A
script is a list of steps: each connection takes the next step, and the last one repeats.

examples:
  x_api.py --port 8080 --token secret --rate 58
  x_api.py --script '[{"status": 503}, {"tweets": 100, "end": "torn"}, {}]'
"""

import argparse
import dataclasses
import gzip
import itertools
import json
import math
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

if sys.platform == "linux":
    import fcntl
    import termios

TEXTS = [
    ("en", "Morning run by the river, 10 km 🏃‍♀️ https://t.co/9fYb3xQm2L"),
    ("ja", "今日のラーメンは最高だった🍜 #ラーメン"),
    ("ar", "صباح الخير من القاهرة ☀️"),
    ("ru", "Наконец-то пятница! 🎉"),
    ("hi", "नमस्ते दुनिया 🙏🏽"),
    ("ko", "오늘 날씨 진짜 좋다 🌸"),
    ("th", "กินข้าวหรือยัง 😋"),
    ("pt", "RT @joana: Que jogo! Não acredito 😱⚽️"),
    ("de", 'Straße gesperrt, "Umleitung" über Müllerstraße\n…Zeit für ☕️'),
    ("zh", "晚安，世界 🌙"),
]
NOT_AUTHORIZED = {
    "title": "Unauthorized",
    "type": "about:blank",
    "status": 401,
    "detail": "Unauthorized",
}
NO_RULES = {
    "title": "ConnectionException",
    "detail": "Rules must be configured before connecting.",
    "connection_issue": "RuleConfigurationIssue",
    "type": "https://api.x.com/2/problems/streaming-connection",
}
NOT_JSON = "Requests with bodies must have content-type of application/json."
KEEP_ALIVE = b"\r\n"
Rule = dict[str, str]  # id, value and tag
FILTERED, RULES = "/2/tweets/search/stream", "/2/tweets/search/stream/rules"
TOKEN = "secret-token"  # noqa: S105


@dataclasses.dataclass
class Step:
    """What one connection gets."""

    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reset_after: float = 0  # seconds until x-rate-limit-reset, an extra header; 0: no such header
    before: str = ""  # instead of the answer: "close", or "reset" within its head
    body: str | bytes = ""  # of an error; in a stream it is sent as is, before the tweets
    lines: Sequence[str | bytes] = ()  # sent before the tweets, and counted among them
    tweets: int | None = None  # None: as many as are read; in a filtered stream, before filtering
    posts: bool = False  # instead of `tweets`: what is posted from now on; see XApi.count_posted
    end: str = "finish"  # one of Handler.finish_stream; torn and tail if nothing is filtered
    missed: int = 0  # tweets posted between its end and the next connection
    again: int = 0  # how many of the newest tweets are sent once more at the start
    gzip: bool = False
    chunk: int = 0  # bytes in an HTTP chunk; 0: as many as are sent at once
    batch: int = 1  # tweets sent at once
    pause: float = 0  # seconds after each chunk
    delay: float = 0  # seconds before the answer


class Request(NamedTuple):
    """A connect: its time (time.monotonic()), query and headers."""

    time: float
    query: dict[str, str]
    headers: dict[str, str]


def tweet(number: int, fields: Iterable[str] = (), matching: Iterable[Rule] = ()) -> bytes:
    """The JSON of tweet `number`, as X writes it: id and text, and what `fields` ask for.

    In the filtered stream it names the rules that it matches.
    """
    language, text = language_and_text(number)
    identity = str(1_990_000_000_000_000_000 + number * 4_194_304)
    more = {
        "author_id": str(12_345_678 + number % 997),
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(1_793_000_000 + number)),
        "lang": language,
    }
    data: dict[str, Any] = {name: more[name] for name in more if name in fields}
    data |= {"edit_history_tweet_ids": [identity], "id": identity, "text": text}
    content: dict[str, Any] = {"data": data}
    names = [{"id": rule["id"], "tag": rule["tag"]} for rule in matching]
    if names:
        content["matching_rules"] = names
    return compact(content).encode()


def compact(content: object) -> str:
    """JSON as X writes it."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def language_and_text(number: int) -> tuple[str, str]:
    """The language and the text of tweet `number`."""
    language, text = TEXTS[number % len(TEXTS)]
    return language, f"{text} {number}"


class Rules:
    """The rules of the filtered stream, by their IDs."""

    def __init__(self) -> None:
        self.by_id: dict[str, Rule] = {}
        self.identities = itertools.count(1_980_000_000_000_000_000)

    def matching(self, number: int) -> list[Rule]:
        """The rules that tweet `number` matches."""
        return [rule for rule in list(self.by_id.values()) if matches(rule, number)]

    def listed(self) -> Step:
        """X's answer with all rules."""
        rules = list(self.by_id.values())
        return rules_answer(200, rules, result_count=len(rules))

    def changed(self, body: bytes) -> Step:
        """Add or delete rules; X's answer."""
        try:
            content = json.loads(body)
            return self.add(content["add"]) if "add" in content else self.delete(content["delete"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return invalid_request('$: {"add":[{"value":…}]} or {"delete":{"ids":[…]}} is required')

    def add(self, rules: Iterable[Mapping[str, str]]) -> Step:
        added = [
            {"id": str(next(self.identities)), "value": rule["value"], "tag": rule.get("tag", "")}
            for rule in rules
            if rule["value"].strip()
        ]
        self.by_id |= {rule["id"]: rule for rule in added}
        summary = {"created": len(added), "not_created": 0, "valid": len(added), "invalid": 0}
        return rules_answer(201, added, summary=summary)

    def delete(self, which: Mapping[str, Sequence[str]]) -> Step:
        found = [self.by_id.pop(identity, None) for identity in which["ids"]]
        missed = found.count(None)
        summary = {"deleted": len(found) - missed, "not_deleted": missed}
        return rules_answer(200, [], summary=summary)


def matches(rule: Rule, number: int) -> bool:
    """Does tweet `number` match the rule?

    Each word of the rule must occur in the text, in any case; `lang:xx` compares the language. X's
    own rules can do far more.
    """
    language, text = language_and_text(number)
    return all(
        word == f"lang:{language}" if word.startswith("lang:") else word in text.casefold()
        for word in rule["value"].casefold().split()
    )


def rules_answer(status: int, rules: list[Rule], **meta: object) -> Step:
    """X's answer to a request about rules."""
    sent = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    content: dict[str, object] = {"data": rules} if rules else {}
    content["meta"] = {"sent": sent, **meta}
    return Step(status=status, body=f"{compact(content)}\n")


def invalid_request(message: str) -> Step:
    """X's answer to a request that it does not understand."""
    content = {
        "errors": [{"parameters": {}, "message": message}],
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": "https://api.x.com/2/problems/invalid-request",
    }
    return Step(status=400, body=f"{compact(content)}\n")


class XApi:
    """The server, for use in a `with` block: its URLs, the lines `sent` whole, the `requests`.

    `url` is that of the sampled stream, `filtered_url` that of the filtered one, which has `rules`.
    `flows` has the times at which each connection with tweets or keep-alives began, and brought the
    last of them. `rate` is how many tweets are posted a second; 0: as many as are read. The
    filtered stream sends a keep-alive after `keep_alive` seconds without a tweet. With a
    `certificate` (the file names of a chain and of its key) it speaks TLS.
    """

    def __init__(
        self,
        script: Sequence[Step] = (Step(),),
        token: str = TOKEN,
        rate: float = 0,
        port: int = 0,
        certificate: tuple[str, str] | None = None,
        keep_alive: float = 20,
    ) -> None:
        self.script, self.token, self.rate = script, token, rate
        self.keep_alive = keep_alive
        self.rules = Rules()
        self.sent: list[bytes] = []
        self.flows: list[list[float]] = []
        self.recent: deque[bytes] = deque(maxlen=1000)  # what backfill brings, sent or missed
        self.requests: list[Request] = []
        self.began = time.monotonic()
        self.open = self.most_open = 0
        self.stopped = threading.Event()
        self.numbers = itertools.count()
        self.lock, self.changed = threading.Lock(), threading.Condition()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", port), type("Bound", (Handler,), {"api": self})
        )
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        scheme = "https" if certificate else "http"
        origin = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"
        self.url, self.filtered_url = f"{origin}/2/tweets/sample/stream", f"{origin}{FILTERED}"

    def __enter__(self) -> "XApi":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def count_posted(self, moment: float) -> int:
        """How many tweets, numbered from 0, have been posted by that time.monotonic().

        That is `rate` a second from the beginning, even while nobody is connected. They are for
        steps with `posts`; backfill_minutes brings those of the last minutes.
        """
        return max(math.floor((moment - self.began) * self.rate), 0)

    def next_step(self, query: dict[str, str], headers: dict[str, str]) -> Step:
        with self.lock:
            self.requests.append(Request(time.monotonic(), query, headers))
            return self.script[min(len(self.requests), len(self.script)) - 1]


class Handler(BaseHTTPRequestHandler):
    """One connection; `api` is the server that it belongs to."""

    api: XApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == RULES:
            self.answer_about_rules(self.api.rules.listed)
            return
        query = dict(parse_qsl(url.query))
        self.is_filtered = url.path == FILTERED
        self.step = self.api.next_step(query, dict(self.headers))
        if self.is_filtered and not self.api.rules.by_id:
            self.step = Step(status=409, body=compact(NO_RULES))
        if not self.has_token():
            self.step = Step(status=401, body=compact(NOT_AUTHORIZED))
        self.api.stopped.wait(self.step.delay)
        self.close_connection = True
        with suppress(OSError):  # the client went away
            if self.step.before == "reset":
                self.reset_within_the_head()
            if self.step.before:
                return
            if self.step.status != 200:
                self.answer()
                return
            self.fields = query.get("tweet.fields", "").split(",")
            with self.counted():
                self.stream(int(query.get("backfill_minutes", 0)))

    def do_POST(self) -> None:
        """Change the rules."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers.get_content_type() == "application/json":
            self.answer_about_rules(lambda: self.api.rules.changed(body))
        else:
            self.answer_about_rules(lambda: invalid_request(NOT_JSON))

    def answer_about_rules(self, result: Callable[[], Step]) -> None:
        self.step = result() if self.has_token() else Step(401, body=compact(NOT_AUTHORIZED))
        self.answer()

    def has_token(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {self.api.token}"

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count this connection among those that are open."""
        with self.api.changed:
            # The server may not have noticed yet that an earlier one was closed
            self.api.changed.wait_for(lambda: self.api.open == 0, 300)
            self.api.open += 1
            self.api.most_open = max(self.api.most_open, self.api.open)
        try:
            yield
        finally:
            with self.api.changed:
                self.api.open -= 1
                self.api.changed.notify_all()

    def reset_within_the_head(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
        self.reset()

    def answer(self) -> None:
        """Send an answer that is not a stream."""
        body = as_bytes(self.step.body)
        if self.step.gzip:
            body = gzip.compress(body)
        missing = 1000 if self.step.end == "cut" else 0
        self.send_head("Content-Length", str(len(body) + missing))
        for part in pieces(body, self.step.chunk):
            self.wfile.write(part)
            time.sleep(self.step.pause)

    def send_head(self, name: str, value: str) -> None:
        """Send the status and the headers: the one that the body needs, and the step's."""
        self.send_response(self.step.status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header(name, value)
        if self.step.gzip:
            self.send_header("Content-Encoding", "gzip")
        for header in self.step.headers.items():
            self.send_header(*header)
        if self.step.reset_after:
            reset = math.floor(time.time() + self.step.reset_after)
            self.send_header("x-rate-limit-reset", str(reset))
        self.end_headers()

    def stream(self, backfill_minutes: int) -> None:
        """Send an answer that is a stream."""
        recent = list(self.api.recent)
        self.send_head("Transfer-Encoding", "chunked")
        self.packer = zlib.compressobj(wbits=31) if self.step.gzip else None
        if self.step.body:
            self.send(as_bytes(self.step.body))
        self.send_tweets([as_bytes(line) for line in self.step.lines])
        if self.step.posts:
            self.send_posts(backfill_minutes)
        else:
            self.send_tweets(
                recent if backfill_minutes else recent[len(recent) - self.step.again :]
            )
            self.send_new_tweets()
        self.finish_stream()
        self.next_tweets(self.step.missed)

    def next_tweets(self, count: int) -> list[bytes]:
        """Those of the next tweets to be posted that this stream gets."""
        with self.api.lock:
            made = self.tweets(itertools.islice(self.api.numbers, count))
            self.api.recent += made
            return made

    def tweets(self, numbers: Iterable[int]) -> list[bytes]:
        """Those of the tweets with these numbers that this stream gets."""
        if not self.is_filtered:
            return [tweet(number, self.fields) for number in numbers]
        pairs = [(number, self.api.rules.matching(number)) for number in numbers]
        return [tweet(number, self.fields, matching) for number, matching in pairs if matching]

    def send_posts(self, backfill_minutes: int) -> None:
        """Send what was posted in the last minutes, then each new post, until stopped."""
        first = self.api.count_posted(time.monotonic() - backfill_minutes * 60)
        while not self.api.stopped.wait(1 / self.api.rate):
            end = self.api.count_posted(time.monotonic())
            self.send_tweets(self.tweets(range(first, end)))
            first = end

    def send_new_tweets(self) -> None:
        """Send as many tweets as the step says, with keep-alives in between."""
        flow = [time.monotonic()] * 2
        for count in itertools.count(0, self.step.batch):
            if count == self.step.tweets or self.api.stopped.is_set():
                break
            tweets = self.next_tweets(self.step.batch)
            if tweets:
                self.send_tweets(tweets)
            else:
                self.check_client()
            is_quiet = time.monotonic() > flow[1] + self.api.keep_alive
            if is_quiet if self.is_filtered else count % 10 == 9:
                self.send(KEEP_ALIVE)
            if tweets or is_quiet:
                self.note_time(flow)
            if self.api.rate and self.api.stopped.wait(1 / self.api.rate):
                break

    def check_client(self) -> None:
        """Raise BrokenPipeError, as sending would, if the client has left.

        It sends nothing after its request, so there is only its leaving to read.
        """
        if select.select([self.connection], [], [], 0)[0]:
            raise BrokenPipeError

    def note_time(self, flow: list[float]) -> None:
        if flow not in self.api.flows[-1:]:
            self.api.flows.append(flow)
        flow[1] = time.monotonic()

    def send_tweets(self, lines: list[bytes]) -> None:
        if lines:
            self.send(b"".join([line + b"\r\n" for line in lines]))
            self.api.sent += lines

    def send(self, data: bytes) -> None:
        for part in pieces(self.packed(data), self.step.chunk):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            time.sleep(self.step.pause)

    def packed(self, data: bytes) -> bytes:
        if not self.packer:
            return data
        return self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH)

    def finish_stream(self) -> None:
        """End the stream as the step's `end` says."""
        ends: dict[str, Callable[[], None]] = {
            "finish": self.send_last_chunk,
            "cut": lambda: None,  # without the last chunk
            "torn": self.send_torn_line,
            "tail": self.send_tail,
            "reset": self.reset,
            "silence": self.wait_for_client,
            "drip": self.drip_line,
            "garbled": self.send_garbage,
        }
        ends[self.step.end]()

    def send_last_chunk(self) -> None:
        rest = self.packer.flush() if self.packer else b""
        if rest:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(rest), rest))
        self.wfile.write(b"0\r\n\r\n")

    def send_torn_line(self) -> None:
        """End within a chunk, after a whole line and half of the next one."""
        whole, half = self.next_tweets(2)
        data = self.packed(whole + b"\r\n" + half[: len(half) // 2])
        self.wfile.write(b"%x\r\n%b" % (len(data) + 1000, data))
        self.api.sent.append(whole)

    def send_tail(self) -> None:
        r"""End as usual, but without the last line's \n."""
        [line] = self.next_tweets(1)
        self.send(line + b"\r")
        self.api.sent.append(line)
        self.wfile.write(b"0\r\n\r\n")

    def drip_line(self) -> None:
        """Send a line that never ends, a byte at a time."""
        while not self.api.stopped.wait(0.1):
            self.send(b"x")

    def reset(self) -> None:
        wait_acknowledged(self.connection)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # a close of the object would wait for its files

    def wait_for_client(self) -> None:
        """Send nothing more until the client leaves."""
        self.connection.settimeout(60)
        self.connection.recv(1)

    def send_garbage(self) -> None:
        """Send something that is not an HTTP chunk."""
        self.wfile.write(b"<html>\r\n")


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def pieces(data: bytes, size: int) -> list[bytes]:
    """The data in pieces of that size; 0: in one piece."""
    size = size or len(data) or 1
    return [data[start : start + size] for start in range(0, len(data), size)]


def wait_acknowledged(connection: socket.socket) -> None:
    """Wait until the other side has all that was sent, as a reset drops the rest (Linux)."""
    for _ in range(1000 if sys.platform == "linux" else 0):
        [unsent] = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
        if not unsent:
            break
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="x_api.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, default=8080, help="the port on 127.0.0.1 (default: 8080)"
    )
    parser.add_argument(
        "--token", default=TOKEN, help=f"the bearer token to require (default: {TOKEN})"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=58,
        help="tweets per second; 0 means as fast as possible (default: 58)",
    )
    parser.add_argument(
        "--script",
        default="[{}]",
        help="steps, as a JSON list of objects with the fields of the class Step",
    )
    options = parser.parse_args()
    script = [Step(**step) for step in json.loads(options.script)]
    try:
        with XApi(script, options.token, options.rate, options.port) as api:
            print(f"STREAM_URL={api.url} BEARER_TOKEN={api.token}; Ctrl-C stops it", flush=True)
            with suppress(KeyboardInterrupt):
                while True:  # on Windows, Ctrl-C does not interrupt the wait for an event or thread
                    time.sleep(60)
    except OSError as error:
        print(f"x_api.py: cannot use port {options.port}: {error.strerror}. Choose another --port.")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
