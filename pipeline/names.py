"""The strings that several modules, a query or the registry must agree on. Nothing else lives here.

A name that one module alone writes, for people to read (a metric, a file among the artifacts), stands in that module.
"""

from typing import Final

STAGES: Final = (
    "train_expert", "promote", "collect", "validate", "playback", "pretrain", "finetune", "baseline",
    "evaluate", "compare", "sweep", "new_task", "main", "reproduce",
)  # fmt: skip

# of the runs of single seeds, nested in those of their stage
SEED_STAGES: Final = ("train_expert_seed", "pretrain_seed", "finetune_seed", "baseline_seed")
# of the runs nested in that of a sweep: its trials, and the best of them again on fresh seeds
SWEEP_TRIAL: Final = "sweep_trial"
SWEEP_FRESH: Final = "sweep_fresh"


class Tag:
    """Run tags. Lineage tags of upstream runs are built by `lineage_run_tag`."""

    STAGE: Final = "stage"
    TASK: Final = "task"
    GROUP: Final = "group"
    SEED: Final = "seed"
    ARM: Final = "arm"
    ALGORITHM: Final = "algorithm"  # that a clone was made by
    IMITATION: Final = "imitation"  # `learnt`, `partly` or `failed`: of a clone, or of all of a `pretrain` pooled
    CODE_DIRTY: Final = "code.dirty"
    CODE_COMMIT: Final = "code.commit"
    CONTENT_KEY: Final = "content.key"  # equal for two runs that come to the same (pipeline/tracking/content_key.py)
    KEY_BUT_BUDGET: Final = "content.key_but_budget"  # equal for two trainings that differ in their budget alone
    KEY_BUT_MACHINE: Final = "content.key_but_machine"  # equal for two that differ in the machine alone
    CHECKPOINT: Final = "checkpoint"  # of a finished training: the file that a longer one goes on from
    EXTENDS: Final = "extends"  # the shorter training whose last checkpoint this one began with
    COMMAND: Final = "command.digest"  # of what a run was asked to do, and of the code: the same goes on with it
    CONTINUES: Final = "continues"  # the run that goes on in place of this one
    PROCESS: Final = "process"  # machine, number and start of the process behind a run that has not ended in order
    ALIVE: Final = "process.alive"  # its last sign of life, seconds since 1970
    IDLE: Final = "process.idle"  # seconds between an interruption of a run and the command that went on with it
    PROCESSORS: Final = "processors"  # of a stage whose trainings ran on several kinds, between which bits differ
    RESUME: Final = "resume"  # would a killed training come to the same: `exact`, or `resumable, not exact`
    TRAINING_DIGEST: Final = "training.digest"  # of the settings two arms must share
    SCALING: Final = "scaling.digest"  # of the units in which an arm's policies compute; none: as they are
    REPORT_DIGEST: Final = "report.digest"
    PROMOTABLE: Final = "promotable"
    VERDICT: Final = "verdict"
    COMPARISON: Final = (
        "comparison"  # its verdict: `faster`, `slower`, `no difference found`, `not decided`; may end `, with costs`
    )
    SHIFT: Final = "distribution_shift"  # `shifted` or `alike`: fine-tuning against demonstrations
    REGRESSION: Final = "regression"  # figure that fine-tuning elsewhere made worse on the demonstrated scenarios
    POLICY_DIGEST: Final = "policy.digest"
    LAST_POLICY_DIGEST: Final = "policy.last_digest"
    WEIGHTS_DIGEST: Final = "policy.weights_digest"  # of the tensors alone, whatever the provenance says
    BEST_SEED: Final = "best_seed"  # of an expert's training
    LINEAGE_EXPERT: Final = "lineage.expert"
    LINEAGE_EXPERT_DIGEST: Final = "lineage.expert_digest"
    LINEAGE_DATASET: Final = "lineage.dataset"
    LINEAGE_DATASET_DIGEST: Final = "lineage.dataset_digest"
    DATASET_ID: Final = "dataset.id"
    DATASET_DIGEST: Final = "dataset.digest"
    DATASET_METADATA_DIGEST: Final = "dataset.metadata_digest"
    DATASET_QUALITY: Final = "dataset.quality"
    CAMERA_DIGEST: Final = "camera.digest"  # of the demonstrations as a camera saw them
    TAINT: Final = "taint"  # why what this run made must not be trusted any more
    STUDY: Final = "sweep.study"
    TRIAL: Final = "trial.number"
    TRIAL_STATE: Final = "trial.state"
    TRIAL_FEASIBLE: Final = "trial.feasible"
    OBJECTIVE_SOURCE: Final = "objective.source"  # `episodes` or `aggregate` figures
    TRIAL_VIOLATION: Final = "trial.violation"  # largest excess over a constraint; 0 or less is feasible


class Resume:
    """Values of the tag `resume`."""

    EXACT: Final = "exact"
    NOT_EXACT: Final = "resumable, not exact"


REUSED_PREFIX: Final = "reused."  # `reused.scratch.seed_3`: the finished training that a stage run took over


OUTPUT_PREFIX: Final = "output."  # and a role: the reference that a stage hands on


LINEAGE_ROLES: Final = (
    "expert", "candidate", "gate", "dataset", "policy", "arm", "pretrain", "finetune", "baseline", "repaired",
    "reproduced",
)  # fmt: skip


LINEAGE_PREFIX: Final = "lineage."  # of the tags that whoever uses a thing takes over from the run that made it


def lineage_run_tag(role: str) -> str:
    """`"dataset"` -> `"lineage.dataset_run_id"`. Raises ValueError for a role that no query looks for."""
    if role not in LINEAGE_ROLES:
        raise ValueError(f"unknown lineage role {role!r}")
    return f"{LINEAGE_PREFIX}{role}_run_id"


def further_policy_tag(role: str, run_id: str) -> str:
    """Of a run that has several policies to start from: one for every further one, by the run that made it.

    Role `policy`: arms start from all of them, as with several datasets; `arm`: only an arm of its own does.
    """
    return f"{lineage_run_tag(role)}.{run_id}"


class VersionTag:
    """Tags of a registered model version."""

    GATE: Final = "gate"
    GATE_REASON: Final = "gate.reason"
    GATE_RUN_ID: Final = "gate.run_id"
    POLICY_DIGEST: Final = "policy.digest"
    TASK: Final = "task"
    PROMOTABLE: Final = "promotable"
    APPROVED_AT: Final = "gate.approved_at"
    HISTORY: Final = "gate.history"  # JSON: [[approved at, superseded at or null], ...]
    REPLACED: Final = "gate.replaced"  # the version that this approval replaced
    REPLACED_BY: Final = "gate.replaced_by"
    TAINT: Final = "taint"
    APPROVED_BY: Final = "approval.by"  # the user who signed, where the task names approvers
    SIGNATURE: Final = "approval.signature"  # Ed25519, base64


class Gate:
    """Values of the version tag `gate`."""

    PENDING: Final = "pending"
    APPROVED: Final = "approved"
    REFUSED: Final = "refused"
    SUPERSEDED: Final = "superseded"


class Alias:
    CANDIDATE: Final = "candidate"
    APPROVED: Final = "approved"


def registered_model(task: str) -> str:
    """`"social_nav"` -> `"social_nav-expert"`."""
    return f"{task}-expert"


class Quality:
    """Values of the tag `dataset.quality`; only a validated dataset can be trained on."""

    DRAFT: Final = "draft"
    VALIDATED: Final = "validated"
    QUARANTINED: Final = "quarantined"


class Imitation:
    """Values of the tag `imitation`: what a clone is worth."""

    LEARNT: Final = "learnt"
    PARTLY: Final = "partly"
    FAILED: Final = "failed"


class Arm:
    """The arms of every comparison: initial weights, and the same with learning rate 0. A config may name more."""

    SCRATCH: Final = "scratch"
    PRETRAINED: Final = "pretrained"
    SCRATCH_LR0: Final = "scratch_lr0"
    PRETRAINED_LR0: Final = "pretrained_lr0"


CONTROLS: Final = (Arm.SCRATCH_LR0, Arm.PRETRAINED_LR0)
START: Final = "start"  # shown beside the arms: what the seeds of `pretrained` started from
ARMS: Final = (Arm.SCRATCH, Arm.PRETRAINED, Arm.SCRATCH_LR0, Arm.PRETRAINED_LR0)


class Artifact:
    """Paths inside a run's artifacts."""

    CONFIG: Final = "config.yaml"
    CONTENT_KEY: Final = "content_key.json"  # what the tag `content.key` is the digest of
    TASK: Final = "task.yaml"
    SNQI: Final = "snqi"  # folder: the files that the task names, weights.json and baseline.json
    POLICY: Final = "policy"
    DATASET: Final = "dataset"
    TRAJECTORIES: Final = "dataset/trajectories.npz"
    METADATA: Final = "dataset/metadata.json"
    VALIDATION_JSON: Final = "dataset/validation.json"
    VALIDATION_MD: Final = "dataset/validation.md"
    PLAYBACK: Final = "playback"
    REPORT: Final = "report"
    DIAGNOSTICS_JSON: Final = "diagnostics.json"
    DIAGNOSTICS_MD: Final = "diagnostics.md"
    SHIFT: Final = "distribution_shift.json"
    IMITATION: Final = "imitation.json"  # the verdict on a clone, its yardsticks and reasons
    CHECKPOINT: Final = "checkpoint"
    CERTIFICATE: Final = "transfer_certificate.json"
    WARM_START: Final = "warm_start.json"  # what an adaptive warm start decided, when and why
    EVALUATIONS: Final = "evaluations.json"  # every evaluation of a training, episode by episode
    SUMMARY: Final = "summary.txt"  # the lines that a stage ends with
    ENVIRONMENT: Final = "environment.json"  # package versions, commit, machine
    SWEEP: Final = "sweep"  # folder: summary.md, summary.json, pictures
    SWEEP_MD: Final = "sweep/summary.md"
    SWEEP_JSON: Final = "sweep/summary.json"
    BEST_CONFIG: Final = "sweep/best_config.yaml"  # a config of train_expert


POLICY_WEIGHTS_FILE: Final = "policy.safetensors"
POLICY_SPEC_FILE: Final = "policy.json"
TRAJECTORIES_FILE: Final = "trajectories.npz"
METADATA_FILE: Final = "metadata.json"

CONFIG_PARAM_PREFIX: Final = "cfg."
ARM_PARAM_PREFIX: Final = "arm."  # of what one training has to itself


class Metric:
    """Metric names of runs and of episode records."""

    SUCCESS: Final = "success"
    COLLISION: Final = "collision"
    RETURN: Final = "return"
    LENGTH: Final = "length"
    SUCCESS_RATE: Final = "success_rate"
    COLLISION_RATE: Final = "collision_rate"
    RETURN_MEAN: Final = "return_mean"
    LENGTH_MEAN: Final = "length_mean"  # steps; longer is worse where a goal is reached, better where one balances
    EPISODE_RETURN: Final = "eval_episode_return"
    TIMESTEPS_TO_TARGET: Final = "timesteps_to_target"
    CONVERGED_AT: Final = "converged_at_timestep"
    RATIO: Final = "sample_efficiency/ratio"
    BEST_TIMESTEP: Final = "best_timestep"  # of the evaluation that chose the checkpoint
    ENVIRONMENT_STEPS: Final = "bill/environment_steps"
    EVALUATION_STEPS: Final = "bill/evaluation_steps"
    GRADIENT_STEPS: Final = "bill/gradient_steps"
    WALL_SECONDS: Final = "bill/wall_seconds"
    OBJECTIVE: Final = "objective"  # what a trial of a sweep is worth


EVAL_PREFIX: Final = "eval/"

# read by numerical libraries when they load; how many threads they take also decides the last bits
RUN_VARIABLE: Final = "MLFLOW_RUN_ID"
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",  # of NumPy on macOS
)
