"""`pretrain`: clone a validated dataset into a PPO policy, actor and critic, and certify the artifact."""

from collections.abc import Mapping
from pathlib import Path

from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.loading import load_task
from pipeline.config.stages import Pretrain
from pipeline.evaluation import EpisodeRecords, point_figures, run_episodes, summarise, with_intervals
from pipeline.learning.certificates import certify
from pipeline.learning.cloning import CloningResult, CriticPoint, EpochPoint, clone
from pipeline.learning.ppo import evaluation_episodes, final_episodes
from pipeline.names import EVAL_PREFIX, Artifact, Metric, Tag
from pipeline.policies import act_function, build_policy, save_policy
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import StoredDataset, fetch_for_training, log_dataset_input
from pipeline.tracking.models import log_policy
from pipeline.tracking.runs import StageRun

UPSTREAM = ("dataset",)


def run(run: StageRun, config: Pretrain, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task))
    dataset = fetch_for_training(run.client, upstream.get("dataset", "latest"), task.config.name)
    task.refuse_holdouts(config.scenario_set, "evaluating a training")
    run.record_config(config, task.config, {"dataset": dataset.metadata.content_digest})
    run.tag({**lineage.from_dataset(dataset.run), Tag.SEED: config.seed})
    log_dataset_input(run, dataset.metadata, dataset.run_id, "training")
    policy = build_policy(task.observation_space, task.action_space, config.network, config.seed)
    result = _clone(run, task, config, policy, dataset)
    folder = run.folder / Artifact.POLICY
    provenance = {"task": task.config.name, "seed": config.seed, "dataset_digest": dataset.metadata.content_digest}
    digest = save_policy(policy, folder, provenance)
    final = _evaluate(task, config, policy)
    _log(run, config, folder, result, final, policy)
    run.tag({Tag.POLICY_DIGEST: digest})
    success = summarise(final)[Metric.SUCCESS_RATE]
    explained = result.critic_explained_variance
    return StageOutcome(
        (
            f"pretrain: clone of {dataset.metadata.dataset_id} (best epoch {result.best_epoch}): success "
            f"{success.value:.3f} [{success.low:.3f}, {success.high:.3f}] on fresh episodes; "
            f"critic explains {explained:.2f} of the variance of held-out returns",
        ),
        outputs={"policy": run.run_id},
    )


def _clone(
    run: StageRun, task: Task, config: Pretrain, policy: ActorCriticPolicy, dataset: StoredDataset
) -> CloningResult:
    episodes = evaluation_episodes(task, config.scenario_set, config.evaluation)
    points: list[tuple[str, float, int]] = []

    def play(clone_so_far: ActorCriticPolicy) -> EpisodeRecords:
        return run_episodes(task, act_function(clone_so_far), episodes)

    def on_point(point: EpochPoint | CriticPoint) -> None:
        points.extend((name, value, point.epoch) for name, value in point.metrics.items())
        if isinstance(point, EpochPoint) and point.records is not None:
            figures = with_intervals(summarise(point.records))
            points.extend((f"{EVAL_PREFIX}{name}", value, point.epoch) for name, value in figures.items())

    result = clone(policy, dataset.trajectories, config.cloning, config.seed, play, on_point=on_point)
    run.metric_series(points)
    return result


def _evaluate(task: Task, config: Pretrain, policy: ActorCriticPolicy) -> EpisodeRecords:
    episodes = final_episodes(task, config.scenario_set, config.evaluation, 2 * config.evaluation.episodes)
    return run_episodes(task, act_function(policy), episodes)


def _log(
    run: StageRun,
    config: Pretrain,
    folder: Path,
    result: CloningResult,
    final: EpisodeRecords,
    policy: ActorCriticPolicy,
) -> None:
    held_out, gamma = len(result.held_out_episodes), config.cloning.gamma
    certificate = certify(policy, str(folder), result.critic_explained_variance, held_out, gamma)
    run.text(certificate.to_json(), Artifact.CERTIFICATE)
    log_policy(run, folder, "clone", result.best_epoch, point_figures(final), Artifact.POLICY)
    run.metrics({f"final/{name}": value for name, value in with_intervals(summarise(final)).items()})
    run.metrics(
        {
            "bc/best_epoch": result.best_epoch,
            "bc/samples_per_second": result.samples_per_second,
            Metric.WALL_SECONDS: result.wall_seconds,
            "transfer/tensors": certificate.tensor_count,
            "transfer/parameters": certificate.parameter_count,
            "transfer/action_distance": certificate.action_distance,
        }
    )
