"""Which packages the scripts need, and that importing a source file only defines things."""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

from cli import PACKAGES

import pytest
from conftest import REPOSITORY, SCRIPTS, SOURCES, Running, Scripts

# Prints the names of what importing a module changes in its process. The packages are imported
# beforehand, as a library's own logger is the library's business
IMPORT = """
import gc, importlib, json, logging, signal, sys, threading
import dotenv, kafka, requests

def state():
    found = {
        "sys.excepthook": sys.excepthook,
        "sys.unraisablehook": sys.unraisablehook,
        "threading.excepthook": threading.excepthook,
        "threads": threading.enumerate(),
        "gc thresholds": gc.get_threshold(),
        "wakeup descriptor": signal.set_wakeup_fd(-1),
    }
    for number in signal.valid_signals():
        found[f"handler of signal {number}"] = signal.getsignal(number)
    for name in ("root", "kafka"):
        logger = logging.getLogger(name)
        found[f"handlers of {name}"] = list(logger.handlers)
        found[f"level of {name}"] = logger.level
        found[f"propagation of {name}"] = logger.propagate
    return found

before = state()
module = importlib.import_module(sys.argv[1])
after = state()
changed = [name for name, value in after.items() if value != before[name]]
print(json.dumps([module.__name__, len(before), changed]))
"""


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "windows.py"])
def test_an_import_changes_nothing(lone_scripts: Scripts, source: str) -> None:
    """In a fresh process, as earlier imports may have changed something already."""
    (lone_scripts.folder / "import_it.py").write_text(IMPORT)
    name = source.removesuffix(".py")
    done = lone_scripts.run("import_it", name)
    assert (done.returncode, done.stderr) == (0, b"")
    imported, count, changed = json.loads(done.stdout)
    assert (imported, changed) == (name, [])
    assert count > 30, "signals and loggers are among what was compared"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("missing", PACKAGES)
def test_a_package_that_is_not_installed(
    lone_scripts: Scripts, tmp_path: Path, script: str, missing: str
) -> None:
    """In an interpreter without site-packages, with only the packages before the missing one."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in itertools.takewhile(lambda name: name != missing, PACKAGES):
        found = importlib.util.find_spec(name)
        assert found
        assert found.origin
        (packages / name).symlink_to(Path(found.origin).parent)
    options: dict[str, Any] = {"env": {"PYTHONPATH": str(packages)}}
    command = lone_scripts.call(script, ("--help",), options)
    done = Running([command[0], "-S", *command[1:]], options).end()
    if missing == "requests" and script != "twitter-stream":
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(f"usage: {script}.py ".encode())
    else:
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == (
            f"{script}.py: the package {PACKAGES[missing]} is not installed. "
            "Run: pip install -r requirements.txt (see Install in README.md)\n"
        )


def test_the_packages_that_a_message_names_are_those_that_are_required() -> None:
    assert list(PACKAGES) == ["dotenv", "kafka", "requests"]
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    required = [re.match(r"[\w-]+", line) for line in lines]
    assert {found[0] for found in required if found} == set(PACKAGES.values())
    assert "pip install -r requirements.txt" in (REPOSITORY / "README.md").read_text()
