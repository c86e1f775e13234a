"""The version of kafka-python on whose internals the scripts rely."""

import kafka

from streaming.console import INSTALL, fail

VERSION = "3.0.12"


def check_version() -> None:
    """Exit if another version is installed; call it before what others may lack is imported."""
    if kafka.__version__ != VERSION:
        versions = f"{kafka.__version__} instead of {VERSION}"
        fail(f"the wrong version of kafka-python is installed: {versions}. {INSTALL}")
