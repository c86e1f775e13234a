"""Publish events to a Kafka topic: lines from files or standard input, or numbered sample events.

examples:
  producer.py                         one sample event per second until Ctrl-C, if standard input is
                                      a terminal, closed or the null device
  producer.py -n 5 --interval 0       five sample events at once
  producer.py access.log              one event per line of the file
  tail -f access.log | producer.py    each line as it arrives
  producer.py -t users -K : users.txt --topic-config cleanup.policy=compact
                                      key:value lines to a compacted topic

The topic is created if it does not exist. The broker is localhost:9092 unless -b or
KAFKA_BOOTSTRAP_SERVERS, in .env or the environment, says otherwise. If a run is stopped or fails,
its last message names the line to continue from. Continuing after a failure may duplicate some
events.

exit status:
  0    all events were delivered, or an open-ended run was stopped
  1    an event was not delivered, Kafka could not be reached, or the topic could not be created
  2    invalid usage or settings, or an unreadable file
  130  stopped by Ctrl-C before the end of the input or COUNT (143: by SIGTERM, 129: by SIGHUP)
"""

import argparse
import os
import stat
import sys
from collections.abc import Sequence

from streaming.console import report_bugs
from streaming.flags import Parser, header_type, seconds_type, separator_type
from streaming.sources import FileSource, LineFormat, SampleSource, Source, readable_files
from streaming.stop import Stop, end_silently_at_ctrl_c


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
    from streaming.topics import ensure_topic

    kafka = Kafka(read_settings().kafka, options.brokers, options.verbose)
    paths = readable_files(options.files)
    if options.files and not paths:
        return 2
    topic = ensure_topic(kafka, options.topic, options.partitions, dict(options.topic_config))
    stop = Stop()
    source: Source = SampleSource(options.interval, stop)
    if paths:
        line_format = LineFormat(options.separator, options.tombstones, options.strip_cr)
        source = FileSource(paths, line_format, topic.max_bytes, stop)
    status = publish(source, kafka, topic, stop, headers=options.headers, count=options.count)
    has_unreadable = source.has_failed or len(paths) < len(options.files)
    return status or (2 if has_unreadable else 0)


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_line_flags(parser)
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=seconds_type,
        default=1.0,
        help="seconds between sample events (default: 1)",
    )
    parser.add_pairs("-H", "headers", "add a header to every event", header_type)
    parser.add_topic_flags()
    options = parser.parse_args(argv)
    options.files = options.files or default_files()
    check_flags(parser, options)
    return options


def add_line_flags(parser: Parser) -> None:
    """Add the flags for input files, and for splitting their lines."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="file to publish line by line; - means standard input",
    )
    parser.add_argument(
        "-K",
        dest="separator",
        metavar="SEP",
        type=separator_type,
        help="split each line into key and value at the first SEP, "
        r"which can contain the escapes \t, \n, \0, \xHH and \\",
    )
    parser.add_argument(
        "-Z",
        dest="tombstones",
        action="store_true",
        help="with -K, send an empty value as null (a tombstone)",
    )
    parser.add_argument(
        "--strip-cr",
        action="store_true",
        help=r"remove the \r that Windows programs put at the end of a line",
    )


def check_flags(parser: Parser, options: argparse.Namespace) -> None:
    """Exit if a flag needs lines, and there are none, or needs another flag."""
    if options.tombstones and options.separator is None:
        parser.error("-Z needs -K")
    if options.separator is not None and not options.files:
        parser.error("-K needs lines to split: name a FILE, or pipe them in")
    if options.strip_cr and not options.files:
        parser.error("--strip-cr needs lines: name a FILE, or pipe them in")


def default_files() -> list[str]:
    """Return [] if standard input is a terminal, closed or the null device; otherwise ["-"]."""
    return [] if sys.stdin is None or os.isatty(0) or is_null_device() else ["-"]


def is_null_device() -> bool:
    """Return whether standard input is the null device; on Windows, isatty() says so."""
    if sys.platform == "win32":
        return False
    status = os.fstat(0)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev


if __name__ == "__main__":
    raise SystemExit(main())
