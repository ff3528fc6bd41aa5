"""The run of a stage: what is on record of it, however it ends."""

import math
import os
from dataclasses import replace

import pytest
from real_things import TASK, tiny_dataset

from pipeline.config.loading import load, load_task, validate
from pipeline.config.stages import Finetune, Pretrain
from pipeline.config.task import TaskConfig
from pipeline.config.training import ADAPTIVE_WARM_START, SACTraining, WarmStart
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingJob
from pipeline.names import Artifact, Tag
from pipeline.tracking import liveness, stage_run
from pipeline.tracking.content_key import digest_of
from pipeline.tracking.datasets import log_dataset_input
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.groups import find_group
from pipeline.tracking.runs import get_run, latest_run, read_config, read_text_artifact, search, tag_value
from pipeline.tracking.seed_runs import seed_runs, settings_of_arm
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import DEFAULT_EXPERIMENT, connect, experiment_id

NOTE = "mlflow.note.content"


def task_config(name=TASK, **changes) -> TaskConfig:
    data = {
        "name": name,
        "environment": {"id": "Walk-v0"},
        "success": {"info": "reached"},
        "thresholds": {},
        "scenarios": {"a": {}},
        "scenario_sets": {"train": {"a": 1}},
        **changes,
    }
    return validate(TaskConfig, data, "test")


def pretrain_config(**changes) -> Pretrain:
    return validate(Pretrain, {"task": "walk.yaml", **changes}, "test")


# --- how a run ends --------------------------------------------------------------------------------------------------


def test_a_run_that_ends_well_is_finished_and_says_which_code_it_ran(store):
    with open_run("pretrain") as run:
        pass
    ended = run.client.get_run(run.run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags[Tag.STAGE] == "pretrain"
    assert ended.info.run_name == "pretrain"
    assert ended.data.tags[Tag.CODE_DIRTY] in ("true", "false")
    assert ended.data.tags[Tag.CODE_COMMIT]
    assert not run.folder.exists()


def test_bad_input_ends_the_run_failed_with_the_same_line_as_its_description(store):
    with pytest.raises(BadInput) as caught, open_run("pretrain") as run:
        raise BadInput("seeds = 'x': it must be a list of numbers")
    ended = run.client.get_run(run.run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.tags[NOTE] == str(caught.value)


def test_a_fault_of_ours_ends_the_run_failed_with_its_kind_and_text(store):
    with pytest.raises(ZeroDivisionError), open_run("pretrain") as run:
        1 / 0  # noqa: B018
    ended = run.client.get_run(run.run_id)
    assert ended.info.status == "FAILED"
    assert "ZeroDivisionError: 'division by zero'" in ended.data.tags[NOTE]


def test_an_interrupt_ends_the_run_and_says_so(store):
    with pytest.raises(KeyboardInterrupt), open_run("pretrain") as run:
        raise KeyboardInterrupt
    ended = run.client.get_run(run.run_id)
    assert ended.info.status in ("FAILED", "KILLED")
    assert ended.data.tags[NOTE] == "interrupted"


def test_a_refusal_ends_a_closed_run_failed_after_all(store):
    with open_run("promote") as run:
        pass
    run.close("FAILED")
    assert run.client.get_run(run.run_id).info.status == "FAILED"


def test_nested_runs_name_their_parent_and_a_failed_child_fails_it_too(store):
    with pytest.raises(BadInput), open_run("main") as parent, open_run("collect", nested=True) as child:
        raise BadInput("no expert")
    ended = parent.client.get_run(child.run_id)
    assert ended.data.tags["mlflow.parentRunId"] == parent.run_id
    assert (ended.info.status, parent.client.get_run(parent.run_id).info.status) == ("FAILED", "FAILED")
    assert parent.client.get_run(parent.run_id).data.tags[NOTE] == "no expert"


@pytest.mark.parametrize("name", ["my best try", "my-run-3", "big-run-3", "grumpy-cat-x", "a-b-c-4"])
def test_a_name_that_a_person_chose_is_kept(store, monkeypatch, name):
    client = connect()
    created = client.create_run(experiment_id(client, "mine"), run_name=name)
    monkeypatch.setenv("MLFLOW_RUN_ID", created.info.run_id)
    with open_run("pretrain") as run:
        assert run.run_id == created.info.run_id
    kept = client.get_run(run.run_id)
    assert (kept.info.run_name, kept.data.tags["mlflow.runName"]) == (name, name)


def test_a_name_that_mlflow_made_up_gives_way_to_the_stage(store, monkeypatch):
    client = connect()
    for _ in range(20):
        made = client.create_run(experiment_id(client, "mine"))
        assert made.info.run_name.count("-") == 2
        monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
        with open_run("pretrain"):
            pass
        assert client.get_run(made.info.run_id).info.run_name == "pretrain"


# --- what the environment chooses ------------------------------------------------------------------------------------


def test_the_run_of_the_environment_is_taken_once_and_what_is_nested_gets_runs_of_its_own(store, monkeypatch):
    client = connect()
    made = client.create_run(experiment_id(client, "mine"))
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")  # the run says in which experiment it is
    with open_run("main") as parent:
        assert "MLFLOW_RUN_ID" not in os.environ
        with open_run("collect", nested=True) as child:
            pass
    assert (parent.run_id, parent.experiment_id) == (made.info.run_id, made.info.experiment_id)
    assert child.run_id != parent.run_id
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def ended(client, status: str, **tags: str):
    run = client.create_run(experiment_id(client, "mine"), tags=tags)
    client.log_param(run.info.run_id, "of", "somebody")
    client.set_terminated(run.info.run_id, status)
    return run


def test_a_record_that_the_environment_names_is_not_overwritten(store, monkeypatch):
    """Finished, failed, deleted, of another stage, of a living process, or nowhere: one line, and nothing changes."""
    client = connect()
    deleted = ended(client, "KILLED")
    client.delete_run(deleted.info.run_id)
    living = client.create_run("0", tags={Tag.STAGE: "pretrain", **liveness.signs_of_life()})
    cases = {
        ended(client, "FINISHED").info.run_id: "FINISHED",
        ended(client, "FAILED").info.run_id: "FAILED",
        deleted.info.run_id: "was deleted",
        ended(client, "KILLED", **{Tag.STAGE: "collect"}).info.run_id: "of stage 'collect'",
        living.info.run_id: "still works on it",
        "0" * 32: "no such run",
        "' or 1=1": "no such run",
    }
    for run_id, words in cases.items():
        before = None if "no such" in words else client.get_run(run_id).to_dictionary()
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        with pytest.raises(BadInput, match=words) as caught, open_run("pretrain"):
            pass
        assert str(caught.value).startswith("MLFLOW_RUN_ID = ")
        assert "unset it" in str(caught.value)
        assert before is None or client.get_run(run_id).to_dictionary() == before
    assert stage_run._opened == []


def test_a_run_that_was_interrupted_may_be_named_again(store, monkeypatch):
    client = connect()
    killed = ended(client, "KILLED", **{Tag.STAGE: "pretrain"})
    monkeypatch.setenv("MLFLOW_RUN_ID", killed.info.run_id)
    with open_run("pretrain") as run:
        assert run.run_id == killed.info.run_id
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_of_another_store_is_refused_and_no_store_is_made(tmp_path, monkeypatch):
    """`mlflow run <checkout>` from another folder: the stage reads a relative path in the project's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(BadInput, match=r"MLFLOW_RUN_ID = .*MLFLOW_TRACKING_URI.*absolute"), open_run("pretrain"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MLFLOW_EXPERIMENT_ID": "77"}, r"MLFLOW_EXPERIMENT_ID = '77': the store has no such experiment"),
        ({"MLFLOW_EXPERIMENT_ID": "x'y"}, r"MLFLOW_EXPERIMENT_ID = "),
        ({"MLFLOW_EXPERIMENT_ID": "{gone}"}, r"MLFLOW_EXPERIMENT_ID = '\d+': that experiment was deleted"),
        ({"MLFLOW_EXPERIMENT_NAME": "gone"}, r"MLFLOW_EXPERIMENT_NAME = 'gone': that experiment was deleted"),
        ({"MLFLOW_EXPERIMENT_NAME": "x" * 600}, r"MLFLOW_EXPERIMENT_NAME = .*refused by the store"),
        (
            {"MLFLOW_EXPERIMENT_NAME": "here", "MLFLOW_EXPERIMENT_ID": "0"},
            r"MLFLOW_EXPERIMENT_ID = '0'.*MLFLOW_EXPERIMENT_NAME = 'here'",
        ),
    ],
)
def test_an_experiment_of_the_environment_that_cannot_be_is_one_line(store, monkeypatch, variables, words):
    client = connect()
    gone = experiment_id(client, "gone")
    client.delete_experiment(gone)
    experiment_id(client, "here")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("{gone}", gone))
    with pytest.raises(BadInput, match=words), open_run("pretrain"):
        pass


def test_the_environment_chooses_the_experiment_by_name_by_number_or_by_both(store, monkeypatch):
    client = connect()
    here = experiment_id(client, "here")
    for variables, name in (
        ({"NAME": "here", "ID": here}, "here"),
        ({"ID": here}, "here"),
        ({"NAME": "new one"}, "new one"),
        ({"NAME": "", "ID": ""}, DEFAULT_EXPERIMENT),
    ):
        for kind in ("NAME", "ID"):
            monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{kind}", variables.get(kind, ""))
        with open_run("pretrain") as run:
            pass
        experiment = client.get_experiment(run.experiment_id)
        assert experiment.name == name
        assert experiment.artifact_location == (store / "mlartifacts" / name).as_uri()


def test_runs_lie_in_an_experiment_whose_artifacts_are_beside_the_store(store):
    with open_run("pretrain") as run:
        run.text("hello", "note.txt")
    experiment = run.client.get_experiment(run.experiment_id)
    assert experiment.name == DEFAULT_EXPERIMENT
    assert experiment.artifact_location == (store / "mlartifacts" / DEFAULT_EXPERIMENT).as_uri()
    (file,) = store.glob("mlartifacts/**/note.txt")
    assert file.read_text() == "hello"
    assert run.artifact_place("note.txt") == str(file)


def test_a_deleted_experiment_is_not_written_to(store):
    client = connect()
    client.delete_experiment(experiment_id(client, "gone"))
    with pytest.raises(BadInput, match="experiment_name = 'gone': that experiment was deleted"):
        experiment_id(client, "gone")


# --- what is on record -----------------------------------------------------------------------------------------------


def test_the_resolved_config_is_on_record_and_reads_back_equal(store):
    config = pretrain_config(seeds=[5], cloning={"epochs": 3})
    with open_run("pretrain") as run:
        run.record_config(config, task_config(), {"dataset": "d1"})
    recorded = run.client.get_run(run.run_id)
    assert read_config(run.client, recorded, Pretrain) == config
    assert recorded.data.params["cfg.cloning.epochs"] == "3"
    assert recorded.data.params["cfg.network.hidden"] == "[128, 128]"  # a default is on record as well
    assert recorded.data.tags[Tag.TASK] == TASK
    assert all(
        read_text_artifact(run.client, run.run_id, path)
        for path in (Artifact.CONFIG, Artifact.TASK, Artifact.ENVIRONMENT)
    )


def test_every_nested_run_has_the_record_of_its_stage(store, in_repository):
    """The runs of seeds, of clones and of trials: settings, task, its SNQI files, packages, commit and dataset."""
    metadata = tiny_dataset(1)[1]
    task = load_task("configs/tasks/social_nav.yaml")
    training = load(Finetune, "configs/smoke/finetune.yaml").training
    with open_run("pretrain") as run:
        run.record_config(pretrain_config(), task, {"dataset": "d1"})
        log_dataset_input(run, metadata, "0" * 32, "training")
        about = {Tag.STAGE: "finetune_seed", Tag.ARM: "pretrained"}
        with seed_runs(run, [TrainingJob(task, training, 1, str(run.folder))], [about]) as seeds:
            nested = [seeds[0].run.run_id]
        with Forwarder(run) as forwarder:
            child, trial = forwarder.child("pretrain · bc · seed 1", {}), forwarder.child("trial-0", {})
        nested += [child.run_id, trial.run_id]
    files = [Artifact.CONFIG, Artifact.TASK, Artifact.ENVIRONMENT, "snqi/weights.json", "snqi/baseline.json"]
    recorded = [read_text_artifact(run.client, run.run_id, path) for path in files]
    assert all(recorded)
    for run_id in nested:
        assert [read_text_artifact(run.client, run_id, path) for path in files] == recorded
    stage, *children = (run.client.get_run(run_id) for run_id in (run.run_id, *nested))
    for of_seed in children:  # for the UI to group, to compare and to filter by
        assert stage.data.params.items() <= of_seed.data.params.items()
        assert of_seed.inputs.dataset_inputs == stage.inputs.dataset_inputs != []
    assert [of_seed.info.run_name for of_seed in children] == [
        "finetune · pretrained · seed 1", "pretrain · bc · seed 1", "trial-0"
    ]  # fmt: skip
    assert children[0].data.params["seed"] == "1" and children[0].data.params["arm"] == "pretrained"


def test_a_training_shows_what_it_has_to_itself_beside_what_its_stage_asked_for(tmp_path, in_repository):
    training = load(Finetune, "configs/smoke/finetune.yaml").training
    job = TrainingJob(load_task("configs/tasks/social_nav.yaml"), training, 1, str(tmp_path))
    naive, adaptive = validate(WarmStart, {"initial_action_std": None}, "test"), ADAPTIVE_WARM_START
    scratch = settings_of_arm(job)
    assert scratch == {"arm.algorithm": "ppo", "arm.start": "fresh weights", "arm.learning_rate_zero": False}
    begun = replace(job, initial_policy="clone", warm_start=adaptive)
    warm, left = settings_of_arm(begun), settings_of_arm(replace(begun, left_policy="it learnt nothing"))
    assert warm["arm.start"] == "the policy" and left == scratch
    plain = settings_of_arm(replace(begun, warm_start=naive))
    different = {key for key in warm if warm[key] != plain[key]}
    assert {"arm.warm_start.initial_action_std", "arm.warm_start.clone_penalty"} <= different
    assert settings_of_arm(replace(begun, residual=True))["arm.start"] == "a correction of the policy"
    of_sac = settings_of_arm(replace(job, sac=SACTraining(), demonstrations_share=0.5))
    assert (of_sac["arm.algorithm"], of_sac["arm.demonstrations"]) == ("sac", "0.5")
    assert of_sac["arm.sac.batch_size"] == str(SACTraining().batch_size)


def test_equal_work_has_equal_keys_and_any_difference_another(store):
    def digest(config, task, inputs) -> str:
        with open_run("pretrain") as run:
            run.record_config(config, task, inputs)
        return str(run.client.get_run(run.run_id).data.tags[Tag.CONTENT_KEY])

    base = digest(pretrain_config(), task_config(), {"dataset": "d1"})
    assert digest(pretrain_config(), task_config(), {"dataset": "d1"}) == base
    assert digest(pretrain_config(seeds=[1]), task_config(), {"dataset": "d1"}) == base  # a default, written out
    others = [
        digest(pretrain_config(seeds=[2]), task_config(), {"dataset": "d1"}),
        digest(pretrain_config(), task_config(horizon=9), {"dataset": "d1"}),
        digest(pretrain_config(), task_config(), {"dataset": "d2"}),
    ]
    assert len({base, *others}) == 4


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": [1, 2]}) != digest_of({"a": [2, 1]})
    assert len(digest_of({})) == 36


def test_a_record_that_is_gone_or_no_longer_fits_is_refused_by_its_run(store):
    with open_run("pretrain") as run:
        pass
    with pytest.raises(
        BadInput, match=f"run {run.run_id} has no config.yaml: its record is not complete; run that stage again"
    ):
        read_config(run.client, run.client.get_run(run.run_id), Pretrain)
    run.text("task: t\nepoch: 3\n", Artifact.CONFIG)
    with pytest.raises(BadInput, match=f"config.yaml of run {run.run_id}: unknown key 'epoch'"):
        read_config(run.client, run.client.get_run(run.run_id), Pretrain)


def test_a_figure_that_was_not_measured_is_left_out_and_not_0(store):
    with open_run("evaluate") as run:
        run.metrics({"good": 0.5, "nothing": math.nan, "endless": math.inf}, step=3)
        run.metric_series([("curve", 1.0, 1), ("curve", math.nan, 2), ("curve", 3.0, 3)])
    assert run.client.get_run(run.run_id).data.metrics == {"good": 0.5, "curve": 3.0}
    assert [p.step for p in run.client.get_metric_history(run.run_id, "curve")] == [1, 3]


def test_more_metrics_params_and_tags_than_one_request_takes_all_arrive(store):
    with open_run("evaluate") as run:
        run.metric_series([(f"m{i % 50}", float(i), i) for i in range(2_500)])
        run.params({f"p{i}": i for i in range(250)})
    data = run.client.get_run(run.run_id).data
    assert len(data.metrics) == 50
    assert data.params == {f"p{i}": str(i) for i in range(250)}
    assert len(run.client.get_metric_history(run.run_id, "m7")) == 50


def test_a_parameter_longer_than_the_store_takes_is_cut(store):
    with open_run("evaluate") as run:
        run.params({"long": "x" * 20_000})
    assert run.client.get_run(run.run_id).data.params["long"] == "x" * 6_000


def test_yes_and_no_are_written_in_lower_case_and_nothing_is_not_written(store):
    with open_run("evaluate") as run:
        run.tag({"yes": True, "no": False, "number": 3, "nothing": None})
    tags = run.client.get_run(run.run_id).data.tags
    assert (tags["yes"], tags["no"], tags["number"]) == ("true", "false", "3")
    assert "nothing" not in tags


# --- finding runs ----------------------------------------------------------------------------------------------------


def test_search_filters_by_tags_and_status_over_all_experiments_newest_first(bench):
    first = bench.run("pretrain")
    bench.run("collect")
    bench.run("pretrain", status="FAILED")
    bench.experiment = experiment_id(bench.client, "another")
    second = bench.run("pretrain")
    found = search(bench.client, {Tag.STAGE: "pretrain"})
    assert [run.info.run_id for run in found] == [second, first]
    assert len(search(bench.client, {Tag.STAGE: "pretrain"}, status=None)) == 3
    assert [run.info.run_id for run in search(bench.client, {Tag.STAGE: "pretrain"}, limit=1)] == [second]
    assert latest_run(bench.client, "policy", **{Tag.STAGE: "pretrain"}).info.run_id == second


def test_latest_of_nothing_is_refused_with_what_was_looked_for(bench):
    with pytest.raises(BadInput, match="policy 'latest': the store has no finished run with stage = pretrain"):
        latest_run(bench.client, "policy", **{Tag.STAGE: "pretrain"})


def test_an_unknown_run_is_refused(bench):
    bench.run("pretrain")
    for unknown in ("0" * 32, "latest", "", "' or 1=1", "x" * 5_000):
        with pytest.raises(BadInput, match="the store has no such run") as caught:
            get_run(bench.client, unknown, "policy")
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", ["a'b", 'a"b', "a`b", "a\\b", "100%", "a\nb", "\0", "x" * 501])
def test_a_name_that_could_end_its_quotes_is_refused(bench, value):
    with pytest.raises(BadInput, match="names hold no quotes"):
        tag_value(value)
    with pytest.raises(BadInput, match="names hold no quotes"):
        search(bench.client, {Tag.GROUP: value})


def test_an_ordinary_name_passes_as_it_is():
    assert tag_value("my group-1_a.b (second) é") == "my group-1_a.b (second) é"


def test_a_group_whose_trainings_were_deleted_is_refused_by_the_run_that_lacks_them(bench):
    stages = {stage: bench.run(stage, group="g") for stage in ("finetune", "baseline")}
    for stage, arm in (("finetune", "pretrained"), ("baseline", "scratch")):
        seed = bench.run(f"{stage}_seed", group="g", arm=arm, seed="1", mlflow__parentRunId=stages[stage])
        bench.client.delete_run(seed)
    with pytest.raises(BadInput, match=f"baseline run {stages['baseline']} has no trainings of arm 'scratch' any more"):
        find_group(bench.client, "g", TASK)
