"""A container's health: exits with 0 when the server in it lives. Needs nothing but Python."""

import http.client
import os
import sys


def main() -> int:
    """0 when /health/live says so, else 1."""
    server = http.client.HTTPConnection("127.0.0.1", int(os.environ["DEEPCODE_PORT"]), timeout=2)
    try:
        server.request("GET", "/health/live")
        return int(server.getresponse().status != 200)
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
