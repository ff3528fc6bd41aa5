"""`baseline`: the PPO of `finetune` with the same config, from fresh weights."""

from collections.abc import Mapping

from pipeline.config.loading import load_task
from pipeline.config.stages import Finetune
from pipeline.learning.arms import arm_jobs, shared_settings
from pipeline.names import Tag
from pipeline.report.progress import TrainingProgress, input_warnings, trainings_summary
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking.content_key import digest_of
from pipeline.tracking.runs import StageRun
from pipeline.tracking.seed_runs import left_to_train, log_bill, train_logged

UPSTREAM = ("group",)
SEED_STAGE = "baseline_seed"


def inputs(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> dict[str, str]:
    return {}


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    arms = arm_jobs(config, task, run.folder, None)
    run.record_config(config, task.config, inputs(run, config, upstream))
    group = upstream.get("group") or run.run_id
    run.tag({Tag.GROUP: group, Tag.TRAINING_DIGEST: digest_of(shared_settings(config, task))})
    todo = left_to_train(run, arms, SEED_STAGE, config.reuse)
    jobs = [arms[i].job for i in todo]
    tags = [{Tag.GROUP: group, Tag.STAGE: SEED_STAGE, Tag.ARM: arms[i].arm} for i in todo]
    with TrainingProgress("baseline", jobs) as progress:
        results = train_logged(run, jobs, tags, config.workers, progress.on_event)
    log_bill(run, results)
    reused = [f"{arm.arm} seed {arm.job.seed}" for i, arm in enumerate(arms) if i not in todo]
    return StageOutcome(
        (*trainings_summary("baseline", [arms[i].arm for i in todo], results, reused), *input_warnings(task)),
        outputs={"group": group},
    )
