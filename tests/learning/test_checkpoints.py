"""A training killed at any moment goes on from its checkpoint and ends with the very bits of one that was not."""

import hashlib
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.config.training import ADAPTIVE_WARM_START, LearningRate, SACTraining, WarmStart
from pipeline.learning import adaptive, checkpoints
from pipeline.learning.adaptive import Anchor, BurnIn
from pipeline.learning.checkpoints import CheckpointFolder, from_bytes, to_bytes
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.repeatability import repeats_itself
from pipeline.learning.train import train
from pipeline.policies import build_policy, load_trainable, save_policy
from pipeline.policies.sb3 import export_sb3_zip, import_sb3_zip
from pipeline.tasks import Task


class Unrepeatable(gymnasium.Env):
    """Draws from a generator that `reset(seed)` does not seed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    generator = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        return self.generator.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        return self.generator.uniform(-1, 1, 2).astype(np.float32), 0.0, False, True, {}


class Worn(gymnasium.Env):
    """Repeats itself when it is fresh; every episode leaves a trace."""

    observation_space, action_space = Unrepeatable.observation_space, Unrepeatable.action_space
    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return np.full(2, 0.01 * self.episodes, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, True, {}


@pytest.fixture(scope="module")
def job(pendulum, make_training, tmp_path_factory) -> TrainingJob:
    """Five rollouts with a checkpoint after each: two updates of critic burn-in, then a penalty that fades."""
    config, folder = replace(pendulum, horizon=20), tmp_path_factory.mktemp("job")
    task = Task(config)
    training = make_training(
        total_timesteps=640,
        normalize_reward=True,
        ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 2},
        evaluation={"segments": [{"every_steps": 256}], "episodes": 2},
        checkpoint_every=128,
    )
    clone = build_policy(task.observation_space, task.action_space, training.network, 9)
    save_policy(clone, folder / "clone", {})
    warm = WarmStart(critic_burn_in_steps=300, clone_penalty=0.5, clone_penalty_fade_steps=400)
    return TrainingJob(
        config, training, 5, str(folder / "out"), initial_policy=str(folder / "clone"), warm_start=warm,
        final_episodes=2, best_metric="length_mean",  # all are equally long, so that the first stays the best
    )  # fmt: skip


def outcome(job):
    """All that a training leaves behind but clock times, and its points as the store would keep them."""
    events = []
    result = train(job, events.append)
    points = {
        (name, event.timestep, value)
        for event in events
        for name, value in event.metrics.items()
        if not name.startswith("time/") or name == "time/iterations"
    }
    measured = [(p.timestep, p.records.metrics["return"].tolist()) for p in result.evaluations]
    digests = (result.best_digest, result.last_digest, result.best_timestep, result.evaluation_steps)
    return digests, measured, result.final.metrics["return"].tolist(), points, result.decisions


def reached_and_taken(job, folder: Path):
    """The outcome of a training that was never killed, and every checkpoint it took."""
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        save = CheckpointFolder.save
        patch.setattr(
            CheckpointFolder, "save", lambda self, number, content: taken.append(content) or save(self, number, content)
        )
        reached = outcome(replace(job, checkpoints=str(folder)))
    return reached, [from_bytes(content, job.checkpoint_key) for content in taken]


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    found = reached_and_taken(job, folder)
    assert [path.name[:6] for path in sorted(folder.iterdir())] == ["000004", "000005"]  # two generations
    return found


def resumed(job, folder: Path, checkpoint):
    CheckpointFolder(folder, job.checkpoint_key).save(checkpoint["number"], to_bytes(checkpoint, job.checkpoint_key))
    return outcome(replace(job, checkpoints=str(folder)))


def test_from_every_checkpoint_the_training_ends_the_same(job, whole, tmp_path):
    reached, taken = whole
    assert [checkpoint["model"]["num_timesteps"] for checkpoint in taken] == [128, 256, 384, 512, 640]
    assert [checkpoint["ended"] for checkpoint in taken] == [False] * 4 + [True]
    for checkpoint in taken:
        assert resumed(job, tmp_path / str(checkpoint["number"]), checkpoint) == reached
    assert outcome(job) == reached  # nothing was to be written: the boundaries are there all the same
    off = replace(job, training=replace(job.training, checkpoint_every=0))
    assert outcome(off)[0] != reached[0]


def test_a_start_from_an_imported_policy_ends_the_same_after_a_kill(job, tmp_path):
    """It has a deviation of its own, and a critic that learnt from divided rewards."""
    task = Task(job.task)
    export_sb3_zip(build_policy(task.observation_space, task.action_space, job.training.network, 4), tmp_path / "a.zip")
    imported = import_sb3_zip(tmp_path / "a.zip", task.observation_space, task.action_space)
    save_policy(imported, tmp_path / "policy", {}, return_scale=2.5)
    start = str(tmp_path / "policy")
    job = replace(job, initial_policy=start, return_scale=2.5, warm_start=ADAPTIVE_WARM_START)
    reached, taken = reached_and_taken(job, tmp_path / "whole")
    assert len(taken) == 5
    for checkpoint in taken:
        assert resumed(job, tmp_path / str(checkpoint["number"]), checkpoint) == reached


@pytest.mark.slow
def test_an_adaptive_warm_start_decides_the_same_after_a_kill_and_says_what(job, tmp_path, monkeypatch):
    """17 rollouts: a trial in which no episode ends, for parts are shorter than episodes, then one of burn-in."""
    monkeypatch.setattr(adaptive, "EXPLAINED", 1000.0)
    clone = load_trainable(Path(job.initial_policy))
    clone.log_std.data.fill_(np.log(0.1))
    save_policy(clone, tmp_path / "clone", {})
    training = replace(job.training, total_timesteps=1088, checkpoint_every=64, ppo={**job.training.ppo, "n_steps": 16})
    job = replace(
        job,
        training=training,
        initial_policy=str(tmp_path / "clone"),
        warm_start=ADAPTIVE_WARM_START,
        best_metric="eval_episode_return",
    )
    reached, taken = reached_and_taken(job, tmp_path / "whole")
    *_, points, decisions = reached
    decided = {"initial_action_std/0", "critic_burn_in_steps", "clone_penalty", "learning_rate_factor"}
    assert decided == {d.setting for d in decisions}
    stds = [(d.timestep, d.value) for d in decisions if d.setting == "initial_action_std/0"]
    assert stds == [(0, pytest.approx(0.6)), (512, pytest.approx(0.1))]
    assert [d.value for d in decisions if d.setting == "critic_burn_in_steps"] == [576]
    assert {(f"warm_start/{d.setting}", d.value) for d in decisions} <= {(name, value) for name, _, value in points}
    for number in (1, 9, 13):
        assert resumed(job, tmp_path / str(number), taken[number - 1]) == reached
    forgotten = (
        ("trial", 1, None),
        ("burn_in", 9, asdict(BurnIn())),
        ("decisions", 9, []),
        ("anchor", 13, asdict(Anchor())),
    )
    for piece, number, nothing in forgotten:
        omit = changed("model", **{piece: lambda _, nothing=nothing: nothing})
        assert resumed(job, tmp_path / piece, omit(taken[number - 1])) != reached, piece


def test_a_longer_training_goes_on_from_the_last_checkpoint_of_a_shorter_one(job, whole, tmp_path):
    """To the bits of one that was trained at once, unless something in it goes by the whole budget."""

    def longer(shorter):
        return replace(shorter, training=replace(shorter.training, total_timesteps=1024))

    _, taken = whole
    assert job.bound_to_budget is None
    folder = CheckpointFolder(tmp_path / "kept", job.checkpoint_key)
    assert folder.before_end() is None
    for checkpoint in taken:
        folder.save(checkpoint["number"], to_bytes(checkpoint, job.checkpoint_key))
    assert folder.before_end().name.startswith("000004")  # the fifth is its end
    assert resumed(longer(job), tmp_path / "longer", taken[3]) == outcome(longer(job))
    falling = replace(job, training=replace(job.training, learning_rate=LearningRate(initial=1e-3, final=0.0)))
    assert falling.bound_to_budget == "training.learning_rate falls over the whole budget"
    _, taken = reached_and_taken(falling, tmp_path / "falling")
    assert resumed(longer(falling), tmp_path / "no", taken[3])[0] != outcome(longer(falling))[0]
    over = LearningRate(initial=1e-3, final=0.0, over_steps=700)
    in_steps = replace(job, training=replace(job.training, learning_rate=over))
    assert in_steps.bound_to_budget is None
    _, taken = reached_and_taken(in_steps, tmp_path / "in steps")
    assert resumed(longer(in_steps), tmp_path / "yes", taken[3]) == outcome(longer(in_steps))
    assert replace(job, warm_start=ADAPTIVE_WARM_START).bound_to_budget is None
    assert replace(job, sac=SACTraining()).bound_to_budget == "its replay buffer was not kept"


def zeroed(tensors):
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def changed(part, **changes):
    """The checkpoint with other entries in one part of it: how they come from those that are there."""
    return lambda c: {**c, part: {**c[part], **{name: new(c[part][name]) for name, new in changes.items()}}}


def no_moments(optimizer):
    return {**optimizer, "state": {}}


OMISSIONS = {  # piece of state -> number of a checkpoint at which it matters, and that checkpoint without it
    "weights": (3, changed("model", policy=zeroed)),
    "moments of the optimiser": (3, changed("model", optimizer=no_moments)),
    "moments of the critic's optimiser": (1, changed("model", critic_optimizer=no_moments)),
    "that the critic is burning in": (1, changed("model", critic_optimizer=lambda _: None)),
    "steps done": (3, changed("model", num_timesteps=lambda _: 128)),
    "updates done": (3, changed("model", n_updates=lambda _: 0)),
    "spread of rewards": (3, changed("model", reward_spread=lambda _: [0.0, 1.0, 1e-4])),
    "number of the boundary": (3, lambda c: {**c, "number": 2}),
    "evaluations so far": (3, changed("evaluation", points=lambda _: {})),
    "next evaluation": (3, changed("evaluation", due=lambda _: 0)),
    "best figure": (4, changed("evaluation", best=lambda _: float("-inf"))),
    "best policy": (5, changed("evaluation", best_policy=zeroed)),
    "unit of the best policy": (5, changed("evaluation", best_unit=lambda _: 2.0)),
    "unit of the last": (5, changed("model", reward_unit=lambda _: 2.0)),
    "episodes of the running mean": (3, changed("model", episode_infos=lambda _: [])),
    "what the last update recorded": (3, changed("model", unlogged=lambda _: {})),
    "what was said": (3, changed("said", events=lambda _: [])),
}


def test_every_piece_of_the_state_is_needed(job, whole, tmp_path):
    reached, taken = whole
    not_needed = [
        piece
        for piece, (number, omit) in OMISSIONS.items()
        if resumed(job, tmp_path / piece, omit(taken[number - 1])) == reached
    ]
    assert not_needed == []


def killed_at(job, site: int) -> bool:
    """Train in a process of its own that is killed before its `site`-th call to the disk; False: it ended."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def before(call):
            def counted(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == site:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return counted

        os.fsync, os.replace, os.unlink = before(os.fsync), before(os.replace), before(os.unlink)
        try:
            train(job, lambda event: None)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
def test_a_kill_at_any_write_costs_nothing(job, whole, tmp_path):
    reached, _ = whole
    # the first three checkpoints call the disk 3, 3 and 4 times: they sync, rename, sync the folder, forget the oldest
    for site in (1, 2, 3, 4, 8, 9, 10, 15):
        killed = replace(job, checkpoints=str(tmp_path / str(site)))
        assert killed_at(killed, site)
        if site == 9:
            assert killed_at(killed, 2)  # and again, while it goes on
        assert outcome(killed) == reached, site
        assert not list(Path(killed.checkpoints).glob("*.unfinished"))


def test_torn_and_foreign_checkpoints_are_passed_over(job, whole, tmp_path):
    reached, taken = whole
    killed = replace(job, checkpoints=str(tmp_path))
    folder = CheckpointFolder(tmp_path, job.checkpoint_key)
    for checkpoint in taken[1:3]:
        folder.save(checkpoint["number"], to_bytes(checkpoint, job.checkpoint_key))
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    assert folder.newest()["number"] == 2
    said = []
    train(killed, said.append)
    assert [event.text for event in said[:1]] == [
        f"checkpoint {newest.name} is damaged or of another training: passed over"
    ]
    assert outcome(killed) == reached
    assert CheckpointFolder(tmp_path, "of another training").newest() is None
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert outcome(killed) == reached  # from the beginning


def saved(folder: Path, number: int) -> Path:
    """A checkpoint beside the one before it; the file."""
    CheckpointFolder(folder, "job").save(number, to_bytes({"number": number, "weights": torch.ones(2)}, "job"))
    return max(folder.iterdir())


def test_a_file_under_a_true_digest_that_is_no_checkpoint_of_this_job_is_passed_over(tmp_path):
    saved(tmp_path, 1)
    for content in (safetensors.torch.save({"weights": torch.ones(2)}), b"no safetensors"):
        digest = hashlib.sha256(content).hexdigest()[:36]
        (tmp_path / f"000002-{digest}.safetensors").write_bytes(content)
        folder = CheckpointFolder(tmp_path, "job")
        assert folder.newest()["number"] == 1 and folder.damaged == [f"000002-{digest}.safetensors"]
        (tmp_path / f"000002-{digest}.safetensors").unlink()
    assert CheckpointFolder(tmp_path, "another job").newest() is None
    assert CheckpointFolder(tmp_path / "nowhere", "job").newest() is None


def test_what_is_no_file_or_too_large_is_passed_over_unread(tmp_path, monkeypatch):
    path = saved(tmp_path, 2)
    size = path.stat().st_size
    monkeypatch.setattr(checkpoints, "MAX_BYTES", size)
    assert CheckpointFolder(tmp_path, "job").newest()["number"] == 2
    monkeypatch.setattr(checkpoints, "MAX_BYTES", size - 1)
    assert CheckpointFolder(tmp_path, "job").newest() is None
    with pytest.raises(OSError, match=f"larger than {size - 1:,} bytes"):  # nor is such a one written in its place
        saved(tmp_path, 3)
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    os.mkfifo(path)  # nobody will ever write into it
    assert CheckpointFolder(tmp_path, "job").newest() is None


def test_the_last_two_checkpoints_stay_and_unfinished_files_go(tmp_path):
    (tmp_path / f"000009-{'0' * 36}.safetensors.unfinished").write_text("torn")
    for number in (1, 2, 3):
        saved(tmp_path, number)
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000002", "000003"]
    saved(tmp_path, 1)  # a training that begins anew leaves nothing of the one before it
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000001"]


def test_a_disk_that_takes_no_checkpoint_ends_no_training(job, whole, tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    result = train(replace(job, checkpoints=str(tmp_path / "file" / "folder")), said.append)
    assert result.last_digest == whole[0][0][1]
    assert sum("could not be written" in event.text for event in said) == 5


def test_an_environment_that_does_not_repeat_itself_is_recognised(job, make_training, tmp_path):
    config = replace(job.task, horizon=None)
    for env, repeats in ((Unrepeatable, False), (Worn, False)):
        task = Task(replace(config, environment=replace(config.environment, id=f"{__name__}:{env.__name__}")))
        assert repeats_itself(task, "train", 1) is repeats
    assert repeats_itself(Task(job.task), "train", 1)
    training = make_training(total_timesteps=512, checkpoint_every=256)
    scratch = TrainingJob(task.config, training, 1, str(tmp_path), final_episodes=1)
    assert train(scratch, lambda event: None).exact_resume is False
