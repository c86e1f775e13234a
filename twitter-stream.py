"""Publish one of X's (Twitter's) streams to a Kafka topic, one event per tweet, until stopped.

examples:
  twitter-stream.py                 all tweets, with BEARER_TOKEN in .env or the environment
  twitter-stream.py -t tweets -n 100
                                    the next 100 tweets, to topic tweets
  twitter-stream.py --param tweet.fields=created_at,lang --param expansions=author_id
  twitter-stream.py --backfill      after a gap or a restart, request the missed tweets from X
  twitter-stream.py -t archive --topic-config retention.ms=-1
                                    to a new topic that keeps its events forever

The default is the sampled stream (Enterprise accounts only); STREAM_URL in .env or the environment
selects another, such as the filtered stream, https://api.x.com/2/tweets/search/stream. Each event's
value is the line as X sent it; its key is the tweet ID. The topic is created if it does not exist.

exit status:
  0    an open-ended run was stopped, or COUNT was reached
  1    X refused the request, a tweet was not delivered, Kafka could not be reached, or the topic
       could not be created
  2    invalid usage or settings, or a parameter that X rejects
  130  stopped by Ctrl-C before reaching COUNT (143: by SIGTERM, 129: by SIGHUP)
"""

import argparse
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl

from streaming.console import fail, register_secret, report_bugs
from streaming.flags import Parser, name_value_type
from streaming.stop import Stop, end_silently_at_ctrl_c
from streaming.timing import SECOND
from streaming.x_pacing import LOOPBACK

X_URL = "https://api.x.com/2/tweets/sample/stream"
BLANKS_AND_QUOTES = " \t\r\n\"'"  # docker's --env-file leaves quotes around a value
REPLAYING_PARAMS = {"start_time", "end_time", "backfill_minutes"}
REPLAYS = "would make X send the same tweets on every reconnect. Remove it; --backfill fills gaps"
TIMEOUT = 3600  # seconds that Kafka may be down; until then, tweets already read are held


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_flags(argv)
    report_bugs()
    end_silently_at_ctrl_c()
    # Imported late, so that --help and usage errors are fast and work without the packages
    from streaming.kafka_version import check_version

    check_version()
    from config import read_settings
    from streaming.kafka_client import Kafka
    from streaming.publish import publish
    from streaming.recent import read_recent_events
    from streaming.topics import ensure_topic
    from streaming.x_gaps import Gaps
    from streaming.x_http import XStream
    from streaming.x_source import TweetSource

    settings = read_settings()
    token, url = bearer_token(settings.bearer_token), stream_url(settings.stream_url)
    second = SECOND if re.match(LOOPBACK, url) else 1.0  # the real X's seconds stay as they are
    stream = XStream(url, token, options.params, second)
    kafka = Kafka(settings.kafka, options.brokers, options.verbose)
    topic = ensure_topic(kafka, options.topic, options.partitions, dict(options.topic_config))
    gaps = Gaps(options.backfill, second)
    if options.backfill:
        gaps.resume(*read_recent_events(kafka, options.topic))
    stop = Stop()
    source = TweetSource(stream, gaps, second, stop)
    return publish(source, kafka, topic, stop, count=options.count, timeout=TIMEOUT)


def bearer_token(text: str) -> str:
    """Return the token without whitespace, quotes or the word Bearer around it.

    Exit if it is unusable.
    """
    token = text.strip(BLANKS_AND_QUOTES)
    token = re.sub(r"^Bearer(\s+|$)", "", token).strip(BLANKS_AND_QUOTES)
    if not re.fullmatch("[!-~]+", token):
        fail(
            "BEARER_TOKEN is missing or malformed. Copy your X app's bearer token to .env or the "
            "environment.",
            status=2,
        )
    register_secret(token)
    return token


def stream_url(text: str) -> str:
    """Return the stream's URL, X's own by default.

    Exit if it would expose the token, or make X repeat tweets.
    """
    url = text.strip(BLANKS_AND_QUOTES) or X_URL
    url = re.sub("^https?://", lambda scheme: scheme[0].lower(), url, flags=re.IGNORECASE)
    if not (url.startswith("https://") or re.match(LOOPBACK, url)):
        fail(
            "STREAM_URL must start with https:// to keep the token secret "
            "(http:// is for this machine only)",
            status=2,
        )
    for name, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True):
        if name in REPLAYING_PARAMS:
            fail(f"{name} in STREAM_URL {REPLAYS}.", status=2)
    return url


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_pairs("--param", "params", "parameter to add to the request to X", name_value_type)
    parser.add_argument(
        "--backfill",
        action="store_true",
        help="after a gap or a restart, request the missed tweets (up to 5 minutes' worth)",
    )
    parser.add_topic_flags()
    options = parser.parse_args(argv)
    for name, _ in options.params:
        if name in REPLAYING_PARAMS:
            parser.error(f"--param {name} {REPLAYS}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
