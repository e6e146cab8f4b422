"""Clients of a server, in a process of their own: `python -m benchmarks.serve_clients '{…}'`.

Each sends the next query as soon as the last one is answered, over a connection that it keeps.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import deque
from typing import Any


def main() -> None:
    """Print as JSON how long each answer took, what was no answer, and the processor time."""
    asked = json.loads(sys.stdin.read())
    queries = deque(asked["queries"])
    seconds: list[float] = []
    errors: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection(asked["host"], asked["port"], timeout=60)
        while queries:
            started = time.perf_counter()
            fault = _ask(connection, asked["path"], {**asked["body"], asked["field"]: _next()})
            seconds.append(time.perf_counter() - started)
            errors.extend(fault)

    def _next() -> str:
        try:
            return str(queries.popleft())
        except IndexError:
            return "the last one"

    threads = [threading.Thread(target=client) for _ in range(asked["clients"])]
    started, worked = time.perf_counter(), time.process_time()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    wall = time.perf_counter() - started
    found = {
        "wall_seconds": wall,
        "processor_seconds": time.process_time() - worked,
        "seconds": seconds,
        "errors": errors[:5],
    }
    print(json.dumps(found))


def _ask(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> list[str]:
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        connection.close()
        return [str(error)]
    return [] if answer.status == 200 else [content.decode()]


if __name__ == "__main__":
    main()
