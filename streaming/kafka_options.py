"""The Kafka client's options that can be set: their names, their types, and what fits together."""

import re
import ssl
from collections.abc import Callable
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from streaming.console import fail
from streaming.flags import is_broker_list
from streaming.kafka_errors import Explanation

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
ADVICE = {"ssl_certfile": "Check KAFKA_SSL_KEYFILE and KAFKA_SSL_PASSWORD."}
TLS_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")


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


def with_scram_name(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the user's name as SCRAM has to send it (RFC 5802, section 5.1).

    The client sends it as it is (kafka-python 3.0.12; kafka-python-ng pull request 196).
    """
    name = options.get("sasl_plain_username", "")
    if not (name and options.get("sasl_mechanism", "").startswith("SCRAM")):
        return options
    return {**options, "sasl_plain_username": name.replace("=", "=3D").replace(",", "=2C")}


def tls_context(options: dict[str, Any]) -> ssl.SSLContext | None:
    """Return the context for all TLS connections, or None without TLS.

    Exit if a TLS setting cannot be used. The client itself would read all files at each connection,
    and keep retrying or ask for the key's password on the terminal; and it ignores ssl_ciphers and
    fails with ssl_crlfile (kafka-python 3.0.12).
    """
    if not options.get("security_protocol", "").endswith("SSL"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = options.get("ssl_check_hostname", True)
    if not options.get("ssl_cafile"):
        context.load_default_certs()
    if options.get("ssl_crlfile"):
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    def load_certificate(path: str) -> None:
        key, password = options.get("ssl_keyfile"), options.get("ssl_password") or ""
        context.load_cert_chain(path, key, password)

    use_setting(options, "ssl_keyfile", check_readable)
    use_setting(options, "ssl_cafile", context.load_verify_locations)
    use_setting(options, "ssl_crlfile", context.load_verify_locations)
    use_setting(options, "ssl_ciphers", context.set_ciphers)
    use_setting(options, "ssl_certfile", load_certificate)
    return context


def use_setting(options: dict[str, Any], name: str, use: Callable[[str], object]) -> None:
    """Use a TLS setting if it is given; exit with its name and value if that fails."""
    value = options.get(name, "")
    try:
        if value:
            use(value)
    except OSError as error:  # ssl.SSLError is one, too
        shown, advice = value, ADVICE.get(name, "")
        if re.search(r"[\a\b\f\n\r\t\v]", value):  # "C:\new" has a line break in it
            shown, advice = repr(value), "Put the path in single quotes."
        reason = tls_reason(error) if isinstance(error, ssl.SSLError) else str(error.strerror)
        fail(f"cannot use KAFKA_{name.upper()}={shown}: {Explanation(reason, advice)}", status=2)


def check_readable(path: str) -> None:
    """Raise OSError if the file cannot be read; OpenSSL's error does not tell it from others."""
    with open(path, "rb"):
        pass


def tls_reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's error message without its codes."""
    text = re.sub(r"^\[[^]]*\] | \(_ssl.*$|\.$", "", str(error.args[-1]))
    return "wrong password or not a PEM file" if text == "PEM lib" else text
