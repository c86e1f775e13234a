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

from streaming.console import printable
from streaming.sources import Line, OversizedLine
from streaming.x_pacing import HTTP, NO_BACKFILL, RATE_LIMIT, Disconnected, Refused

DAY = 86_400  # seconds; no X rate limit lasts longer
PAGE_BYTES = 1 << 14  # of a web page, to show its text

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


class Meaning(enum.Enum):
    """What a line of the stream means."""

    TWEET = enum.auto()
    KEEP_ALIVE = enum.auto()
    DISCONNECT = enum.auto()  # X is about to close this connection
    TOO_MANY_CONNECTIONS = enum.auto()  # as above
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
    if names & TOO_MANY_CONNECTIONS:
        return Message(Meaning.TOO_MANY_CONNECTIONS, f"{words} ({FREE_CONNECTIONS})")
    if names & DISCONNECT:
        return Message(Meaning.DISCONNECT, words)
    return Message(Meaning.NO_TWEET, f"a message without a tweet ID: {words}")


class Answer(NamedTuple):
    """A response that is not a stream; `body` may be only the beginning of it."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


def refusal(answer: Answer, asks_backfill: bool) -> Disconnected:
    """Return what an answer whose status is not 200 means, in X's own words."""
    status, reason, headers, body = answer
    text = f"{status} {own_words(body) or printable(reason)}"
    names = problem_names(parse_object(body))
    if names & NO_CREDITS or status == 402:
        return Refused(text, 402, is_certain=True)
    if names & USED_UP:
        return Refused(text, 429, is_certain=True)
    if status in (400, 403) and asks_backfill:
        return Disconnected(f"{text}; trying without backfill", NO_BACKFILL)
    if status in REFUSALS and status != 429:
        return Refused(text, status, is_certain=False)
    has_connects_left = headers.get("x-rate-limit-remaining") != "0"
    if names & TOO_MANY_CONNECTIONS and has_connects_left:
        return Disconnected(f"{text} ({FREE_CONNECTIONS})", HTTP, "too many connections")
    if status == 429:
        return Disconnected(text, RATE_LIMIT, at_least=seconds_until_reset(headers))
    return Disconnected(text, HTTP, f"{status // 100}xx")


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
    """Return the titles of the problems in a message, and the last parts of their types.

    A connection_issue counts as a problem with the connections.
    """
    names = set()
    for problem in problems_in(content):
        names.add(str(problem.get("title")))
        names.add(str(problem.get("type")).rstrip("/").rpartition("/")[2])
        if "connection_issue" in problem:
            names |= TOO_MANY_CONNECTIONS
    return names


def problems_in(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the message itself, which may be a problem, and the errors in it."""
    nested = content.get("errors")
    if not isinstance(nested, list):
        return [content]
    return [content, *(problem for problem in nested if isinstance(problem, dict))]


def own_words(body: bytes) -> str:
    """Return X's own words: title, detail and messages, or else the text of the page."""
    parts = [
        str(problem[name])
        for problem in problems_in(parse_object(body))
        for name in ("title", "detail", "message")
        if problem.get(name)
    ]
    return printable(": ".join(parts) or page_text(body[:PAGE_BYTES].decode(errors="replace")))


def page_text(page: str) -> str:
    """Return the text of a web page, or of anything else."""
    return re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^<>]*>", " ", page)
