"""Every stage, alone and in `main`: how it ends, and what it leaves."""

import json
from urllib.parse import quote, unquote, urlparse

import numpy as np
import pytest
from project import EXPERIMENT, GROUP, TASK

from pipeline import query
from pipeline.config.loading import load_task, validate
from pipeline.config.stages import STAGE_CONFIGS
from pipeline.data import content_digest, load_dataset
from pipeline.names import ARMS, Alias, Arm, Artifact, Gate, Quality, Tag, VersionTag, lineage_run_tag
from pipeline.policies import load_policy, tensor_digests
from pipeline.tracking.models import download_policy
from pipeline.tracking.runs import read_config, read_text_artifact, search
from pipeline.tracking.store import connect, experiment_id
from pipeline.tracking.views import FINAL

ALONE = (
    "train_expert", "promote", "collect", "validate", "playback", "pretrain", "finetune", "baseline", "evaluate",
    "compare",
)  # fmt: skip
NESTED = ("train_expert", "promote", "collect", "pretrain", "baseline", "finetune", "compare")


def the_run(stage: str, **tags: str):
    (run,) = search(connect(), {Tag.STAGE: stage, **tags}, status=None)
    return run


def seeds_of(stage: str):
    return search(connect(), {Tag.STAGE: f"{stage}_seed"})


def artifact(run, path: str) -> str:
    text = read_text_artifact(connect(), run.info.run_id, path)
    assert text is not None, path
    return text


def paths(run, folder: str | None = None) -> set[str]:
    """All artifacts of a run, files by their whole path."""
    found: set[str] = set()
    for item in connect().list_artifacts(run.info.run_id, folder):
        found |= paths(run, item.path) if item.is_dir else {item.path}
    return found


# --- how they end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ALONE)
def test_a_stage_alone_ends_as_it_should_and_with_a_finished_run_of_its_name(staged, stage):
    ended = staged.ended[stage]
    # there is nothing to imitate in an expert of so short a training
    assert ended.code == (1 if stage == "pretrain" else 0), ended.out + ended.err
    assert "Traceback" not in ended.err
    run = the_run(stage)
    assert run.info.status == "FINISHED"
    assert run.info.experiment_id == experiment_id(connect(), EXPERIMENT)
    assert run.data.tags[Tag.TASK] == TASK
    assert len(run.data.tags[Tag.CONTENT_KEY]) == 36
    assert run.data.tags[Tag.CODE_DIRTY] in ("true", "false")


@pytest.mark.parametrize("stage", ALONE)
def test_the_resolved_config_of_a_stage_is_on_record_whole(staged, stage):
    run = the_run(stage)
    config = read_config(connect(), run, STAGE_CONFIGS[stage])
    assert run.data.params["cfg.task"] == config.task
    assert load_task(config.task).name == TASK
    record = json.loads(artifact(run, Artifact.ENVIRONMENT))
    assert set(record["packages"]) >= {"stable-baselines3", "gymnasium", "mlflow", "torch", "numpy"}
    assert record["git"]["commit"] == run.data.tags[Tag.CODE_COMMIT]


def test_the_last_lines_of_a_stage_say_what_came_out(staged):
    assert "promote: social_nav-expert/1 approved: all 6 checks hold" in staged.ended["promote"].out
    assert "validated: 24 episodes" in staged.ended["collect"].out
    assert "report.html" in staged.ended["compare"].out


# --- what they leave -------------------------------------------------------------------------------------------------


def test_train_expert_leaves_a_candidate_diagnostics_and_both_checkpoints_of_every_seed(staged):
    run = the_run("train_expert")
    assert {Artifact.DIAGNOSTICS_JSON, Artifact.DIAGNOSTICS_MD, Artifact.CONFIG, Artifact.TASK} <= paths(run)
    assert {"policy/policy.safetensors", "policy/policy.json"} <= paths(run)
    diagnosis = json.loads(artifact(run, Artifact.DIAGNOSTICS_JSON))
    assert diagnosis["promotable"] is False  # nobody learns to drive in 4,096 steps
    assert run.data.tags[Tag.PROMOTABLE] == "false"
    assert all(s["missed_by"] > 0 and s["advice"] for s in diagnosis["shortfalls"])
    assert set(diagnosis["converged_at"]) == {"1", "2"}
    for figure in ("success_rate", "collision_rate", "return_mean", "comfort_exposure", "jerk_mean"):
        low, value, high = (run.data.metrics[f"eval/{figure}{end}"] for end in ("_ci_low", "", "_ci_high"))
        assert low <= value <= high
    children = seeds_of("train_expert")
    assert sorted(child.data.tags[Tag.SEED] for child in children) == ["1", "2"]
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
        models = connect().search_logged_models([child.info.experiment_id], f"source_run_id = '{child.info.run_id}'")
        assert {model.name for model in models} == {"best", "last"}
        assert any(metric.key == "eval/success_rate" for model in models for metric in model.metrics)


def test_evaluations_of_a_training_begin_at_step_0_and_stand_at_real_steps(staged):
    for child in seeds_of("train_expert"):
        record = json.loads(artifact(child, Artifact.EVALUATIONS))
        assert [point["timestep"] for point in record["evaluations"]] == [0, 2048, 4096]
        assert child.data.metrics["bill/environment_steps"] == 4096
        curve = query.curves([child.info.run_id], ["eval/success_rate"])
        assert list(curve["step"]) == [0, 2048, 4096]
        assert list(curve["value"]) == [point["figures"]["success_rate"] for point in record["evaluations"]]
        # and of every episode of every evaluation how it ended and its return
        played = {name: np.array(values) for name, values in record["episodes"].items()}
        assert {values.shape for values in played.values()} == {(3, 20)}
        for name, figure in (("success", "success_rate"), ("collision", "collision_rate"), ("return", "return_mean")):
            assert played[name].mean(axis=1) == pytest.approx([p["figures"][figure] for p in record["evaluations"]])
        assert "train/approx_kl" in child.data.metrics  # SB3's own keys, untouched
        assert "time/fps" in child.data.metrics


def test_what_an_adaptive_warm_start_decided_is_on_record_with_its_reasons(staged):
    for child in seeds_of("finetune"):
        decisions = read_text_artifact(connect(), child.info.run_id, Artifact.WARM_START)
        assert (decisions is not None) == (child.data.tags[Tag.ARM] == Arm.PRETRAINED)
        decided = {d["setting"]: d["value"] for d in json.loads(decisions or "[]") if d["reason"]}
        said = {name: value for name, value in child.data.metrics.items() if name.startswith("warm_start/")}
        assert said == {f"warm_start/{setting}": value for setting, value in decided.items()}
        of_step_0 = {d["setting"]: d["value"] for d in json.loads(decisions or "[]") if d["timestep"] == 0}
        begun = [of_step_0.get(setting) for setting in ("clone_penalty", "learning_rate_factor")]
        assert not decisions or begun == pytest.approx([1.0, 0.3])
        assert not decisions or {"initial_action_std/0", "critic_burn_in_steps"} <= set(decided)


def test_the_candidate_is_the_best_seed_and_bound_to_its_bytes(staged):
    run = the_run("train_expert")
    version = connect().get_model_version_by_alias("social_nav-expert", Alias.APPROVED)
    best = {child.data.tags[Tag.SEED]: child for child in seeds_of("train_expert")}[run.data.tags["best_seed"]]
    digests = {
        version.tags[VersionTag.POLICY_DIGEST],
        run.data.tags[Tag.POLICY_DIGEST],
        best.data.tags[Tag.POLICY_DIGEST],
    }
    assert len(digests) == 1
    assert version.run_id == run.info.run_id


def test_promote_moves_the_alias_and_leaves_its_evidence(staged):
    run = the_run("promote")
    version = connect().get_model_version_by_alias("social_nav-expert", Alias.APPROVED)
    assert version.tags[VersionTag.GATE] == Gate.APPROVED
    assert version.tags[VersionTag.GATE_RUN_ID] == run.info.run_id
    evidence = json.loads(artifact(run, Artifact.DIAGNOSTICS_JSON))
    assert evidence["approved"] is True
    # the candidate and both training seeds, on both scenario sets
    rows = {(row["subject"], row["scenario_set"], row["metric"]) for row in evidence["rows"]}
    subjects = ("candidate", "training seed 1", "training seed 2")
    assert rows == {(s, *r) for s in subjects for r in (("train_small", "success_rate"), ("holdout", "collision_rate"))}
    assert all(row["episodes"] >= 100 for row in evidence["rows"])
    assert run.data.tags[Tag.VERDICT] == "yes"
    (film,) = (path for path in paths(run) if path.startswith("images/") and path.endswith("+compressed.webp"))
    assert f"get-artifact?path={quote(film)}&run_uuid={run.info.run_id}" in version.description


def test_collect_leaves_a_validated_dataset_whose_every_claim_holds(staged):
    run = the_run("collect")
    assert {Artifact.TRAJECTORIES, Artifact.METADATA, Artifact.VALIDATION_JSON, Artifact.VALIDATION_MD} <= paths(run)
    assert run.data.tags[Tag.DATASET_QUALITY] == Quality.VALIDATED
    (folder,) = staged.folder.glob(f"mlartifacts/**/{run.info.run_id}/artifacts/dataset")
    trajectories, metadata = load_dataset(folder)
    assert content_digest(trajectories) == metadata.content_digest == run.data.tags[Tag.DATASET_DIGEST]
    assert metadata.dataset_id == run.data.tags[Tag.DATASET_ID]
    assert len(trajectories) == metadata.episodes == len(set(trajectories.seeds.tolist())) == 24
    assert len(trajectories.observations) == trajectories.steps + 24
    # eight scenarios in equal shares, none of them a hold-out
    task = load_task("configs/tasks/social_nav.yaml")
    names, counts = np.unique(trajectories.scenarios, return_counts=True)
    assert set(names) == set(task.scenario_sets["train_small"])
    assert set(counts) == {3}
    assert not set(names) & task.holdout_scenarios()
    # labels are clean, execution is not
    assert np.mean(np.any(trajectories.actions != trajectories.executed_actions, axis=1)) > 0.5
    version = connect().get_model_version_by_alias("social_nav-expert", Alias.APPROVED)
    assert metadata.demonstrator["kind"] == "expert"
    assert (metadata.demonstrator["name"], metadata.demonstrator["version"]) == (version.name, str(version.version))
    assert metadata.demonstrator["digest"] == version.tags[VersionTag.POLICY_DIGEST]
    assert metadata.run_id == run.info.run_id
    (shown,) = run.inputs.dataset_inputs
    assert (shown.dataset.name, shown.dataset.digest) == (metadata.dataset_id, metadata.content_digest)


def test_the_validation_on_demand_agrees_with_that_of_the_recording(staged):
    first, again = (json.loads(artifact(the_run(s), Artifact.VALIDATION_JSON)) for s in ("collect", "validate"))
    assert first["status"] == again["status"] == Quality.VALIDATED


def test_playback_leaves_pictures_of_the_episodes_that_were_asked_for(staged):
    pictures = {path for path in paths(the_run("playback")) if path.startswith(Artifact.PLAYBACK)}
    assert len([path for path in pictures if path.endswith((".gif", ".mp4"))]) == 2


def test_pretrain_leaves_a_certified_policy_curves_and_the_untrained_policy_as_first_point(staged):
    run = the_run("pretrain")
    assert {"policy/policy.safetensors", "policy/policy.json", Artifact.CERTIFICATE} <= paths(run)
    certificate = json.loads(artifact(run, Artifact.CERTIFICATE))
    assert certificate["policy_digest"] == run.data.tags[Tag.POLICY_DIGEST]
    assert certificate["action_distance"] == 0.0
    children = seeds_of("pretrain")
    assert sorted(child.data.tags[Tag.SEED] for child in children) == ["1", "2", "3"]
    assert len({child.data.tags[Tag.POLICY_DIGEST] for child in children}) == 3
    for child in children:
        epochs = {p.step for p in connect().get_metric_history(child.info.run_id, "eval/success_rate")}
        assert {0, 2} <= epochs
        losses = {p.step for p in connect().get_metric_history(child.info.run_id, "bc/train_loss")}
        assert {1, 2} <= losses
    (shown,) = run.inputs.dataset_inputs
    assert shown.dataset.digest == the_run("collect").data.tags[Tag.DATASET_DIGEST]


def test_both_arms_share_every_setting_and_differ_in_their_initial_weights(staged):
    finetune, baseline = the_run("finetune"), the_run("baseline")
    assert finetune.data.tags[Tag.GROUP] == baseline.data.tags[Tag.GROUP] == GROUP
    assert finetune.data.tags[Tag.TRAINING_DIGEST] == baseline.data.tags[Tag.TRAINING_DIGEST]
    arms = {
        (run.data.tags[Tag.ARM], run.data.tags[Tag.SEED]): run for s in ("finetune", "baseline") for run in seeds_of(s)
    }
    expected = {(arm, seed) for arm in vars(Arm).values() if arm in ARMS for seed in ("1", "2", "3")}
    assert set(arms) == expected
    first = {
        key: json.loads(artifact(run, Artifact.EVALUATIONS))["evaluations"][0]["figures"] for key, run in arms.items()
    }
    clones = {run.data.tags[Tag.SEED]: tensor_digests(load_policy(download_policy(run.info.run_id)))
              for run in seeds_of("pretrain")}  # fmt: skip
    for seed in ("1", "2", "3"):
        # a control starts exactly where its arm starts
        assert first[Arm.SCRATCH, seed] == first[Arm.SCRATCH_LR0, seed]
        assert first[Arm.PRETRAINED, seed] == first[Arm.PRETRAINED_LR0, seed]
        # and never leaves it: the clone of its seed (whose spread fine-tuning sets), or a policy that nobody trained
        scratch, warm = (
            tensor_digests(load_policy(download_policy(arms[arm, seed].info.run_id)))
            for arm in (Arm.SCRATCH_LR0, Arm.PRETRAINED_LR0)
        )
        assert warm == {**clones[seed], "log_std": warm["log_std"]}
        assert all(warm[name] != scratch[name] for name in warm if name != "log_std")
        assert arms[Arm.PRETRAINED, seed].data.metrics["transfer/action_distance"] == 0.0
        assert "transfer/tensors" not in arms[Arm.SCRATCH, seed].data.metrics


def test_the_weights_of_a_control_never_change(staged):
    for run in (*seeds_of("finetune"), *seeds_of("baseline")):
        if run.data.tags[Tag.ARM] in (Arm.SCRATCH_LR0, Arm.PRETRAINED_LR0):
            record = json.loads(artifact(run, Artifact.EVALUATIONS))
            figures = [point["figures"] for point in record["evaluations"]]
            assert len(figures) >= 2
            assert all(f == figures[0] for f in figures)


def test_evaluate_leaves_a_table_every_episode_and_the_policy_it_was_given(staged):
    run = the_run("evaluate")
    episodes = json.loads(artifact(run, "episodes.json"))
    assert len(episodes["seed"]) == len(set(episodes["seed"])) == 20
    assert np.mean(episodes["metrics"]["success"]) == pytest.approx(run.data.metrics["eval/success_rate"])
    assert np.mean(episodes["metrics"]["return"]) == pytest.approx(run.data.metrics["eval/return_mean"])
    table, _, bars = artifact(run, "statistics.md").partition("\n| action[0] ")
    out = staged.ended["evaluate"].out
    assert table in out and bars.count("\n") > 40
    assert "action[1] from -1 to 1: " in out and "to 0.1 " not in out
    assert lineage_run_tag("policy") in run.data.tags


def test_no_episode_of_a_recording_an_evaluation_or_the_gate_is_shared(staged):
    (folder,) = staged.folder.glob(f"mlartifacts/**/{the_run('collect').info.run_id}/artifacts/dataset")
    recorded = set(load_dataset(folder)[0].seeds.tolist())
    evaluated = set(json.loads(artifact(the_run("evaluate"), "episodes.json"))["seed"])
    trained = {
        seed
        for run in seeds_of("finetune")
        for seed in json.loads(artifact(run, Artifact.EVALUATIONS))["final"]["seed"]
    }
    assert not recorded & evaluated
    assert not recorded & trained


def test_compare_leaves_one_report_in_three_forms_that_agree(staged):
    run = the_run("compare")
    assert {f"report/report.{kind}" for kind in ("html", "md", "json")} <= paths(run)
    report = json.loads(artifact(run, "report/report.json"))
    text = artifact(run, "report/report.md")
    page = artifact(run, "report/report.html")
    assert run.data.tags[Tag.GROUP] == GROUP
    ratio, metrics = report["comparison"]["ratio"], run.data.metrics
    known = any(
        not pair[arm]["censored"] for pair in report["comparison"]["pairs"] for arm in ("baseline", "pretrained")
    )
    for name, value in {"": ratio["value"], "_ci_low": ratio["low"], "_ci_high": ratio["high"]}.items():
        shown = metrics.get(f"sample_efficiency/ratio{name}")
        assert shown == (pytest.approx(value) if known and value is not None else None)
    assert "http://" not in page.replace("http://www.w3.org", "")  # self-contained: nothing is fetched
    assert "<script src" not in page
    for seed in ("1", "2", "3"):
        assert seed in text


# --- main ------------------------------------------------------------------------------------------------------------


def test_main_runs_every_stage_nested_in_one_run_and_says_where_to_look(whole):
    ended = whole.ended["main"]
    assert ended.code == 0, ended.out + ended.err
    parent = the_run("main")
    assert parent.info.status == "FINISHED"
    for stage in NESTED:
        run = the_run(stage)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags[Tag.GROUP] == GROUP
        assert f"--- {stage}" in ended.out
    assert "report.html" in ended.out
    assert "mlflow ui" in ended.out


def test_the_run_of_main_shows_what_matters_of_its_stages(whole):
    main, compared, gate = the_run("main"), the_run("compare"), the_run("promote")
    shown = {name: compared.data.metrics[name] for name in ("sample_efficiency/ratio_ci_low", "bill/upfront_steps")}
    shown |= {name: value for name, value in gate.data.metrics.items() if name.startswith("gate/candidate/")}
    shown |= {
        name: compared.data.metrics[name]
        for arm in ("scratch", "pretrained")
        for name in (f"final/train_small/success_rate_{arm}", f"final/train_small/success_rate_{arm}_ci_high")
    }
    assert len(shown) == 8 and shown.items() <= main.data.metrics.items()
    for arm, name in FINAL.items():  # columns of a view, whatever the scenarios are called
        assert main.data.metrics[name] == compared.data.metrics[f"final/train_small/success_rate_{arm}"]
    assert main.data.tags[Tag.COMPARISON] == compared.data.tags[Tag.COMPARISON]
    assert main.inputs.dataset_inputs == the_run("collect").inputs.dataset_inputs != []
    about, report = main.data.tags["mlflow.note.content"], f"runs/{compared.info.run_id}/artifacts/report/report.html"
    assert report in about and all(f"[{stage}](" in about for stage in NESTED)
    last = whole.ended["main"].out.partition(f"main: {main.data.tags[Tag.COMPARISON]}: ratio")[2]
    assert all(part in last for part in ("report.html", "lineage", "mlflow ui", "train_expert ", " s, promote "))


def test_everything_that_main_made_lies_in_its_experiment(whole):
    experiment = experiment_id(connect(), EXPERIMENT)
    everything = connect().search_runs([e.experiment_id for e in connect().search_experiments()])
    assert {run.info.experiment_id for run in everything} == {experiment}


@pytest.mark.parametrize("which", ["staged", "whole"])
def test_every_artifact_and_model_lies_beside_its_store(request, which):
    folder = str(request.getfixturevalue(which).folder)
    experiments = [e.experiment_id for e in connect().search_experiments()]
    places = {run.info.artifact_uri for run in connect().search_runs(experiments)}
    places |= {model.artifact_location for model in connect().search_logged_models(experiments)}
    assert len(places) > 20
    assert all(unquote(urlparse(place).path).startswith(folder) for place in places)


# --- the same twice --------------------------------------------------------------------------------------------------


def test_the_same_config_and_seeds_give_the_same_bits_alone_and_inside_main(projects, monkeypatch):
    """Two stores, other processes, another order: every policy and the dataset are equal bit for bit."""
    from project import uri_of

    made = []
    for project in projects:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(project.folder))
        weights = {
            (stage, run.data.tags.get(Tag.ARM), run.data.tags[Tag.SEED]): run.data.tags["policy.weights_digest"]
            for stage in ("train_expert", "baseline", "finetune")
            for run in seeds_of(stage)
        }
        clones = {run.data.tags[Tag.SEED]: run.data.tags[Tag.POLICY_DIGEST] for run in seeds_of("pretrain")}
        made.append((weights, clones, the_run("collect").data.tags[Tag.DATASET_DIGEST]))
    assert made[0] == made[1]
    assert len(made[0][0]) == 2 + 6 + 6
    trained = {key: digest for key, digest in made[0][0].items() if key[1] not in (Arm.SCRATCH_LR0, Arm.PRETRAINED_LR0)}
    assert len(set(trained.values())) > len(trained) // 2  # other seeds, other weights


# --- lineage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["staged", "whole"])
def test_the_report_leads_back_to_the_expert_and_the_expert_to_the_report(request, which):
    request.getfixturevalue(which)
    run_ids = {stage: the_run(stage).info.run_id for stage in NESTED}
    chain = query.why(run_ids["compare"])
    assert {run_ids[stage] for stage in NESTED} <= {node.run_id for node in chain.nodes}
    for source, target in (
        ("train_expert", "promote"),
        ("promote", "collect"),
        ("collect", "pretrain"),
        ("pretrain", "finetune"),
        ("finetune", "compare"),
        ("baseline", "compare"),
    ):
        assert (run_ids[source], run_ids[target]) in chain.edges, (source, target)
    downstream = {node.run_id for node in query.impact("social_nav-expert/1").nodes}
    assert {run_ids[stage] for stage in ("collect", "pretrain", "finetune", "compare")} <= downstream
    assert run_ids["baseline"] not in downstream
    tags = the_run("finetune").data.tags
    assert tags[Tag.LINEAGE_EXPERT] == "social_nav-expert/1"
    assert tags[Tag.LINEAGE_DATASET_DIGEST] == the_run("collect").data.tags[Tag.DATASET_DIGEST]


def test_the_tables_of_the_store_hold_what_was_made(staged):
    (row,) = query.datasets(TASK).to_dict("records")
    assert (row["quality"], row["episodes"]) == (Quality.VALIDATED, 24)
    (row,) = query.policies(TASK).to_dict("records")
    assert (row["version"], row["gate"], row["aliases"]) == (1, Gate.APPROVED, "approved")
    curve = query.curves([seeds_of("baseline")[0].info.run_id], ["eval/success_rate"])
    assert curve["step"].is_monotonic_increasing
    assert validate(STAGE_CONFIGS["collect"], {"task": "t"}, "test").episodes == 200
