"""End to end: a real Kafka, a stand-in for X, and the three scripts as a user runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from broker import Broker, BrokerError
from environment import use_environment
from x_api import XApi

HERE = Path(__file__).parent.parent
PROMPT = ">" if os.name == "nt" else "$"
COMMANDS = [
    ["producer.py", "-n", "5", "--interval", "0.2"],
    ["producer.py", os.path.join("demo", "visits.log")],
    ["twitter-stream.py", "-n", "5", "--param", "tweet.fields=created_at,lang"],
    ["consumer.py", "-e"],
    ["consumer.py", "-e", "--json"],
]
EVENTS = 12  # published by the first three together, and printed by each of the others


def main() -> int:
    use_environment()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Starting Apache Kafka (the first time, this downloads about 45 MB) ...", flush=True)
    try:
        with Broker() as broker, XApi() as api:
            kafka = f"Apache Kafka {broker.version} is running at {broker.address}"
            print(f"{kafka}, and a stand-in for X at {api.url}\n", flush=True)
            for command in COMMANDS:
                run(command, environment(broker, api))
    except (BrokerError, subprocess.TimeoutExpired) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(
        "To use your own broker and the real X, put KAFKA_BOOTSTRAP_SERVERS and BEARER_TOKEN in "
        ".env; see .env.example."
    )
    return 0


def environment(broker: Broker, api: XApi) -> dict[str, str]:
    """The user's own environment, set to use the broker and the stand-in."""
    return {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": broker.address,
        "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
        "STREAM_URL": api.url,
        "BEARER_TOKEN": api.token,
        "NO_PROXY": "127.0.0.1",
    }


def run(command: list[str], env: dict[str, str]) -> None:
    """Show a command and its output; end the demo if the output is not what it should be."""
    text = " ".join(["python", *command])
    print(f"{PROMPT} {text}", flush=True)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=HERE,
        env=env,
        stdin=subprocess.DEVNULL,  # a pipe's lines would be published
        stdout=subprocess.PIPE,
        timeout=300,
    )
    sys.stdout.buffer.write(done.stdout + b"\n")
    sys.stdout.flush()
    if done.returncode:
        raise SystemExit(f"demo.py: this command ended with status {done.returncode}: {text}")
    if "consumer.py" in command and done.stdout.count(b"\n") != EVENTS:
        raise SystemExit(f"demo.py: this command did not print {EVENTS} events: {text}")


if __name__ == "__main__":
    raise SystemExit(main())
