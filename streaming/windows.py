"""Calls to Windows itself for what Python does not provide; imported on Windows only."""

import ctypes
import sys
import time
from collections.abc import Callable
from ctypes import wintypes

assert sys.platform == "win32"

# Source: HandlerRoutine in the documentation of the Windows console
CTRL_CLOSE_EVENTS = (2, 5, 6)  # the console is closed, the user logs off, the system shuts down

_handlers: list[object] = []  # kept alive as long as Windows may call them


def call_when_console_closes(function: Callable[[], object]) -> None:
    """Call the function when the console is closed, the user logs off or the system shuts down.

    Windows ends the process as soon as its handler returns, or after 5 seconds at the latest. So
    the handler waits for the process to end by itself.
    """

    def handle(event: int) -> bool:
        if event not in CTRL_CLOSE_EVENTS:
            return False  # Ctrl-C and Ctrl-Break become signals
        function()
        time.sleep(60)
        return True

    handler = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)(handle)
    _handlers.append(handler)
    ctypes.windll.kernel32.SetConsoleCtrlHandler(handler, True)
