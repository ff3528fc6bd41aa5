"""What was spent before the first fine-tuning: all generations that the lineage names, each run once."""

import pytest

from pipeline.names import further_policy_tag
from pipeline.tracking.groups import Group, upfront_cost
from pipeline.tracking.lineage import derived


@pytest.fixture
def spent(bench):
    """`spent(stage, environment steps, evaluation steps, role=run, ...)`: a run that says so."""

    def run(stage: str, steps: int, evaluated: int = 0, **roles: str) -> str:
        run_id = bench.run(stage, **{f"lineage__{role}_run_id": source for role, source in roles.items()})
        for name, value in {"bill/environment_steps": steps, "bill/evaluation_steps": evaluated}.items():
            bench.client.log_metric(run_id, name, value)
        return run_id

    return run


def cost(bench, finetune: str):
    run = bench.client.get_run(finetune)
    return upfront_cost(bench.client, Group("g", {}, finetune=run, baseline=run))


def test_one_generation_is_expert_gate_recording_and_clones(bench, spent):
    expert = spent("train_expert", 1_000, 10)
    gate = spent("promote", 0, 5, candidate=expert)
    dataset = spent("collect", 200, expert=expert, gate=gate)
    clones = spent("pretrain", 30, 3, expert=expert, gate=gate, dataset=dataset)
    told = cost(bench, spent("finetune", 9_999, 999, expert=expert, gate=gate, dataset=dataset, pretrain=clones))
    assert (told.expert_steps, told.demonstration_steps, told.imitation_steps) == (1_000, 200, 30)
    assert (told.evaluation_steps, told.steps) == (10 + 5 + 3, 1_000 + 200 + 30)
    assert {"train_expert", "promote", "collect", "pretrain"} <= set(told.wall_seconds)


def test_the_expert_of_an_earlier_generation_is_on_the_bill_once(bench, spent):
    """The clone of the first demonstrations became the expert of the second ones."""
    first = spent("train_expert", 1_000, 10)
    gate = spent("promote", 0, 5, candidate=first)
    dataset = spent("collect", 200, expert=first, gate=gate)
    clone = spent("pretrain", 0, 3, expert=first, gate=gate, dataset=dataset)
    again = spent("promote", 0, 7, candidate=clone)
    newer = spent("collect", 400, expert=clone, gate=again, dataset=dataset)
    clones = spent("pretrain", 60, 4, expert=clone, gate=again, dataset=newer)
    told = cost(bench, spent("finetune", 9_999, 999, expert=clone, gate=again, dataset=newer, pretrain=clones))
    assert (told.expert_steps, told.demonstration_steps, told.imitation_steps) == (1_000, 200 + 400, 60)
    assert told.evaluation_steps == 10 + 5 + 3 + 7 + 4


def test_a_fine_tuned_policy_that_became_the_expert_costs_what_it_took_with_its_clones_counted_once(bench, spent):
    dataset = spent("collect", 200)
    clones = spent("pretrain", 60, 6, dataset=dataset)
    one = spent("pretrain_seed", 20, 2, dataset=dataset)  # of the three: part of the run above
    bench.client.set_tag(one, "mlflow.parentRunId", clones)
    tuned = spent("finetune_seed", 5_000, 50, dataset=dataset, pretrain=clones, policy=one)
    newer = spent("collect", 400, expert=tuned, gate=spent("promote", 0, 1, candidate=tuned), dataset=dataset)
    newest = spent("pretrain", 0, 3, expert=tuned, dataset=newer)
    told = cost(bench, spent("finetune", 9_999, 999, expert=tuned, dataset=newer, pretrain=newest))
    assert (told.expert_steps, told.demonstration_steps, told.imitation_steps) == (5_000, 600, 60)
    assert told.evaluation_steps == 6 + 50 + 1 + 3


def test_an_imported_expert_costs_what_its_file_says_and_without_that_there_is_no_bill(bench, spent):
    imported = bench.run("promote", policy__digest="0" * 36)
    dataset = spent("collect", 200, expert=imported, gate=imported)
    tuned = spent("finetune", 9_999, expert=imported, gate=imported, dataset=dataset)
    assert cost(bench, tuned) is None
    bench.client.log_metric(imported, "bill/environment_steps", 1_015_808)
    told = cost(bench, tuned)
    assert (told.expert_steps, told.demonstration_steps) == (1_015_808, 200)


def test_what_only_a_further_arm_starts_from_is_not_on_the_bill_and_stays_in_the_lineage(bench, spent):
    dataset, other = spent("collect", 200), spent("collect", 7_000)
    clones, others = spent("pretrain", 60, dataset=dataset), spent("pretrain", 900, dataset=other)
    second = spent("pretrain", 5, dataset=dataset)
    tuned = spent("finetune", 9_999, dataset=dataset, pretrain=clones)
    bench.client.set_tag(tuned, further_policy_tag("arm", others), others)
    bench.client.set_tag(tuned, further_policy_tag("policy", second), second)  # of several datasets: all arms'
    told = cost(bench, tuned)
    assert (told.demonstration_steps, told.imitation_steps) == (200, 60 + 5)
    assert {run.info.run_id for run in derived(bench.client, other)} == {other, others, tuned}
