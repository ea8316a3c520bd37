"""The choice of a token, beside the same in float64 and one line each."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serve.engine import sampling
from serve.engine.sampling import choose_token, scores_of

VOCABULARY = 70  # not a multiple of 32

logit_rows = arrays(np.float32, VOCABULARY, elements=st.floats(-30, 30, width=32))
allowed_sets = st.sets(st.integers(0, VOCABULARY - 1), min_size=1)


class OnlyThese:
    """A grammar of one token, which knows at a glance about some of the tokens that it allows."""

    def __init__(self, tokens: set[int], known: set[int]) -> None:
        self._tokens, self._known = tokens, known

    def permits(self, token: int) -> bool:
        return token in self._tokens & self._known

    def allowed(self) -> np.ndarray:
        return np.isin(np.arange(VOCABULARY), list(self._tokens))


def choose(logits: np.ndarray, *rest: object) -> tuple[int, float]:
    """One answer's token, its scores computed beside another's."""
    _, scores = scores_of(np.stack([logits[::-1], logits]), [False, True])
    return choose_token(scores, *rest)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    return exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())


@settings(deadline=None)
@given(logit_rows, allowed_sets, allowed_sets)
def test_without_heat_it_is_the_likeliest_allowed_token(logits: np.ndarray, allowed: set[int], known: set[int]) -> None:
    token, logprob = choose(logits, OnlyThese(allowed, known), 0.0, np.random.default_rng(0))
    assert token == max(sorted(allowed), key=lambda each: logits[each])
    assert math.isclose(logprob, log_softmax(logits)[token], abs_tol=1e-4), "its own probability, before the mask"
    assert choose(logits, None, 0.0, np.random.default_rng(0))[0] == int(logits.argmax())


@settings(deadline=None)
@given(logit_rows, allowed_sets, st.floats(0.1, 5), st.integers(0, 2**32))
def test_with_heat_it_is_an_allowed_token_that_the_seed_decides(
    logits: np.ndarray, allowed: set[int], temperature: float, seed: int
) -> None:
    matcher = OnlyThese(allowed, known=set())
    first, again = (choose(logits, matcher, temperature, np.random.default_rng(seed)) for _ in range(2))
    assert first == again
    assert first[0] in allowed
    assert math.isclose(first[1], log_softmax(logits)[first[0]], abs_tol=1e-4)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    draws, count = np.random.default_rng(0), 20_000
    drawn = np.bincount([choose(logits, None, 2.0, draws)[0] for _ in range(count)], minlength=4) / count
    assert np.abs(drawn - np.exp(log_softmax(logits / 2))).max() < 4 * 0.5 / math.sqrt(count)


@pytest.mark.parametrize("logits", [[np.nan, 0.0], [np.inf, 0.0]])
def test_a_student_that_writes_no_numbers_is_an_error(logits: list[float]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        choose(np.array(logits, np.float32), None, 0.0, np.random.default_rng(0))


@given(
    arrays(np.float32, (5, VOCABULARY), elements=st.floats(-30, 30, width=32)),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_scores_do_not_depend_on_the_answers_beside(logits: np.ndarray, logprobs: list[bool]) -> None:
    """Nor on what of them anybody reads."""
    alone = [scores_of(row[None], [True])[0] for row in logits]
    for together in (1, 2, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "CACHED_LOGITS", together * VOCABULARY)
            beside = scores_of(logits, logprobs)
        assert [each[1:3] for each in beside] == [each[1:3] for each in alone]
        assert all((each.logits == row).all() for each, row in zip(beside, logits, strict=True))
        assert [each.log_sum for each, read in zip(beside, logprobs, strict=True) if read] == [
            each.log_sum for each, read in zip(alone, logprobs, strict=True) if read
        ]
        assert all(math.isnan(each.log_sum) for each, read in zip(beside, logprobs, strict=True) if not read)


def test_one_answer_without_numbers_does_not_spoil_another() -> None:
    broken, sound = scores_of(np.array([[np.nan, 0.0], [1.0, 0.0]], np.float32), [True, True])
    assert choose_token(sound, None, 0.0, np.random.default_rng(0))[0] == 0
    with pytest.raises(ValueError, match="not finite"):
        choose_token(broken, None, 0.0, np.random.default_rng(0))
