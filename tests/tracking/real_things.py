"""Policies, datasets and versions small enough to be made for every test, in a real store."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gymnasium import spaces

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import Network
from pipeline.data import DatasetMetadata, content_digest, save_dataset
from pipeline.data.spaces import space_to_json
from pipeline.names import Artifact, Quality, Tag
from pipeline.play.evaluation import record_episodes
from pipeline.policies import build_policy, policy_digest, save_policy
from pipeline.tasks import Purpose, Task
from pipeline.tracking import registry
from pipeline.tracking.datasets import dataset_tags
from pipeline.tracking.store import connect, experiment_id

TASK = "walk"


@dataclass
class Bench:
    """A store and quick ways to put real things into it."""

    folder: Path

    def __post_init__(self) -> None:
        self.client = connect()
        self.experiment = experiment_id(self.client, "bench")
        self._made = 0

    def run(self, stage: str, status: str | None = "FINISHED", **tags: str) -> str:
        """A run with tags (`dataset__id` stands for `dataset.id`); status None leaves it running."""
        named = {key.replace("__", "."): value for key, value in tags.items()}
        run = self.client.create_run(self.experiment, tags={Tag.STAGE: stage, Tag.TASK: TASK, **named})
        if status is not None:
            self.client.set_terminated(run.info.run_id, status=status)
        return str(run.info.run_id)

    def policy_folder(self, seed: int = 1) -> Path:
        folder = self.folder / f"policy-{self._next()}"
        observations = spaces.Box(-1.0, 1.0, (3,), np.float32)
        actions = spaces.Box(-1.0, 1.0, (2,), np.float32)
        save_policy(build_policy(observations, actions, Network(hidden=(4,)), seed), folder, {"seed": seed})
        return folder

    def policy_run(self, stage: str = "pretrain", seed: int = 1, status: str | None = "FINISHED", **tags: str) -> str:
        """A run that made a policy."""
        folder = self.policy_folder(seed)
        run_id = self.run(stage, status, **{"policy__digest": policy_digest(folder), **tags})
        self.client.log_artifacts(run_id, str(folder), Artifact.POLICY)
        return run_id

    def candidate(self, run_id: str | None = None, seed: int = 1):
        """A registered candidate whose files lie as MLflow's pyfunc models lay them."""
        source = self.folder / f"model-{self._next()}"
        folder = self.policy_folder(seed)
        (source / "artifacts").mkdir(parents=True)
        folder.rename(source / "artifacts" / Artifact.POLICY)
        digest = policy_digest(source / "artifacts" / Artifact.POLICY)
        maker = run_id or self.run("train_expert")
        return registry.register_candidate(self.client, TASK, str(source), maker, digest, True, "made for a test")

    def version(self, version) -> object:
        """The version as the store has it now."""
        return self.client.get_model_version(version.name, version.version)

    def files_of(self, version) -> Path:
        return Path(version.source) / "artifacts" / Artifact.POLICY

    def dataset_run(self, quality: str = Quality.VALIDATED, seed: int = 1, **tags: str) -> str:
        """A recording run with a real dataset of two short episodes."""
        trajectories, metadata = tiny_dataset(seed)
        folder = self.folder / f"dataset-{self._next()}"
        save_dataset(folder, trajectories, metadata)
        named = {key.replace(".", "__"): value for key, value in dataset_tags(metadata, quality).items()}
        run_id = self.run("collect", **{**named, **tags})
        self.client.log_artifacts(run_id, str(folder), Artifact.DATASET)
        return run_id

    def _next(self) -> str:
        self._made += 1
        return f"{id(self):x}-{self._made}"


def tiny_dataset(seed: int):
    """Two Pendulum episodes of five steps under a policy that always pushes a little."""
    data = {
        "name": TASK,
        "environment": {"id": "Pendulum-v1"},
        "success": {"return_at_least": -100.0},
        "thresholds": {},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1}},
        "horizon": 5,
    }
    task = Task(validate(TaskConfig, data, "test"))
    episodes = task.episodes("train", seed, 2, Purpose.RECORD)
    trajectories = record_episodes(task, lambda o: np.full((len(o), 1), 0.1, np.float32), episodes, 0.0, seed, 2)
    metadata = DatasetMetadata(
        dataset_id=f"{TASK}-{seed:04d}",
        created_at="2026-01-31T12:00:00Z",
        task=TASK,
        scenario_set="train",
        scenario_coverage={"default": 2},
        requested_shares={"default": 1.0},
        demonstrator={"kind": "scripted", "name": "push", "version": "1", "digest": "0" * 36},
        seeds=(seed,),
        noise_std=0.0,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(task.observation_space),
        action_space=space_to_json(task.action_space),
        environment={"id": "Pendulum-v1", "kwargs": {}, "scenarios": {"default": {}}},
        holdout_scenarios=(),
        episodes=2,
        steps=10,
        content_digest=content_digest(trajectories),
        horizon=5,
    )
    return trajectories, metadata


class Crowd:
    """Processes that do commands to one store at the same moment."""

    SIZE = 3

    def __init__(self, uri: str) -> None:
        script = Path(__file__).with_name("crowd_member.py")
        self._members = [
            subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "MLFLOW_TRACKING_URI": uri},
            )
            for _ in range(self.SIZE)
        ]
        for member in self._members:
            assert json.loads(member.stdout.readline()) == {"ready": True}

    def at_once(self, commands: list[dict]) -> list[dict]:
        """One command a member; the answers in the same order."""
        for member, command in zip(self._members, commands, strict=True):
            member.stdin.write(json.dumps(command) + "\n")
            member.stdin.flush()
        return [json.loads(member.stdout.readline()) for member in self._members]

    def close(self) -> None:
        for member in self._members:
            member.kill()
            member.communicate()
