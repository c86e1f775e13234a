"""What X says: the lines of a stream, and its reasons to refuse one."""

import enum
import json
import random
import re
import time
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from streaming.console import printable
from streaming.sources import Line, OversizedLine
from streaming.x_pacing import (
    HTTP,
    LOOPBACK,
    NO_BACKFILL,
    NO_RULES,
    RATE_LIMIT,
    USED_UP,
    Disconnected,
    Refused,
)

DAY = 86_400  # seconds; no X rate limit lasts longer
PAGE_BYTES = 1 << 14  # of a web page, to show its text

# X's problems, by title, reason, connection_issue or the end of the type
DISCONNECT = {"operational-disconnect"}
CONNECTION = {"ConnectionException", "streaming-connection"}
NOT_ENROLLED = {"client-not-enrolled", "client-forbidden", "Client Forbidden"}

# What to do about a problem with the connection
HINTS = {
    "TooManyConnections": "another instance may be running with this token; to close stale "
    "connections, call DELETE /2/connections/all in X's API",
    "RuleConfigurationIssue": "the stream has no rules; to add one, call "
    "POST /2/tweets/search/stream/rules in X's API",
    "RulesInvalidIssue": "the stream's rules are invalid; to list them, call "
    "GET /2/tweets/search/stream/rules in X's API",
}
CAPS = ("x-app-limit-24hour", "x-user-limit-24hour")  # as headers begin
# What to do about used-up credits and caps, by X's name for them; the first one counts
BUY_CREDITS = "The account has no credits left. Buy credits in X's developer console."
RAISE_CAP = (
    "The plan's post cap is used up. Wait until X resets the cap, or raise it in X's developer "
    "console."
)
USED_UP_ADVICE = {
    "SpendCapReached": "The spending limit has been reached. Raise it in X's developer console, or "
    "wait for the next billing cycle.",
    "UsageCapExceeded": RAISE_CAP,
    "usage-capped": RAISE_CAP,
    "CreditsDepleted": BUY_CREDITS,
    "credits-depleted": BUY_CREDITS,
    "credits": BUY_CREDITS,
}
# What to do about what else waiting does not help with
ADVICE = {
    400: "A parameter is invalid. Check --param.",
    401: "The bearer token is invalid. Check BEARER_TOKEN.",
    403: "The app may not use this stream. Check its status and plan in X's developer console.",
    404: "There is no stream at this URL. Check STREAM_URL.",
}
SUSPENDED = "X has suspended the app. X's developer console says why, and how to appeal."
NEEDS_APP_ONLY = (
    "This is the wrong kind of token. Set BEARER_TOKEN to the app's own bearer token, not to a "
    "user's."
)
NEEDS_PROJECT = (
    "Attach the app to a project in X's developer console, and use that app's bearer token."
)
ENTERPRISE_ONLY = (
    "X sells the sampled stream to Enterprise accounts only. Others can set STREAM_URL to the "
    "filtered stream."
)
CHECK_REDIRECT = "If you trust the new address, set STREAM_URL to it."
UNENCRYPTED = "The new address would expose the token. Check STREAM_URL and the network."


class Meaning(enum.Enum):
    """What a line of the stream means."""

    TWEET = enum.auto()
    KEEP_ALIVE = enum.auto()
    DISCONNECT = enum.auto()  # X is about to close this connection
    CONNECTION_ISSUE = enum.auto()  # as above
    NOT_JSON = enum.auto()  # this and what follows is nothing to publish
    NO_TWEET = enum.auto()
    TOO_LONG = enum.auto()


class Message(NamedTuple):
    """A line's meaning and a text: a tweet's ID, X's own words, or what the line is instead."""

    meaning: Meaning
    text: str = ""


def classify(line: Line) -> Message:
    r"""Classify a line of the stream, given without its \n."""
    if isinstance(line, OversizedLine):
        return Message(Meaning.TOO_LONG, "a line over 1 MiB")
    if not line.strip():
        return Message(Meaning.KEEP_ALIVE)
    content = parse_object(line)
    if not content:
        return Message(Meaning.NOT_JSON, f"a line that is not a JSON object: {own_words(line)}")
    data = content.get("data")
    tweet_id = data.get("id") if isinstance(data, dict) else None
    if isinstance(tweet_id, str) and tweet_id:
        return Message(Meaning.TWEET, tweet_id)
    return _classify_problem(content, own_words(line))


def _classify_problem(content: dict[str, Any], words: str) -> Message:
    """Classify a line that is a JSON object, but not a tweet."""
    names = problem_names(content)
    if names & CONNECTION:
        return Message(Meaning.CONNECTION_ISSUE, f"{words}{hint(names)}")
    if names & DISCONNECT:
        return Message(Meaning.DISCONNECT, words)
    return Message(Meaning.NO_TWEET, f"a message without a tweet ID: {words}")


class Answer(NamedTuple):
    """A response that is not a stream; `body` may be only the beginning of it."""

    url: str  # that was asked
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


def refusal(answer: Answer, asks_backfill: bool) -> Disconnected:
    """Return what an answer whose status is not 200 means, in X's own words."""
    status = answer.status
    text = f"{status} {own_words(answer.body) or printable(answer.reason)}"
    at_least = retry_after(answer.headers)
    problem = parse_object(answer.body)
    names = problem_names(problem)
    advice = used_up_advice(answer, names)
    if advice:
        text += cap_reset(answer.headers)
        return Refused(text, status, advice, USED_UP, at_least=at_least)
    if status in (400, 403) and asks_backfill:
        return Disconnected(f"{text}; trying without backfill", NO_BACKFILL, at_least=at_least)
    target = redirect_target(answer)
    if target:
        text = f"{status} {printable(answer.reason)} to {target}"
        is_safe = target.startswith("https://") or re.match(LOOPBACK, target)
        advice = CHECK_REDIRECT if is_safe else UNENCRYPTED
        return Refused(text, status, advice, limit=2, at_least=at_least)
    if status in ADVICE:
        return Refused(text, status, final_advice(answer, problem), at_least=at_least)
    return passing_error(f"{text}{hint(names)}", names, answer)


def used_up_advice(answer: Answer, names: set[str]) -> str:
    """Return what to do about used-up credits or a cap, or "" if a refusal is not about them."""
    for name, advice in USED_UP_ADVICE.items():
        if name in names:
            return advice
    if answer.status == 402:
        return BUY_CREDITS
    is_capped = any(answer.headers.get(f"{cap}-remaining") == "0" for cap in CAPS)
    return RAISE_CAP if answer.status == 429 and is_capped else ""


def final_advice(answer: Answer, problem: dict[str, Any]) -> str:
    """Return what to do about a refusal that waiting does not end: what is most specific."""
    names = problem_names(problem)
    words = " ".join(texts_in(problem, "title", "reason", "detail", "message"))
    if answer.status == 403 and "suspended" in words.lower():  # X has no name for this one
        return SUSPENDED
    if "unsupported-authentication" in names:
        return NEEDS_APP_ONLY
    if names & NOT_ENROLLED and "Project" in words:
        return NEEDS_PROJECT
    if names & NOT_ENROLLED and "/sample" in urlsplit(answer.url).path:
        return ENTERPRISE_ONLY
    return NEEDS_PROJECT if "client-not-enrolled" in names else ADVICE[answer.status]


def hint(names: set[str]) -> str:
    """Return in parentheses what to do about a problem with the connection, if X names it."""
    return next((f" ({HINTS[name]})" for name in HINTS if name in names), "")


def passing_error(text: str, names: set[str], answer: Answer) -> Disconnected:
    """Return an error that waiting may end; a connection issue is no rate limit."""
    status, headers = answer.status, answer.headers
    is_connection_issue = bool(names & CONNECTION)
    at_least = retry_after(headers)
    if status == 429 and (not is_connection_issue or headers.get("x-rate-limit-remaining") == "0"):
        at_least = max(at_least, seconds_until_reset(headers))
        return Disconnected(text, RATE_LIMIT, at_least=at_least)
    kind = "a connection issue" if is_connection_issue else f"{status // 100}xx"
    rule = NO_RULES if "RuleConfigurationIssue" in names else HTTP
    return Disconnected(text, rule, kind, at_least)


def redirect_target(answer: Answer) -> str:
    """Return the address that X redirects to, or "" if it does not."""
    location = answer.headers.get("Location", "").strip()
    if answer.status // 100 != 3 or answer.status == 304 or not location:
        return ""
    try:
        parts = urlsplit(urljoin(answer.url, location))
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]  # without a user; nor is the query shown
    is_address = host and parts.scheme in ("http", "https")
    return printable(f"{parts.scheme}://{host}{parts.path}") if is_address else ""


def cap_reset(headers: Mapping[str, str]) -> str:
    """Return in parentheses until when X's cap holds, in local time, or "" if X does not say."""
    resets = [seconds_until_reset(headers, limit) for limit in (*CAPS, "x-rate-limit")]
    seconds = max(*resets, retry_after(headers))
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    return f" (until {until})" if seconds else ""


def seconds_until_reset(headers: Mapping[str, str], limit: str = "x-rate-limit") -> float:
    """Return how long a limit of X lasts; 0 if it is not used up, or X does not say.

    Up to 5 random seconds are added, so that clients do not all return at once.
    """
    reset = headers.get(f"{limit}-reset", "")
    remaining = headers.get(f"{limit}-remaining", "0")
    if remaining != "0" or not re.fullmatch("[0-9]{1,10}", reset):
        return 0.0
    seconds = float(reset) - server_time(headers) + random.uniform(0, 5)
    return seconds if 0 < seconds < DAY else 0.0


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds in Retry-After, or those until the date in it (RFC 9110); 0 for none."""
    value = headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,10}", value):
        return float(value)
    now = server_time(headers)
    return max(parse_date(value, now) - now, 0.0)


def server_time(headers: Mapping[str, str]) -> float:
    """Return the time.time() of X's clock, or else that of this machine, which may be wrong."""
    return parse_date(headers.get("Date", ""), time.time())


def parse_date(text: str, default: float) -> float:
    """Return the time.time() of an HTTP date, or the default if it is none."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return default
    # It is always UTC, whether it says so or not (RFC 9110)
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; return an empty one for anything else.

    Tolerates what X may let through from its users: bytes that are not UTF-8, and control
    characters.
    """
    try:
        value = json.loads(text.decode("utf-8-sig", errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def problem_names(content: dict[str, Any]) -> set[str]:
    """Return X's names for the problems in a message: titles, reasons, the last parts of types.

    A connection_issue is a name, and a problem with the connection.
    """
    names = set()
    for problem in problems_in(content):
        names |= {str(problem.get(key)) for key in ("title", "reason", "connection_issue")}
        names.add(str(problem.get("type")).rstrip("/").rpartition("/")[2])
        if "connection_issue" in problem:
            names |= CONNECTION
    return names


def problems_in(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the message itself, which may be a problem, and the errors in it."""
    nested = content.get("errors")
    if not isinstance(nested, list):
        return [content]
    return [content, *(problem for problem in nested if isinstance(problem, dict))]


def texts_in(content: dict[str, Any], *names: str) -> list[str]:
    """Return these fields, unless empty, of each problem in a message."""
    return [str(each[name]) for each in problems_in(content) for name in names if each.get(name)]


def own_words(body: bytes) -> str:
    """Return X's own words: title, detail and messages, or else the text of the page."""
    parts = texts_in(parse_object(body), "title", "detail", "message")
    return printable(": ".join(parts) or page_text(body[:PAGE_BYTES].decode(errors="replace")))


def page_text(page: str) -> str:
    """Return the text of a web page, or of anything else."""
    return re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^<>]*>", " ", page)
