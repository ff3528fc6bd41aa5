"""Evaluation counts whole episodes, all of them and no others, whatever the batch; recording keeps labels clean."""

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from pipeline.config.loading import load_task, to_data, validate
from pipeline.config.stages import Collect
from pipeline.config.task import TaskConfig
from pipeline.config.training import Network
from pipeline.data import content_digest
from pipeline.data.formats import npz
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.play.evaluation import (
    EpisodeRecords,
    point_figures,
    record,
    record_episodes,
    run_episodes,
    summarise,
    summarise_by_scenario,
    with_intervals,
)
from pipeline.play.rollouts import evaluation_env
from pipeline.policies import act_function, build_policy
from pipeline.statistics.snqi import load_baseline, load_weights, snqi
from pipeline.tasks import Purpose, Task
from pipeline.validation.replay import TaskReplay, replay_episodes


def make_task(env_id: str, **changes) -> Task:
    data = {
        "name": "known",
        "environment": {"id": env_id},
        "success": {"return_at_least": 30.0},
        "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"default": {}, "other": {}},
        "scenario_sets": {"train": {"default": 1.0, "other": 1.0}},
        **changes,
    }
    return Task(validate(TaskConfig, data, "test"))


@pytest.fixture(scope="module")
def cartpole():
    return make_task("CartPole-v1")


@pytest.fixture(scope="module")
def pendulum():
    return make_task("Pendulum-v1", horizon=40)


@pytest.fixture(scope="module")
def balance(cartpole):
    def lean(observations):  # towards where the pole falls, good for a while
        return (observations[:, 2] > 0).astype(np.int64)

    return lean


@pytest.fixture(scope="module")
def swing(pendulum):
    return act_function(build_policy(pendulum.observation_space, pendulum.action_space, Network(hidden=(8,)), seed=4))


def play_alone(env_id: str, act, episode: Episode) -> tuple[float, int]:
    """Return and length by a plain Gymnasium loop."""
    env = gym.make(env_id)
    observation, _ = env.reset(seed=episode.seed)
    total, length, over = 0.0, 0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(act(observation[None])[0])
        total, length, over = total + float(reward), length + 1, terminated or truncated
    return total, length


def test_every_episode_is_what_a_plain_loop_makes_of_it(cartpole, balance):
    episodes = cartpole.episodes("train", 1, 30, Purpose.EVALUATE)
    records = run_episodes(cartpole, balance, episodes, n_envs=7)
    alone = [play_alone("CartPole-v1", balance, episode) for episode in episodes]
    assert records.episodes == episodes
    assert records.metrics["return"].tolist() == [total for total, _ in alone]
    assert records.metrics["length"].tolist() == [length for _, length in alone]
    assert records.metrics["success"].tolist() == [float(total >= 30) for total, _ in alone]
    assert records.steps == sum(length for _, length in alone)
    assert len(set(records.metrics["length"])) > 5  # short and long ones, none favoured


def test_results_do_not_depend_on_the_batch(pendulum, swing):
    episodes = pendulum.episodes("train", 2, 12, Purpose.EVALUATE)
    ways = [run_episodes(pendulum, swing, episodes, n_envs=n).metrics["return"] for n in (1, 5, 12)]
    assert np.array_equal(ways[0], ways[1]) and np.array_equal(ways[0], ways[2])


def test_an_environment_can_be_reused_and_need_not_be_full(cartpole, balance):
    env = evaluation_env(cartpole, 20)
    for count in (20, 3, 33):
        episodes = cartpole.episodes("train", count, count, Purpose.EVALUATE)
        reused = run_episodes(cartpole, balance, episodes, env=env)
        assert np.array_equal(reused.metrics["return"], run_episodes(cartpole, balance, episodes).metrics["return"])


def test_the_histogram_counts_every_step_once(cartpole, balance, pendulum, swing):
    records = run_episodes(cartpole, balance, cartpole.episodes("train", 1, 9, Purpose.EVALUATE), n_envs=4)
    assert records.action_histogram.edges is None and records.action_histogram.counts.shape == (1, 2)
    assert records.action_histogram.counts.sum() == records.steps
    records = run_episodes(
        pendulum, lambda o: np.full((len(o), 1), 1.99, np.float32), pendulum.episodes("train", 1, 3, Purpose.EVALUATE)
    )
    assert records.action_histogram.edges[0, 0] == -2 and records.action_histogram.edges[0, -1] == 2
    assert records.action_histogram.counts[0, -1] == records.steps == 3 * 40
    assert records.action_histogram.counts.sum() == records.steps


def test_no_episodes_and_repeated_episodes_are_refused(cartpole, balance):
    with pytest.raises(BadInput, match="no episodes"):
        run_episodes(cartpole, balance, ())
    with pytest.raises(ValueError, match="distinct"):
        run_episodes(cartpole, balance, (Episode("default", 1), Episode("default", 1)))


def test_a_figure_that_the_environment_does_not_report_is_refused_by_name(balance):
    task = make_task("CartPole-v1", metrics={"comfort": {"info": "comfort"}})
    with pytest.raises(BadInput, match="comfort"):
        run_episodes(task, balance, task.episodes("train", 1, 2, Purpose.EVALUATE))


class Spoilt(Task):
    def outcome(self, info):
        return {**super().outcome(info), "comfort": float("nan")}


def test_a_figure_that_is_not_finite_is_refused_by_name(cartpole, balance):
    with pytest.raises(BadInput, match="comfort = nan"):
        run_episodes(Spoilt(cartpole.config), balance, cartpole.episodes("train", 1, 2, Purpose.EVALUATE))


def test_the_quality_index_is_reported_when_the_task_names_its_files():
    task = Task(
        validate(
            TaskConfig,
            {
                **to_data(load_task("configs/tasks/social_nav.yaml")),
                "snqi": {
                    "weights": "configs/social_nav/snqi_weights.json",
                    "baseline": "configs/social_nav/snqi_baseline.json",
                },
            },
            "test",
        )
    )
    episodes = task.episodes("train_small", 1, 8, Purpose.EVALUATE)

    def straight(observations):
        return np.tile(np.array([1.0, 0.0], np.float32), (len(observations), 1))

    metrics = run_episodes(task, straight, episodes).metrics
    weights, baseline = load_weights(Path(task.config.snqi.weights)), load_baseline(Path(task.config.snqi.baseline))
    one = {name: values[:1] for name, values in metrics.items()}
    assert metrics["snqi"][0] == snqi(one, weights, baseline)[0]
    recorded = record_episodes(task, straight, episodes, noise_std=0.0, noise_seed=1)
    assert np.array_equal(recorded.metrics["snqi"], metrics["snqi"])
    assert "snqi" not in run_episodes(Task(replace(task.config, snqi=None)), straight, episodes).metrics


def test_an_episode_of_a_batched_environment_that_does_not_end_is_one_too(monkeypatch):
    monkeypatch.setattr("pipeline.play.rollouts.LONGEST_BATCHED", 20)
    task = Task(load_task("configs/tasks/social_nav.yaml"))
    (episode,) = task.episodes("train_small", 0, 1, Purpose.EVALUATE)
    with pytest.raises(BadInput, match=rf"'{episode.scenario}', seed {episode.seed}, has not ended after 20 steps"):
        run_episodes(task, lambda observations: np.zeros((len(observations), 2), np.float32), (episode,))


# --- recording


def test_a_recording_does_not_depend_on_the_batch_and_replays_from_seeds_and_actions(pendulum, swing):
    episodes = pendulum.episodes("train", 5, 9, Purpose.RECORD)
    recorded = record_episodes(pendulum, swing, episodes, noise_std=0.3, noise_seed=1, n_envs=4)
    for n_envs in (1, 9):
        other = record_episodes(pendulum, swing, episodes, noise_std=0.3, noise_seed=1, n_envs=n_envs)
        assert content_digest(other) == content_digest(recorded)
    for index, episode in enumerate(episodes):
        env, data = gym.make("Pendulum-v1"), recorded.episode(index)
        assert (data.scenario, data.seed) == (episode.scenario, episode.seed)
        observation, _ = env.reset(seed=episode.seed)
        assert np.array_equal(observation, data.observations[0])
        for step, action in enumerate(data.executed_actions):
            observation, reward, *_ = env.step(action)
            assert np.array_equal(observation, data.observations[step + 1])
            assert np.float32(reward) == data.rewards[step]
        assert data.truncations[-1] and not data.terminations.any()


def test_an_episode_that_fails_in_its_very_last_step_was_terminated_in_the_recording_and_in_its_replay(balance):
    free = make_task("CartPole-v1")
    (episode,) = free.episodes("train", 5, 1, Purpose.RECORD)
    length = len(record_episodes(free, balance, [episode], noise_std=0.0, noise_seed=1).episode(0))
    task = make_task("CartPole-v1", horizon=length)
    recorded = record_episodes(task, balance, [episode], noise_std=0.0, noise_seed=1)
    assert (bool(recorded.terminations[-1]), bool(recorded.truncations[-1])) == (True, False)
    (replayed,) = replay_episodes(recorded, TaskReplay(task), [0])
    assert replayed.identical, str(replayed)


def test_labels_are_the_clean_actions_and_execution_is_noisy_inside_the_bounds(pendulum, swing):
    episodes = pendulum.episodes("train", 5, 20, Purpose.RECORD)
    recorded = record_episodes(pendulum, swing, episodes, noise_std=0.25, noise_seed=1, n_envs=8)
    assert np.array_equal(recorded.actions, swing(recorded.observations[recorded.step_rows]))
    noise = recorded.executed_actions - recorded.actions
    assert np.abs(recorded.executed_actions).max() <= 2.0
    assert noise.std() == pytest.approx(0.25 * 2.0, rel=0.1)  # half the range of [-2, 2] is 2
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.1


def test_another_noise_seed_gives_other_noise_and_none_gives_none(pendulum, swing):
    episodes = pendulum.episodes("train", 5, 3, Purpose.RECORD)
    one, two, none = (
        record_episodes(pendulum, swing, episodes, s, seed, 3) for s, seed in ((0.3, 1), (0.3, 2), (0.0, 1))
    )
    assert content_digest(one) != content_digest(two)
    assert np.array_equal(none.executed_actions, none.actions)


def test_discrete_noise_is_the_chance_of_a_random_action(cartpole, balance):
    episodes = cartpole.episodes("train", 5, 60, Purpose.RECORD)
    recorded = record_episodes(cartpole, balance, episodes, noise_std=0.4, noise_seed=1, n_envs=20)
    changed = (recorded.executed_actions != recorded.actions).mean()
    assert changed == pytest.approx(0.2, abs=0.04)  # half of the random ones are the other action
    assert recorded.terminations[recorded.step_offsets[1:] - 1].all() and not recorded.truncations.any()
    assert np.array_equal(recorded.metrics["length"], recorded.lengths)


def test_a_recording_ends_with_the_first_episode_that_its_file_has_no_room_for(pendulum, swing, monkeypatch):
    config = Collect(task="swing.yaml", seeds=(5,), episodes=6, n_envs=1)
    whole, _ = record(pendulum, config, swing)
    size = sum(array.nbytes for array in whole.to_arrays().values())
    monkeypatch.setattr(npz, "MAX_ARCHIVE_BYTES", size // 2)
    played: list[int] = []
    with pytest.raises(BadInput, match="the file of a dataset may have"):
        record(pendulum, config, swing, ended=played.append)
    assert sum(played) == 4


def test_a_chance_above_one_is_refused(cartpole, balance):
    with pytest.raises(BadInput, match=r"noise.std = 1.5"):
        record_episodes(cartpole, balance, cartpole.episodes("train", 5, 2, Purpose.RECORD), 1.5, 1, 2)


# --- figures


def hand_records() -> EpisodeRecords:
    return EpisodeRecords(
        episodes=tuple(Episode("a" if i < 2 else "b", i) for i in range(4)),
        metrics={
            "return": np.array([1.0, 2.0, 3.0, 10.0]),
            "length": np.array([5.0, 5.0, 5.0, 5.0]),
            "success": np.array([1.0, 0.0, 1.0, 1.0]),
            "collision": np.array([0.0, 1.0, 0.0, 0.0]),
            "jerk_mean": np.array([0.5, 0.5, 1.5, 1.5]),
        },
        action_histogram=None,
        steps=20,
    )


def test_figures_have_their_agreed_names_and_worked_values():
    summary = summarise(hand_records())
    expected = {
        "success_rate": 0.75, "collision_rate": 0.25, "return_mean": 4.0, "return_median": 2.5, "return_min": 1.0,
        "return_max": 10.0, "return_std": np.sqrt(12.5), "length_mean": 5.0, "jerk_mean": 1.0,
    }  # fmt: skip
    for name, value in expected.items():
        assert summary[name].value == pytest.approx(value), name
        assert summary[name].low <= value <= summary[name].high
    assert point_figures(hand_records()) == {n: summary[n].value for n in point_figures(hand_records())}
    assert summarise(hand_records()) == summary  # same seed twice


def test_metrics_carry_their_intervals_beside_them():
    flat = with_intervals(summarise(hand_records()))
    assert flat["success_rate_ci_low"] < flat["success_rate"] < flat["success_rate_ci_high"]
    assert "return_std_ci_low" not in flat


def test_the_breakdown_by_scenario_holds_each_scenarios_own_episodes():
    by_scenario = summarise_by_scenario(hand_records())
    assert by_scenario["a"]["success_rate"].value == 0.5 and by_scenario["b"]["success_rate"].value == 1.0
    assert by_scenario["b"]["return_mean"].value == 6.5
