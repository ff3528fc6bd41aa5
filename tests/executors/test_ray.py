"""A Ray cluster of three nodes on this machine: what trainings come to there is what they come to here."""

import random
from contextlib import closing
from dataclasses import replace

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from pipeline.config.loading import load_task, validate
from pipeline.config.stages import Collect
from pipeline.config.task import ExecutorSettings
from pipeline.config.training import Network
from pipeline.data import content_digest
from pipeline.errors import BadInput
from pipeline.executors.players import CHUNK, Player, recording, rollouts
from pipeline.executors.side_by_side import executor
from pipeline.names import STAGES, Metric, Tag
from pipeline.policies import build_policy, save_policy
from pipeline.stages import run_stage
from pipeline.tasks import Purpose, Task
from pipeline.tracking.runs import experiment_ids
from pipeline.tracking.store import connect

pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else whatever else runs here comes first
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        for _ in range(3):
            cluster.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_trainings_on_three_nodes_come_to_what_they_come_to_here(cluster, make_jobs, heard, at_home, tmp_path):
    executor = {"kind": "ray", "folder": str(tmp_path / "shared")}
    assert heard().train(make_jobs(tmp_path, executor=executor)) == at_home
    assert not list((tmp_path / "shared").iterdir())  # nothing is left there


def test_nodes_that_die_cost_steps_and_no_bit(cluster, make_jobs, heard, at_home, tmp_path):
    moments = random.Random()
    seed = moments.randrange(2**32)
    moments.seed(seed)
    kills, events = 10, 0
    due = moments.randrange(1, 8)

    def kill_a_node(index, event):
        nonlocal kills, events, due
        events += 1
        if kills and events >= due:
            kills, events, due = kills - 1, 0, moments.randrange(1, 8)
            cluster.remove_node(moments.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
            cluster.add_node(**NODE)

    found = heard().train(
        make_jobs(tmp_path, executor={"kind": "ray", "folder": str(tmp_path / "shared")}), kill_a_node
    )
    assert not kills
    assert found == at_home, f"moments of seed {seed}"


def test_what_the_user_did_wrong_comes_back_as_it_was_said(cluster, make_jobs, heard, tmp_path):
    (job,) = make_jobs(tmp_path, 1, {"kind": "ray", "folder": str(tmp_path / "shared")})
    with pytest.raises(BadInput, match="best_metric 'comfort' is not measured"):
        heard().train([replace(job, best_metric="comfort")])


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU")
def test_a_training_on_a_gpu_waits_for_a_node_that_has_one(cluster, make_jobs, tmp_path):
    (job,) = make_jobs(tmp_path, 1, {"kind": "ray", "folder": str(tmp_path / "shared")})
    job = replace(job, task=replace(job.task, device="cuda"))
    with closing(executor(job.task.executor, 1)) as place:
        place.submit(0, job)
        assert place.wait(15) == []
        node = cluster.add_node(**NODE, num_gpus=1)
        ((_, news),) = place.wait(120)
    cluster.remove_node(node)
    assert isinstance(news, BadInput) and "device = 'cuda'" in str(news)  # the node only says that it has one


def test_chunks_of_episodes_come_to_the_same_there(cluster, make_jobs, tmp_path):
    (there,) = (job.task for job in make_jobs(tmp_path, 1, {"kind": "ray", "folder": str(tmp_path / "shared")}))
    here = replace(there, executor=ExecutorSettings())
    policy = build_policy(Task(here).observation_space, Task(here).action_space, Network(hidden=(8,)), 3)
    save_policy(policy, tmp_path / "policy", {})
    settings = {"task": "", "episodes": 2 * CHUNK + 1, "seeds": [4], "noise": {"std": 0.3}, "n_envs": 7}
    config = validate(Collect, {**settings, "filter": {"min_return": 15.0}}, "test")
    player = Player("a policy", str(tmp_path / "policy"))
    ended: list[int] = []
    recorded = [recording(Task(task), player, config, ended.append) for task in (here, there)]
    assert content_digest(recorded[0][0]) == content_digest(recorded[1][0])
    assert recorded[0][1] == recorded[1][1] > recorded[0][0].steps  # some were played and not kept
    episodes = Task(here).episodes("train", 7, 2 * CHUNK + 1, Purpose.EVALUATE)
    del ended[:]
    played = [rollouts(Task(task), player, episodes, ended.append) for task in (here, there)]
    assert sum(ended) == 2 * len(episodes)
    assert [records.episodes for records in played] == [episodes, episodes]
    assert [part.metrics["return"].tolist() for part in played[1:]] == [played[0].metrics["return"].tolist()]
    assert (played[0].action_histogram.counts == played[1].action_histogram.counts).all()
    with pytest.raises(BadInput, match="policy a policy does not fit task"):
        rollouts(Task(load_task("configs/tasks/social_nav.yaml")), player, episodes, ended.append)
    assert not list((tmp_path / "shared").iterdir())


def _ends(stage: str, config: str, overrides: dict[str, str]) -> dict:
    """What every run of a clone, a training or a trial came to, and how many points of every metric it has."""
    run_stage(stage, config, {}, overrides)
    client, found = connect(), {}
    for run in client.search_runs(experiment_ids(client)):
        tags = run.data.tags
        if tags[Tag.STAGE] not in STAGES:
            points = {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
            name = tuple(tags.get(key) for key in (Tag.STAGE, Tag.ARM, Tag.TRIAL, Tag.SEED))
            digests = {key: tags.get(key) for key in (Tag.POLICY_DIGEST, Tag.LAST_POLICY_DIGEST, Tag.CONTENT_KEY)}
            found[name] = run.info.status, digests, points, run.data.metrics.get(Metric.OBJECTIVE)
    return found


@pytest.mark.parametrize(
    ("stage", "config"), [("main", "configs/smoke/lunar_lander/main.yaml"), ("sweep", "configs/smoke/sweep.yaml")]
)
def test_a_stage_comes_to_the_same_there(cluster, stage, config, tmp_path, in_repository, monkeypatch):
    ends = []
    for place in ("local", f"{{kind: ray, folder: {tmp_path}/shared}}"):
        folder = tmp_path / str(len(ends))
        folder.mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        monkeypatch.setenv("PIPELINE_EXECUTOR", place)
        own = {"matched_seeds": "2", "finetune.arms": "[residual]", "compare.playback_episodes": "0"}
        if stage == "sweep":
            own = {"storage": f"sqlite:///{folder}/sweep.db"}
        ends.append(_ends(stage, config, own))
    assert ends[0] == ends[1] and len(ends[0]) > 2
    assert {status for status, *_ in ends[0].values()} == {"FINISHED"}
    assert not list((tmp_path / "shared").iterdir())
