"""The version of kafka-python on whose internals the scripts rely, and what it needs."""

import sys

import kafka

from streaming.console import INSTALL, fail

VERSION = "3.0.12"


def check_version() -> None:
    """Exit if another version is installed, or cannot work.

    Call it before what other versions may lack is imported.
    """
    if kafka.__version__ != VERSION:
        fail(f"kafka-python {kafka.__version__} is installed, but this needs {VERSION}. {INSTALL}")
    if sys.flags.optimize:  # it reads Kafka's responses in assert statements
        fail(
            "kafka-python does not work in optimized mode. Run Python without -O, and unset "
            "PYTHONOPTIMIZE.",
            status=2,
        )
