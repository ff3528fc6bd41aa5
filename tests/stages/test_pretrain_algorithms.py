"""`pretrain` by GAIL, AIRL and DAgger: the same outputs as cloning, on the bill, and fit to be fine-tuned."""

import json
from dataclasses import replace

import pytest

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Pretrain
from pipeline.errors import BadInput
from pipeline.names import Artifact, Metric, Tag, lineage_run_tag
from pipeline.stages import run_stage
from pipeline.stages.pretrain import _critics
from pipeline.tasks import Task
from pipeline.tracking.datasets import answering, fetch_for_training
from pipeline.tracking.groups import Group, upfront_cost
from pipeline.tracking.models import find_policy, seeds_of
from pipeline.tracking.runs import get_run, read_text_artifact, search

ALGORITHMS = ("gail", "airl", "dagger")
SCRIPT = "benchmarks.social_nav_planners:dynamic_window"


def pretrain(algorithm: str, dataset: str, **overrides: str) -> str:
    config = f"configs/smoke/{algorithm}/pretrain.yaml"
    return run_stage("pretrain", config, {"dataset": dataset}, overrides).outputs["policy"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_leaves_what_cloning_leaves(story, client, algorithm):
    run_id = pretrain(algorithm, story.dataset)
    run, cloned = get_run(client, run_id, "test"), get_run(client, story.pretrain, "test")
    (child,) = search(client, {"mlflow.parentRunId": run_id, Tag.STAGE: "pretrain_seed"})
    one_of_cloning = search(client, {"mlflow.parentRunId": story.pretrain, Tag.STAGE: "pretrain_seed"})[0]
    for ours, theirs in ((run, cloned), (child, one_of_cloning)):
        assert ours.data.tags[Tag.ALGORITHM] == algorithm and theirs.data.tags[Tag.ALGORITHM] == "bc"
        assert {k for k in ours.data.tags if "." in k} >= {k for k in theirs.data.tags if k.startswith("lineage.")}
        assert set(ours.data.metrics) >= {m for m in theirs.data.metrics if not m.startswith("bc/")}
    steps = child.data.metrics[Metric.ENVIRONMENT_STEPS]
    assert steps == run.data.metrics[Metric.ENVIRONMENT_STEPS] > 0 == cloned.data.metrics[Metric.ENVIRONMENT_STEPS]
    assert steps == 1024 or algorithm == "dagger"
    points = client.get_metric_history(child.info.run_id, "eval/success_rate")
    assert [p.step for p in points] == ([0, 1, 2, 3] if algorithm == "dagger" else [0, 512, 1024])
    curve = "dagger/neglogp" if algorithm == "dagger" else f"{algorithm}/disc_loss"
    assert len(client.get_metric_history(child.info.run_id, curve)) == len(points) - 1
    certificate = json.loads(read_text_artifact(client, child.info.run_id, Artifact.CERTIFICATE))
    stored = find_policy(client, run_id, "social_nav", {})
    assert certificate["policy_digest"] == stored.digest == run.data.tags[Tag.POLICY_DIGEST]
    assert list(seeds_of(client, stored.run_id, "pretrain_seed")) == [1]


def test_a_gail_clone_is_fine_tuned_and_its_steps_are_on_the_bill(story, client):
    run_id = pretrain("gail", story.dataset)
    overrides = {"seeds": "[1]", "control_timesteps": "0", "training.total_timesteps": "512"}
    group = run_stage("finetune", "configs/smoke/finetune.yaml", {"policy": run_id}, overrides).outputs["group"]
    (run,) = search(client, {Tag.GROUP: group, Tag.STAGE: "finetune"})
    assert run.data.tags[lineage_run_tag("pretrain")] == run_id
    bill = Group(group, {}, baseline=run, finetune=run)
    assert upfront_cost(client, bill) is None  # the file of the expert does not say what its training took
    (imported,) = search(client, {Tag.STAGE: "promote"})
    client.log_metric(imported.info.run_id, Metric.ENVIRONMENT_STEPS, 5000)
    cost = upfront_cost(client, bill)
    assert cost.expert_steps == 5000
    assert cost.imitation_steps == 1024 == cost.steps - cost.expert_steps - cost.demonstration_steps


@pytest.mark.parametrize(
    "demonstrator",
    [
        {"kind": "imported", "name": "theirs", "version": "1", "digest": "a" * 36},
        {"kind": "scripted", "name": SCRIPT, "version": "1", "digest": "a" * 36, "kwargs": {}},
    ],
    ids=["imported", "a script that changed"],
)
def test_dagger_is_refused_where_nobody_can_be_asked(story, client, demonstrator):
    stored = fetch_for_training(client, story.dataset, "social_nav")
    other = replace(stored, metadata=replace(stored.metadata, demonstrator=demonstrator))
    config = load(Pretrain, "configs/smoke/dagger/pretrain.yaml")
    with pytest.raises(BadInput, match=f"{demonstrator['name']}.*cannot be asked"):
        answering(client, config, other.metadata, Task(load_task(config.task)))


def test_critics_of_which_nothing_is_known_are_told_so_and_spoil_no_mean():
    assert _critics([0.5, float("nan"), 1.0]) == "critics explain 0.75 of the variance of held-out returns"
    assert "is not known" in _critics([float("nan")])
