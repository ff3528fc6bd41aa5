"""`pretrain`: clone a validated dataset into PPO policies, actor and critic, one a seed, and certify each artifact.

By behavioural cloning, or by an algorithm that also plays in the environment; what comes out is the same. Every clone
is held against its untrained self, random play, the best constant action and the demonstrator: a failed imitation is a
verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Pretrain
from pipeline.config.task import ExecutorSettings
from pipeline.data import REWARDS, Trajectories
from pipeline.errors import Interrupted
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.clones import Clone, CloneJob, untrained_clone
from pipeline.learning.divergence import Diverged
from pipeline.learning.jobs import TrainingEvent
from pipeline.learning.yardsticks import evidence, play_yardsticks
from pipeline.names import Artifact, Imitation, Metric, Tag
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.evaluation import point_figures, summarise, with_intervals
from pipeline.policies import load_trainable, scaling_of
from pipeline.report.progress import ProgressBar
from pipeline.report.text import one_line
from pipeline.stages import StageOutcome, say_mixed_processors
from pipeline.statistics.imitation_verdict import ImitationVerdict, judge
from pipeline.statistics.suspicions import Suspicion, suspicions
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.content_key import clone_key, cloning_inputs
from pipeline.tracking.datasets import (
    StoredDataset,
    answering,
    demonstrator_of,
    fetch_for_training,
    log_dataset_input,
    part_of,
    recorded_otherwise,
    through_camera,
)
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("dataset",)
SCALING = "scaling.json"
BEST = {
    "bc": "bc/best_epoch",
    "gail": "gail/best_timestep",
    "airl": "airl/best_timestep",
    "dagger": "dagger/best_round",
}


def inputs(run: StageRun, config: Pretrain, upstream: Mapping[str, str]) -> dict[str, str]:
    dataset = fetch_for_training(run.client, upstream.get("dataset", "latest"), load_task(config.task).name)
    return cloning_inputs(config, part_of(dataset, config.episodes).metadata)


def run(run: StageRun, config: Pretrain, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task))
    dataset = fetch_for_training(run.client, upstream.get("dataset", "latest"), task.config.name)
    dataset = part_of(dataset, config.episodes)
    metadata = dataset.metadata
    task.refuse_other_wrappers(metadata.environment.get("wrappers", []), f"dataset {metadata.dataset_id}")
    task.refuse_holdouts(config.scenario_set, "evaluating a training")
    run.record_config(config, task.config, cloning_inputs(config, metadata))
    made_from = lineage.from_dataset(dataset.run)
    run.tag({Tag.ALGORITHM: config.algorithm, **made_from})
    log_dataset_input(run, metadata, dataset.run_id, "training")
    if not config.use_camera:  # what does not fit is refused before anything is played
        untrained_clone(task, config, dataset.trajectories, config.seeds[0])
    demonstrator = answering(run.client, config, metadata, task)
    known = partial(demonstrator_of, run.client, metadata, task)
    yardsticks = play_yardsticks(task, config, dataset.trajectories, metadata, known)
    if config.use_camera:
        task, dataset = Task(task.config, use_camera=True), through_camera(run, task, dataset)
    data = dataset.trajectories

    def judged(some: Sequence[Clone]) -> ImitationVerdict:
        before = [clone.untrained for clone in some], [clone.random_play for clone in some]
        rollouts = yardsticks.rollouts([clone.final for clone in some], *before, task.config)
        beats_untrained = any(clone.result.beats_untrained for clone in some)
        return judge(rollouts, config.judgement, beats_untrained, yardsticks.allowance, yardsticks.filtered)

    made, verdicts = _make_clones(run, config, task, dataset, demonstrator, judged)
    say_mixed_processors(run, "pretrain", [clone.machine for clone in made.values()])
    clones = [made[seed] for seed in config.seeds]
    # the stage's own policy is the first seed's clone: it was not chosen by how well it does
    run.file(clones[0].folder, Artifact.POLICY)
    run.text(clones[0].certificate.to_json(), Artifact.CERTIFICATE)
    run.tag({Tag.POLICY_DIGEST: clones[0].digest})
    figures = [point_figures(clone.final) for clone in clones]
    steps = sum(clone.result.environment_steps for clone in clones)
    run.metrics(
        {
            **{f"final/{name}": sum(f[name] for f in figures) / len(figures) for name in figures[0]},
            Metric.WALL_SECONDS: sum(clone.result.wall_seconds for clone in clones),
            Metric.ENVIRONMENT_STEPS: steps,
            Metric.EVALUATION_STEPS: sum(clone.evaluation_steps for clone in clones) + yardsticks.steps,
        }
    )
    pooled = judged(clones)
    lines = _log_verdict(run, pooled, {seed: verdicts[seed] for seed in config.seeds}, clones, data)
    success = [of_clone[Metric.SUCCESS_RATE] for of_clone in figures]
    otherwise = recorded_otherwise(metadata, task)
    some = "" if config.episodes is None else f"{config.episodes} episodes of "
    how = "" if config.algorithm == "bc" else f" by {config.algorithm}, {steps:,} environment steps"
    return StageOutcome(
        (
            f"pretrain: {len(clones)} clones of {some}{metadata.dataset_id}{how}: success on fresh episodes "
            f"{sum(success) / len(success):.3f} ({min(success):.3f} to {max(success):.3f} over seeds); "
            f"{_critics([clone.result.critic_explained_variance for clone in clones])}",
            *lines,
            *(["  the demonstrations have no rewards: actors alone were cloned"] * (REWARDS in metadata.missing)),
            *(() if otherwise is None else (f"  warning: {otherwise}",)),
        ),
        verdict=pooled.state != Imitation.FAILED,
        outputs={"policy": run.run_id},
    )


def _make_clones(
    run: StageRun,
    config: Pretrain,
    task: Task,
    dataset: StoredDataset,
    demonstrator: Demonstrator | None,
    judged: Callable[[Sequence[Clone]], ImitationVerdict],
) -> tuple[dict[int, Clone], dict[int, ImitationVerdict]]:
    """Seed -> its clone, and what it is judged to have learnt; each is a run of its own as soon as it is begun."""
    metadata, made_from = dataset.metadata, lineage.from_dataset(dataset.run)
    made: dict[int, Clone] = {}
    verdicts: dict[int, ImitationVerdict] = {}
    with Forwarder(run) as forwarder:
        keys = {seed: clone_key(config, task.config, metadata, seed) for seed in config.seeds}
        left: dict[int, StageRun] = {}  # seed -> the run of a clone that is not made yet
        for seed in config.seeds:
            about = {Tag.STAGE: "pretrain_seed", Tag.TASK: task.config.name, Tag.SEED: seed}
            name, folder = f"pretrain · {config.algorithm} · seed {seed}", run.folder / f"clone-{seed}"
            folder.mkdir()
            left[seed] = forwarder.child(name, {**about, Tag.ALGORITHM: config.algorithm, **made_from}, folder)
            left[seed].params({"seed": seed})
            left[seed].record_key(keys[seed])
        jobs = [
            CloneJob(
                task.config,
                config,
                dataset.trajectories,
                metadata.content_digest,
                seed,
                str(child.folder),
                demonstrator,
            )
            for seed, child in left.items()
        ]

        unit = BEST[config.algorithm].rpartition("_")[2]  # epoch, timestep, round

        def on_event(index: int, event: TrainingEvent) -> None:
            seed = jobs[index].seed
            left[seed].metrics(event.metrics, event.timestep)
            progress.add(0, f"seed {seed} at {unit} {event.timestep:,}")

        def on_result(index: int, clone: Clone) -> None:
            seed = jobs[index].seed
            child = left[seed]
            verdicts[seed] = verdict = judged([clone])
            held_out, nothing = clone.imitated.held_out, None
            if verdict.state == Imitation.FAILED and held_out < config.judgement.least_share:
                nothing = f"its imitation failed, and explains {held_out:.3g} of the held-out actions"
            certificate = replace(clone.certificate, learnt_nothing=nothing)
            made[seed] = clone = replace(clone, folder=child.folder / Artifact.POLICY, certificate=certificate)
            if (key := keys[seed].made_on([clone.machine])) != keys[seed]:
                child.record_key(key)
            _log_clone(child, clone, config.algorithm)
            child.tag({Tag.IMITATION: verdict.state})
            child.metrics({**verdict.metrics(), **clone.imitated.metrics()})
            child.describe(
                f"**Clone of seed {seed}** by `{config.algorithm}`, of demonstrations "
                f"{metadata.dataset_id}.\n\n- imitation {one_line(verdict.sentence())}\n\n"
                f"Policy: artifact `{Artifact.POLICY}`, what was handed over: `{Artifact.CERTIFICATE}`. Made from: "
                f"{child.link(dataset.run_id, 'dataset')}; all clones: {child.link(run.run_id, 'pretrain')}."
            )
            child.close("FINISHED")
            del left[seed]
            progress.add(1)

        # a demonstrator that is asked answers in this process; a single clone is not worth another one
        here = None if demonstrator is None else ExecutorSettings()
        workers = config.workers if demonstrator is None and len(jobs) > 1 else 0
        try:
            with ProgressBar("pretrain", len(jobs), "clones") as progress:
                run_side_by_side(jobs, workers, on_event, on_result, settings=here)
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt | Interrupted)
            for child in left.values():
                if isinstance(error, Diverged) and (child.folder / Artifact.POLICY).is_dir():
                    child.file(child.folder / Artifact.POLICY, Artifact.POLICY)
                child.describe(f"not finished: {type(error).__name__}: {error}"[:500])
                child.close("KILLED" if killed else "FAILED")
            raise
    return made, verdicts


def _log_clone(run: StageRun, clone: Clone, algorithm: str) -> None:
    run.text(clone.certificate.to_json(), Artifact.CERTIFICATE)
    run.policy(clone.folder, "clone", clone.result.best_epoch, point_figures(clone.final), Artifact.POLICY)
    run.metrics({f"final/{name}": value for name, value in with_intervals(summarise(clone.final)).items()})
    run.metrics(
        {
            BEST[algorithm]: clone.result.best_epoch,
            "bc/samples_per_second": clone.result.samples_per_second,
            Metric.ENVIRONMENT_STEPS: clone.result.environment_steps,
            Metric.EVALUATION_STEPS: clone.evaluation_steps,
            Metric.WALL_SECONDS: clone.result.wall_seconds,
            **clone.certificate.metrics(),
        }
    )
    run.tag({Tag.POLICY_DIGEST: clone.digest})
    scaling = scaling_of(load_trainable(clone.folder))
    if scaling:
        run.json(scaling.to_json(), SCALING)


def _log_verdict(
    run: StageRun,
    pooled: ImitationVerdict,
    verdicts: Mapping[int, ImitationVerdict],
    clones: Sequence[Clone],
    data: Trajectories,
) -> list[str]:
    """What the imitation came to, of all seeds and of each; for people, and what to look at where it is not learnt."""
    of_all = [clone.imitated.metrics() for clone in clones]
    run.tag({Tag.IMITATION: pooled.state})
    run.metrics({**pooled.metrics(), **{name: sum(m[name] for m in of_all) / len(of_all) for name in of_all[0]}})
    lines = [f"  imitation {pooled.sentence()}"]
    found: tuple[Suspicion, ...] = ()
    if pooled.state != Imitation.LEARNT:  # what stands against the one that came the least far
        verdict, clone = min(zip(verdicts.values(), clones, strict=True), key=lambda pair: pair[0].share or 0.0)
        episodes = len(clone.result.train_episodes)
        found = suspicions(evidence(load_trainable(clone.folder), clone.imitated, data, episodes, verdict.share))
        lines += [f"  look at: {suspicion.name}: {suspicion.line}" for suspicion in found]
    for seed, verdict in verdicts.items():
        if verdict.state == Imitation.FAILED != pooled.state:
            lines.append(f"  WARNING: the clone of seed {seed} alone {verdict.sentence()}")
    run.json(to_data({"pooled": pooled, "clones": verdicts, "suspicions": found}), Artifact.IMITATION)
    return lines


def _critics(explained: Sequence[float]) -> str:
    """How much they explain, over the seeds of which it is known."""
    known = [share for share in explained if isfinite(share)]
    if not known:
        return "how well critics do is not known: none was trained, or held-out returns do not vary"
    return f"critics explain {sum(known) / len(known):.2f} of the variance of held-out returns"
