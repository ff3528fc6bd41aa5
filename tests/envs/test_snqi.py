"""SNQI worked by hand, each error of its files, and the fit of a baseline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.statistics.snqi import (
    TERMS,
    Quantiles,
    fit_baseline,
    load_baseline,
    load_weights,
    snqi,
    write_baseline,
)

SNQI_FILES = Path(__file__).resolve().parents[2] / "configs" / "social_nav"
WEIGHTS_FILE, BASELINE_FILE = SNQI_FILES / "snqi_weights.json", SNQI_FILES / "snqi_baseline.json"
WEIGHTS = {"success": 1, "time": 0.8, "collisions": 2, "near": 1, "comfort": 0.5, "force_exceed": 1.5, "jerk": 0.3}
BASELINE = {
    "collision": {"med": 0.0, "p95": 1.0},
    "near_misses": {"med": 2.0, "p95": 12.0},
    "force_exceed_events": {"med": 0.0, "p95": 20.0},
    "jerk_mean": {"med": 1.0, "p95": 5.0},
}


def file(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def episodes(**values: list[float]) -> dict[str, np.ndarray]:
    count = len(next(iter(values.values())))
    return {metric: np.array(values.get(metric, [0.0] * count)) for metric in TERMS.values()}


def test_the_index_of_three_episodes_worked_by_hand(tmp_path: Path) -> None:
    weights = load_weights(file(tmp_path / "w.json", WEIGHTS))
    baseline = load_baseline(file(tmp_path / "b.json", BASELINE))
    metrics = episodes(
        success=[1.0, 0.0, 1.0],
        time_norm=[0.5, 1.0, 0.25],
        collision=[0.0, 1.0, 0.0],
        near_misses=[7.0, 40.0, 0.0],
        comfort_exposure=[0.1, 0.2, 0.0],
        force_exceed_events=[5.0, 10.0, 0.0],
        jerk_mean=[2.0, 9.0, 1.0],
    )
    expected = [
        1 - 0.8 * 0.5 - 2 * 0 - 1 * 0.5 - 0.5 * 0.1 - 1.5 * 0.25 - 0.3 * 0.25,
        0 - 0.8 * 1 - 2 * 1 - 1 * 1 - 0.5 * 0.2 - 1.5 * 0.5 - 0.3 * 1,
        1 - 0.8 * 0.25,
    ]
    np.testing.assert_allclose(snqi(metrics, weights, baseline), expected)


def test_the_shipped_files_hold_the_default_weights_and_a_usable_baseline() -> None:
    assert load_weights(WEIGHTS_FILE) == WEIGHTS
    baseline = load_baseline(BASELINE_FILE)
    assert baseline["collision"] == Quantiles(med=0.0, p95=1.0)
    assert all(spread.p95 > spread.med >= 0.0 for spread in baseline.values())


def test_every_missing_key_is_named(tmp_path: Path) -> None:
    for content, load in ((WEIGHTS, load_weights), (BASELINE, load_baseline)):
        for key in content:
            path = file(tmp_path / "f.json", {k: v for k, v in content.items() if k != key})
            with pytest.raises(BadInput, match=f"key '{key}' is missing"):
                load(path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", '"1"', "true", "null"])
def test_a_weight_that_is_no_finite_number_from_zero_is_named(tmp_path: Path, value: str) -> None:
    text = json.dumps(WEIGHTS).replace('"near": 1', f'"near": {value}')
    with pytest.raises(BadInput, match=r"near = .*: input should be "):
        load_weights(file(tmp_path / "w.json", text))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"med": 2.0}, r"near_misses\.p95' is missing"),
        ({"med": 2.0, "p95": float("nan")}, r"near_misses\.p95 = nan"),
        ({"med": "2", "p95": 3.0}, r"near_misses\.med = '2'"),
        ({"med": 2.0, "p95": 2.0}, r"near_misses: p95 is 2\.0, which must exceed med"),
        ({"med": 2.0, "p95": 1.0}, "must exceed"),
        (3.0, "near_misses = 3.0"),
    ],
)
def test_an_unusable_baseline_entry_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_baseline(file(tmp_path / "b.json", BASELINE | {"near_misses": entry}))


def test_an_unknown_key_is_named_with_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"unknown key 'nears'.*Did you mean 'near'"):
        load_weights(file(tmp_path / "w.json", WEIGHTS | {"nears": 1.0}))


@pytest.mark.parametrize("content", ["{", "[1, 2]", ""])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(BadInput, match="SNQI file"):
        load_weights(file(tmp_path / "w.json", content))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such file: .*nothing\.json"):
        load_baseline(tmp_path / "nothing.json")


def test_a_metric_that_is_not_there_is_no_zero() -> None:
    metrics = episodes(success=[1.0])
    del metrics["jerk_mean"]
    baseline = {metric: Quantiles(med=entry["med"], p95=entry["p95"]) for metric, entry in BASELINE.items()}
    with pytest.raises(BadInput, match="jerk_mean"):
        snqi(metrics, WEIGHTS, baseline)


def test_a_fitted_baseline_is_medians_and_percentiles_and_survives_the_file(tmp_path: Path) -> None:
    values = [float(v) for v in range(101)]
    baseline = fit_baseline(
        episodes(collision=[0.0] * 101, near_misses=values, force_exceed_events=values, jerk_mean=values)
    )
    assert baseline["near_misses"] == Quantiles(med=50.0, p95=95.0)
    assert baseline["collision"] == Quantiles(med=0.0, p95=1.0)
    file = tmp_path / "new" / "b.json"
    write_baseline(file, baseline)
    assert load_baseline(file) == baseline


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jerk_mean": None}, "lack the metric 'jerk_mean'"),
        ({"jerk_mean": np.zeros(3)}, "'jerk_mean' has no spread"),
        ({"jerk_mean": np.array([0.0, np.nan, 1.0])}, "not finite"),
        ({"near_misses": np.zeros(0)}, "'near_misses' has no values"),
    ],
)
def test_episodes_that_cannot_give_a_baseline_are_refused(change: dict[str, Any], message: str) -> None:
    metrics: dict[str, Any] = episodes(near_misses=[0.0, 1.0, 5.0], force_exceed_events=[0, 1, 5], jerk_mean=[0, 1, 5])
    metrics = {key: value for key, value in (metrics | change).items() if value is not None}
    with pytest.raises(BadInput, match=message):
        fit_baseline(metrics)
