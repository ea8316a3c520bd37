"""Why an analysis was not done, as exceptions a program can tell apart."""

import httpx
import msgspec

TYPE_PREFIX = "urn:deepcode-analyst:problem:"


class Problem(msgspec.Struct, frozen=True):
    """What this client reads of an application/problem+json body; of any other body `detail` is its first line."""

    type: str = ""
    title: str = ""
    status: int = 0
    detail: str = ""
    line: int | None = None
    column: int | None = None
    unknown: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    supported: tuple[str, ...] = ()


class ClientError(Exception):
    """An analysis was not done; the message says why and what to do."""


class ServerUnreachable(ClientError):
    """Nobody listens at the address, however often it was tried."""


class NoAnswer(ClientError):
    """The server took the request and did not finish its answer."""


class ServerBusy(ClientError):
    """The server would have this client wait longer than it is willing to."""


class UnexpectedAnswer(ClientError):
    """What answers at the address is no deepcode-serve, or one of another version."""


class Refused(ClientError):
    """The server said no. `problem.type` is stable, `problem.detail` is for people."""

    def __init__(self, status: int, problem: Problem) -> None:
        self.said = problem.detail or problem.title or "no reason given"
        super().__init__(f"refused by the server ({status}): {self.said}")
        self.status, self.problem = status, problem


class KeyRefused(Refused):
    """The server wants an API key, and this one is missing or not among its own."""


class UnparsableCode(Refused):
    """The code does not parse, at `problem.line` and `problem.column` where the parser knows them."""


class UnknownRules(Refused):
    """Rules were asked for that the bundle does not have; `problem.unknown` and `problem.known` list them."""


class UnsupportedLanguage(Refused):
    """The bundle analyses other languages: `problem.supported`."""


class UnknownProject(Refused):
    """The server's code search has no project of that name."""


class NoSearch(Refused):
    """The server was started without a search bundle."""


_BY_KIND: dict[str, type[Refused]] = {
    "unparsable-code": UnparsableCode,
    "unknown-rules": UnknownRules,
    "unsupported-language": UnsupportedLanguage,
    "unknown-project": UnknownProject,
    "no-search": NoSearch,
}
_KEY_STATUSES = frozenset({401, 403})


def refusal(status: int, problem: Problem) -> Refused:
    """The exception for an error answer."""
    if status in _KEY_STATUSES:
        return KeyRefused(status, problem)
    return _BY_KIND.get(problem.type.removeprefix(TYPE_PREFIX), Refused)(status, problem)


def read_problem(response: httpx.Response) -> Problem:
    """The problem a response, whose body was read, describes."""
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except (msgspec.MsgspecError, UnicodeError):
        return Problem(detail=next(iter(response.text.strip().splitlines()), "")[:200])
