"""PPO, SAC and every imitator on a device that is not the CPU: `test_device.py` runs this in a process of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended_gpu import computed, pretended_gpu

from pipeline.config.loading import validate
from pipeline.config.stages import Pretrain
from pipeline.config.task import TaskConfig
from pipeline.config.training import ADAPTIVE_WARM_START, Network, SACTraining, WarmStart
from pipeline.data import content_digest
from pipeline.data.formats.npz import write_archive
from pipeline.learning import clones, ppo, sac
from pipeline.learning.clones import CloneJob
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.evaluation import record_episodes
from pipeline.tasks import Purpose, Task

PLAYED = {"evaluation": {"episodes": 1}, "final_episodes": 2, "judgement": {"episodes": 2}}
LEARNT_BY = {
    "bc": {"cloning": {"epochs": 2, "batch_size": 32, "critic_epochs": 2}},
    "gail": {"training": {"total_timesteps": 128, "n_envs": 4, "ppo": {"n_steps": 32, "batch_size": 64}}},
    "dagger": {
        "dagger": {"rounds": 1, "episodes_per_round": 4, "n_envs": 4},
        "cloning": {"epochs": 1, "batch_size": 32, "critic_epochs": 1},
    },
}
LEARNT_BY["gail"]["training"]["discriminator"] = {"hidden": [16], "batch_size": 32}
LEARNT_BY["airl"] = LEARNT_BY["gail"]


def ignore(*_):
    pass


@pytest.fixture
def on_both(monkeypatch):
    """`on_both(config, work)`: what `work` comes to with this task on the CPU, and with its networks on a GPU."""

    def both(config: TaskConfig, work):
        here = work(config)
        with pretended_gpu() as gpu:
            for module in (ppo, sac, clones):
                monkeypatch.setattr(module, "begin_on", lambda asked: gpu)
            computed.clear()
            there = work(replace(config, device="cuda"))
        assert computed["aten.mm.default"] > 0  # of a layer's gradient: it was learnt there
        return here, there

    return both


def swing(observations: np.ndarray) -> np.ndarray:
    return np.clip(-100 * observations[:, 1:2] - 30 * observations[:, 2:], -256, 256).astype(np.float32)


def recorded(config: TaskConfig, act=swing):
    task = Task(config)
    return record_episodes(task, act, task.episodes("train", 1, 6, Purpose.RECORD), 0.0, 0)


def test_the_pretended_gpu_is_as_strict_as_one():
    with pretended_gpu() as gpu:
        there = torch.ones(3, device=gpu)
        assert there.device.type == gpu.type and float((there + there).sum()) == 6
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match=r"numpy\(\)"):
            there.numpy()
        assert there.cpu().numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("algorithm", sorted(LEARNT_BY))
def test_a_clone_learns_on_a_gpu_what_it_learns_on_the_cpu(algorithm, make_task, on_both, tmp_path):
    wide = make_task("learning_environments:Wide", horizon=30)  # large torques: observations and actions are in units
    data, settings = recorded(wide), {"task": "none", "algorithm": algorithm, "network": {"hidden": [16]}}
    config = validate(Pretrain, {**settings, **LEARNT_BY[algorithm], **PLAYED}, "test")

    def work(task_config: TaskConfig):
        demonstrator = Demonstrator(swing, {})
        folder = str(tmp_path / task_config.device)
        return CloneJob(task_config, config, data, "d", 1, folder, demonstrator).perform(ignore)

    here, there = on_both(wide, work)
    assert there.digest == here.digest
    assert there.final.metrics["return"].tolist() == here.final.metrics["return"].tolist()
    assert (here.machine["device"], there.machine["device"]) == ("cpu", "cuda")


def test_pictures_are_learnt_from_on_a_gpu_as_on_the_cpu(make_task, make_training, on_both, tmp_path):
    pole = make_task("CartPole-v1", horizon=8, camera={"size": 36, "grayscale": True, "observe": "image_and_state"})
    settings = {"task": "none", "use_camera": True, "network": {"hidden": [16], "image_features": 8}}
    cloning = {"epochs": 1, "batch_size": 16, "critic_epochs": 1}
    config = validate(Pretrain, {**settings, "cloning": cloning, **PLAYED}, "test")
    seen = Task(pole, use_camera=True)
    episodes = seen.episodes("train", 1, 4, Purpose.RECORD)
    data = record_episodes(seen, lambda rows: (rows["state"][:, 1] > 0).astype(np.int64), episodes, 0.0, 0)
    training = make_training(
        total_timesteps=16,
        n_envs=2,
        use_camera=True,
        network=settings["network"],
        ppo={"n_steps": 8, "batch_size": 8, "n_epochs": 1},
        evaluation={"episodes": 1},
    )

    def work(task_config: TaskConfig):
        folder = tmp_path / task_config.device
        clone = CloneJob(task_config, config, data, "d", 1, str(folder)).perform(ignore)
        start = {"initial_policy": str(clone.folder), "warm_start": ADAPTIVE_WARM_START}
        job = TrainingJob(task_config, training, 1, str(folder), **start, final_episodes=1)
        return clone.digest, train(job, ignore).last_weights

    here, there = on_both(pole, work)
    assert there == here


@pytest.mark.parametrize("arm", ["scratch", "warm", "fixed", "residual"])
def test_ppo_learns_on_a_gpu_what_it_learns_on_the_cpu(arm, make_task, make_training, on_both, tmp_path):
    """From its checkpoints, so these hold no tensors of a GPU's."""
    config = make_task("Pendulum-v1", horizon=30)
    training = make_training(checkpoint_every=512, total_timesteps=1024)
    data, network = recorded(config), Network(hidden=(16,))
    given = {"task": "none", "network": {"hidden": [16]}, **PLAYED, **LEARNT_BY["bc"]}
    clone = CloneJob(config, validate(Pretrain, given, "test"), data, "d", 1, str(tmp_path)).perform(ignore)
    warm_start = {
        "warm": ADAPTIVE_WARM_START,
        "fixed": WarmStart(critic_burn_in_steps=256, clone_penalty=1.0, initial_action_std=None),
        "residual": WarmStart(initial_action_std=None),
    }.get(arm)
    start = {} if warm_start is None else {"initial_policy": str(clone.folder), "warm_start": warm_start}
    training = replace(training, network=network, normalize_reward=True)

    def work(task_config: TaskConfig):
        folder = tmp_path / task_config.device
        job = TrainingJob(task_config, training, 1, str(folder), residual=arm == "residual", **start, final_episodes=2)
        return train(replace(job, checkpoints=str(folder / "checkpoints")), ignore)

    here, there = on_both(config, work)
    assert (there.last_weights, there.best_digest) == (here.last_weights, here.best_digest)
    assert there.decisions == here.decisions


def test_sac_learns_on_a_gpu_what_it_learns_on_the_cpu(make_task, make_training, on_both, tmp_path):
    config = make_task("Pendulum-v1", horizon=30)
    data = recorded(config)
    with open(tmp_path / "trajectories.npz", "wb") as file:
        write_archive(file, data.to_arrays())
    training = make_training(total_timesteps=384, ppo={"n_steps": 32}, checkpoint_every=192)
    settings = SACTraining(network=Network(hidden=(16,)), batch_size=32, learning_starts=60, train_freq=4)
    mixed = {
        "demonstrations": str(tmp_path), "demonstrations_digest": content_digest(data), "demonstrations_share": 0.5
    }  # fmt: skip

    def work(task_config: TaskConfig):
        folder = tmp_path / task_config.device
        job = TrainingJob(task_config, training, 1, str(folder), sac=settings, final_episodes=2, **mixed)
        return train(replace(job, checkpoints=str(folder / "checkpoints")), ignore).last_weights

    here, there = on_both(config, work)
    assert there == here
