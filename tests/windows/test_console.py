"""What a console shows, .env as Windows programs write it, and paths, on Windows."""

from remote import Console

import pytest
from kafka import KafkaProducer

CODE_PAGES = [437, 850, 1252]


@pytest.mark.parametrize("code_page", CODE_PAGES)
def test_a_name_in_a_message(console: Console, code_page: int) -> None:
    assert console.shown(code_page, "producer", "größe.txt") == [
        "producer.py: cannot read größe.txt: File not found"
    ]


@pytest.mark.parametrize("code_page", CODE_PAGES)
def test_events(console: Console, topic: str, producer: KafkaProducer, code_page: int) -> None:
    """In scripts of the Unicode plane that a console cell can hold."""
    texts = ["größe", "Наконец-то", "오늘 날씨", "晚安"]
    for text in texts:
        producer.send(topic, text.encode())
    producer.flush()
    shown = console.shown(code_page, "consumer", "-t", topic, "-e")
    assert [line.replace("\0", "") for line in shown] == texts


def test_the_live_line(console: Console, topic: str) -> None:
    """The last message overwrites it and leaves no remains."""
    shown = console.shown(437, "producer", "-t", topic, "-n", 3, "--interval", 0.8)
    assert shown == [f"producer.py: published 3 events to {topic}"]


ENV = "# größe\r\nKAFKA_CLIENT_ID='größe'\r\nKAFKA_BOOTSTRAP_SERVERS={address}\r\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"]
UNSET = {"KAFKA_BOOTSTRAP_SERVERS": ""}  # an empty one counts as missing


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_env_files(console: Console, topic: str, encoding: str) -> None:
    """UTF-16 begins with a byte order mark, as PowerShell's > and Notepad write it."""
    text = ENV.format(address=console.env["KAFKA_BOOTSTRAP_SERVERS"])
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (console.folder / ".env").write_bytes((mark + text).encode(encoding))
    ended = console.run("producer", "-t", topic, "-n", 1, env=UNSET)
    assert (ended.status, ended.err) == (0, f"producer.py: published 1 event to {topic}\n")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ENV.encode("cp1252"), "it is not UTF-8 text"),
        (
            b"KAFKA_CLIENT_ID=a\r\n" + "KAFKA_ACKS=1\r\n".encode("utf-16-le"),
            "part of it is UTF-16 text, which Windows PowerShell's >> writes",
        ),
    ],
)
def test_env_files_that_cannot_be_read(console: Console, data: bytes, reason: str) -> None:
    path = console.file(".env", data)
    assert console.run("consumer", "-e", env=UNSET)[:3] == (
        2,
        b"",
        f"consumer.py: cannot read {path}: {reason}. Save it as UTF-8.\n",
    )


def test_a_path_in_double_quotes(console: Console) -> None:
    console.file(
        ".env", b'KAFKA_SECURITY_PROTOCOL=SSL\r\nKAFKA_SSL_CAFILE="C:\\new\\tls\\ca.pem"\r\n'
    )
    ended = console.run("consumer", "-e")
    assert (ended.status, ended.err) == (
        2,
        r"consumer.py: cannot read C:\new\tls\ca.pem (KAFKA_SSL_CAFILE): in double quotes, a \ and "
        "the letter after it are a special character. Put the path in single quotes.\n",
    )


def test_a_path_in_single_quotes(console: Console) -> None:
    console.file(
        ".env", b"KAFKA_SECURITY_PROTOCOL=SSL\r\nKAFKA_SSL_CAFILE='C:\\new\\tls\\ca.pem'\r\n"
    )
    ended = console.run("consumer", "-e")
    assert ended.status == 2
    assert ended.err.startswith(r"consumer.py: cannot read C:\new\tls\ca.pem (KAFKA_SSL_CAFILE): ")


@pytest.mark.parametrize("script", ["producer", "consumer"])
def test_a_refused_connection(console: Console, script: str) -> None:
    ended = console.run(script, "-b", "127.0.0.1:9", "-n", 1)
    assert (ended.status, ended.err) == (
        1,
        f"{script}.py: cannot connect to Kafka at 127.0.0.1:9: connection refused. "
        "Is it running there? Check -b.\n",
    )


def test_localhost(console: Console, topic: str) -> None:
    """It may resolve to ::1 first, where the broker does not listen."""
    port = console.env["KAFKA_BOOTSTRAP_SERVERS"].partition(":")[2]
    assert console.run("producer", "-b", f"localhost:{port}", "-t", topic, "-n", 1).status == 0
