"""Open X's stream over HTTP, within time limits that requests does not have.

requests counts a timeout from the last byte received, so a header or a line that arrives a byte at
a time would block it forever. It also tries a host's addresses one after another, so one that never
answers would delay every connection.
"""

import functools
import http.client
import importlib.util
import math
import os
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cli import PATIENCE, fail
from config import check_ca_file

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Url, parse_url

CONNECT_TIMEOUT = 10 * PATIENCE  # seconds, for all of a host's addresses together
NEXT_ADDRESS_AFTER = 0.25  # seconds, as RFC 8305 recommends


def check_network_settings(url: str) -> None:
    """Exit if the environment names a proxy or a CA bundle for this URL that cannot be used."""
    proxy = proxy_for(url)
    if proxy:
        check_proxy(proxy)
    # requests uses the first that is set
    variable = next(filter(os.environ.get, ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")), "")
    path = os.environ.get(variable)
    if path and not os.path.isdir(path):  # OpenSSL reads a directory on demand
        check_ca_file(variable, path)


def proxy_for(url: str) -> str | None:
    """Return the proxy that requests uses for this URL, if any; it may contain a password."""
    if url.startswith("http://"):
        return None  # without TLS a proxy would see the token
    return select_proxy(url, get_environ_proxies(url))


def check_proxy(proxy: str) -> None:
    """Exit if requests cannot use this proxy; do not show it, because of its password."""
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    variable = next(
        (name for name in names if os.environ.get(name) == proxy), "the system's proxy setting"
    )
    if proxy.lower().startswith("socks") and not importlib.util.find_spec("socks"):
        fail(f"{variable} is a SOCKS proxy, which needs PySocks. Run: pip install PySocks", 2)
    if not is_usable_proxy(proxy):
        fail(
            f"{variable} is not a valid proxy URL; it must be http://HOST:PORT or "
            "http://USER:PASSWORD@HOST:PORT, with special characters percent-encoded",
            2,
        )


def is_usable_proxy(proxy: str) -> bool:
    """Return whether this proxy has a usable address, and requests accepts it."""
    request = requests.Request("GET", "https://localhost/").prepare()
    try:
        is_usable = is_usable_address(proxy)
        if is_usable:
            HTTPAdapter().get_connection_with_tls_context(request, True, {"all": proxy})
    except (requests.RequestException, HTTPError, ValueError):
        is_usable = False
    return is_usable


def is_usable_address(url: str) -> bool:
    """Return whether a URL has a host and a port to connect to, and no unescaped password.

    Raises ValueError if it is not a URL at all.
    """
    parts = parse_address(url)
    try:
        host = (parts.host or "").encode("idna")
    except UnicodeError:  # a label that is empty or too long
        return False
    # In http://ann:12/3@proxy the host seems to be ann, and the rest of the password a path
    rest = f"{parts.host}{parts.path}{parts.query}{parts.fragment}"
    return host != b"" and parts.port != 0 and not re.search("[\"'@]|//", rest)


def parse_address(url: str) -> Url:
    """Parse a URL; one without a scheme counts as HTTP, as a proxy setting does in requests."""
    return parse_url(url if "://" in url else f"http://{url}")


class SilenceGuard:
    """Shuts down a connection's socket when nothing complete has arrived for `limit` seconds.

    Whatever is reading from the socket then ends, with an error or as if the peer had closed it.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._deadline = math.inf  # time.monotonic()
        self.has_fired = False  # on the last socket watched
        threading.Thread(target=self._run, daemon=True).start()

    def watch(self, connection: socket.socket) -> None:
        """Start watching a new connection, instead of the previous one."""
        duplicate = connection.dup()  # TLS takes over the original, and does not give it back
        self.release()
        with self._lock:
            self._socket = duplicate
            self.has_fired = False
        self.restart()

    def restart(self, at_most: float = math.inf) -> None:
        """Restart the countdown: something complete has arrived, or reading resumes after a pause.

        `at_most` is a limit in seconds for what comes next, if it is shorter than usual.
        """
        with self._lock:
            self._deadline = time.monotonic() + min(self._limit, at_most)

    def pause(self) -> None:
        """Stop the countdown while nobody is reading."""
        with self._lock:
            self._deadline = math.inf

    def release(self) -> None:
        """Stop watching the connection."""
        with self._lock:
            self._deadline = math.inf
            if self._socket:
                self._socket.close()
                self._socket = None

    def _run(self) -> None:
        while True:
            time.sleep(self._limit / 20)
            with self._lock:
                if self._socket and time.monotonic() > self._deadline:
                    self.has_fired = True
                    self._deadline = math.inf
                    with suppress(OSError):  # the peer may have closed it at this moment
                        self._socket.shutdown(socket.SHUT_RDWR)


class FinalResponse(http.client.HTTPResponse):
    """Skips informational responses; its parent class skips only 100 and treats 103 as final."""

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status < 200:
            self.headers = None  # type: ignore[assignment]  # begin() returns at once if it is set
            super().begin()


class GuardedMixin:
    """Tells the opener of a urllib3 connection what becomes of it."""

    response_class: Any = FinalResponse

    def __init__(self, opener: "StreamOpener", **options: Any) -> None:
        super().__init__(**options)
        self._opener = opener

    def _new_conn(self) -> socket.socket:
        connection: socket.socket = super()._new_conn()  # type: ignore[misc]
        self._opener.guard.watch(connection)
        return connection

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]  # through the proxy, and with TLS
        self._opener.has_reached_x = True


class RacingMixin:
    """Makes a urllib3 connection try its host's addresses in parallel."""

    host: str
    port: int
    timeout: Any

    def _new_conn(self) -> socket.socket:
        return connect_to_any(self.host.strip("[]"), self.port, self.timeout)


class GuardedHTTPConnection(GuardedMixin, RacingMixin, HTTPConnection):
    pass


class GuardedHTTPSConnection(GuardedMixin, RacingMixin, HTTPSConnection):
    pass


GUARDED_CLASSES = {HTTPConnection: GuardedHTTPConnection, HTTPSConnection: GuardedHTTPSConnection}


def guarded_class(connection_class: Any) -> Any:
    """Return the guarded variant of a connection class; a SOCKS one connects in its own way."""
    if connection_class in GUARDED_CLASSES:
        return GUARDED_CLASSES[connection_class]
    return type("GuardedSOCKSConnection", (GuardedMixin, connection_class), {})


def connect_to_any(host: str, port: int, timeout: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers (RFC 8305, "Happy Eyeballs").

    The next address is tried when one fails or stays silent for NEXT_ADDRESS_AFTER seconds;
    earlier attempts continue. Raises the last failure, an OSError.
    """
    addresses = deque(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    deadline = time.monotonic() + timeout
    failure: OSError = TimeoutError("no response")
    attempts = selectors.DefaultSelector()
    try:
        while (addresses or attempts.get_map()) and time.monotonic() < deadline:
            try:
                if addresses:
                    start_attempt(attempts, addresses.popleft())
                patience = NEXT_ADDRESS_AFTER if addresses else deadline - time.monotonic()
                connection = finished_attempt(attempts, patience)
            except OSError as error:
                failure = error
                continue
            if connection:
                connection.settimeout(timeout)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
        if attempts.get_map():
            raise TimeoutError("no response")
        raise failure
    finally:
        close_attempts(attempts)


def start_attempt(attempts: selectors.BaseSelector, address: tuple[Any, ...]) -> None:
    """Start connecting to an address, one of getaddrinfo's tuples."""
    family, kind, protocol, _, target = address
    attempt = socket.socket(family, kind, protocol)
    attempt.setblocking(False)
    try:
        with suppress(BlockingIOError):  # the usual case: it continues in the background
            attempt.connect(target)
    except OSError:
        attempt.close()
        raise
    attempts.register(attempt, selectors.EVENT_WRITE)


def finished_attempt(attempts: selectors.BaseSelector, seconds: float) -> socket.socket | None:
    """Return the first socket to connect within that time, if any; raise OSError if one fails."""
    for key, _ in attempts.select(max(seconds, 0)):
        attempt: Any = key.fileobj
        attempts.unregister(attempt)
        error_number = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error_number:
            attempt.close()
            raise OSError(error_number, error_words(error_number))
        return attempt  # type: ignore[no-any-return]
    return None


def error_words(number: int) -> str:
    """Return the system's message for a socket error; os.strerror does not know Windows' own."""
    windows_errors: dict[int, str] = getattr(socket, "errorTab", {})
    return windows_errors.get(number) or os.strerror(number)


def close_attempts(attempts: selectors.BaseSelector) -> None:
    sockets: list[Any] = [key.fileobj for key in attempts.get_map().values()]
    attempts.close()
    for attempt in sockets:
        attempt.close()


class StreamSession(requests.Session):
    """Never follows a redirect: the token is for X only, and requests would read the whole body."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class StreamAdapter(HTTPAdapter):
    """Makes requests use our connections."""

    def __init__(self, opener: "StreamOpener") -> None:
        super().__init__()
        self._opener = opener

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        pool.ConnectionCls = functools.partial(guarded_class(pool.ConnectionCls), self._opener)
        return pool


class StreamOpener:
    """Opens the stream, again and again."""

    def __init__(
        self, url: str, headers: dict[str, str], params: list[tuple[str, str]], silence: float
    ) -> None:
        self._url, self._headers, self._params, self._silence = url, headers, params, silence
        self.guard = SilenceGuard(silence)
        self.has_reached_x = False  # whether the latest connection got through to X
        self.target = describe_target(url)

    @contextmanager
    def open(self, backfill_minutes: int | None) -> Iterator[requests.Response]:
        """Yield X's response; raise what requests, urllib3 or the socket raise."""
        self.has_reached_x = self.guard.has_fired = False
        params = [*self._params, ("backfill_minutes", backfill_minutes)]  # requests omits None
        try:
            with StreamSession() as session:
                for scheme in ("https://", "http://"):
                    session.mount(scheme, StreamAdapter(self))
                with session.get(
                    self._url,
                    params=params,
                    headers=self._headers,
                    auth=lambda request: request,  # a no-op, so that ~/.netrc is ignored
                    proxies={"http": ""},  # see proxy_for
                    stream=True,
                    timeout=(CONNECT_TIMEOUT, self._silence),
                ) as response:
                    self.guard.restart()
                    yield response
        finally:
            self.guard.release()


def describe_target(url: str) -> str:
    """Return the host, and the proxy used to reach it, without any password."""
    target = parse_url(url)
    proxy = proxy_for(url)
    if not proxy:
        return str(target.netloc)
    return f"{target.netloc} through the proxy {parse_address(proxy).netloc}"
