"""Servers that a script connects to, other than Kafka and the stand-in for X."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from processes import GUARD


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port where no connect ever completes, as too many are waiting already (Linux)."""
    with socket.socket() as server, ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@contextmanager
def server_with(answer: bytes) -> Iterator[str]:
    """The address of a server that gives each client this answer, and closes the connection."""

    class Answering(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(GUARD)
            with suppress(OSError):  # the client has left
                self.request.recv(1 << 16)
                self.request.sendall(answer)
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(1 << 16):  # or closing would reset the connection
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
