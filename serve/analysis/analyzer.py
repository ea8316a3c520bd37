"""A file's analysis from beginning to end: code → units → prompts → engine → answers → report."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from bundle.answer import CLOSING, CLOSING_FINDINGS, Answer, parse_answer
from bundle.confidence import calibrated, finding_confidences
from bundle.manifest import Bundle
from bundle.prompt import Prompt
from bundle.units import Unit
from serve.analysis import report
from serve.analysis.findings import Candidate, as_findings, locate, merge
from serve.analysis.languages import language_of
from serve.analysis.summary import summarise, summarised_units
from serve.analysis.syntax import SyntaxWorkers
from serve.engine.base import Engine, EngineClosed, EngineError, GenerationRequest, Token

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


class _UnitResult(msgspec.Struct, frozen=True):
    """What came of asking about one unit: candidates and a sentence, or why not."""

    candidates: list[Candidate] = []
    sentence: str = ""
    skipped: str | None = None
    usage: report.Usage = report.Usage(prompt_tokens=0, cached_tokens=0, completion_tokens=0)


class Analyzer:
    """Analyses files with one bundle and one engine; requests run side by side."""

    def __init__(self, bundle: Bundle, prompt: Prompt, engine: Engine, units_at_once: int) -> None:
        """
        Args:
            bundle: the student's rules, language and thresholds.
            prompt: how it is asked.
            engine: who answers.
            units_at_once: how many units of one request may be with the engine, so that a long file
                does not fill its queue.
        """
        self._manifest, self._catalogue = bundle.manifest, bundle.catalogue
        self._prompt, self.engine = prompt, engine
        self._units_at_once = units_at_once
        self._syntax = SyntaxWorkers()
        self.model = report.ReportModel(
            name=self._manifest.name,
            revision=self._manifest.revision,
            weights_sha256=self._manifest.weights_sha256,
            quantization=self._manifest.exports[engine.name].quantization,
            engine=engine.name,
        )

    async def start(self) -> None:
        """Start what the first request would otherwise wait for.

        Raises:
            RuntimeError: the workers that parse code can not start here.
        """
        await self._syntax.start()

    async def analyze(self, request: AnalysisRequest) -> report.Report:
        """The report about one file. Cancelling this cancels its work in the engine.

        Raises:
            RefusedInput: an unknown rule, a language this bundle does not know, or text that is not code.
            UnparsableCode: the code does not parse.
            EngineClosed: the engine was closed meanwhile.
        """
        rules = self._rules(request.rules)
        self._check_language(request)
        if "\0" in request.code:
            raise BinaryInput("the code holds NUL characters, so it is not source text; send UTF-8 text")
        file = await self._syntax.cut(request.code)
        results = await self._ask_about_all(file.units, rules)
        candidates = merge(
            candidate
            for result in results
            for candidate in result.candidates
            if candidate.confidence >= self._threshold(candidate.rule, request.min_confidence)
        )
        return report.Report(
            schema_version=report.SCHEMA_VERSION,
            model=self.model,
            summary=summarise(file.units, {index: result.sentence for index, result in enumerate(results)}),
            findings=as_findings(
                candidates,
                await self._fixes_that_parse(candidates, file.lines),
                file.lines,
                request.path,
                self._catalogue,
            ),
            metrics=file.metrics,
            skipped=tuple(
                report.SkippedUnit(
                    name=unit.name,
                    start_line=unit.start_line,
                    end_line=unit.end_line,
                    reason=result.skipped,
                )
                for unit, result in zip(file.units, results, strict=True)
                if result.skipped is not None
            ),
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

    def _threshold(self, rule: str, asked: float | None) -> float:
        return self._manifest.thresholds.get(rule, DEFAULT_THRESHOLD) if asked is None else asked

    async def _ask_about_all(self, units: Sequence[Unit], rules: tuple[str, ...]) -> list[_UnitResult]:
        """Results in the order of the units; at most `units_at_once` are asked about at a time."""
        prompts = await asyncio.to_thread(lambda: [self._prompt.encode(unit) for unit in units])
        results = [_UnitResult(skipped=self._too_long(prompt)) for prompt in prompts]
        fitting = [index for index, result in enumerate(results) if result.skipped is None]
        summarised = summarised_units(units, fitting)
        remaining = iter(fitting)

        async def ask_next() -> None:
            for index in remaining:
                results[index] = await self._ask_about(
                    units[index], prompts[index], rules, with_summary=index in summarised
                )

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self._units_at_once, len(fitting))):
                    tasks.create_task(ask_next())
        except* EngineClosed as closed:
            raise EngineClosed("the server stopped before the analysis was complete") from closed
        return results

    def _too_long(self, prompt: Sequence[int]) -> str | None:
        context = self._manifest.context_length
        if len(prompt) + ANSWER_TOKENS <= context:
            return None
        return f"{len(prompt)} prompt tokens and {ANSWER_TOKENS} for the answer exceed the context of {context} tokens"

    async def _ask_about(
        self, unit: Unit, prompt: Sequence[int], rules: tuple[str, ...], with_summary: bool
    ) -> _UnitResult:
        tokens: list[Token] = []
        text = b""
        end = CLOSING_FINDINGS.encode()
        try:
            async with self.engine.submit(GenerationRequest(prompt, rules, len(unit.lines))) as stream:
                async for token in stream:
                    tokens.append(token)
                    text += token.data
                    if not with_summary and end in text:
                        # Nobody reads this unit's sentence: leaving the stream saves writing it.
                        text = text.partition(end)[0] + end + CLOSING.encode()
                        break
        except EngineClosed:
            raise
        except EngineError as error:
            return _UnitResult(skipped=f"the engine could not answer: {error}")
        usage = report.Usage(
            prompt_tokens=len(prompt), cached_tokens=stream.cached_tokens, completion_tokens=len(tokens)
        )
        if stream.finish_reason == "length":
            return _UnitResult(skipped="the answer did not fit the context", usage=usage)
        answer: Answer = parse_answer(text.decode())
        raw = finding_confidences((token.data, token.logprob) for token in tokens)
        confidences = [calibrated(confidence, self._manifest.calibration) for confidence in raw]
        return _UnitResult(
            candidates=locate(unit, answer, confidences, self._catalogue),
            sentence=answer.summary.strip() if with_summary else "",
            usage=usage,
        )

    async def _fixes_that_parse(self, candidates: Sequence[Candidate], lines: Sequence[str]) -> list[bool]:
        edits = [edit for candidate in candidates if (edit := candidate.edit) is not None]
        verdicts = iter(await self._syntax.parses_after(lines, edits))
        return [candidate.fix is not None and next(verdicts) for candidate in candidates]
