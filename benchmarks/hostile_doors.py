"""Every door through which files and parameters come into the product: undamaged samples, and who reads them how.

A door reads a folder. It returns, or raises BadInput; anything else is a fault. `code` doors may import: a
`module:Name` in a task file, a stage config or a parameter is code that the person who starts the stage asks for, like
a script on the command line. What is recorded or received (datasets, policies, zips, Minari sets, records of runs)
names no code.
"""

import contextlib
import io
import json
import os
import shutil
import types
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import torch
import yaml
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from pipeline.cli import ask, parse, stage_main
from pipeline.config.loading import load, load_task, parse_yaml, to_data, to_yaml, validate
from pipeline.config.stages import STAGE_CONFIGS, Finetune, Scripted, Sweep
from pipeline.config.task import TaskConfig
from pipeline.config.training import Network
from pipeline.data import (
    DatasetMetadata,
    content_digest,
    load_dataset,
    metadata_digest,
    read_metadata,
    save_dataset,
)
from pipeline.data.first_difference import between_evaluations
from pipeline.data.foreign import ImportTarget, take_in
from pipeline.data.formats import read_foreign
from pipeline.data.formats.lerobot import export_lerobot
from pipeline.data.formats.minari import export_minari
from pipeline.data.formats.npz import export_plain_npz
from pipeline.data.spaces import space_to_json
from pipeline.errors import BadInput
from pipeline.learning.checkpoints import CheckpointFolder, to_bytes
from pipeline.names import Artifact, Metric, Tag
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import record_episodes
from pipeline.policies import build_policy, load_policy, policy_digest, read_spec, save_policy
from pipeline.policies.sb3 import as_ppo, import_sb3_zip
from pipeline.policies.sb3_actor import inspect_sb3_zip
from pipeline.policies.transfer import Transfer
from pipeline.report.text import markdown_page
from pipeline.stages import compare
from pipeline.statistics.shift import measure_shift
from pipeline.statistics.snqi import load_baseline, load_weights
from pipeline.sweep.study import made
from pipeline.sweep.trials import trial_plan
from pipeline.tasks import Purpose, Task
from pipeline.tracking import stage_run
from pipeline.tracking.content_key import ContentKey, content_key
from pipeline.tracking.groups import read_evaluations, read_training
from pipeline.tracking.host import git_state
from pipeline.tracking.operations import Batch
from pipeline.tracking.reuse import read_key
from pipeline.tracking.runs import read_config, read_task, read_text_artifact, search
from pipeline.tracking.spool import FILE, Spool
from pipeline.tracking.store import connect, experiment_id
from pipeline.validation.facts import Context
from pipeline.validation.rules import validate as validate_dataset

ROOT = Path(__file__).resolve().parents[1]
OBSERVATIONS, ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)
PENDULUM = {
    "name": "swing",
    "environment": {"id": "Pendulum-v1"},
    "success": {"return_at_least": -100.0},
    "thresholds": {"success_rate": {"min": 0.5}},
    "scenarios": {"normal": {}},
    "scenario_sets": {"train": {"normal": 1.0}},
    "horizon": 6,
}
JOB = "what is trained"
PARTS = {  # of an SB3 zip, by the names of the files that they are damaged as
    "data.json": "data",
    "policy.pth": "policy.pth",
    "optimizer.pth": "policy.optimizer.pth",
    "variables.pth": "pytorch_variables.pth",
}


class Broken(Exception):
    """A door let something through, or said no in the wrong way."""


@dataclass(frozen=True)
class Door:
    """Where something comes in. `samples` are folders; `files` in them are damaged; `weight` is its share of cases."""

    name: str
    read: Callable[[Path], None]
    samples: tuple[Path, ...]
    weight: int
    code: bool = False
    sound: bool = True  # the undamaged sample is taken; otherwise it is refused, for naming what is not there
    seal: Callable[[Path], None] | None = None  # makes digests fit again, as a careful forger would


def doors(root: Path) -> tuple[Door, ...]:
    """All doors, with samples below `root`; the store that MLFLOW_TRACKING_URI names is prepared."""
    store = Store()
    git_state()  # asks git once, and remembers
    return (
        Door("stage config", read_stage_config, stage_configs(root / "stage_config"), 12),
        Door("task file", read_task_file, task_files(root / "task_file"), 12, code=True),
        Door("demonstrator", read_demonstrator, demonstrators(root / "demonstrator"), 4, code=True),
        Door("command line", give_command, commands(root / "command"), 10, code=True, sound=False),
        Door("arguments", parse_arguments, arguments(root / "arguments"), 4),
        Door("question", ask_question, questions(root / "question"), 4, sound=False),
        Door("SNQI files", read_snqi, (snqi_files(root / "snqi" / "0"),), 4),
        Door("sweep", read_sweep, (sweeps(root / "sweep" / "0"),), 6),
        Door("dataset", read_dataset, (dataset(root / "dataset" / "0"),), 12, seal=seal_dataset),
        Door("policy", read_policy, policies(root / "policy"), 10),
        Door("SB3 zip", read_sb3_zip, (sb3_zip(root / "sb3_zip" / "0"),), 12, seal=pack_sb3_zip),
        Door("others' demonstrations", read_others, others(root / "others"), 12),
        Door("Minari set", read_minari, minari_sets(root / "minari"), 10),
        Door("record of a run", store.read_record, (store.record(root / "record" / "0"),), 10),
        Door("checkpoint", read_checkpoint, (checkpoints(root / "checkpoint" / "0"),), 3),
        Door("spool", read_spool, (spool(root / "spool" / "0"),), 3),
    )


def _fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# --- configs and tasks -----------------------------------------------------------------------------------------------


def stage_configs(root: Path) -> tuple[Path, ...]:
    """Every shipped stage config, one a folder."""
    places = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs").glob("*/*.yaml")]
    found = sorted(path for path in places if path.stem in STAGE_CONFIGS)
    for number, path in enumerate(found):
        copy = _fresh(root / str(number)) / path.name
        needed = "env: CartPole-v1\nname: cart_pole\n" if path.stem == "new_task" else ""
        copy.write_text(needed + path.read_text())
        (root / str(number) / "stage").write_text(path.stem)
    return tuple(root / str(number) for number in range(len(found)))


def read_stage_config(folder: Path) -> None:
    stage = (folder / "stage").read_text()
    config = load(STAGE_CONFIGS[stage], folder / f"{stage}.yaml")
    again = validate(type(config), parse_yaml(to_yaml(config), "again"), "again")
    if again != config:
        raise Broken(f"written and read again, {config} is {again}")
    content_key(to_data(config), validate(TaskConfig, PENDULUM, "pendulum"), {})


def task_files(root: Path) -> tuple[Path, ...]:
    every = sorted((ROOT / "configs" / "tasks").glob("*.yaml"))
    # those of benchmarks need packages of their own
    found = [path for path in every if not load_task(path).environment.id.startswith("benchmarks.")]
    for path in found:
        shutil.copy(path, _fresh(root / path.stem) / "task.yaml")
    return tuple(root / path.stem for path in found)


def read_task_file(folder: Path) -> None:
    config = load_task(folder / "task.yaml")
    task = Task(config)
    for name in config.scenario_sets:
        task.episodes(name, 1, 10, Purpose.EVALUATE)
    content_key({}, config, {})
    env = task.make_env(next(iter(config.scenarios)))
    env.reset(seed=1)
    env.close()
    episodes = iter(task.episodes(next(iter(config.scenario_sets)), 1, 3, Purpose.GATE))
    task.make_vec_env([episodes]).close()


def demonstrators(root: Path) -> tuple[Path, ...]:
    for name, data in {
        "planner": {"reference": "social_nav_planners:dynamic_window", "kwargs": {}},
        "trot": {
            "reference": "pipeline.envs.quadruped:diagonal_trot",
            "kwargs": yaml.safe_load((ROOT / "configs/quadruped/collect.yaml").read_text())["scripted"]["kwargs"],
        },
        "lander": {"reference": "pipeline.envs.lunar_lander:heuristic", "kwargs": {}},
    }.items():
        (_fresh(root / name) / "demonstrator.json").write_text(json.dumps(data))
    return tuple(sorted(root.iterdir()))


def _object(path: Path) -> dict[str, Any]:
    """What a test reads of its own file: damaged so far that it is none, it stands for nothing at all."""
    try:
        data = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        raise BadInput("no JSON") from None
    if not isinstance(data, dict):
        raise BadInput("no mapping")
    return data


def read_demonstrator(folder: Path) -> None:
    data = _object(folder / "demonstrator.json")
    chosen = validate(Scripted, {"demonstrator": data.get("reference"), "kwargs": data.get("kwargs")}, "scripted")
    scripted(chosen.demonstrator, chosen.kwargs)


def snqi_files(folder: Path) -> Path:
    _fresh(folder)
    for name in ("weights", "baseline"):
        shutil.copy(ROOT / f"configs/social_nav/snqi_{name}.json", folder / f"{name}.json")
    return folder


def read_snqi(folder: Path) -> None:
    values = load_weights(folder / "weights.json").values()
    spreads = load_baseline(folder / "baseline.json").values()
    if not all(np.isfinite(v) for v in values) or not all(s.p95 > s.med for s in spreads):
        raise Broken("figures that are none")


def sweeps(folder: Path) -> Path:
    data = yaml.safe_load((ROOT / "configs/social_nav/sweep.yaml").read_text())
    (_fresh(folder) / "sweep.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder


def read_sweep(folder: Path) -> None:
    config = load(Sweep, folder / "sweep.yaml")
    trial_plan(config)
    made(config.sampler)
    made(config.pruner)


# --- the command line ------------------------------------------------------------------------------------------------

NOT_THERE = "0" * 32
COMMANDS: dict[str, dict[str, Any]] = {  # each ends at a reference that is not there, before any work
    "promote": {"config": "configs/smoke/promote.yaml", "expert": "latest", "seeds": "[1]", "episodes": 100},
    "collect": {"config": "configs/smoke/collect.yaml", "expert": "models:/social_nav-expert/1", "noise.std": 0.1},
    "validate": {"config": "configs/smoke/validate.yaml", "dataset": "social_nav-00000000", "min_episodes": 2},
    "playback": {"config": "configs/smoke/playback.yaml", "dataset": "latest", "episodes": "[0, 1]"},
    "pretrain": {"config": "configs/smoke/pretrain.yaml", "dataset": NOT_THERE, "cloning.epochs": 1},
    "finetune": {"config": "configs/smoke/finetune.yaml", "policy": NOT_THERE, "group": "a", "seeds": "[1]"},
    "evaluate": {"config": "configs/smoke/evaluate.yaml", "policy": "models:/social_nav-expert@approved", "seed": 3},
    "compare": {"config": "configs/smoke/compare.yaml", "group": "nobody", "patience": 2},
    "reproduce": {"config": "configs/reproduce.yaml", "run": NOT_THERE, "keep": "true"},
    "new_task": {"config": "configs/new_task.yaml", "env": "NoSuch-v0", "name": "nothing", "episodes": 2},
}
UNHARMED = ("seeds", "episodes", "seed", "folder")  # a large number here is much work, and asked for


def commands(root: Path) -> tuple[Path, ...]:
    for stage, given in COMMANDS.items():
        (_fresh(root / stage) / "arguments.json").write_text(json.dumps(given))
        (root / stage / "stage").write_text(stage)
    return tuple(root / stage for stage in COMMANDS)


def _argv(given: dict[str, Any]) -> list[str]:
    return [
        part
        for key, value in given.items()
        for part in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def give_command(folder: Path) -> None:
    """The whole command in this process: its exit code and its lines."""
    stage = (folder / "stage").read_text()
    given = _object(folder / "arguments.json")
    given = {**given, **{key: COMMANDS[stage][key] for key in UNHARMED if key in COMMANDS[stage]}}
    if stage == "new_task":
        given["folder"] = str(folder)
    _as_told(lambda: stage_main(stage, _argv(given)))


QUESTIONS: tuple[dict[str, Any], ...] = (
    {"verb": "why", "reference": NOT_THERE},
    {"verb": "lineage", "reference": "swing-expert/1"},
    {"verb": "impact", "reference": "swing-00000000"},
    {"verb": "datasets", "--task": "swing"},
    {"verb": "policies", "--task": "swing", "--json": None},
    {"verb": "runs", "--task": "swing"},
    {"verb": "export_dataset", "reference": "swing-00000000", "target": "out"},
    {"verb": "export_policy", "reference": "swing-expert@approved", "target": "out.zip"},
    {"verb": "fit_snqi_baseline", "reference": "latest", "target": "out.json"},
)


def questions(root: Path) -> tuple[Path, ...]:
    for number, given in enumerate(QUESTIONS):
        (_fresh(root / str(number)) / "question.json").write_text(json.dumps(given))
    return tuple(root / str(number) for number in range(len(QUESTIONS)))


def ask_question(folder: Path) -> None:
    given = _object(folder / "question.json")
    argv = [str(part) for key, value in given.items() for part in ((key, value) if key.startswith("--") else (value,))]
    _as_told(lambda: ask(argv))


def _as_told(call: Callable[[], int]) -> None:
    """Run a command line. BadInput for exit code 2 with its one line; Broken for anything that is not the contract."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = call()
        except SystemExit as end:  # help was asked for
            code = 0 if end.code in (0, None) else 99
        if stage_run._opened:
            raise Broken("a run is still open")
    lines = errors.getvalue().splitlines()
    if code == 2 and len(lines) == 1 and lines[0].startswith("error: "):
        raise BadInput(lines[0])
    if code not in (0, 1):
        raise Broken(f"code {code} and {len(lines)} lines: {errors.getvalue()[-1500:]}")


def arguments(root: Path) -> tuple[Path, ...]:
    given = ["--config", "c.yaml", "--dataset", "latest", "--training.n_envs", "3", "--group=a", "--seeds=[1, 2]"]
    (_fresh(root / "0") / "argv.json").write_text(json.dumps({"argv": given}))
    return (root / "0",)


def parse_arguments(folder: Path) -> None:
    """Overrides of any name and value: each is understood, and lands where it says or is refused."""
    argv = _object(folder / "argv.json").get("argv")
    given = [str(part) for part in argv] if isinstance(argv, list) else [str(argv)]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _, _, overrides = parse("finetune", given)
    except SystemExit as end:
        if end.code not in (0, None):
            raise
        return  # help was asked for
    load(Finetune, ROOT / "configs/smoke/finetune.yaml", overrides)


# --- data ------------------------------------------------------------------------------------------------------------


def _recorded() -> tuple[Any, DatasetMetadata]:
    task = Task(validate(TaskConfig, PENDULUM, "pendulum"))
    episodes = task.episodes("train", 3, 4, Purpose.RECORD)
    push = record_episodes(task, lambda o: np.full((len(o), 1), 0.1, np.float32), episodes, 0.2, 3, 2)
    metadata = DatasetMetadata(
        dataset_id="swing-0003",
        created_at="2026-01-31T12:00:00Z",
        task="swing",
        scenario_set="train",
        scenario_coverage={"normal": 4},
        requested_shares={"normal": 1.0},
        demonstrator={"kind": "scripted", "name": "push", "version": "1", "digest": "0" * 36},
        seeds=(3,),
        noise_std=0.2,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(task.observation_space),
        action_space=space_to_json(task.action_space),
        environment={"id": "Pendulum-v1", "kwargs": {}, "scenarios": {"normal": {}}},
        holdout_scenarios=(),
        episodes=4,
        steps=push.steps,
        content_digest=content_digest(push),
        horizon=6,
    )
    return push, metadata


def dataset(folder: Path) -> Path:
    save_dataset(folder, *_recorded())
    return folder


def read_dataset(folder: Path) -> None:
    """By the validator, which always answers, and by everybody else, who may say no."""
    report = validate_dataset(folder, Context(min_episodes=2))
    if not json.loads(report.to_json()) or len(markdown_page("validation", report=report)) > 1_000_000:
        raise Broken("no report")
    try:
        load_dataset(folder)
    except BadInput:
        if report.passed:
            raise Broken("validated, and not to be loaded") from None
        raise


def seal_dataset(folder: Path) -> None:
    with contextlib.suppress(Exception):  # damaged too far
        data = read_metadata(folder / "metadata.json")
        (folder / "metadata.json").write_text(json.dumps({**data, "metadata_digest": metadata_digest(data)}))


def policies(root: Path) -> tuple[Path, ...]:
    """Numbers in, and pictures."""
    pictures = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    for name, observed, network in (
        ("numbers", OBSERVATIONS, Network(hidden=(8, 4))),
        ("pictures", pictures, Network(hidden=(4,), image_features=8)),
        ("both", spaces.Dict({"image": pictures, "state": OBSERVATIONS}), Network(hidden=(4,), image_features=8)),
    ):
        save_policy(build_policy(observed, ACTIONS, network, seed=1), root / name, {"run_id": NOT_THERE})
    return tuple(sorted(root.iterdir()))


def read_policy(folder: Path) -> None:
    policy_digest(folder)
    read_spec(folder)
    load_policy(folder)


def sb3_zip(folder: Path) -> Path:
    """The zip with its parts beside it, which are damaged alone and packed in again, and what lies beside a zip."""
    as_ppo(build_policy(OBSERVATIONS, ACTIONS, Network(hidden=(8, 4)), seed=1)).save(_fresh(folder) / "theirs.zip")
    with zipfile.ZipFile(folder / "theirs.zip") as archive:
        for file, part in PARTS.items():
            (folder / file).write_bytes(archive.read(part))
    still = SimpleNamespace(observation_space=OBSERVATIONS, action_space=ACTIONS, num_envs=1, render_mode=None)
    VecNormalize(still).save(str(folder / "vecnormalize.pkl"))
    (folder / "config.yml").write_text("normalize: true\n")
    return folder


def pack_sb3_zip(folder: Path) -> None:
    if any((folder / name).is_symlink() or not (folder / name).is_file() for name in PARTS):
        return  # a link to /dev/zero would be packed for ever
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
            for file, part in PARTS.items():
                archive.write(folder / file, part)
        os.replace(folder / "packed.zip", folder / "theirs.zip")


def read_sb3_zip(folder: Path) -> None:
    inspect_sb3_zip(folder / "theirs.zip")
    import_sb3_zip(folder / "theirs.zip", OBSERVATIONS, ACTIONS)


def others(root: Path) -> tuple[Path, ...]:
    """Demonstrations in the formats of others, each under a name that tells it; videos are decoded by a process."""
    push, metadata = _recorded()
    export_plain_npz(push, _fresh(root / "npz") / "a.npz")
    export_lerobot(push, metadata, root / "lerobot")
    episodes = [push.episode(index) for index in range(len(push))]
    with h5py.File(_fresh(root / "robomimic") / "a.hdf5", "w") as file:
        for number, episode in enumerate(episodes):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["rewards"] = episode.executed_actions, episode.rewards
            demo["obs/state"], demo["next_obs/state"] = episode.observations[:-1], episode.observations[1:]
    table = pa.table(
        {
            "obs": [episode.observations.tolist() for episode in episodes],
            "acts": [episode.executed_actions.tolist() for episode in episodes],
            "rews": [episode.rewards.tolist() for episode in episodes],
            "terminal": [False] * len(episodes),
        }
    )
    stream = _fresh(root / "imitation") / "data.arrow"
    with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return tuple(sorted(root.iterdir()))


def read_others(folder: Path) -> None:
    """By `check`, which finds out the format, and for a task, which has spaces of its own."""
    path = next((file for name in ("a.npz", "a.hdf5") if (file := folder / name).exists()), folder)
    found = read_foreign(path)
    validate_dataset(take_in(found, None), Context(min_episodes=2))
    take_in(found, ImportTarget(Task(validate(TaskConfig, PENDULUM, "pendulum")), "normal"))


def minari_sets(root: Path) -> tuple[Path, ...]:
    export_minari(*_recorded(), _fresh(root) / "ours")
    shutil.copytree(root / "ours", root / "theirs")
    path = root / "theirs" / "data" / "metadata.json"
    data = json.loads(path.read_text())
    del data["demonstrations"]
    path.write_text(json.dumps(data))
    return (root / "ours", root / "theirs")


def read_minari(folder: Path) -> None:
    path = folder / "data" / "metadata.json"
    theirs = (
        path.is_file()
        and not path.is_symlink()
        and path.stat().st_size < 1e6
        and b'"demonstrations"' not in path.read_bytes()
    )
    target = None if not theirs else ImportTarget(Task(validate(TaskConfig, PENDULUM, "pendulum")), "normal")
    trajectories, metadata = take_in(read_foreign(folder, "minari"), target)
    validate_dataset((trajectories, metadata), Context(min_episodes=2))


# --- what the product itself wrote -----------------------------------------------------------------------------------


class Store:
    """A run with every artifact that is read back, in a real store."""

    def __init__(self) -> None:
        self.client = connect()
        tags = {Tag.STAGE: "finetune_seed", Tag.TASK: "social_nav", Tag.ARM: "pretrained", Tag.SEED: "1"}
        created = self.client.create_run(experiment_id(self.client, "hostile"), tags=tags)
        self.client.set_terminated(created.info.run_id)
        self.run = self.client.get_run(created.info.run_id)
        self.artifacts = Path(str(self.run.info.artifact_uri).removeprefix("file://"))

    def record(self, folder: Path) -> Path:
        """What such a run holds."""
        task = load_task(ROOT / "configs/tasks/social_nav.yaml")
        config = load(Finetune, ROOT / "configs/smoke/finetune.yaml")
        figures = {"success_rate": 0.5, "return_mean": -3.25, "return_mean_ci_low": -4.0}
        points = [{"timestep": step, "figures": figures} for step in (0, 128, 256)]
        final = {"scenario": ["a", "b"], "seed": [1, 2], "metrics": {Metric.RETURN: [1.0, 2.0]}}
        rng = np.random.default_rng(0)
        shift = measure_shift(rng.normal(size=(4, 5, 2)), rng.normal(size=(4, 5, 2)), permutations=20)
        policy = build_policy(OBSERVATIONS, ACTIONS, Network(hidden=(4,)), seed=1)
        save_policy(policy, _fresh(folder).parent / "certified", {})
        files = {
            Artifact.CONFIG: to_yaml(config),
            Artifact.TASK: to_yaml(task),
            Artifact.CONTENT_KEY: content_key(to_data(config), task, {}).to_json(),
            Artifact.EVALUATIONS: json.dumps(
                {"seed": 1, "evaluations": points, "final_figures": figures, "final": final}
            ),
            Artifact.CERTIFICATE: Transfer.between(policy, str(folder.parent / "certified"), 0.5, 2, 0.99).to_json(),
            Artifact.SHIFT: json.dumps(asdict(shift)),
            "weights.json": (ROOT / "configs/social_nav/snqi_weights.json").read_text(),
            "baseline.json": (ROOT / "configs/social_nav/snqi_baseline.json").read_text(),
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        self.key = ContentKey(json.loads(files[Artifact.CONTENT_KEY]))
        self.evaluations = json.loads(files[Artifact.EVALUATIONS])
        return folder

    def read_record(self, folder: Path) -> None:
        """Every reader, whatever the others said; the first refusal counts."""
        if self.artifacts.exists():
            shutil.rmtree(self.artifacts)
        (self.artifacts / Artifact.SNQI).mkdir(parents=True)
        for path in folder.iterdir():
            inside = Artifact.SNQI if path.name in ("weights.json", "baseline.json") else ""
            path.rename(self.artifacts / inside / path.name)
        run: Any = types.SimpleNamespace(client=self.client, folder=folder)
        group: Any = types.SimpleNamespace(finetune=self.run)
        readers: tuple[Callable[[], Any], ...] = (
            lambda: read_config(self.client, self.run, Finetune),
            lambda: content_key({}, read_task(self.client, self.run, folder), {}),
            lambda: self._differences(),
            lambda: read_training(self.client, self.run),
            lambda: between_evaluations(read_evaluations(self.client, self.run), self.evaluations),
            lambda: compare._shift(run, group),
            lambda: Transfer.from_json(
                read_text_artifact(self.client, self.run.info.run_id, Artifact.CERTIFICATE) or ""
            ),
        )
        refusals = []
        for reader in readers:
            try:
                reader()
            except BadInput as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def _differences(self) -> None:
        """A key that cannot be read is none: nothing is reused, and nobody is troubled."""
        key = read_key(self.client, self.run)
        if key is not None:
            [difference.sentence() for difference in self.key.differences(key)]
            [difference.sentence() for difference in key.differences(self.key)]
        search(self.client, {Tag.TASK: "social_nav"}, limit=1)


def checkpoints(folder: Path) -> Path:
    kept = CheckpointFolder(folder, JOB)
    for number in (1, 2):
        state = {"number": number, "ended": False, "weights": torch.arange(5.0) + number}
        kept.save(number, to_bytes(state, JOB))
    return folder


def read_checkpoint(folder: Path) -> None:
    """A damaged one is passed over: the one before it, or none, and never other content."""
    found = CheckpointFolder(folder, JOB).newest()
    if found is None:
        raise BadInput("no checkpoint")
    if found["number"] not in (1, 2) or found["weights"].tolist() != [found["number"] + k for k in range(5)]:
        raise Broken(f"checkpoint {found} was never written")


def spool(folder: Path) -> Path:
    kept = Spool(_fresh(folder))
    for _ in range(20):
        kept.append(NOT_THERE, Batch(tags={"a": "x" * 50}))
    kept._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    kept.close()
    for name in (f"{FILE}-wal", f"{FILE}-shm"):
        (folder / name).unlink(missing_ok=True)
    return folder


def read_spool(folder: Path) -> None:
    kept = Spool(folder)
    try:
        kept.waiting()
        kept.refusals()
        for record in kept.next(100):
            kept.files(record)
        kept.append(NOT_THERE, Batch(tags={}))
    finally:
        kept.close()


def damaged_files(door: Door, sample: Path) -> list[str]:
    """Names of the files of a sample that are damaged."""
    if door.name == "Minari set":
        return ["data/metadata.json", "data/main_data.hdf5"]
    if door.name == "others' demonstrations":
        return sorted(str(path.relative_to(sample)) for path in sample.rglob("*") if path.is_file())
    files = [path for path in sample.iterdir() if path.is_file() and path.stat().st_size]  # a lock holds nothing
    return sorted(path.name for path in files if path.name != "stage")
