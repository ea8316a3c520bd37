"""What is asked of a JSON body beyond its schema."""

import json
from typing import Any

from serve.api.errors import Problem


def refuse_repeated_keys(body: bytes) -> None:
    """Two readers of `{"code": …, "code": …}` may see different code, so nobody should read it.

    Args:
        body: JSON that was decoded once already.

    Raises:
        Problem: 400, an object has a key twice.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else None
        if repeated:
            raise Problem(
                "repeated-key", 400, "A key is repeated", f"The body has more than one {', '.join(repeated)}."
            )

    json.loads(body, object_pairs_hook=check)
