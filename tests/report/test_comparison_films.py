"""Which episodes a comparison shows, worked by hand."""

import numpy as np

from pipeline.report.comparison_films import episodes_to_show, median_of


def figures(returns: list[float], success: list[int]) -> dict[str, np.ndarray]:
    return {"return_mean": np.array(returns), "success_rate": np.array(success, float)}


def test_median_least_and_first_failure_of_the_first_set_and_the_median_of_every_other():
    played = {
        "train": figures([5.0, 1.0, 3.0, 2.0, 4.0], [1, 1, 1, 0, 0]),
        "holdout": figures([2.0, 9.0, 1.0], [0, 0, 0]),
    }
    assert episodes_to_show(played) == [
        ("median return", "train", 2),
        ("least return", "train", 1),
        ("first failure", "train", 3),
        ("median return", "holdout", 0),
    ]


def test_an_episode_is_shown_once_under_the_first_of_its_reasons():
    assert episodes_to_show({"train": figures([1.0, 1.0, 2.0], [0, 1, 1])}) == [
        ("median return", "train", 1),
        ("least return", "train", 0),
    ]
    assert episodes_to_show({"train": figures([1.0], [0])}) == [("median return", "train", 0)]


def test_the_median_is_the_lower_of_two_and_the_earlier_of_equals():
    assert [median_of(v) for v in ([3.0, 1.0, 2.0, 4.0], [1.0, 1.0, 1.0], [7.0])] == [2, 1, 0]
