"""Cloning learns what imitation's BC learns, holds out whole episodes, and certifies what it made."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from imitation.algorithms import bc
from imitation.data.types import Transitions

from pipeline.config.loading import validate
from pipeline.config.training import Cloning, Network
from pipeline.data import Trajectories
from pipeline.errors import BadInput
from pipeline.learning.cloning import _Actor, clone, split_by_episode, train_critic
from pipeline.play.evaluation import run_episodes
from pipeline.policies import act_function, build_policy, tensor_digests, weights_digest
from pipeline.tasks import Purpose, Task

OBSERVATIONS = spaces.Box(-1, 1, (4,), np.float32)
ACTIONS = {"continuous": spaces.Box(-1, 1, (2,), np.float32), "discrete": spaces.Discrete(3)}
NETWORK = Network(hidden=(32, 32))


def demonstrations(kind: str, episodes: int = 30, length: int = 20, truncated: bool = False) -> Trajectories:
    """A demonstrator that is a fixed function of the observation, plus a little noise of its own."""
    rng = np.random.default_rng(0)
    steps = episodes * length
    observations = rng.uniform(-1, 1, (steps + episodes, 4)).astype(np.float32)
    rows = np.arange(steps) + np.repeat(np.arange(episodes), length)
    seen = observations[rows]
    if kind == "continuous":
        actions = np.tanh(seen @ rng.normal(size=(4, 2))) * 0.9 + rng.normal(size=(steps, 2)) * 0.05
        actions = np.clip(actions, -1, 1).astype(np.float32)
    else:
        actions = (seen @ rng.normal(size=(4, 3))).argmax(axis=1)
    ends = np.zeros(steps, bool)
    ends[length - 1 :: length] = True
    return Trajectories(
        observations=observations,
        actions=actions,
        executed_actions=actions,
        rewards=np.ones(steps, np.float32),
        terminations=ends & (not truncated),
        truncations=ends & truncated,
        lengths=np.full(episodes, length),
        seeds=np.arange(episodes),
        scenarios=np.array(["default"] * episodes),
    )


def policy_for(kind: str, seed: int = 1):
    return build_policy(OBSERVATIONS, ACTIONS[kind], NETWORK, seed)


def settings(**changes) -> Cloning:
    return validate(
        Cloning, {"epochs": 6, "batch_size": 64, "select": "validation_loss", "critic_epochs": 0, **changes}, "test"
    )


@pytest.fixture(params=sorted(ACTIONS))
def kind(request):
    return request.param


def negative_log_likelihood(policy, data: Trajectories) -> float:
    """Recomputed through SB3's own distribution."""
    observations, actions = torch.as_tensor(data.observations[data.step_rows]), torch.as_tensor(data.actions)
    with torch.no_grad():
        return -float(policy.evaluate_actions(observations, actions)[1].mean())


def test_the_loss_is_that_of_imitations_behavioural_cloning(kind):
    data, ours, theirs = demonstrations(kind), policy_for(kind), policy_for(kind)
    chosen = settings(epochs=40, batch_size=540)  # all of it at once: the order of the samples does not matter
    result = clone(ours, data, chosen, seed=1)
    train, held_out = data.select(result.train_episodes), data.select(result.held_out_episodes)
    reference = bc.BC(
        observation_space=OBSERVATIONS,
        action_space=ACTIONS[kind],
        rng=np.random.default_rng(0),
        policy=theirs,
        demonstrations=transitions(train),
        batch_size=chosen.batch_size,
        optimizer_kwargs={"lr": chosen.learning_rate},
        ent_weight=0.0,
        device="cpu",
    )
    assert train.steps == chosen.batch_size  # imitation drops an incomplete batch
    reference.train(n_epochs=40, progress_bar=False, log_interval=10**9)
    last = result.epochs[-1].metrics
    for name, part in (("bc/train_loss", train), ("bc/val_loss", held_out)):
        assert last[name] == pytest.approx(negative_log_likelihood(theirs, part), rel=1e-3)
        assert last[name] < 0.9 * result.epochs[0].metrics[name]  # something was learnt


def transitions(data: Trajectories) -> Transitions:
    rows = data.step_rows
    return Transitions(
        obs=data.observations[rows],
        acts=data.actions,
        infos=np.array([{}] * data.steps),
        next_obs=data.observations[rows + 1],
        dones=data.terminations,
    )


def test_the_split_is_by_whole_episodes_and_leaves_none_out():
    returns = np.random.default_rng(0).normal(size=50)
    train, held_out = split_by_episode(returns, 0.1, seed=3)
    assert len(held_out) == 5 and sorted([*train, *held_out]) == list(range(50))
    assert [part.tolist() for part in split_by_episode(returns, 0.1, seed=3)] == [train.tolist(), held_out.tolist()]
    assert split_by_episode(returns, 0.1, seed=4)[1].tolist() != held_out.tolist()
    assert len(split_by_episode(np.zeros(2), 0.0, seed=1)[1]) == 1  # a certificate needs a held-out episode
    assert len(split_by_episode(np.zeros(3), 1.0, seed=1)[0]) == 1
    with pytest.raises(BadInput, match="at least 2 episodes"):
        split_by_episode(np.zeros(1), 0.1, seed=1)


def test_rare_failures_are_held_out_in_proportion():
    returns = np.r_[np.full(20, -10.0), np.linspace(1, 2, 180)]  # every tenth episode fails
    for seed in range(20):
        _, held_out = split_by_episode(returns, 0.1, seed)
        assert (returns[held_out] < 0).sum() == 2


def test_the_return_of_an_episode_is_the_sum_of_its_rewards():
    data = demonstrations("discrete", episodes=3, length=4)
    rewards = np.arange(12, dtype=np.float32)
    assert dataclasses.replace(data, rewards=rewards).returns().tolist() == [6.0, 22.0, 38.0]


def test_the_first_point_is_the_untrained_policy(kind):
    data, policy = demonstrations(kind), policy_for(kind)
    untrained = policy_for(kind)
    points = []
    result = clone(policy, data, settings(), seed=1, on_point=points.append)
    assert [point.epoch for point in result.epochs] == [0, 1, 2, 3, 4, 5, 6] and tuple(points) == result.epochs
    first = result.epochs[0].metrics
    held_out, train = data.select(result.held_out_episodes), data.select(result.train_episodes)
    assert first["bc/val_loss"] == pytest.approx(negative_log_likelihood(untrained, held_out), rel=1e-5)
    assert first["bc/train_loss"] == pytest.approx(negative_log_likelihood(untrained, train), rel=1e-5)
    assert first["bc/grad_norm"] == 0.0


def test_curves_are_what_sb3_and_a_recount_say(kind):
    data, policy = demonstrations(kind), policy_for(kind)
    result = clone(policy, data, settings(), seed=1)
    # the policy is that of the best epoch, whichever it was
    last, held_out = result.epochs[result.best_epoch].metrics, data.select(result.held_out_episodes)
    assert last["bc/neglogp"] == pytest.approx(negative_log_likelihood(policy, held_out), rel=1e-4)
    observations = torch.as_tensor(held_out.observations[held_out.step_rows].copy())
    with torch.no_grad():
        distribution = policy.get_distribution(observations)
        assert last["bc/entropy"] == pytest.approx(float(distribution.entropy().mean()), rel=1e-4)
        chosen = distribution.mode().numpy()
    if kind == "discrete":
        assert last["bc/accuracy"] == pytest.approx((chosen == held_out.actions).mean())
        assert "bc/mean_absolute_error" not in last
    else:
        assert last["bc/mean_absolute_error"] == pytest.approx(np.abs(chosen - held_out.actions).mean(), rel=1e-4)
        assert last["bc/std"] == pytest.approx(float(policy.log_std.exp().mean()))
    names = ("policy_net", "action_net", "log_std")
    weights = [p for n, p in policy.named_parameters() if any(name in n for name in names)]
    norm = float(torch.sqrt(sum((w.detach() ** 2).sum() for w in weights)))
    assert last["bc/weight_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_standard_deviation_is_learnt_down_to_the_demonstrators_own():
    policy = policy_for("continuous")
    clone(policy, demonstrations("continuous", 60), settings(epochs=120, learning_rate=1e-2), seed=1)
    assert policy.log_std.exp().mean().item() == pytest.approx(0.05, rel=0.5)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["nll", "mse"])
@pytest.mark.parametrize("kind", ACTIONS)
def test_the_gradient_is_that_of_automatic_differentiation(kind, loss, entropy_weight):
    policy = build_policy(OBSERVATIONS, ACTIONS[kind], NETWORK, seed=1)
    actor = _Actor(policy, Cloning(loss=loss, entropy_weight=entropy_weight))
    if actor.log_std is not None:
        actor.log_std.data = torch.tensor([-0.7, 0.2])
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((16, 4), generator=generator)
    y = torch.rand((16, 2), generator=generator) if kind == "continuous" else torch.arange(16)[:, None] % 3
    actor.differentiate(x, y)
    expected = torch.autograd.grad(actor.loss(x, y), actor.parameters(), allow_unused=True)
    for parameter, gradient in zip(actor.parameters(), expected, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, gradient)


def test_squared_error_leaves_the_standard_deviation_alone():
    policy = policy_for("continuous")
    result = clone(policy, demonstrations("continuous"), settings(loss="mse"), seed=1)
    assert policy.log_std.tolist() == [0.0, 0.0]
    assert result.epochs[-1].metrics["bc/val_loss"] < result.epochs[0].metrics["bc/val_loss"]


def test_the_same_seed_gives_the_same_bits_and_another_others(kind):
    data, digests = demonstrations(kind), []
    for seed in (1, 1, 2):
        policy = policy_for(kind)
        clone(policy, data, settings(critic_epochs=2), seed=seed)
        digests.append(weights_digest(policy))
    assert digests[0] == digests[1] != digests[2]


def test_the_policy_ends_as_the_best_epoch(kind):
    """Labels that observations say nothing about: what is learnt of 30 of them by heart is wrong of the others."""
    data, rng = demonstrations(kind, episodes=4, length=10), np.random.default_rng(1)
    labels = rng.uniform(-1, 1, (40, 2)).astype(np.float32) if kind == "continuous" else rng.integers(0, 3, 40)
    data = dataclasses.replace(data, actions=labels, executed_actions=labels)
    policy, chosen = policy_for(kind), settings(epochs=200, learning_rate=1e-2)
    result = clone(policy, data, chosen, seed=1)
    losses = [point.metrics["bc/val_loss"] for point in result.epochs]
    assert result.best_epoch == 1 + int(np.argmin(losses[1:]))
    assert result.beats_untrained == (min(losses[1:]) < losses[0])
    assert losses[-1] > 2 * min(losses[1:])  # the last epoch is not nearly the best
    held_out = data.select(result.held_out_episodes)
    assert negative_log_likelihood(policy, held_out) == pytest.approx(min(losses[1:]), rel=1e-4)


def test_an_untrained_policy_is_never_the_best_epoch(kind):
    """Held-out labels are the opposite of the others: every epoch makes it worse than it was."""
    data, chosen = demonstrations(kind), settings(epochs=3, learning_rate=1e-2)
    held_out = clone(policy_for(kind), data, chosen, seed=1).held_out_episodes
    wrong = np.isin(np.repeat(np.arange(len(data)), data.lengths), held_out)
    labels = np.where(wrong, 2, 0) if kind == "discrete" else np.where(wrong, [[0.9], [0.9]], -0.9).T.astype(np.float32)
    data, policy = dataclasses.replace(data, actions=labels, executed_actions=labels), policy_for(kind)
    untrained = tensor_digests(policy)
    result = clone(policy, data, chosen, seed=1)
    losses = [point.metrics["bc/val_loss"] for point in result.epochs]
    assert losses[0] == min(losses)
    assert (result.best_epoch, result.beats_untrained) == (1, False)
    assert tensor_digests(policy) != untrained


def test_rollouts_are_played_on_schedule_and_select_the_best(cartpole):
    task = Task(cartpole)
    policy = build_policy(task.observation_space, task.action_space, NETWORK, seed=1)
    episodes = task.episodes("train", 1, 4, Purpose.EVALUATE)
    data = demonstrations("continuous")
    labels = (data.observations[data.step_rows][:, 2] > 0).astype(np.int64)
    data = dataclasses.replace(data, actions=labels, executed_actions=labels)
    chosen = settings(epochs=5, evaluate_every_epochs=2, select="rollout")
    result = clone(policy, data, chosen, 1, evaluate=lambda p: run_episodes(task, act_function(p), episodes))
    assert [point.epoch for point in result.epochs if point.records] == [0, 2, 4, 5]
    ranks = {
        p.epoch: (p.records.metrics["success"].mean(), p.records.metrics["return"].mean())
        for p in result.epochs
        if p.records
    }
    untrained = ranks.pop(0)
    assert result.best_epoch == max(ranks, key=lambda epoch: (ranks[epoch], -epoch))
    assert result.beats_untrained == (ranks[result.best_epoch] > untrained)
    again = run_episodes(task, act_function(policy), episodes)
    assert again.metrics["return"].mean() == ranks[result.best_epoch][1]


def test_selection_by_rollout_without_rollouts_is_refused():
    with pytest.raises(BadInput, match=r"cloning.select"):
        clone(policy_for("discrete"), demonstrations("discrete"), settings(select="rollout"), seed=1)


def test_demonstrations_of_another_shape_are_refused():
    with pytest.raises(BadInput, match="actions have shape"):
        clone(policy_for("continuous"), demonstrations("discrete"), settings(), seed=1)


# --- critic


def critic_of(data: Trajectories, epochs: int = 60, gamma: float = 0.9):
    policy = policy_for("discrete")
    before = tensor_digests(policy)
    train, held_out = split_by_episode(data.returns(), 0.2, seed=1)
    points = train_critic(
        policy, data, train, held_out, settings(critic_epochs=epochs, gamma=gamma, critic_learning_rate=3e-3), 1
    )
    return policy, before, points


def values(policy, observations) -> np.ndarray:
    with torch.no_grad():
        return policy.predict_values(torch.as_tensor(observations.copy())).flatten().numpy()


def countdown(truncated: bool, scale: float = 100.0) -> Trajectories:
    """Every observation says which step of its episode it is; every step earns `scale`."""
    data = demonstrations("discrete", episodes=40, length=10, truncated=truncated)
    step = np.tile(np.arange(11), 40) / 10
    observations = np.stack([step, step**2, -step, np.sin(3 * step)], axis=1).astype(np.float32)
    return dataclasses.replace(data, observations=observations, rewards=np.full(400, scale, np.float32))


def test_the_critic_learns_discounted_returns_in_their_own_unit():
    data = countdown(truncated=False)
    policy, before, points = critic_of(data, epochs=150)
    expected = 100 * (1 - 0.9 ** np.arange(10, 0, -1)) / (1 - 0.9)  # of 10, 9, ... 1 steps to go
    assert values(policy, data.observations[:10]) == pytest.approx(expected, abs=15)
    assert points[-1].metrics["critic/explained_variance"] > 0.99
    changed = {name for name, digest in tensor_digests(policy).items() if before[name] != digest}
    assert changed == {name for name in before if name.startswith(("mlp_extractor.value_net", "value_net"))}


def test_a_timeout_is_no_end_for_the_critic():
    # rewards of 1 for ever are worth 1 / (1 - 0.9) = 10 everywhere, though no episode is longer than 10 steps;
    # counted as an end, the timeout would make the last step worth 1
    policy, _, _ = critic_of(countdown(truncated=True, scale=1.0), epochs=150)
    assert values(policy, countdown(True).observations[:10]) == pytest.approx(np.full(10, 10.0), abs=4)


def test_the_critic_ends_as_it_was_at_its_least_held_out_loss():
    data = demonstrations("discrete", episodes=10, length=10)  # returns that observations say nothing about
    data = dataclasses.replace(data, rewards=np.random.default_rng(1).normal(size=100).astype(np.float32))
    policy, _, points = critic_of(data, epochs=60)
    losses = [point.metrics["critic/val_loss"] for point in points]
    assert np.argmin(losses) < 59  # learnt by heart afterwards
    _, held_out = split_by_episode(data.returns(), 0.2, seed=1)
    part = data.select(held_out)
    error = part.discounted_returns(0.9) - values(policy, part.observations[part.step_rows])
    assert np.square(error).mean() == pytest.approx(min(losses), rel=1e-3)


def test_the_actor_is_not_touched_by_the_critic_and_the_reverse(kind):
    data, with_critic, without = demonstrations(kind), policy_for(kind), policy_for(kind)
    full = clone(with_critic, data, settings(critic_epochs=3), seed=1)
    bare = clone(without, data, settings(), seed=1)
    probe = data.observations[data.step_rows]
    assert np.array_equal(act_function(with_critic)(probe), act_function(without)(probe))
    assert np.array_equal(values(without, probe), values(policy_for(kind), probe))
    assert [point.epoch for point in full.critic_epochs] == [1, 2, 3]
    assert np.isnan(bare.critic_explained_variance)
