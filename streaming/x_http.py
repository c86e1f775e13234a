"""One connection to X at a time: how it is opened and read, and what its failures mean."""

import re
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import IncompleteRead

import requests
import urllib3
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    LocationValueError,
    ProxyError,
    SSLError,
)
from urllib3.util import parse_url

from streaming.console import fail, printable
from streaming.sources import Line, LineSplitter, OversizedLine
from streaming.timing import PATIENCE
from streaming.x_messages import Answer, own_words
from streaming.x_pacing import (
    ENDED,
    HTTP,
    NETWORK,
    SILENCE,
    STALLED,
    UNREACHABLE,
    Disconnected,
    Unusable,
)

CONNECT_TIMEOUT = 3 * PATIENCE  # seconds, for each of X's addresses, and again for TLS
PROXY_TIMEOUT = 10 * PATIENCE  # the same for a proxy, which has to connect to X meanwhile
MAX_LINE_BYTES = 1 << 20  # no tweet comes close
BLOCK_BYTES = 1 << 16  # per read
ENCODINGS = ("br", "zstd", "compress")  # which urllib3 may be unable to decode
BLANKS_AND_BOM = b" \t\r\n\xef\xbb\xbf"

SILENT = f"no complete line from X for {SILENCE} s"
CA_BUNDLE = "cannot use the CA bundle in REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"
PROXY = "cannot use the proxy in HTTPS_PROXY, ALL_PROXY or the system's settings"
INVALID_PROXY = (
    f"{PROXY}: it must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with special "
    "characters percent-encoded"
)
NO_SOCKS = f"{PROXY}: SOCKS needs the package PySocks. Run: pip install PySocks"
# With these, the request has not got as far as X. A failed lookup of the host's name and a refused
# connection are ConnectTimeoutErrors, too
NEVER_REACHED_X = (ConnectTimeoutError, ProxyError, SSLError)
# Errors whose own messages vary, or are not meant for people
CAUSES: dict[type[BaseException], str] = {
    TimeoutError: "no response",
    ssl.SSLEOFError: "the TLS connection was closed",
    ssl.SSLZeroReturnError: "the TLS connection was closed",
    IncompleteRead: "the response was cut off or is not valid HTTP",  # of a chunk, either is
    zlib.error: "the response cannot be decompressed",
}


class StreamSession(requests.Session):
    """Never follows a redirect: the token is for X only, and requests would read the whole body."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class XStream:
    """X's stream at a URL, to be opened again and again.

    `params` are added to the URL; `second` is the length of a second in X's rules. Exits with
    status 2 if the URL is invalid.
    """

    def __init__(
        self, url: str, token: str, params: list[tuple[str, str]], second: float = 1.0
    ) -> None:
        check_url(url, params)
        self._url, self._params = url, params
        self._silence = max(SILENCE * second, 2 * PATIENCE)
        self._headers = {
            "Authorization": f"Bearer {token}",
            "User-Agent": "twitter-stream.py/1.0",
            "Accept-Encoding": "gzip",
        }

    @contextmanager
    def connect(self, backfill_minutes: int | None) -> Iterator["Connection"]:
        """Yield an open connection; raise Disconnected if X does not respond."""
        with StreamSession() as session, self._request(session, backfill_minutes) as response:
            yield Connection(response, self._silence)

    def _request(
        self, session: requests.Session, backfill_minutes: int | None
    ) -> requests.Response:
        """Return the response, whose body is still to be read."""
        target = str(parse_url(self._url).netloc)
        try:
            proxy = proxy_address(self._url)
            if proxy:
                target += f" through the proxy {proxy}"
            return session.get(
                self._url,
                # requests omits a parameter that is None
                params=[*self._params, ("backfill_minutes", backfill_minutes)],
                headers=self._headers,
                auth=lambda request: request,  # a no-op, so that ~/.netrc is ignored
                proxies={"http": ""},  # without TLS a proxy would see the token
                stream=True,
                timeout=(PROXY_TIMEOUT if proxy else CONNECT_TIMEOUT, self._silence),
            )
        except (OSError, HTTPError, ValueError) as error:  # from requests and urllib3
            raise failed_connect(error, target) from error


class Connection:
    """X's response, and its body as it arrives.

    `silence` is after how many seconds without a whole line the connection counts as broken.
    """

    def __init__(
        self,
        response: requests.Response,
        silence: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._response, self._silence, self._clock = response, silence, clock
        self.status: int = response.status_code

    def lines(self) -> Iterator[list[Line]]:
        r"""Yield the stream's lines, without their \n, as they arrive; end with Disconnected.

        The time that the caller takes with them (Kafka may be slow) does not count as silence.
        """
        splitter = LineSplitter(MAX_LINE_BYTES)
        heard_at = self._clock()
        try:
            for block in self._blocks():
                lines = splitter.feed(block)
                if lines:
                    yield lines
                    heard_at = self._clock()
                elif self._clock() > heard_at + self._silence:
                    raise TimeoutError
        except (OSError, HTTPError, ValueError) as error:  # from urllib3 and the socket
            raise broken_stream(error, splitter) from error
        last_line = splitter.flush()
        if last_line:
            yield last_line
        raise Disconnected("X ended the stream", ENDED)

    def _blocks(self) -> Iterator[bytes]:
        """Yield the body as it arrives; raise Disconnected if it turns out to be a web page."""
        self._check_encoding()
        has_begun = False
        while block := self._read():
            content = block.lstrip(BLANKS_AND_BOM)
            if content.startswith(b"<") and not has_begun:
                page = own_words(content + self._beginning())
                reason = f"200, but a web page instead of tweets: {page}"
                raise Disconnected(reason, HTTP, "a web page")
            has_begun = has_begun or bool(content)
            yield block

    def answer(self) -> Answer:
        """Return the whole response, which is not a stream."""
        response = self._response
        beginning = self._beginning()
        return Answer(response.url, self.status, response.reason or "", response.headers, beginning)

    def _beginning(self) -> bytes:
        """Return the first 64 KB of the body, or what arrives before a silence or an error."""
        body = b""
        deadline = self._clock() + self._silence
        try:
            self._check_encoding()
            while len(body) < BLOCK_BYTES and self._clock() < deadline:
                block = self._read()
                if not block:
                    break
                body += block
        except (OSError, HTTPError, ValueError):  # make do with what has arrived
            pass
        return body

    def _check_encoding(self) -> None:
        """Raise DecodeError if urllib3 would take a compressed body for a plain one."""
        header = self._response.headers.get("Content-Encoding", "").lower()
        for encoding in re.split("[, ]+", header):
            if encoding in ENCODINGS and encoding not in urllib3.HTTPResponse.CONTENT_DECODERS:
                raise DecodeError(
                    f"the response is compressed with {encoding}, which was not requested"
                )

    def _read(self) -> bytes:
        """Return what has arrived, waiting if there is nothing; b"" at the end."""
        # Not iter_lines, which loses lines when a connection drops
        block: bytes = self._response.raw.read1(BLOCK_BYTES, decode_content=True)
        return block


def check_url(url: str, params: list[tuple[str, str]]) -> None:
    """Exit if a URL is invalid, without showing a password in it."""
    try:
        if "@" in url:  # a user and a password, which the token makes useless
            raise ValueError("the URL must not contain @, as in USER:PASSWORD@HOST")
        requests.Request("GET", url, params=params).prepare()
        (parse_url(url).host or "").encode("idna")  # its labels may be empty or too long
    except ValueError as error:
        fail(f"invalid STREAM_URL or --param: {error}", 2)


def broken_stream(error: Exception, splitter: LineSplitter) -> Disconnected:
    """Turn an error while reading the stream into a Disconnected."""
    cuts_line = any(isinstance(line, OversizedLine) or line.strip() for line in splitter.flush())
    cause = causes(error)[-1]
    if isinstance(cause, TimeoutError):
        return Disconnected(SILENT, STALLED, cuts_line=cuts_line)
    return Disconnected(cause_text(cause), NETWORK, type(cause).__name__, cuts_line=cuts_line)


def failed_connect(error: Exception, target: str) -> Disconnected:
    """Turn an error before X has responded into a Disconnected."""
    chain = causes(error)
    cause = chain[-1]
    problem = unusable_setting(error, cause)
    if problem:
        return Unusable(problem)
    reason, kind = cause_text(cause), type(cause).__name__
    if any(isinstance(each, NEVER_REACHED_X) for each in chain):
        return Disconnected(f"cannot connect to {target}: {reason}", UNREACHABLE, kind)
    if isinstance(cause, TimeoutError):  # of a proxy, a TLS handshake or X
        reason = f"cannot connect to {target}: {reason}"
    return Disconnected(reason, NETWORK, kind)


def unusable_setting(error: Exception, cause: BaseException) -> str:
    """Return why no connection can be made with the proxy and the CA bundle; "" if one can.

    XStream has checked the URL, so an invalid one is the proxy's. It is not shown, as it may
    contain a password.
    """
    if isinstance(error, requests.exceptions.InvalidSchema):
        return NO_SOCKS
    if isinstance(error, (requests.exceptions.InvalidURL, LocationValueError)):
        return INVALID_PROXY
    if is_about_ca_bundle(error, cause):
        return f"{CA_BUNDLE}: {cause_text(cause)}"
    return ""


def is_about_ca_bundle(error: Exception, cause: BaseException) -> bool:
    """Return whether the file is missing, denied, or not PEM."""
    if isinstance(error, requests.exceptions.SSLError):
        of_openssl = getattr(cause, "library", None)  # the part that has failed
        return isinstance(cause, PermissionError) or of_openssl in ("X509", "PEM")
    return isinstance(error, OSError) and not isinstance(error, requests.RequestException)


def causes(error: BaseException) -> list[BaseException]:
    """Return the error and those that it wraps, as requests and urllib3 do, outermost first."""
    for wrapped in (getattr(error, "reason", None), *error.args, error.__cause__):
        if isinstance(wrapped, BaseException):
            return [error, *causes(wrapped)]
    return [error]


def cause_text(cause: BaseException) -> str:
    """Return an error's message without what its library puts around it."""
    for kind, text in CAUSES.items():
        if isinstance(cause, kind):
            return text
    # HTTPSConnection(host='…', port=443): reason
    text = str(cause).split("): ", 1)[-1]
    # [Errno 111] Connection refused; [SSL: CERTIFICATE_VERIFY_FAILED] reason (_ssl.c:1006)
    text = re.sub(r"^\[[^]]*\] | \(_ssl.*$", "", text)
    return printable(text).rstrip(".")


def proxy_address(url: str) -> str:
    """Return the host and port of the proxy used to reach the URL, or "" if there is none.

    Raise ValueError if the proxy's URL is invalid: in http://ann:12/3@proxy, the password would
    count as a port and a path.
    """
    # Without TLS there is none; see XStream
    proxy = select_proxy(url, get_environ_proxies(url)) if url.startswith("https://") else None
    if not proxy:
        return ""
    # requests, too, takes one without a scheme for HTTP
    parts = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    rest = f"{parts.host}{parts.path}{parts.query}{parts.fragment}"
    if not parts.host or parts.port == 0 or re.search("[\"'@]|//", rest):
        raise requests.exceptions.InvalidProxyURL
    return str(parts.netloc)
