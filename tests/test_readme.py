"""The pages are right: their commands run as shown, and their texts are compared."""

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import date
from pathlib import Path
from typing import NamedTuple

from broker import free_ports
from x_api import Step, XApi

import pytest
from conftest import REPOSITORY, SCRIPTS, SUMMARY, Running, Scripts, copy_project, wait_until
from picture import draw

README = (REPOSITORY / "README.md").read_text()
NAMES = ["README.md", *re.findall(r"^\| \[(docs/\w+\.md)\]", README, re.MULTILINE)]
PAGES = {name: (REPOSITORY / name).read_text() for name in NAMES}  # in the order of its table
TEXT = "\n".join(PAGES.values())
BESIDE = {
    "another terminal": 1,
    "two more terminals": 2,
}  # comments above blocks that are to run beside what follows
NOT_RUN = {
    "pip does not run under Wine",
    "PowerShell",
    "Docker",
    "systemd",
    "the download",
    "it is run with a longer file",
    "it is what runs this page",
}  # or comments that say why a block is not run
MARK = "--- ended with status"
# What must not come from this machine: Python's packages and the user's settings
FOREIGN = re.compile("KAFKA_|BEARER_|STREAM_|MAKE|MFLAGS|VIRTUAL_ENV|PYTEST|PYTHON")


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

    def commands(self) -> Iterator[tuple[str, str]]:
        """The commands of a console block, each with the output that follows it."""
        for each in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = each.partition("\n")
            yield command, output


def blocks(text: str = TEXT) -> list[Block]:
    found = re.findall(
        r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    return [Block(*each) for each in found]


def texts(language: str) -> list[str]:
    return [block.text for block in blocks() if block.language == language]


def matches(printed: str, quoted: str) -> bool:
    """Is it what the page quotes? A … stands for any text, or on its own for any lines.

    Blanks at the beginning of a line do not count.
    """
    printed, quoted = (
        re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE) for text in (printed, quoted)
    )
    escaped = re.escape(quoted).replace("\\\n", "\n")
    pattern = re.sub("^…\n", "(?:.*\n)*?", escaped, flags=re.MULTILINE)
    return bool(re.fullmatch(pattern.replace("…", ".*"), printed))


class Shell:
    """A Bash shell in a folder; its commands get an empty standard input."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        options = {"cwd": folder, "env": env, "start_new_session": True}
        self.bash = Running(
            ["bash"], {**options, "stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
        )

    def type(self, command: str) -> None:
        self.start = len(self.bash.out)
        self.bash.send(f"{{ {command}\n}} </dev/null; echo '{MARK}' $?\n".encode())

    def printed(self) -> str:
        """What the newest command has printed so far."""
        return bytes(self.bash.out[self.start :]).decode(errors="replace").partition(MARK)[0]

    def run(self, command: str) -> tuple[str, int]:
        """Run the command; return what it prints, and its status."""
        self.type(command)
        ended = re.compile(rf"{MARK} (\d+)\n".encode())
        self.bash.wait_for(lambda it: ended.search(it.out, self.start), 300)
        return self.printed(), int(ended.findall(self.bash.out, self.start)[0])

    def wait_for(self, quoted: str) -> None:
        """Wait until the newest command has printed what the page quotes."""
        self.bash.wait_for(lambda _: matches(self.printed(), quoted), 60)

    def end(self) -> None:
        """Press Ctrl-C and end its input; after that, none of its processes run."""
        group = self.bash.process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGINT)
        try:
            assert self.bash.process.stdin
            self.bash.process.stdin.close()
            self.bash.process.wait(30)
            wait_until(lambda: not exists(group))
        finally:
            if exists(group):
                os.killpg(group, signal.SIGKILL)


def exists(group: int) -> bool:
    """Does a process of that group exist?"""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh copy of the project, in a folder with a difficult name."""
    folder = tmp_path / "Ereignisse für Kafka"
    copy_project(folder)
    return folder


def test_the_pages_run_as_they_are_written(folder: Path, tmp_path: Path) -> None:
    """From make demo to the last error, on free ports, except for what is marked as not run."""
    kafka, x = map(str, free_ports(2))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with Reader(folder, environment(temporary, kafka)) as reader:
        for name, text in PAGES.items():
            print(f"# {name}")
            for block in blocks(text.replace("9092", kafka).replace("8080", x)):
                if block.language == "console" and not block.why_not_run:
                    reader.run(block, may_fail=name == "docs/troubleshooting.md")
    assert list(temporary.iterdir()) == []


def environment(temporary: Path, port: str) -> dict[str, str]:
    """A user's environment, with the tests' Python and a Kafka at that port."""
    env = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    env["PATH"] = f"{sys.base_prefix}/bin:{env['PATH']}"
    env["TMPDIR"] = str(temporary)
    env["ARGS"] = f"--port {port}"
    env["KAFKA_BOOTSTRAP_SERVERS"] = f"localhost:{port}"
    return env


class Reader:
    """Someone who types the commands, some of them in other terminals."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.shells = ExitStack()

    def __enter__(self) -> "Reader":
        self.main = self.open_shell()
        return self

    def __exit__(self, *_: object) -> None:
        self.shells.close()

    def open_shell(self) -> Shell:
        shell = Shell(self.folder, self.env)
        self.shells.callback(shell.end)
        return shell

    def run(self, block: Block, may_fail: bool) -> None:
        for command, quoted in block.commands():
            print(f"$ {command}", flush=True)
            if block.note:
                self.run_beside(command, quoted, BESIDE[block.note])
            else:
                self.run_here(command, quoted, may_fail)

    def run_beside(self, command: str, quoted: str, terminals: int) -> None:
        for _ in range(terminals):
            shell = self.open_shell()
            shell.run(". .venv/bin/activate")
            shell.type(command)
            shell.wait_for(quoted)

    def run_here(self, command: str, quoted: str, may_fail: bool) -> None:
        printed, status = self.main.run(command)
        assert matches(printed, quoted), (
            f"{command}\n{printed}\nis not what the page says:\n{quoted}"
        )
        assert "Traceback" not in printed
        assert status == 0 or may_fail, command
        if command == "make demo":
            check_picture(printed)


def plain(output: str) -> str:
    """The output without what differs from run to run: numbers and names of temporary folders."""
    return re.sub(r"/\S*/tmp\w+|\d+", "N", output)


def check_picture(printed: str) -> None:
    """Is docs/demo.svg what `make picture` would draw now?"""
    drawn = draw(printed[printed.index("Starting Apache Kafka") :].splitlines())
    picture = (REPOSITORY / "docs" / "demo.svg").read_text()
    assert plain(drawn) == plain(picture), "make picture draws a different one"
    assert len(picture) < 60_000


def test_each_block_is_run_or_says_why_not() -> None:
    assert len(blocks()) == TEXT.count("```") / 2
    for block in blocks():
        if block.why_not_run:
            assert block.why_not_run in NOT_RUN, block.text
        else:
            assert block.language in ("console", "bat", "mermaid", "log", "dotenv"), block.text
            assert block.note in ("", *BESIDE), block.text
        assert block.language != "console" or block.text.startswith("$ "), block.text


def test_each_page_is_in_the_table_of_contents_and_the_readme_is_short() -> None:
    assert set(NAMES[1:]) == {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")}
    assert README.count("\n") <= 200


@pytest.mark.parametrize("name", NAMES)
def test_the_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


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
    with XApi([Step(tweets=50), Step()], rate=50) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, "STREAM_TEST_SECOND": "0.1"}
        running = scripts.start("twitter-stream", "-t", "tweets", env=env)
        running.wait_for(lambda it: it.err.count(b"/s (1 reconnect,") == 1)
        done = running.end(signal.SIGTERM)
    assert plain(done.stderr.decode()) == plain(texts("log")[2])


def test_the_report_of_a_gap_looks_like_the_real_one(scripts: Scripts, topic: str) -> None:
    """A gap of about 27 minutes, where one of X's seconds lasts 5 ms."""
    with XApi([Step(tweets=5), *[Step(status=503)] * 10, Step()]) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, "STREAM_TEST_SECOND": "0.005"}
        done = scripts.run("twitter-stream", "-t", topic, "-n", 6, "--backfill", env=env)
    lines = done.stderr.decode().replace(topic, "tweets").splitlines(keepends=True)
    report = next(line for line in lines if " no tweets from " in line)
    assert plain(report + lines[-1]) == plain(texts("log")[1])


def test_the_summary_of_a_stopped_run_names_the_next_line() -> None:
    """In the words that the tests check in real summaries."""
    summary = SUMMARY.fullmatch(texts("log")[0].rstrip())
    assert summary
    assert int(summary["next_line"]) == int(summary["published"]) + 1


def test_python_skips_the_lines_that_kafka_has(tmp_path: Path) -> None:
    """With the command for Windows; it skips the lines before the next one to publish."""
    [code] = re.findall(r'python -c "(.*)" \| python producer.py', TEXT)
    (tmp_path / "access.log").write_bytes(b"".join(b"%d\r\n" % number for number in range(48213)))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"48210\r\n48211\r\n48212\r\n")


@pytest.mark.parametrize("text", texts("dotenv"))
def test_the_lines_for_env_are_settings(lone_scripts: Scripts, text: str) -> None:
    """All are known, and only the certificate authority's file does not exist."""
    (lone_scripts.folder / ".env").write_text(re.sub("(?m)^KAFKA_SSL_CAFILE.*\n", "", text))
    command = [
        sys.executable,
        "-c",
        "import config; print(config.client_options(config.KafkaConsumer))",
    ]
    done = subprocess.run(
        command, cwd=lone_scripts.folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "'security_protocol': 'SASL_SSL'" in done.stdout


def test_settings_and_statuses_are_all_explained() -> None:
    for name in re.findall(r"^#(\w+)=", (REPOSITORY / ".env.example").read_text(), re.MULTILINE):
        assert f"`{name}`" in README, name
    table = README[README.index("## Exit statuses") :]
    statuses = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert statuses == ["0", "1", "2", "130, 143, 129"]


def test_each_promise_names_tests_that_exist() -> None:
    """And the day on which they were run."""
    [table] = re.findall(r"^\| promise .*\n(?:\|.*\n)+", PAGES["docs/guarantees.md"], re.MULTILINE)
    for row in table.splitlines()[2:]:
        _, _, shown_by, day, _ = row.split("|")
        date.fromisoformat(day.strip())
        for part in shown_by.split(";"):
            file, _, names = part.strip().partition(": ")
            source = (REPOSITORY / "tests" / file).read_text()
            for name in names.split(", "):
                assert f"def {name}(" in source, row


def test_each_meaning_of_an_error_has_its_remedy() -> None:
    config = importlib.import_module("config")
    meanings = [*config.ERROR_EXPLANATIONS.values(), *config.MESSAGE_EXPLANATIONS.values()]
    text = " ".join(TEXT.split())
    missing = [
        each.cause for each in meanings if each.cause.partition("{}")[0].strip(": ") not in text
    ]
    assert missing == []


def test_the_packages_of_install_are_enough(lone_scripts: Scripts, tmp_path: Path) -> None:
    python = tmp_path / "fresh" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
    subprocess.run([python, *install, REPOSITORY / "requirements.txt"], check=True)
    for script in ("producer", "consumer", "twitter-stream"):
        subprocess.run(
            [python, lone_scripts.folder / f"{script}.py", "--help"],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def test_kafkas_own_files_are_named_as_in_its_distribution() -> None:
    """In kafka_2.13-4.3.1.tgz; those with zookeeper in kafka_2.13-3.9.2.tgz."""
    named = re.findall(r"(?:bin|config)[/\\][\w\\/.-]+", "".join(block.text for block in blocks()))
    scripts = {
        "kafka-storage",
        "kafka-server-start",
        "zookeeper-server-start",
    }
    files = {
        "config/server.properties",
        "config/zookeeper.properties",
        "bin/activate",
        "bin/python",
    }
    files |= {f"bin/{each}.sh" for each in scripts} | {
        f"bin/windows/{each}.bat" for each in scripts
    }
    assert {each.replace("\\", "/") for each in named} <= files


WORDS = {3: "three", 5: "five", 6: "six", 10: "ten"}


def test_the_numbers_are_the_real_ones() -> None:
    x, delivery = importlib.import_module("twitter-stream"), importlib.import_module("delivery")
    stop, http_stream = importlib.import_module("cli").Stop, importlib.import_module("http_stream")
    assert x.DELIVERY_TIMEOUT == 3600
    connects, seconds = x.MAX_CONNECTS, x.CONNECT_WINDOW
    in_flight, in_flight_bytes = delivery.MAX_IN_FLIGHT, delivery.MAX_IN_FLIGHT_BYTES >> 20
    text = " ".join(TEXT.split())
    for quoted in (
        "For a network error, "
        f"the wait grows by {x.NETWORK.first} s each time, up to {x.NETWORK.longest} s.",
        "For an HTTP error or too many connections, "
        f"it starts at {x.HTTP.first} s and doubles, up to {x.HTTP.longest} s.",
        f"For a rate limit, it starts at {x.RATE_LIMIT.first} s and doubles",
        f"no complete line for {x.SILENCE} s",
        f"Every gap of more than {x.SILENCE} s",
        f"exceeds X's window of {x.X_WINDOW // 60} minutes",
        f"delays connecting by {http_stream.NEXT_ADDRESS_AFTER} s",
        f"does not resend anything older than {WORDS[x.MAX_BACKFILL_MINUTES]} minutes",
        f"the topic's last {WORDS[x.RECENT // 60]} minutes",
        f"after {WORDS[x.MAX_BACKFILL_REFUSALS]} refusals in a row",
        f"only {WORDS[x.MAX_REFUSALS]} in a row",
        f"one that is over {x.MAX_LINE_BYTES >> 20} MiB",
        f"more than {connects} times in {seconds // 60} minutes, to stay within X's limit of "
        f"{connects * 5} in 15",
        f"over {x.MAX_LINE_BYTES >> 20} MiB",
        f"{in_flight:,} events or tweets, or {in_flight_bytes} MB",
        "twitter-stream.py for an hour",
        f"exits within {stop.LIMIT:.0f} seconds",
    ):
        assert quoted in text


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^\$ )make ([a-z]+)", TEXT, re.MULTILINE))
    assert {
        "demo",
        "test",
        "broker",
        "stress",
        "soak",
        "bench",
        "picture",
        "lint",
        "clean",
        "windows",
    } == named
    assert named <= targets


def test_the_tables_of_the_bench_name_all_that_it_measures() -> None:
    """kcat is measured where it is installed; `-f raw` fails, as it prints b'...'."""
    bench = importlib.import_module("bench")
    names = {each.name for each in bench.producers() + bench.consumers()} - {
        "kcat",
        "python -m kafka.consumer -f raw",
    }
    assert all(f"| {name} |" in TEXT for name in names)
