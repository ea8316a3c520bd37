"""Steady load on a server, from a pod that has nothing but Python: the client of scripts/cluster_test.py.

    python3 - URL KEY CLIENTS STOP < cluster_test_load.py

Half of the clients keep their connection, half make one for each request, as an Ingress and a script would. They ask
until the file STOP is there; then what came of each request is printed as JSON. What was answered is "200"; a request
that was turned away counts by its status, one that had no answer by its error.
"""

import http.client
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

KEPT, NEW = "kept connections", "new connections"
TIMEOUT_SECONDS = 60


class Client(threading.Thread):
    """One who asks about a function that nobody asked about before, waits for the answer, and asks again."""

    def __init__(self, number: int, url: str, key: str, stop: Path) -> None:
        super().__init__(daemon=True)
        self.kind = NEW if number % 2 else KEPT
        self.came: Counter[str] = Counter()
        self.slowest = 0.0
        self._number, self._stop_file = number, stop
        self._address = urlsplit(url)
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def run(self) -> None:
        connection = self._connect()
        asked = 0
        while not self._stop_file.exists():
            asked += 1
            code = f"def f{self._number}_{asked}(items=[]):\n    if items == None:\n        return {asked}\n"
            began = time.monotonic()
            try:
                connection.request("POST", "/v1/analyze", json.dumps({"code": code, "path": "f.py"}), self._headers)
                answer = connection.getresponse()
                answer.read()
                self.came[str(answer.status)] += 1
                kept = self.kind == KEPT and answer.getheader("connection") != "close"
            except (OSError, http.client.HTTPException) as error:
                self.came[type(error).__name__] += 1
                kept = False
            self.slowest = max(self.slowest, time.monotonic() - began)
            if not kept:
                connection.close()
                connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=TIMEOUT_SECONDS)


def main() -> None:
    """Ask, and say what came of it."""
    url, key, count, stop = sys.argv[1:]
    began = time.monotonic()
    clients = [Client(number, url, key, Path(stop)) for number in range(int(count))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    came = {
        kind: sum((client.came for client in clients if client.kind == kind), Counter[str]()) for kind in (KEPT, NEW)
    }
    slowest = max(client.slowest for client in clients)
    print(json.dumps({"came": came, "slowest": slowest, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
