"""The report's page: whole without a network, true to what models said, and harmless whatever they said."""

import re
from pathlib import Path

import msgspec
import pytest

from bundle.answer import AnswerFinding
from compress.data.examples import Example
from compress.evaluate import Baseline, Confidence, Evaluation, Row
from compress.evaluation.answers import NOTHING, Said
from compress.evaluation.baselines import always_clean
from compress.evaluation.scores import score
from compress.plots import training_curves
from compress.report import Story, write_report
from compress.samples import Sample, read_samples, sample_answers, write_samples

HISTORY = [
    {"step": 10, "loss": 2.0, "alpha": 0.3, "teacher_entropy": 1.5},
    {"step": 20, "loss": 1.0, "alpha": 0.3, "teacher_entropy": 1.4},
    {"step": 20, "tokens_per_second": 900.0},
]


@pytest.fixture
def evaluation(examples: list[Example], catalogue) -> Evaluation:
    """Of a teacher and a student that find nothing."""
    scores = score(examples, always_clean(examples), catalogue)
    numbers = dict.fromkeys(("f1", "precision", "recall", "hygiene_f1", "length_retention", "term_retention"), 0.0)
    sizes = {"parameters": 1, "bytes_on_disk": 1_500_000, "kv_bytes_per_token": 1, "peak_memory_bytes": 1}
    rows = [
        Row(model=name, scores=scores, shown=None, tokens_per_second=speed, units_per_second=1, **numbers, **sizes)
        for name, speed in (("teacher", 100.0), ("student", 2500.0))
    ]
    return Evaluation(
        name="small",
        units={"natural": 1, "planted": 1, "projects": 1},
        rows=rows,
        baselines=[Baseline("always clean", scores)],
        confidence=Confidence({}, 0, 0, None, None),
        thresholds=dict.fromkeys(catalogue.ids, 0.5),
        retention={},
        gate={},
        gate_passed=True,
        failures=[],
    )


def test_the_page_holds_everything_and_asks_for_nothing(evaluation: Evaluation, tmp_path: Path) -> None:
    sample = Sample("a defect it missed", "m.py, f", "", "1 def f(): ...", (("teacher", "{}"), ("student", "{}")))
    story = Story({"student": HISTORY}, [sample], {"name": "small", "seed": 7}, {"stages": {"data": "abc"}})
    write_report(evaluation, tmp_path, story)
    page = (tmp_path / "report.html").read_text()
    for part in (
        "<svg",
        "a defect it missed",
        "seed: 7",
        "data: abc",
        "2,500",
        "1.5",
        'name="viewport"',
        "@media print",
    ):
        assert part in page, part
    assert re.search(r'(src|href)="(?!#)|@import|url\((?!#)', page) is None
    assert msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Evaluation) == evaluation


def test_an_answer_cannot_become_part_of_the_page(evaluation: Evaluation, tmp_path: Path) -> None:
    said = "<script>alert(1)</script>"
    sample = Sample("an answer that is none", said, said, said, (("student", said),))
    write_report(evaluation, tmp_path, Story({}, [sample], {"name": said}, {}))
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") == 5


def test_bars_are_as_long_as_their_share_of_the_largest(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    page = (tmp_path / "report.html").read_text()
    speeds = page[page.index("tokens a second") :]
    assert re.findall(r'width:([\d.]+)%"></i></span><span>([\d,]+)<', speeds)[:2] == [
        ("4.0", "100"),
        ("100.0", "2,500"),
    ]


def test_there_is_a_curve_for_what_changes() -> None:
    curves = training_curves({"student": HISTORY})
    assert len(curves) == 2, "alpha never changes, and one point is no curve"
    assert ">loss<" in curves[0] and "entropy at T" in curves[1]
    assert training_curves({}) == []


def test_samples_are_the_first_of_their_kind_and_survive_a_file(examples: list[Example], tmp_path: Path) -> None:
    planted = next(place for place, example in enumerate(examples) if example.planted is not None)
    clean = next(place for place, example in enumerate(examples) if not example.findings)
    alarm = Said(True, (AnswerFinding("bare-except", 1, "x", None),), (0.5,))
    right = Said(True, examples[planted].findings, (0.9,) * len(examples[planted].findings))
    said = [NOTHING] * len(examples)
    said[planted], said[clean] = right, alarm
    texts = {model: [f"{model} {place}" for place in range(len(examples))] for model in ("teacher", "student")}
    found = sample_answers(
        examples, texts, {"teacher": [NOTHING] * len(examples), "student": said}, ["teacher", "student"]
    )
    by_kind = {sample.kind: sample for sample in found}
    assert by_kind["a defect it found"].answers == (
        ("teacher", f"teacher {planted}"),
        ("student", f"student {planted}"),
    )
    assert by_kind["a false alarm on clean code"].answers[1] == ("student", f"student {clean}")
    assert examples[planted].planted in by_kind["a defect it found"].truth
    assert "an answer that is none" not in by_kind
    write_samples(found, tmp_path / "samples.json")
    assert read_samples(tmp_path / "samples.json") == found
