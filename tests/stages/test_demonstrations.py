"""Where demonstrations come from: recorded, imported from Minari, or repaired; all through one validation."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import query
from pipeline.config.loading import load, load_task, to_data
from pipeline.config.stages import Collect
from pipeline.data import content_digest, load_dataset, save_dataset
from pipeline.errors import BadInput
from pipeline.names import Artifact, Metric, Quality, Tag, lineage_run_tag
from pipeline.stages import run_stage
from pipeline.stages.collect import inputs
from pipeline.tracking import references
from pipeline.tracking.content_key import content_key
from pipeline.tracking.datasets import download_dataset, fetch_dataset, fetch_for_training, find_dataset_run
from pipeline.tracking.reuse import find_finished
from pipeline.tracking.runs import search

COLLECT = "configs/smoke/collect.yaml"
VALIDATE = "configs/smoke/validate.yaml"
TASK = "social_nav"


def refusal(stage: str, config: str, upstream: dict, overrides: dict) -> str:
    with pytest.raises(BadInput) as caught:
        run_stage(stage, config, upstream, overrides)
    return str(caught.value)


def collected(client, **overrides: str):
    """Outcome of `collect` and the dataset it left."""
    outcome = run_stage("collect", COLLECT, {}, {key.replace("__", "."): value for key, value in overrides.items()})
    return outcome, fetch_dataset(find_dataset_run(client, outcome.outputs["dataset"], TASK))


def quarantined(client, story) -> str:
    """The story's dataset, refused for being too short; returns its id."""
    assert run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"min_episodes": "100"}).verdict is False
    return story.dataset


def export(story, folder: Path) -> Path:
    query.export_dataset(story.dataset, str(folder))
    return folder


# --- recorded --------------------------------------------------------------------------------------------------------


def test_what_the_approved_expert_showed_is_validated_and_trained_on(story, client):
    stored = fetch_for_training(client, story.dataset, TASK)
    assert (len(stored.trajectories), stored.metadata.demonstrator["kind"]) == (24, "expert")
    tags = client.get_run(story.collect).data.tags
    assert tags[Tag.DATASET_QUALITY] == Quality.VALIDATED
    assert tags[Tag.LINEAGE_EXPERT] == "social_nav-expert/1"


def test_what_a_filter_kept_and_recorded_again_follows_from_the_seeds_that_are_listed(story, client):
    returns = fetch_dataset(client.get_run(story.collect)).trajectories.metrics[Metric.RETURN]
    least = float(returns.min()) + 1e-6  # somewhere an untrained policy does worst, over and over
    _, stored = collected(client, filter__min_return=str(least), seeds="[7, 8]")
    report = validation(client, stored.run_id)
    assert {r["rule"]: r["state"] for r in report["rules"]}["episodes_derived"] == "passed", report["findings"]
    assert stored.metadata.requested_episodes == 24
    assert client.get_run(stored.run_id).data.metrics[Metric.ENVIRONMENT_STEPS] > stored.trajectories.steps


def test_how_many_of_the_episodes_asked_for_a_filter_left_is_said(story, client):
    returns = fetch_dataset(client.get_run(story.collect)).trajectories.metrics[Metric.RETURN]
    most = float(np.quantile(returns, 0.9))  # of five rounds of recording about half of what is asked for is as good
    outcome, stored = collected(client, filter__min_return=str(most))
    kept = len(stored.trajectories)
    assert kept < 24 and f"  warning: {kept} of 24 episodes: the filter dropped the others" in outcome.summary


def test_a_validation_shows_the_dataset_that_it_judged(story, client):
    assert run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"min_episodes": "24"}).verdict is True
    (judged,) = search(client, {Tag.STAGE: "validate"})
    assert [given.dataset.name for given in judged.inputs.dataset_inputs] == [story.dataset]


def test_metadata_that_were_forged_and_sealed_again_are_refused(story, client, tmp_path, monkeypatch):
    """The files agree with each other and with the digest of the arrays, but not with what the store recorded."""
    stored = fetch_dataset(find_dataset_run(client, story.dataset, TASK))
    forged = tmp_path / "forged"
    save_dataset(forged, stored.trajectories, replace(stored.metadata, seeds=(1, 2, 3)))
    for module in ("pipeline.stages.validate", "pipeline.tracking.datasets"):  # the importing one first
        monkeypatch.setattr(f"{module}.download_dataset", lambda run: forged)
    with pytest.raises(BadInput, match="its metadata changed"):
        fetch_for_training(client, story.dataset, TASK)
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {})
    assert "metadata_unchanged" in outcome.summary[0]


def test_metadata_that_somebody_changed_quarantine_the_dataset(story, client, tmp_path, monkeypatch):
    edited = tmp_path / "edited"
    shutil.copytree(download_dataset(client.get_run(story.collect)), edited)
    metadata = json.loads((edited / "metadata.json").read_text())
    (edited / "metadata.json").write_text(json.dumps({**metadata, "noise_std": 0.77}))
    monkeypatch.setattr("pipeline.stages.validate.download_dataset", lambda run: edited)
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {})
    assert outcome.verdict is False and "metadata_unchanged" in outcome.summary[0]
    assert client.get_run(story.collect).data.tags[Tag.DATASET_QUALITY] == Quality.QUARANTINED


@pytest.mark.parametrize("content", ["", "{}", '{"demonstrator": []}', "[1]"])
def test_unreadable_metadata_quarantine_the_dataset_and_leave_it_in_the_list(
    story, client, tmp_path, monkeypatch, content
):
    damaged = tmp_path / "damaged"
    shutil.copytree(download_dataset(client.get_run(story.collect)), damaged)
    (damaged / "metadata.json").write_text(content)
    monkeypatch.setattr("pipeline.stages.validate.download_dataset", lambda run: damaged)

    def downloaded(uri: str, what: str):
        metadata = uri.endswith(Artifact.METADATA)
        return nullcontext(damaged / "metadata.json") if metadata else references.downloaded(uri, what)

    monkeypatch.setattr("pipeline.tracking.runs.downloaded", downloaded)
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {})
    assert outcome.verdict is False
    listed = query.datasets(TASK).iloc[0]
    assert (listed.dataset_id, listed.quality) == (story.dataset, Quality.QUARANTINED)
    assert listed.episodes is None


# --- imported --------------------------------------------------------------------------------------------------------


def test_an_export_to_minari_comes_back_with_the_same_bits_as_an_imported_dataset(story, client, tmp_path):
    ours = fetch_for_training(client, story.dataset, TASK)
    outcome, again = collected(client, minari__path=str(export(story, tmp_path / "minari")))
    assert outcome.verdict is True
    assert content_digest(again.trajectories) == content_digest(ours.trajectories)
    assert again.metadata.demonstrator["kind"] == "imported"
    assert again.metadata.dataset_id != story.dataset
    assert again.metadata.scenario_coverage == ours.metadata.scenario_coverage
    assert fetch_for_training(client, again.metadata.dataset_id, TASK).run_id == again.run_id
    assert "replay" not in {r["rule"] for r in validation(client, again.run_id)["rules"] if r["state"] != "passed"}
    assert client.get_run(again.run_id).data.metrics[Metric.ENVIRONMENT_STEPS] == 0


def test_a_round_trip_through_a_file_does_not_wash_a_dataset_clean(story, client, tmp_path):
    folder = export(story, tmp_path / "minari")
    _, again = collected(client, minari__path=str(folder))
    assert story.collect in {node.run_id for node in query.why(again.run_id).nodes}
    quarantined(client, story)
    assert "was quarantined by run" in client.get_run(again.run_id).data.tags[Tag.TAINT]
    message = refusal("collect", COLLECT, {}, {"minari.path": str(folder)})
    assert f"it was exported from dataset {story.dataset}: it is quarantined" in message


def validation(client, run_id: str) -> dict:
    import json

    from pipeline.tracking.runs import read_text_artifact

    return json.loads(read_text_artifact(client, run_id, Artifact.VALIDATION_JSON))


def test_somebody_elses_minari_dataset_needs_the_scenario_it_belongs_to(story, client, tmp_path):
    import json

    folder = export(story, tmp_path / "minari")
    path = folder / "data" / "metadata.json"
    described = json.loads(path.read_text())
    del described["demonstrations"]
    path.write_text(json.dumps(described))
    message = refusal("collect", COLLECT, {}, {"minari.path": str(folder)})
    assert "say which task and scenario it belongs to" in message
    message = refusal("collect", COLLECT, {}, {"minari.path": str(folder), "minari.scenario": "nowhere"})
    assert "'nowhere'" in message
    # the infos that the task's success is read from are not in the file: missed by name, never counted as 0
    scenario = {"minari.path": str(folder), "minari.scenario": "frontal_approach_low"}
    assert "success.info = 'success', but the info of the environment has no such number" in refusal(
        "collect", COLLECT, {}, scenario
    )


def test_an_import_with_a_fault_is_quarantined_and_kept(story, client, tmp_path):
    import h5py

    folder = export(story, tmp_path / "minari")
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        observations = file["episode_3/observations"]
        observations[1:] = observations[:-1]  # one step late
    outcome, stored = collected(client, minari__path=str(folder))
    assert outcome.verdict is False
    assert "replay" in outcome.summary[0]
    with pytest.raises(BadInput, match="'quarantined'; only a validated dataset can be trained on"):
        fetch_for_training(client, stored.metadata.dataset_id, TASK)
    assert stored.metadata.dataset_id in set(query.datasets().dataset_id)


@pytest.fixture
def swings(tmp_path) -> Path:
    """Somebody's Minari set of 20 Pendulum episodes."""
    import gymnasium as gym
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder, rng = tmp_path / "swings", np.random.default_rng(0)
    folder.mkdir()
    storage = MinariStorage.new(folder / "data", env_spec=gym.spec("Pendulum-v1"), jpeg_encoding=False)
    storage.update_metadata({"dataset_id": "pendulum/swing-v0", "minari_version": "0.5.4"})
    storage.update_episodes(
        EpisodeBuffer(
            observations=rng.uniform(-1, 1, (9, 3)).astype(np.float32),
            actions=rng.uniform(-2, 2, (8, 1)).astype(np.float32),
            rewards=rng.uniform(-2, 0, 8),
            terminations=np.zeros(8, bool),
            truncations=np.arange(8) == 7,
        )
        for _ in range(20)
    )
    return folder


def test_a_set_of_another_environment_is_quarantined_by_name(story, client, tmp_path, swings):
    (tmp_path / "balance.yaml").write_text(
        "name: balance\nenvironment: {id: CartPole-v1}\nsuccess: {return_at_least: 400}\nthresholds: {}\n"
        "scenarios: {default: {}}\nscenario_sets: {train: {default: 1}}\n"
    )
    (tmp_path / "collect.yaml").write_text(
        f"task: {tmp_path}/balance.yaml\nminari: {{path: {swings}, scenario: default}}\n"
    )
    outcome = run_stage("collect", str(tmp_path / "collect.yaml"), {}, {})
    assert outcome.verdict is False
    assert "quarantined by spaces, matches_task; first: spaces" in outcome.summary[0]
    assert "environment.id differs" in str(validation(client, find_run(client, "collect")))
    assert query.datasets("balance").iloc[0].quality == Quality.QUARANTINED


def damaged(story, folder: Path, change) -> Path:
    """The story's dataset as a Minari set in which `change` was done to one episode in five."""
    import h5py

    export(story, folder)
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        for index in range(0, 24, 5):
            change(file[f"episode_{index}"])
    return folder


def a_step_late(episode) -> None:
    labels = episode["infos/label"]
    labels[1:] = labels[:-1]


def executed(episode) -> None:
    episode["infos/label"][:] = episode["actions"][:]


def without_seed(episode) -> None:
    del episode.attrs["seed"]


@pytest.mark.parametrize(
    ("change", "rule"), [(a_step_late, "labels"), (executed, "labels"), (without_seed, "seeds_unique")]
)
def test_what_was_changed_in_an_export_is_told_by_its_digest_and_by_asking_its_expert(
    story, client, tmp_path, change, rule
):
    outcome, stored = collected(client, minari__path=str(damaged(story, tmp_path / "minari", change)))
    assert outcome.verdict is False
    failed = {r["rule"] for r in validation(client, stored.run_id)["rules"] if r["state"] == "failed"}
    assert {"digest", rule} <= failed
    again = run_stage("validate", VALIDATE, {"dataset": stored.metadata.dataset_id}, {})
    assert rule in again.summary[0]


def test_a_quarantined_dataset_is_repaired_by_leaving_episodes_out(story, client):
    quarantined(client, story)
    old = fetch_dataset(client.get_run(story.collect))
    leave = {"repaired.dataset": story.dataset, "repaired.leave_out": "[0, 5]"}
    outcome, new = collected(client, **{key.replace(".", "__"): value for key, value in leave.items()})
    assert outcome.verdict is True and len(new.trajectories) == 22
    assert new.metadata.left_out == tuple(sorted(old.trajectories.seeds[[0, 5]].tolist()))
    assert content_digest(new.trajectories) == content_digest(old.trajectories.select([*range(1, 5), *range(6, 24)]))
    assert new.run.data.tags[lineage_run_tag("repaired")] == story.collect
    again = load(Collect, COLLECT, leave)  # `main` finds what it repaired before
    key = content_key(to_data(again), load_task(again.task), inputs(SimpleNamespace(client=client), again, {}))
    assert find_finished(client, "collect", TASK, key).run.info.run_id == new.run_id
    assert "no episode 99; there are 24" in refusal("collect", COLLECT, {}, {**leave, "repaired.leave_out": "[99]"})
    assert "repaired.leave_out" in refusal("collect", COLLECT, {}, {"repaired.dataset": story.dataset})


def test_a_missing_minari_dataset_is_one_line(story):
    assert "'/nowhere': there is no such file or folder" in refusal("collect", COLLECT, {}, {"minari.path": "/nowhere"})


def test_only_one_source_can_be_given(story):
    message = refusal("collect", COLLECT, {}, {"minari.path": "/x", "repaired.dataset": "a", "repaired.folder": "b"})
    assert "minari and repaired exclude each other" in message


# --- repaired --------------------------------------------------------------------------------------------------------


def test_a_repaired_copy_is_a_dataset_of_its_own_linked_to_the_one_it_repairs(story, client, tmp_path):
    old = quarantined(client, story)
    trajectories, metadata = load_dataset(download_dataset(client.get_run(story.collect)))
    fewer = trajectories.select(np.arange(23))  # the last episode is left out
    coverage = {str(s): int((fewer.scenarios == s).sum()) for s in np.unique(fewer.scenarios)}
    changed = replace(
        metadata, episodes=23, steps=fewer.steps, content_digest=content_digest(fewer), scenario_coverage=coverage
    )
    save_dataset(tmp_path / "repaired", fewer, changed)
    outcome, stored = collected(client, repaired__dataset=old, repaired__folder=str(tmp_path / "repaired"))
    assert outcome.verdict is True, outcome.summary
    assert stored.metadata.left_out == (int(trajectories.seeds[23]),)
    new = client.get_run(stored.run_id).data.tags
    assert new[lineage_run_tag("repaired")] == story.collect
    assert new[Tag.LINEAGE_EXPERT] == "social_nav-expert/1"
    assert stored.metadata.dataset_id != old
    assert stored.metadata.created_at == metadata.created_at
    assert fetch_for_training(client, stored.metadata.dataset_id, TASK)
    assert client.get_run(story.collect).data.tags[Tag.DATASET_QUALITY] == Quality.QUARANTINED
    assert story.collect in {node.run_id for node in query.why(stored.run_id).nodes}
    assert stored.run_id in {node.run_id for node in query.impact(old).nodes}
    # refusing the old one once more says nothing against its repair
    quarantined(client, story)
    assert Tag.TAINT not in client.get_run(stored.run_id).data.tags


def test_a_repair_cannot_give_the_data_another_origin(story, client, tmp_path):
    old = quarantined(client, story)
    trajectories, metadata = load_dataset(download_dataset(client.get_run(story.collect)))
    better = {**metadata.demonstrator, "version": "2"}
    save_dataset(tmp_path / "repaired", trajectories, replace(metadata, demonstrator=better))
    overrides = {"repaired.dataset": old, "repaired.folder": str(tmp_path / "repaired")}
    message = refusal("collect", COLLECT, {}, overrides)
    assert "demonstrator = " in message and "a repair keeps its origin" in message


def test_only_a_quarantined_dataset_is_repaired(story, client):
    folder = str(download_dataset(client.get_run(story.collect)))
    overrides = {"repaired.dataset": story.dataset, "repaired.folder": folder}
    assert "is 'validated'; only a quarantined dataset is repaired" in refusal("collect", COLLECT, {}, overrides)


def test_a_repair_does_not_mend_a_tainted_dataset(story, client):
    quarantined(client, story)
    client.set_tag(story.collect, Tag.TAINT, "its expert cheated")
    overrides = {"repaired.dataset": story.dataset, "repaired.folder": "/x"}
    assert "is tainted: its expert cheated" in refusal("collect", COLLECT, {}, overrides)


def test_a_repair_is_asked_no_less_than_what_it_repairs(story, client, tmp_path):
    old = quarantined(client, story)
    folder = str(download_dataset(client.get_run(story.collect)))
    outcome, _ = collected(client, repaired__dataset=old, repaired__folder=folder, replay_episodes="0")
    assert outcome.verdict is False
    assert "quarantined by no_weaker" in outcome.summary[0]


# --- a quarantine and how it ends ------------------------------------------------------------------------------------


def rotted(story, client, folder: Path) -> Path:
    """The story's dataset with one executed action that is not the one that was executed."""
    trajectories, metadata = load_dataset(download_dataset(client.get_run(story.collect)))
    actions = trajectories.executed_actions.copy()
    actions[100] = trajectories.actions[100]
    changed = replace(trajectories, executed_actions=actions)
    save_dataset(folder, changed, replace(metadata, content_digest=content_digest(changed)))
    return folder


def test_a_quarantine_is_not_lifted_by_a_validation_that_asks_less(story, client, tmp_path, monkeypatch):
    folder = rotted(story, client, tmp_path / "rotted")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.validate.download_dataset", lambda run: folder)
        refused = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {})
        assert refused.verdict is False and "replay" in refused.summary[0]
    for less in ("0", "23"):  # the file was put back, and one of the 24 episodes might still be another
        outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"replay_episodes": less})
        assert outcome.verdict is False and "quarantined by no_weaker" in outcome.summary[0]
        with pytest.raises(BadInput, match="'quarantined'; only a validated dataset"):
            fetch_for_training(client, story.dataset, TASK)
    assert run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"replay_episodes": "24"}).verdict is True
    assert fetch_for_training(client, story.dataset, TASK)


def test_a_dataset_that_was_too_short_is_not_made_long_enough_by_asking_for_less(story, client):
    quarantined(client, story)
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"min_episodes": "24"})
    assert outcome.verdict is False and "min_episodes >= 100" in outcome.summary[0]


def test_a_damaged_report_of_a_validation_lifts_no_quarantine(story, client):
    quarantined(client, story)
    dataset = {"dataset": story.dataset}
    assert run_stage("validate", VALIDATE, dataset, {"min_episodes": "24"}).verdict is False
    (latest, *_) = search(client, {Tag.STAGE: "validate"}, status=None)
    client.log_text(latest.info.run_id, "{", Artifact.VALIDATION_JSON)
    with pytest.raises(BadInput, match=f"run {latest.info.run_id} is damaged.*repair or record"):
        run_stage("validate", VALIDATE, dataset, {"min_episodes": "24"})


# --- another environment than the task's -----------------------------------------------------------------------------


def test_cloning_what_was_recorded_with_other_arguments_says_so(story, client):
    outcome, stored = collected(client, environment__max_speed="0.8")
    assert outcome.verdict is True, outcome.summary
    assert run_stage("validate", VALIDATE, {"dataset": stored.metadata.dataset_id}, {}).verdict is True
    short = {"seeds": "[1]", "cloning.epochs": "1", "final_episodes": "4", "judgement.episodes": "4"}
    clone = run_stage("pretrain", "configs/smoke/pretrain.yaml", {"dataset": stored.metadata.dataset_id}, short)
    line = next(line for line in clone.summary if "environment: max_speed = 0.8, here the default" in line)
    assert "warning" in line and stored.metadata.dataset_id in line
    same = run_stage("pretrain", "configs/smoke/pretrain.yaml", {"dataset": story.dataset}, short)
    assert not any("warning" in line for line in same.summary)


# --- nothing simulated again -----------------------------------------------------------------------------------------


def test_leaving_out_the_simulation_asks_for_alignment_by_the_data_instead(story, client):
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"replay_episodes": "0"})
    assert outcome.verdict is True
    run = find_run(client, "validate")
    states = {rule["rule"]: rule["state"] for rule in validation(client, run)["rules"]}
    assert (states["replay"], states["time_alignment"]) == ("not run", "passed")


def find_run(client, stage: str) -> str:
    return query.runs(stage=stage).iloc[0].run_id


def test_main_goes_from_demonstrations_of_others_though_its_config_would_train_an_expert(story, client, tmp_path):
    given = {"collect.minari.path": str(export(story, tmp_path / "minari")), "ppo_timesteps": "0"}
    assert "leave it out (-P stages.train_expert=null)" in refusal("main", "configs/smoke/main.yaml", {}, given)
    without = {"stages.train_expert": "null", "stages.promote": "null"}
    run_stage("main", "configs/smoke/main.yaml", {}, {**given, **without})
    (cloned,) = search(client, {Tag.STAGE: "pretrain"}, limit=1)
    dataset = fetch_dataset(client.get_run(cloned.data.tags[lineage_run_tag("dataset")]))
    assert dataset.metadata.demonstrator["kind"] == "imported"
