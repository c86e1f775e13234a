"""README.md says what is: its commands are run as they stand there, its texts compared."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from broker import free_ports
from x_api import Step, XApi

import pytest
from conftest import REPOSITORY, SOURCES, Running, Scripts, wait_until
from picture import draw

README = (REPOSITORY / "README.md").read_text()
BESIDE = {"another terminal": 1, "two more terminals": 2}  # what a comment above a block says: run beside what follows
NOT_RUN = {"Windows", "Docker", "systemd", "the download", "it is what runs this page"}  # or: not run, with the reason
MARK = "--- ended with status"
# Not this machine's: where Python's packages and the user's settings would come from
FOREIGN = re.compile("KAFKA_|BEARER_|STREAM_|MAKE|MFLAGS|VIRTUAL_ENV|PYTEST|PYTHON")


class Block(NamedTuple):
    """A fenced block: the comment above it, the language, the text."""

    note: str
    language: str
    text: str

    def commands(self) -> Iterator[tuple[str, str]]:
        """The commands of a console block, each with the output that follows it."""
        for each in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = each.partition("\n")
            yield command, output


def blocks(text: str = README) -> list[Block]:
    found = re.findall(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def texts(language: str) -> list[str]:
    return [block.text for block in blocks() if block.language == language]


def matches(printed: str, told: str) -> bool:
    """Is it what is told, with any text for a …, and any lines for a … alone? Not so the blanks a line begins with."""
    printed, told = (re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE) for text in (printed, told))
    pattern = re.sub("^…\n", "(?:.*\n)*?", re.escape(told).replace("\\\n", "\n"), flags=re.MULTILINE)
    return bool(re.fullmatch(pattern.replace("…", ".*"), printed))


class Terminal:
    """A shell in a folder, with nothing on its standard input."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        options = {"cwd": folder, "env": env, "start_new_session": True}
        self.shell = Running(["bash"], {**options, "stdin": subprocess.PIPE, "stderr": subprocess.STDOUT})

    def type(self, command: str) -> None:
        self.start = len(self.shell.out)
        self.shell.send(f"{{ {command}\n}} </dev/null; echo '{MARK}' $?\n".encode())

    def printed(self) -> str:
        """By the newest command, so far."""
        return bytes(self.shell.out[self.start :]).decode(errors="replace").partition(MARK)[0]

    def run(self, command: str) -> tuple[str, int]:
        """What it prints, and its status."""
        self.type(command)
        ended = re.compile(rf"{MARK} (\d+)\n".encode())
        self.shell.wait_for(lambda it: ended.search(it.out, self.start), 300)
        return self.printed(), int(ended.findall(self.shell.out, self.start)[0])

    def wait_for(self, told: str) -> None:
        """Wait until the newest command has printed what is told."""
        self.shell.wait_for(lambda _: matches(self.printed(), told), 60)

    def end(self) -> None:
        """Ctrl-C, and the end of its input; then nothing of it runs any more."""
        group = self.shell.process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGINT)
        try:
            assert self.shell.process.stdin
            self.shell.process.stdin.close()
            self.shell.process.wait(30)
            wait_until(lambda: not exists(group))
        finally:
            if exists(group):
                os.killpg(group, signal.SIGKILL)


def exists(group: int) -> bool:
    """Is there a process of that group?"""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh copy of the project, in a folder with a difficult name; with Kafka's own tool beside it."""
    folder = tmp_path / "Ereignisse für Kafka"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".git", ".venv", ".env", "*cache*"))
    tool = folder / "kafka_2.13-4.3.1" / "bin" / "kafka-consumer-groups.sh"
    tool.parent.mkdir(parents=True)
    java, *options = importlib.import_module("bench").java("consumer.group.ConsumerGroupCommand")
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
    tool.write_text(f'#!/bin/sh\nexec {java} {quiet} {" ".join(options)} "$@"\n')
    tool.chmod(0o755)
    return folder


def test_the_page_runs_as_it_stands_there(folder: Path, tmp_path: Path) -> None:
    """From make demo to the last error, but at free ports, and without what is marked as not run."""
    kafka, x = map(str, free_ports(2))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    env["PATH"] = f"{sys.base_prefix}/bin:{env['PATH']}"  # the tests' Python
    env |= {"TMPDIR": str(temporary), "ARGS": f"--port {kafka}", "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{kafka}"}
    page = README.replace("9092", kafka).replace("8080", x)
    trouble = page[page.index("## Trouble") :]
    with ExitStack() as terminals:
        here = Terminal(folder, env)
        terminals.callback(here.end)
        for block in blocks(page):
            if block.language != "console" or block.note.startswith("not run"):
                continue
            for command, told in block.commands():
                print(f"$ {command}", flush=True)
                for _ in range(BESIDE.get(block.note, 0)):
                    terminal = Terminal(folder, env)
                    terminals.callback(terminal.end)
                    terminal.run(". .venv/bin/activate")
                    terminal.type(command)
                    terminal.wait_for(told)
                if not block.note:
                    printed, status = here.run(command)
                    assert matches(printed, told), f"{command}\n{printed}\nis not what README.md tells:\n{told}"
                    assert "Traceback" not in printed
                    assert status == 0 or block.text in trouble, command
                    if command == "make demo":
                        check_picture(printed)
    assert list(temporary.iterdir()) == []


def plain(output: str) -> str:
    """The output without what differs from run to run: numbers and names of temporary folders."""
    return re.sub(r"/\S*/tmp\w+|\d+", "N", output)


def check_picture(printed: str) -> None:
    """Is docs/demo.svg what `make picture` would draw now?"""
    drawn = draw(printed[printed.index("Starting a real") :].splitlines())
    picture = (REPOSITORY / "docs" / "demo.svg").read_text()
    assert plain(drawn) == plain(picture), "make picture draws another one"
    assert len(picture) < 60_000


def test_each_block_is_run_or_says_why_not() -> None:
    assert len(blocks()) == README.count("```") / 2
    for note, language, text in blocks():
        kind, _, reason = note.partition(": ")
        if kind == "not run":
            assert reason in NOT_RUN, text
        else:
            assert language in ("console", "mermaid", "text", "log", "dotenv"), text
            assert note in ("", *BESIDE), text
        assert language != "console" or text.startswith("$ "), text


def test_the_help_texts_are_the_real_ones(lone_scripts: Scripts) -> None:
    real = [
        lone_scripts.run(script.removesuffix(".py"), "--help", env={"COLUMNS": "100"}).stdout.decode()
        for script in SOURCES
        if script != "config.py"
    ]
    assert [text.rstrip() for text in texts("text")] == [text.rstrip() for text in real]


def test_the_log_looks_like_the_real_one(scripts: Scripts) -> None:
    with XApi([Step(tweets=50), Step()], rate=50) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, "STREAM_TEST_SECOND": "0.1"}
        running = scripts.start("twitter-stream", "-t", "tweets", env=env)
        running.wait_for(lambda it: it.err.count(b"/s (1 reconnects") == 1)
        done = running.end(signal.SIGTERM)
    assert plain(done.stderr.decode()) == plain(*texts("log"))


@pytest.mark.parametrize("text", texts("dotenv"))
def test_the_lines_for_env_are_settings(lone_scripts: Scripts, text: str) -> None:
    """All are known, and only the certificate authority's file is not there."""
    (lone_scripts.folder / ".env").write_text(re.sub("(?m)^KAFKA_SSL_CAFILE.*\n", "", text))
    command = [sys.executable, "-c", "import config; print(config.client_settings(config.KafkaConsumer))"]
    done = subprocess.run(command, cwd=lone_scripts.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "'security_protocol': 'SASL_SSL'" in done.stdout


def test_flags_settings_and_statuses_are_all_told() -> None:
    helps, table = "".join(texts("text")), README[README.index("**Exit statuses**") :]
    flags = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", helps[helps.index("options:") :]))
    prose = re.sub(r"^```text\n.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    for flag in flags - {"-h", "--help"}:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", prose), flag
    for name in re.findall(r"^#(\w+)=", (REPOSITORY / ".env.example").read_text(), re.MULTILINE):
        assert f"`{name}" in README, name
    assert re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)[:4] == ["0", "1", "2", "130, 143"]


def test_each_cause_that_is_told_has_its_remedy() -> None:
    causes = importlib.import_module("config").CAUSES
    assert [cause for cause in causes.values() if cause not in README] == []


def test_the_packages_of_install_are_enough(lone_scripts: Scripts, tmp_path: Path) -> None:
    python = tmp_path / "fresh" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
    subprocess.run([python, *install, REPOSITORY / "requirements.txt"], check=True)
    for script in ("producer", "consumer", "twitter-stream"):
        subprocess.run([python, lone_scripts.folder / f"{script}.py", "--help"], check=True, stdout=subprocess.DEVNULL)


def test_kafkas_own_files_are_named_as_in_its_distribution() -> None:
    """Of kafka_2.13-4.3.1.tgz, and of kafka_2.13-3.9.2.tgz those with zookeeper, as their sources have them."""
    named = re.findall(r"(?:bin|config)[/\\][\w\\/.-]+", "".join(block.text for block in blocks()))
    scripts = {"kafka-storage", "kafka-server-start", "zookeeper-server-start", "kafka-consumer-groups"}
    files = {"config/server.properties", "config/zookeeper.properties", "bin/activate", "bin/python"}
    files |= {f"bin/{each}.sh" for each in scripts} | {f"bin/windows/{each}.bat" for each in scripts}
    assert {each.replace("\\", "/") for each in named} <= files


def test_the_numbers_are_the_real_ones() -> None:
    x, producer = importlib.import_module("twitter-stream"), importlib.import_module("producer")
    waits = x.WAITS
    assert x.PATIENCE == 3600
    text = " ".join(README.split())
    for told in (
        "{} s more each time, up to {} s, for the network".format(*waits["network"]),
        "from {} s, doubling, up to {} s, for an HTTP error".format(*waits["http"]),
        f"from {waits['rate'][0]} s, doubling, for a rate limit",
        f"{x.SILENCE} s of silence",
        f"more than {x.CONNECTS} times in {x.WINDOW // 60} minutes, so {x.CONNECTS * 5} in {x.WINDOW * 5 // 60}",
        f"over {x.LINE_BYTES >> 20} MiB",
        f"{producer.IN_FLIGHT:,} events or tweets or {producer.IN_FLIGHT_BYTES >> 20} MB",
        "twitter-stream.py for an hour",
    ):
        assert told in text


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", README)) | set(re.findall(r"^\$ make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "broker", "stress", "soak", "bench", "picture", "lint", "clean"} == named
    assert named <= targets


def test_the_tables_of_the_bench_name_all_that_it_measures() -> None:
    """kcat is measured where it is installed; `-f raw` fails, as it prints b'...'."""
    bench = importlib.import_module("bench")
    names = {each.name for each in bench.producers() + bench.consumers()} - {"kcat", "python -m kafka.consumer -f raw"}
    assert all(f"| {name} |" in README for name in names)
