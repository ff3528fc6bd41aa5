"""Playback: recorded episodes as pictures and in numbers, of any task that renders."""

import io
import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import query
from pipeline.errors import BadInput
from pipeline.stages import run_stage
from pipeline.tracking.runs import read_text_artifact

PLAYBACK = "configs/smoke/playback.yaml"


def artifacts(client, run_id: str, folder: str) -> dict[str, bytes]:
    files = [item.path for item in client.list_artifacts(run_id, folder) if not item.is_dir]
    return {
        Path(path).name: Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path)).read_bytes()
        for path in files
    }


def shortest(trajectories) -> list[int]:
    """Two episodes that are quick to draw."""
    return np.argsort(trajectories.lengths, kind="stable")[:2].tolist()


def last_run() -> str:
    return query.runs(stage="playback").iloc[0].run_id


def test_episodes_are_shown_as_they_were_recorded_with_their_statistics(story, client):
    stored = query.load_demonstrations(story.dataset).trajectories
    first, second = shortest(stored)
    outcome = run_stage("playback", PLAYBACK, {"dataset": story.dataset}, {"episodes": f"[{first}, {second}]"})
    assert [line.strip() for line in outcome.summary[1:]] == [f"episode {i}: bit-identical" for i in (first, second)]
    run_id = last_run()
    films = artifacts(client, run_id, "playback")
    assert set(films) == {f"episode-{first}.gif", f"episode-{second}.gif"}
    for index in (first, second):
        picture = Image.open(io.BytesIO(films[f"episode-{index}.gif"]))
        assert picture.n_frames == stored.lengths[index] + 1  # the start, and what every action led to
    assert client.get_run(run_id).data.metrics["replay/identical"] == 2
    page = read_text_artifact(client, run_id, "inspection/inspection.md")
    assert "24 episodes" in page
    inspection = json.loads(read_text_artifact(client, run_id, "inspection/inspection.json"))
    returns = next(d for d in inspection["distributions"] if d["name"] == "return")
    assert returns["mean"] == pytest.approx(stored.metrics["return"].mean())
    assert {s["scenario"] for s in inspection["scenarios"]} == set(stored.scenarios.tolist())


def test_h264_is_there_for_who_asks(story, client):
    index, _ = shortest(query.load_demonstrations(story.dataset).trajectories)
    run_stage("playback", PLAYBACK, {"dataset": story.dataset}, {"episodes": f"[{index}]", "video": "mp4"})
    (film,) = artifacts(client, last_run(), "playback").values()
    assert film[4:8] == b"ftyp" and b"avc1" in film


def test_inspection_alone_films_nothing(story, client):
    run_stage("playback", PLAYBACK, {"dataset": story.dataset}, {"inspect_only": "true"})
    assert artifacts(client, last_run(), "playback") == {}
    assert read_text_artifact(client, last_run(), "inspection/inspection.md")


def test_an_episode_that_is_not_there_is_one_line(story):
    with pytest.raises(BadInput, match="episodes: 24 is not in the dataset; it has episodes 0 to 23"):
        run_stage("playback", PLAYBACK, {"dataset": story.dataset}, {"episodes": "[24]"})


def test_a_quarantined_dataset_can_be_looked_at_and_says_what_it_is(story, client):
    run_stage("validate", "configs/smoke/validate.yaml", {"dataset": story.dataset}, {"min_episodes": "99"})
    outcome = run_stage("playback", PLAYBACK, {"dataset": story.dataset}, {"inspect_only": "true"})
    assert "WARNING: the dataset is quarantined" in outcome.summary[1]
    page = read_text_artifact(client, last_run(), "inspection/inspection.md")
    assert page.startswith("> **the dataset is quarantined**")


# --- a task that nobody here knows -----------------------------------------------------------------------------------


@pytest.fixture
def lamp(story, tmp_path, monkeypatch):
    """Configs of a task of its own, whose environment and demonstrator live in this folder."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])

    def configs(cls: str = "Lamp") -> dict[str, str]:
        task = {
            "name": "lamp",
            "environment": {"id": f"blinking_environment:{cls}"},
            "success": {"info": "done_well"},
            "thresholds": {"success_rate": {"min": 0.5}},
            "events": {"switched on": "switched"},
            "scenarios": {"short": {}, "long": {"steps": 20}},
            "scenario_sets": {"train": {"short": 1, "long": 1}},
        }
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
        settings = {
            "collect": {
                "episodes": 20,
                "scripted": {"demonstrator": "blinking_environment:blink"},
                "noise": {"std": 0},
            },
            "playback": {"episodes": [0, 1]},
            "evaluate": {"episodes": 6, "scripted": {"demonstrator": "blinking_environment:blink"}},
        }
        for stage, values in settings.items():
            (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump({"task": str(tmp_path / "task.yaml"), **values}))
        return {stage: str(tmp_path / f"{stage}.yaml") for stage in settings}

    return configs


def test_any_task_that_renders_is_played_back_with_its_events_marked(lamp, client):
    configs = lamp()
    dataset = run_stage("collect", configs["collect"], {}, {})
    assert dataset.verdict is True, dataset.summary
    stored = query.load_demonstrations(dataset.outputs["dataset"]).trajectories
    run_stage("playback", configs["playback"], {}, {})
    films = artifacts(client, last_run(), "playback")
    for index in (0, 1):
        picture = Image.open(io.BytesIO(films[f"episode-{index}.gif"]))
        actions = stored.episode(index).actions
        assert picture.n_frames == len(actions) + 1
        # the environment's own picture: bright exactly where the lamp was on
        brightness = []
        framed = []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
            middle = pixels.shape[1] // 2
            brightness.append(pixels[60, middle].mean() > 150)
            framed.append(((pixels - (179, 64, 26)) ** 2).sum(axis=2)[:100].min() < 900)
        np.testing.assert_array_equal(brightness, [False, *(actions == 1)])
        switched = [False, *((actions == 1) & (np.concatenate([[0], actions[:-1]]) == 0))]
        np.testing.assert_array_equal(framed, switched)


def test_a_task_that_does_not_render_is_replayed_and_told_so(lamp, client):
    configs = lamp("DarkLamp")
    assert run_stage("collect", configs["collect"], {}, {}).verdict is True
    outcome = run_stage("playback", configs["playback"], {}, {})
    assert "no animation: the environment has no render mode rgb_array" in outcome.summary[-1]
    assert "episode 0: bit-identical" in outcome.summary[1]
    assert artifacts(client, last_run(), "playback") == {}


def test_an_evaluation_draws_as_many_of_its_episodes_as_it_is_asked_to(lamp, client):
    assert "drawn" not in "".join(run_stage("evaluate", lamp()["evaluate"], {}, {}).summary)
    outcome = run_stage("evaluate", lamp()["evaluate"], {}, {"pictures": "2"})
    run_id = query.runs(stage="evaluate").iloc[0].run_id
    films = artifacts(client, run_id, "playback")
    assert outcome.summary[-1] == f"  2 drawn: playback/ of run {run_id}"
    assert sorted(films) == ["episode-0.gif", "episode-1.gif"]
    played = json.loads(read_text_artifact(client, run_id, "episodes.json"))["metrics"]
    for index in (0, 1):
        picture = Image.open(io.BytesIO(films[f"episode-{index}.gif"]))
        assert picture.n_frames == played["length"][index] + 1
        brightness = []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
            brightness.append(pixels[60, pixels.shape[1] // 2].mean() > 150)
        assert sum(brightness) == played["return"][index]  # a step is paid where the lamp is lit


def test_a_policy_is_drawn_too_and_what_cannot_be_drawn_is_refused_before_it_is_played(story, lamp, client):
    smoke = {"episodes": "2", "pictures": "1"}
    run_stage("evaluate", "configs/smoke/evaluate.yaml", {"policy": story.pretrain}, smoke)
    assert len(artifacts(client, query.runs(stage="evaluate").iloc[0].run_id, "playback")) == 1
    with pytest.raises(BadInput, match=r"pictures = 2: the environment of task 'lamp' has no render mode rgb_array"):
        run_stage("evaluate", lamp("DarkLamp")["evaluate"], {}, {"pictures": "2"})
    with pytest.raises(BadInput, match="pictures = 7 is more than episodes = 6"):
        run_stage("evaluate", lamp()["evaluate"], {}, {"pictures": "7"})
    with pytest.raises(BadInput, match=r"pictures = 1: an episode of drawn actions .* cannot be played again"):
        run_stage("evaluate", "configs/smoke/evaluate.yaml", {}, {**smoke, "deterministic": "false"})


def test_somebody_elses_minari_dataset_of_any_task_is_described_validated_and_looked_at(lamp, client, tmp_path):
    """Written by Minari itself, not by us: infos, no scenario, no figures of ours."""
    from blinking_environment import Lamp, blink
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    env = Lamp()

    def episode(seed: int) -> EpisodeBuffer:
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards, ends, wells = [observation], [], [], [], []
        while not (ends and ends[-1]):
            actions.append(blink(observations[-1]))
            observation, reward, over, _, info = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            ends.append(over)
            wells.append(info["done_well"])
        return EpisodeBuffer(
            seed=seed,
            observations=np.array(observations),
            actions=np.array(actions),
            rewards=np.array(rewards),
            terminations=np.array(ends),
            truncations=np.zeros(len(ends), bool),
            infos={"done_well": np.array(wells)},
        )

    (tmp_path / "theirs").mkdir()
    storage = MinariStorage.new(
        tmp_path / "theirs" / "data",
        observation_space=env.observation_space,
        action_space=env.action_space,
        data_format="hdf5",
        jpeg_encoding=False,
    )
    storage.update_metadata({"dataset_id": "lamp/human-v0", "minari_version": "0.5.3", "algorithm_name": "hand"})
    storage.update_episodes(episode(seed) for seed in range(25))
    configs = lamp()
    overrides = {"minari.path": str(tmp_path / "theirs"), "minari.scenario": "short"}
    text = Path(configs["collect"]).read_text()
    Path(configs["collect"]).write_text(
        yaml.safe_dump({k: v for k, v in yaml.safe_load(text).items() if k != "scripted"})
    )
    outcome = run_stage("collect", configs["collect"], {}, overrides)
    assert outcome.verdict is True, outcome.summary
    stored = query.load_demonstrations(outcome.outputs["dataset"])
    assert stored.metadata.demonstrator["kind"] == "imported"
    assert stored.metadata.demonstrator["name"] == "lamp/human-v0"
    assert stored.metadata.scenario_coverage == {"short": 25}
    assert sorted(stored.trajectories.seeds.tolist()) == list(range(25))
    played = run_stage("playback", configs["playback"], {}, {})
    assert "episode 0: bit-identical" in played.summary[1]
