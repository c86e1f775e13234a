"""Calls to Windows itself for what Python does not provide; imported on Windows only."""

import ctypes
import msvcrt
import sys
import time
from collections.abc import Callable
from ctypes import wintypes

assert sys.platform == "win32"

# Sources: FILE_PIPE_LOCAL_INFORMATION in [MS-FSCC]; HandlerRoutine in the Windows console's docs
FILE_PIPE_LOCAL_INFORMATION = 24
FILE_PIPE_CLOSING_STATE = 4
CTRL_CLOSE_EVENTS = (2, 5, 6)  # the console is closed, the user logs off, the system shuts down

_handlers: list[object] = []  # kept alive as long as Windows may call them


class PipeInformation(ctypes.Structure):
    _fields_ = [
        (name, wintypes.ULONG)
        for name in (
            "NamedPipeType",
            "NamedPipeConfiguration",
            "MaximumInstances",
            "CurrentInstances",
            "InboundQuota",
            "ReadDataAvailable",
            "OutboundQuota",
            "WriteQuotaAvailable",
            "NamedPipeState",
            "NamedPipeEnd",
        )
    ]


def is_pipe_closing(descriptor: int) -> bool:
    """Return whether this is a pipe whose other end has been closed."""
    status_block = (ctypes.c_void_p * 2)()
    information = PipeInformation()
    status = ctypes.windll.ntdll.NtQueryInformationFile(
        wintypes.HANDLE(msvcrt.get_osfhandle(descriptor)),
        status_block,
        ctypes.byref(information),
        ctypes.sizeof(information),
        FILE_PIPE_LOCAL_INFORMATION,
    )
    return status == 0 and bool(information.NamedPipeState == FILE_PIPE_CLOSING_STATE)


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
