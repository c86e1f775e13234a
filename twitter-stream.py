"""Publish X's (Twitter's) sampled stream to a Kafka topic, one event per tweet, until stopped.

examples:
  twitter-stream.py                 all tweets, with BEARER_TOKEN in .env or the environment
  twitter-stream.py -t tweets -n 100
                                    the next 100 tweets, to topic tweets
  twitter-stream.py --param tweet.fields=created_at,lang --param expansions=author_id
  twitter-stream.py --backfill      after a gap, request the missed tweets from X

Each event's value is the line as X sent it; its key is the tweet ID. The topic is created if it
does not exist.

exit status:
  0    an endless run was stopped, or COUNT was reached
  1    X refused for good, a tweet was not delivered, or Kafka could not be reached
  2    invalid usage or settings
  130  stopped by Ctrl-C before reaching COUNT (143: by SIGTERM, 129: by SIGHUP)
"""

import argparse
import enum
import json
import math
import random
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple, NoReturn

from cli import Parser, Stop, fail, name_value_type, pluralize, register_secret, say, start

if __name__ == "__main__":
    start()

from config import settings, show_client_log
from delivery import (
    SECOND,
    Batch,
    Event,
    Job,
    Line,
    LineSplitter,
    OversizedLine,
    Source,
    ensure_topic,
    publish,
    take,
)

import requests
from urllib3.exceptions import ConnectTimeoutError, HTTPError

X_URL = "https://api.x.com/2/tweets/sample/stream"
LOOPBACK = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)"
MAX_LINE_BYTES = 1 << 20  # no tweet comes close
BLOCK_BYTES = 1 << 16  # per read

# X's rules, in seconds unless stated otherwise
RESPONSE_TIMEOUT = 10
SILENCE = 22  # X sends a keep-alive every 20 seconds
MAX_CONNECTS, CONNECT_WINDOW = 10, 180  # spreads out the 50 connects that X allows in 15 minutes
DAY = 86_400  # no rate limit of X lasts longer
DELIVERY_TIMEOUT = 3600  # how long Kafka may be down; until then, tweets already read are held
MAX_SEEN_IDS = 100_000  # five minutes at six times the usual rate
MAX_BACKFILL_MINUTES = 5


class Rule(NamedTuple):
    """How long to wait after a failure, in seconds: the first wait and the longest.

    With each failure of a kind in a row the wait doubles, or grows by the length of the first.
    """

    name: str  # also tells rules with the same waits apart
    first: float
    longest: float
    doubles: bool = False


AT_ONCE = Rule("a connection that was working", 0, 0)
NO_BACKFILL = Rule("backfill was refused", 0, 0)
UNREACHABLE = Rule("X never saw the connect", 0.25, 16)
NETWORK = Rule("a network error", 0.25, 16)
HTTP = Rule("an HTTP error or too many connections", 5, 320, doubles=True)
RATE_LIMIT = Rule("the rate limit", 60, 960, doubles=True)

# Status codes of refusals for good, and what to do about them
REFUSALS = {
    400: "A parameter is invalid. Check --param.",
    401: "The bearer token is invalid. Check BEARER_TOKEN.",
    403: "The app has no access to the stream. X sells it to Enterprise accounts.",
    404: "There is no stream at this URL. Check STREAM_URL.",
    429: "The plan's tweets are used up. Wait for its next period, or extend it.",
}


def main(argv: list[str] | None = None) -> int:
    options = parse_flags(argv)
    if options.verbose:
        show_client_log()
    token = bearer_token()
    url = stream_url(options.params)
    second = SECOND if re.match(LOOPBACK, url) else 1.0
    max_bytes = ensure_topic(options.topic, None, {})
    stop = Stop()
    backoff, counts = Backoff(second), Counts()
    tweet_filter = TweetFilter(backoff, Gap(options.backfill, second), counts, second)
    open_stream = make_opener(url, token, options.params, second)
    job = Job(
        take(stream_tweets(open_stream, backoff, tweet_filter, stop), options.count),
        unit="tweet",
        details=counts.text,
        is_endless=not options.count,
    )
    return publish(job, options.topic, max_bytes, stop, timeout=DELIVERY_TIMEOUT)


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--param",
        dest="params",
        metavar="NAME=VALUE",
        type=name_value_type,
        action="append",
        default=[],
        help="X API parameter; can be repeated",
    )
    parser.add_argument(
        "--backfill",
        action="store_true",
        help="after a gap, request the missed tweets (up to 5 minutes' worth)",
    )
    return parser.parse_args(argv)


def bearer_token() -> str:
    """Return the token without whitespace or the word Bearer around it; exit if it is unusable."""
    token = re.sub(r"^\s*(Bearer\s)?\s*|\s*$", "", settings().get("BEARER_TOKEN", ""))
    if not re.fullmatch("[!-~]+", token):
        fail(
            "BEARER_TOKEN is missing or malformed; copy your X app's bearer token to .env or the "
            "environment",
            2,
        )
    register_secret(token)
    return token


def stream_url(params: list[tuple[str, str]]) -> str:
    """Return the stream's URL; exit if it is invalid or would expose the token."""
    url = settings().get("STREAM_URL", X_URL)
    if not (url.startswith("https://") or re.match(LOOPBACK, url)):
        fail(
            "STREAM_URL must start with https:// to keep the token secret "
            "(http:// is for this machine only)",
            2,
        )
    try:
        requests.Request("GET", url, params=params).prepare()
    except ValueError as error:
        fail(f"cannot use STREAM_URL with --param: {error}", 2)
    return url


class NoRedirectSession(requests.Session):
    """Never follows a redirect.

    The token is only for X, and requests would read the whole body first.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


OpenStream = Callable[[int | None], requests.Response]


def make_opener(url: str, token: str, params: list[tuple[str, str]], second: float) -> OpenStream:
    """Return a function that opens the stream, given the minutes of backfill to request."""
    headers = {
        "Authorization": f"Bearer {token}",
        "User-Agent": "twitter-stream.py/1.0",
        "Accept-Encoding": "gzip",
    }

    def open_stream(minutes: int | None) -> requests.Response:
        return NoRedirectSession().get(
            url,
            params=[*params, ("backfill_minutes", minutes)],  # requests omits None
            headers=headers,
            auth=lambda request: request,  # a no-op, so that ~/.netrc is ignored
            proxies={"http": ""},  # no proxy for unencrypted requests
            stream=True,
            timeout=(RESPONSE_TIMEOUT, max(SILENCE * second, 2)),
        )

    return open_stream


def stream_tweets(
    open_stream: OpenStream, backoff: "Backoff", tweet_filter: "TweetFilter", stop: Stop
) -> Source:
    """Yield X's tweets, over as many connections as it takes."""
    while not stop.requested:
        minutes = tweet_filter.gap.begin_connection()
        try:
            with closing(read_connection(open_stream, minutes, stop)) as connection:
                for lines in connection:
                    yield from tweet_filter.tweets(lines)
        except Disconnected as end:
            tweet_filter.note_end(end)
            seconds = backoff.next_wait(end.rule, end.not_before)
            say(f"{end.reason}; reconnecting in {seconds:.1f} s")
            stop.wait(seconds)
            if not stop.requested:
                tweet_filter.counts.reconnects += 1


class Disconnected(Exception):
    """A connection ended, or could not be made.

    It holds the reason in words, the rule to wait by, the earliest time.time() to reconnect, and
    whether a line was cut off.
    """

    def __init__(
        self, reason: str, rule: Rule, not_before: float = 0.0, cuts_line: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rule = rule
        self.not_before = not_before
        self.cuts_line = cuts_line


def read_connection(
    open_stream: OpenStream, minutes: int | None, stop: Stop
) -> Generator[list[Line], None, None]:
    """Yield a connection's lines block by block; raise Disconnected when it ends."""
    splitter = LineSplitter(MAX_LINE_BYTES)
    try:
        with open_stream(minutes) as response:
            if response.status_code != 200:
                raise_refusal(response, minutes)
            # Not iter_lines, which loses lines when a connection drops
            while block := response.raw.read1(BLOCK_BYTES, decode_content=True):
                yield splitter.feed(block)
                if stop.requested:
                    return
    except (OSError, HTTPError, ValueError) as error:  # from requests, urllib3 and the socket
        cause = root_cause(error)
        rule = UNREACHABLE if isinstance(cause, ConnectTimeoutError) else NETWORK
        # urllib3 puts the connection in front: HTTPSConnection(host='…', port=443): reason
        reason = one_line(str(cause).split("): ", 1)[-1]).rstrip(".")
        raise Disconnected(reason, rule, cuts_line=has_cut_line(splitter)) from error
    raise Disconnected("X ended the stream", NETWORK, cuts_line=has_cut_line(splitter))


def has_cut_line(splitter: LineSplitter) -> bool:
    """Return whether the beginning of a line is left; that of a keep-alive is no loss."""
    return splitter.flush() not in ([], [b"\r"])


def root_cause(error: BaseException) -> BaseException:
    """Return the root cause of an error wrapped by requests and urllib3."""
    for wrapped in (getattr(error, "reason", None), *error.args):
        if isinstance(wrapped, BaseException):
            return root_cause(wrapped)
    return error


def raise_refusal(response: requests.Response, minutes: int | None) -> NoReturn:
    """Raise Disconnected, in X's own words, for a response whose status is not 200.

    Exit if X refuses for good.
    """
    status = response.status_code
    text = f"{status} {error_text(read_error_body(response)) or response.reason}"
    if status == 400 and minutes:
        raise Disconnected(f"{text}; continuing without backfill", NO_BACKFILL)
    if status in REFUSALS and (status != 429 or "UsageCapExceeded" in text):
        fail(f"X refuses: {text}. {REFUSALS[status]}", 2 if status == 400 else 1)
    if status == 429:
        raise Disconnected(text, RATE_LIMIT, reset_time(response))
    raise Disconnected(text, HTTP)


def read_error_body(response: requests.Response) -> bytes:
    """Return the first 64 KB of a body, or what arrives within the response timeout."""
    body = b""
    deadline = time.monotonic() + RESPONSE_TIMEOUT
    try:
        while len(body) < BLOCK_BYTES and time.monotonic() < deadline:
            block = response.raw.read1(BLOCK_BYTES, decode_content=True)
            if not block:
                break
            body += block
    except (OSError, HTTPError):  # what has arrived has to do
        pass
    return body


def reset_time(response: requests.Response) -> float:
    """Return the time.time() when X's rate limit resets; 0 if missing or implausible.

    Up to 5 seconds are added at random, because clients are many.
    """
    reset = response.headers.get("x-rate-limit-reset", "")
    if not re.fullmatch("[0-9]{1,10}", reset):
        return 0.0
    reset_at = float(reset) + random.uniform(0, 5)
    return reset_at if reset_at < time.time() + DAY else 0.0


class Kind(enum.Enum):
    TWEET = enum.auto()
    KEEP_ALIVE = enum.auto()
    DISCONNECT = enum.auto()  # X is about to close this connection
    TOO_MANY_CONNECTIONS = enum.auto()  # likewise
    OTHER = enum.auto()  # nothing to publish


class Message(NamedTuple):
    """A line's kind and a text: a tweet's ID, a description of OTHER, or else X's own words."""

    kind: Kind
    text: str = ""


def classify(line: Line) -> Message:
    r"""Classify a line of the stream, given without its \n."""
    if isinstance(line, OversizedLine):
        return Message(Kind.OTHER, "a line over 1 MiB")
    if line in (b"\r", b""):
        return Message(Kind.KEEP_ALIVE)
    message = parse_object(line)
    data = message.get("data")
    tweet_id = data.get("id") if isinstance(data, dict) else None
    if isinstance(tweet_id, str) and tweet_id:
        return Message(Kind.TWEET, tweet_id)
    for problem in problems_in(message):
        if "connection_issue" in problem:
            return Message(Kind.TOO_MANY_CONNECTIONS, error_text(line))
        if "operational-disconnect" in f"{problem.get('title')} {problem.get('type')}":
            return Message(Kind.DISCONNECT, error_text(line))
    what = "a message without a tweet ID" if message else "a line that is not a JSON object"
    return Message(Kind.OTHER, f"{what}: {error_text(line)}")


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; return an empty one for anything else."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def problems_in(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the message itself, which may be a problem, and the errors in it."""
    nested = message.get("errors")
    if not isinstance(nested, list):
        return [message]
    return [message, *(problem for problem in nested if isinstance(problem, dict))]


def error_text(body: bytes) -> str:
    """Return X's own words: title, detail and messages, or else the text of the page."""
    parts = [
        str(problem[name])
        for problem in problems_in(parse_object(body))
        for name in ("title", "detail", "message")
        if problem.get(name)
    ]
    return one_line(": ".join(parts) or re.sub(r"<[^>]*>", " ", body.decode(errors="replace")))


def one_line(text: str) -> str:
    """Return the text without line breaks and without what controls a terminal."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())


class Counts:
    """What happened besides tweets. The source counts, and the main thread shows it."""

    def __init__(self) -> None:
        self.reconnects = 0
        self.skipped = 0
        self.duplicates = 0

    def text(self) -> str:
        """Format the counts for messages: ` (1 reconnect, 0 skipped)`."""
        counts = f"{pluralize(self.reconnects, 'reconnect')}, {self.skipped} skipped"
        if self.duplicates:
            counts += f", {pluralize(self.duplicates, 'duplicate')}"
        return f" ({counts})"


class TweetFilter:
    """Picks out tweets; counts everything else and reports each kind at most once a minute."""

    def __init__(self, backoff: "Backoff", gap: "Gap", counts: Counts, second: float = 1.0) -> None:
        self._backoff, self.gap, self.counts = backoff, gap, counts
        self._minute = 60 * second
        self._next_report_at: dict[str, float] = {}  # by what was skipped: a time.monotonic()

    def tweets(self, lines: list[Line]) -> Iterator[Batch]:
        """Yield one batch of tweets as (ID, line), then raise Disconnected if X says so."""
        batch: Batch = []
        for line in lines:
            message = classify(line)
            if message.kind in (Kind.DISCONNECT, Kind.TOO_MANY_CONNECTIONS):
                yield batch
                raise self._disconnected(message)
            batch += self._publishable(message, line)
        yield batch

    def _disconnected(self, message: Message) -> Disconnected:
        may_resume = message.kind is Kind.DISCONNECT and self._backoff.is_working
        return Disconnected(message.text, AT_ONCE if may_resume else HTTP)

    def _publishable(self, message: Message, line: Line) -> Batch:
        """Return the line as an event if it is a new tweet; else nothing."""
        if message.kind is Kind.OTHER or isinstance(line, OversizedLine):
            self._skip(message.text)
            return []
        self._backoff.is_working = True
        self.gap.data_received()
        if message.kind is Kind.KEEP_ALIVE:
            return []
        self._backoff.forget_failures()
        if self.gap.seen_before(message.text):
            self.counts.duplicates += 1
            return []
        return [Event(message.text.encode(errors="replace"), line.removesuffix(b"\r"))]

    def _skip(self, what: str) -> None:
        self.counts.skipped += 1
        kind = what.partition(":")[0]
        now = time.monotonic()
        if now >= self._next_report_at.get(kind, 0.0):
            self._next_report_at[kind] = now + self._minute
            say(f"skipped {what}")

    def note_end(self, end: Disconnected) -> None:
        """Note what the end of a connection means for the tweets."""
        if end.cuts_line:
            self._skip("an incomplete line")
        if end.rule is NO_BACKFILL:
            self.gap.backfill = False


class Backoff:
    """How long to wait before reconnecting, by X's rules.

    `second` is the length of one second in the rules; `clock` and `wall_clock` are time.monotonic
    and time.time, or a test's replacements.
    """

    def __init__(
        self,
        second: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._second, self._clock, self._wall_clock = second, clock, wall_clock
        self.is_working = False  # whether this connection has brought a tweet or a keep-alive
        self._failures: Counter[Rule] = Counter()  # in a row
        never = [-math.inf] * MAX_CONNECTS
        self._ended_at = deque(never, MAX_CONNECTS)  # the last ends; X saw each connect earlier

    def forget_failures(self) -> None:
        """Reset all waits to the first, because a tweet has arrived."""
        self._failures.clear()

    def next_wait(self, rule: Rule, not_before: float = 0.0) -> float:
        """Note the end of a connection; return the seconds to wait before the next.

        `not_before` is a time.time(). A connection that was working is resumed at once.
        """
        if rule is NETWORK and self.is_working:
            rule = AT_ONCE
        self.is_working = False
        self._failures[rule] += 1
        now = self._clock()
        if rule is not UNREACHABLE:
            self._ended_at.append(now)
        rule_wait = jittered_wait(rule, self._failures[rule]) * self._second
        window_wait = self._ended_at[0] + CONNECT_WINDOW * self._second - now
        return max(rule_wait, window_wait, not_before - self._wall_clock())


def jittered_wait(rule: Rule, failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, plus up to 20% jitter."""
    growth = 2.0 ** min(failures - 1, 20) if rule.doubles else failures
    return min(rule.first * growth, rule.longest / 1.2) * random.uniform(1, 1.2)


class Gap:
    """Tracks what may be missing: the minutes of backfill to request, and which tweets are new.

    Nothing is missing up to `_complete_until`. It advances with the data, except while we catch
    up: for SILENCE after a connection has asked for backfill, or after Kafka has held us up. If
    that connection breaks before, the next one asks for the same minutes again.

    `clock` is time.time, which keeps running while the machine sleeps, or a test's replacement.
    """

    def __init__(
        self, backfill: bool, second: float = 1.0, clock: Callable[[], float] = time.time
    ) -> None:
        self.backfill = backfill
        self._second, self._clock = second, clock
        self._complete_until = 0.0  # 0: nothing received yet
        self._catching_up_since = 0.0
        self._received_at = 0.0  # last, on this connection; 0: nothing
        self._seen_ids: OrderedDict[str, None] = OrderedDict()

    def begin_connection(self) -> int | None:
        """Note a new connection; return the minutes of backfill to request, None for none."""
        now = self._clock()
        self._received_at = 0.0
        self._catching_up_since = 0.0
        if not (self.backfill and self._complete_until):
            return None
        self._catching_up_since = now
        missed = math.ceil((now - self._complete_until) / self._second / 60)
        return min(max(missed, 1), MAX_BACKFILL_MINUTES)

    def data_received(self) -> None:
        """Note that a tweet or a keep-alive has arrived."""
        now = self._clock()
        silence = SILENCE * self._second
        if self._received_at and now > self._received_at + silence:
            # X itself is never silent for so long: Kafka held us up, and X may have dropped tweets
            self._catching_up_since = now
        self._received_at = now
        if now >= self._catching_up_since + silence:
            self._complete_until = now

    def seen_before(self, tweet_id: str) -> bool:
        """Return whether this tweet came before, and remember it if backfill may bring it again."""
        if tweet_id in self._seen_ids:
            return True
        if self.backfill:
            self._seen_ids[tweet_id] = None
            if len(self._seen_ids) > MAX_SEEN_IDS:
                self._seen_ids.popitem(last=False)
        return False


if __name__ == "__main__":
    raise SystemExit(main())
