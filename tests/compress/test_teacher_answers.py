"""Sequence-level distillation: which of the teacher's answers replace a label, and how each came about."""

import shutil
from pathlib import Path

import msgspec
import pytest

from bundle.answer import Answer, AnswerFinding, placed_line, write_answer
from bundle.evidence import Evidence
from compress.data.examples import Example, read_examples
from compress.data.tokens import TokenDataset, tokenize_examples
from compress.evaluation.generated import Generated
from compress.recipe import TeacherAnswers, Train
from compress.teacher_answers import read_provenance, write_teacher_answers
from compress.training import AnswerTrainer

SUMMARY = "Says what it does."


@pytest.fixture
def few(examples: list[Example]) -> list[Example]:
    """Six distinct units; the first of them has one known finding, the second none."""
    flawed = next(each for each in examples if len(each.findings) == 1)
    clean = [each for each in examples if not each.findings and each.has_summary]
    return [flawed, *clean[:5]]


class Asked:
    """A teacher whose answers are there already, as a run that was killed after writing them leaves them."""

    def __init__(self, checkpoint: Path, prompt, catalogue, tokenizer, out: Path) -> None:
        self.prompt, self.catalogue, self.tokenizer, self.out = prompt, catalogue, tokenizer, out
        self.teacher = out / "teacher"
        self.teacher.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):  # and no weights to ask
            shutil.copy(checkpoint / name, self.teacher)

    def answers(self, *texts: str, ended: bool = True, logprob: float = -0.01) -> None:
        """What the teacher wrote, one text for each distinct prompt in the order of the examples."""
        eos = [self.tokenizer.eos_token_id] if ended else []
        written = [self.prompt.encode_data(text) + eos for text in texts]
        (self.out / "shards").mkdir(exist_ok=True)
        shard = [Generated(ids, [logprob] * len(ids), 0.0) for ids in written]
        (self.out / "shards" / f"{0:09d}.json").write_bytes(msgspec.json.encode(shard))

    def judge(self, examples: list[Example], max_tokens: int = 512, **options) -> list[str]:
        """The verdict on each example."""
        chosen = TeacherAnswers(**options)
        counts = write_teacher_answers(
            self.teacher, examples, self.prompt, self.catalogue, chosen, max_tokens, 1, self.out
        )
        verdicts = [line.verdict for line in read_provenance(self.out)]
        assert counts == {verdict: verdicts.count(verdict) for verdict in counts}
        return verdicts

    @property
    def learnt(self) -> list[Example]:
        return read_examples(self.out / "train.jsonl")


@pytest.fixture
def asked(tiny_checkpoint, prompt, catalogue, tokenizer, tmp_path) -> Asked:
    return Asked(tiny_checkpoint, prompt, catalogue, tokenizer, tmp_path / "answers")


def answer(*findings: AnswerFinding, summary: str = SUMMARY) -> str:
    return write_answer(Answer(findings, summary))


def test_an_accepted_answer_is_learnt_with_its_summary_and_its_end(few, asked, prompt, tokenizer) -> None:
    flawed = few[0]
    asked.answers(answer(*flawed.findings), answer())
    assert asked.judge(few[:2]) == ["accepted", "accepted"]
    assert [example.unit.summary for example in asked.learnt] == [SUMMARY, SUMMARY]
    assert asked.learnt[0].findings == flawed.findings
    rows = tokenize_examples(asked.learnt, prompt, tokenizer.eos_token_id)
    assert all(row.ids[-1] == tokenizer.eos_token_id for row in rows)
    before = tokenize_examples(few[:2], prompt, tokenizer.eos_token_id)
    assert [row.ids[: row.answer_start] for row in rows] == [row.ids[: row.answer_start] for row in before]


def test_what_fails_a_filter_leaves_the_label_as_it_was(few, asked, catalogue) -> None:
    texts = few[1].unit.texts
    read = [
        AnswerFinding("variable-misuse", number, word, None)
        for number, text in enumerate(texts, start=1)
        for word in text.replace(".", " ").split()
    ]
    invented = next(
        each for each in read if placed_line(each, texts) == each.line and not Evidence(texts).contradicts(each)
    )
    elsewhere = AnswerFinding("variable-misuse", 1, "text that stands nowhere", None)
    asked.answers(answer(), answer(invented), answer(elsewhere), '{"findings":[', answer(), answer())
    assert asked.judge(few) == ["disagrees", "disagrees", "malformed", "malformed", "accepted", "accepted"]
    assert asked.learnt[:4] == few[:4]


def test_without_agreement_only_form_and_confidence_count(few, asked) -> None:
    asked.answers(answer(), answer(), logprob=-0.5)
    assert asked.judge(few[:2], agree=False) == ["accepted", "accepted"]
    assert asked.learnt[0].findings == ()


def test_an_answer_that_was_cut_off_is_not_learnt(few, asked) -> None:
    asked.answers(answer(), ended=False)
    assert asked.judge(few[1:2]) == ["truncated"]
    assert asked.learnt == few[1:2]


@pytest.mark.parametrize(("least", "verdict"), [(0.59, "accepted"), (0.62, "unsure")])
def test_confidence_is_the_geometric_mean_of_token_probabilities(few, asked, least: float, verdict: str) -> None:
    asked.answers(answer(), logprob=-0.5)  # e^-0.5 = 0.607
    assert asked.judge(few[1:2], min_confidence=least) == [verdict]
    assert read_provenance(asked.out)[0].confidence == pytest.approx(0.6065, abs=1e-4)


def test_the_same_answer_about_another_draw_of_a_unit_is_learnt_once(few, asked) -> None:
    asked.answers(answer())
    assert asked.judge([few[1], few[1]]) == ["accepted", "repeated"]


def test_a_unit_that_leaves_no_room_for_an_answer_is_not_asked_about(few, asked, prompt) -> None:
    asked.answers(answer())
    room = len(prompt.encode(few[1].unit)) + 96
    assert asked.judge(few[1:2], max_tokens=room) == ["accepted"]
    assert asked.judge(few[1:2], max_tokens=room - 1) == ["not asked"]


def test_max_units_are_asked_about(few, asked) -> None:
    asked.answers(answer(), answer())
    assert asked.judge(few[1:], max_units=2).count("not asked") == 3


def test_every_example_has_a_line_that_says_where_it_is_from(few, asked) -> None:
    asked.answers(answer(*few[0].findings))
    asked.judge(few[:1])
    (line,) = read_provenance(asked.out)
    assert (line.unit, line.start_line, line.planted) == (few[0].unit.name, few[0].unit.start_line, few[0].planted)
    assert line.answer == answer(*few[0].findings)


def test_a_teacher_that_knows_its_answers_is_believed(
    few, tiny_checkpoint, model, prompt, catalogue, tokenizer, tmp_path
):
    """The whole way: a real teacher that learnt the labels of these units by heart writes them down again."""
    known = [each for each in few if each.has_summary]
    dataset = TokenDataset(known, prompt, tokenizer.eos_token_id, 512)
    train = Train(learning_rate=5e-3, max_steps=60, per_device_train_batch_size=8, bf16=False)
    trainer = AnswerTrainer(
        model=model,
        tokenizer=tokenizer,
        train=train,
        dataset=dataset,
        out=tmp_path / "checkpoints",
        seed=1,
        description="teacher",
    )
    trainer.train_resuming(tmp_path / "teacher")
    out = tmp_path / "answers"
    out.mkdir()
    options = TeacherAnswers(max_tokens_per_batch=2048, max_answer_tokens=64)
    counts = write_teacher_answers(tmp_path / "teacher", known, prompt, catalogue, options, 512, 1, out)
    assert counts.get("accepted", 0) >= len(known) - 1, read_provenance(out)
    learnt = read_examples(out / "train.jsonl")
    assert sum(mine.answer_text == theirs.answer_text for mine, theirs in zip(learnt, known, strict=True)) >= 4
