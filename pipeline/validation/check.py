"""A look at demonstrations of anybody, without a store: every rule that applies, and figures that people ask for.

    checked = check("theirs.npz", "configs/tasks/lunar_lander.yaml")
    checked.report.passed, checked.figures["static_steps"]

The rules judge; the figures do not.
"""

import json
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from gymnasium import spaces
from scipy.spatial.distance import pdist

from pipeline.config.loading import load_task
from pipeline.data import DatasetMetadata, Trajectories, load_dataset, told_of_source
from pipeline.data.foreign import ImportTarget, take_in
from pipeline.data.formats import read_foreign
from pipeline.data.observations import flat_rows
from pipeline.data.spaces import keys_of, space_bounds, space_from_json
from pipeline.errors import BadInput
from pipeline.names import METADATA_FILE, TRAJECTORIES_FILE
from pipeline.statistics.suspicions import unexplained_share
from pipeline.tasks import Task
from pipeline.validation.facts import Context, chunks
from pipeline.validation.findings import PASSED, ValidationReport
from pipeline.validation.inspection import OUTLIER_SCORE, action_jerk, robust_scores
from pipeline.validation.replay import TaskReplay
from pipeline.validation.rules import validate

POINTS: Final = 16  # of an episode, evenly spaced, by which it is compared with others
NEAR: Final = 0.02  # standard deviations apart, on average over the points: the same episode again, or as good as
MOST_EPISODES: Final = 2_000  # that are compared with each other
MOST_STEPS: Final = 20_000  # that neighbours are looked for among
MOST_ELEMENTS: Final = 1_024  # of an observation by which it is compared with others: copies of pictures are large
ROWS_AT_ONCE: Final = 1_024  # of observations as they are


@dataclass(frozen=True)
class Checked:
    """What became of every rule, and figures of the actions, the episodes and the labels."""

    source: tuple[str, ...]  # what the file lacked, a line each
    report: ValidationReport
    figures: dict[str, Any]  # empty where the arrays are not sound enough to be measured

    def to_json(self) -> dict[str, Any]:
        return {**json.loads(self.report.to_json()), "source": list(self.source), "figures": self.figures}


def check(path: str | Path, task_file: str | None = None, scenario: str | None = None) -> Checked:
    """Hold a file or folder of demonstrations to the catalogue. Raises BadInput for what is no such thing.

    With a task file also to that task's spaces, figures and environment: episodes with a seed are simulated again, as
    the scenario that is named, or the first one of the task.
    """
    if task_file is None and scenario is not None:
        raise BadInput(f"scenario {scenario!r} is one of a task; give its file as well (--task)")
    task = None if task_file is None else Task(load_task(task_file))
    folder = Path(path)
    if (folder / METADATA_FILE).is_file() and (folder / TRAJECTORIES_FILE).is_file():
        if scenario is not None:
            raise BadInput(
                f"scenario {scenario!r}: this dataset says of each episode which it is; leave --scenario out"
            )
        source: Any = folder
        data: tuple[Trajectories, DatasetMetadata] | None = None
        with suppress(BadInput):  # what is wrong with it is what the rules say
            data = load_dataset(folder)
    else:
        target = None
        if task is not None:
            sets = task.config.scenario_sets
            scenario_set = next((name for name in sets if scenario is None or scenario in sets[name]), next(iter(sets)))
            target = ImportTarget(task, scenario or next(iter(sets[scenario_set])), scenario_set)
        source = data = take_in(
            read_foreign(folder, keys=() if task is None else keys_of(task.observation_space)), target
        )
    if task is None:
        report = validate(source, Context())
    else:
        with closing(TaskReplay(task)) as replay:
            context = Context(
                task=task.config,
                observation_space=task.observation_space,
                action_space=task.action_space,
                replay=replay,
            )
            report = validate(source, context)
    lines = () if data is None else (f"demonstrations: {data[1].origin}", *told_of_source(data[1]))
    finite = {"observations_finite", "actions_finite"} <= {one.rule for one in report.rules if one.state == PASSED}
    return Checked(tuple(lines), report, figures_of(*data) if data is not None and finite else {})


def figures_of(data: Trajectories, metadata: DatasetMetadata) -> dict[str, Any]:
    """Figures of sound trajectories.

    `static_steps`: share of the steps after which the observation is the same; `median_jerk` and `roughest_episode`: by
    `action_jerk`; `saturated_steps`: share of the steps with an action at a bound of its space, None without bounds;
    `duration_outliers` and `near_duplicates`: episodes, and pairs of them; `contradiction`: share of the labels'
    variance between equal observations, None where that cannot be told. The last two look at `MOST_ELEMENTS` of an
    observation, evenly spaced, where it has more.
    """
    observations, actions = data.observations, flat_rows(data.actions).astype(np.float64)
    within = np.delete(data.step_rows, data.step_offsets[1:] - 1) if not data.final_rows else data.step_rows
    still = [
        (flat_rows(observations[within[part]]) == flat_rows(observations[within[part] + 1])).all(axis=1)
        for part in chunks(len(within), ROWS_AT_ONCE)
    ]
    if (width := flat_rows(observations[:1]).shape[1]) <= MOST_ELEMENTS:
        rows = flat_rows(observations)
    else:
        chosen = np.linspace(0, width - 1, MOST_ELEMENTS).astype(np.int64)
        parts = chunks(len(observations), ROWS_AT_ONCE)
        rows = np.concatenate([flat_rows(observations[part])[:, chosen] for part in parts])
    space = space_from_json(metadata.action_space)
    low, high = space_bounds(space)
    bounded = isinstance(space, spaces.Box) and bool(np.isfinite(high.astype(np.float64) - low).all())
    at_bound = (actions <= low) | (actions >= high)
    jerk = action_jerk(data, space)
    lengths = data.lengths.astype(np.float64)
    steps = np.unique(np.linspace(0, data.steps - 1, min(data.steps, MOST_STEPS)).astype(np.int64))
    seen, episodes = rows[data.step_rows[steps]], np.repeat(np.arange(len(data)), data.lengths)[steps]
    return {
        "static_steps": float(np.concatenate(still).mean()) if len(within) else None,
        "median_jerk": float(np.median(jerk)),
        "roughest_episode": int(jerk.argmax()),
        "saturated_steps": float(at_bound.any(axis=1).mean()) if bounded else None,
        "duration_outliers": np.flatnonzero(np.abs(robust_scores(lengths)) > OUTLIER_SCORE).tolist(),
        "near_duplicates": _near_duplicates(data, rows),
        "contradiction": unexplained_share(seen, actions[steps], episodes),
    }


def _near_duplicates(data: Trajectories, rows: np.ndarray) -> list[list[int]]:
    """Pairs of episodes that lie less than `NEAR` apart, in standard deviations of the observations' elements."""
    count = min(len(data), MOST_EPISODES)
    starts = data.observation_offsets[:count, None]
    points = starts + np.linspace(0, data.lengths[:count] - 1, POINTS, axis=1).round().astype(np.int64)
    spread = rows.std(axis=0, dtype=np.float64)
    chosen = rows[points][..., spread > 0] / spread[spread > 0]  # (episodes, points, elements)
    if count < 2 or not chosen.shape[2]:
        return []
    apart = pdist(chosen.reshape(count, -1).astype(np.float64)) / np.sqrt(POINTS * chosen.shape[2])
    first, second = np.triu_indices(count, 1)
    same_length = np.abs(data.lengths[first] - data.lengths[second]) <= 0.1 * data.lengths[first]
    near = np.flatnonzero((apart < NEAR) & same_length)
    return [[int(first[pair]), int(second[pair])] for pair in near]
