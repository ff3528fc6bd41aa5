"""`baseline`: the PPO of `finetune` with the same config, from fresh weights."""

from collections.abc import Mapping

from pipeline.config.loading import load_task
from pipeline.config.stages import Finetune
from pipeline.learning.arms import arm_jobs, shared_settings, training_inputs
from pipeline.names import Tag
from pipeline.report.progress import TrainingProgress
from pipeline.report.trainings import trainings_summary
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking.runs import StageRun, digest_of
from pipeline.tracking.training import left_to_train, log_bill, train_logged

UPSTREAM = ("group",)


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    arms = arm_jobs(config, task, run.folder, None)
    run.record_config(config, task.config, {})
    shared = {
        Tag.GROUP: upstream.get("group") or run.run_id,
        Tag.TRAINING_DIGEST: digest_of(shared_settings(config, task)),
    }
    run.tag(shared)
    tags = [
        {
            **shared,
            Tag.STAGE: "baseline_seed",
            Tag.ARM: arm.arm,
            Tag.INPUTS_DIGEST: digest_of(training_inputs(config, task, arm, None)),
        }
        for arm in arms
    ]
    todo = left_to_train(run, arms, tags)
    jobs = [arms[i].job for i in todo]
    with TrainingProgress("baseline", jobs) as progress:
        results = train_logged(run, jobs, [tags[i] for i in todo], config.workers, progress.on_event)
    log_bill(run, results)
    reused = [f"{arm.arm} seed {arm.job.seed}" for i, arm in enumerate(arms) if i not in todo]
    return StageOutcome(
        trainings_summary("baseline", [arms[i].arm for i in todo], results, reused),
        outputs={"group": str(shared[Tag.GROUP])},
    )
