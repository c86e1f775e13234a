"""Republish X's (Twitter's) sampled stream to a Kafka topic, each tweet an event, until stopped.

examples:
  twitter-stream.py                 with BEARER_TOKEN in .env or in the environment
  twitter-stream.py -t tweets -n 100
  twitter-stream.py --param tweet.fields=created_at,lang --param expansions=author_id
  twitter-stream.py --backfill      after a gap X sends again what was missed

An event's value is the line as X sent it, its key the tweet's id. The topic is created where it
is missing. Exit status: 0 stopped, or COUNT reached; 1 X refuses for good, or a tweet is not
delivered; 2 usage or settings; 130 or 143 stopped by a signal before COUNT.
"""

import itertools
import json
import math
import random
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from config import PAIR, Parser, fail, secrets, settings, stop, tell
from producer import BLOCK, SECOND, Event, create_topic, publish, read_blocks, split

import requests
from urllib3.exceptions import ConnectTimeoutError, HTTPError

X_URL = "https://api.x.com/2/tweets/sample/stream"
LINE_BYTES = 1 << 20
# X's rules, in seconds: by what has failed the first wait and the longest
WAITS = {"offline": (0.25, 16), "network": (0.25, 16), "http": (5, 320), "rate": (60, 960)}
ANSWER, SILENCE = 10, 22  # X sends a keep-alive every 20
WINDOW, CONNECTS = 180, 10  # X allows 50 connects in 15 minutes; in shorter windows, lest they all go at once
DAY = 86_400  # no limit of X lasts longer
PATIENCE = 3600  # so long may Kafka be away; reading stops soon, and what was read waits
SEEN = 100_000  # ids: for five minutes of six times the usual rate
# What X refuses for good: what it means, what to do
REFUSALS = {
    400: "a parameter is wrong, check --param",
    401: "the token is not valid, check BEARER_TOKEN",
    403: "the app may not read the stream, X sells it to Enterprise accounts",
    404: "there is no stream at this address, check STREAM_URL",
    429: "the plan's tweets are used up, wait for its next period or extend it",
}


class Refused(Exception):
    """X does not serve now: what it says, by which of the WAITS to come back, and not before which time.time()."""


class Session(requests.Session):
    """Follows no redirect: the token is for X alone, and requests would read a redirect's whole body first."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def parse(text: bytes) -> dict[str, Any]:
    """The JSON object, or an empty one."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def problems(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The message itself, and the errors in it."""
    inner = message.get("errors")
    return [message, *(each for each in (inner if isinstance(inner, list) else []) if isinstance(each, dict))]


def words(body: bytes) -> str:
    """X's own words in a problem: title, detail, messages; else the text of the page."""
    parts = (each.get(name) for each in problems(parse(body)) for name in ("title", "detail", "message"))
    text = ": ".join(str(part) for part in parts if part) or re.sub(r"<[^>]*>", " ", body.decode(errors="replace"))
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def innermost(error: BaseException) -> BaseException:
    """What is at the bottom of an error that requests and urllib3 have wrapped."""
    wrapped = (getattr(error, "reason", None), *error.args)
    return next((innermost(each) for each in wrapped if isinstance(each, BaseException)), error)


def blocks(response: requests.Response, troubles: list[Any]) -> Iterator[bytes]:
    """What the body brings; the error that it ends with goes to `troubles`, so that nothing before is lost."""
    try:
        yield from read_blocks(partial(response.raw.read1, decode_content=True))
    except (OSError, HTTPError) as error:
        troubles.append(error)


def refuse(response: requests.Response, minutes: int | None) -> NoReturn:
    """Raise Refused, or end, with what X says where its status is not 200."""
    status, body, end = response.status_code, b"", time.monotonic() + ANSWER
    for block in blocks(response, []):
        body += block
        if len(body) > BLOCK or time.monotonic() > end:
            break
    text = f"{status} {words(body) or response.reason}"
    if status == 400 and minutes:
        raise Refused(f"{text}; going on without backfill", "backfill", 0.0)
    if status in REFUSALS and (status != 429 or "UsageCapExceeded" in text):
        fail(f"X refuses: {text}; {REFUSALS[status]}", 2 if status == 400 else 1)
    reset = response.headers.get("x-rate-limit-reset", "")
    until = float(reset) + random.uniform(0, 5) if status == 429 and re.fullmatch("[0-9]{1,10}", reset) else 0.0
    raise Refused(text, "rate" if status == 429 else "http", until if until < time.time() + DAY else 0.0)


def look(line: bytes | int, alive: bool) -> tuple[str, str]:
    """The tweet's id, if the line is one, and what is wrong with it; neither where it is a keep-alive.

    Raises Refused where X says with it that the connection ends.
    """
    if line in (b"\r\n", b"\n", b"\r"):
        return "", ""
    if isinstance(line, int) or not line.endswith(b"\n"):
        return "", "a line over 1 MiB" if isinstance(line, int) else "a line that broke off"
    message = parse(line)
    data = message.get("data")
    if isinstance(data, dict) and isinstance(data.get("id"), str) and data["id"]:
        return data["id"], ""
    for problem in problems(message):
        if "connection_issue" in problem or "operational-disconnect" in f"{problem.get('title')} {problem.get('type')}":
            raise Refused(words(line), "" if alive and "connection_issue" not in problem else "http", 0.0)
    return "", "a message without data.id" if message else "a line that is no JSON object"


def wait(rule: str, times: int) -> float:
    """Seconds until the next connect after so many failures of a kind in a row; spread, as clients are many."""
    first, longest = WAITS.get(rule, (0.0, 0.0))
    growth = times if rule in ("offline", "network") else 2 ** min(times - 1, 20)
    return min(first * growth, longest / 1.2) * random.uniform(1, 1.2)


def stream(get: Callable[[int | None], Any], counts: Counter[str], second: float, backfill: bool) -> Iterator[Event]:
    """X's tweets, as (id, line), over as many connections as it takes.

    `get` connects, and asks for so many minutes of backfill; `counts` takes the reconnects, the skipped lines,
    the duplicates; `second` is how long a second of X's rules is. Ends only with an error that waiting does not
    help against.
    """
    failures: Counter[str] = Counter()  # in a row, by what has failed
    ends = deque([-math.inf] * CONNECTS, CONNECTS)  # of the last connections; X has seen their connects before
    seen: OrderedDict[str, None] = OrderedDict()  # ids, with backfill
    told: dict[str, float] = {}  # by kind of skipped line: when to tell the next
    heard = 0.0  # when we were last up to date, by the clock that runs on while a machine sleeps
    while True:
        minutes = min(max(math.ceil((time.time() - heard) / second / 60), 1), 5) if backfill and heard else None
        behind = time.time() if minutes else 0.0  # since when we have been catching up
        last = 0.0  # when this connection brought something last; 0: it has not
        troubles = [OSError("X ended the stream")]
        try:
            with stop.interruptible(get, minutes) as response:
                if response.status_code != 200:
                    refuse(response, minutes)
                for line in split(blocks(response, troubles), LINE_BYTES):
                    now, (tweet, kind) = time.time(), look(line, bool(last))
                    if kind:
                        counts["skipped"] += 1
                        if now >= told.get(kind, 0):
                            told[kind] = now + 60 * second
                            tell(f"skipped {kind}" + (f": {words(line)}" if isinstance(line, bytes) else ""))
                        continue
                    # Kafka may have held us up, and X may have given us up meanwhile
                    behind, last = (now if last and now > last + SILENCE * second else behind), now
                    heard = now if now >= behind + SILENCE * second else heard
                    if tweet in seen:
                        counts["duplicates"] += 1
                    elif tweet and isinstance(line, bytes):
                        failures.clear()
                        yield tweet.encode(errors="replace"), line[:-1].removesuffix(b"\r")
                        if backfill:
                            seen[tweet] = None
                            if len(seen) > SEEN:
                                seen.popitem(last=False)
            raise troubles[-1]
        except Refused as error:
            reason, rule, until = error.args
        except (OSError, HTTPError, ValueError) as error:  # requests' and urllib3's
            cause = innermost(error)
            rule = "offline" if isinstance(cause, ConnectTimeoutError) else "" if last else "network"
            reason, until = str(cause).split("): ", 1)[-1].rstrip("."), 0.0
        backfill = backfill and rule != "backfill"
        failures[rule] += 1
        if rule != "offline":
            ends.append(time.monotonic())
        metered = ends[0] + WINDOW * second - time.monotonic()
        seconds = max(wait(rule, failures[rule]) * second, until - time.time(), metered)
        tell(f"{reason}; reconnecting in {seconds:.1f} s")
        stop.interruptible(time.sleep, seconds)
        counts["reconnects"] += 1


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--param", metavar="NAME=VALUE", type=PAIR, action="append", help="a parameter of X's API")
    parser.add_argument("--backfill", action="store_true", help="after a gap ask for the minutes missed, 5 at most")
    options = parser.parse_args(argv)
    stop.endless = not options.n
    token = re.sub(r"^\s*(Bearer\s)?\s*|\s*$", "", (given := settings()).get("BEARER_TOKEN", ""))
    if not re.fullmatch("[!-~]+", token):
        fail("BEARER_TOKEN is not set, or is no token: copy your X app's into .env or the environment", 2)
    url = given.get("STREAM_URL", X_URL)
    loopback = re.match(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)", url)
    if not (loopback or url.startswith("https://")):
        fail("STREAM_URL is to begin with https:// (http:// is for this machine only), as the token is secret", 2)
    secrets.add(token)
    second = SECOND if loopback else 1.0
    headers = {"Authorization": f"Bearer {token}", "User-Agent": "twitter-stream.py/1.0", "Accept-Encoding": "gzip"}
    # An auth, even an idle one, keeps ~/.netrc out; what is not encrypted goes through no proxy
    how: dict[str, Any] = {"headers": headers, "auth": lambda request: request, "proxies": {"http": ""}, "stream": True}

    def get(minutes: int | None) -> requests.Response:
        params = [*(options.param or []), ("backfill_minutes", minutes)]  # requests leaves None out
        return Session().get(url, params=params, timeout=(ANSWER, max(SILENCE * second, 2)), **how)

    try:
        requests.Request("GET", url, params=options.param).prepare()
    except ValueError as error:
        fail(f"STREAM_URL or --param: {error}", 2)
    limit = create_topic(options.topic, -1, {})
    counts = Counter(reconnects=0, skipped=0)
    tweets = itertools.islice(stream(get, counts, second, options.backfill), options.n)

    def note() -> str:
        return " (" + ", ".join(f"{count} {what}" for what, count in list(counts.items())) + ")"

    publish(tweets, options.topic, limit, "tweet", note, patience=PATIENCE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
