"""Which packages the scripts need, and what they do without them."""

import itertools
import os
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from conftest import REPOSITORY, SCRIPTS, Running, Scripts
from streaming.console import PACKAGES

pytestmark = pytest.mark.versions


def start_bare(scripts: Scripts, script: str, *arguments: object, **env: str) -> Running:
    """Start a script in a Python without site-packages."""
    options: dict[str, Any] = {"env": env}
    python, *command = scripts.call(script, arguments, options)
    return Running([python, "-S", *command], options)


def packages_without(missing: str, folder: Path) -> str:
    """Make a folder that has all packages but one."""
    folder.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != missing:
            (folder / path.name).symlink_to(path)
    return str(folder)


def test_help_and_usage_errors_need_no_package(lone_scripts: Scripts) -> None:
    calls = list(itertools.product(SCRIPTS, ("--help", "--typo")))
    running = [start_bare(lone_scripts, script, flag) for script, flag in calls]
    for (script, flag), process in zip(calls, running, strict=True):
        done = process.end()
        if flag == "--help":
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout.startswith(f"usage: {script}.py ".encode())
        else:
            assert (done.returncode, done.stdout) == (2, b"")
            message = f"{script}.py: unrecognized arguments: --typo. See --help.\n"
            assert done.stderr.decode() == message


@pytest.mark.parametrize("missing", PACKAGES)
def test_a_missing_package_is_a_sentence(
    lone_scripts: Scripts, tmp_path: Path, port: int, missing: str
) -> None:
    """Only twitter-stream.py needs requests."""
    env = {
        "PYTHONPATH": packages_without(missing, tmp_path / "packages"),
        "STREAM_TEST_PATIENCE": "1",
    }
    brokers = f"127.0.0.1:{port}"
    running = [start_bare(lone_scripts, script, "-b", brokers, **env) for script in SCRIPTS]
    for script, process in zip(SCRIPTS, running, strict=True):
        done = process.end()
        expected = (
            f"{script}.py: the package {PACKAGES[missing]} is not installed. "
            "Run: pip install -r requirements.txt (see README.md)\n"
        )
        if missing == "requests" and script != "twitter-stream":
            expected = f"{script}.py: cannot connect to Kafka at {brokers}: connection refused. "
            expected += "Is it running there? Check -b.\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", expected)


OTHER_VERSIONS = {
    '__version__ = "3.0.13"': (
        "the wrong version of kafka-python is installed: 3.0.13 instead of 3.0.12"
    ),
    # As version 2.0 does where Python is 3.12 or later
    "import kafka.vendor.six.moves": "the wrong version of kafka-python is installed",
    "from kafka import nothing": "the wrong version of kafka-python is installed",
}


@pytest.mark.parametrize("stub", OTHER_VERSIONS)
def test_another_version_of_kafka_python_is_refused(
    lone_scripts: Scripts, tmp_path: Path, stub: str
) -> None:
    """Before anything else of it is imported, as it may have other names."""
    (tmp_path / "other" / "kafka").mkdir(parents=True)
    (tmp_path / "other" / "kafka" / "__init__.py").write_text(f"{stub}\n")
    path = os.pathsep.join([str(tmp_path / "other"), sysconfig.get_path("purelib")])
    for script in SCRIPTS:
        done = start_bare(lone_scripts, script, PYTHONPATH=path).end()
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == (
            f"{script}.py: {OTHER_VERSIONS[stub]}. "
            "Run: pip install -r requirements.txt (see README.md)\n"
        )


def test_the_packages_that_a_message_names_are_those_that_are_required() -> None:
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    required = [re.match(r"[\w-]+", line) for line in lines]
    assert {found[0] for found in required if found} == set(PACKAGES.values())
