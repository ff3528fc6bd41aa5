"""Are other scenarios like the demonstrations: the demonstrator itself plays them, noise, filter and all."""

from pipeline.data import DatasetMetadata, Trajectories
from pipeline.data.observations import flat_rows
from pipeline.play.demonstrators import Actor
from pipeline.play.evaluation import Counted, record_episodes
from pipeline.statistics.shift import Shift, measure_shift
from pipeline.tasks import Purpose, Task

EPISODES = 100  # that the demonstrator plays
SEED = 999


def scenario_shift(
    task: Task,
    trajectories: Trajectories,
    metadata: DatasetMetadata,
    actor: Actor,
    scenario_set: str,
    ended: Counted = lambda count: None,
) -> Shift | None:
    """Only the scenarios and the environment can differ, not the policy; `task` is seen as it was recorded.

    None when fewer than two episodes there pass the filter of the recording: there is nothing to divide anew.
    """
    episodes = task.episodes(scenario_set, SEED, min(EPISODES, len(trajectories)), Purpose.EVALUATE)
    rollouts = record_episodes(task, actor, episodes, metadata.noise_std, SEED, ended=ended)
    rollouts = rollouts.select(rollouts.passing(**metadata.filter))
    if min(len(rollouts), len(trajectories)) < 2:
        return None
    reference = [flat_rows(trajectories.episode(i).observations) for i in range(len(trajectories))]
    played = [flat_rows(rollouts.episode(i).observations) for i in range(len(rollouts))]
    scenarios = ([str(name) for name in trajectories.scenarios], [str(name) for name in rollouts.scenarios])
    return measure_shift(reference, played, task.feature_names, scenarios=scenarios)
