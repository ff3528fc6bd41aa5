"""One clone of a dataset: a policy of one seed, learnt by whichever algorithm, certified and evaluated."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.stages import Pretrain
from pipeline.config.task import TaskConfig
from pipeline.data import Trajectories
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.learning.cloning import CloningResult, EpochPoint, check_demonstrations, clone, split_by_episode
from pipeline.learning.device import begin_on, chosen_device
from pipeline.learning.jobs import Emit, TrainingEvent
from pipeline.learning.processor import machine
from pipeline.learning.schedule import evaluation_episodes, final_episodes
from pipeline.learning.yardsticks import Imitated, imitated
from pipeline.names import EVAL_PREFIX, Artifact
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.evaluation import EpisodeRecords, run_episodes, summarise, with_intervals
from pipeline.play.rollouts import evaluation_env
from pipeline.policies import WRAPPERS, act_function, build_policy, measured_scaling, save_policy
from pipeline.policies.transfer import Transfer
from pipeline.tasks import Task


@dataclass(frozen=True)
class Clone:
    """The clone of one seed, its evidence and its evaluation on fresh episodes."""

    folder: Path
    digest: str
    certificate: Transfer
    result: CloningResult
    final: EpisodeRecords
    untrained: EpisodeRecords  # the first of the same episodes, by the policy before it learnt
    random_play: EpisodeRecords  # the same, its actions drawn: what PPO from scratch begins with
    imitated: Imitated
    machine: Mapping[str, str]  # what of the machine that made it can decide bits

    @property
    def evaluation_steps(self) -> int:
        """Environment steps of all its evaluations."""
        played = [point.records for point in self.result.epochs if point.records is not None]
        return sum(records.steps for records in (*played, self.final, self.untrained, self.random_play))


@dataclass(frozen=True)
class CloneJob:
    """The clone of one seed, to be made wherever there is room."""

    task: TaskConfig
    config: Pretrain
    data: Trajectories
    data_digest: str  # names the data in the artifact
    seed: int
    output: str  # folder, for its policy
    demonstrator: Demonstrator | None = None  # answers to the algorithm that asks; has to be where it is made
    checkpoints: str | None = None  # it takes none
    checkpoint_key: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"clone of seed {self.seed}"

    @property
    def device(self) -> str:
        """`cpu`, `cuda` or `cuda:1`, as of a training."""
        return chosen_device(self.task, {}, self.config.use_camera)

    def moved(self, place: Path) -> "CloneJob":
        """The same in another folder."""
        return replace(self, output=str(place / "output"))

    def perform(self, emit: Emit) -> Clone:
        """Clone actor and critic from the seed's fresh weights, certify the artifact and evaluate it.

        The points of its curves are events, their timestep is the epoch. Raises Diverged, the best policy seen in the
        folder.
        """
        task, config, data, seed = Task(self.task, use_camera=self.config.use_camera), self.config, self.data, self.seed
        policy, device = untrained_clone(task, config, data, seed), self.device
        place, library = Path(self.output) / Artifact.POLICY, Path(self.output) / "library"
        provenance = {"task": self.task.name, "seed": seed, "dataset_digest": self.data_digest, WRAPPERS: task.wrappers}
        scheduled = evaluation_episodes(task, config.scenario_set, config.evaluation)
        final = final_episodes(task, config.scenario_set, config.evaluation, config.final_episodes)
        with closing(evaluation_env(task)) as env:

            def play(clone_so_far: ActorCriticPolicy, episodes: Sequence[Episode] = scheduled) -> EpisodeRecords:
                return run_episodes(task, act_function(clone_so_far), episodes, env=env)

            def on_point(point: EpochPoint) -> None:
                emit(TrainingEvent("metrics", point.epoch, point.metrics))
                if point.records is not None:
                    figures = with_intervals(summarise(point.records))
                    metrics = {f"{EVAL_PREFIX}{name}": value for name, value in figures.items()}
                    emit(TrainingEvent("metrics", point.epoch, metrics))

            untrained = copy.deepcopy(policy)
            yardsticks = final[: config.judgement.episodes]
            played_untrained = play(untrained, yardsticks)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                drawn = run_episodes(task, act_function(untrained, deterministic=False), yardsticks, env=env)
            policy.to(begin_on(device))
            try:
                if config.algorithm == "bc":
                    result = clone(policy, data, config.cloning, seed, play, on_point=on_point)
                else:
                    from pipeline.learning.imitators import imitate  # late: the library takes three seconds

                    result = imitate(task, policy, data, config, seed, library, play, self.demonstrator, on_point)
            finally:  # also the best one seen before it diverged
                policy.to("cpu")
                digest = save_policy(policy, place, provenance)
            how = imitated(policy, untrained, data, result.train_episodes, result.held_out_episodes)
            held_out, gamma = len(result.held_out_episodes), config.cloning.gamma
            explained, size = result.critic_explained_variance, return_scale(data, gamma)
            certificate = Transfer.between(policy, str(place), explained, held_out, gamma, size)
            here = machine(torch.get_num_threads(), device)
            played = (play(policy, final), played_untrained, drawn)
            return Clone(place, digest, certificate, result, *played, how, here)


def untrained_clone(task: Task, config: Pretrain, data: Trajectories, seed: int) -> ActorCriticPolicy:
    """Fresh weights from the seed, in units that are given or measured on the episodes that are trained on.

    Raises BadInput for demonstrations, or figures, that do not fit the task's spaces, and for demonstrations that are
    all the same where nothing else is learnt from.
    """
    spaces, network = (task.observation_space, task.action_space), config.network
    check_demonstrations(*spaces, data)
    for what, array in (("observations", data.observations), ("actions", data.actions)):
        if config.algorithm == "bc" and all(row.tobytes() == array[0].tobytes() for row in array):
            raise BadInput(f"demonstrations: all {len(array)} {what} are the same: nothing is to be learnt")
    trained_on, _ = split_by_episode(data.returns(), config.cloning.validation_fraction, seed)
    scaling = measured_scaling(*spaces, network, config.scaling, data, trained_on)
    return build_policy(*spaces, network, seed, scaling)


def return_scale(data: Trajectories, gamma: float) -> float:
    """How large a discounted return is: the root of the mean square over all steps."""
    return float(np.sqrt(np.square(data.discounted_returns(gamma)).mean()))
