"""`baseline`: the PPO of `finetune` from fresh weights, in the units of the clones if it is given any."""

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config.loading import load_task
from pipeline.config.stages import Finetune
from pipeline.learning.arms import arm_jobs
from pipeline.names import Tag
from pipeline.policies import Scaling
from pipeline.stages import StageOutcome, run_arms
from pipeline.tasks import Task
from pipeline.tracking.models import find_policies, starting_policies
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("policy", "group")


def inputs(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> dict[str, str]:
    scalings = _scalings(run, config, upstream) or {}
    return {f"scaling of seed {seed}": scaling.digest for seed, scaling in scalings.items() if scaling}


def _scalings(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> dict[int, Scaling] | None:
    """Seed -> the units of the clone that it will be compared with; None when no clone is named."""
    if "policy" not in upstream:
        return None
    policies = find_policies(run.client, upstream["policy"], load_task(config.task).name, {Tag.STAGE: "pretrain"})
    starts = starting_policies(run.client, policies, config.seeds)
    return {seed: start.scaling() for seed, start in starts.items()}


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    scalings = _scalings(run, config, upstream)
    arms = arm_jobs(config, task, run.folder, None, scalings)
    run.record_config(config, task.config, inputs(run, config, upstream))
    trained = run_arms(run, "baseline", config, task, arms, upstream.get("group"), {})
    if any(arm.job.scaling for arm in arms):
        source = "the bounds of its spaces" if scalings is None else f"the clones of {upstream['policy']}"
        trained = replace(trained, summary=(*trained.summary, f"  it computes in the units of {source}"))
    return trained
