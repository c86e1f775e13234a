"""The pages are right: their commands run as shown, and their texts are compared."""

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from importlib.metadata import Distribution, distribution
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import pytest
from kafka import KafkaConsumer
from packaging.requirements import Requirement

from broker import ReservedPort
from config import read_settings
from conftest import (
    GUARD,
    REPOSITORY,
    SCRIPTS,
    Running,
    Scripts,
    copy_project,
    make_environment,
    read_summary,
    wait_until,
)
from streaming import delivery, kafka_errors, recent, x_gaps, x_http, x_pacing
from streaming.kafka_client import Kafka
from streaming.records import encode, encode_headers
from streaming.stop import Stop
from streaming.x_source import Counts
from x_api import Step, XApi, tweet

README = (REPOSITORY / "README.md").read_text("utf-8")
NAMES = ["README.md", *re.findall(r"^\| \[(docs/\w+\.md)\]", README, re.MULTILINE)]
# In the order of its table
PAGES = {name: (REPOSITORY / name).read_text("utf-8") for name in NAMES}
TEXT = "\n".join(PAGES.values())
# Comments above blocks that are to run beside what follows, and how often
BESIDE = {"another terminal": 1, "two more terminals": 2}
# A comment above what one of those terminals shows next
TERMINAL = "in the terminal of "
# Comments that say why a block is not run
NOT_RUN = ["pip does not run under Wine", "PowerShell", "Docker", "systemd", "the download"]
NOT_RUN += ["it is run with a longer file", "it is what runs this page", "the real X"]
# Comments above those that need a program which may be missing
IF_INSTALLED = {f"run where {program} is installed": program for program in ("curl", "jq")}
LANGUAGES = ("sh", "console", "text", "bat", "mermaid", "log", "dotenv")  # unless not run
RECIPES, TROUBLESHOOTING = "docs/recipes.md", "docs/troubleshooting.md"
NO_CONNECTION = "cannot connect to Kafka"  # which takes a while
BATCH_HEAD = 61  # bytes, by Kafka's format
MARK = "--- ended with status"
# What must not come from this machine: Python's packages and the user's settings
FOREIGN = re.compile("KAFKA_|BEARER_|STREAM_|MAKE|MFLAGS|VIRTUAL_ENV|PYTEST|PYTHON|PIP_|LC_")
PATIENCE = 2  # STREAM_TEST_PATIENCE for the pages, where four commands cannot connect
# What the scripts may say in between when the machine is slow
IN_BETWEEN = re.compile(
    r"^\S+\.py: (?:waiting for Kafka: .*|Kafka is back|group \S+ is rebalancing; .*"
    r"|\d+ (?:event|tweet)s?, \d+/s.*)\n",
    re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block: the comment above it, the language, the text."""

    note: str
    language: str
    text: str

    @property
    def why_not_run(self) -> str:
        """The reason that the comment gives for not running it; "" if it is run."""
        _, _, reason = self.note.partition("not run: ")
        return reason

    def commands(self) -> Iterator[tuple[str, str | None]]:
        """The commands, each with the output that follows it; None in a block that shows none."""
        if self.language == "sh":
            for line in self.text.splitlines():
                yield line, None
        else:
            for each in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
                command, _, output = each.partition("\n")
                yield command, output

    @property
    def terminal(self) -> str:
        """The command whose terminal shows this next; "" if it is none."""
        return self.note.removeprefix(TERMINAL) if self.note.startswith(TERMINAL) else ""


def blocks(text: str = TEXT) -> list[Block]:
    pattern = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in pattern.findall(text)]


def texts(language: str) -> list[str]:
    return [block.text for block in blocks() if block.language == language]


def last_section_first(text: str) -> str:
    """The text before the first heading of a section, then the sections, the last one first."""
    opening, *sections = re.split(r"^(?=###? )", text, flags=re.MULTILINE)
    return "".join([opening, *reversed(sections)])


def matches(printed: str, quoted: str | None) -> bool:
    """Is it what the page quotes? A … stands for any text, or on its own for any lines.

    Blanks at the beginning of a line do not count. Where nothing is quoted, all is well.
    """
    if quoted is None:
        return True
    printed, quoted = (re.sub(r"(?m)^[ \t]+", "", text) for text in (printed, quoted))
    escaped = re.escape(quoted).replace("\\\n", "\n")
    pattern = re.sub("^…\n", "(?:.*\n)*?", escaped, flags=re.MULTILINE)
    return bool(re.fullmatch(pattern.replace("…", ".*"), printed))


class Shell:
    """A Bash shell in a folder; its commands get an empty standard input."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        streams = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.bash = Running(
            ["bash"], {"cwd": folder, "env": env, "start_new_session": True, **streams}
        )

    def type(self, command: str) -> None:
        self.quoted = ""
        self.start = len(self.bash.out)
        self.bash.send(f"{{ {command}\n}} </dev/null; echo '{MARK}' $?\n".encode())

    def printed(self) -> str:
        """What the newest command has printed so far."""
        printed = bytes(self.bash.out[self.start :]).decode(errors="replace")
        return IN_BETWEEN.sub("", printed.partition(MARK)[0])

    def run(self, command: str) -> tuple[str, int]:
        """Run the command; return what it prints, and its status."""
        self.type(command)
        ended = re.compile(rf"{MARK} (\d+)\n".encode())
        self.bash.wait_for(lambda it: ended.search(it.out, self.start))
        return self.printed(), int(ended.findall(self.bash.out, self.start)[0])

    def wait_for(self, quoted: str) -> None:
        """Wait until the newest command has printed what the page quotes next."""
        self.quoted += quoted
        self.bash.wait_for(lambda _: matches(self.printed(), self.quoted))

    def end(self) -> None:
        """Press Ctrl-C and end its input; after that, none of its processes run."""
        group = self.bash.process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGINT)
        try:
            self.bash.close_input()
            self.bash.process.wait(GUARD)
            wait_until(lambda: not exists(group))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def exists(group: int) -> bool:
    """Does a process of that group exist?"""
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


@pytest.mark.long
def test_the_pages_run_as_they_are_written(tmp_path: Path) -> None:
    """From make demo to the last error, except for what is marked as not run.

    In a folder with a difficult name, and offline; pip finds the tests' own packages. Apart from
    README.md, a page gets a new terminal, and its sections are run from the last one to the first,
    so that each has to stand alone.
    """
    folder, temporary = tmp_path / "Ereignisse für Kafka", tmp_path / "für Kurzes"
    copy_project(folder)
    make_environment(folder)
    temporary.mkdir()
    with ReservedPort() as kafka, ReservedPort() as x, ReservedPort() as nobody:
        env = environment(temporary, python3(tmp_path / "bin"), str(kafka))
        orders = {name: last_section_first(text) for name, text in PAGES.items()}
        orders["README.md"] = README
        pages = {name: commands(text, kafka, x, nobody) for name, text in orders.items()}
        with ExitStack() as shells:
            reader = Reader(folder, env, shells)
            for name, page in pages.items():
                print(f"# {name}")
                for block in page:
                    reader.run(block, may_fail=name == TROUBLESHOOTING)
                if name == "README.md":  # Kafka runs, and the packages are installed
                    ahead = [each for each in pages[TROUBLESHOOTING] if NO_CONNECTION in each.text]
                    reader.run_ahead(ahead)
                reader.turn_page()
    assert list(temporary.iterdir()) == []


def commands(text: str, kafka: int, x: int, nobody: int) -> list[Block]:
    """The blocks of a page that are run, with these ports instead of 9092, 8080 and 9."""
    text = text.replace("9092", str(kafka)).replace("8080", str(x))
    text = re.sub(r"\blocalhost:9\b", f"localhost:{nobody}", text)
    installed = [note for note, program in IF_INSTALLED.items() if shutil.which(program)]
    notes = ("", *BESIDE, *installed)
    return [
        block
        for block in blocks(text)
        if block.terminal or (block.language in ("sh", "console") and block.note in notes)
    ]


def environment(temporary: Path, programs: Path, port: str) -> dict[str, str]:
    """A user's environment, with these programs and a Kafka at that port."""
    env = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    return {
        **env,
        "PATH": f"{programs}:{env['PATH']}",
        "TMPDIR": str(temporary),
        "LC_ALL": "C",
        "ARGS": f"--port {port}",
        "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}",
        "STREAM_TEST_PATIENCE": str(PATIENCE),
        "PIP_NO_INDEX": "1",
        "RES_OPTIONS": "timeout:1 attempts:1",  # where no resolver answers
    }


def python3(folder: Path) -> Path:
    """Make a folder with a python3 that is the tests' Python, without its virtual environment."""
    folder.mkdir()
    program = folder / "python3"
    python = shlex.quote(os.path.realpath(sys.executable))
    program.write_bytes(os.fsencode(f'#!/bin/sh\nexec {python} "$@"\n'))
    program.chmod(0o755)
    return folder


class Reader:
    """Someone who types the commands, some of them in other terminals."""

    def __init__(self, folder: Path, env: dict[str, str], shells: ExitStack) -> None:
        self.folder, self.env, self.shells = folder, env, shells
        self.ahead: dict[Block, Future[None]] = {}
        self.terminals: dict[str, Shell] = {}  # by the command that is running there
        self.pool = shells.enter_context(ThreadPoolExecutor())
        self.main = self.open_shell()

    def open_shell(self) -> Shell:
        shell = Shell(self.folder, self.env)
        self.shells.callback(shell.end)
        return shell

    def open_active_shell(self) -> Shell:
        shell = self.open_shell()
        shell.run(". .venv/bin/activate")
        return shell

    def turn_page(self) -> None:
        """Go on in a new terminal."""
        self.main = self.open_active_shell()

    def run(self, block: Block, may_fail: bool) -> None:
        if block in self.ahead:
            self.ahead[block].result()
        elif block.terminal:
            self.terminals[block.terminal].wait_for(block.text)
        elif block.note in BESIDE:
            for command, quoted in list(block.commands()) * BESIDE[block.note]:
                print(f"$ {command}", flush=True)
                shell = self.terminals[command] = self.open_active_shell()
                shell.type(command)
                shell.wait_for(quoted or "")
        else:
            run_in(self.main, block, may_fail)

    def run_ahead(self, blocks: Iterable[Block]) -> None:
        """Run blocks that may fail, side by side; `run` then waits for the result."""
        for block in blocks:
            shell = self.open_active_shell()
            self.ahead[block] = self.pool.submit(run_in, shell, block, may_fail=True)


def run_in(shell: Shell, block: Block, may_fail: bool) -> None:
    """Run a block's commands, and compare what they print."""
    for command, quoted in block.commands():
        print(f"$ {command}", flush=True)
        printed, status = shell.run(command)
        assert matches(printed, quoted), f"{command}\n{printed}\nis not on the page:\n{quoted}"
        assert "Traceback" not in printed
        assert status == 0 or may_fail, command


def plain(output: str) -> str:
    """The output without what differs from run to run: numbers and names of temporary folders."""
    return re.sub(r"/\S*/tmp\w+|\d+", "N", output)


def test_each_block_is_run_or_says_why_not() -> None:
    assert len(blocks()) == TEXT.count("```") / 2
    for block in blocks():
        if block.why_not_run:
            assert block.why_not_run in NOT_RUN, block.text
        else:
            assert block.language in LANGUAGES, block.text
            assert block.terminal or block.note in ("", *BESIDE, *IF_INSTALLED), block.text
        assert bool(block.terminal) == (block.language == "text"), block.text
        prompts = [line.startswith("$ ") for line in block.text.splitlines()]
        if block.language == "console":  # prompts are where output is shown
            assert prompts[0], block.text
            assert not all(prompts), block.text
        else:
            assert not any(prompts), block.text


def test_each_page_is_in_the_table_of_contents_and_the_readme_is_short() -> None:
    assert set(NAMES[1:]) == {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")}
    assert README.count("\n") <= 200


def test_the_recipes_have_the_commands_of_the_uses() -> None:
    [uses] = re.findall(r"^## What it is used for\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    run = {line for block in blocks(PAGES[RECIPES]) for line, _ in block.commands()}
    commands = re.findall(r"`(.+ .+)`", uses)
    assert len(commands) == 6
    for command in commands:
        assert any(command in line for line in run), command


def test_the_links_lead_somewhere() -> None:
    links = re.compile(r"\]\((?!https?:)([^)]*)\)")
    for name, target in [(page, each) for page in NAMES for each in links.findall(PAGES[page])]:
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_flags_are_explained_in_the_words_of_help(lone_scripts: Scripts) -> None:
    """Each flag of each script, as a list item somewhere."""
    explained = {
        (flag, " ".join(words.split()))
        for flag, words in re.findall(r"^- `(-.+?|FILE)`: (.*(?:\n  .*)*)", TEXT, re.MULTILINE)
    }
    assert explained == set().union(*(options_in_help(lone_scripts, name) for name in SCRIPTS))


def options_in_help(scripts: Scripts, name: str) -> set[tuple[str, str]]:
    """Each option with its value's name, and what it does."""
    text = scripts.run(name, "--help", env={"COLUMNS": "1000"}).stdout.decode()
    arguments = re.split(r"^(?:positional arguments|options):\n", text, flags=re.MULTILINE)[1:]
    found = re.findall(r"^  (\S.*?)(?:  +|\n +)(\S.*)$", "".join(arguments), re.MULTILINE)
    return {(flag, words) for flag, words in found if flag != "-h, --help"}


def test_the_log_looks_like_the_real_one(scripts: Scripts) -> None:
    """Except that a slow machine reports progress more often, and a gap."""
    with XApi([Step(tweets=50), Step()], rate=50) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        env |= {"STREAM_TEST_SECOND": "0.02", "STREAM_TEST_PATIENCE": "100"}
        running = scripts.start("twitter-stream", "-t", "tweets", env=env)
        running.wait_for(
            lambda it: re.search(rb"/s \(1 reconnect, 0 skipped(, 1 gap)?\)\n", it.err)
        )
        said = running.end(signal.SIGTERM).stderr.decode().replace(", 1 gap", "")
    lines = [line for line in said.splitlines(keepends=True) if "no tweets" not in line]
    progress = [line for line in lines if " tweets, " in line]
    *events, summary = [line for line in lines if line not in progress]
    report = next(line for line in progress if line.endswith("/s (1 reconnect, 0 skipped)\n"))
    assert plain("".join([*events, report, summary])) == plain(texts("log")[2])


def test_the_report_of_a_gap_looks_like_the_real_one() -> None:
    now = datetime(2026, 11, 25, 14, 2, 10).timestamp()
    gaps = x_gaps.Gaps(True, 1.0, lambda: now)
    gaps.begin_connection()
    gaps.data_received(is_tweet=True)
    now += 27 * 60 + 21
    gaps.begin_connection()
    report = gaps.data_received(is_tweet=True)
    assert report
    counts = Counts(reconnects=9, duplicates=17345, gaps=1)
    summary = f"published 98213 tweets to tweets{counts.text()}"
    assert texts("log")[1] == f"twitter-stream.py: {report.text}\ntwitter-stream.py: {summary}\n"


def test_the_summary_of_a_stopped_run_names_the_next_line() -> None:
    """In the words that the tests check in real summaries."""
    summary = read_summary(texts("log")[0].encode())
    assert summary.next_line == summary.published + 1


def test_python_skips_the_lines_that_kafka_has(tmp_path: Path) -> None:
    """With the command for Windows; it skips the lines before the next one to publish."""
    [code] = re.findall(r'python -c "(.*)" \| \S+python producer.py', TEXT)
    (tmp_path / "big.log").write_bytes(b"".join(b"%d\r\n" % number for number in range(48213)))
    skipped = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path)
    assert skipped == b"48210\r\n48211\r\n48212\r\n"


@pytest.mark.parametrize("text", texts("dotenv"))
def test_the_lines_for_env_are_settings(configure: Callable[[str], Path], text: str) -> None:
    """All are known, and only the certificate authority's file does not exist."""
    configure(re.sub("(?m)^KAFKA_SSL_CAFILE.*\n", "", text))
    kafka = Kafka(read_settings().kafka, None, verbose=False)
    assert kafka.options(KafkaConsumer)["security_protocol"] == "SASL_SSL"


def test_settings_and_statuses_are_all_explained() -> None:
    example = (REPOSITORY / ".env.example").read_text("utf-8")
    for name in re.findall(r"^#(\w+)=", example, re.MULTILINE):
        assert f"`{name}`" in README, name
    table = README[README.index("## Exit statuses") :]
    statuses = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert statuses == ["0", "1", "2", "130, 143, 129"]


def test_each_promise_names_tests_that_exist() -> None:
    [table] = re.findall(r"^\| promise .*\n(?:\|.*\n)+", PAGES["docs/guarantees.md"], re.MULTILINE)
    for row in table.splitlines()[2:]:
        _, _, shown_by, _ = row.split("|")
        for part in shown_by.split(";"):
            file, _, names = part.strip().partition(": ")
            source = (REPOSITORY / "tests" / file).read_text("utf-8")
            for name in names.split(", "):
                assert f"def {name}(" in source, row


def test_each_meaning_of_an_error_has_its_remedy() -> None:
    meanings = [*kafka_errors.BY_TYPE.values(), *kafka_errors.BY_WORDS.values()]
    text = " ".join(TEXT.split())
    causes = [each.cause.partition("{}")[0].strip(": ") for each in meanings]
    assert [cause for cause in causes if cause not in text] == []


CODECS = """
import crc32c
from kafka import codec
for name in ("gzip", "snappy", "lz4", "zstd"):
    encode, decode = getattr(codec, f"{name}_encode"), getattr(codec, f"{name}_decode")
    assert decode(encode(b"event")) == b"event", name
"""


def test_the_packages_of_install_are_enough(lone_scripts: Scripts, tmp_path: Path) -> None:
    """In Pythons without site-packages, with links to what pip would install."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for found in required((REPOSITORY / "requirements.txt").read_text().splitlines()):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            with suppress(FileExistsError):
                (packages / name).symlink_to(str(found.locate_file(name)))
    modules = ["delivery", "follow", "listing", "output", "recent", "topics", "x_source"]
    options = {"cwd": lone_scripts.folder, "env": {"PYTHONPATH": str(packages)}}
    program = f"{CODECS}import config, streaming.{', streaming.'.join(modules)}"
    done = Running([sys.executable, "-S", "-c", program], options).end()
    assert (done.returncode, done.stderr) == (0, b"")


def required(lines: Iterable[str], extra: str = "") -> Iterator[Distribution]:
    """The packages that these lines of a requirements.txt ask for, and those that they need."""
    for requirement in map(Requirement, lines):
        if not requirement.marker or requirement.marker.evaluate({"extra": extra}):
            found = distribution(requirement.name)
            yield found
            for each in ("", *requirement.extras):
                yield from required(found.requires or (), each)


WORDS = {3: "three", 5: "five", 6: "six", 10: "ten"}


def test_the_numbers_are_the_real_ones() -> None:
    assert importlib.import_module("twitter-stream").TIMEOUT == 3600
    connects, minutes = x_pacing.MAX_CONNECTS, x_pacing.CONNECT_WINDOW // 60
    network, http = x_pacing.NETWORK, x_pacing.HTTP
    mebibytes, window = x_http.MAX_LINE_BYTES >> 20, x_pacing.X_WINDOW // 60
    text = " ".join(TEXT.split())
    for quoted in (
        f"up to {network.longest} s after network errors, {http.longest} s after HTTP errors",
        f"and {window} minutes after a rate limit or when X asks for a longer wait",
        f"the script retries at least every {x_pacing.NO_RULES.longest} s",
        f"no complete line for {x_pacing.SILENCE} s",
        f"Every gap of more than {x_pacing.SILENCE} s",
        f"does not resend anything older than {WORDS[x_gaps.MAX_BACKFILL_MINUTES]} minutes",
        f"the topic's last {WORDS[recent.RECENT // 60]} minutes",
        f"after {WORDS[x_gaps.MAX_BACKFILL_REFUSALS]} refusals in a row",
        f"it takes {WORDS[x_pacing.MAX_REFUSALS]} in a row",
        f"over {mebibytes} MiB",
        f"more than {connects} times in {minutes} minutes, to stay within X's limit of 50 in 15",
        f"{delivery.MAX_IN_FLIGHT_BYTES >> 20} MB of events or tweets wait in memory",
        "twitter-stream.py for an hour",
        f"exits within {Stop.LIMIT:.0f} seconds",
    ):
        assert quoted in text


def test_the_disk_that_an_archive_takes() -> None:
    """At X's pace, each tweet is a batch of its own."""
    tweets = [tweet(number, ("created_at", "lang")) for number in range(1000)]
    parts = {"timestamp_delta": 0, "first_offset": 0, "room": 0}
    key, headers = b"1990000000000000000", encode_headers([])
    events = [encode([key], [each], headers, **parts).records for each in tweets]
    size = round(mean(map(len, tweets)), -1)
    on_disk = round(mean(map(len, events)) + BATCH_HEAD, -1)
    text = " ".join(PAGES["docs/twitter.md"].split())
    quoted = f"A million of these tweets, of {size:.0f} bytes each, take {on_disk:.0f} MB on"
    assert quoted in text


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^\$ )make ([a-z]+)", TEXT, re.MULTILINE))
    assert {"demo", "test", "stress"} <= named <= targets


def test_the_table_of_the_bench_has_all_that_it_measures() -> None:
    bench = importlib.import_module("bench")
    columns = list(bench.table_columns(has_before=False))
    _, head, after = PAGES["docs/speed.md"].partition(f"{bench.table_head(columns)}\n")
    assert head
    for work in bench.WORKS.values():
        row, _, after = after.partition("\n")
        title, *cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert title == work.title_for(work.events)
        for cell, column in zip(cells, columns, strict=True):
            assert bool(cell) == any(name in work.commands for name in column), row
    assert after.startswith("\n"), "the table has more rows"
