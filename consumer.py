"""Print the events in a Kafka topic, one per line: existing ones, then new ones as they arrive.

examples:
  consumer.py                     all events in topic sample, then new ones, until Ctrl-C
  consumer.py -e                  existing events only
  consumer.py --latest -n 10      the next ten events
  consumer.py --last 10 -e        the last ten events of each partition
  consumer.py --since 2h          events from the last two hours, then new ones
  consumer.py -t users -K :       key:value lines
  consumer.py --json | jq .value  one JSON object per event
  consumer.py -g readers          share the partitions within a group; resume where it left off
  consumer.py --list              all topics, each with its partitions and events
  consumer.py --list -t users     the topic's partitions; with -g, also how far the group has read

If the topic does not exist yet, consumer.py waits for it, unless -e is given. --last and --list
count offsets; compaction and transactions leave some offsets without an event. The broker is
localhost:9092 unless -b or KAFKA_BOOTSTRAP_SERVERS, in .env or the environment, says otherwise.

exit status:
  0    the run finished, an open-ended run was stopped, or the reader of the output went away
  1    Kafka could not be reached, the topic could not be read, or the output could not be written
  2    invalid usage or settings
  130  stopped by Ctrl-C before -n or -e was satisfied (143: by SIGTERM, 129: by SIGHUP)
"""

import argparse
from collections.abc import Sequence

from streaming.console import report_bugs
from streaming.flags import Parser, count_type, separator_type, time_type
from streaming.stop import Stop, end_silently_at_ctrl_c


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_flags(argv)
    report_bugs()
    end_silently_at_ctrl_c()
    # Imported late, so that --help and usage errors are fast and work without the packages
    from streaming.kafka_version import check_version

    check_version()
    from config import read_settings
    from streaming.follow import Follower
    from streaming.kafka_client import Kafka
    from streaming.listing import list_lines
    from streaming.output import Output

    output = Output(options.separator, options.json, in_pieces=bool(options.group))
    kafka = Kafka(read_settings().kafka, options.brokers, options.verbose)
    if options.list:
        output.write_lines(list_lines(kafka, options.topic, options.group, options.json))
        return 0
    stop = Stop()
    with Follower(kafka, options.topic, options.group, stop) as follower:
        follower.start_at(latest=options.latest, last=options.last, since=options.since)
        if options.stop_at_end:
            follower.stop_at_current_ends()
        for batches in follower.read(options.count):
            written = output.write(batches, follower.keep_up)
            if output.is_reader_gone():
                return 0  # without another commit: nobody knows how much it has read
            follower.commit(written)
        return stop.exit_status if follower.is_unfinished else 0


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "-g",
        dest="group",
        metavar="GROUP",
        help="join consumer group GROUP: share the partitions, commit what is printed",
    )
    parser.add_argument(
        "-e",
        dest="stop_at_end",
        action="store_true",
        help="stop at the end each partition had at startup",
    )
    add_start_flags(parser)
    add_output_flags(parser)
    default_topic = parser.get_default("topic")
    parser.set_defaults(topic=None)  # --list without -t means all topics
    options = parser.parse_args(argv)
    if options.list:
        check_list_flags(parser, options)
    else:
        options.topic = options.topic or default_topic
    return options


def add_start_flags(parser: Parser) -> None:
    """Add the flags that say where to start; only one of them can be given."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--latest",
        action="store_true",
        help="skip existing events; a group with committed offsets resumes from them",
    )
    start.add_argument(
        "--last",
        metavar="N",
        type=count_type,
        help="start at the last N offsets of each partition, which hold at most N events "
        "(a group resumes, as with --latest)",
    )
    start.add_argument(
        "--since",
        metavar="TIME",
        type=time_type,
        help="start at the first event at or after TIME: 90s, 10m, 2h or 3d ago, or a date such as "
        "2026-11-25 or 2026-11-25T14:00 (a group resumes, as with --latest)",
    )


def add_output_flags(parser: Parser) -> None:
    parser.add_argument(
        "-K",
        dest="separator",
        metavar="SEP",
        type=separator_type,
        help="print each event as key, SEP, value; "
        r"SEP can contain the escapes \t, \n, \0, \xHH and \\",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per event")
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the topics, or the partitions of -t TOPIC; with -g, the group's lag too",
    )


def check_list_flags(parser: Parser, options: argparse.Namespace) -> None:
    """Exit if a flag about events is combined with --list."""
    event_flags = {
        "-n": options.count,
        "-e": options.stop_at_end,
        "--latest": options.latest,
        "--last": options.last,
        "--since": options.since is not None,
        "-K": options.separator,
    }
    for flag, value in event_flags.items():
        if value:
            parser.error(f"argument {flag}: not allowed with argument --list")


if __name__ == "__main__":
    raise SystemExit(main())
