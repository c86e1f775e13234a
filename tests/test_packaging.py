"""Which packages the scripts need, and that importing a source file only defines things."""

import importlib.metadata
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

from cli import PACKAGES
from config import CODEC_PACKAGES

import pytest
from conftest import REPOSITORY, SCRIPTS, SOURCES, Running, Scripts

pytestmark = pytest.mark.versions

# Prints, for each module, the names of what importing it changes in its process. The packages are
# imported beforehand, as a library's own logger is the library's business
IMPORT = """
import gc, importlib, json, logging, signal, sys, threading
import dotenv, kafka, requests

def state():
    loggers = {name: logging.getLogger(name) for name in ("root", "kafka")}
    return {
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook],
        "threads": threading.enumerate(),
        "gc thresholds": gc.get_threshold(),
        "wakeup descriptor": signal.set_wakeup_fd(-1),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "handlers": [list(each.handlers) for each in loggers.values()],
        "levels": [(each.level, each.propagate) for each in loggers.values()],
    }

changed = {}
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = state()
    changed[name] = [key for key, value in after.items() if value != before[key]]
    before = after
print(json.dumps(changed))
"""


def start_python(
    scripts: Scripts, flags: list[str], script: str, *arguments: str, **env: str
) -> Running:
    """Start a script with flags for Python itself."""
    options: dict[str, Any] = {"env": env}
    python, *command = scripts.call(script, arguments, options)
    return Running([python, *flags, *command], options)


def test_an_import_changes_nothing(lone_scripts: Scripts) -> None:
    (lone_scripts.folder / "import_them.py").write_text(IMPORT)
    names = [source.removesuffix(".py") for source in SOURCES if source != "windows.py"]
    done = lone_scripts.run("import_them", *names, real=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {name: [] for name in names}


def test_a_package_that_is_not_installed(lone_scripts: Scripts, tmp_path: Path) -> None:
    """In Pythons without site-packages, with only the packages before the missing one."""
    folders = {name: str(packages_before(name, tmp_path / "packages" / name)) for name in PACKAGES}
    cases = [(script, "dotenv", True) for script in SCRIPTS]
    cases += [("consumer", "kafka", True), ("twitter-stream", "requests", True)]
    cases += [("producer", "requests", False)]
    running = [
        start_python(lone_scripts, ["-S"], script, "--help", PYTHONPATH=folders[missing])
        for script, missing, _ in cases
    ]
    for (script, missing, is_needed), process in zip(cases, running, strict=True):
        done = process.end()
        message = (
            f"{script}.py: the package {PACKAGES[missing]} is not installed. "
            "Run: pip install -r requirements.txt (see Install in README.md)\n"
        )
        expected = (1, message) if is_needed else (0, "")
        assert (done.returncode, done.stderr.decode()) == expected
        assert done.stdout.startswith(b"" if is_needed else b"usage: producer.py ")


def packages_before(missing: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in itertools.takewhile(lambda name: name != missing, PACKAGES):
        found = importlib.util.find_spec(name)
        assert found
        assert found.origin
        (folder / name).symlink_to(Path(found.origin).parent)
    return folder


def test_with_warnings_as_errors_the_scripts_start(lone_scripts: Scripts) -> None:
    running = [start_python(lone_scripts, ["-W", "error"], name, "--help") for name in SCRIPTS]
    for process in running:
        done = process.end()
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_packages_that_a_message_names_are_those_that_are_required() -> None:
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    required = [re.match(r"[\w-]+", line) for line in lines]
    assert {found[0] for found in required if found} == set(PACKAGES.values())
    for package in CODEC_PACKAGES.values():
        assert importlib.metadata.version(package)
