"""Every kind of space that is taken is recorded, validated, cloned and fine-tuned; others are refused by name."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from odd_environments import ACTIONS, KINDS, Odd, Reader

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import Cloning, Network, PPOTraining, SACTraining, WarmStart
from pipeline.data import UNAPPROVED, DatasetMetadata, Trajectories, content_digest, load_dataset, save_dataset
from pipeline.data.formats.minari import export_minari
from pipeline.data.observations import check_action_space, check_observation_space, flat_rows, from_rows
from pipeline.data.spaces import space_to_json
from pipeline.envs.limits import LimitAction
from pipeline.errors import BadInput
from pipeline.learning.cloning import clone
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train
from pipeline.play.demonstrators import Script
from pipeline.play.evaluation import record_episodes, run_episodes
from pipeline.policies import (
    WRAPPERS,
    act_function,
    build_policy,
    load_policy,
    probe_batch,
    save_policy,
    scaling_by_bounds,
)
from pipeline.policies.transfer import Transfer
from pipeline.tasks import Purpose, Task
from pipeline.validation.facts import Context
from pipeline.validation.inspection import inspect_dataset
from pipeline.validation.replay import TaskReplay, replay_episodes
from pipeline.validation.rules import validate as validate_dataset


def task_data(observes: str, acts: str, **changes) -> dict:
    limit = {"name": "pipeline.envs.limits:LimitAction", "kwargs": {"low": -2.0, "high": [2.0, 2.0]}}
    return {
        "name": "odd",
        "environment": {
            "id": "odd_environments:Odd",
            "kwargs": {"observes": observes, "acts": acts},
            "wrappers": [limit] if acts == "unbounded" else [],
        },
        "success": {"info": "is_success"},
        "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1}},
        **changes,
    }


def odd(observes: str = "dict", acts: str = "discrete", **changes) -> Task:
    return Task(validate(TaskConfig, task_data(observes, acts, **changes), "test"))


def script(acts: str) -> Script:
    return Script("odd_environments:Reader", lambda: Reader(acts))


def readings(observations) -> np.ndarray:
    """The demonstrator of multi-discrete actions, for a batch of mappings."""
    return np.stack([observations["mode"], observations["mode"] % 2], axis=1)


COMBINATIONS = [("dict", "multi_discrete"), ("discrete", "multi_binary"), ("multi_discrete", "bounded"),
                ("multi_binary", "discrete"), ("box", "unbounded")]  # fmt: skip


@pytest.mark.parametrize(("observes", "acts"), COMBINATIONS)
def test_demonstrations_are_cloned_replayed_and_fine_tuned(observes, acts, tmp_path):
    task = odd(observes, acts)
    recorded = record_episodes(task, script(acts), task.episodes("train", 1, 60, Purpose.RECORD), 0.2, 5, 7)
    again = record_episodes(task, script(acts), task.episodes("train", 1, 60, Purpose.RECORD), 0.2, 5, 64)
    assert content_digest(recorded) == content_digest(again)  # however many play side by side
    assert all(verdict.identical for verdict in replay_episodes(recorded, TaskReplay(task), range(5)))
    policy = build_policy(task.observation_space, task.action_space, Network(hidden=(32,)), 1)
    settings = Cloning(epochs=60, batch_size=32, learning_rate=1e-2, critic_epochs=2, select="validation_loss")
    clone(policy, recorded, settings, 1)
    records = run_episodes(task, act_function(policy), task.episodes("train", 2, 40, Purpose.EVALUATE))
    assert records.metrics["success"].mean() > 0.9
    save_policy(policy, tmp_path / "clone", {WRAPPERS: task.wrappers})
    assert Transfer.between(policy, str(tmp_path / "clone"), 0.5, 6, 0.99).action_distance == 0.0
    ppo = {"n_steps": 16, "batch_size": 32, "n_epochs": 1}
    training = PPOTraining(total_timesteps=64, n_envs=4, network=Network(hidden=(32,)), ppo=ppo)
    warm = WarmStart(critic_burn_in_steps=0, clone_penalty=0.5)
    job = TrainingJob(task.config, training, 1, str(tmp_path / "out"), initial_policy=str(tmp_path / "clone"),
                      warm_start=warm, final_episodes=10)  # fmt: skip
    result = train(job, lambda event: None)
    assert result.transferred is not None
    assert result.evaluations[0].records.metrics["success"].mean() > 0.9  # it starts where the clone ended


@pytest.mark.parametrize("observes", ["dict", "multi_discrete"])
def test_sac_learns_from_demonstrations_of_every_kind(observes, tmp_path):
    """With checkpoints: what it reads goes through the buffer, its state and the policy that is kept."""
    task = odd(observes, "bounded")
    recorded = record_episodes(task, script("bounded"), task.episodes("train", 1, 40, Purpose.RECORD), 0.2, 5, 7)
    save_dataset(tmp_path / "data", recorded, described(task, recorded))
    sac = SACTraining(network=Network(hidden=(32,), activation="relu"), learning_rate=1e-2, batch_size=64)
    training = PPOTraining(total_timesteps=300, n_envs=4, ppo={"n_steps": 15}, checkpoint_every=200)
    job = TrainingJob(task.config, training, 1, str(tmp_path / "out"), sac=sac, demonstrations=str(tmp_path / "data"),
                      demonstrations_digest=content_digest(recorded), demonstrations_share=0.5,
                      final_episodes=40)  # fmt: skip
    result = train(job, lambda event: None)
    assert result.environment_steps == 300
    success = [point.records.metrics["success"].mean() for point in result.evaluations]
    assert success[-1] > max(0.6, success[0])


@pytest.mark.parametrize("observes", sorted(KINDS))
@pytest.mark.parametrize("acts", sorted(ACTIONS.keys() - {"unbounded"}))
def test_a_policy_acts_as_sb3_says_whatever_comes_with_an_observation(observes, acts, tmp_path):
    policy = build_policy(KINDS[observes], ACTIONS[acts], Network(hidden=(16,)), 3)
    save_policy(policy, tmp_path / "p", {})
    batch = probe_batch(KINDS[observes])
    actions = act_function(load_policy(tmp_path / "p"))(batch)
    assert np.allclose(actions, policy.predict(batch, deterministic=True)[0], atol=1e-6)
    assert all(ACTIONS[acts].contains(action.astype(ACTIONS[acts].dtype)) for action in actions)
    one = {key: rows[7:8] for key, rows in batch.items()} if isinstance(batch, dict) else batch[7:8]
    assert np.array_equal(act_function(policy)(one)[0], actions[7])


def described(task: Task, recorded: Trajectories) -> DatasetMetadata:
    return DatasetMetadata(
        dataset_id="odd-00000000",
        created_at="2026-01-01T00:00:00Z",
        task="odd",
        scenario_set="train",
        scenario_coverage={"default": len(recorded)},
        requested_shares={"default": 1.0},
        demonstrator={
            "kind": "scripted",
            "name": "odd_environments:Reader",
            "version": "1",
            "digest": "0" * 36,
            "approval": UNAPPROVED,
        },
        seeds=(1,),
        noise_std=0.2,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(task.observation_space),
        action_space=space_to_json(task.action_space),
        environment={
            "id": task.config.environment.id,
            "kwargs": task.environment_kwargs,
            "wrappers": task.wrappers,
            "scenarios": task.config.scenarios,
        },
        holdout_scenarios=(),
        episodes=len(recorded),
        steps=recorded.steps,
        content_digest=content_digest(recorded),
        requested_episodes=len(recorded),
    )


def test_a_dataset_of_dict_observations_is_stored_validated_and_inspected(tmp_path):
    task = odd("dict", "multi_discrete")
    reader = script("multi_discrete")
    recorded = record_episodes(task, reader, task.episodes("train", 1, 30, Purpose.RECORD), 0.2, 1)
    metadata = described(task, recorded)
    save_dataset(tmp_path / "d", recorded, metadata)
    with np.load(tmp_path / "d" / "trajectories.npz", allow_pickle=False) as archive:
        assert {"observations.mode", "observations.on", "observations.where"} <= set(archive.files)
    read, _ = load_dataset(tmp_path / "d")
    assert read.observations.tobytes() == recorded.observations.tobytes()
    assert read.select([3, 1]).episode(0).observations.tobytes() == recorded.episode(3).observations.tobytes()
    context = Context(
        task=task.config, observation_space=task.observation_space, action_space=task.action_space,
        replay=TaskReplay(task), replay_episodes=30, act=readings,
    )  # fmt: skip
    report = validate_dataset(tmp_path / "d", context)
    assert report.passed, report.summary()
    assert {outcome.rule: outcome.state for outcome in report.rules}["replay"] == "passed"
    assert {outcome.rule: outcome.state for outcome in report.rules}["labels"] == "passed"
    features = inspect_dataset(read, metadata).features
    assert [features[0].min, features[0].max, features[0].high] == [0.0, 2.0, 2.0]
    assert features[3].mean == pytest.approx(read.observations["where"][:, 0].mean())


def test_dict_observations_are_not_exported_to_minari(tmp_path):
    task = odd("dict", "discrete")
    recorded = record_episodes(task, script("discrete"), task.episodes("train", 1, 3, Purpose.RECORD), 0.2, 1)
    with pytest.raises(BadInput, match="FlattenObservation"):
        export_minari(recorded, described(task, recorded), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("field", "value", "rule", "named"),
    [
        ("where", np.nan, "observations_finite", "observations.where[0] is nan"),
        ("mode", 7, "observations_in_space", "observations.mode is outside its space"),
        ("where", 5.0, "replay", "observation[where[0]] at step 0"),
    ],
)
def test_a_fault_in_a_part_of_a_dict_is_found_by_name(field, value, rule, named):
    task = odd("dict", "discrete")
    recorded = record_episodes(task, script("discrete"), task.episodes("train", 1, 30, Purpose.RECORD), 0.2, 1)
    observations = recorded.observations.copy()
    if field == "where":
        observations["where"][0, 0] = value
    else:
        observations[field][0] = value
    broken = replace(recorded, observations=observations)
    context = Context(task=task.config, replay=TaskReplay(task), replay_episodes=30)
    report = validate_dataset((broken, described(task, broken)), context)
    (finding,) = [found for found in report.findings if found.rule == rule]
    assert named in finding.message


def test_structured_rows_are_the_mapping_again_and_flatten_by_name():
    task = odd()
    recorded = record_episodes(task, script("discrete"), task.episodes("train", 1, 3, Purpose.RECORD), 0.0, 1)
    seen = from_rows(recorded.observations)
    assert set(seen) == {"mode", "on", "where"}
    flat = flat_rows(recorded.observations)
    assert task.feature_names == ("mode", "on[0]", "on[1]", "where[0]", "where[1]")
    assert np.array_equal(flat[:, 0], seen["mode"])
    assert np.array_equal(flat[:, 3:], seen["where"])
    assert np.array_equal(flat[:, 1] + flat[:, 2], seen["mode"])  # by hand: `on` counts up to it


# --- what is not taken -----------------------------------------------------------------------------------------------

BOX = spaces.Box(0.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Tuple([BOX, BOX]), "Tuple"),
        (spaces.Text(4), "Text"),
        (spaces.Graph(BOX, None), "Graph"),
        (spaces.Sequence(BOX), "Sequence"),
        (spaces.Dict({"a": spaces.Dict({"b": BOX})}), "'a' is Dict"),
        (spaces.Dict({"a b": BOX}), "'a b'"),
        (spaces.Dict({"items": BOX}), "'items' is a word of torch.nn.Module's own"),
        (spaces.Dict({}), "no key"),
        (spaces.Discrete(3, start=1), "must start at 0"),
        (spaces.MultiDiscrete([[2, 3], [2, 3]]), "more than one axis"),
        (spaces.Box(0.0, 1.0, ()), "no axis"),
        (spaces.Box(0, 255, (3, 7, 7), np.uint8), "at least 36 pixels a side; FlattenObservation"),
        (spaces.Dict({"view": spaces.Box(0, 255, (3, 35, 64), np.uint8)}), "'view' is Box"),
    ],
)
def test_other_observation_spaces_are_refused_by_name(space, named):
    with pytest.raises(BadInput) as caught:
        check_observation_space(space)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Dict({"a": BOX}), "Dict"),
        (spaces.Tuple([BOX]), "Tuple"),
        (spaces.Discrete(3, start=1), "must start at 0"),
        (spaces.Box(0, 5, (2,), np.int64), "use MultiDiscrete"),
        (spaces.MultiBinary([2, 2]), "more than one axis"),
        (spaces.Box(-np.inf, np.inf, (2,)), "pipeline.envs.limits:LimitAction"),
        (spaces.Box(np.float32(0), np.float32(1e30), (2,)), "unbounded"),
        (spaces.Box(0.0, 0.0, (2,)), "empty"),
    ],
)
def test_other_action_spaces_are_refused_by_name(space, named):
    with pytest.raises(BadInput) as caught:
        check_action_space(space)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("space", "scales"),
    [
        (spaces.Box(0, 255, (3,), np.uint8), [127.5] * 3),
        (spaces.Box(-1, 11, (2,), np.int64), [6, 6]),
        (spaces.Box(-101.0, 1.0, (2,)), [51, 51]),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(0, 98, (1,), np.uint16)}), [1, 1, 49]),
        (spaces.Box(0, 10, (2,), np.int64), None),
        (spaces.Box(0, np.iinfo(np.int64).max, (2,), np.int64), None),  # says nothing
        (spaces.Box(-np.inf, 1e9, (2,)), None),
        (spaces.Box(0, 255, (3, 64, 64), np.uint8), None),  # a picture is divided by 255
        (spaces.Dict({"a": spaces.Discrete(500), "b": spaces.MultiDiscrete([900])}), None),  # one-hot
    ],
)
def test_large_numbers_that_would_reach_a_linear_layer_as_they_are_are_scaled_by_their_bounds(space, scales):
    found = scaling_by_bounds(space, spaces.Discrete(2), Network()).observations
    assert (found and found.scale.tolist()) == scales


def test_flattening_makes_a_nested_dict_one_box():
    with pytest.raises(BadInput, match="FlattenObservation"):
        check_observation_space(spaces.Dict({"a": spaces.Dict({"b": BOX})}))
    task = odd("dict")
    config = task_data("dict", "discrete")
    config["environment"]["wrappers"] = [{"name": "FlattenObservation"}]
    flat = Task(validate(TaskConfig, config, "test"))
    assert isinstance(flat.observation_space, spaces.Box)
    assert flat.observation_space.shape == (3 + 2 + 2,)  # one-hot mode, two switches, two numbers
    assert flat.feature_names is None
    assert task.feature_names is not None


@pytest.mark.parametrize("bounds", [(-1.0, np.inf), (1.0, 1.0), (2.0, -2.0), (-3.0, 1.0), ([0.0] * 3, [1.0] * 3)])
def test_bounds_that_are_none_are_refused(bounds):
    inside = LimitAction(Odd("box", "unbounded"), -2.0, 2.0)
    assert inside.action_space == spaces.Box(-2.0, 2.0, (2,), np.float32)
    with pytest.raises(ValueError, match=r"low|broadcast"):
        LimitAction(inside, *bounds)


@pytest.mark.parametrize("acts", ["multi_discrete", "multi_binary"])
def test_the_share_of_random_actions_is_the_one_that_was_asked_for(acts):
    task = odd("box", acts)
    recorded = record_episodes(task, script(acts), task.episodes("train", 1, 300, Purpose.RECORD), 0.5, 1)
    other = (recorded.actions != recorded.executed_actions).any(axis=1).mean()
    choices = 6 if acts == "multi_discrete" else 4
    # half are drawn at random, and one in so many draws is the label itself; four standard errors of 1800 steps
    assert other == pytest.approx(0.5 * (1 - 1 / choices), abs=0.047)
