"""`baseline`: the PPO of `finetune` with the same config, from fresh weights."""

from collections.abc import Mapping

from pipeline.config.loading import load_task
from pipeline.config.stages import Finetune
from pipeline.learning.arms import arm_jobs
from pipeline.stages import StageOutcome, run_arms
from pipeline.tasks import Task
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("group",)


def inputs(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> dict[str, str]:
    return {}


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    arms = arm_jobs(config, task, run.folder, None)
    run.record_config(config, task.config, inputs(run, config, upstream))
    return run_arms(run, "baseline", config, task, arms, upstream.get("group"), {})
