"""Settings: `.env` next to the scripts, overridden by the environment, read once and typed.

They are BEARER_TOKEN, STREAM_URL, and KAFKA_<NAME> for the kafka-python client setting <name>.
"""

import codecs
import difflib
import io
import logging
import os
import re
import stat
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from dotenv import dotenv_values

from streaming.console import fail, register_secret, say
from streaming.kafka_options import KAFKA_OPTIONS, parse_option

ENV_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), ".env")
URLS = ("STREAM_URL", "KAFKA_PROXY_URL")  # a URL may contain a password
NAME = re.compile("[A-Za-z_]{1,40}")  # of a setting; a secret has digits, or is longer
KNOWN_NAMES = {"BEARER_TOKEN", "STREAM_URL", *KAFKA_OPTIONS}
SEE_EXAMPLE = "See .env.example."


class Settings(NamedTuple):
    """All settings; "" or a missing key means that a setting is not given."""

    bearer_token: str
    stream_url: str
    kafka: dict[str, Any]  # the Kafka client's options by its own names, such as linger_ms


def read_settings() -> Settings:
    """Read .env and the environment; exit with status 2 if anything in them is unusable.

    Unknown names are refused in .env; the environment holds those of other programs, too. An empty
    value counts as not set.
    """
    given = {**_read_env_file(), **{name: value for name, value in os.environ.items() if value}}
    for name, value in given.items():
        for secret in _secrets_in(name, value):
            register_secret(secret)
    return Settings(
        bearer_token=given.get("BEARER_TOKEN", ""),
        stream_url=given.get("STREAM_URL", ""),
        kafka=_kafka_options(given),
    )


def _kafka_options(given: dict[str, str]) -> dict[str, Any]:
    """Return the Kafka client's options, each with the type that the client wants."""
    options: dict[str, Any] = {}
    for variable in sorted(KAFKA_OPTIONS.keys() & given.keys()):
        option = KAFKA_OPTIONS[variable]
        try:
            options[option] = parse_option(option, given[variable])
        except ValueError as error:  # it says what the value must be
            # Do not show the value: it may be a misplaced secret
            fail(f"{variable} must be {error}. {SEE_EXAMPLE}", status=2)
    return options


def _read_env_file() -> dict[str, str]:
    """Return the settings in .env that are not empty."""
    path = _display_path(ENV_FILE)
    try:
        with open(ENV_FILE, "rb") as file:
            text = _decode(file.read(), path)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        if os.path.islink(ENV_FILE):
            fail(f"cannot read {path}: it is a link to a file that does not exist", status=2)
        return {}
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", status=2)
    values = _parse(text, path)
    has_secrets = any(_secrets_in(name, value) for name, value in values.items())
    if has_secrets and mode & stat.S_IROTH and os.name == "posix":
        say(f"{path} contains secrets, but any user can read it. Run: chmod 600 {path}")
    return values


def _decode(data: bytes, path: str) -> str:
    """Decode .env: UTF-8, or UTF-16 with a byte order mark, which Windows PowerShell writes."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        fail(f"cannot read {path}: it is not UTF-8 text. Save it as UTF-8.", status=2)
    if "\0" in text:
        fail(
            f"cannot read {path}: part of it is UTF-16 text, which Windows PowerShell's >> writes. "
            "Save it as UTF-8.",
            status=2,
        )
    return text


def _parse(text: str, path: str) -> dict[str, str]:
    """Return the settings that are not empty; if a line is not one, exit without showing it."""

    def refuse(record: logging.LogRecord) -> NoReturn:
        # dotenv counts the empty lines before a statement as part of it
        line = re.sub(r"\D", "", record.getMessage())
        fail(f"{path}, near line {line}: expected NAME=VALUE. {SEE_EXAMPLE}", status=2)

    # dotenv only logs that a line is malformed, and goes on; this exits instead
    logger = logging.getLogger("dotenv.main")
    logger.addFilter(refuse)
    try:
        values = dotenv_values(stream=io.StringIO(text, newline=None), interpolate=False)
    finally:
        logger.removeFilter(refuse)
    for name, value in values.items():
        if name not in KNOWN_NAMES:
            _refuse_unknown(name, value, path)
    return {name: value for name, value in values.items() if value}


def _refuse_unknown(name: str, value: str | None, path: str) -> NoReturn:
    """Exit; show the name unless it may be a piece of a secret."""
    if value is None or not NAME.fullmatch(name):
        fail(f"{path}: expected NAME=VALUE on every line. {SEE_EXAMPLE}", status=2)
    [nearest] = difflib.get_close_matches(name.upper(), KNOWN_NAMES, n=1, cutoff=0)
    fail(f"unknown setting {name} in {path}; did you mean {nearest}?", status=2)


def _display_path(path: str) -> str:
    """Shorten the path of a file in the current directory to its name."""
    try:
        is_here = os.path.dirname(path) == os.getcwd()
    except OSError:  # the current directory has been deleted
        is_here = False
    return os.path.basename(path) if is_here else path


def _secrets_in(name: str, value: str) -> list[str]:
    """Return the texts in a setting that no message may show."""
    if name == "BEARER_TOKEN" or (name.startswith("KAFKA_") and name.endswith("PASSWORD")):
        return [value]
    if name in URLS or name.upper().endswith("_PROXY"):
        return _passwords_in(value)
    return []


def _passwords_in(url: str) -> list[str]:
    """Return the password in a URL, however malformed: everything between USER: and the last @.

    Of http://ann:12/34@proxy, libraries take only 12 for the password, and show the rest as a path;
    so its longer parts are secrets, too.
    """
    match = re.match(r"(?:[\w+.-]*:)?(?://)?[^:@]*:(?!//)(.+)@", url, re.DOTALL)
    if not match:
        return []
    password = match[1]
    parts = [part for part in re.split(r"[/?#@:]", password) if len(part) > 3]
    return [password, unquote(password), *parts]
