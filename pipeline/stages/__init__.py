"""One module a stage: it reads, lets the rooms below do the work, and logs. What surrounds every stage is here.

Stages never import each other, they meet through artifacts and tags; `main` alone sits above its siblings, and asks
for them by name. Every module offers

    UPSTREAM: tuple[str, ...]     # the upstream references it takes: expert, dataset, policy, group, run
    def run(run: StageRun, config, upstream: Mapping[str, str]) -> StageOutcome

and those that `main` runs, so that it can tell whether they were done before,

    def inputs(run: StageRun, config, upstream) -> dict[str, str]   # role -> digest of what it reads; `run` is any run
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Final

from pipeline.config.loading import load, load_task, to_data
from pipeline.config.stages import STAGE_CONFIGS, Finetune
from pipeline.errors import BadInput, printable, say
from pipeline.learning.arms import ArmJob, shared_settings
from pipeline.learning.jobs import TrainingJob, TrainingResult
from pipeline.learning.processor import processor_kind
from pipeline.names import ARMS, OUTPUT_PREFIX, Artifact, Metric, Tag
from pipeline.report.progress import TrainingProgress, trainings_summary
from pipeline.report.text import one_line
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.content_key import digest_of, package_code
from pipeline.tracking.seed_runs import left_to_train, train_logged
from pipeline.tracking.spool import deliver_leftovers
from pipeline.tracking.stage_run import StageRun, open_run

MOST_LINES, MOST_CHARACTERS = 12, 400  # of a summary in the description of a run: a tag holds 8,000 characters
RESUMED: Final = ("train_expert", "finetune", "baseline", "main")  # the others are done again under a new run


@dataclass(frozen=True)
class StageOutcome:
    """How a stage ended: its verdict, what a person should read, and what the next stage needs."""

    summary: tuple[str, ...]  # lines: what came out, where to look next
    verdict: bool | None = None  # None: this stage judges nothing; False: exit code 1
    failed: bool = False  # a verdict that ends the run itself FAILED (the gate refused)
    outputs: Mapping[str, str] = field(default_factory=dict)  # references for the next stages
    run_id: str | None = None  # known once it is over
    see: str = ""  # Markdown for the run's description: where to look next
    table: str = ""  # below the summary where the stage is asked for alone


def stage_module(stage: str) -> Any:
    return import_module(f"{__name__}.{stage}")


def run_stage(stage: str, config_path: str, upstream: Mapping[str, str], overrides: Mapping[str, str]) -> StageOutcome:
    """Load and check the configuration, open the run, and do the stage. Raises BadInput.

    The same command again goes on with a run of it that was interrupted. What `main` is given as `<stage>.<key>`
    overrides the config of that stage.
    """
    deliver_leftovers()
    of_stages = {key: text for key, text in overrides.items() if stage == "main" and key.split(".")[0] in STAGE_CONFIGS}
    try:
        own = {key: text for key, text in overrides.items() if key not in of_stages}
        config = load(STAGE_CONFIGS[stage], config_path, own)
        if of_stages:
            config = replace(config, overrides={**config.overrides, **of_stages})
        command = command_digest(stage, config, upstream)
    except BadInput:
        with open_run(stage):  # it says what was wrong
            raise
    return do(stage, config, upstream, command)


def command_digest(stage: str, config: Any, upstream: Mapping[str, str]) -> str | None:
    """Of what a stage that can go on is asked to do, and of the code; None for any other stage. Raises BadInput."""
    if stage not in RESUMED:
        return None
    stages = vars(stage_module(stage).plan(config)) if stage == "main" else {stage: config}
    work = {name: {"config": to_data(c), "task": to_data(load_task(c.task))} for name, c in stages.items() if c}
    return digest_of([stage, to_data(config), work, dict(upstream), dict(package_code())])


def do(
    stage: str, config: Any, upstream: Mapping[str, str], command: str | None, group: str | None = None
) -> StageOutcome:
    """A stage in a run of its own, which is nested in that of `main` whose group is given, with its result on record.

    Raises BadInput.
    """
    module = stage_module(stage)
    with open_run(stage, nested=group is not None, command=command) as run:
        if run.continued:
            say(f"{stage}: goes on with run {run.run_id}, which was interrupted")
        unknown = sorted(set(upstream) - set(module.UPSTREAM))
        if unknown:
            allowed = ", ".join(module.UPSTREAM) or "none"
            raise BadInput(f"stage {stage!r} takes no reference {unknown[0]!r}; it takes: {allowed}")
        if group is not None:
            run.tag({Tag.GROUP: group})
        outcome: StageOutcome = module.run(run, config, upstream)
        conclude(run, stage, outcome)
    if outcome.failed:
        run.close("FAILED")  # its stage did its work, and the verdict is a refusal
    return replace(outcome, run_id=run.run_id)


def conclude(run: StageRun, stage: str, outcome: StageOutcome) -> None:
    """Put on record what a stage came to; its description says what it is, what came out and where to look next."""
    if outcome.verdict is not None:
        run.tag({Tag.VERDICT: "yes" if outcome.verdict else "no"})
    run.tag({f"{OUTPUT_PREFIX}{role}": reference for role, reference in outcome.outputs.items()})
    run.text("".join(f"{printable(line)}\n" for line in outcome.summary), Artifact.SUMMARY)
    lines = [one_line(line).removeprefix("- ") for line in outcome.summary if line]
    paragraphs = [
        (stage_module(stage).__doc__ or f"`{stage}`").splitlines()[0],
        "\n".join(f"- {line[:MOST_CHARACTERS]}" for line in lines[:MOST_LINES]),
        outcome.see,
        lineage.links(run, stage),
    ]
    run.describe("\n\n".join(paragraph for paragraph in paragraphs if paragraph))


def report_link(run: StageRun, compared: str) -> str:
    """Markdown that leads to the report of a comparison."""
    return f"The report: {run.link(f'{compared}/artifacts/{Artifact.REPORT}/report.html', 'report.html')}."


# --- what several stages do ------------------------------------------------------------------------------------------


def train(
    run: StageRun, stage: str, jobs: Sequence[TrainingJob], tags: Sequence[Mapping[str, Any]], workers: int
) -> list[TrainingResult]:
    """Train side by side, each in a run with these tags; people see how far it is, and the stage bears the bill.

    Of every arm the first training is filmed, if any: a film takes seconds of the process that all report to.
    """
    arms = [its.get(Tag.ARM) for its in tags]
    with TrainingProgress(stage, jobs, {arms.index(arm) for arm in arms}) as progress:
        results = train_logged(run, jobs, tags, workers, progress.on_event)
    say_mixed_processors(run, stage, [machine for result in results for machine in result.machines])
    run.metrics(
        {
            Metric.ENVIRONMENT_STEPS: sum(result.environment_steps for result in results),
            Metric.EVALUATION_STEPS: sum(result.evaluation_steps for result in results),
            Metric.GRADIENT_STEPS: sum(result.gradient_steps for result in results),
            Metric.WALL_SECONDS: sum(result.wall_seconds.total for result in results),
        }
    )
    return results


def say_mixed_processors(run: StageRun, stage: str, machines: Sequence[Mapping[str, str]]) -> None:
    """Say so, and put it on record, when what a stage trained was trained on several kinds of processor."""
    kinds = sorted({processor_kind(machine) for machine in machines})
    if len(kinds) > 1:
        say(f"{stage}: trained on {len(kinds)} kinds of processor, between which bits differ: {'; '.join(kinds)}")
        run.tag({Tag.PROCESSORS: "; ".join(kinds)})


def run_arms(
    run: StageRun,
    stage: str,
    config: Finetune,
    task: Task,
    arms: Sequence[ArmJob],
    group: str | None,
    tags: Mapping[tuple[str, int], Mapping[str, Any]],
) -> StageOutcome:
    """Train arms of a comparison, but for what the store has already; `tags`: more of the run of an arm and a seed.

    Without a group the run begins one of its own.
    """
    group = group or run.run_id
    # that an arm with clones of its own has their units is a part of what it is
    scalings = {str(a.job.seed): a.job.scaling.digest for a in arms if a.job.scaling and a.arm in ARMS}
    run.tag(
        {
            Tag.GROUP: group,
            Tag.TRAINING_DIGEST: digest_of(shared_settings(config, task)),
            Tag.SCALING: digest_of(scalings) if scalings else None,
        }
    )
    left = left_to_train(run, arms, f"{stage}_seed", config.reuse)
    todo = [arms[index] for index in left]
    shared = {Tag.GROUP: group, Tag.STAGE: f"{stage}_seed"}
    about = [
        {**tags.get((a.arm, a.job.seed), {}), **shared, Tag.ARM: a.arm, Tag.EXTENDS: shorter}
        for a, shorter in zip(todo, left.values(), strict=True)
    ]
    results = train(run, stage, [arm.job for arm in todo], about, config.workers)
    reused = [f"{arm.arm} seed {arm.job.seed}" for arm in arms if arm not in todo]
    summary = trainings_summary(stage, [arm.arm for arm in todo], results, reused)
    return StageOutcome(summary, outputs={"group": group})
