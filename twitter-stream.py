"""Publish X's (Twitter's) sampled stream to a Kafka topic, one event per tweet, until stopped.

examples:
  twitter-stream.py                 all tweets, with BEARER_TOKEN in .env or the environment
  twitter-stream.py -t tweets -n 100
                                    the next 100 tweets, to topic tweets
  twitter-stream.py --param tweet.fields=created_at,lang --param expansions=author_id
  twitter-stream.py --backfill      after a gap or a restart, request the missed tweets from X

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
import functools
import gc
import json
import math
import random
import re
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from datetime import timezone
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from cli import (
    PATIENCE,
    SECOND,
    Parser,
    Stop,
    Throttle,
    fail,
    name_value_type,
    pluralize,
    register_secret,
    say,
    start,
)

if __name__ == "__main__":
    start()

from config import Consumer, apply_common_flags, client_options, connect, explain, settings
from delivery import (
    Batch,
    Event,
    Job,
    Line,
    LineSplitter,
    OversizedLine,
    Source,
    Stopped,
    ensure_topic,
    publish,
    take,
)
from http_stream import StreamOpener, check_network_settings, is_usable_address

import requests
from kafka import TopicPartition, errors
from urllib3.exceptions import HTTPError, ReadTimeoutError

X_URL = "https://api.x.com/2/tweets/sample/stream"
LOOPBACK = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)"
MAX_LINE_BYTES = 1 << 20  # no tweet comes close
BLOCK_BYTES = 1 << 16  # per read
PAGE_BYTES = 1 << 14  # of a web page, to show its text

# X's rules, in seconds unless stated otherwise
REFUSAL_TIMEOUT = 10 * PATIENCE  # for the text of a refusal
SILENCE = 22  # X sends a keep-alive every 20 seconds
X_WINDOW = 900  # X's rate limits apply per 15 minutes
MAX_CONNECTS, CONNECT_WINDOW = 10, 180  # spreads out the 50 connects that X allows in X_WINDOW
DAY = 86_400  # no X rate limit lasts longer
# Once a request has been accepted, it takes this many refusals in a row to end the run. With the
# waits in between, they span 20 minutes, more than X_WINDOW
MAX_REFUSALS = 10
DELIVERY_TIMEOUT = 3600  # how long Kafka may be down; until then, tweets already read are held
MAX_BACKFILL_MINUTES = 5
BACKFILL_MARGIN = 10  # for the time that a connect takes, and for tweets lost in flight
MAX_BACKFILL_REFUSALS = 3  # in a row, before we assume that the plan has no backfill
RECENT = 360  # how much of the topic --backfill reads at the start: a minute more than X resends
READ_STALL = 8 * PATIENCE  # give up reading it after this long without progress
MAX_SEEN_IDS = 125_000  # six minutes at six times the usual rate


class Rule(NamedTuple):
    """How long to wait after a failure, in seconds: the first wait and the longest.

    With each consecutive failure of a kind, the wait doubles, or grows by the first wait.
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
RATE_LIMIT = Rule("the rate limit", 60, X_WINDOW, doubles=True)

JSON_ESCAPE = re.compile(r"\\.", re.DOTALL)

# X's problems, by their title and by the end of their type
DISCONNECT = {"operational-disconnect"}
TOO_MANY_CONNECTIONS = {"ConnectionException", "streaming-connection"}
USED_UP = {"UsageCapExceeded", "usage-capped"}
NO_CREDITS = {"CreditsDepleted", "credits-depleted", "credits"}

# Status codes of refusals, and what to do about them
REFUSALS = {
    400: "A parameter is invalid. Check --param.",
    401: "The bearer token is invalid. Check BEARER_TOKEN.",
    402: "The account has no credits left. Buy credits in X's developer portal.",
    403: "The app has no access to the stream. X sells it to Enterprise accounts.",
    404: "There is no stream at this URL. Check STREAM_URL.",
    429: "The plan's tweets are used up. Wait for the next billing period, or upgrade the plan.",
}
FREE_CONNECTIONS = "to close stale connections, call DELETE /2/connections/all of X's API"


def main(argv: list[str] | None = None) -> int:
    options = parse_flags(argv)
    apply_common_flags(options)
    token = bearer_token()
    url = stream_url(options.params)
    check_network_settings(url)
    second = SECOND if re.match(LOOPBACK, url) else 1.0
    max_bytes = ensure_topic(options.topic, None, {})
    stop, counts, throttle = Stop(), Counts(), Throttle(60 * second)
    gap = Gap(options.backfill, second)
    if options.backfill:
        resume_from_topic(gap, options.topic)
    tweet_filter = TweetFilter(Backoff(second), gap, counts, throttle)
    headers = {
        "Authorization": f"Bearer {token}",
        "User-Agent": "twitter-stream.py/1.0",
        "Accept-Encoding": "gzip",
    }
    opener = StreamOpener(url, headers, options.params, max(SILENCE * second, 2 * PATIENCE))
    job = Job(
        take(stream_tweets(opener, tweet_filter, stop), options.count),
        unit="tweet",
        details=counts.text,
        say_skipped=functools.partial(throttle.say, "an event that is too large"),
        at_stop=tweet_filter.note_last_gap,
        is_endless=not options.count,
    )
    return publish(job, options.topic, max_bytes, stop, timeout=DELIVERY_TIMEOUT)


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_pairs("--param", "params", "X API parameter", name_value_type)
    parser.add_argument(
        "--backfill",
        action="store_true",
        help="after a gap or a restart, request the missed tweets (up to 5 minutes' worth)",
    )
    return parser.parse_args(argv)


def bearer_token() -> str:
    """Return the token without whitespace, quotes or the word Bearer around it.

    Exit if it is unusable. docker's --env-file leaves quotes around a value.
    """
    blanks_and_quotes = " \t\r\n\"'"
    token = settings().get("BEARER_TOKEN", "").strip(blanks_and_quotes)
    token = re.sub(r"^Bearer(\s+|$)", "", token).strip(blanks_and_quotes)
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
        reason = "it is not a valid URL" if "@" in url else error  # which may show the password
        fail(f"cannot use STREAM_URL with --param: {reason}", 2)
    if not is_usable_address(url):
        fail("cannot use STREAM_URL: it is not a valid URL", 2)
    return url


def stream_tweets(opener: StreamOpener, tweet_filter: "TweetFilter", stop: Stop) -> Source:
    """Yield X's tweets, over as many connections as it takes, until asked to stop."""
    while not stop.requested:
        minutes = tweet_filter.gap.begin_connection()
        seconds = 0.0
        try:
            with closing(read_connection(opener, minutes, stop)) as connection:
                for lines in connection:
                    yield from tweet_filter.tweets(lines)
        except Disconnected as end:
            seconds = tweet_filter.note_end(end)
        gc.collect()  # a failed connection is a reference cycle that holds a whole CA bundle
        stop.wait(seconds)
        if not stop.requested:
            tweet_filter.counts.reconnects += 1
    raise Stopped


class Disconnected(Exception):
    """A connection ended, or could not be made.

    It holds the reason in words, the rule that sets the wait, the kind of trouble within that rule,
    the minimum wait in seconds, and whether a line was cut off.
    """

    def __init__(
        self,
        reason: str,
        rule: Rule,
        kind: str = "",
        at_least: float = 0.0,
        cuts_line: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rule = rule
        self.kind = f"{rule.name}: {kind}"  # without the other side's words, which may vary
        self.at_least = at_least
        self.cuts_line = cuts_line


class Refused(Disconnected):
    """X has refused the request.

    `is_certain` means that X's own words leave no doubt. Otherwise, if the same request was
    accepted before, it may be an error from a server between X and us.
    """

    def __init__(self, reason: str, status: int, is_certain: bool) -> None:
        super().__init__(reason, HTTP, str(status))
        self.status = status
        self.is_certain = is_certain


def read_connection(
    opener: StreamOpener, minutes: int | None, stop: Stop
) -> Generator[list[Line], None, None]:
    """Yield a connection's lines block by block; raise Disconnected when it ends.

    The time spent waiting for Kafka does not count as silence.
    """
    splitter = LineSplitter(MAX_LINE_BYTES)
    try:
        with opener.open(minutes) as response:
            if response.status_code != 200:
                opener.guard.restart(REFUSAL_TIMEOUT)
                raise refusal(response, minutes)
            for block in read_blocks(response):
                lines = splitter.feed(block)
                if lines:
                    opener.guard.pause()
                    yield lines
                    opener.guard.restart()
                if stop.requested:
                    return
    except (OSError, HTTPError, ValueError) as error:  # from requests, urllib3 and the socket
        raise disconnection(opener, splitter, error) from error
    if opener.guard.has_fired:
        raise disconnection(opener, splitter)
    last_line = splitter.flush()
    if last_line:
        yield last_line
    raise Disconnected("X ended the stream", NETWORK)


def read_blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it arrives; raise Disconnected if it turns out to be a web page."""
    beginning = b""
    has_begun = False
    # Not iter_lines, which loses lines when a connection drops
    while block := response.raw.read1(BLOCK_BYTES, decode_content=True):
        if not has_begun:
            beginning = (beginning + block).lstrip()
            text = beginning.decode("utf-8-sig", errors="ignore").lstrip()
            has_begun = bool(text) or len(beginning) > 3  # of a byte order mark
            if text.startswith("<"):
                page = error_text(beginning + read_error_body(response))
                reason = f"200, but a web page instead of tweets: {page}"
                raise Disconnected(reason, HTTP, "a web page")
        yield block


def disconnection(
    opener: StreamOpener, splitter: LineSplitter, error: Exception | None = None
) -> Disconnected:
    """Turn an error, or a connection ended by the guard, into a Disconnected."""
    cuts_line = any(isinstance(line, OversizedLine) or line.strip() for line in splitter.flush())
    has_timed_out = opener.guard.has_fired
    cause = root_cause(error) if error and not has_timed_out else None
    kind = type(cause).__name__
    if not opener.has_reached_x:
        reason = f"cannot connect to {opener.target}: {cause_text(cause)}"
        return Disconnected(reason, UNREACHABLE, kind)
    if has_timed_out or isinstance(cause, (TimeoutError, ReadTimeoutError)):
        reason = f"no complete line from X for {SILENCE} s"
        return Disconnected(reason, NETWORK, "silence", cuts_line=cuts_line)
    return Disconnected(cause_text(cause), NETWORK, kind, cuts_line=cuts_line)


def root_cause(error: BaseException) -> BaseException:
    """Return the root cause of an error wrapped by requests and urllib3."""
    for wrapped in (getattr(error, "reason", None), *error.args):
        if isinstance(wrapped, BaseException):
            return root_cause(wrapped)
    return error


def cause_text(cause: BaseException | None) -> str:
    """Return an error's message without what its library puts around it."""
    text = str(cause or "no response")
    # HTTPSConnection(host='…', port=443): reason
    text = text.split("): ", 1)[-1]
    if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):  # OpenSSL's words vary
        return "the TLS connection was closed"
    # [Errno 111] Connection refused; [SSL: CERTIFICATE_VERIFY_FAILED] reason (_ssl.c:1006)
    text = re.sub(r"^\[[^]]*\] | \(_ssl.*$", "", text)
    return one_line(text).rstrip(".")


def refusal(response: requests.Response, minutes: int | None) -> Disconnected:
    """Return what a response whose status is not 200 means, in X's own words."""
    status = response.status_code
    body = read_error_body(response)
    text = f"{status} {error_text(body) or one_line(response.reason or '')}"
    names = problem_names(parse_object(body))
    if names & NO_CREDITS or status == 402:
        return Refused(text, 402, is_certain=True)
    if names & USED_UP:
        return Refused(text, 429, is_certain=True)
    if status in (400, 403) and minutes:
        return Disconnected(f"{text}; trying without backfill", NO_BACKFILL)
    if status in REFUSALS and status != 429:
        return Refused(text, status, is_certain=False)
    has_connects_left = response.headers.get("x-rate-limit-remaining") != "0"
    if names & TOO_MANY_CONNECTIONS and has_connects_left:
        return Disconnected(f"{text} ({FREE_CONNECTIONS})", HTTP, "too many connections")
    if status == 429:
        return Disconnected(text, RATE_LIMIT, at_least=seconds_until_reset(response.headers))
    return Disconnected(text, HTTP, f"{status // 100}xx")


def read_error_body(response: requests.Response) -> bytes:
    """Return the first 64 KB of a body, or what arrives within the timeout."""
    body = b""
    deadline = time.monotonic() + REFUSAL_TIMEOUT
    try:
        while len(body) < BLOCK_BYTES and time.monotonic() < deadline:
            block = response.raw.read1(BLOCK_BYTES, decode_content=True)
            if not block:
                break
            body += block
    except (OSError, HTTPError, ValueError):  # make do with what has arrived
        pass
    return body


def seconds_until_reset(headers: Mapping[str, str]) -> float:
    """Return how long X's rate limit lasts; 0 if it is not used up, or X does not say.

    Up to 5 random seconds are added, so that clients do not all return at once.
    """
    reset = headers.get("x-rate-limit-reset", "")
    remaining = headers.get("x-rate-limit-remaining", "0")
    if remaining != "0" or not re.fullmatch("[0-9]{1,10}", reset):
        return 0.0
    seconds = float(reset) - server_time(headers) + random.uniform(0, 5)
    return seconds if 0 < seconds < DAY else 0.0


def server_time(headers: Mapping[str, str]) -> float:
    """Return the time.time() of X's clock, or else that of this machine, which may be wrong."""
    try:
        moment = parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, OverflowError):
        return time.time()
    # It is always UTC, whether it says so or not (RFC 9110)
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()


class Kind(enum.Enum):
    TWEET = enum.auto()
    KEEP_ALIVE = enum.auto()
    DISCONNECT = enum.auto()  # X is about to close this connection
    TOO_MANY_CONNECTIONS = enum.auto()  # as above
    OTHER = enum.auto()  # nothing to publish


class Message(NamedTuple):
    """A line's kind and some text: a tweet's ID, a description of OTHER, or else X's own words."""

    kind: Kind
    text: str = ""


def classify(line: Line) -> Message:
    r"""Classify a line of the stream, given without its \n."""
    if isinstance(line, OversizedLine):
        return Message(Kind.OTHER, "a line over 1 MiB")
    if not line.strip():
        return Message(Kind.KEEP_ALIVE)
    message = parse_object(line)
    data = message.get("data")
    tweet_id = data.get("id") if isinstance(data, dict) else None
    if isinstance(tweet_id, str) and tweet_id:
        return Message(Kind.TWEET, tweet_id)
    names = problem_names(message)
    if names & TOO_MANY_CONNECTIONS:
        return Message(Kind.TOO_MANY_CONNECTIONS, f"{error_text(line)} ({FREE_CONNECTIONS})")
    if names & DISCONNECT:
        return Message(Kind.DISCONNECT, error_text(line))
    what = "a message without a tweet ID" if message else "a line that is not a JSON object"
    return Message(Kind.OTHER, f"{what}: {error_text(line)}")


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; return an empty one for anything else.

    Tolerates what X may let through from its users: bytes that are not UTF-8, control characters,
    unknown escapes and endless numbers.
    """
    json_text = text.decode("utf-8-sig", errors="replace")
    for candidate in (json_text, JSON_ESCAPE.sub("?", json_text)):
        try:
            value = json.loads(candidate, strict=False, parse_int=parse_int)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else {}
    return {}


def parse_int(digits: str) -> float:
    """Parse a whole number; Python rejects one with more than 4,300 digits."""
    try:
        return int(digits)
    except ValueError:
        return math.inf


def problem_names(message: dict[str, Any]) -> set[str]:
    """Return the titles of the problems in a message, and the last parts of their types.

    A connection_issue counts as a problem with the connections.
    """
    names = set()
    for problem in problems_in(message):
        names.add(str(problem.get("title")))
        names.add(str(problem.get("type")).rstrip("/").rpartition("/")[2])
        if "connection_issue" in problem:
            names |= TOO_MANY_CONNECTIONS
    return names


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
    return one_line(": ".join(parts) or page_text(body[:PAGE_BYTES].decode(errors="replace")))


def page_text(page: str) -> str:
    """Return the text of a web page, or of anything else."""
    return re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^<>]*>", " ", page)


def one_line(text: str) -> str:
    """Return the text without line breaks or characters that control a terminal."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())


class Counts:
    """What happened besides tweets. The source thread counts it; the main thread shows it."""

    def __init__(self) -> None:
        self.reconnects = 0
        self.skipped = 0
        self.duplicates = 0
        self.gaps = 0

    def text(self) -> str:
        """Format the counts for messages: ` (1 reconnect, 0 skipped)`."""
        counts = f"{pluralize(self.reconnects, 'reconnect')}, {self.skipped} skipped"
        if self.duplicates:
            counts += f", {pluralize(self.duplicates, 'duplicate')}"
        if self.gaps:
            counts += f", {pluralize(self.gaps, 'gap')}"
        return f" ({counts})"


class TweetFilter:
    """Picks out tweets; counts everything else, and reports it.

    Each kind of trouble is reported at most once a minute; every gap is reported.
    """

    def __init__(self, backoff: "Backoff", gap: "Gap", counts: Counts, throttle: Throttle) -> None:
        self._backoff, self.gap, self.counts, self._throttle = backoff, gap, counts, throttle
        self._is_over = False  # whether the run is over; the source may still be reading

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
        return Disconnected(message.text, AT_ONCE if may_resume else HTTP, message.kind.name)

    def _publishable(self, message: Message, line: Line) -> Batch:
        """Return the line as an event if it is a new tweet; else nothing."""
        if message.kind is Kind.OTHER or isinstance(line, OversizedLine):
            self._skip(message.text)
            return []
        self._backoff.is_working = True
        if message.kind is Kind.KEEP_ALIVE:
            self.gap.keep_alive_received()
            return []
        self._note_gap(self.gap.tweet_received())
        self._backoff.tweet_received()
        if self.gap.seen_before(message.text):
            self.counts.duplicates += 1
            return []
        return [Event(message.text.encode(errors="replace"), line.removesuffix(b"\r"))]

    def _skip(self, what: str) -> None:
        self.counts.skipped += 1
        self._throttle.say(what.partition(":")[0], f"skipped {what}")

    def _note_gap(self, report: str | None) -> None:
        if report and not self._is_over:
            self.counts.gaps += 1
            say(report)

    def note_end(self, end: Disconnected) -> float:
        """Note the end of a connection; return the seconds to wait before the next.

        Exit if X refuses for good.
        """
        if end.cuts_line:
            self._skip("an incomplete line")
        if end.rule is NO_BACKFILL:
            self.gap.backfill_refused()
        self.gap.connection_ended()
        if isinstance(end, Refused) and self._backoff.note_refusal(end):
            self._fail(end)
        seconds = self._backoff.next_wait(end.rule, end.at_least)
        self._throttle.say(end.kind, f"{end.reason}; reconnecting in {seconds:.1f} s")
        return seconds

    def _fail(self, refused: Refused) -> NoReturn:
        how_often = ""
        is_usage_error = refused.status == 400
        if self._backoff.has_streamed and not refused.is_certain:
            how_often = f" {MAX_REFUSALS} times in a row"
            is_usage_error = False  # the same parameters have been accepted before
        message = f"X refuses{how_often}: {refused.reason}. {REFUSALS[refused.status]}"
        fail(message, 2 if is_usage_error else 1)

    def note_last_gap(self) -> None:
        """Report a gap that has not ended when the run does; report none after that."""
        self._note_gap(self.gap.unfinished())
        self._is_over = True


class Backoff:
    """How long to wait before reconnecting, by X's rules, and when to give up.

    `second` is the length of one second in the rules; `clock` is time.monotonic, or a test's
    replacement.
    """

    def __init__(self, second: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._second, self._clock = second, clock
        self.has_streamed = False  # whether a tweet has arrived
        self._refusals = 0  # since then
        self.is_working = False  # whether this connection has delivered a tweet or a keep-alive
        self._failures: Counter[Rule] = Counter()  # in a row
        never = [-math.inf] * MAX_CONNECTS
        self._ended_at = deque(never, MAX_CONNECTS)  # the latest ends; X saw each connect earlier

    def tweet_received(self) -> None:
        """Reset all waits to the first."""
        self.has_streamed = True
        self._refusals = 0
        self._failures.clear()

    def note_refusal(self, refused: Refused) -> bool:
        """Note a refusal; return whether it ends the run."""
        self._refusals += 1
        return refused.is_certain or not self.has_streamed or self._refusals >= MAX_REFUSALS

    def next_wait(self, rule: Rule, at_least: float = 0.0) -> float:
        """Note the end of a connection; return the seconds to wait before the next.

        `at_least` is a number of seconds that X asks for. A connection that was working is resumed
        at once.
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
        return max(rule_wait, window_wait, min(at_least, X_WINDOW * self._second))


def jittered_wait(rule: Rule, failures: int) -> float:
    """Return the seconds to wait after this many failures in a row, plus up to 20% jitter."""
    growth = 2.0 ** min(failures - 1, 20) if rule.doubles else failures
    return min(rule.first * growth, rule.longest / 1.2) * random.uniform(1, 1.2)


class Gap:
    """Tracks what may be missing, and which tweets are new.

    It keeps two times. Until `_live_until`, data arrived without delay: a gap is measured from
    there. Until `_complete_until`, nothing is missing: backfill is requested from there. The latter
    does not advance while we catch up, for SILENCE after a connection asks for backfill; if that
    connection breaks before then, the next one asks for the same minutes again. Neither advances
    for SILENCE after Kafka has held us up, because X then drops the connection some time later.

    `clock` is time.time, which keeps running while the machine sleeps, or a test's replacement.
    """

    def __init__(
        self, backfill: bool, second: float = 1.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._backfill, self._second, self._clock = backfill, second, clock
        self._live_until = 0.0  # 0: nothing received yet
        self._complete_until = 0.0
        self._catching_up_since = 0.0
        self._held_up_at = 0.0
        self._received_at = 0.0  # last, on this connection; 0: nothing
        self._minutes: int | None = None  # of backfill that this connection has asked for
        self._is_refused = False  # whether backfill was just refused
        self._goes_without = False  # whether this connection goes without backfill for that reason
        self._refusals = 0  # of backfill, in a row
        self._seen_ids: OrderedDict[str, None] = OrderedDict()

    def resume(self, recent: "RecentEvents") -> None:
        """Continue where an earlier run ended."""
        self._live_until = min(recent.times[-1], self._clock())
        silence = SILENCE * self._second
        self._complete_until = min(last_complete_time(recent.times, silence), self._clock())
        for tweet_id in recent.tweet_ids:
            self.seen_before(tweet_id)

    def begin_connection(self) -> int | None:
        """Note a new connection; return the minutes of backfill to request, None for none."""
        now = self._clock()
        self._goes_without, self._is_refused = self._is_refused, False
        self._received_at = self._catching_up_since = self._held_up_at = 0.0
        self._minutes = None
        if self._backfill and self._complete_until and not self._goes_without:
            self._catching_up_since = now
            seconds = (now - self._complete_until) / self._second + BACKFILL_MARGIN
            self._minutes = min(max(math.ceil(seconds / 60), 1), MAX_BACKFILL_MINUTES)
        return self._minutes

    def connection_ended(self) -> None:
        """Note the end of a connection."""
        self._received_at = 0.0

    def backfill_refused(self) -> None:
        """Note that the connection was refused, so that the next one goes without backfill."""
        self._is_refused = True

    def tweet_received(self) -> str | None:
        """Note that a tweet has arrived; return a report if it ends a gap."""
        return self._data_received()

    def keep_alive_received(self) -> None:
        """Note a keep-alive; before the connection's first tweet it proves nothing."""
        if self._received_at:
            self._data_received()

    def _data_received(self) -> str | None:
        now = self._clock()
        silence = SILENCE * self._second
        report = None
        if not self._received_at:
            self._count_refusals()
            report = self._report_gap(self._remedy())
        elif now > self._received_at + silence:
            # X itself is never silent for this long
            self._catching_up_since = self._held_up_at = now
        self._received_at = now
        if now >= self._held_up_at + silence:
            self._live_until = now
        if now >= self._catching_up_since + silence:
            self._complete_until = now
        return report

    def _count_refusals(self) -> None:
        """Give up on backfill once it is certain that only backfill is refused."""
        if self._minutes:
            self._refusals = 0
        elif self._goes_without:
            self._refusals += 1
            self._backfill = self._refusals < MAX_BACKFILL_REFUSALS

    def _remedy(self) -> str:
        """Describe how much of the gap X was asked to send again."""
        if self._minutes:
            minutes = "minute" if self._minutes == 1 else f"{self._minutes} minutes"
            return f"asked X for the last {minutes}"
        if self._refusals:
            return "X refuses to resend them"
        return "not requested again (see --backfill)"

    def unfinished(self) -> str | None:
        """Return a report on a gap that has not ended yet, if there is one.

        A connection that has delivered tweets has none: if data is late, Kafka is holding us up.
        """
        if self._received_at:
            return None
        return self._report_gap("the run ended before the stream resumed")

    def _report_gap(self, comment: str) -> str | None:
        """Return a report if no data has arrived for longer than X is ever silent."""
        now = self._clock()
        seconds = (now - self._live_until) / self._second
        if not self._live_until or seconds <= SILENCE:
            return None
        has_date = time.localtime(self._live_until)[:3] != time.localtime(now)[:3]
        pattern = "%Y-%m-%d %H:%M:%S" if has_date else "%H:%M:%S"
        began, ended = (
            time.strftime(pattern, time.localtime(moment)) for moment in (self._live_until, now)
        )
        return f"no tweets from {began} to {ended} ({duration_text(seconds)}); {comment}"

    def seen_before(self, tweet_id: str) -> bool:
        """Return whether this tweet has come before, and remember it if backfill may resend it."""
        if tweet_id in self._seen_ids:
            return True
        if self._backfill:
            self._seen_ids[tweet_id] = None
            if len(self._seen_ids) > MAX_SEEN_IDS:
                self._seen_ids.popitem(last=False)
        return False


def duration_text(seconds: float) -> str:
    """Format a duration: `27 min 21 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] if hours else []
    if minutes or hours:
        parts.append(f"{minutes} min")
    return " ".join([*parts, f"{rest} s"])


def last_complete_time(times: list[float], silence: float) -> float:
    """Return the time up to which nothing is missing, given the sorted times of the events.

    That is the newest, unless the last run was still catching up after a gap, as in `Gap`: then it
    is the one before the gap.
    """
    result = stretch_end = times[-1]
    for earlier, later in reversed(list(pairwise(times))):
        if stretch_end - later > silence:
            break
        if later - earlier > silence:
            result = stretch_end = earlier
    return result


class RecentEvents(NamedTuple):
    """What the topic holds from earlier runs, oldest first.

    The times (time.time()) of the events of the last RECENT seconds and of one before them, and
    the IDs of their tweets.
    """

    times: list[float]
    tweet_ids: list[str]


def resume_from_topic(gap: Gap, topic: str) -> None:
    """Make the gap begin at the topic's newest event; say so if the topic cannot be read."""
    options = client_options(
        Consumer, enable_auto_commit=False, auto_offset_reset="earliest", group_id=None
    )
    with closing(connect(Consumer, options)) as consumer:
        try:
            recent = read_recent_events(consumer, topic, time.time() - RECENT)
        except errors.KafkaError as error:
            consequence = "--backfill cannot fill the gap since the last run"
            if isinstance(error, errors.AuthorizationError):
                consequence += "; it needs the READ permission on the topic"
            say(f"cannot read topic {topic}: {explain(error).cause}. {consequence}.")
            return
    if recent:
        gap.resume(recent)


def read_recent_events(consumer: Any, topic: str, since: float) -> RecentEvents | None:
    """Read the events since then and one before them; return None if there are none."""
    partitions = [
        TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()
    ]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    firsts = consumer.offsets_for_times(dict.fromkeys(partitions, int(since * 1000)))
    for partition in partitions:
        first = firsts[partition].offset if firsts[partition] else ends[partition]
        consumer.seek(partition, max(first - 1, 0))
    events = sorted(read_to(consumer, ends), key=lambda event: event[0])
    if not events:
        return None
    tweet_ids = [key.decode(errors="replace") for _, key in events if key]
    return RecentEvents([moment for moment, _ in events], tweet_ids)


def read_to(consumer: Any, ends: dict[TopicPartition, int]) -> list[tuple[float, bytes | None]]:
    """Return the time.time() and the key of each event up to these offsets."""
    events: deque[tuple[float, bytes | None]] = deque(maxlen=MAX_SEEN_IDS)
    deadline = time.monotonic() + READ_STALL
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        batches = consumer.poll(200, max_records=5000)
        if batches:
            deadline = time.monotonic() + READ_STALL
        if time.monotonic() > deadline:
            raise errors.KafkaTimeoutError
        for batch in batches.values():
            events += [(max(event.timestamp, 1) / 1000, event.key) for event in batch]
    return list(events)


if __name__ == "__main__":
    raise SystemExit(main())
