"""Republish X's (Twitter's) sampled stream to a Kafka topic, each tweet an event, until stopped.

examples:
  twitter-stream.py                 with BEARER_TOKEN in .env or in the environment
  twitter-stream.py -t tweets -n 100
  twitter-stream.py --param tweet.fields=created_at,lang --param expansions=author_id

An event's value is the line as X sent it, its key the tweet's id. The topic is created where it
is missing. Exit status: 0 stopped, or COUNT reached; 1 X refuses for good, or a tweet is not
delivered; 2 usage or settings; 130 or 143 stopped by a signal before COUNT.
"""

import itertools
import json
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from config import PAIR, Parser, fail, settings, stop, tell
from producer import BLOCK, Event, create_topic, publish, read_blocks, split

import requests
from urllib3.exceptions import HTTPError

X_URL = "https://api.x.com/2/tweets/sample/stream"
LINE_BYTES = 1 << 20
# X's rules, in seconds: by what has failed the first wait and the longest
WAITS = {"network": (0.25, 16), "http": (5, 320), "rate": (60, 960)}
ANSWER, SILENCE = 10, 22  # X sends a keep-alive every 20
WINDOW, CONNECTS = 900, 50  # X allows so many connects in 15 minutes
# What X refuses for good, and what to do
REFUSALS = {400: "check --param", 401: "check BEARER_TOKEN", 403: "X's Enterprise plan has it", 404: "check STREAM_URL"}


class Refused(Exception):
    """X does not serve now: what it says, by which of the WAITS to come back, and not before which time.time()."""


def stream(get: Callable[[], requests.Response], counts: Counter[str], second: float) -> Iterator[Event]:
    """X's tweets, as (id, line), over as many connections as it takes.

    `get` connects; `counts` takes the reconnects and the skipped lines; `second` is how long a second
    of X's rules is: 1, but in tests. Ends only with an error that waiting does not help against.
    """
    failures: Counter[str] = Counter()  # in a row, by what has failed
    connects: deque[float] = deque(maxlen=CONNECTS)
    while True:
        connects.append(time.monotonic())
        alive = False  # until this connection has brought something
        try:
            with stop.interruptible(get) as response:
                if response.status_code != 200:
                    refuse(response)
                for line in split(read_blocks(partial(response.raw.read1, decode_content=True)), LINE_BYTES):
                    data = parse(line).get("data") if isinstance(line, bytes) else None
                    tweet = data.get("id") if isinstance(data, dict) else None
                    if isinstance(line, bytes) and (isinstance(tweet, str) or line in (b"", b"\r")):  # a keep-alive
                        alive = True
                        failures.clear()
                        if tweet is not None:
                            yield tweet.encode(errors="replace"), line.removesuffix(b"\r")
                    else:
                        obey(line, alive)
                        counts["skipped"] += 1
            raise OSError("X ended the stream")
        except (Refused, OSError, HTTPError) as error:  # requests' errors are OSErrors
            rule, until = error.args[1:] if isinstance(error, Refused) else ("" if alive else "network", 0.0)
            failures[rule] += 1
            seconds = max(wait(rule, failures[rule]) * second, until - time.time())
            if len(connects) == CONNECTS:
                seconds = max(seconds, connects[0] + WINDOW * second - time.monotonic())
            tell(f"{innermost(error)}; reconnecting in {seconds:.1f} s")
        counts["reconnects"] += 1
        stop.interruptible(time.sleep, seconds)


def wait(rule: str, times: int) -> float:
    """Seconds until the next connect after so many failures of a kind in a row; spread, as clients are many."""
    first, longest = WAITS.get(rule, (0.0, 0.0))
    growth = times if rule == "network" else 2 ** min(times - 1, 20)
    return min(first * growth * random.uniform(1, 1.2), longest)


def obey(line: bytes | int, alive: bool) -> None:
    """Tell what is no tweet; raises Refused if X says with it that the connection ends."""
    text = b"" if isinstance(line, int) else line
    if b'"connection_issue"' in text or b"operational-disconnect" in text:
        raise Refused(words(text), "" if alive and b"connection_issue" not in text else "http", 0.0)
    tell(f"skipped {'a line over 1 MiB' if isinstance(line, int) else 'a line that is no tweet'}")


def refuse(response: requests.Response) -> NoReturn:
    """Raise Refused, or end, with what X says where its status is not 200."""
    status = response.status_code
    text = f"{status} {words(response.raw.read(BLOCK, decode_content=True)) or response.reason}"
    if status in REFUSALS or "UsageCapExceeded" in text:
        fail(f"X refuses: {text}; {REFUSALS.get(status, 'waiting does not help')}", 2 if status == 400 else 1)
    reset = response.headers.get("x-rate-limit-reset", "")
    until = float(reset) if status == 429 and re.fullmatch("[0-9]{1,10}", reset) else 0.0
    raise Refused(text, "rate" if status == 429 else "http", until)


def parse(text: bytes) -> dict[str, Any]:
    """The JSON object, or an empty one."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def words(body: bytes) -> str:
    """X's own words in a problem: title, detail, messages; else the text of the page."""
    problem = parse(body)
    inner = problem.get("errors")
    problems = [problem, *(each for each in inner if isinstance(each, dict))] if isinstance(inner, list) else [problem]
    said = ": ".join(str(each[name]) for each in problems for name in ("title", "detail", "message") if each.get(name))
    return " ".join((said or re.sub(r"<[^>]*>", " ", body.decode(errors="replace"))).split())[:300]


def innermost(error: BaseException) -> str:
    """What is at the bottom of an error that requests and urllib3 have wrapped."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    return innermost(inner) if isinstance(inner, BaseException) else str(inner or error).split("): ", 1)[-1]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--param", metavar="NAME=VALUE", type=PAIR, action="append", help="a parameter of X's API")
    options = parser.parse_args(argv)
    stop.endless = not options.n
    token = re.sub(r"^\s*(Bearer\s)?\s*|\s*$", "", (given := settings()).get("BEARER_TOKEN", ""))
    if not re.fullmatch("[!-~]+", token):
        fail("BEARER_TOKEN is not set, or is no token: copy your X app's into .env or the environment", 2)
    url = given.get("STREAM_URL", X_URL)
    loopback = re.match(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)", url)
    if not (loopback or url.startswith("https://")):
        fail("STREAM_URL is to begin with https:// (http:// is for this machine only), as the token is secret", 2)
    second = float(given.get("STREAM_TEST_SECOND", "1")) if loopback else 1.0
    headers = {"Authorization": f"Bearer {token}", "User-Agent": "twitter-stream.py/1.0", "Accept-Encoding": "gzip"}
    get = partial(requests.get, url, params=options.param, headers=headers, timeout=(ANSWER, SILENCE * second))
    # An auth, even an idle one, keeps requests from ~/.netrc; no redirect is followed, as the token is for X alone
    get = partial(get, auth=lambda request: request, stream=True, allow_redirects=False)
    limit = create_topic(options.topic, -1, {})
    counts = Counter(reconnects=0, skipped=0)
    note = partial(" ({0[reconnects]} reconnects, {0[skipped]} skipped)".format, counts)
    return publish(itertools.islice(stream(get, counts, second), options.n), options.topic, limit, "tweet", note)


if __name__ == "__main__":
    raise SystemExit(main())
