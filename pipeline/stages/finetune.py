"""`finetune`: PPO from a certified clone, several seeds side by side, with controls of learning rate 0."""

from collections.abc import Mapping

from pipeline.config.loading import load_task
from pipeline.config.stages import Finetune
from pipeline.errors import BadInput
from pipeline.learning.arms import arm_jobs, shared_settings
from pipeline.learning.certificates import TransferCertificate, verify_certificate
from pipeline.names import Artifact, Tag
from pipeline.report.progress import TrainingProgress
from pipeline.report.trainings import trainings_summary
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.models import StoredPolicy, find_policy
from pipeline.tracking.runs import StageRun, digest_of, get_run, read_text_artifact
from pipeline.tracking.training import log_bill, train_logged

UPSTREAM = ("policy", "group")


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment)
    policy = find_policy(run.client, upstream.get("policy", "latest"), task.config.name, {Tag.STAGE: "pretrain"})
    run_id = _require_certificate(run, policy)
    arms = arm_jobs(config, task, run.folder, policy.folder)
    run.record_config(config, task.config, {"policy": policy.digest})
    shared = {
        Tag.STAGE: "finetune",
        Tag.GROUP: upstream.get("group") or run.run_id,
        Tag.TRAINING_DIGEST: digest_of(shared_settings(config, task)),
        **lineage.from_policy(policy, "pretrain", get_run(run.client, run_id, "policy").data.tags),
    }
    run.tag(shared)
    with TrainingProgress("finetune", [arm.job for arm in arms]) as progress:
        tags = [{**shared, Tag.STAGE: "finetune_seed", Tag.ARM: arm.arm} for arm in arms]
        results = train_logged(run, [arm.job for arm in arms], tags, config.workers, progress.on_event)
    log_bill(run, results)
    return StageOutcome(
        trainings_summary("finetune", [arm.arm for arm in arms], results), outputs={"group": str(shared[Tag.GROUP])}
    )


def _require_certificate(run: StageRun, policy: StoredPolicy) -> str:
    """The run of the policy, after its files were held to the certificate that `pretrain` left there."""
    if policy.run_id is None:
        raise BadInput(f"policy {policy.reference!r} has no transfer certificate; give the run id of a pretrain run")
    text = read_text_artifact(run.client, policy.run_id, Artifact.CERTIFICATE)
    if text is None:
        raise BadInput(
            f"policy of {policy.reference} has no transfer certificate ({Artifact.CERTIFICATE}); only a policy that "
            "pretrain certified can be fine-tuned: mlflow run . -e pretrain"
        )
    verify_certificate(TransferCertificate.from_json(text), str(policy.folder))
    return policy.run_id
