"""The main job, end to end: a real Kafka, a stand-in for X, and the three scripts as a user types them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from broker import Broker, BrokerError
from x_api import XApi

HERE = Path(__file__).parent.parent


def step(command: str, env: dict[str, str], events: int | None = None) -> None:
    """Show the command and run it; it must end with status 0, and print as many events as are asked for."""
    print(f"$ {command}", flush=True)
    done = subprocess.run(command, shell=True, cwd=HERE, env=env, stdout=subprocess.PIPE, timeout=60)  # noqa: S602
    sys.stdout.buffer.write(done.stdout + b"\n")
    sys.stdout.flush()
    if done.returncode:
        raise SystemExit(f"demo.py: this command ended with status {done.returncode}: {command}")
    if events is not None and done.stdout.count(b"\n") != events:
        raise SystemExit(f"demo.py: {events} events were to be printed")


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Starting a real Apache Kafka (the first time its packages come in, 44 MB) ...", flush=True)
    try:
        with Broker() as broker, XApi() as api:
            print(
                f"Apache Kafka {broker.version} runs at {broker.address}, a stand-in for X at {api.url}\n", flush=True
            )
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            env = {**os.environ, "PATH": path, "KAFKA_BOOTSTRAP_SERVERS": broker.address}
            env |= {
                "NO_PROXY": "127.0.0.1",
                "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
                "STREAM_URL": api.url,
                "BEARER_TOKEN": api.token,
            }
            step("python producer.py -n 5 --interval 0.2", env)
            step(r"printf '10.0.0.7 GET /index.html\n10.0.0.9 GET /prices.html\n' | python producer.py", env)
            step("python twitter-stream.py -n 5 --param tweet.fields=created_at,lang", env)
            step("python consumer.py -e", env, events=12)
            step("python consumer.py -e --json", env, events=12)
    except (BrokerError, subprocess.TimeoutExpired) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(
        "With your own broker and the real X: put KAFKA_BOOTSTRAP_SERVERS and BEARER_TOKEN into .env, see .env.example."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
