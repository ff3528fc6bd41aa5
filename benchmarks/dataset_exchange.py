"""Cost of playing a dataset again bit for bit, and of Minari and back: `python benchmarks/dataset_exchange.py`.

Records 200 social-navigation episodes with execution noise under a policy that was never trained, simulates all of them
again from seed and actions, and writes and reads them as a Minari dataset. Prints seconds of wall and processor time.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.config.loading import load_task
from pipeline.config.training import Network
from pipeline.data import DatasetMetadata, content_digest
from pipeline.data.foreign import take_in
from pipeline.data.formats.minari import export_minari, read_minari
from pipeline.data.spaces import space_to_json
from pipeline.play.evaluation import record_episodes
from pipeline.policies import act_function, build_policy
from pipeline.tasks import Purpose, Task
from pipeline.validation.replay import TaskReplay, replay_episodes

T = TypeVar("T")
EPISODES = 200


def timed(what: str, work: Callable[[], T]) -> T:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    print(f"{what}: {time.perf_counter() - wall:.2f} s, {time.process_time() - processor:.2f} s of processor time")
    return result


def main() -> None:
    task = Task(load_task("configs/tasks/social_nav.yaml"))
    policy = build_policy(task.observation_space, task.action_space, Network(), seed=1)
    episodes = task.episodes("train_small", 42, EPISODES, Purpose.RECORD)
    act = act_function(policy)
    record_episodes(task, act, episodes[:2], 0.3, 42)  # compiles
    data = timed(f"recording {EPISODES} episodes", lambda: record_episodes(task, act, episodes, 0.3, 42))
    replay = TaskReplay(task)
    verdicts = timed(f"playing {data.steps:,} steps again", lambda: replay_episodes(data, replay, range(EPISODES)))
    print(f"  bit-identical: {sum(verdict.identical for verdict in verdicts)} of {EPISODES} episodes")
    metadata = DatasetMetadata(
        dataset_id="social_nav-benchmark",
        created_at="2026-01-01T00:00:00Z",
        task=task.config.name,
        scenario_set="train_small",
        scenario_coverage={name: int((data.scenarios == name).sum()) for name in task.shares("train_small")},
        requested_shares=task.shares("train_small"),
        demonstrator={"kind": "scripted", "name": "untrained", "version": "1", "digest": "none"},
        seeds=(42,),
        noise_std=0.3,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(task.observation_space),
        action_space=space_to_json(task.action_space),
        environment={"id": task.config.environment.id, "kwargs": {}, "scenarios": {}},
        holdout_scenarios=tuple(sorted(task.config.holdout_scenarios())),
        episodes=len(data),
        steps=data.steps,
        content_digest=content_digest(data),
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "minari"
        timed("writing Minari", lambda: export_minari(data, metadata, place))
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        again, described = timed(f"reading its {size / 1e6:.1f} MB", lambda: take_in(read_minari(place), None))
    same = content_digest(again) == metadata.content_digest and described == metadata
    print(f"  the same bits and the same metadata: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
