"""The Kafka client's options that can be set: their names, their types, and what fits together."""

import ssl
from collections.abc import Callable
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from streaming.console import fail
from streaming.flags import is_broker_list
from streaming.kafka_errors import advise_package, tls_reason
from streaming.kafka_internals import can_compress

DEFAULTS: dict[str, Any] = {
    **KafkaAdminClient.DEFAULT_CONFIG,
    **KafkaConsumer.DEFAULT_CONFIG,
    **KafkaProducer.DEFAULT_CONFIG,
}
# Flags set these, or the scripts' guarantees depend on them
FIXED_OPTIONS = {
    "acks",
    "auto_offset_reset",
    "enable_auto_commit",
    "exclude_internal_topics",
    "group_id",
    "max_block_ms",
    "transactional_id",
}
# These take Python objects, although their default is None
OBJECT_OPTIONS = {
    "key_deserializer",
    "key_serializer",
    "sasl_oauth_token_provider",
    "ssl_context",
    "value_deserializer",
    "value_serializer",
}
# {KAFKA_<NAME>: name} for the options that can be given as text
KAFKA_OPTIONS = {
    f"KAFKA_{name.upper()}": name
    for name, default in DEFAULTS.items()
    if name not in FIXED_OPTIONS | OBJECT_OPTIONS
    and isinstance(default, (str, float, int, type(None)))
}
CHOICES: dict[str, dict[str, Any]] = {
    "security_protocol": {
        name: name for name in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
    },
    "compression_type": {
        "none": None,
        **{name: name for name in ("gzip", "snappy", "lz4", "zstd")},
    },
}
PASSWORD_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TLS_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
# The special characters that .env allows in double quotes, and how they are written there
ESCAPES = str.maketrans(
    {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
)


def parse_option(name: str, text: str) -> object:
    """Convert an option's text to the type that the client wants, which is that of its default.

    Raise ValueError with a message saying what the text must be.
    """
    default = DEFAULTS[name]
    if name == "bootstrap_servers" and not is_broker_list(text):
        raise ValueError("in the form HOST:PORT,HOST:PORT")
    if name in CHOICES:
        return _parse_choice(text, CHOICES[name])
    if isinstance(default, bool):
        return _parse_choice(text, {"true": True, "false": False})
    if isinstance(default, int) or name.endswith("_bytes"):
        return _parse_number(text, int, "a whole number")
    if isinstance(default, float):
        return _parse_number(text, float, "a number")
    return text


def _parse_choice(text: str, choices: dict[str, Any]) -> object:
    """Return the value of the choice that the text names, ignoring case."""
    for name, value in choices.items():
        if text.lower() == name.lower():
            return value
    *others, last = choices
    raise ValueError(f"{', '.join(others)} or {last}")


def _parse_number(text: str, convert: Callable[[str], object], expected: str) -> object:
    try:
        return convert(text)
    except ValueError:
        raise ValueError(expected) from None


def check_login(options: dict[str, Any]) -> None:
    """Exit if a SASL setting is missing: the client would just keep retrying."""
    protocol = options.get("security_protocol", "")
    if not protocol.startswith("SASL"):
        return
    required = ["sasl_mechanism"]
    if options.get("sasl_mechanism") in PASSWORD_MECHANISMS:
        required += ["sasl_plain_username", "sasl_plain_password"]
    for name in required:
        if not options.get(name):
            fail(
                f"KAFKA_{name.upper()} is missing; {protocol} needs it. See .env.example.", status=2
            )


def check_compression(options: dict[str, Any]) -> None:
    """Exit if the package for the compression type is missing."""
    compression_type = options.get("compression_type")
    if compression_type and not can_compress(compression_type):
        advice = advise_package(compression_type)
        fail(f"cannot use KAFKA_COMPRESSION_TYPE={compression_type}: {advice}", status=2)


def tls_context(options: dict[str, Any]) -> ssl.SSLContext | None:
    """Return the context for all TLS connections, or None without TLS.

    Exit if a file or another TLS setting cannot be used. The client itself would read all files at
    each connection, and keep retrying or ask for the key's password on the terminal; and it ignores
    ssl_ciphers and fails with ssl_crlfile (kafka-python 3.0.12).
    """
    if not options.get("security_protocol", "").endswith("SSL"):
        return None
    for name in TLS_FILES:
        _check_readable(name, options.get(name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = options.get("ssl_check_hostname", True)
    _load_authorities(context, options)
    if options.get("ssl_ciphers"):
        _set_ciphers(context, options["ssl_ciphers"])
    if options.get("ssl_certfile"):
        _load_certificate(context, options)
    return context


def _load_authorities(context: ssl.SSLContext, options: dict[str, Any]) -> None:
    """Load the certificates to trust, and those that have been revoked."""
    if not options.get("ssl_cafile"):
        context.load_default_certs()
    if options.get("ssl_crlfile"):
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    for name in ("ssl_cafile", "ssl_crlfile"):
        path = options.get(name)
        try:
            if path:
                context.load_verify_locations(path)
        except ssl.SSLError as error:
            fail(f"cannot use {path} (KAFKA_{name.upper()}): {tls_reason(error)}", status=2)


def _set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError as error:
        fail(f"cannot use KAFKA_SSL_CIPHERS={ciphers}: {tls_reason(error)}", status=2)


def _load_certificate(context: ssl.SSLContext, options: dict[str, Any]) -> None:
    certificate = options["ssl_certfile"]
    key = options.get("ssl_keyfile") or certificate
    try:
        context.load_cert_chain(certificate, key, options.get("ssl_password") or "")
    except ssl.SSLError as error:
        fail(
            f"cannot use {certificate} (KAFKA_SSL_CERTFILE) with key {key}: {tls_reason(error)}. "
            "Check KAFKA_SSL_KEYFILE and KAFKA_SSL_PASSWORD.",
            status=2,
        )


def _check_readable(name: str, path: str | None) -> None:
    """Exit if a file is unreadable; OpenSSL's own errors do not say which."""
    if not path:
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        variable = f"KAFKA_{name.upper()}"
        if path.isprintable():
            fail(f"cannot read {path} ({variable}): {error.strerror}", status=2)
        fail(
            f"cannot read {path.translate(ESCAPES)} ({variable}): in double quotes, a \\ and the "
            "letter after it are a special character. Put the path in single quotes.",
            status=2,
        )
