"""A training is exact about when it evaluates, what it keeps, when it converged, and gives the same bits twice."""

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter
from stable_baselines3 import PPO

from pipeline.config.base import Bound
from pipeline.config.loading import validate
from pipeline.config.stages import TrainExpert
from pipeline.config.task import MeasureInfo
from pipeline.config.training import (
    OWNED_ARGUMENTS,
    AdversarialTraining,
    Convergence,
    EvaluationSchedule,
    LearningRate,
    PPOTraining,
)
from pipeline.errors import BadInput
from pipeline.learning.arms import expert_jobs
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.ppo import check_job, fresh_policy, learning_rate_schedule
from pipeline.learning.schedule import (
    converged_at,
    evaluation_episodes,
    final_episodes,
    next_evaluation,
    select_figure,
)
from pipeline.learning.train import train
from pipeline.play.evaluation import point_figures, run_episodes
from pipeline.policies import act_function, build_policy, load_policy, policy_digest, scaling_of, weights_digest
from pipeline.policies.networks import policy_arguments
from pipeline.stages.train_expert import best_result
from pipeline.tasks import Purpose, Task
from pipeline.tracking.content_key import training_key


def ignore(event):
    pass


@pytest.fixture(scope="module")
def trained(cartpole, make_training, tmp_path_factory):
    events = []
    job = TrainingJob(cartpole, make_training(), 5, str(tmp_path_factory.mktemp("run")), final_episodes=7)
    return job, train(job, events.append), events


def test_evaluations_start_at_zero_and_stand_at_the_rollout_boundaries_after_the_schedule(trained):
    _, result, _ = trained
    # boundaries are multiples of 256, evaluations are due at 0, 400, 800 (after 512: 800) and at the end
    assert [point.timestep for point in result.evaluations] == [0, 512, 1024]
    assert result.environment_steps == 1024  # whole rollouts until the 1000 asked for are reached


def test_the_first_point_is_the_untrained_policy_of_the_seed(trained):
    job, result, _ = trained
    task = Task(job.task)
    policy = build_policy(task.observation_space, task.action_space, job.training.network, job.seed)
    episodes = evaluation_episodes(task, "train", job.training.evaluation)
    fresh = run_episodes(task, act_function(policy), episodes)
    assert result.evaluations[0].records.metrics["return"].tolist() == fresh.metrics["return"].tolist()


def test_a_fresh_policy_explores_as_far_as_is_said_and_has_the_same_weights_otherwise(pendulum, make_training):
    usual, narrow = (
        fresh_policy(TrainingJob(pendulum, make_training(initial_action_std=std), 5, ""), Task(pendulum)).state_dict()
        for std in (1.0, 0.125)
    )
    assert usual.pop("log_std").exp().tolist() == [1.0]
    assert narrow.pop("log_std").exp().tolist() == pytest.approx([0.125])
    assert all((usual[name] == narrow[name]).all() for name in usual)


def test_fresh_weights_are_those_of_sb3_with_its_own_initialisation_and_without_it(pendulum, make_training):
    task = Task(pendulum)
    for orthogonal in (True, False):
        job = TrainingJob(pendulum, make_training(orthogonal_init=orthogonal), 5, "")
        arguments = {**policy_arguments(task.observation_space, job.training.network), "ortho_init": orthogonal}
        theirs = PPO("MlpPolicy", "Pendulum-v1", seed=5, policy_kwargs=arguments).policy.state_dict()
        ours = fresh_policy(job, task).state_dict()
        assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_best_and_last_are_kept_and_are_what_was_measured(trained):
    job, result, _ = trained
    task = Task(job.task)
    episodes = evaluation_episodes(task, "train", job.training.evaluation)
    for which, digest, weights, timestep in (
        ("best", result.best_digest, result.best_weights, result.best_timestep),
        ("last", result.last_digest, result.last_weights, result.evaluations[-1].timestep),
    ):
        folder = f"{job.output}/{which}"
        policy = load_policy(folder)
        assert (policy_digest(folder), weights_digest(policy)) == (digest, weights)
        (point,) = [point for point in result.evaluations if point.timestep == timestep]
        again = run_episodes(task, act_function(policy), episodes)
        assert again.metrics["return"].tolist() == point.records.metrics["return"].tolist()
    means = [float(point.records.metrics["return"].mean()) for point in result.evaluations]
    assert result.best_timestep == result.evaluations[int(np.argmax(means))].timestep  # argmax: the first of equals


def test_the_final_episodes_are_fresh_and_played_by_the_best_policy(trained):
    job, result, _ = trained
    task = Task(job.task)
    evaluated = set(evaluation_episodes(task, "train", job.training.evaluation))
    training_seeds = {
        episode.seed
        for stream in task.training_streams("train", 5, 4)
        for episode, _ in zip(stream, range(99), strict=False)
    }
    assert len(result.final.episodes) == 7 and evaluated.isdisjoint(result.final.episodes)
    assert training_seeds.isdisjoint(episode.seed for episode in (*evaluated, *result.final.episodes))
    best = act_function(load_policy(f"{job.output}/best"))
    again = run_episodes(task, best, result.final.episodes)
    assert again.metrics["return"].tolist() == result.final.metrics["return"].tolist()


def test_final_episodes_avoid_those_of_the_schedule_even_when_seeds_collide(cartpole):
    task, schedule = Task(cartpole), EvaluationSchedule(episodes=5)

    class Colliding(Task):
        def episodes(self, scenario_set, seed, count, purpose):
            return super().episodes(scenario_set, 7 if seed == (7, 1) else seed, count, purpose)

    fresh = final_episodes(Colliding(cartpole), "train", schedule, 5)
    assert fresh == task.episodes("train", (7, 2), 5, Purpose.EVALUATE)


def test_sb3s_own_metrics_and_the_evaluations_come_as_events(trained):
    _, result, events = trained
    metrics = [event for event in events if event.kind == "metrics"]
    evaluated = [event.timestep for event in metrics if "eval/success_rate" in event.metrics]
    assert evaluated == [0, 512, 1024]
    sb3 = [event for event in metrics if "time/fps" in event.metrics]
    assert [event.timestep for event in sb3] == [256, 512, 768, 1024]
    names = {name for event in metrics for name in event.metrics}
    assert {"rollout/ep_rew_mean", "train/approx_kl", "train/learning_rate", "eval/return_mean_ci_low"} <= names
    updates = [event.metrics["train/n_updates"] for event in metrics if "train/n_updates" in event.metrics]
    assert updates == [2, 4, 6, 8]  # the last update is reported too
    final = point_figures(result.evaluations[-1].records)
    assert metrics[-2].metrics["eval/return_mean"] == final["return_mean"]


def test_the_bill_counts_every_step_of_training_and_evaluation(trained):
    _, result, _ = trained
    played = sum(int(point.records.metrics["length"].sum()) for point in result.evaluations)
    assert result.evaluation_steps == played + int(result.final.metrics["length"].sum())
    assert result.wall_seconds.total > result.wall_seconds.evaluation > 0
    assert result.gradient_steps == 4 * 2 * 4  # rollouts of 256, each learnt from twice in batches of 64


def test_environments_in_processes_of_their_own_change_no_bit(trained, tmp_path):
    job, result, _ = trained
    again = train(replace(job, task=replace(job.task, environment_workers=2), output=str(tmp_path)), ignore)
    assert (again.last_weights, again.best_weights) == (result.last_weights, result.best_weights)
    assert (again.final.metrics["return"] == result.final.metrics["return"]).all()


def test_the_same_job_twice_gives_the_same_bits_and_another_seed_others(trained, tmp_path):
    job, result, _ = trained
    again = train(replace(job, output=str(tmp_path / "again")), ignore)
    other = train(replace(job, seed=6, output=str(tmp_path / "other")), ignore)
    assert (again.last_digest, again.best_digest) == (result.last_digest, result.best_digest)
    assert other.last_weights != result.last_weights


def test_no_weight_changes_at_learning_rate_zero(trained, tmp_path):
    job, result, _ = trained
    control = train(replace(job, output=str(tmp_path), learning_rate_zero=True, total_timesteps=300), ignore)
    space = Task(job.task)
    start = build_policy(space.observation_space, space.action_space, job.training.network, job.seed)
    assert control.last_weights == weights_digest(start) != result.last_weights
    assert control.environment_steps == 512
    assert control.best_timestep == 0  # equal evaluations: the earlier one


def test_training_ends_at_the_measured_convergence(cartpole, make_training, tmp_path):
    solved = replace(cartpole, thresholds={"return_mean": Bound(min=1.0)})
    job = TrainingJob(solved, make_training(), 1, str(tmp_path), Convergence(patience=2), final_episodes=2)
    result = train(job, ignore)
    assert (result.converged_at, result.environment_steps) == (0, 512)
    assert [point.timestep for point in result.evaluations] == [0, 512]
    patient = train(replace(job, convergence=Convergence(patience=2, stop=False)), ignore)
    assert (patient.converged_at, patient.environment_steps) == (0, 1024)
    assert train(replace(job, convergence=Convergence(patience=9)), ignore).converged_at is None


def test_rewards_are_normalised_for_learning_and_raw_in_the_figures(pendulum, make_training, tmp_path):
    events = []
    job = TrainingJob(pendulum, make_training(normalize_reward=True), 1, str(tmp_path), final_episodes=2)
    result = train(job, events.append)
    losses = [e.metrics["train/value_loss"] for e in events if "train/value_loss" in e.metrics]
    returns = [e.metrics["rollout/ep_rew_mean"] for e in events if "rollout/ep_rew_mean" in e.metrics]
    raw = train(replace(job, training=make_training()), ignore)
    assert max(losses) < 20 and max(returns) < -100
    assert (
        result.evaluations[0].records.metrics["return"].tolist()
        == raw.evaluations[0].records.metrics["return"].tolist()
    )
    assert result.last_weights != raw.last_weights


# --- pure parts


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([0.95, 0.95, 0.95], 3, 0),
        ([0.2, 0.9, 0.8, 0.9, 0.95], 2, 30),
        ([0.2, 0.9, 0.8, 0.9], 2, None),
        ([0.9], 1, 0),
        ([0.8999], 1, None),
        ([0.9, 0.9, float("nan"), 0.9], 3, None),
        ([], 1, None),
        ([0.1, 0.9, 0.9, 0.1], 2, 10),
    ],
)
def test_convergence_is_the_first_of_consecutive_evaluations_that_hold(values, patience, expected):
    evaluations = [(10 * i, {"success_rate": value}) for i, value in enumerate(values)]
    assert converged_at(evaluations, {"success_rate": Bound(min=0.9)}, patience) == expected


def test_every_threshold_must_hold():
    figures = {"success_rate": 0.95, "collision_rate": 0.06}
    thresholds = {"success_rate": Bound(min=0.9), "collision_rate": Bound(max=0.05)}
    assert converged_at([(0, figures)], thresholds, 1) is None
    assert converged_at([(0, {**figures, "collision_rate": 0.05})], thresholds, 1) == 0


def test_evaluations_follow_their_segments():
    schedule = validate(
        EvaluationSchedule, {"segments": [{"every_steps": 10, "until_step": 25}, {"every_steps": 100}]}, "test"
    )
    assert [next_evaluation(schedule, t) for t in (0, 9, 10, 19, 20, 24, 25, 124, 125)] == [
        10, 10, 20, 20, 25, 25, 125, 125, 225,
    ]  # fmt: skip


def test_collisions_discomfort_and_what_the_task_calls_better_lower_are_minimised_and_all_else_maximised(cartpole):
    measured = {"jerk": MeasureInfo(info="jerk", lower_is_better=True), "grace": MeasureInfo(info="grace")}
    task = replace(cartpole, metrics=measured)
    figures = {"return_mean": 3.0, "success_rate": 0.5, "collision_rate": 0.2, "comfort_exposure": 0.1}
    figures |= {"jerk": 0.7, "grace": 0.6}
    expected = {
        "eval_episode_return": 3.0, "success_rate": 0.5, "grace": 0.6,
        "collision_rate": -0.2, "comfort_exposure": -0.1, "jerk": -0.7,
    }  # fmt: skip
    assert {metric: select_figure(figures, metric, task) for metric in expected} == expected
    with pytest.raises(BadInput, match="Did you mean 'success_rate'"):
        select_figure(figures, "sucess_rate", task)


def test_the_best_checkpoint_and_the_best_seed_have_the_least_of_what_is_better_lower(
    make_task, make_training, tmp_path
):
    metrics = {"angle": {"info": "angle", "lower_is_better": True}}
    task = make_task("learning_environments:Angles", horizon=20, metrics=metrics)
    jobs = [TrainingJob(task, make_training(), seed, str(tmp_path / str(seed)), best_metric="angle") for seed in (1, 2)]
    results = [train(job, ignore) for job in jobs]
    for result in results:
        angles = {point.timestep: point_figures(point.records)["angle"] for point in result.evaluations}
        assert len(set(angles.values())) > 1 and result.best_timestep == min(angles, key=angles.get)
    best = best_result(results, "angle", task)
    assert point_figures(best.final)["angle"] == min(point_figures(result.final)["angle"] for result in results)


def test_the_learning_rate_falls_linearly_over_the_budget():
    falling = learning_rate_schedule(LearningRate(initial=1e-3, final=1e-4), 1_000)
    assert [falling(share) for share in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5.5e-4, 1e-4])
    assert falling(-0.1) == pytest.approx(1e-4)  # the last rollout may pass the budget
    assert learning_rate_schedule(LearningRate(initial=2e-4), 1_000)(0.3) == 2e-4


def test_a_learning_rate_that_falls_over_steps_is_the_same_in_a_training_of_any_length():
    rate = LearningRate(initial=1e-3, final=1e-4, over_steps=700)
    short, long = (learning_rate_schedule(rate, budget) for budget in (900, 7_777))
    # SB3 computes the share of the budget that remains in just this way
    rates = [(short(1 - step / 900), long(1 - step / 7_777)) for step in range(901)]
    assert all(one == other for one, other in rates)
    assert [rates[step][0] for step in (0, 350, 700, 900)] == pytest.approx([1e-3, 5.5e-4, 1e-4, 1e-4])
    with pytest.raises(BadInput, match="over_steps = 700 needs final"):
        validate(LearningRate, {"over_steps": 700}, "test")


def test_arguments_of_ppo_are_what_sb3_takes_and_no_setting_of_ours_decides():
    right = {"n_steps": 8, "gamma": 1, "clip_range_vf": None, "target_kl": 0.02, "gae_lambda": 0.9}
    assert validate(PPOTraining, {"ppo": right}, "test").ppo == right
    taken = TypeAdapter(PPOTraining).json_schema()["$defs"]["_PPOArguments"]["properties"]
    assert sorted([*taken, *OWNED_ARGUMENTS, "self"]) == sorted(inspect.signature(PPO.__init__).parameters)
    accepted = []
    for arguments, message in (
        ({"n_step": 8}, "unknown key 'ppo.n_step'. Did you mean 'n_steps'"),
        ({"learning_rate": 1e-3}, "use training.learning_rate"),
        ({"policy_kwargs": {}}, "use training.network"),
        ({"seed": 1}, "use seeds"),
        ({"device": "cuda"}, "use `device` of the task file"),
        ({"use_sde": True}, "is not set here"),
        ({"n_steps": 0}, "ppo.n_steps = 0: .* greater than or equal to 1"),
        ({"n_steps": 1.5}, "ppo.n_steps = 1.5: .* integer"),
        ({"batch_size": True}, "ppo.batch_size = True: .* integer"),
        ({"batch_size": 1}, "ppo.batch_size = 1: .* greater than or equal to 2"),  # else no advantage is normalised
        ({"gamma": 1.1}, "ppo.gamma = 1.1: .* less than or equal to 1"),
        ({"gamma": "high"}, "ppo.gamma = 'high': .* number"),
        ({"ent_coef": -1}, "ppo.ent_coef = -1: .* greater than or equal to 0"),
        ({"max_grad_norm": float("inf")}, "ppo.max_grad_norm = inf: .* finite"),
        ({"clip_range_vf": 0}, "ppo.clip_range_vf = 0: .* greater than 0"),
        ({"vf_coef": None}, "ppo.vf_coef = None: .* number"),
        ({"normalize_advantage": 1}, "ppo.normalize_advantage = 1: .* boolean"),
    ):
        for cls, given in ((PPOTraining, {}), (AdversarialTraining, {"total_timesteps": 100})):
            try:
                accepted.append(validate(cls, {**given, "ppo": arguments}, "test"))
            except BadInput as error:
                assert re.search(message, str(error)), error
    assert accepted == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_metric": "comfort"}, "best_metric 'comfort' is not measured"),
        ({"initial_policy": "somewhere"}, "both an initial policy and warm_start"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_before_the_first_step(
    cartpole, make_training, tmp_path, changes, message
):
    job = replace(TrainingJob(cartpole, make_training(), 1, str(tmp_path)), **changes)
    with pytest.raises(BadInput, match=message):
        train(job, ignore)
    assert not any(tmp_path.iterdir())


def test_an_expert_computes_in_the_units_that_its_config_gives(cartpole, tmp_path):
    given = {"task": "t", "seeds": [1], "scaling": {"observations": {"all": {"offset": 1.0, "scale": 4.0}}}}
    (job,) = expert_jobs(validate(TrainExpert, given, "test"), Task(cartpole), tmp_path)
    policy = fresh_policy(job, Task(cartpole))
    assert scaling_of(policy).observations.scale.tolist() == [4, 4, 4, 4]
    assert training_key(job).ingredients["input"] == {"scaling": job.scaling.digest}


def test_rollouts_of_one_step_are_refused(cartpole, make_training, tmp_path):
    job = TrainingJob(cartpole, make_training(n_envs=1, ppo={"n_steps": 1}), 1, str(tmp_path))
    with pytest.raises(BadInput, match="a rollout needs 2 steps"):
        check_job(job)
