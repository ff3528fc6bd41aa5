"""A good dataset passes; each corrupted copy is refused by exactly the rule that names the fault, and says where."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from pendulum_dataset import NOISE, TASK, act, describe

from pipeline.config.loading import validate as validate_config
from pipeline.config.task import TaskConfig
from pipeline.data import arrays_digest, metadata_digest, write_dataset
from pipeline.data.spaces import space_to_json
from pipeline.validation.facts import Approval, Refusal
from pipeline.validation.rules import CATALOGUE, validate

ANY = object()  # for values that another test computes by hand
RECORD = 3 << 29  # first seed of the range for recording
T = 40  # steps of every episode


@dataclass(frozen=True)
class Corruption:
    """What is done to arrays and metadata, and the finding that must be the first one."""

    name: str
    rule: str
    apply: Callable[[dict[str, np.ndarray], dict[str, Any]], None]
    episode: int | None = None
    step: int | None = None
    value: Any = ANY
    bound: Any = ANY
    context: dict[str, Any] = field(default_factory=dict)
    replayed: bool = False
    sealed: tuple[str, ...] = ("content_digest", "metadata_digest")  # digests that a careless writer gets right

    def __str__(self) -> str:
        return self.name


def put(name: str, index: Any, value: Any) -> Callable:
    """arrays[name][index] = value"""
    return lambda arrays, metadata: arrays[name].__setitem__(index, value)


def as_type(name: str, dtype: Any) -> Callable:
    return lambda arrays, metadata: arrays.__setitem__(name, arrays[name].astype(dtype))


def without(name: str) -> Callable:
    return lambda arrays, metadata: arrays.__delitem__(name)


def said(key: str, value: Any) -> Callable:
    """metadata[key] = value"""
    return lambda arrays, metadata: metadata.__setitem__(key, value)


def unsaid(key: str) -> Callable:
    return lambda arrays, metadata: metadata.__delitem__(key)


def scaled_actions(arrays, metadata):
    for name in ("actions", "executed_actions"):
        arrays[name] = arrays[name] * np.float32(100)


def zero_actions(arrays, metadata):
    for name in ("actions", "executed_actions"):
        arrays[name] = np.zeros_like(arrays[name])
    metadata["noise_std"] = 0.0


def still_episodes(arrays, metadata):
    for name in ("actions", "executed_actions"):
        arrays[name][4 * T : 10 * T] = 0.5
    metadata["noise_std"] = 0.0
    arrays["executed_actions"][:] = arrays["actions"]


def copies(arrays, metadata):
    """Every episode is the first one; seeds and scenarios stay."""
    count = len(arrays["lengths"])
    arrays["observations"] = np.tile(arrays["observations"][: T + 1], (count, 1))
    for name in ("actions", "executed_actions", "rewards", "terminations", "truncations"):
        arrays[name] = np.concatenate([arrays[name][:T]] * count)
    for name in ("metric.return", "metric.success", "metric.length"):
        arrays[name][:] = arrays[name][0]


def one_copy(arrays, metadata):
    arrays["observations"][7 * (T + 1) : 8 * (T + 1)] = arrays["observations"][2 * (T + 1) : 3 * (T + 1)]
    for name in ("actions", "executed_actions", "rewards"):
        arrays[name][7 * T : 8 * T] = arrays[name][2 * T : 3 * T]
    for name in ("metric.return", "metric.success"):
        arrays[name][7] = arrays[name][2]


def empty_episode(arrays, metadata):
    """Episode 5 loses its steps and keeps its first observation."""
    rows = np.arange(5 * (T + 1) + 1, 6 * (T + 1))
    arrays["observations"] = np.delete(arrays["observations"], rows, axis=0)
    for name in ("actions", "executed_actions", "rewards", "terminations", "truncations"):
        arrays[name] = np.delete(arrays[name], np.arange(5 * T, 6 * T), axis=0)
    arrays["lengths"][5], metadata["steps"] = 0, metadata["steps"] - T


def no_episodes(arrays, metadata):
    for name in arrays:
        arrays[name] = arrays[name][:0]
    metadata.update(episodes=0, steps=0)


def half_precision(arrays, metadata):
    rows = slice(3 * (T + 1), 4 * (T + 1))
    arrays["observations"][rows] = arrays["observations"][rows].astype(np.float16)


def relabelled(scenario: str) -> Callable:
    """Episode 0 is said to be from another scenario, and the coverage agrees."""

    def apply(arrays, metadata):
        names = arrays["scenarios"].astype("<U64")
        names[0] = scenario
        arrays["scenarios"] = names
        found, counts = np.unique(names, return_counts=True)
        metadata["scenario_coverage"] = {str(n): int(c) for n, c in zip(found, counts, strict=True)}
        total = len(names)
        metadata["requested_shares"] = {n: c / total for n, c in metadata["scenario_coverage"].items()}

    return apply


def skewed(arrays, metadata):
    arrays["scenarios"][:] = "normal"
    arrays["scenarios"][:3] = "light"
    metadata["scenario_coverage"] = {"normal": 27, "light": 3}


def filtered(arrays, metadata):
    metadata["filter"] = {"min_return": float(arrays["metric.return"].min()) + 1e-3, "only_success": False}


def only_success(arrays, metadata):
    metadata["filter"] = {"min_return": None, "only_success": True}
    arrays["metric.success"][:] = 1
    arrays["metric.success"][12] = 0


def rows_of(arrays) -> np.ndarray:
    return arrays["observations"].reshape(-1, T + 1, arrays["observations"].shape[1])


def late(arrays, metadata):
    """Row t holds the observation after step t."""
    rows = rows_of(arrays).copy()
    rows[:, :-1] = rows[:, 1:]
    arrays["observations"] = rows.reshape(-1, rows.shape[2])


def early(arrays, metadata):
    rows = rows_of(arrays).copy()
    rows[:, 1:] = rows_of(arrays)[:, :-1]
    arrays["observations"] = rows.reshape(-1, rows.shape[2])


def rolled(arrays, metadata):
    arrays["observations"] = np.roll(arrays["observations"], 1, axis=0)


def late_without_a_trace(arrays, metadata):
    """Row t holds the observation after step t, and the last row is a plausible continuation."""
    rows = rows_of(arrays).copy()
    rows[:, :-1] = rows[:, 1:]
    rows[:, -1] = np.clip(2 * rows[:, -2] - rows[:, -3], [-1, -1, -8], [1, 1, 8])
    arrays["observations"] = rows.reshape(-1, rows.shape[2])


def after_reset(arrays, metadata):
    """The last row is the first one of the next episode, as auto-resetting environments return it."""
    rows = rows_of(arrays)
    rows[:-1, -1] = rows[1:, 0]


def after_a_reset_elsewhere(arrays, metadata):
    """The last row is that of a reset whose episode is not among the recorded ones."""
    rows = rows_of(arrays)
    rows[:, -1] = rows[:, 0] + np.float32(0.01) * np.cos(np.arange(len(rows), dtype=np.float32))[:, None]
    np.clip(rows, [-1, -1, -8], [1, 1, 8], out=rows)


def kept(choose: Callable, **changes) -> Callable:
    """Only some episodes are there; coverage and counts agree. `choose(arrays)` -> (N,) bool."""

    def apply(arrays, metadata):
        chosen = np.asarray(choose(arrays))
        arrays["observations"] = arrays["observations"][np.repeat(chosen, T + 1)]
        for name in ("actions", "executed_actions", "rewards", "terminations", "truncations"):
            arrays[name] = arrays[name][np.repeat(chosen, T)]
        for name in ("lengths", "seeds", "scenarios", "metric.return", "metric.length", "metric.success"):
            arrays[name] = arrays[name][chosen]
        found, counts = np.unique(arrays["scenarios"], return_counts=True)
        coverage = {str(n): int(c) for n, c in zip(found, counts, strict=True)}
        metadata.update(episodes=int(chosen.sum()), steps=int(chosen.sum()) * T, scenario_coverage=coverage, **changes)

    return apply


def better(arrays) -> np.ndarray:
    """The better half of each scenario: the shares stay."""
    chosen = np.zeros(len(arrays["lengths"]), bool)
    for scenario in ("normal", "light"):
        at = np.flatnonzero(arrays["scenarios"] == scenario)
        chosen[at[np.argsort(arrays["metric.return"][at])[len(at) // 2 :]]] = True
    return chosen


def left_out_instead(arrays, metadata):
    """The fourth episode is gone, and the first one is said to be."""
    kept(lambda _: np.arange(30) != 3, left_out=[int(arrays["seeds"][0])])(arrays, metadata)


def task_with(**changes) -> TaskConfig:
    return validate_config(TaskConfig, {**TASK, **changes}, "test")


def figure(name: str, episode: int, value: float) -> Callable:
    """Every episode has a figure of 0.5, and one of them another."""

    def apply(arrays, metadata):
        arrays[f"metric.{name}"] = np.full(len(arrays["lengths"]), 0.5)
        arrays[f"metric.{name}"][episode] = value

    return apply


def collided(arrays, metadata):
    arrays["metric.success"][9] = 1
    arrays["metric.collision"] = (np.arange(30) == 9).astype(np.float64)


def environment(**changes) -> Callable:
    return lambda arrays, metadata: metadata["environment"].update(changes)


def two_alike(arrays) -> np.ndarray:
    """Two episodes of the same scenario."""
    return np.flatnonzero(arrays["scenarios"] == "light")[:2]


def wrong_demonstrator(**changes) -> Callable:
    return lambda arrays, metadata: metadata["demonstrator"].update(changes)


NARROW = {"type": "Box", "dtype": "float32", "shape": [3], "low": [-1.0, -1.0, -8.0], "high": [1.0, 1.0, 8.5]}
SEALED_META = ("metadata_digest",)

CORRUPTIONS = [
    # form
    Corruption("metadata key missing", "metadata_complete", unsaid("run_id"), value="None"),
    Corruption("metadata key too much", "metadata_complete", said("comment", "hi"), value="'hi'"),
    Corruption("metadata of another type", "metadata_complete", said("episodes", "30"), value="'30'"),
    Corruption("impossible date", "metadata_complete", said("created_at", "2026-02-31T00:00:00Z")),
    Corruption("nameless demonstrator", "metadata_complete", wrong_demonstrator(digest="")),
    Corruption("unknown kind of demonstrator", "metadata_complete", wrong_demonstrator(kind="friend")),
    Corruption("edited metadata", "metadata_unchanged", said("run_id", "c" * 32), sealed=("content_digest",)),
    Corruption("metadata the store does not know", "metadata_unchanged", said("run_id", "c" * 32), value=ANY,
               bound="9" * 36, context={"expected_metadata_digest": "9" * 36}),
    Corruption("later schema", "schema_version", said("schema_version", 2), value=2, bound="= 1"),
    Corruption("array missing", "arrays_present", without("truncations"), bound="array truncations"),
    Corruption("return missing", "arrays_present", without("metric.return"), bound="array metric.return"),
    Corruption("success missing", "arrays_present", without("metric.success"), bound="array metric.success"),
    Corruption("array too much", "arrays_present", lambda a, m: a.update(extra=np.zeros(3)), value="extra"),
    Corruption("rewards of another dtype", "dtypes", as_type("rewards", np.float64), value="float64", bound="float32"),
    Corruption("ends as numbers", "dtypes", as_type("terminations", np.int64), value="int64", bound="bool"),
    Corruption("lengths of another dtype", "dtypes", as_type("lengths", np.int32), value="int32", bound="int64"),
    Corruption("a row of actions lost", "lengths_aligned", lambda a, m: a.update(actions=a["actions"][:-1]),
               value="shape (1199, 1)", bound="1200 rows (one row per step)"),
    Corruption("a seed lost", "lengths_aligned", lambda a, m: a.update(seeds=a["seeds"][1:]), value="shape (29,)"),
    Corruption("negative length", "lengths_aligned", put("lengths", 3, -T), value="the length -40"),
    Corruption("as many observations as actions", "one_observation_more",
               lambda a, m: a.update(observations=np.delete(a["observations"], np.s_[T :: T + 1], axis=0)),
               value=1200, bound="= 1230"),
    Corruption("a recording that calls its rewards missing", "missing_parts",
               lambda a, m: m.update(missing=["rewards"]), value="('rewards',)", bound="none"),
    Corruption("rewards that are there, called missing", "missing_parts",
               lambda a, m: m.update(missing=["seeds"], seeds=[],
                                     demonstrator={**m["demonstrator"], "kind": "imported"}),
               value="seeds", context={"approvals": None}),
    Corruption("empty episode", "no_empty_episode", empty_episode, episode=5, value=0, bound=">= 1 step"),
    Corruption("no episode", "no_empty_episode", no_episodes, value=0, bound=">= 1 episode",
               context={"min_episodes": 0}),
    Corruption("one bit of content", "digest", lambda a, m: a["rewards"].view(np.uint32).__ixor__(np.uint32(1)),
               sealed=SEALED_META),
    Corruption("digest off by one digit", "digest", lambda a, m: m.update(
        content_digest=m["content_digest"][:-1] + ("0" if m["content_digest"][-1] != "0" else "1")),
        sealed=SEALED_META),
    Corruption("content the store does not know", "digest", lambda a, m: None, bound="= " + "8" * 36,
               context={"expected_digest": "8" * 36}),
    Corruption("wrong count of episodes", "counts", said("episodes", 200), value=200, bound="= 30"),
    Corruption("wrong count of steps", "counts", said("steps", 1201), value=1201, bound="= 1200"),
    Corruption("space that is none", "spaces", said("action_space", {"type": "Pickle"})),
    Corruption("space of another environment", "spaces", said("observation_space", NARROW)),
    Corruption("observations of another dtype", "fits_spaces", as_type("observations", np.float64),
               value="float64 (3,)", bound="float32 (3,)"),
    Corruption("actions flattened", "fits_spaces",
               lambda a, m: a.update(actions=a["actions"][:, 0], executed_actions=a["executed_actions"][:, 0]),
               value="float32 ()", bound="float32 (1,)"),
    # values
    Corruption("one NaN", "observations_finite", put("observations", (2 * (T + 1) + 7, 1), np.nan), 2, 7, "nan",
               "finite"),
    Corruption("one infinity", "observations_finite", put("observations", (T, 2), np.inf), 0, 40, "inf", "finite"),
    Corruption("NaN action", "actions_finite", put("actions", (3 * T + 5, 0), np.nan), 3, 5, "nan", "finite"),
    Corruption("infinite executed action", "actions_finite", put("executed_actions", (0, 0), -np.inf), 0, 0, "-inf"),
    Corruption("NaN reward", "rewards_finite", put("rewards", T - 1, np.nan), 0, 39, "nan", "finite"),
    Corruption("NaN figure", "metrics_finite", put("metric.success", 4, np.nan), 4, None, "nan", "finite"),
    Corruption("actions scaled by 100", "actions_in_space", scaled_actions, 0, ANY, ANY, "[-2.0, 2.0]"),
    Corruption("one action out of bounds", "actions_in_space", put("actions", (T + 3, 0), 2.5), 1, 3, 2.5,
               "[-2.0, 2.0]"),
    Corruption("one executed action out of bounds", "actions_in_space", put("executed_actions", (9, 0), -2.25), 0, 9,
               -2.25, "[-2.0, 2.0]"),
    Corruption("one observation out of bounds", "observations_in_space", put("observations", (T + 1, 2), 8.25), 1, 0,
               8.25, "[-8.0, 8.0]"),
    Corruption("wrong return", "returns", lambda a, m: a["metric.return"].__setitem__(6, a["metric.return"][6] + 1), 6),
    Corruption("reward of another sign", "returns", lambda a, m: a["rewards"].__setitem__(8 * T, 9.0), 8),
    Corruption("returns of the last step", "returns",
               lambda a, m: a["metric.return"].__setitem__(slice(None), a["rewards"][T - 1 :: T]), 0),
    Corruption("wrong length", "lengths", put("metric.length", 9, 41.0), 9, None, 41.0, "= 40"),
    Corruption("half a success", "outcomes", put("metric.success", 11, 0.5), 11, None, 0.5, "0 or 1"),
    Corruption("an end in the middle", "ends", put("terminations", 2 * T + 17, True), 2, 17, "end",
               "no end before the last step"),
    Corruption("no end", "ends", put("truncations", 5 * T - 1, False), 4, 39, "no end", "an end at the last step"),
    Corruption("success and collision at once", "outcomes", collided, 9, None, "both", "success or collision",
               context={"task": task_with(collision={"info": "hit"}, success_excludes_collision=True)}),
    Corruption("more efficient than possible", "figures_possible", figure("efficiency", 4, 7.0), 4, None, 7.0, "[0, 1]",
               context={"task": task_with(metrics={"efficiency": {"info": "efficiency", "min": 0, "max": 1}})}),
    Corruption("fewer than none", "figures_possible", figure("misses", 2, -1.0), 2, None, -1.0, "[0, inf]",
               context={"task": task_with(metrics={"misses": {"info": "misses", "min": 0}})}),
    Corruption("longer than the horizon", "horizon", said("horizon", 39), 0, None, 40, "<= 39",
               context={"task": task_with(horizon=39)}),
    Corruption("all-zero actions", "actions_vary", zero_actions, value="all zero: [0.0]"),
    Corruption("actions that never change in a fifth of the episodes", "actions_vary", still_episodes, 4, None,
               "20.0%", "at most 10% of episodes"),
    Corruption("one episode through half precision", "precision", half_precision, 3, None, "float16", "float32"),
    Corruption("copies of one episode", "episodes_distinct", copies, 1, None, "copy of 0", "distinct episodes"),
    Corruption("one episode copied", "episodes_distinct", one_copy, 7, None, "copy of 2", "distinct episodes"),
    Corruption("noise that nobody declared", "execution_noise", said("noise_std", 0.0), ANY, ANY, ANY, "= label"),
    Corruption("declared noise that is not there", "execution_noise",
               lambda a, m: a.update(executed_actions=a["actions"].copy()), value=0.0),
    Corruption("more noise than declared", "execution_noise", said("noise_std", 0.15)),
    Corruption("less noise than declared", "execution_noise", said("noise_std", 0.25)),
    # origin
    Corruption("too few episodes", "minimum_episodes", lambda a, m: None, value=30, bound=">= 31",
               context={"min_episodes": 31}),
    Corruption("duplicate seed", "seeds_unique", lambda a, m: a["seeds"].__setitem__(5, a["seeds"][2]), 5),
    Corruption("negative seed", "seeds_unique", put("seeds", 4, -1), 4, None, -1, "[0, 2147483648)",
               context={"task": None}),
    Corruption("seed of an evaluation", "seeds_reserved", put("seeds", 3, 12345), 3, None, 12345,
               f"[{RECORD}, {1 << 31})"),
    Corruption("false coverage", "coverage", said("scenario_coverage", {"normal": 21, "light": 9}), value=9,
               bound="= 10"),
    Corruption("coverage of a scenario that is not there", "coverage",
               said("scenario_coverage", {"normal": 20, "light": 10, "fog": 5}), value=5, bound="= 0"),
    Corruption("shares not as requested", "shares", skewed, value=3, bound="10 +- 1"),
    Corruption("hold-out scenario inside", "holdouts_excluded", relabelled("heavy"), 0, None, "heavy",
               "no hold-out scenario"),
    Corruption("scenario of another set", "matches_task", relabelled("stormy"), 0, None, "stormy"),
    Corruption("another task", "matches_task", said("task", "lunar_lander"), value="'lunar_lander'", bound="'swing'"),
    Corruption("hold-outs concealed", "matches_task", said("holdout_scenarios", []), value="[]", bound="['heavy']"),
    Corruption("arguments that the environment did not have", "matches_task", environment(kwargs={"g": 9.8}),
               value="{'g': 9.8}", bound="{}"),
    Corruption("arguments that the scenario did not have", "matches_task",
               environment(scenarios={"normal": {"g": 10.0}, "light": {"g": 4.0}})),
    Corruption("another horizon", "matches_task", said("horizon", 41), value="41", bound="40"),
    Corruption("listed seeds that were not used", "episodes_derived", said("seeds", [43]), 0,
               bound="one of 30 episodes of 'train'"),
    Corruption("a seed that does not follow from those listed", "episodes_derived", put("seeds", 8, RECORD + 5), 8,
               None, RECORD + 5),
    Corruption("scenarios of two episodes swapped", "episodes_derived",
               lambda a, m: a.update(scenarios=np.roll(a["scenarios"], 1)), episode=ANY),
    Corruption("the better half kept", "episodes_derived", kept(better), value=30,
               bound="= 15: those there, and those left out", context={"min_episodes": 10}),
    Corruption("the better half kept as if no more had been asked for", "episodes_derived",
               kept(better, requested_episodes=15), ANY, context={"min_episodes": 10}),
    Corruption("a scenario left out and its share with it", "episodes_derived",
               kept(lambda a: a["scenarios"] == "normal", requested_shares={"normal": 1.0}, requested_episodes=20),
               value=0, bound="= 0.333333"),
    Corruption("an episode left out that is there", "episodes_derived", left_out_instead),
    Corruption("nobody knows how many were asked for", "episodes_derived", said("requested_episodes", None)),
    Corruption("more kept by a filter than were asked for", "episodes_derived",
               lambda a, m: m.update(filter={"min_return": -1e6, "only_success": False}, requested_episodes=20),
               value=20, bound="30 to 1000000"),
    Corruption("recorded tomorrow", "recorded_before_now",
               lambda a, m: (m.update(created_at="2999-01-01T00:00:00Z"))),
    Corruption("a quarantine lifted without simulating again", "no_weaker", lambda a, m: None, value=0,
               bound="replay_episodes >= 30", context={"refusals": (Refusal("f" * 32, ("replay",), 20, 200),)}),
    Corruption("a quarantine lifted by asking for fewer episodes", "no_weaker", lambda a, m: None, value=20,
               bound="min_episodes >= 40", context={"refusals": (Refusal("f" * 32, ("minimum_episodes",), 40, 0),)}),
    Corruption("a quarantine lifted without asking the demonstrator again", "no_weaker", lambda a, m: None,
               context={"refusals": (Refusal("f" * 32, ("labels",), 20, 0),)}),
    Corruption("unknown scenario set", "matches_task", said("scenario_set", "everything"), value="everything"),
    Corruption("return below the filter", "filter_held", filtered, ANY),
    Corruption("failure among successes", "filter_held", only_success, 12, None, 0.0, "= 1"),
    Corruption("recorded before its expert was approved", "expert_approved",
               said("created_at", "2025-11-30T23:59:59Z"), value="2025-11-30T23:59:59Z",
               bound="within 2025-12-01T00:00:00Z to now"),
    Corruption("recorded after its expert was replaced", "expert_approved", lambda a, m: None,
               value="2026-01-01T00:00:00Z",
               context={"approvals": (Approval("3", "0123456789abcdef0123456789abcdef0123", "2025-12-01T00:00:00Z",
                                               "2025-12-31T00:00:00Z"),)}),
    Corruption("expert never approved", "expert_approved", wrong_demonstrator(version="7"), value="7",
               bound="approved versions: 2, 3"),
    Corruption("expert with other bytes", "expert_approved", wrong_demonstrator(digest="e" * 36), value="e" * 36),
    # time
    Corruption("observations stored late", "time_alignment", late, value="100.0%", bound="< 50%"),
    Corruption("observations stored early", "time_alignment", early, value="100.0%", bound="< 50%"),
    Corruption("observations rolled over", "time_alignment", rolled, bound="<= 8"),
    Corruption("observations stored late without a trace", "time_alignment", late_without_a_trace, value=-1,
               bound="first response of row t + 1"),
    Corruption("terminal observation of the next reset", "time_alignment", after_reset, 0, 40, "first of 1"),
    Corruption("terminal observation of a reset elsewhere", "time_alignment", after_a_reset_elsewhere, bound="<= 8"),
    Corruption("observations stored late, re-simulated", "replay", late, 0, 0, replayed=True),
    Corruption("late without a trace, re-simulated", "replay", late_without_a_trace, 0, 0, replayed=True),
    Corruption("one bit of one observation, re-simulated", "replay",
               lambda a, m: a["observations"].view(np.uint32).__setitem__((7 * (T + 1) + 9, 2),
                                                                         a["observations"].view(np.uint32)[296, 2] ^ 1),
               7, 9, replayed=True),
    Corruption("seeds of two episodes swapped, re-simulated", "replay",
               lambda a, m: a["seeds"].__setitem__(two_alike(a), a["seeds"][two_alike(a)[::-1]]), ANY, 0,
               replayed=True),
    Corruption("a failure that is called a success, re-simulated", "replay",
               lambda a, m: a["metric.success"].__setitem__(5, 1 - a["metric.success"][5]), 5, T, replayed=True),
    Corruption("figures of the next episode, re-simulated", "replay",
               lambda a, m: a.update({"metric.success": np.roll(a["metric.success"], 1)}), ANY, T, replayed=True),
    Corruption("one executed action, re-simulated", "replay", put("executed_actions", (6 * T + 3, 0), 0.123), 6, 4,
               replayed=True),
    Corruption("one label changed within the noise", "labels",
               lambda a, m: a["actions"].__setitem__((4 * T + 6, 0), a["actions"][4 * T + 6, 0] / 2), 4, 6,
               context={"act": act}),
    Corruption("labels of another demonstrator", "labels", lambda a, m: None, 0, 0,
               bound="= [0.0] +- 0.001 half ranges",
               context={"act": lambda observations: np.zeros((len(observations), 1), np.float32)}),
]  # fmt: skip


def corrupted(good, corruption: Corruption, folder) -> None:
    arrays = {name: array.copy() for name, array in good.trajectories.to_arrays().items()}
    metadata = good.metadata.to_data()
    corruption.apply(arrays, metadata)
    if "content_digest" in corruption.sealed and "content_digest" in metadata:
        metadata["content_digest"] = arrays_digest(arrays)
    if "metadata_digest" in corruption.sealed:
        metadata["metadata_digest"] = metadata_digest(metadata)
    write_dataset(folder, arrays, metadata)


def test_the_good_datasets_pass_every_rule(good, good_without_noise):
    for data in (good, good_without_noise):
        for context in (data.context, replace(data.context, replay=data.replay, replay_episodes=30)):
            report = validate((data.trajectories, data.metadata), context)
            assert report.status == "validated", report.summary()
            assert "demonstrations: expert swing-expert/3" in report.notes
            not_run = {outcome.rule for outcome in report.rules if outcome.state == "not run"}
            assert not_run == {"time_alignment" if context.replay else "replay", "labels", "no_weaker"}
        asked = validate((data.trajectories, data.metadata), replace(data.context, act=act))
        assert asked.passed, asked.summary()


def test_episodes_that_a_repair_left_out_and_says_so_are_no_corruption(good, tmp_path):
    """A scenario may be gone with them: that is no matter of shares."""

    def repaired(arrays, metadata):
        gone = arrays["seeds"][arrays["scenarios"] == "light"]
        kept(lambda a: a["scenarios"] == "normal", left_out=gone.tolist())(arrays, metadata)

    corrupted(good, Corruption("left out on purpose", "none", repaired), tmp_path / "data")
    report = validate(tmp_path / "data", good.context)
    assert report.passed and report.episodes == 20, report.summary()


def test_what_a_filter_kept_follows_from_the_seeds_as_well(good):
    """Of 20 episodes that were asked for, a filter dropped three; two others were played instead."""
    played = good.task.recordable_episodes("train", [1, 2], 20, filtered=True)
    normal, light = ([e for e in played if e.scenario == name] for name in ("normal", "light"))
    chosen = [*normal[2:15], *light[1:7]]
    data = replace(
        good.trajectories.select(range(19)),
        seeds=np.array([e.seed for e in chosen]),
        scenarios=np.array([e.scenario for e in chosen]),
    )
    facts = {"seeds": (1, 2), "filter": {"min_return": -1e6, "only_success": False}, "requested_episodes": 20}
    metadata = describe(good.task, data, NOISE, **facts)
    context = replace(good.context, min_episodes=19)
    assert validate((data, metadata), context).passed
    assert validate((data, replace(metadata, seeds=(2, 1))), context).failed_rules == ("episodes_derived",)


def test_observations_stored_late_without_noise_or_environment_are_found_by_asking_the_demonstrator(
    good_without_noise, tmp_path
):
    late_ones = next(c for c in CORRUPTIONS if c.name == "observations stored late without a trace")
    corrupted(good_without_noise, late_ones, tmp_path / "data")
    assert validate(tmp_path / "data", good_without_noise.context).passed  # nothing to tell it by
    report = validate(tmp_path / "data", replace(good_without_noise.context, act=act))
    assert report.failed_rules == ("labels",)


@pytest.mark.parametrize(
    "fault", ["observations stored late without a trace", "terminal observation of the next reset"]
)
def test_one_seed_that_is_known_does_not_vouch_for_the_episodes_whose_seeds_are_not(good, tmp_path, fault):
    damage = next(c for c in CORRUPTIONS if c.name == fault).apply

    def imported(arrays, metadata):
        whole = arrays["observations"].copy()
        damage(arrays, metadata)
        arrays["observations"][5 * (T + 1) : 6 * (T + 1)] = whole[5 * (T + 1) : 6 * (T + 1)]
        arrays["seeds"][np.arange(30) != 5] = -1
        metadata.update(seeds=[], demonstrator={**metadata["demonstrator"], "kind": "imported"})

    corrupted(good, Corruption("one known seed", "time_alignment", imported), tmp_path / "data")
    report = validate(tmp_path / "data", replace(good.context, replay=good.replay))
    assert report.failed_rules == ("time_alignment",), report.summary()
    assert "re-simulation: 1 of 1 episodes bit-identical" in report.notes
    assert 5 not in {finding.episode for finding in report.findings}


def test_an_environment_that_jumps_from_its_first_observation_is_no_corruption(good, tmp_path):
    """Traffic that brakes at once, a body that falls to the ground: no other episode ends where these start."""

    def hurled(arrays, metadata):
        rows_of(arrays)[:, 0] = np.stack([[-1, 0, 7.0 + 0.01 * episode] for episode in range(30)])

    corrupted(good, Corruption("an honest jump", "none", hurled), tmp_path / "data")
    report = validate(tmp_path / "data", good.context)
    assert report.passed, report.summary()


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
def test_a_corruption_is_refused_by_exactly_its_rule(corruption, good, tmp_path):
    corrupted(good, corruption, tmp_path / "data")
    replayed = {"replay": good.replay, "replay_episodes": 30} if corruption.replayed else {}
    report = validate(tmp_path / "data", replace(good.context, **{**replayed, **corruption.context}))
    assert report.status == "quarantined"
    assert report.failed_rules == (corruption.rule,), report.summary()
    finding = report.findings[0]
    for name in ("episode", "step", "value", "bound"):
        expected = getattr(corruption, name)
        assert expected is ANY or getattr(finding, name) == expected, (name, finding)
    assert finding.message and "\n" not in str(finding)


def test_a_figure_that_is_no_number_departs_from_its_re_simulation_in_strict_json(good, tmp_path):
    corrupted(good, next(c for c in CORRUPTIONS if c.name == "NaN figure"), tmp_path / "data")
    report = validate(tmp_path / "data", replace(good.context, replay=good.replay, replay_episodes=30))
    assert report.failed_rules == ("metrics_finite", "replay")
    assert [finding["value"] for finding in json.loads(report.to_json())["findings"]] == ["nan", "nan"]


def test_every_rule_is_refused_by_some_corruption():
    assert {rule.name for rule in CATALOGUE} == {corruption.rule for corruption in CORRUPTIONS}
    assert len(CORRUPTIONS) >= 40


def test_rules_after_a_broken_one_say_why_they_were_not_run(good, tmp_path):
    corrupted(good, next(c for c in CORRUPTIONS if c.name == "array missing"), tmp_path / "data")
    report = validate(tmp_path / "data", good.context)
    outcomes = {outcome.rule: outcome for outcome in report.rules}
    assert outcomes["dtypes"].state == "not run" and outcomes["dtypes"].reason == "arrays_present does not hold"
    assert outcomes["matches_task"].state == "not run"
    assert outcomes["schema_version"].state == "passed"


def test_several_faults_are_all_reported(good, tmp_path):
    arrays = {name: array.copy() for name, array in good.trajectories.to_arrays().items()}
    arrays["rewards"][3] = np.nan
    arrays["observations"][5, 0] = 3.0
    arrays["seeds"][1] = arrays["seeds"][0]
    metadata = {**good.metadata.to_data(), "content_digest": arrays_digest(arrays)}
    metadata["metadata_digest"] = metadata_digest(metadata)
    write_dataset(tmp_path / "data", arrays, metadata)
    report = validate(tmp_path / "data", good.context)
    assert report.failed_rules == ("rewards_finite", "observations_in_space", "seeds_unique")


def test_the_return_finding_gives_the_sum_worked_out_independently(good, tmp_path):
    corrupted(good, next(c for c in CORRUPTIONS if c.name == "wrong return"), tmp_path / "data")
    finding = validate(tmp_path / "data", good.context).findings[0]
    total = sum(float(reward) for reward in good.trajectories.episode(6).rewards)
    assert finding.value == pytest.approx(total + 1) and float(finding.bound.split()[0]) == pytest.approx(total)


def test_missing_facts_leave_their_rules_out_and_say_so(good):
    context = replace(good.context, task=None, approvals=None)
    report = validate((good.trajectories, good.metadata), context)
    reasons = {outcome.rule: outcome.reason for outcome in report.rules if outcome.state == "not run"}
    unasked = ("figures_possible", "episodes_derived", "no_weaker")
    assert set(reasons) == {"seeds_reserved", "matches_task", "expert_approved", "replay", "labels", *unasked}
    assert reasons["expert_approved"] == "the registry's record of approvals was not given"
    assert space_to_json(good.task.action_space) == good.metadata.action_space
