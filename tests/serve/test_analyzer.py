"""Whole analyses in this process: any file of any length becomes one report."""

import argparse
import inspect
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

from bundle import units
from bundle.manifest import BundleError, open_bundle
from bundle.prompt import Prompt
from bundle.units import UnparsableCode, cut_units
from serve.analysis import asking
from serve.analysis.analyzer import AnalysisRequest, Analyzer, BinaryInput, UnknownRules, UnsupportedLanguage
from serve.analysis.loading import load_prompt, start_engine
from serve.analysis.local import LocalAnalyzer
from serve.analysis.report import Report
from serve.engine.base import GenerationRequest, Token
from serve.settings import Settings

FUNCTION = "def f(a):\n    return a[1]\n"


@pytest.fixture(scope="module")
def analyzer(tiny_bundle: Path) -> Iterator[LocalAnalyzer]:
    with LocalAnalyzer(tiny_bundle) as analyzer:
        yield analyzer


@pytest.fixture(scope="module")
def long_report(analyzer: LocalAnalyzer) -> Report:
    """A real module of more than a hundred units, everything the student says shown."""
    return analyzer.analyze(inspect.getsource(argparse), "lib/argparse.py", min_confidence=0)


def test_every_finding_of_a_long_file_can_be_checked(long_report: Report) -> None:
    lines = inspect.getsource(argparse).split("\n")
    assert len(long_report.findings) > 20
    for finding in long_report.findings:
        assert finding.path == "lib/argparse.py"
        assert finding.snippet == lines[finding.start_line - 1]
        assert finding.start_line == finding.end_line
        assert 1 <= finding.start_column < finding.end_column <= len(finding.snippet) + 1
        assert 0 <= finding.confidence <= 1
    places = [(finding.start_line, finding.start_column) for finding in long_report.findings]
    assert places == sorted(places)
    assert len({finding.fingerprint for finding in long_report.findings}) == len(places)


def test_every_unit_is_analysed_or_skipped_with_its_token_counts(long_report: Report) -> None:
    names = {unit.name for unit in cut_units(inspect.getsource(argparse))}
    too_long = "prompt tokens and 128 for the answer exceed the context of 1024 tokens"
    assert any(too_long in skipped.reason for skipped in long_report.skipped)
    for skipped in long_report.skipped:
        assert skipped.name in names
        assert skipped.start_line <= skipped.end_line
        # A random student may also write on and on.
        assert too_long in skipped.reason or skipped.reason == "the answer did not fit the context"


def test_usage_counts_tokens(long_report: Report) -> None:
    usage = long_report.usage
    assert 0 <= usage.cached_tokens < usage.prompt_tokens
    assert usage.completion_tokens > 0


def test_a_report_is_the_same_every_time(analyzer: LocalAnalyzer, long_report: Report) -> None:
    again = analyzer.analyze(inspect.getsource(argparse), "lib/argparse.py", min_confidence=0)
    assert again.findings == long_report.findings
    assert again.summary == long_report.summary


def test_a_report_survives_json(long_report: Report) -> None:
    assert msgspec.json.decode(msgspec.json.encode(long_report), type=Report) == long_report


def test_the_model_is_named_exactly(tiny_bundle: Path, long_report: Report) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert long_report.model.weights_sha256 == manifest.weights_sha256
    assert (long_report.model.quantization, long_report.model.engine) == ("int4", "onnx")


def test_only_the_rules_that_were_asked_for_are_named(analyzer: LocalAnalyzer) -> None:
    rules = ["off-by-one", "bare-except"]
    report = analyzer.analyze(inspect.getsource(units), "m.py", rules, min_confidence=0)
    assert report.findings
    assert {finding.rule for finding in report.findings} <= set(rules)


def test_unsure_findings_are_not_shown_unless_asked_for(analyzer: LocalAnalyzer) -> None:
    """Random weights are never sure of anything."""
    source = inspect.getsource(units)
    shown = analyzer.analyze(source, "m.py")
    everything = analyzer.analyze(source, "m.py", min_confidence=0)
    assert len(shown.findings) < len(everything.findings)
    assert all(finding.confidence >= 0.5 for finding in shown.findings)


@pytest.mark.parametrize("source", ["", "\n\n", "# only a comment\n", '"""A docstring."""\n', "\ufeff"])
def test_a_file_without_code_has_metrics_and_no_findings(analyzer: LocalAnalyzer, source: str) -> None:
    report = analyzer.analyze(source, "empty.py", min_confidence=0)
    assert report.findings == ()
    assert report.metrics.functions == 0


def test_one_unit_too_long_is_skipped_and_the_rest_analysed(analyzer: LocalAnalyzer) -> None:
    giant = "def giant(a):\n" + "".join(f"    a[{n}] = a[{n + 1}]\n" for n in range(400))
    rest = "".join(f"\n\ndef f{n}(a, b):\n    if a[{n}] == b:\n        return a\n    return b\n" for n in range(3))
    report = analyzer.analyze(giant + rest, "giant.py")
    assert [skipped.name for skipped in report.skipped] == ["giant"]
    assert report.usage.completion_tokens > 0
    assert report.summary, "the functions that were analysed have sentences"


def test_what_can_not_be_analysed_is_refused(analyzer: LocalAnalyzer) -> None:
    with pytest.raises(UnparsableCode) as unparsable:
        analyzer.analyze("def f(:\n")
    assert unparsable.value.line == 1
    with pytest.raises(UnknownRules, match=r"no-such-rule.*off-by-one"):
        analyzer.analyze(FUNCTION, rules=["no-such-rule"])
    with pytest.raises(UnsupportedLanguage, match="python, not javascript"):
        analyzer.analyze(FUNCTION, "app/main.js")
    with pytest.raises(BinaryInput):
        analyzer.analyze("\0ELF")


def test_a_path_without_a_known_extension_is_taken_for_the_bundles_language(analyzer: LocalAnalyzer) -> None:
    assert analyzer.analyze(FUNCTION, "scripts/run").metrics.functions == 1


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        LocalAnalyzer(tmp_path)


async def test_the_kv_cache_is_bounded_and_what_never_fits_it_is_skipped_with_what_to_do(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of 256 tokens fit: the short functions run side by side, the long one fits no longer row."""
    monkeypatch.setattr(asking, "LONGEST_ANSWER_TOKENS", 60)
    long = "def long(a):\n" + "".join(f"    a[{n}] = a[{n + 1}]\n" for n in range(60))
    short = "".join(f"\n\ndef f{n}(a):\n    return a[{n}]\n" for n in range(6))
    bundle = open_bundle(tiny_bundle)
    prompt = load_prompt(bundle)
    (prompt_ids,) = (prompt.encode(unit) for unit in cut_units(long))
    assert 512 < len(prompt_ids) + 60 < bundle.manifest.context_length
    reports = []
    for kv_tokens in (512, 0):
        engine = start_engine(bundle, prompt, Settings(bundle=tiny_bundle, slots=4, kv_tokens=kv_tokens), 1)
        try:
            analyzer = Analyzer(bundle, prompt, engine, units_at_once=4)
            prepared = await analyzer.prepare(AnalysisRequest(code=long + short, min_confidence=0))
            reports.append(await analyzer.analyze(prepared))
            assert engine.stats().kv_tokens == (kv_tokens or 4 * bundle.manifest.context_length)
        finally:
            engine.close()
    bounded, whole = reports
    never_fits = [skipped for skipped in bounded.skipped if "raise --kv-tokens" in skipped.reason]
    assert [skipped.name for skipped in never_fits] == ["long"]
    assert not any("--kv-tokens" in skipped.reason for skipped in whole.skipped)
    of_short = [finding for finding in whole.findings if finding.start_line > long.count("\n")]
    assert list(bounded.findings) == of_short


class OneAnswer:
    """An engine whose student is right about `FUNCTION`, and half sure of it."""

    name = "onnx"
    quantization = "int4"
    cached_tokens = 0
    written = 3
    finish_reason = "stop"

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator["OneAnswer"]:
        yield self

    async def whole(self) -> list[Token]:
        return [
            Token(0, b'{"findings":[', 0.0, True),
            Token(1, b'{"rule":"off-by-one","line":2,', math.log(0.5), False),
            Token(2, b'"at":"1","fix":"0"}],"summary":""}', 0.0, False),
        ]


@pytest.mark.parametrize(
    ("calibration", "threshold", "confidences"),
    [
        ((), 0.4, [0.5]),
        ((), 0.6, []),
        (((0.0, 0.0), (0.5, 0.3), (1.0, 1.0)), 0.4, []),
        (((0.0, 0.0), (0.5, 0.7), (1.0, 1.0)), 0.6, [0.7]),
    ],
)
async def test_thresholds_are_compared_with_calibrated_confidences_and_those_are_shown(
    tiny_bundle: Path, calibration, threshold: float, confidences: list[float]
) -> None:
    bundle = open_bundle(tiny_bundle)
    manifest = msgspec.structs.replace(
        bundle.manifest, calibration={"off-by-one": calibration}, thresholds={"off-by-one": threshold}
    )
    prompt = Prompt(bundle.prompt_template, bundle.catalogue, Tokenizer.from_file(str(bundle.tokenizer_file)))
    analyzer = Analyzer(msgspec.structs.replace(bundle, manifest=manifest), prompt, OneAnswer(), units_at_once=1)
    report = await analyzer.analyze(await analyzer.prepare(AnalysisRequest(code=FUNCTION)))
    assert [finding.confidence for finding in report.findings] == confidences
