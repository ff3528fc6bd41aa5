"""A learning rate that is far too large ends in one line, and what was good before stays. At 1e37 none survives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.config.loading import validate
from pipeline.config.stages import Pretrain
from pipeline.config.training import Cloning, Network, WarmStart
from pipeline.errors import BadInput
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.cloning import clone
from pipeline.learning.divergence import Diverged, not_finite
from pipeline.learning.imitators import imitate
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.evaluation import record_episodes, run_episodes
from pipeline.policies import act_function, build_policy, load_policy, save_policy, weights_digest
from pipeline.tasks import Purpose, Task

FAR_TOO_LARGE = 1e37


def ignore(*_):
    pass


@pytest.mark.parametrize("warm_start", [None, {}, {"critic_burn_in_steps": 0, "clone_penalty": 1.0}])
def test_a_training_that_diverges_says_so_in_one_line_and_its_best_policy_stays(
    pendulum, make_training, tmp_path, warm_start
):
    task, training = Task(pendulum), make_training(learning_rate={"initial": FAR_TOO_LARGE})
    start = build_policy(task.observation_space, task.action_space, training.network, 3)
    job = TrainingJob(pendulum, training, 3, str(tmp_path / "out"))
    if warm_start is not None:
        save_policy(start, tmp_path / "clone", {"wrappers": task.wrappers})
        job = replace(job, initial_policy=str(tmp_path / "clone"), warm_start=validate(WarmStart, warm_start, "test"))
    with pytest.raises(Diverged) as error:
        run_side_by_side([job], 1, ignore)  # in a process of its own, as stages train
    line = str(error.value)
    assert line.startswith("training of seed 3 diverged at step ") and "is not finite; lower training.learning" in line
    assert "(now 1e+37)" in line and line.endswith("its best policy, of step 0, is kept") and len(line) < 400
    kept = load_policy(tmp_path / "out" / "best")
    if warm_start is None:
        assert weights_digest(kept) == weights_digest(start)


@pytest.mark.parametrize("divided", [False, True])
def test_a_burn_in_that_diverges_names_its_own_learning_rate(pendulum, make_training, tmp_path, divided):
    task, training = Task(pendulum), make_training(normalize_reward=divided)
    save_policy(build_policy(task.observation_space, task.action_space, training.network, 3), tmp_path / "clone", {})
    warm_start = WarmStart(critic_burn_in_steps=512, critic_burn_in_learning_rate=FAR_TOO_LARGE)
    job = TrainingJob(pendulum, training, 3, str(tmp_path), initial_policy=f"{tmp_path}/clone", warm_start=warm_start)
    with pytest.raises(Diverged, match=r"lower warm_start\.critic_burn_in_learning_rate") as error:
        train(job, ignore)
    assert ("or divide large rewards by their spread (training.normalize_reward)" in str(error.value)) != divided


@pytest.mark.parametrize("what", ["a reward", "an observation"])
def test_an_environment_that_shows_what_is_no_number_is_not_taken_for_divergence(
    make_task, make_training, tmp_path, what
):
    environment = {"id": "learning_environments:Failing", "kwargs": {"broken": what}}
    task = make_task("", environment=environment, horizon=20)
    with pytest.raises(BadInput, match=f"until step \\d+ {what} was not finite; look at the environment") as error:
        train(TrainingJob(task, make_training(), 1, str(tmp_path)), ignore)
    assert not isinstance(error.value, Diverged)


@pytest.fixture(scope="module")
def recorded(pendulum):
    """Episodes of a demonstrator that pushes against the turning."""
    task = Task(pendulum)
    return task, record_episodes(task, against, task.episodes("train", 1, 6, Purpose.RECORD), 0.0, 0)


def against(observations: np.ndarray) -> np.ndarray:
    return np.clip(-observations[:, 2:], -2, 2).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        ("learning_rate", "cloning of seed 1 diverged in epoch 1: .* is not finite; lower cloning.learning_rate"),
        (
            "critic_learning_rate",
            "the critic of seed 1 diverged in epoch [12]: its loss is not finite; lower cloning",
        ),
    ],
)
def test_cloning_that_diverges_leaves_the_best_policy_seen(recorded, rate, line):
    task, data = recorded
    policy = build_policy(task.observation_space, task.action_space, Network(hidden=(16,)), 1)
    before = weights_digest(policy)
    settings = validate(Cloning, {"epochs": 2, "critic_epochs": 2, "select": "validation_loss", rate: 1e37}, "test")
    with pytest.raises(Diverged, match=f"^{line}"):
        clone(policy, data, settings, seed=1)
    assert not_finite(policy) is None
    assert (weights_digest(policy) == before) == (rate == "learning_rate")  # the critic's comes after the actor's


@pytest.mark.parametrize(
    ("algorithm", "section", "setting"),
    [
        ("gail", {"learning_rate": 1e37, "discriminator": {"batch_size": 32}}, "training.learning_rate"),
        ("gail", {"discriminator": {"learning_rate": 1e37, "batch_size": 32}}, "training.discriminator.learning_rate"),
        ("airl", {"discriminator": {"learning_rate": 1e37, "batch_size": 32}}, "training.discriminator.learning_rate"),
        ("dagger", {}, "cloning.learning_rate"),
    ],
)
def test_imitation_that_diverges_names_the_rate_and_leaves_the_best_policy_seen(
    recorded, tmp_path, algorithm, section, setting
):
    task, data = recorded
    played = {"total_timesteps": 512, "n_envs": 4, "ppo": {"n_steps": 32, "batch_size": 64}}
    changes = {"training": {**played, **section}, "cloning": {"critic_epochs": 0}}
    if algorithm == "dagger":
        cloning = {"epochs": 2, "batch_size": 32, "critic_epochs": 0, "learning_rate": 1e37}
        changes = {"dagger": {"rounds": 1, "episodes_per_round": 4, "n_envs": 4}, "cloning": cloning}
    config = validate(Pretrain, {"task": "none", "algorithm": algorithm, "network": {"hidden": [8]}, **changes}, "test")
    policy = build_policy(task.observation_space, task.action_space, config.network, 1)
    episodes = task.episodes("train", 5, 4, Purpose.EVALUATE)

    def play(clone_so_far):
        return run_episodes(task, act_function(clone_so_far), episodes)

    with pytest.raises(
        Diverged, match=f"^{algorithm} of seed 1 diverged .* is not finite; lower {setting} .now 1e"
    ) as error:
        imitate(task, policy, data, config, 1, tmp_path, play, Demonstrator(against, {}))
    assert "normalize_reward" not in str(error.value)  # which none of these sections has
    assert not_finite(policy) is None


def test_what_is_not_finite_is_found_in_any_tensor():
    layer = torch.nn.Linear(2, 2)
    assert not_finite(layer) is None
    for name, bad in (("bias", float("nan")), ("weight", float("inf"))):
        with torch.no_grad():
            getattr(layer, name)[0] = bad
        assert not_finite(layer) == name
