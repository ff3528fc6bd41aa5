"""Questions to the store as frames: their columns, their filters, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
from real_things import TASK

from pipeline import query
from pipeline.errors import BadInput
from pipeline.names import Gate, Quality
from pipeline.policies import act_function, load_policy
from pipeline.query import CURVE_COLUMNS, DATASET_COLUMNS, POLICY_COLUMNS, RUN_COLUMNS
from pipeline.tracking import references, registry


def test_an_empty_store_gives_empty_frames_with_all_columns(store):
    assert list(query.runs(metrics=["m"]).columns) == [*RUN_COLUMNS, "m"]
    assert list(query.curves([], ["m"]).columns) == list(CURVE_COLUMNS)
    assert list(query.datasets().columns) == list(DATASET_COLUMNS)
    assert list(query.policies().columns) == list(POLICY_COLUMNS)
    assert all(frame.empty for frame in (query.runs(), query.datasets(), query.policies()))


def test_runs_have_their_tags_their_metrics_and_nan_for_what_was_not_measured(bench):
    first = bench.run("pretrain", seed="3", group="g", verdict="yes")
    second = bench.run("finetune_seed", arm="pretrained", group="g", status="FAILED")
    bench.client.log_metric(first, "eval/success_rate", 0.5, step=1)
    bench.client.log_metric(first, "eval/success_rate", 0.75, step=2)
    frame = query.runs(metrics=["eval/success_rate"]).set_index("run_id")
    assert list(frame.index) == [second, first]
    assert frame.loc[first, "eval/success_rate"] == 0.75
    assert pd.isna(frame.loc[second, "eval/success_rate"])
    assert (frame.loc[first, "stage"], frame.loc[first, "seed"], frame.loc[first, "verdict"]) == (
        "pretrain",
        "3",
        "yes",
    )
    assert (frame.loc[second, "status"], frame.loc[second, "arm"]) == ("FAILED", "pretrained")
    assert str(frame["started"].dtype).endswith("UTC]")


def test_filters_of_runs_hold_together(bench):
    wanted = bench.run("finetune_seed", arm="pretrained", group="g")
    bench.run("finetune_seed", arm="pretrained", group="h")
    bench.run("finetune_seed", arm="pretrained_lr0", group="g")
    bench.run("finetune_seed", arm="pretrained", group="g", status="FAILED")
    bench.run("finetune_seed", arm="pretrained", group="g", task="swim")
    frame = query.runs(stage="finetune_seed", task=TASK, group="g", arm="pretrained", status="FINISHED")
    assert list(frame["run_id"]) == [wanted]
    assert len(query.runs(limit=2)) == 2
    for _ in range(3):  # of somebody else, in the same store, and newer
        bench.client.create_run(bench.experiment)
    assert len(query.runs(limit=2)) == 2 and len(query.runs()) == 5


def test_an_unknown_stage_is_refused_with_the_closest_one(store):
    with pytest.raises(BadInput, match=r"stage 'pretrian' is unknown. Did you mean 'pretrain'\?"):
        query.runs(stage="pretrian")


def test_curves_hold_every_point_by_step(bench):
    run_id = bench.run("finetune_seed")
    for step, value in [(20, 2.0), (10, 1.0), (30, 3.0)]:
        bench.client.log_metric(run_id, "m", value, step=step)
    frame = query.curves([run_id], ["m", "never_logged"])
    assert list(frame.columns) == list(CURVE_COLUMNS)
    assert frame.to_dict("list") == {
        "run_id": [run_id] * 3,
        "metric": ["m"] * 3,
        "step": [10, 20, 30],
        "value": [1.0, 2.0, 3.0],
    }


def test_curves_of_an_unknown_run_are_refused(store):
    with pytest.raises(BadInput, match="the store has no such run"):
        query.curves(["0" * 32], ["m"])


def test_datasets_show_quality_size_coverage_and_origin(bench):
    good = bench.dataset_run(seed=1)
    bad = bench.dataset_run(Quality.QUARANTINED, seed=2)
    frame = query.datasets(TASK)
    assert list(frame["run_id"]) == [bad, good]
    assert list(frame["quality"]) == [Quality.QUARANTINED, Quality.VALIDATED]
    row = frame.iloc[1]
    assert (row["dataset_id"], row["episodes"], row["steps"]) == ("walk-0001", 2, 10)
    assert row["coverage"] == {"default": 2}
    assert row["demonstrator"] == "push/1"
    assert query.datasets("swim").empty


def test_policies_show_their_state_in_the_gate(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    gate = bench.run("promote")
    registry.approve(bench.client, first, gate, "all hold")
    frame = query.policies(TASK)
    assert list(frame["version"]) == [2, 1]
    assert list(frame["gate"]) == [Gate.PENDING, Gate.APPROVED]
    assert list(frame["aliases"]) == ["candidate", "approved"]
    assert list(frame["digest"]) == [v.tags["policy.digest"] for v in (second, first)]
    assert (frame.iloc[1]["reason"], frame.iloc[1]["gate_run_id"]) == ("all hold", gate)
    assert query.policies("swim").empty
    assert len(query.policies()) == 2


def test_a_policy_is_verified_and_acts_without_anything_from_the_store_being_run(bench, tmp_path):
    version = bench.candidate()
    model = bench.files_of(version).parents[1]
    (model / "MLmodel").write_text("flavors: {python_function: {loader_module: trap, python_version: 3.11.0}}\n")
    (model / "policy_model.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    observations = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)
    act = query.load_policy("walk-expert/1")
    assert np.array_equal(act(observations), act_function(load_policy(bench.files_of(version)))(observations))
    weights = bench.files_of(version) / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    references._copy.cache_clear()  # as another process has no copy yet
    with pytest.raises(BadInput, match="walk-expert/1: its files changed"):
        query.load_policy("models:/walk-expert/1")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["a'b", 'a"b', "a`b", "' or '1'='1", "a%"])
def test_names_with_quotes_are_refused_in_every_question(store, name):
    for question in (
        lambda: query.runs(task=name),
        lambda: query.runs(group=name),
        lambda: query.runs(arm=name),
        lambda: query.datasets(name),
        lambda: query.policies(name),
    ):
        with pytest.raises(BadInput, match="names hold no quotes"):
            question()


def test_an_unknown_status_is_refused(store):
    for status in ("FINISED", "' or attributes.status = 'FAILED"):
        with pytest.raises(BadInput, match=r"is unknown.*There are: RUNNING, SCHEDULED, FINISHED, FAILED, KILLED"):
            query.runs(status=status)
