"""A stand-in for X's sampled stream: real HTTP/1.1 on a real socket of this machine, with faults by script.

A script is a list of steps; each connection takes the next one, and the last one stays. As a program:

  x_api.py --port 8080 --token secret --rate 58
  x_api.py --script '[{"status": 503}, {"tweets": 100, "end": "torn"}, {}]'
"""

import argparse
import dataclasses
import gzip
import itertools
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

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
NOT_AUTHORIZED = {"title": "Unauthorized", "type": "about:blank", "status": 401, "detail": "Unauthorized"}
KEEP_ALIVE = b"\r\n"
TOKEN = "secret-token"  # noqa: S105


@dataclasses.dataclass
class Step:
    """What one connection gets."""

    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: str = ""  # of an error; in a stream it is sent as it is, before the tweets
    tweets: int | None = None  # None: as many as are read
    end: str = "finish"  # or cut (no last chunk), torn (within a chunk), tail (after half a line), reset, silence
    gzip: bool = False
    chunk: int = 0  # bytes in a chunk of HTTP; 0: a line


def tweet(number: int, fields: Iterable[str] = ()) -> bytes:
    """The JSON of tweet `number`, as X writes it: id and text, and of the other fields those asked for."""
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
    """The server, for use in a `with`: its `url`, the lines `sent` whole, the `requests` as time, query, headers."""

    def __init__(self, script: list[Step] | None = None, token: str = TOKEN, rate: float = 0, port: int = 0) -> None:
        self.script, self.token, self.rate = script or [Step()], token, rate
        self.sent: list[bytes] = []
        self.requests: list[tuple[float, dict[str, str], dict[str, str]]] = []  # time, query, headers
        self.open = self.most_open = 0
        self.stopped = threading.Event()
        self.numbers = itertools.count()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"api": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/2/tweets/sample/stream"

    def __enter__(self) -> "XApi":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def next_step(self, query: dict[str, str], headers: dict[str, str]) -> Step:
        with self.lock:
            self.requests.append((time.monotonic(), query, headers))
            return self.script[min(len(self.requests), len(self.script)) - 1]


class Handler(BaseHTTPRequestHandler):
    api: XApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query))
        step = self.api.next_step(query, dict(self.headers))
        if self.headers["Authorization"] != f"Bearer {self.api.token}":
            step = Step(status=401, body=json.dumps(NOT_AUTHORIZED))
        if step.status != 200:
            self.answer(step)
            return
        self.api.open += 1
        self.api.most_open = max(self.api.most_open, self.api.open)
        try:
            self.stream(step, query.get("tweet.fields", "").split(","))
        except OSError:  # the client went away
            pass
        finally:
            self.api.open -= 1
            self.close_connection = True

    def answer(self, step: Step) -> None:
        body = step.body.encode()
        if step.gzip:
            body = gzip.compress(body)
        self.send_head(step, "Content-Length", str(len(body)))
        self.wfile.write(body)

    def send_head(self, step: Step, name: str, value: str) -> None:
        """The status and the headers: one that the body needs, and the step's."""
        self.send_response(step.status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header(name, value)
        if step.gzip:
            self.send_header("Content-Encoding", "gzip")
        for each in step.headers.items():
            self.send_header(*each)
        self.end_headers()

    def stream(self, step: Step, fields: list[str]) -> None:
        self.send_head(step, "Transfer-Encoding", "chunked")
        self.packer = zlib.compressobj(wbits=31) if step.gzip else None
        self.step = step
        if step.body:
            self.send(step.body.encode())
        for count in itertools.count():
            if count == step.tweets or self.api.stopped.is_set():
                break
            with self.api.lock:
                line = tweet(next(self.api.numbers), fields)
            self.send(line + b"\r\n")
            self.api.sent.append(line)
            if count % 10 == 9:
                self.send(KEEP_ALIVE)
            if self.api.rate and self.api.stopped.wait(1 / self.api.rate):
                break
        self.finish_stream(step, fields)

    def send(self, data: bytes) -> None:
        if self.packer:
            data = self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH)
        size = self.step.chunk or len(data)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    def finish_stream(self, step: Step, fields: list[str]) -> None:
        if step.end == "finish":
            if self.packer and (rest := self.packer.flush()):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(rest), rest))
            self.wfile.write(b"0\r\n\r\n")
        elif step.end == "torn":  # whole lines, then half a line, and the connection ends within the chunk
            with self.api.lock:
                whole, half = (tweet(next(self.api.numbers), fields) for _ in range(2))
            data = whole + b"\r\n" + half[: len(half) // 2]
            self.api.sent.append(whole)
            self.wfile.write(b"%x\r\n%b" % (len(data) + 1000, data))
        elif step.end == "tail":
            with self.api.lock:
                half = tweet(next(self.api.numbers), fields)
            self.send(half[: len(half) // 2])
            self.wfile.write(b"0\r\n\r\n")
        elif step.end == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif step.end == "silence":
            self.connection.settimeout(60)
            self.connection.recv(1)  # until the client goes


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="x_api.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8080, help="on 127.0.0.1 (default: 8080)")
    parser.add_argument("--token", default=TOKEN, help=f"the bearer token to ask for (default: {TOKEN})")
    parser.add_argument("--rate", type=float, default=58, help="tweets a second, 0: as fast as possible (default: 58)")
    parser.add_argument("--script", default="[{}]", help="JSON: a list of steps, objects with the fields of Step")
    options = parser.parse_args()
    script = [Step(**step) for step in json.loads(options.script)]
    try:
        with XApi(script, options.token, options.rate, options.port) as api:
            print(f"STREAM_URL={api.url} BEARER_TOKEN={api.token}; Ctrl-C stops it", flush=True)
            threading.Event().wait()
        return 0
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(f"x_api.py: cannot use port {options.port}: {error.strerror}; take another --port")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
