"""What a console shows, and .env as Windows programs write it."""

from kafka import KafkaProducer

from remote import Console


def test_a_name_in_a_message(console: Console) -> None:
    shown = console.shown(850, "producer", "größe.txt")
    assert shown == ["producer.py: cannot read größe.txt: File not found"]


def test_events(console: Console, topic: str, producer: KafkaProducer) -> None:
    """In scripts that the console's code page lacks."""
    texts = ["größe", "Наконец-то", "오늘 날씨", "晚安"]
    for text in texts:
        producer.send(topic, text.encode())
    producer.flush()
    shown = console.shown(437, "consumer", "-t", topic, "-e")
    assert [line.replace("\0", "") for line in shown] == texts


def test_the_live_line(console: Console, topic: str) -> None:
    """The last message overwrites it and leaves no remains."""
    shown = console.shown(1252, "producer", "-t", topic, "-n", 3, "--interval", 0.8)
    assert shown == [f"producer.py: published 3 events to {topic}"]


def test_an_env_file_of_powershell(console: Console, topic: str) -> None:
    """In UTF-16. And localhost may resolve to ::1 first, where the broker does not listen."""
    port = console.env["KAFKA_BOOTSTRAP_SERVERS"].partition(":")[2]
    text = f"# größe\r\nKAFKA_CLIENT_ID='größe'\r\nKAFKA_BOOTSTRAP_SERVERS=localhost:{port}\r\n"
    console.file(".env", text.encode("utf-16"))
    unset = {"KAFKA_BOOTSTRAP_SERVERS": ""}  # an empty one counts as missing
    ended = console.run("producer", "-t", topic, "-n", 1, env=unset)
    assert (ended.status, ended.err) == (0, f"producer.py: published 1 event to {topic}\n")


def test_a_refused_connection(console: Console, port: int) -> None:
    """Windows has numbers of its own for the error."""
    impatient = {"STREAM_TEST_PATIENCE": "1"}
    ended = console.run("consumer", "-b", f"127.0.0.1:{port}", env=impatient)
    assert ended == (
        1,
        b"",
        f"consumer.py: cannot connect to Kafka at 127.0.0.1:{port}: connection refused. "
        "Is it running there? Check -b.\n",
    )
