"""Lineage: from any end to the other, over two generations of experts, without shortcuts."""

import json
import shutil
from dataclasses import dataclass

import pytest
from real_things import TASK, Bench

from pipeline import query
from pipeline.errors import BadInput
from pipeline.names import LINEAGE_ROLES, Tag, lineage_run_tag
from pipeline.tracking import lineage, registry
from pipeline.tracking.models import fetch_version, find_policy


@dataclass(frozen=True)
class Generation:
    train: str
    promote: str
    version: str  # walk-expert/1
    collect: str
    dataset: str
    pretrain: str
    finetune: str
    finetune_seed: str
    baseline: str
    compare: str


def tags_of(bench, run_id):
    return bench.client.get_run(run_id).data.tags


def as_run(bench, run_id, tags, status="FINISHED"):
    for key, value in tags.items():
        if value is not None:
            bench.client.set_tag(run_id, key, value)
    return run_id


def generation(bench, number: int, trained_by: str) -> Generation:
    """What the stages leave, from the run that made an expert to the comparison of what was trained from it."""
    registered = bench.candidate(run_id=trained_by, seed=number)
    reference = f"{registered.name}/{registered.version}"
    digest = registered.tags["policy.digest"]
    promote = as_run(
        bench,
        bench.run("promote", verdict="yes"),
        {Tag.LINEAGE_EXPERT: reference, Tag.LINEAGE_EXPERT_DIGEST: digest, lineage_run_tag("candidate"): trained_by},
    )
    registry.approve(bench.client, registered, promote, "good")
    expert = fetch_version(bench.version(registered))
    collect = bench.dataset_run(seed=number)
    as_run(bench, collect, lineage.from_policy(expert, "expert", tags_of(bench, trained_by)))
    as_run(bench, collect, {lineage_run_tag("gate"): promote})
    pretrain = bench.policy_run("pretrain", seed=number)
    as_run(bench, pretrain, lineage.from_dataset(bench.client.get_run(collect)))
    clone = find_policy(bench.client, pretrain, TASK, {})
    inherited = lineage.from_policy(clone, "pretrain", tags_of(bench, pretrain))
    finetune = as_run(bench, bench.run("finetune"), inherited)
    seed = as_run(bench, bench.policy_run("finetune_seed", arm="pretrained", seed=number), inherited)
    as_run(bench, seed, {"mlflow.parentRunId": finetune, Tag.SEED: "1"})
    baseline = bench.run("baseline")
    both = {"finetune": bench.client.get_run(finetune), "baseline": bench.client.get_run(baseline)}
    compare = as_run(bench, bench.run("compare"), lineage.from_runs(both))
    dataset = tags_of(bench, collect)[Tag.DATASET_ID]
    return Generation(trained_by, promote, reference, collect, dataset, pretrain, finetune, seed, baseline, compare)


@pytest.fixture(scope="module")
def family(empty_store, tmp_path_factory):
    """Two generations: the policy that the first one fine-tuned is the second one's expert. Tests only read it."""
    folder = tmp_path_factory.mktemp("family")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        bench = Bench(folder)
        first = generation(bench, 1, bench.policy_run("train_expert", seed=9))
        yield first, generation(bench, 2, first.finetune_seed)


def ids(chain: lineage.Lineage) -> set[str]:
    return {node.run_id for node in chain.nodes}


def test_the_report_leads_back_to_the_expert(family):
    first, _ = family
    chain = query.why(first.compare)
    expected = {
        first.train,
        first.promote,
        first.collect,
        first.pretrain,
        first.finetune,
        first.baseline,
        first.compare,
    }
    assert ids(chain) == expected
    assert chain.start == first.compare
    assert chain.nodes[0].run_id == first.train


def test_the_edges_are_the_nearest_steps_only(family):
    first, _ = family
    assert set(query.why(first.compare).edges) == {
        (first.train, first.promote),
        (first.promote, first.collect),
        (first.collect, first.pretrain),
        (first.pretrain, first.finetune),
        (first.finetune, first.compare),
        (first.baseline, first.compare),
    }


def test_the_expert_leads_to_everything_that_came_from_it(family):
    first, second = family
    found = ids(query.impact(first.train))
    everything = {*vars(first).values(), *vars(second).values()} - {first.version, first.dataset}
    everything -= {second.version, second.dataset, first.baseline, second.baseline}  # from scratch: no expert behind it
    assert found == everything


def test_the_second_generation_leads_back_through_the_first(family):
    first, second = family
    chain = query.why(second.compare)
    assert {first.train, first.collect, first.pretrain, first.finetune_seed, second.collect} <= ids(chain)
    assert second.train == first.finetune_seed
    assert first.compare not in ids(chain)
    assert (first.finetune_seed, second.promote) in chain.edges
    assert (first.collect, second.collect) not in chain.edges


def test_a_version_leads_only_to_what_used_it(family):
    first, second = family
    assert first.collect in ids(query.impact(first.version))
    found = ids(query.impact(second.version))
    assert {second.collect, second.pretrain, second.compare} <= found
    assert not {first.collect, first.pretrain, first.compare} & found


def test_a_version_leads_back_to_its_training_and_its_gate(family):
    first, _ = family
    assert ids(query.why(first.version)) == {first.train, first.promote}
    assert query.why(f"models:/{first.version}") == query.why(first.version)


def test_a_dataset_leads_both_ways(family):
    first, second = family
    chain = query.lineage(first.dataset)
    assert chain.start == first.collect
    assert {first.train, first.promote, first.pretrain, first.compare, second.compare} <= ids(chain)
    assert ids(query.why(first.dataset)) == {first.train, first.promote, first.collect}
    assert first.train not in ids(query.impact(first.dataset))


def test_the_chain_is_the_same_from_either_end(family):
    first, second = family
    from_report, from_expert = query.lineage(second.compare), query.lineage(first.train)
    assert {second.compare, first.train} <= ids(from_report) & ids(from_expert)
    assert ids(query.why(second.compare)) <= ids(from_expert)


def test_a_chain_has_every_run_once_oldest_first_and_edges_forward_in_time(family):
    first, _ = family
    chain = query.lineage(first.collect)
    order = [node.run_id for node in chain.nodes]
    assert len(order) == len(set(order))
    position = {run_id: index for index, run_id in enumerate(order)}
    assert all(position[source] < position[target] for source, target in chain.edges)


def test_a_chain_as_text_marks_what_was_asked_for_and_as_json_holds_all(family):
    first, _ = family
    chain = query.why(first.pretrain)
    lines = chain.to_text().splitlines()
    assert len(lines) == len(chain.nodes)
    (marked,) = [line for line in lines if line.startswith("*")]
    assert first.pretrain in marked
    assert "<- collect" in marked
    data = json.loads(json.dumps(chain.to_json()))
    assert [node["run_id"] for node in data["nodes"]] == [node.run_id for node in chain.nodes]
    assert data["edges"] == [list(edge) for edge in chain.edges]


def test_a_taint_shows_in_the_chain(bench):
    collect = bench.dataset_run(taint="its expert cheated")
    pretrain = as_run(bench, bench.run("pretrain"), lineage.from_dataset(bench.client.get_run(collect)))
    assert "TAINTED: its expert cheated" in query.why(pretrain).to_text()


@pytest.mark.parametrize("reference", ["0" * 32, "walk-expert/9", "walk-9999", "latest", "", "x'y", "swim-expert/1"])
def test_an_unknown_thing_is_refused_and_never_another(bench, reference):
    bench.policy_run()
    for question in (query.lineage, query.why, query.impact):
        with pytest.raises(BadInput, match="lineage of"):
            question(reference)


def test_a_link_to_a_run_that_is_gone_is_refused_by_its_id(bench):
    run_id = bench.policy_run(**{lineage_run_tag("dataset").replace(".", "__"): "f" * 32})
    with pytest.raises(BadInput, match="f" * 32):
        query.why(run_id)


def test_a_loop_in_the_tags_ends(bench):
    one, other = bench.run("pretrain"), bench.run("finetune")
    bench.client.set_tag(one, lineage_run_tag("policy"), other)
    bench.client.set_tag(other, lineage_run_tag("policy"), one)
    assert ids(query.lineage(one)) == {one, other}


def test_every_role_has_a_tag_and_no_other_word_has():
    assert lineage_run_tag("dataset") == "lineage.dataset_run_id"
    assert len({lineage_run_tag(role) for role in LINEAGE_ROLES}) == len(LINEAGE_ROLES)
    with pytest.raises(ValueError, match="'datset'"):
        lineage_run_tag("datset")
