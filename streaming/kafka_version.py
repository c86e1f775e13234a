"""The version of kafka-python on whose internals the scripts rely."""

import kafka

from streaming.console import INSTALL, fail

VERSION = "3.0.12"


def check_version() -> None:
    """Exit if another version is installed; call it before what others may lack is imported."""
    if kafka.__version__ != VERSION:
        fail(f"kafka-python {kafka.__version__} is installed, but this needs {VERSION}. {INSTALL}")
