import numpy as np
import pytest
import scipy.stats

from pipeline.statistics.shift import measure_shift


def episodes(generator: np.random.Generator, count: int, shift: float = 0.0, stretch: float = 1.0) -> list[np.ndarray]:
    """Episodes of 20 to 60 steps of 5 features that wander slowly around a level of their own."""
    made = []
    for _ in range(count):
        length = int(generator.integers(20, 60))
        level = generator.normal(size=5)
        wander = np.cumsum(generator.normal(size=(length, 5)), axis=0) * 0.1
        made.append((level + wander) * stretch + np.array([shift, 0, 0, 0, 0]))
    return made


def test_the_distance_of_a_feature_is_the_kolmogorov_smirnov_statistic() -> None:
    generator = np.random.default_rng(0)
    a, b = episodes(generator, 40), episodes(generator, 40, shift=0.8)
    reference = scipy.stats.ks_2samp(np.concatenate(a)[:, 0], np.concatenate(b)[:, 0]).statistic
    feature = next(f for f in measure_shift(a, b, permutations=20).features if f.name == "observation[0]")
    assert feature.distance == pytest.approx(reference, abs=1 / 64)  # the bins
    assert feature.mean_difference == pytest.approx(np.concatenate(b)[:, 0].mean() - np.concatenate(a)[:, 0].mean())


def test_disjoint_observations_have_distance_one_and_equal_ones_zero() -> None:
    low, high = [np.zeros((10, 1))] * 30, [np.ones((10, 1))] * 30
    assert measure_shift(low, high).distance == pytest.approx(1.0)
    assert measure_shift(low, high).p_value < 0.01
    assert measure_shift(low, low).distance == pytest.approx(0.0)
    assert measure_shift(low, low).p_value == 1.0


@pytest.mark.slow
def test_false_alarms_on_matching_samples_are_as_rare_as_promised() -> None:
    generator = np.random.default_rng(1)
    p_values = [
        measure_shift(episodes(generator, 30), episodes(generator, 40), seed=trial, permutations=79).p_value
        for trial in range(100)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.11  # 5 % promised, 100 trials
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
def test_permuting_steps_instead_of_episodes_would_cry_wolf() -> None:
    generator = np.random.default_rng(2)
    naive, ours = [], []
    for trial in range(20):
        a, b = episodes(generator, 30), episodes(generator, 30)
        naive.append(scipy.stats.ks_2samp(np.concatenate(a)[:, 0], np.concatenate(b)[:, 0]).pvalue)
        ours.append(measure_shift(a, b, seed=trial, permutations=99).p_value)
    assert np.mean(np.array(naive) <= 0.05) > 0.6
    assert np.mean(np.array(ours) <= 0.05) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"shift": 1.3}, {"stretch": 2.0}])
def test_a_real_shift_is_found_nearly_always(change: dict[str, float]) -> None:
    generator = np.random.default_rng(3)
    found = [
        measure_shift(episodes(generator, 60), episodes(generator, 60, **change), permutations=150).shifted
        for _ in range(25)
    ]
    assert np.mean(found) >= 0.9


def test_the_shifted_feature_is_named_first_and_the_others_stay_silent() -> None:
    generator = np.random.default_rng(4)
    shift = measure_shift(episodes(generator, 60), episodes(generator, 60, shift=1.5), names=list("abcde"))
    assert shift.features[0].name == "a"
    assert shift.features[0].p_value <= 0.01
    assert all(f.p_value > 0.01 for f in shift.features[1:])
    assert shift.distance > 2 * shift.expected_distance * 0.9


def test_a_shift_that_lies_in_a_correlation_alone_is_found() -> None:
    generator = np.random.default_rng(5)

    def correlated(sign: float) -> list[np.ndarray]:
        noise = generator.normal(size=(120, 20, 2))
        return [np.stack([n[:, 0], sign * n[:, 0] + 0.1 * n[:, 1]], axis=1) for n in noise]

    shift = measure_shift(correlated(1.0), correlated(-1.0))
    assert shift.shifted
    assert all(f.p_value > 0.01 for f in shift.features)  # neither feature alone differs


def scenario_episodes(generator: np.random.Generator, shift: float = 0.0) -> tuple[list[np.ndarray], list[str]]:
    """Ten episodes of each of four scenarios whose observations lie far apart."""
    made = []
    for level in range(4):
        made += [e + 3.0 * level for e in episodes(generator, 10, shift)]
    return made, [f"scenario {level}" for level in range(4) for _ in range(10)]


@pytest.mark.slow
def test_permuting_within_scenarios_finds_a_shift_that_equal_shares_would_hide_and_stays_honest() -> None:
    generator = np.random.default_rng(8)
    alarms, found, hidden = [], [], []
    for trial in range(30):
        a, in_a = scenario_episodes(generator)
        b, in_b = scenario_episodes(generator)
        c, in_c = scenario_episodes(generator, shift=2.0)
        alarms.append(measure_shift(a, b, seed=trial, permutations=79, scenarios=(in_a, in_b)).p_value)
        found.append(measure_shift(a, c, seed=trial, permutations=79, scenarios=(in_a, in_c)).p_value)
        hidden.append(measure_shift(a, c, seed=trial, permutations=79).p_value)
    assert np.mean(np.array(alarms) <= 0.05) <= 0.17
    assert np.mean(np.array(found) <= 0.05) >= 0.9
    assert np.mean(np.array(hidden) <= 0.05) < np.mean(np.array(found) <= 0.05)


def test_scenarios_of_one_side_alone_count_as_a_shift() -> None:
    generator = np.random.default_rng(9)
    low, high = episodes(generator, 30), episodes(generator, 30, shift=4.0)
    assert measure_shift(low, high, scenarios=(["known"] * 30, ["new"] * 30)).shifted
    mixed = (["known"] * 30, ["known"] * 15 + ["new"] * 15)
    assert measure_shift(low, episodes(generator, 15) + high[:15], scenarios=mixed).shifted


def test_scenarios_that_do_not_fit_the_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 and 2 scenarios"):
        measure_shift([np.ones((3, 2))] * 2, [np.ones((3, 2))] * 2, scenarios=(["a"], ["a", "b"]))


def test_pictures_are_compared_by_projections_alone() -> None:
    generator = np.random.default_rng(6)
    dark = [generator.integers(0, 100, (5, 20, 20), dtype=np.uint8) for _ in range(12)]
    bright = [generator.integers(100, 200, (5, 20, 20), dtype=np.uint8) for _ in range(12)]
    shift = measure_shift(dark, bright)
    assert shift.features == ()
    assert shift.shifted


def test_the_same_seed_gives_the_same_measure() -> None:
    generator = np.random.default_rng(7)
    a, b = episodes(generator, 10), episodes(generator, 10)
    assert measure_shift(a, b, seed=1) == measure_shift(a, b, seed=1)


@pytest.mark.parametrize(
    ("a", "b", "names", "message"),
    [
        ([np.ones((3, 2))], [np.ones((3, 2))] * 2, None, "two episodes"),
        ([np.ones((3, 2))] * 2, [np.ones((3, 3))] * 2, None, "different shapes"),
        ([np.ones((3, 2))] * 2, [np.ones((0, 2))] * 2, None, "without observations"),
        ([np.ones((3, 2))] * 2, [np.full((3, 2), np.nan)] * 2, None, "finite"),
        ([np.ones((3, 2))] * 2, [np.ones((3, 2))] * 2, ["one"], "1 names for 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: list, b: list, names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_shift(a, b, names)
