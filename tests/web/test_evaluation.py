"""The evaluation the page is tested with is one that compress could have written."""

import msgspec

from compress.evaluate import Evaluation
from tests.web.scripted_page import EVALUATION


def test_the_evaluation_is_one_of_todays() -> None:
    evaluation = msgspec.json.decode(EVALUATION, type=Evaluation)

    assert evaluation.rows[-1].shown is not None
    assert evaluation.baselines
