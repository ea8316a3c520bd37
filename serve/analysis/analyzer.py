"""A file's analysis from beginning to end: code → units → prompts → engine → answers → report."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from bundle.answer import parse_answer
from bundle.confidence import calibrated
from bundle.manifest import Bundle
from bundle.prompt import Prompt
from bundle.units import Unit
from serve.analysis import report
from serve.analysis.asking import Asker, Call, NotAnswered, Observer, UnitAnswer
from serve.analysis.cache import AnswerCache
from serve.analysis.findings import Candidate, as_findings, locate, merge
from serve.analysis.languages import language_of
from serve.analysis.report import Report
from serve.analysis.results import NO_TOKENS, UnitResult, distinct_names, unit_result
from serve.analysis.summary import summarise, summarised_units
from serve.analysis.syntax import CutFile, SyntaxWorkers
from serve.engine.base import Engine, EngineClosed

# A unit is asked about only if its prompt leaves this much of the context for the answer: three findings
# and a sentence. A longer answer may use whatever is left.
ANSWER_TOKENS = 128
DEFAULT_THRESHOLD = 0.5


class RefusedInput(ValueError):
    """The request can not be analysed as it is; the message says what to change."""


class UnknownRules(RefusedInput):
    """Rules were asked for that the bundle's catalogue does not have."""

    def __init__(self, unknown: Sequence[str], known: Sequence[str]) -> None:
        super().__init__(f"unknown rules: {', '.join(unknown)}; this bundle knows {', '.join(known)}")
        self.unknown, self.known = tuple(unknown), tuple(known)


class UnsupportedLanguage(RefusedInput):
    """The code is in a language the bundle's student was not trained on."""

    def __init__(self, language: str, supported: str) -> None:
        super().__init__(f"this bundle analyses {supported}, not {language}")
        self.language, self.supported = language, supported


class BinaryInput(RefusedInput):
    """The text holds NUL characters: it is not source code."""


class AnalysisRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file to analyse. None means: the language of the path, every rule, the bundle's thresholds."""

    code: str
    path: Annotated[str, Meta(max_length=4096)] = "<input>"
    language: str | None = None
    rules: tuple[str, ...] | None = None
    min_confidence: Annotated[float, Meta(ge=0, le=1)] | None = None


class PreparedAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be analysed: its rules are known and its code is cut, unless its report was kept.

    `key` is the report's name in the cache, when there is one.
    """

    request: AnalysisRequest
    call: Call
    rules: tuple[str, ...]
    key: str | None
    file: CutFile | None
    kept: report.Report | None


class Analyzer:
    """Analyses files with one bundle and one engine; requests run side by side."""

    def __init__(
        self,
        bundle: Bundle,
        prompt: Prompt,
        engine: Engine,
        units_at_once: int,
        cache: AnswerCache | None = None,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            bundle: the student's rules, language and thresholds.
            prompt: how it is asked.
            engine: who answers.
            units_at_once: how many units of one request may be with the engine, so that a long file
                does not fill its queue.
            cache: where answers and reports are kept; None keeps none.
            observer: told of every engine request.
        """
        self._manifest, self._catalogue = bundle.manifest, bundle.catalogue
        self._prompt, self.engine = prompt, engine
        self._asker = Asker(engine, cache, observer)
        self._cache = cache
        self._units_at_once = units_at_once
        self._syntax = SyntaxWorkers()
        self.model = report.ReportModel(
            name=self._manifest.name,
            revision=self._manifest.revision,
            weights_sha256=self._manifest.weights_sha256,
            quantization=engine.quantization,
            engine=engine.name,
        )

    async def start(self) -> None:
        """Start what the first request would otherwise wait for.

        Raises:
            RuntimeError: the workers that parse code can not start here.
        """
        await self._syntax.start()

    async def prepare(self, request: AnalysisRequest, call: Call | None = None) -> PreparedAnalysis:
        """Refuse what can not be analysed, and cut the rest, before the engine is asked anything.

        Raises:
            RefusedInput: an unknown rule, a language this bundle does not know, or text that is not code.
            UnparsableCode: the code does not parse.
        """
        call = call or Call()
        rules = self._rules(request.rules)
        self._check_language(request)
        if "\0" in request.code:
            raise BinaryInput("the code holds NUL characters, so it is not source text; send UTF-8 text")
        key = file = kept = None
        if self._cache is not None:
            key = self._cache.key(call.tenant, "report", request.code, request.path, rules, request.min_confidence)
            kept = await self._cache.get(key, report.Report)
        if kept is None:
            file = await self._syntax.cut(request.code)
        return PreparedAnalysis(request=request, call=call, rules=rules, key=key, file=file, kept=kept)

    async def analyze(self, prepared: PreparedAnalysis, on_unit: Callable[[UnitResult], None] | None = None) -> Report:
        """The report about one file. Cancelling this cancels its work in the engine.

        Args:
            prepared: what `prepare` gave.
            on_unit: called with each unit's result as soon as it is there; never for a report that was kept.

        Raises:
            EngineClosed: the engine was closed, or broke down, meanwhile.
        """
        if prepared.file is None:
            assert prepared.kept is not None, "a request is cut unless its report was kept"
            return msgspec.structs.replace(prepared.kept, usage=prepared.kept.usage.from_cache())
        results = await self._ask_about_all(prepared, prepared.file, on_unit)
        answer = self._report(prepared.file, results)
        if self._cache is not None and prepared.key is not None and all(result.lasting for result in results):
            await self._cache.put(prepared.key, answer)
        return answer

    def _report(self, file: CutFile, results: Sequence[UnitResult]) -> Report:
        findings = (finding for result in results for finding in result.findings)
        return Report(
            schema_version=report.SCHEMA_VERSION,
            model=self.model,
            summary=summarise(file.units, {index: result.sentence for index, result in enumerate(results)}),
            findings=tuple(sorted(findings, key=lambda each: (each.start_line, each.start_column, each.rule))),
            metrics=file.metrics,
            skipped=tuple(result.skipped for result in results if result.skipped is not None),
            usage=report.Usage(
                prompt_tokens=sum(result.usage.prompt_tokens for result in results),
                cached_tokens=sum(result.usage.cached_tokens for result in results),
                completion_tokens=sum(result.usage.completion_tokens for result in results),
            ),
        )

    def _rules(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        known = self._catalogue.ids
        if asked is None:
            return known
        unknown = [rule for rule in asked if rule not in known]
        if unknown:
            raise UnknownRules(unknown, known)
        return tuple(rule for rule in known if rule in asked)

    def _check_language(self, request: AnalysisRequest) -> None:
        language = request.language or language_of(request.path)
        if language is not None and language.lower() != self._manifest.language:
            raise UnsupportedLanguage(language, self._manifest.language)

    async def _ask_about_all(
        self, prepared: PreparedAnalysis, file: CutFile, on_unit: Callable[[UnitResult], None] | None
    ) -> list[UnitResult]:
        """Results in the order of the units; at most `units_at_once` are asked about at a time."""
        prompts = await asyncio.to_thread(self._prompt.encode_all, file.units)
        too_long = [self._too_long(prompt) for prompt in prompts]
        fitting = [index for index, reason in enumerate(too_long) if reason is None]
        summarised = summarised_units(file.units, fitting)
        labels = distinct_names(file.units)
        results: dict[int, UnitResult] = {}

        def finish(index: int, answer: UnitAnswer | str, findings: tuple[report.Finding, ...] = ()) -> None:
            """`answer`: or why there is none this time."""
            result = unit_result(file.units[index], answer, findings, len(results) + 1, len(file.units))
            results[index] = result
            if on_unit is not None:
                on_unit(result)

        async def check(index: int, answer: UnitAnswer, unit: Unit, candidates: list[Candidate]) -> None:
            finish(index, answer, await self._checked(unit, candidates, file.lines, prepared.request))

        remaining = iter(fitting)

        async def ask_next() -> None:
            for index in remaining:
                try:
                    answer = await self._asker.ask(
                        file.units[index], prompts[index], prepared.rules, index in summarised, prepared.call
                    )
                except NotAnswered as error:
                    finish(index, str(error))
                    continue
                unit = msgspec.structs.replace(file.units[index], name=labels[index])
                candidates = self._candidates(unit, answer, prepared.request)
                if candidates:
                    # Checked beside the next question: the engine does not wait for a parser.
                    tasks.create_task(check(index, answer, unit, candidates))
                else:
                    finish(index, answer)

        for index, reason in enumerate(too_long):
            if reason is not None:
                finish(index, UnitAnswer("", (), NO_TOKENS, unfinished=reason))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self._units_at_once, len(fitting))):
                    tasks.create_task(ask_next())
        except ExceptionGroup as failed:
            closed = failed.subgroup(EngineClosed)
            if closed is None:
                raise
            raise closed.exceptions[0] from failed
        return [result for _, result in sorted(results.items())]

    def _too_long(self, prompt: Sequence[int]) -> str | None:
        context = self._manifest.context_length
        if len(prompt) + ANSWER_TOKENS <= context:
            return None
        return f"{len(prompt)} prompt tokens and {ANSWER_TOKENS} for the answer exceed the context of {context} tokens"

    def _candidates(self, unit: Unit, answer: UnitAnswer, request: AnalysisRequest) -> list[Candidate]:
        """What an answer says that is sure enough: the rest is not worth asking the syntax about.

        Args:
            unit: under a name that no other unit of the file has.
            answer: about it.
            request: for its threshold.
        """
        if answer.unfinished is not None:
            return []
        written, curves = parse_answer(answer.text), self._manifest.calibration
        confidences = [
            calibrated(confidence, curves.get(finding.rule, ()))
            for finding, confidence in zip(written.findings, answer.confidences, strict=True)
        ]
        return merge(self._sure_enough(locate(unit, written, confidences, self._catalogue), request))

    async def _checked(
        self, unit: Unit, candidates: Sequence[Candidate], lines: Sequence[str], request: AnalysisRequest
    ) -> tuple[report.Finding, ...]:
        """What of the candidates the syntax bears out, as findings in the file of these lines."""
        checked = await self._syntax.check(unit, candidates, lines)
        return as_findings(list(self._sure_enough(checked, request)), lines, request.path, self._catalogue)

    def _sure_enough(self, candidates: Iterable[Candidate], request: AnalysisRequest) -> Iterator[Candidate]:
        return (
            candidate
            for candidate in candidates
            if candidate.confidence >= self._threshold(candidate.rule, request.min_confidence)
        )

    def _threshold(self, rule: str, asked: float | None) -> float:
        return self._manifest.thresholds.get(rule, DEFAULT_THRESHOLD) if asked is None else asked
