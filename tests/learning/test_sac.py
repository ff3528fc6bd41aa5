"""SAC is stable-baselines3's own, demonstrations are what they say, and a kill changes nothing."""

import inspect
import os
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from pipeline.config.loading import validate
from pipeline.config.stages import FurtherArm
from pipeline.config.training import SACTraining
from pipeline.data import Trajectories, content_digest
from pipeline.data.formats.npz import write_archive
from pipeline.errors import BadInput
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.checkpoints import CheckpointFolder, from_bytes, to_bytes
from pipeline.learning.divergence import Diverged
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.replay_buffer import buffer_state, restore_buffer, transitions
from pipeline.learning.sac import LayerNormPolicy, ReplayingSAC, check_sac, make_sac
from pipeline.learning.schedule import final_episodes
from pipeline.learning.train import train
from pipeline.play.evaluation import run_episodes
from pipeline.policies import Affine, Scaling, act_function, load_policy, probe_batch, save_policy, scaling_of
from pipeline.policies.exports import export_network
from pipeline.tasks import Task

OBSERVATIONS = spaces.Box(-8, 8, (3,), np.float32)
ACTIONS = spaces.Box(np.float32(-2), np.float32(2), (1,), np.float32)
UNITS = Affine(np.array([1, 0, -2], np.float32), np.array([0.5, 2, 8], np.float32))


def ignore(*_):
    pass


def recorded(lengths, terminated=(), final=True, **arrays) -> Trajectories:
    """Episodes of a pendulum that nobody swung; those in `terminated` fell, the others were cut."""
    steps, ends = sum(lengths), np.cumsum(lengths) - 1
    rng, fell = np.random.default_rng(0), np.isin(np.arange(len(lengths)), terminated)
    terminations, truncations = np.zeros(steps, bool), np.zeros(steps, bool)
    terminations[ends], truncations[ends] = fell, ~fell
    actions = rng.uniform(-2, 2, (steps, 1)).astype(np.float32)
    made = {
        "observations": rng.uniform(-1, 1, (steps + final * len(lengths), 3)).astype(np.float32),
        "actions": actions,
        "executed_actions": actions,
        "rewards": rng.uniform(-1, 0, steps).astype(np.float32),
        "terminations": terminations,
        "truncations": truncations,
        "lengths": np.array(lengths),
        "seeds": np.arange(len(lengths)),
        "scenarios": np.array(["default"] * len(lengths)),
    }
    return Trajectories(**{**made, **arrays})


@pytest.fixture(scope="module")
def job(pendulum, make_training, tmp_path_factory) -> TrainingJob:
    """640 steps, of which the last 300 are replayed, with a checkpoint after every 128."""
    training = make_training(
        total_timesteps=640,
        ppo={"n_steps": 32},
        evaluation={"segments": [{"every_steps": 256}], "episodes": 2},
        checkpoint_every=128,
    )
    network = replace(training.network, hidden=(16,), activation="relu")
    sac = SACTraining(
        network=network, batch_size=32, learning_starts=56, train_freq=8, gradient_steps=2, buffer_size=300
    )
    folder = str(tmp_path_factory.mktemp("job"))
    return TrainingJob(replace(pendulum, horizon=30), training, 5, folder, sac=sac, final_episodes=2)


def with_demonstrations(job: TrainingJob, folder: Path, data: Trajectories) -> TrainingJob:
    with open(folder / "trajectories.npz", "wb") as file:
        write_archive(file, data.to_arrays())
    digest = content_digest(data)
    return replace(job, demonstrations=str(folder), demonstrations_digest=digest, demonstrations_share=0.5)


@pytest.fixture(scope="module")
def demonstrated(job, tmp_path_factory) -> TrainingJob:
    """The same with demonstrations in its batches, as RLPD has it."""
    return with_demonstrations(job, tmp_path_factory.mktemp("demonstrations"), recorded([20] * 5))


def outcome(job, folder: Path):
    """All that a training leaves behind but clock times, and the state of its last checkpoint."""
    events = []
    job = replace(job, checkpoints=str(folder))
    result = train(job, events.append)
    said = [
        (name, event.timestep, value)
        for event in events
        for name, value in event.metrics.items()
        if not name.startswith("time/")
    ]
    measured = [(p.timestep, p.records.metrics["return"].tolist()) for p in result.evaluations]
    last = CheckpointFolder(folder, "").newest()
    digests = (result.best_digest, result.last_digest, result.environment_steps, result.gradient_steps)
    return (digests, measured, result.final.metrics["return"].tolist(), sorted(set(said))), last["model"]


# --- the update ------------------------------------------------------------------------------------------------------


def test_without_demonstrations_and_layer_norm_it_is_sb3s_own_sac_bit_for_bit(job, tmp_path):
    """Without checkpoints, at which all episodes start anew."""
    job = replace(job, training=replace(job.training, checkpoint_every=0))
    (digests, *_), ours = outcome(job, tmp_path)
    task = Task(job.task)
    with closing(task.make_vec_env(task.training_streams("train", job.seed, 1))) as env:
        theirs = SAC(
            "MlpPolicy",
            env,
            batch_size=32,
            learning_starts=56,
            train_freq=8,
            gradient_steps=2,
            buffer_size=300,
            policy_kwargs={"net_arch": [16]},
            seed=job.seed,
            device="cpu",
        ).learn(640)
    networks = theirs.policy.state_dict()
    assert networks.keys() == ours["networks"].keys()
    assert all(torch.equal(networks[name], tensor) for name, tensor in ours["networks"].items())
    assert torch.equal(theirs.log_ent_coef.detach(), ours["log_ent_coef"])
    fresh = ReplayBuffer(300, task.observation_space, task.action_space)
    restore_buffer(fresh, ours["replay"])
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "pos", "full"):
        assert np.array_equal(getattr(fresh, name), getattr(theirs.replay_buffer, name)), name
    assert digests[2:] == (640, theirs._n_updates) == (640, 2 * (640 - 56) // 8)


def test_defaults_are_those_of_sb3():
    theirs, ours = inspect.signature(SAC.__init__).parameters, SACTraining()
    same = [name for name in vars(ours) if name in theirs]
    assert len(same) == 11
    assert {name: getattr(ours, name) for name in same} == {name: theirs[name].default for name in same}
    policy = SACPolicy(OBSERVATIONS, ACTIONS, lambda _: 0.0)
    assert (policy.net_arch, policy.activation_fn) == (list(ours.network.hidden), nn.ReLU)
    assert len(policy.critic.q_networks) == ours.critics


def test_layer_norm_stands_between_each_hidden_layer_of_the_critics_and_its_activation():
    policy = LayerNormPolicy(OBSERVATIONS, ACTIONS, lambda _: 0.0, net_arch=[8, 4])
    for critic in (policy.critic, policy.critic_target):
        kinds = [[type(layer) for layer in layers] for layers in critic.q_networks]
        assert kinds == [[nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]] * 2
    assert not any(isinstance(module, nn.LayerNorm) for module in policy.actor.modules())
    learnt = {id(p) for group in policy.critic.optimizer.param_groups for p in group["params"]}
    assert {id(parameter) for parameter in policy.critic.parameters()} == learnt


def made(job: TrainingJob) -> ReplayingSAC:
    task = Task(job.task)
    with closing(task.make_vec_env(task.training_streams("train", job.seed, job.sac.n_envs))) as env:
        return make_sac(job, task, env, job.seed, 128)


@pytest.mark.parametrize("chosen", [None, False, True])
def test_layer_norm_comes_with_demonstrations_unless_it_is_said(job, demonstrated, chosen):
    for one, default in ((job, False), (demonstrated, True)):
        model = made(replace(one, sac=replace(one.sac, critic_layer_norm=chosen)))
        assert isinstance(model.policy, LayerNormPolicy) == (default if chosen is None else chosen)


def test_half_of_every_batch_are_demonstrations(demonstrated):
    model = made(demonstrated)
    played = np.full((1, 3), 7, np.float32)
    for _ in range(3):
        model.replay_buffer.add(played, played, np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    for size, share in ((32, 16), (3, 2)):  # halves are rounded to the even
        batch = model.replay_buffer.sample(size)
        assert (batch.observations == 7).all(dim=1).tolist() == [True] * (size - share) + [False] * share
        assert [len(part) for part in batch[:5]] == [size] * 5


# --- demonstrations --------------------------------------------------------------------------------------------------


def test_transitions_are_what_was_executed_and_what_came_of_it():
    """Two steps and a fall; one step that was cut."""
    data = recorded(
        [2, 1],
        terminated=[0],
        observations=np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]], np.float32),
        actions=np.array([[0], [0], [0]], np.float32),
        executed_actions=np.array([[-2], [1], [2.5]], np.float32),
        rewards=np.array([-1, -2, -3], np.float32),
    )
    buffer = transitions(OBSERVATIONS, ACTIONS, data)
    assert buffer.size() == 3
    assert buffer.observations[:, 0, 0].tolist() == [0, 1, 3]
    assert buffer.next_observations[:, 0, 0].tolist() == [1, 2, 4]
    assert buffer.actions[:, 0, 0].tolist() == [-1, 0.5, 1]  # between the bounds; what is beyond them is put there
    assert buffer.rewards[:, 0].tolist() == [-1, -2, -3]
    assert buffer.dones[:, 0].tolist() == [0, 1, 0] and not buffer.timeouts.any()


def test_of_an_end_that_nobody_recorded_nothing_is_learnt():
    rows = np.arange(4, dtype=np.float32).repeat(3).reshape(4, 3)
    cut = recorded([2, 2], terminated=[0], final=False, observations=rows)
    buffer = transitions(OBSERVATIONS, ACTIONS, cut)
    assert buffer.observations[:, 0, 0].tolist() == [0, 1, 2]  # the last step of the second episode is not there
    assert buffer.next_observations[:, 0, 0].tolist() == [1, 1, 3]
    assert buffer.dones[:, 0].tolist() == [0, 1, 0]
    unknown = replace(recorded([2, 2], terminated=[0]), terminations=np.zeros(4, bool), truncations=np.zeros(4, bool))
    assert transitions(OBSERVATIONS, ACTIONS, unknown).size() == 2
    with pytest.raises(BadInput, match="of none of their steps is it known"):
        transitions(OBSERVATIONS, ACTIONS, recorded([1, 1], final=False))


def test_transitions_of_a_dict_have_all_its_keys():
    nested = spaces.Dict({"b": spaces.Box(-1, 1, (2,), np.float32), "a": spaces.Discrete(3)})
    rows = np.zeros(3, [("a", np.int64), ("b", np.float32, (2,))])
    rows["a"], rows["b"] = [0, 1, 2], [[0, 0], [0.5, 1], [1, 1]]
    buffer = transitions(nested, ACTIONS, recorded([2], observations=rows))
    assert isinstance(buffer, DictReplayBuffer)
    assert buffer.next_observations["a"].ravel().tolist() == [1, 2]
    assert buffer.observations["b"][:, 0].tolist() == [[0, 0], [0.5, 1]]
    again = DictReplayBuffer(2, nested, ACTIONS)
    restore_buffer(again, from_bytes(to_bytes(buffer_state(buffer), ""), ""))
    assert all(np.array_equal(again.next_observations[key], buffer.next_observations[key]) for key in ("a", "b"))


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 8, 11])
def test_a_buffer_comes_back_from_its_state_bit_by_bit(count):
    """Of 8 places for 2 environments; -0.0 follows 0.0, and an episode ends at every third step."""
    space, rng = spaces.Box(-1, 1, (2,), np.float64), np.random.default_rng(1)
    buffer, again = (ReplayBuffer(16, space, ACTIONS, n_envs=2) for _ in range(2))
    seen = np.zeros((2, 2))
    for i in range(count):
        came = -seen if i == 2 else rng.uniform(-1, 1, (2, 2))
        buffer.add(seen, came, rng.uniform(-1, 1, (2, 1)), rng.uniform(size=2), np.ones(2) * (i % 3 == 2), [{}, {}])
        seen = np.zeros((2, 2)) if i % 3 == 2 else came
    state = buffer_state(buffer)
    restore_buffer(again, from_bytes(to_bytes(state, ""), ""))
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert getattr(again, name).tobytes() == getattr(buffer, name).tobytes()
    assert (again.pos, again.full) == (buffer.pos, buffer.full)
    if count > 4:
        assert len(state["observations"]["all"]["after"]) < count  # most of what came is what was seen next


@pytest.fixture(scope="module")
def whole(demonstrated, tmp_path_factory):
    """What the training that was never killed came to, and its checkpoints."""
    taken, folder, save = [], tmp_path_factory.mktemp("whole"), CheckpointFolder.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", lambda self, n, c: taken.append(c) or save(self, n, c))
        reached, _ = outcome(demonstrated, folder)
    assert len(list(folder.iterdir())) == 2
    return reached, [from_bytes(content, "") for content in taken]


def test_from_a_checkpoint_it_ends_the_same(demonstrated, whole, tmp_path):
    reached, taken = whole
    assert [state["model"]["num_timesteps"] for state in taken] == [128, 256, 384, 512, 640]
    for state in (taken[0], taken[3]):
        CheckpointFolder(tmp_path / str(state["number"]), "").save(state["number"], to_bytes(state, ""))
        assert outcome(demonstrated, tmp_path / str(state["number"]))[0] == reached


def test_every_piece_of_the_state_is_needed(demonstrated, whole, tmp_path):
    reached, taken = whole

    def no_moments(name):
        return lambda optimizers: {**optimizers, name: {**optimizers[name], "state": {}}}

    omissions = {
        "networks": lambda tensors: {name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
        "log_ent_coef": torch.zeros_like,
        "replay": lambda replay: {**replay, "rewards": torch.zeros_like(replay["rewards"])},
        "optimizer_steps": lambda _: 0,
        **{f"optimizers: {name}": no_moments(name) for name in ("actor", "critic", "ent_coef")},
        "replay: position": lambda replay: {**replay, "position": 0},
    }
    for piece, omit in omissions.items():
        state, key = taken[3], piece.partition(":")[0]
        state = {**state, "model": {**state["model"], key: omit(state["model"][key])}}
        folder = tmp_path / piece.replace(" ", "")
        CheckpointFolder(folder, "").save(state["number"], to_bytes(state, ""))
        assert outcome(demonstrated, folder)[0] != reached, piece


def test_a_kill_in_the_middle_costs_nothing(demonstrated, whole, tmp_path):
    reached, _ = whole
    pid = os.fork()
    if pid == 0:  # killed in its fourth part, between the checkpoints of steps 384 and 512
        torch.set_num_threads(1)
        try:
            train(
                replace(demonstrated, checkpoints=str(tmp_path)),
                lambda event: os.kill(os.getpid(), signal.SIGKILL) if event.timestep > 384 else None,
            )
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000002", "000003"]
    assert outcome(demonstrated, tmp_path)[0] == reached


# --- the policy that is kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [None, Scaling(observations=UNITS)])
def test_what_is_kept_of_it_acts_as_sb3s_own(job, scaling, tmp_path):
    model = made(replace(job, scaling=scaling))
    save_policy(model.acting_policy(), tmp_path / "p", {})
    kept, batch = load_policy(tmp_path / "p"), probe_batch(OBSERVATIONS)
    assert np.allclose(act_function(kept)(batch), model.predict(batch, deterministic=True)[0], atol=1e-5)
    assert scaling_of(kept).digest == (scaling or Scaling()).digest
    export_network(kept, tmp_path / "p.pt")  # holds itself to what the policy does


def test_units_are_those_of_all_arms_and_reach_the_policy_that_is_kept(job, tmp_path):
    job = replace(job, scaling=Scaling(observations=UNITS), output=str(tmp_path))
    result = train(job, ignore)
    for name in ("best", "last"):
        assert scaling_of(load_policy(tmp_path / name)).observations.offset.tolist() == [1, 0, -2]
    again = act_function(load_policy(tmp_path / "best"))
    fresh = final_episodes(Task(job.task), "train", job.training.evaluation, 2)
    replayed = run_episodes(Task(job.task), again, fresh)
    assert replayed.metrics["return"].tolist() == result.final.metrics["return"].tolist()


# --- what it cannot do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"warm_start": "adaptive", "sac": {}}, "sac is not for algorithm 'ppo'"),
        ({"warm_start": "adaptive", "demonstrations": 0.5}, "demonstrations is not for algorithm 'ppo'"),
        ({"algorithm": "sac", "warm_start": "adaptive"}, "warm_start is not for algorithm 'sac'"),
        ({}, "algorithm 'ppo' needs warm_start"),
        ({"algorithm": "sac", "demonstrations": 0.001}, "0.001 of a batch of 256 are 0 transitions; at least one must"),
        ({"algorithm": "sac", "demonstrations": 0.5, "sac": {"batch_size": 2, "tau": 2}}, "tau = 2"),
        ({"algorithm": "sac", "demonstrations": 1.0}, "demonstrations = 1.0"),
        ({"algorithm": "td3"}, "algorithm = 'td3'.*'ppo' or 'sac'"),
        ({"algorithm": "sac", "sac": {"n_steps": 4}}, "unknown key 'sac.n_steps'"),
    ],
)
def test_an_arm_that_contradicts_itself_is_refused_by_name(arm, words):
    with pytest.raises(BadInput, match=words):
        validate(FurtherArm, arm, "an arm")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_envs": 3}, r"sac\.n_envs \* sac\.train_freq = 24 does not divide the 640 steps of every arm"),
        ({"learning_starts": 640}, r"sac\.learning_starts = 640 leaves nothing of a budget of 640 steps"),
    ],
)
def test_what_does_not_fit_the_budget_is_refused(job, change, words):
    with pytest.raises(BadInput, match=words):
        check_sac("s", replace(job.sac, **change), 640, Task(job.task))


def test_discrete_actions_are_refused_by_name(job, cartpole):
    with pytest.raises(BadInput, match=r"arm 's': algorithm 'sac' takes continuous actions alone, .*Discrete\(2\)"):
        check_sac("s", job.sac, 640, Task(cartpole))


def test_pictures_are_refused_by_name(job, make_task):
    seen = Task(make_task("learning_environments:Seen", horizon=20))
    with pytest.raises(BadInput, match=r"arm 's': algorithm 'sac' keeps every observation .* takes no pictures"):
        check_sac("s", job.sac, 640, seen)


@pytest.mark.parametrize("part", ["rewards", "ends"])
def test_demonstrations_without_rewards_or_ends_are_refused(job, part):
    changes = {"rewards": {"rewards": np.full(4, np.nan, np.float32)}, "ends": {"terminations": np.zeros(4, bool)}}
    data = replace(recorded([2, 2], terminated=[0, 1]), **changes[part])
    with pytest.raises(BadInput, match=f"arm 's' learns from the {part} of demonstrations, which were not recorded"):
        check_sac("s", job.sac, 640, Task(job.task), data)


def test_demonstrations_that_changed_since_are_not_learnt_from(demonstrated, tmp_path):
    with pytest.raises(BadInput, match="changed since the training was asked for"):
        train(replace(demonstrated, demonstrations_digest="another"), ignore)


def test_a_training_that_diverges_says_so_in_one_line_and_its_best_policy_stays(job, tmp_path):
    job = replace(job, sac=replace(job.sac, learning_rate=1e37), output=str(tmp_path))
    with pytest.raises(Diverged) as error:
        run_side_by_side([job], 1, ignore)
    line = str(error.value)
    assert line.startswith("training of seed 5 diverged at step ") and "lower sac.learning_rate (now 1e+37)" in line
    assert line.endswith("its best policy, of step 0, is kept")
    load_policy(tmp_path / "best")


@pytest.mark.parametrize("what", ["a reward", "an observation"])
def test_an_environment_that_shows_what_is_no_number_is_not_taken_for_divergence(job, make_task, what):
    environment = {"id": "learning_environments:Failing", "kwargs": {"broken": what}}
    failing = make_task("", environment=environment, horizon=20)
    with pytest.raises(BadInput, match=f"until step \\d+ {what} was not finite; look at the environment"):
        train(replace(job, task=failing), ignore)
