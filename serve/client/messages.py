"""What goes to a server and what comes back, as typed values: everything about the REST API but the sending."""

import re
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec
from httpx_sse import ServerSentEvent

from serve.analysis.report import Finding, Report, ReportModel, SkippedUnit, UnitReport
from serve.client.check import RuleText
from serve.client.errors import Problem, Refused, UnexpectedAnswer, read_problem, refusal
from serve.client.patience import TIMEOUT
from serve.search.messages import IndexRequest, SearchRequest

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"

Body = TypeVar("Body")


class AnalyzeRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of POST /v1/analyze. None means: the language of the path, every rule, the bundle's thresholds."""

    code: str
    path: str
    language: str | None = None
    rules: tuple[str, ...] | None = None
    min_confidence: float | None = None


class BatchItem(AnalyzeRequest, frozen=True, kw_only=True):
    """One file of POST /v1/analyze/batch; its line of the answer has the same `id`."""

    id: str


class BatchLine(msgspec.Struct, frozen=True):
    """One line of the answer to a batch: a report, or the error that stands for it."""

    id: str
    report: Report | None = None
    error: Problem | None = None


class ServedBundle(msgspec.Struct, frozen=True):
    """What a server serves. `thresholds`: per rule, the confidence a finding needs to be shown."""

    model: ReportModel
    language: str
    context_length: int
    rules: tuple[RuleText, ...]
    thresholds: dict[str, float]


BatchResult = tuple[AnalyzeRequest, Report | Refused]
Event = UnitReport | Finding | SkippedUnit | Report
_EVENTS: dict[str, type[Event]] = {"unit": UnitReport, "finding": Finding, "skipped": SkippedUnit, "report": Report}


class Server:
    """The address of one server, with the requests it takes and the answers it gives."""

    def __init__(self, url: str | httpx.URL, key: str | None) -> None:
        """
        Raises:
            ValueError: `url` is no http or https address, or holds a password beside the key; or the key is none.
        """
        self._url = httpx.URL(url)
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ValueError(f"{str(url)!r} is not an address like http://127.0.0.1:8000")
        if key is not None and self._url.userinfo:
            raise ValueError("give the user name and password of an address, or a key: a request carries only one")
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise ValueError("an API key has neither blanks nor line breaks and is ASCII; look at where it was read")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # Without the user name and password an URL may hold: this goes into messages.
        self.shown = f"{self._url.scheme}://{self._url.netloc.decode()}{self._url.path.rstrip('/')}"

    def analysis(self, request: AnalyzeRequest, accept: str) -> httpx.Request:
        """The request for one file's analysis; `accept` is the media type of the answer."""
        headers = self._headers | {"Content-Type": JSON, "Accept": accept}
        return self._request("POST", "/v1/analyze", headers, msgspec.json.encode(request))

    def batch(self, files: Sequence[AnalyzeRequest]) -> httpx.Request:
        """The request for many files' analyses; the file at position n is called `str(n)`."""
        items = [BatchItem(**msgspec.structs.asdict(file), id=str(position)) for position, file in enumerate(files)]
        headers = self._headers | {"Content-Type": JSON, "Accept": NDJSON}
        return self._request("POST", "/v1/analyze/batch", headers, msgspec.json.encode(items))

    def bundle(self) -> httpx.Request:
        """The request for what the server serves."""
        return self._request("GET", "/v1/bundle", self._headers)

    def indexing(self, request: IndexRequest) -> httpx.Request:
        """The request that takes files into a project's index and out of it."""
        return self._request("POST", "/v1/index", self._headers | {"Content-Type": JSON}, msgspec.json.encode(request))

    def project(self, method: str, project: str) -> httpx.Request:
        """The request for a project's files (GET), or to forget it (DELETE)."""
        return self._request(method, f"/v1/index/{quote(project, safe='')}", self._headers)

    def projects(self) -> httpx.Request:
        """The request for the projects that are indexed."""
        return self._request("GET", "/v1/index", self._headers)

    def search(self, request: SearchRequest) -> httpx.Request:
        """The request for code that fits a question."""
        return self._request("POST", "/v1/search", self._headers | {"Content-Type": JSON}, msgspec.json.encode(request))

    def _request(self, method: str, path: str, headers: dict[str, str], content: bytes | None = None) -> httpx.Request:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}{path}")
        # A request that no httpx client built has no timeouts of its own.
        limits = {"timeout": TIMEOUT.as_dict()}
        return httpx.Request(method, url, headers=headers, content=content, extensions=limits)

    def check(self, response: httpx.Response) -> None:
        """
        Raises:
            Refused: the response, whose body was read, is an error.
            UnexpectedAnswer: it leads elsewhere.
        """
        if response.is_redirect:
            raise UnexpectedAnswer(f"{self.shown} moved to {response.headers.get('Location')}; use that address")
        if not response.is_success:
            raise refusal(response.status_code, read_problem(response))

    def report(self, response: httpx.Response) -> Report:
        """The report that a successful response, whose body was read, holds.

        Raises:
            UnexpectedAnswer: it is none.
        """
        return self._decode(response.content, Report)

    def served(self, response: httpx.Response) -> ServedBundle:
        """What a successful response to `bundle()` says.

        Raises:
            UnexpectedAnswer: it is something else.
        """
        return self._decode(response.content, ServedBundle)

    def answer(self, response: httpx.Response, kind: type[Body]) -> Body:
        """A successful response, whose body was read, as what it should be.

        Raises:
            UnexpectedAnswer: it is something else.
        """
        return self._decode(response.content, kind)

    def event(self, sent: ServerSentEvent) -> Event | None:
        """What an event of a stream says; None for those that this version does not know.

        Raises:
            Refused: the server could not go on.
            UnexpectedAnswer: the event is not what its name says.
        """
        if sent.event == "error":
            problem = self._decode(sent.data.encode(), Problem)
            raise refusal(problem.status, problem)
        kind = _EVENTS.get(sent.event)
        return None if kind is None else self._decode(sent.data.encode(), kind)

    def batch_result(self, line: bytes, files: Sequence[AnalyzeRequest]) -> BatchResult:
        """What one line of the answer to `batch(files)` says.

        Raises:
            UnexpectedAnswer: it is about none of the files, or says nothing of it.
        """
        told = self._decode(line, BatchLine)
        result = told.report if told.error is None else refusal(told.error.status, told.error)
        if not told.id.isdecimal() or int(told.id) >= len(files) or result is None:
            raise UnexpectedAnswer(f"{self.shown} answered a batch with a line that is about none of its files")
        return files[int(told.id)], result

    def _decode(self, content: bytes, kind: type[Body]) -> Body:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise UnexpectedAnswer(
                f"{self.shown} did not answer with a {kind.__name__.lower()} this version can read ({error}); "
                "check that the address is one of a deepcode-serve of the same version"
            ) from error


def as_request(
    code: str, path: str, language: str | None, rules: Sequence[str] | None, min_confidence: float | None
) -> AnalyzeRequest:
    """The arguments of a client's methods as one request."""
    return AnalyzeRequest(code, path, language, None if rules is None else tuple(rules), min_confidence)


class Lines:
    """Bytes as they arrive, cut at line feeds alone: JSON may hold what other readers take for line ends."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, part: bytes) -> list[bytes]:
        """The lines that `part` completes."""
        *complete, self._rest = (self._rest + part).split(b"\n")
        return [line for line in complete if line]


def events_of(report: Report) -> tuple[Event, ...]:
    """The events of an analysis that was not streamed."""
    return (*report.findings, *report.skipped, report)
