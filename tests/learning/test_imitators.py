"""GAIL, AIRL and DAgger: what they learn, from whom, what they cost, and what they refuse."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from imitation.data import serialize

from pipeline.config.loading import validate
from pipeline.config.stages import Pretrain
from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.learning.clones import CloneJob
from pipeline.learning.imitators import imitate
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.demonstrators import Script as ScriptedActor
from pipeline.play.evaluation import record_episodes, run_episodes
from pipeline.policies import act_function, build_policy, load_policy, scaling_of, tensor_digests, weights_digest
from pipeline.tasks import Purpose, Task

NETWORK = {"hidden": [16]}
PLAYED = {"gail": {"training": {"total_timesteps": 300, "n_envs": 4, "ppo": {"n_steps": 32, "batch_size": 64}}}}
PLAYED["gail"]["training"]["discriminator"] = {"hidden": [16], "batch_size": 32}
PLAYED["airl"] = PLAYED["gail"]
PLAYED["dagger"] = {
    "dagger": {"rounds": 2, "episodes_per_round": 4, "n_envs": 4},
    "cloning": {"epochs": 2, "batch_size": 32, "critic_epochs": 0},
}


def settings(algorithm: str, **changes) -> Pretrain:
    data = {"task": "none", "algorithm": algorithm, "network": NETWORK, "cloning": {"critic_epochs": 0}}
    return validate(Pretrain, {**data, **PLAYED[algorithm], **changes}, "test")


def balance(observations: np.ndarray) -> np.ndarray:
    """Keeps the pole up for the 100 steps of an episode."""
    return (observations[:, 2] + 0.5 * observations[:, 3] > 0).astype(np.int64)


def always(action: int):
    return lambda observations: np.full(len(observations), action, np.int64)


@pytest.fixture(scope="module")
def task(cartpole) -> Task:
    return Task(cartpole)


def run(task: Task, config: Pretrain, act, seed=1, folder=None, data=None, tmp_path=None):
    """(policy, result) after imitating six episodes of `act`."""
    data = recorded(task, act) if data is None else data
    episodes = task.episodes("train", 5, 4, Purpose.EVALUATE)
    policy = build_policy(task.observation_space, task.action_space, config.network, seed)

    def play(clone):
        return run_episodes(task, act_function(clone), episodes)

    return policy, imitate(task, policy, data, config, seed, tmp_path, play, Demonstrator(act, {}))


def recorded(task: Task, act, count: int = 6):
    return record_episodes(task, act, task.episodes("train", 1, count, Purpose.RECORD), 0.0, 0)


@pytest.mark.parametrize("algorithm", sorted(PLAYED))
def test_one_seed_decides_every_bit_and_every_curve(task, algorithm, tmp_path):
    told = []
    for seed in (1, 1, 2):
        policy, result = run(task, settings(algorithm), balance, seed, tmp_path=tmp_path)
        curves = [
            (point.epoch, {k: v for k, v in point.metrics.items() if not k.startswith("time/")})
            for point in result.epochs
        ]
        told.append((weights_digest(policy), str(curves)))
    assert told[0] == told[1]
    assert told[0][0] != told[2][0] and told[0][1] != told[2][1]


@pytest.mark.parametrize("algorithm", ["gail", "airl"])
def test_whole_rollouts_are_played_and_counted_and_the_first_point_is_the_untrained_policy(task, algorithm, tmp_path):
    config = settings(algorithm, evaluation={"segments": [{"every_steps": 200}]})
    _, result = run(task, config, balance, tmp_path=tmp_path)
    assert result.environment_steps == 256  # two rollouts of 4 x 32; a third would pass 300
    assert [point.epoch for point in result.epochs if point.records] == [0, 256]
    untrained = build_policy(task.observation_space, task.action_space, config.network, 1)
    episodes = task.episodes("train", 5, 4, Purpose.EVALUATE)
    expected = run_episodes(task, act_function(untrained), episodes).metrics["return"]
    assert result.epochs[0].records.metrics["return"].tolist() == expected.tolist()
    curves = [point.metrics for point in result.epochs if point.metrics]
    assert len(curves) == 2
    assert {f"{algorithm}/disc_loss", f"{algorithm}/disc_acc", "train/approx_kl", "rollout/ep_rew_mean"} <= set(
        curves[1]
    )


@pytest.mark.parametrize("action", [0, 1])
def test_gail_learns_from_the_discriminator_alone_what_was_demonstrated(task, action, tmp_path):
    """CartPole pays both actions alike for as long as they last: only the demonstrations tell them apart."""
    training = {
        "total_timesteps": 2048,
        "n_envs": 4,
        "learning_rate": 0.01,
        "ppo": {"n_steps": 64, "batch_size": 64, "n_epochs": 4, "gamma": 0.5},
        "discriminator": {"hidden": [16], "batch_size": 32, "updates_per_rollout": 20, "learning_rate": 0.01},
    }
    config = settings("gail", training=training, evaluation={"segments": [{"every_steps": 4096}]})
    data, answers = recorded(task, always(action)), []

    def play(clone):
        answers.append(act_function(clone)(data.observations))
        return run_episodes(task, act_function(clone), task.episodes("train", 5, 1, Purpose.EVALUATE))

    policy = build_policy(task.observation_space, task.action_space, config.network, 1)
    imitate(task, policy, data, config, 1, tmp_path, play)
    assert (answers[0] == action).mean() < 0.9
    assert (answers[-1] == action).mean() > 0.95


def test_dagger_labels_with_the_demonstrator_what_the_clone_drives_into(task, tmp_path):
    """Beta 0: where the first round leads follows from the dataset and the clone, whatever the demonstrator answers."""
    data, seen = recorded(task, balance), {}
    for share, rampdown in (("none", 1), ("half", 2)):
        for name, act in (("balance", balance), ("left", always(0))):
            asked = seen.setdefault((share, name), [])
            config = settings("dagger", dagger={**PLAYED["dagger"]["dagger"], "rampdown_rounds": rampdown, "rounds": 1})

            def answer(observations, act=act, asked=asked):
                asked.append(observations.copy())
                return act(observations)

            _, result = run(task, config, answer, data=data, tmp_path=tmp_path)
            shown = result.epochs[-1].metrics
            assert shown["dagger/environment_steps"] == result.environment_steps == 4 * len(asked)
            assert shown["dagger/demonstrator_share"] == {"none": 0, "half": 0.5}[share]
            assert result.epochs[1].metrics["dagger/samples"] < shown["dagger/samples"] <= data.steps + 4 * len(asked)
    assert np.array_equal(seen["none", "balance"], seen["none", "left"])
    assert not np.array_equal(seen["half", "balance"][:5], seen["half", "left"][:5])


def test_dagger_learns_the_answers_and_not_only_the_dataset(task, tmp_path):
    """The dataset says left everywhere; the demonstrator, asked, says right, twenty to one."""
    data = recorded(task, always(0), 4)
    config = settings(
        "dagger",
        dagger={"rounds": 1, "episodes_per_round": 40, "n_envs": 10},
        cloning={"epochs": 12, "batch_size": 16, "learning_rate": 0.02, "critic_epochs": 0},
    )
    answers = []

    def play(clone):
        answers.append(act_function(clone)(data.observations).mean())
        return run_episodes(task, act_function(clone), task.episodes("train", 5, 1, Purpose.EVALUATE))

    policy = build_policy(task.observation_space, task.action_space, config.network, 1)
    imitate(task, policy, data, config, 1, tmp_path, play, Demonstrator(always(1), {}))
    assert answers[1] < 0.05  # after the dataset alone
    assert answers[-1] > 0.95


class Script:
    """A script with a memory: whether the next observation is an episode's first."""

    firsts: list = []  # noqa: RUF012

    def reset(self):
        self.fresh = True

    def act(self, observation):
        if self.fresh:
            self.firsts.append(np.abs(observation).max())
        self.fresh = False
        return balance(observation[None])[0]


def test_a_script_that_dagger_asks_begins_anew_with_every_episode(task, tmp_path):
    Script.firsts.clear()
    data = recorded(task, balance)
    play = task.episodes("train", 5, 1, Purpose.EVALUATE)
    policy = build_policy(task.observation_space, task.action_space, Network(hidden=(16,)), 1)
    asked = Demonstrator(ScriptedActor("Script", Script), {})
    imitate(task, policy, data, settings("dagger"), 1, tmp_path, lambda p: run_episodes(task, balance, play), asked)
    assert len(Script.firsts) >= 2 * 4  # rounds, episodes
    assert max(Script.firsts) <= 0.05  # where CartPole begins


@pytest.mark.parametrize("algorithm", sorted(PLAYED))
def test_nothing_is_written_or_read(task, algorithm, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the library's files were used")

    monkeypatch.setattr(serialize, "save", never)
    monkeypatch.setattr(serialize, "load", never)
    run(task, settings(algorithm), balance, tmp_path=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("algorithm", ["gail", "dagger"])
def test_the_critic_is_fresh_or_of_the_datasets_returns_never_the_discriminators(task, algorithm, tmp_path):
    policy, result = run(task, settings(algorithm), balance, tmp_path=tmp_path)
    fresh = tensor_digests(build_policy(task.observation_space, task.action_space, Network(hidden=(16,)), 1))
    critic = {name for name in fresh if "value_net" in name}
    assert {name: digest for name, digest in tensor_digests(policy).items() if name in critic} == {
        name: fresh[name] for name in critic
    }
    assert np.isnan(result.critic_explained_variance)
    cloning = {**PLAYED[algorithm].get("cloning", {}), "critic_epochs": 3}
    policy, result = run(task, settings(algorithm, cloning=cloning), balance, tmp_path=tmp_path)
    assert np.isfinite(result.critic_explained_variance) and len(result.critic_epochs) == 3
    assert tensor_digests(policy)["value_net.weight"] != fresh["value_net.weight"]


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("gail", {"training": {**PLAYED["gail"]["training"], "total_timesteps": 100}}, "total_timesteps = 100"),
        ("airl", {"training": {"total_timesteps": 300, "ppo": {"n_step": 32}}}, "Did you mean 'n_steps'"),
        ("gail", {"training": {"total_timesteps": 300, "discriminator": {"batch_size": 9999}}}, "batch_size = 9999"),
        ("dagger", {"cloning": {"batch_size": 9999}}, "cloning.batch_size = 9999"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(task, algorithm, changes, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        run(task, settings(algorithm, **changes), balance, tmp_path=tmp_path)


def test_dagger_without_a_demonstrator_and_pictures_are_refused(task, tmp_path):
    data = recorded(task, balance)
    policy = build_policy(task.observation_space, task.action_space, Network(hidden=(16,)), 1)
    with pytest.raises(BadInput, match="needs a demonstrator"):
        imitate(task, policy, data, settings("dagger"), 1, tmp_path, lambda policy: None)
    space = spaces.Box(0, 1, (2, 2), np.float32)
    flat = build_policy(space, task.action_space, Network(hidden=(16,)), 1)
    square = dataclasses.replace(data, observations=data.observations.reshape(-1, 2, 2))
    with pytest.raises(BadInput, match="takes flat observations"):
        imitate(task, flat, square, settings("gail"), 1, tmp_path, lambda policy: None)
    switches = build_policy(task.observation_space, spaces.MultiDiscrete([2]), Network(hidden=(16,)), 1)
    column = dataclasses.replace(data, actions=data.actions[:, None], executed_actions=data.actions[:, None])
    with pytest.raises(BadInput, match=r"Box or Discrete actions.*MultiDiscrete"):
        imitate(task, switches, column, settings("airl"), 1, tmp_path, lambda policy: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "sqil"}, "'bc', 'gail', 'airl' or 'dagger'"),
        ({"algorithm": "gail"}, "needs the section 'training'"),
        ({"algorithm": "dagger"}, "needs the section 'dagger'"),
        ({"training": {"total_timesteps": 9}}, "'training' is not for algorithm 'bc'"),
        ({"dagger": {"rounds": 2}}, "'dagger' is not for algorithm 'bc'"),
        ({"algorithm": "gail", **PLAYED["gail"], "cloning": {"epochs": 7}}, "cloning.epochs = 7 is not for"),
        ({"algorithm": "airl", **PLAYED["gail"], "cloning": {"loss": "mse"}}, "cloning.loss = mse is not for"),
        ({"algorithm": "dagger", **PLAYED["dagger"], "cloning": {"loss": "mse"}}, "cloning.loss = mse is not for"),
        ({"evaluation": {"segments": [{"every_steps": 9}]}}, "evaluation.segments is not for algorithm 'bc'"),
    ],
)
def test_settings_that_do_not_apply_are_refused_by_name(changes, message):
    with pytest.raises(BadInput, match=message):
        validate(Pretrain, {"task": "none", **changes}, "test")


@pytest.mark.parametrize("algorithm", sorted(PLAYED))
def test_all_of_them_learn_in_the_units_that_were_demonstrated(algorithm, make_task, tmp_path):
    """A pendulum whose torque goes to 256; the network learns numbers up to 1."""
    wide = Task(make_task("learning_environments:Wide", horizon=30))

    def act(observations: np.ndarray) -> np.ndarray:
        return np.clip(-100 * observations[:, 1:2] - 30 * observations[:, 2:], -256, 256).astype(np.float32)

    config, data = settings(algorithm), recorded(wide, act)
    job = CloneJob(wide.config, config, data, "digest", 1, str(tmp_path), Demonstrator(act, {}))
    made = job.perform(lambda event: None)
    scaling = scaling_of(load_policy(made.folder))
    assert scaling.actions.scale.tolist() == [256]
    assert scaling.observations is not None
    probe = data.observations[:20]
    actions = act_function(load_policy(made.folder))(probe)
    assert np.abs(actions).max() > 1
    if algorithm == "dagger":
        assert np.abs(actions - act(probe)).mean() < np.abs(act(probe)).mean()
