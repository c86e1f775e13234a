"""A stand-in for X's sampled stream: real HTTP/1.1 on a real socket, with scripted faults.

A script is a list of steps: each connection takes the next step; once they run out, the last
one repeats. To run it as a program:

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
KEEP_ALIVE = b"\r\n"
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
    tweets: int | None = None  # None: as many as are read
    posts: bool = False  # instead of `tweets`: what is posted from now on; see XApi.count_posted
    end: str = "finish"  # one of Handler.finish_stream
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


def tweet(number: int, fields: Iterable[str] = ()) -> bytes:
    """The JSON of tweet `number`, as X writes it: id and text, and what `fields` ask for."""
    language, text = TEXTS[number % len(TEXTS)]
    identity = str(1_990_000_000_000_000_000 + number * 4_194_304)
    more = {
        "author_id": str(12_345_678 + number % 997),
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(1_793_000_000 + number)),
        "lang": language,
    }
    data: dict[str, Any] = {name: more[name] for name in more if name in fields}
    data |= {"edit_history_tweet_ids": [identity], "id": identity, "text": f"{text} {number}"}
    return json.dumps({"data": data}, ensure_ascii=False, separators=(",", ":")).encode()


class XApi:
    """The server, for use in a `with` block: its `url`, the lines `sent` whole, the `requests`.

    `flows` has the times of the first and the last tweet of each connection that had any.
    `rate` is how many tweets it sends a second; 0: as many as are read. With a `certificate` (the
    file names of a chain and of its key) it speaks TLS.
    """

    def __init__(
        self,
        script: Sequence[Step] = (Step(),),
        token: str = TOKEN,
        rate: float = 0,
        port: int = 0,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        self.script, self.token, self.rate = script, token, rate
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
        self.url = f"{scheme}://127.0.0.1:{self.server.server_address[1]}/2/tweets/sample/stream"

    def __enter__(self) -> "XApi":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def next_tweets(self, count: int, fields: Sequence[str]) -> list[bytes]:
        with self.lock:
            made = [tweet(next(self.numbers), fields) for _ in range(count)]
            self.recent += made
            return made

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
        query = dict(parse_qsl(urlsplit(self.path).query))
        self.step = self.api.next_step(query, dict(self.headers))
        if self.headers["Authorization"] != f"Bearer {self.api.token}":
            self.step = Step(status=401, body=json.dumps(NOT_AUTHORIZED))
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
        self.api.next_tweets(self.step.missed, self.fields)

    def send_posts(self, backfill_minutes: int) -> None:
        """Send what was posted in the last minutes, then each new post, until stopped."""
        first = self.api.count_posted(time.monotonic() - backfill_minutes * 60)
        while not self.api.stopped.wait(1 / self.api.rate):
            end = self.api.count_posted(time.monotonic())
            self.send_tweets([tweet(number, self.fields) for number in range(first, end)])
            first = end

    def send_new_tweets(self) -> None:
        """Send as many tweets as the step says, with keep-alives in between."""
        flow: list[float] = []
        for count in itertools.count(0, self.step.batch):
            if count == self.step.tweets or self.api.stopped.is_set():
                break
            self.send_tweets(self.api.next_tweets(self.step.batch, self.fields))
            self.note_time(flow)
            if count % 10 == 9:
                self.send(KEEP_ALIVE)
            if self.api.rate and self.api.stopped.wait(1 / self.api.rate):
                break

    def note_time(self, flow: list[float]) -> None:
        now = time.monotonic()
        if not flow:
            flow += [now, now]
            self.api.flows.append(flow)
        flow[1] = now

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
        whole, half = self.api.next_tweets(2, self.fields)
        data = self.packed(whole + b"\r\n" + half[: len(half) // 2])
        self.wfile.write(b"%x\r\n%b" % (len(data) + 1000, data))
        self.api.sent.append(whole)

    def send_tail(self) -> None:
        r"""End as usual, but without the last line's \n."""
        [line] = self.api.next_tweets(1, self.fields)
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
    parser.add_argument("--port", type=int, default=8080, help="on 127.0.0.1 (default: 8080)")
    parser.add_argument(
        "--token", default=TOKEN, help=f"the bearer token to ask for (default: {TOKEN})"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=58,
        help="tweets a second, 0: as fast as possible (default: 58)",
    )
    parser.add_argument(
        "--script", default="[{}]", help="JSON: a list of steps, objects with the fields of Step"
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
        print(f"x_api.py: cannot use port {options.port}: {error.strerror}; take another --port")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
