"""`pretrain`: clone a validated dataset into PPO policies, actor and critic, one a seed, and certify each artifact.

By behavioural cloning, or by an algorithm that also plays in the environment; what comes out is the same.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Pretrain
from pipeline.data import content_digest
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.learning.certificates import TransferCertificate, certify
from pipeline.learning.cloning import CloningResult, EpochPoint, clone
from pipeline.learning.divergence import Diverged
from pipeline.learning.ppo import evaluation_episodes, final_episodes
from pipeline.names import EVAL_PREFIX, Artifact, Metric, Tag
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.evaluation import (
    EpisodeRecords,
    evaluation_env,
    point_figures,
    run_episodes,
    summarise,
    with_intervals,
)
from pipeline.play.filming import view_again
from pipeline.policies import WRAPPERS, act_function, build_policy, save_policy
from pipeline.report.trainings import input_warnings
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.content_key import ContentKey, content_key
from pipeline.tracking.datasets import (
    StoredDataset,
    demonstrator_of,
    fetch_for_training,
    log_dataset_input,
    recorded_otherwise,
)
from pipeline.tracking.forwarder import child_run, forwarding
from pipeline.tracking.models import log_policy
from pipeline.tracking.runs import StageRun

UPSTREAM = ("dataset",)
BEST = {
    "bc": "bc/best_epoch",
    "gail": "gail/best_timestep",
    "airl": "airl/best_timestep",
    "dagger": "dagger/best_round",
}


def inputs(run: StageRun, config: Pretrain, upstream: Mapping[str, str]) -> dict[str, str]:
    return _inputs(
        config, fetch_for_training(run.client, upstream.get("dataset", "latest"), load_task(config.task).name)
    )


def run(run: StageRun, config: Pretrain, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task))
    dataset = fetch_for_training(run.client, upstream.get("dataset", "latest"), task.config.name)
    behind = dataset.metadata.environment.get("wrappers", [])
    task.refuse_other_wrappers(behind, f"dataset {dataset.metadata.dataset_id}")
    task.refuse_holdouts(config.scenario_set, "evaluating a training")
    run.record_config(config, task.config, _inputs(config, dataset))
    made_from = lineage.from_dataset(dataset.run)
    run.tag({Tag.ALGORITHM: config.algorithm, **made_from})
    log_dataset_input(run, dataset.metadata, dataset.run_id, "training")
    demonstrator = answering(run, task, config, dataset)
    if config.use_camera:
        task, dataset = Task(task.config, use_camera=True), through_camera(run, task, dataset)
    clones = []
    with forwarding(run) as forwarder:
        for seed in config.seeds:
            about = {Tag.STAGE: "pretrain_seed", Tag.TASK: task.config.name, Tag.SEED: seed}
            tags = {**about, Tag.ALGORITHM: config.algorithm, **made_from}
            with child_run(forwarder, run, f"clone-seed-{seed}", tags) as child:
                child.record_key(clone_key(task, config, dataset, seed))
                try:
                    clones.append(make_clone(task, config, dataset, seed, demonstrator, child.folder, child.metrics))
                except Diverged:
                    child.file(child.folder / Artifact.POLICY, Artifact.POLICY)
                    raise
                _log_clone(child, clones[-1], config.algorithm)
    _log_stage(run, clones)
    success = [point_figures(clone.final)[Metric.SUCCESS_RATE] for clone in clones]
    steps = sum(clone.result.environment_steps for clone in clones)
    otherwise = recorded_otherwise(dataset.metadata, task)
    how = "" if config.algorithm == "bc" else f" by {config.algorithm}, {steps:,} environment steps"
    return StageOutcome(
        (
            f"pretrain: {len(clones)} clones of {dataset.metadata.dataset_id}{how}: success on fresh episodes "
            f"{sum(success) / len(success):.3f} ({min(success):.3f} to {max(success):.3f} over seeds); "
            f"{_critics([clone.result.critic_explained_variance for clone in clones])}",
            *input_warnings(task),
            *(() if otherwise is None else (f"  warning: {otherwise}",)),
        ),
        outputs={"policy": run.run_id},
    )


def _critics(explained: Sequence[float]) -> str:
    """How much they explain, over the seeds of which it is known."""
    known = [share for share in explained if isfinite(share)]
    if not known:
        return "how well critics do is not known: none was trained, or held-out returns do not vary"
    return f"critics explain {sum(known) / len(known):.2f} of the variance of held-out returns"


def through_camera(run: StageRun, task: Task, dataset: StoredDataset) -> StoredDataset:
    """The dataset with what the task's camera sees instead of the recorded observations; labels stay as they are."""
    started = time.perf_counter()
    recorded, kwargs = dataset.trajectories, dataset.metadata.environment["kwargs"]
    seen = view_again(Task(task.config, kwargs, use_camera=True), recorded)
    frames = len(seen.observations)
    run.metrics({"camera/frames": frames, "camera/seconds": time.perf_counter() - started})
    run.tag({Tag.CAMERA_DIGEST: content_digest(seen)})
    return replace(dataset, trajectories=seen)


@dataclass(frozen=True)
class Clone:
    """The clone of one seed, its evidence and its evaluation on fresh episodes."""

    folder: Path
    digest: str
    certificate: TransferCertificate
    result: CloningResult
    final: EpisodeRecords

    @property
    def evaluation_steps(self) -> int:
        """Environment steps of all its evaluations."""
        played = [point.records for point in self.result.epochs if point.records is not None]
        return sum(records.steps for records in (*played, self.final))


def answering(run: StageRun, task: Task, config: Pretrain, dataset: StoredDataset) -> Demonstrator | None:
    """Who answers to the clone, for the algorithm that asks."""
    if config.algorithm != "dagger":
        return None
    demonstrator = demonstrator_of(run.client, dataset.metadata, task)
    if demonstrator is None:
        named = dataset.metadata.demonstrator
        raise BadInput(
            f"algorithm 'dagger' asks the demonstrator, but {named['name']!r} ({named['kind']}) of dataset "
            f"{dataset.metadata.dataset_id} cannot be asked: the data was imported, or the script changed since; "
            "record again, or use algorithm 'bc', 'gail' or 'airl'"
        )
    return demonstrator


def clone_key(task: Task, config: Pretrain, dataset: StoredDataset, seed: int) -> ContentKey:
    """The content key of one clone."""
    settings = {key: value for key, value in to_data(config).items() if key != "seeds"}
    return content_key({**settings, "seed": seed}, task.config, _inputs(config, dataset))


def _inputs(config: Pretrain, dataset: StoredDataset) -> dict[str, str]:
    """The data; who answers to the clone, for the algorithm that asks."""
    asked = {"demonstrator": str(dataset.metadata.demonstrator["digest"])} if config.algorithm == "dagger" else {}
    return {"dataset": dataset.metadata.content_digest, **asked}


def make_clone(
    task: Task,
    config: Pretrain,
    dataset: StoredDataset,
    seed: int,
    demonstrator: Demonstrator | None,
    folder: Path,
    log: Callable[[Mapping[str, float], int], None],
) -> Clone:
    """Clone actor and critic from one seed's fresh weights into a folder, certify the artifact and evaluate it.

    `log` takes the points of its curves: metrics and their epoch. Raises Diverged, the best policy seen in the folder.
    """
    policy = build_policy(task.observation_space, task.action_space, config.network, seed)
    place = folder / Artifact.POLICY
    data_digest = dataset.metadata.content_digest
    provenance = {"task": task.config.name, "seed": seed, "dataset_digest": data_digest, WRAPPERS: task.wrappers}
    with closing(evaluation_env(task)) as env:

        def play(clone_so_far: ActorCriticPolicy, episodes: Sequence[Episode]) -> EpisodeRecords:
            return run_episodes(task, act_function(clone_so_far), episodes, env=env)

        try:
            result = _clone(task, config, policy, dataset, seed, demonstrator, folder / "library", log, play)
        finally:  # also the best one seen before it diverged
            digest = save_policy(policy, place, provenance)
        held_out, gamma = len(result.held_out_episodes), config.cloning.gamma
        certificate = certify(policy, str(place), result.critic_explained_variance, held_out, gamma)
        episodes = final_episodes(task, config.scenario_set, config.evaluation, config.final_episodes)
        return Clone(place, digest, certificate, result, play(policy, episodes))


def _clone(
    task: Task,
    config: Pretrain,
    policy: ActorCriticPolicy,
    dataset: StoredDataset,
    seed: int,
    demonstrator: Demonstrator | None,
    library: Path,
    log: Callable[[Mapping[str, float], int], None],
    play: Callable[[ActorCriticPolicy, Sequence[Episode]], EpisodeRecords],
) -> CloningResult:
    episodes = evaluation_episodes(task, config.scenario_set, config.evaluation)

    def evaluate(clone_so_far: ActorCriticPolicy) -> EpisodeRecords:
        return play(clone_so_far, episodes)

    def on_point(point: EpochPoint) -> None:
        log(point.metrics, point.epoch)
        if point.records is not None:
            figures = with_intervals(summarise(point.records))
            log({f"{EVAL_PREFIX}{name}": value for name, value in figures.items()}, point.epoch)

    data = dataset.trajectories
    if config.algorithm == "bc":
        return clone(policy, data, config.cloning, seed, evaluate, on_point=on_point)
    from pipeline.learning.imitators import imitate  # late: the library takes three seconds

    return imitate(task, policy, data, config, seed, library, evaluate, demonstrator, on_point)


def _log_clone(run: StageRun, clone: Clone, algorithm: str) -> None:
    run.text(clone.certificate.to_json(), Artifact.CERTIFICATE)
    log_policy(run, clone.folder, "clone", clone.result.best_epoch, point_figures(clone.final), Artifact.POLICY)
    run.metrics({f"final/{name}": value for name, value in with_intervals(summarise(clone.final)).items()})
    run.metrics(
        {
            BEST[algorithm]: clone.result.best_epoch,
            "bc/samples_per_second": clone.result.samples_per_second,
            Metric.ENVIRONMENT_STEPS: clone.result.environment_steps,
            Metric.EVALUATION_STEPS: clone.evaluation_steps,
            Metric.WALL_SECONDS: clone.result.wall_seconds,
            "transfer/tensors": clone.certificate.tensor_count,
            "transfer/parameters": clone.certificate.parameter_count,
            "transfer/action_distance": clone.certificate.action_distance,
        }
    )
    run.tag({Tag.POLICY_DIGEST: clone.digest})


def _log_stage(run: StageRun, clones: Sequence[Clone]) -> None:
    """The stage's own policy is the first seed's clone: it was not chosen by how well it does."""
    first = clones[0]
    run.file(first.folder, Artifact.POLICY)
    run.text(first.certificate.to_json(), Artifact.CERTIFICATE)
    run.tag({Tag.POLICY_DIGEST: first.digest})
    figures = [point_figures(clone.final) for clone in clones]
    run.metrics({f"final/{name}": sum(f[name] for f in figures) / len(figures) for name in figures[0]})
    run.metrics(
        {
            Metric.WALL_SECONDS: sum(clone.result.wall_seconds for clone in clones),
            Metric.ENVIRONMENT_STEPS: sum(clone.result.environment_steps for clone in clones),
            Metric.EVALUATION_STEPS: sum(clone.evaluation_steps for clone in clones),
        }
    )
