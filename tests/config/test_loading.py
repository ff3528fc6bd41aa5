"""Configuration at the door: what goes in comes out, and every fault is one line that a person can act on."""

from pathlib import Path

import pytest

from pipeline.config.loading import MAX_CONFIG_BYTES, flatten, load, load_task, parse_yaml, to_data, to_yaml, validate
from pipeline.config.stages import SHIPPED_ARMS, STAGE_CONFIGS, Collect, Compare, Finetune, Main, Promote, TrainExpert
from pipeline.config.task import TaskConfig
from pipeline.config.training import SACTraining
from pipeline.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
TASK = """
name: walk
environment: {id: Walk-v0, kwargs: {size: 3}}
success: {info: reached}
thresholds: {success_rate: {min: 0.9}}
scenarios: {near: {distance: 1}, far: {distance: 9}}
scenario_sets: {train: {near: 2, far: 1}, holdout: {far: 1}}
"""


def refusal(tmp_path, cls, text, overrides=None) -> str:
    """The one line that a faulty config is refused with."""
    file = tmp_path / "faulty.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        load(cls, file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# --- round trips -----------------------------------------------------------------------------------------------------


def test_a_config_written_as_yaml_reads_back_equal(tmp_path):
    config = validate(
        TrainExpert,
        {
            "task": "walk.yaml",
            "seeds": [4, 5],
            "best_metric": "a: 'quoted' # name",
            "training": {
                "learning_rate": {"initial": 1e-4, "final": 0.0},
                "ppo": {"n_steps": 64, "target_kl": None, "clip_range": 0.1},
                "environment": {"reward_kwargs": {"a": [1, {"b": None}]}},
                "evaluation": {"segments": [{"every_steps": 1, "until_step": 5}, {"every_steps": 2}]},
            },
        },
        "test",
    )
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load(TrainExpert, file) == config
    assert validate(TrainExpert, to_data(config), "test") == config


def test_a_value_used_twice_is_written_out_twice():
    shared = [1, 2]
    config = validate(Collect, {"task": "t", "environment": {"a": shared, "b": shared}}, "test")
    assert "&" not in to_yaml(config)
    assert parse_yaml(to_yaml(config), "test")["environment"] == {"a": [1, 2], "b": [1, 2]}


def test_flattening_gives_dotted_keys_and_json_texts():
    data = {"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": "text", "g": {}, "h": True}
    assert flatten(data) == {"a.b": "1", "a.c.d": "null", "e": "[1, 2]", "f": "text", "g": "{}", "h": "true"}


def test_small_numbers_may_be_written_in_scientific_notation():
    numbers = parse_yaml("[1e-4, 1E5, -2e3, 1.5e-3, .5e1, +1e2]", "test")
    assert numbers == [1e-4, 1e5, -2e3, 1.5e-3, 5.0, 100.0]
    assert all(isinstance(number, float) for number in numbers)


def test_words_that_only_look_like_numbers_stay_words():
    assert parse_yaml("[e4, 1e, v1e4, 1e-4x]", "test") == ["e4", "1e", "v1e4", "1e-4x"]


def test_plain_words_are_read_as_yaml_1_2_reads_them():
    words = "[1:30, 1:30.5, on, off, yes, No, y, 2001-01-01, 0b11, =, <<, 08x]"
    assert parse_yaml(words, "test") == [word.strip() for word in words[1:-1].split(",")]
    assert parse_yaml("[010, 08, 0o10, 0x1F, 1_000, -7, +7]", "test") == [10, 8, 8, 31, 1000, -7, 7]
    assert parse_yaml("[1_000.5, 1., .5, -.inf, true, False, ~, null, ]", "test") == [
        1000.5, 1.0, 0.5, float("-inf"), True, False, None, None
    ]  # fmt: skip
    assert parse_yaml("{no: 1, on: 2}", "test") == {"no": 1, "on": 2}
    with pytest.raises(BadInput, match="not valid YAML"):
        parse_yaml("!!int '1:30'", "test")


@pytest.mark.parametrize(
    "text", ["1e5", "0o17", "1:30", "yes", "010", "~", "", "#1", "b #2", "'q'", "2026", "1_0", "-"]
)
def test_a_text_stays_a_text_through_a_file_whatever_it_looks_like(text):
    config = validate(Collect, {"task": text, "environment": {"a": [text], text: 1}}, "test")
    assert parse_yaml(to_yaml(config), "test")["environment"] == {"a": [text], text: 1}
    assert validate(Collect, parse_yaml(to_yaml(config), "test"), "test") == config


# --- overrides -------------------------------------------------------------------------------------------------------


def test_an_override_is_read_as_the_file_would_be(tmp_path):
    file = tmp_path / "expert.yaml"
    file.write_text("task: t\ntraining: {n_envs: 8, ppo: {n_epochs: 3}}\n")
    config = load(
        TrainExpert,
        file,
        {"seeds": "[7, 8]", "training.learning_rate.initial": "1e-4", "training.ppo.n_steps": "64", "task": "u"},
    )
    assert config.seeds == (7, 8)
    assert config.training.learning_rate.initial == 1e-4
    assert config.training.ppo == {"n_epochs": 3, "n_steps": 64}
    assert (config.training.n_envs, config.task) == (8, "u")


def test_an_override_of_one_setting_leaves_the_others_whether_they_are_said_in_one_word_or_not_at_all(tmp_path):
    file = tmp_path / "finetune.yaml"
    adaptive = to_data(Finetune(task="t").warm_start)
    for text in ("task: t\n", "task: t\nwarm_start: adaptive\n"):
        file.write_text(text)
        changed = load(Finetune, file, {"warm_start.clone_weights": "kept"})
        assert to_data(changed.warm_start) == {**adaptive, "clone_weights": "kept"}
        still = load(Finetune, file, {"warm_start.learning_rate_factor": "0"}).warm_start  # then nothing is adapted
        assert to_data(still) == {**adaptive, "learning_rate_factor": 0}
    file.write_text("task: t\nwarm_start: adaptive\narms: {mine: {warm_start: adaptive}}\n")
    mine = load(Finetune, file, {"arms.mine.warm_start.initial_action_std": "0.5"}).arms["mine"]
    assert to_data(mine.warm_start) == {**adaptive, "initial_action_std": 0.5}
    for text in ("[residual, sac_demos]", "{residual: , sac_demos: }"):
        file.write_text(f"task: t\narms: {text}\n")
        before = to_data(load(Finetune, file))
        given = {"arms.residual.warm_start.initial_action_std": "0.5", "arms.sac_demos.sac.network.activation": "tanh"}
        after = to_data(load(Finetune, file, given))
        before["arms"]["residual"]["warm_start"]["initial_action_std"] = 0.5
        before["arms"]["sac_demos"]["sac"] = to_data(SACTraining())
        before["arms"]["sac_demos"]["sac"]["network"]["activation"] = "tanh"
        assert after == before
    message = refusal(
        tmp_path,
        Finetune,
        "task: t\nwarm_start: adaptive\ntraining: {n_env: 3}\n",
        {"warm_start.clone_weights": "kept"},
    )
    assert "unknown key 'training.n_env'" in message
    message = refusal(tmp_path, Finetune, "task: t\n", {"task.name": "u"})
    assert "'task' is a single value, it has no settings below it" in message


MAIN = "stages: {collect: a, pretrain: b, finetune: c, compare: d}\n"


@pytest.mark.parametrize("text", ["#1 idea", "b #2", "2026", "yes", "null island", "1e5", "a: b", "[1", "'a' # 'b'"])
def test_a_setting_that_is_a_text_takes_the_text_as_it_stands(tmp_path, text):
    (tmp_path / "main.yaml").write_text(MAIN)
    assert load(Main, tmp_path / "main.yaml", {"experiment_name": text}).experiment_name == text
    (tmp_path / "collect.yaml").write_text("task: t\nscripted: {demonstrator: a}\n")
    given = {"scripted.demonstrator": text}
    assert load(Collect, tmp_path / "collect.yaml", given).scripted.demonstrator == text


def test_quotes_around_the_whole_of_a_text_are_left_away_and_null_is_none_where_none_is_allowed(tmp_path):
    (tmp_path / "main.yaml").write_text(f"{MAIN}experiment_name: old\n")
    meanings = {"'2026'": "2026", '"a\\tb"': "a\tb", "null": None, "~": None, "": None, "'null'": "null"}
    for text, meant in meanings.items():
        assert load(Main, tmp_path / "main.yaml", {"experiment_name": text}).experiment_name == meant
    (tmp_path / "collect.yaml").write_text("task: t\n")
    assert load(Collect, tmp_path / "collect.yaml", {"task": "null"}).task == "null"


@pytest.mark.parametrize("text", ["20 # twenty", "# twenty", "[1, 2] # two", "{a: b} #", "a #2", "#2"])
@pytest.mark.parametrize("key", ["seeds", "training.environment.reward_name"])
def test_what_yaml_would_drop_as_a_comment_is_refused_in_an_override(tmp_path, key, text):
    message = refusal(tmp_path, TrainExpert, "task: t\n", {key: text})
    assert key in message
    assert "put it in quotes" in message


def test_the_texts_among_library_arguments_may_be_quoted(tmp_path):
    (tmp_path / "expert.yaml").write_text("task: t\n")
    given = {"training.environment.a": "'b #2'", "training.environment.b": "c#3", "training.environment.c": "{d: e} "}
    assert load(TrainExpert, tmp_path / "expert.yaml", given).training.environment == {
        "a": "b #2", "b": "c#3", "c": {"d": "e"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"episodes": "1:30"}, ["episodes = '1:30'", "integer"]),
        ({"filter.only_success": "yes"}, ["filter.only_success = 'yes'", "write true or false"]),
    ],
)
def test_what_yaml_1_1_would_have_read_as_another_thing_is_refused(tmp_path, overrides, parts):
    message = refusal(tmp_path, Collect, "task: t\n", overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"traning.n_envs": "3"}, ["'traning'", "Did you mean 'training'?"]),
        ({"training.nenvs": "3"}, ["'training.nenvs'", "Did you mean 'n_envs'?"]),
        ({"training.n_envs": "many"}, ["training.n_envs", "'many'", "integer"]),
        ({"training.n_envs": "0"}, ["training.n_envs", "0", "greater than or equal to 1"]),
        ({"task.name": "x"}, ["task.name", "single value"]),
        ({"a..b": "3"}, ["'a..b'", "not a dotted key", "section.setting=value"]),
        ({"": "3"}, ["not a dotted key"]),
        ({"seeds[0]": "3"}, ["'seeds[0]'", "not a dotted key"]),
        ({"seeds": "[1"}, ["'seeds'", "not valid YAML"]),
        ({"seeds": ""}, ["seeds", "None", "array"]),
    ],
)
def test_a_wrong_override_is_refused_by_its_key(tmp_path, overrides, parts):
    message = refusal(tmp_path, TrainExpert, "task: t\n", overrides)
    assert all(part in message for part in parts), message


# --- every kind of fault, in one line --------------------------------------------------------------------------------

EXPERT = "task: t\n"


@pytest.mark.parametrize(
    ("cls", "text", "parts"),
    [
        (
            TrainExpert,
            EXPERT + "seds: [3]",
            ["unknown key 'seds'", "Did you mean 'seeds'?", "Allowed here:", "workers"],
        ),
        (TrainExpert, EXPERT + "zzzz: 3", ["unknown key 'zzzz'", "Allowed here:"]),
        (TrainExpert, EXPERT + "training: {total_timestep: 3}", ["'training.total_timestep'", "'total_timesteps'?"]),
        (
            TrainExpert,
            EXPERT + "training: {evaluation: {segments: [{every_step: 3}]}}",
            ["'training.evaluation.segments.0.every_step'", "'every_steps'?", "until_step"],
        ),
        (TrainExpert, "seeds: [3]", ["key 'task' is missing", "add it"]),
        (TrainExpert, EXPERT + "training: {total_timesteps: 3.5}", ["training.total_timesteps = 3.5", "integer"]),
        (TrainExpert, EXPERT + "training: {total_timesteps: '3'}", ["training.total_timesteps = '3'", "integer"]),
        (TrainExpert, EXPERT + "training: {total_timesteps: -3}", ["training.total_timesteps = -3", "equal to 1"]),
        (TrainExpert, EXPERT + "training: {normalize_reward: 1}", ["training.normalize_reward = 1", "boolean"]),
        (TrainExpert, EXPERT + "training: {learning_rate: {initial: .nan}}", ["learning_rate.initial = nan", "finite"]),
        (TrainExpert, EXPERT + "training: {learning_rate: {initial: .inf}}", ["learning_rate.initial = inf", "finite"]),
        (TrainExpert, EXPERT + "training: {learning_rate: 3e-4}", ["training.learning_rate = 0.0003"]),
        (TrainExpert, EXPERT + "training: {network: {activation: thanh}}", ["'thanh'", "'tanh' or 'relu'"]),
        (
            TrainExpert,
            EXPERT + "training: {scenario_set: Train!}",
            ["training.scenario_set = 'Train!'", "a name is a lower-case letter"],
        ),
        (TrainExpert, EXPERT + "training:", ["training = None"]),
        (TrainExpert, EXPERT + "seeds: [1, 2, 1]", ["seeds must be distinct", "[1, 2, 1]"]),
        (TrainExpert, EXPERT + "seeds: []", ["seeds = []", "at least 1"]),
        (TrainExpert, EXPERT + "seeds: [-1]", ["seeds.0 = -1", "greater than or equal to 0"]),
        (TrainExpert, EXPERT + "seeds: [2147483648]", ["seeds.0 = 2147483648", "less than 2147483648"]),
        (TrainExpert, EXPERT + "seeds: [true]", ["seeds.0 = True", "integer"]),
        (TrainExpert, EXPERT + "seeds: 3", ["seeds = 3", "array"]),
        (
            TrainExpert,
            EXPERT + "training: {evaluation: {segments: []}}",
            ["training.evaluation.segments", "at least 1 item"],
        ),
        (
            TrainExpert,
            EXPERT + "training: {evaluation: {segments: [{until_step: 5}]}}",
            ["training.evaluation", "last segment must not have until_step"],
        ),
        (
            TrainExpert,
            EXPERT + "training: {evaluation: {segments: [{}, {}]}}",
            ["training.evaluation", "only the last segment"],
        ),
        (
            TrainExpert,
            EXPERT + "training: {evaluation: {segments: [{until_step: 5}, {until_step: 5}, {}]}}",
            ["training.evaluation", "until_step must grow"],
        ),
        (
            TrainExpert,
            EXPERT + "training: {environment: {reward_kwargs: {sizes: [1, .inf]}}}",
            ["training.environment", "reward_kwargs.sizes.1 = inf is no finite number"],
        ),
        (Promote, EXPERT + "rules: []", ["rules = []", "at least 1"]),
        (Promote, EXPERT + "rules: [{scenario_set: s, metric: m}]", ["rules.0", "exactly one of min and max"]),
        (
            Promote,
            EXPERT + "rules: [{scenario_set: s, metric: m, min: 0, max: 1}]",
            ["rules.0", "exactly one of min and max"],
        ),
        (
            Promote,
            EXPERT + "rules: [{scenario_set: s, metric: m, min: 0, confidence: 1.5}]",
            ["rules.0.confidence = 1.5", "less than 1"],
        ),
        (Promote, EXPERT + "rules: [{scenario_set: s, metric: m, min: 0}]\nepisodes: 99", ["episodes = 99", "100"]),
        (
            Promote,
            EXPERT + "rules: [{scenario_set: s, metric: m, min: 0}]\naction: aprove",
            ["action = 'aprove'", "'approve' or 'roll_back'"],
        ),
        (Collect, EXPERT + "noise: {std: -0.1}", ["noise.std = -0.1", "greater than or equal to 0"]),
        (Collect, EXPERT + "episodes: 0", ["episodes = 0", "greater than or equal to 1"]),
        (Collect, EXPERT + "scripted: {demonstrato: a}", ["scripted.demonstrato"]),
        (Compare, EXPERT + "target: {success_rate: {}}", ["target.success_rate", "needs min or max"]),
        (Compare, EXPERT + "target: {success_rate: {mni: 1}}", ["'target.success_rate.mni'", "'min'?", "max, min"]),
        (Compare, EXPERT + "ratio_target: 0", ["ratio_target = 0", "greater than 0"]),
        (Main, MAIN + "experiment_name: 2026", ["experiment_name = 2026", "put it in quotes"]),
        (Main, MAIN + "reuse: no", ["reuse = 'no'", "write true or false"]),
        (Main, "stages: {train_expert: a}", ["'stages.", "is missing"]),
        (Collect, EXPERT + f"episodes: {10**400}", ["episodes = 1000", "less than or equal to"]),
        (Collect, EXPERT + f"noise: {{std: {10**400}}}", ["noise.std = 1000", "finite"]),
        (Collect, EXPERT + f"environment: {{a: [{10**400}]}}", ["environment", "a.0 = 1000", "64 bits"]),
        (TaskConfig, TASK + f"horizon: {10**400}", ["horizon = 1000", "less than or equal to"]),
        (TaskConfig, TASK.replace("near: 2", f"near: {10**400}"), ["scenario_sets.train.near = 1000", "finite"]),
        (TaskConfig, TASK + "horizon: 0", ["horizon = 0", "greater than or equal to 1"]),
        (
            TaskConfig,
            TASK.replace("{success_rate: {min", "{collision_rate: {min"),
            ["thresholds: 'collision_rate' is not"],
        ),
        (TaskConfig, TASK + "holdout_sets: [hold]", ["holdout_sets names 'hold'", "scenario_sets does not define"]),
        (TaskConfig, TASK.replace("far: 1}, hold", "fra: 1}, hold"), ["'train' names 'fra'", "does not define"]),
        (TaskConfig, TASK.replace("near: 2", "near: 0"), ["scenario_sets.train.near = 0", "greater than 0"]),
        (TaskConfig, TASK.replace("{near: 2, far: 1}", "{}"), ["scenario set 'train' is empty"]),
        (TaskConfig, TASK.partition("scenario_sets")[0] + "scenario_sets: {}", ["scenario_sets", "at least 1"]),
        (TaskConfig, TASK.partition("scenarios")[0] + "scenarios: {}\nscenario_sets: {}", ["scenarios", "at least 1"]),
        (TaskConfig, TASK.replace("{info: reached}", "{}"), ["success", "exactly one of info and return_at_least"]),
        (
            TaskConfig,
            TASK.replace("{info: reached}", "{info: a, return_at_least: 1}"),
            ["success", "exactly one of info and return_at_least"],
        ),
        (TaskConfig, TASK + "metrics: {jerk: {info: j, over: median}}", ["metrics.jerk.over = 'median'", "'last'"]),
        (
            TaskConfig,
            TASK.replace("name: walk", "name: Walk It"),
            ["name = 'Walk It'", "a name is a lower-case letter"],
        ),
    ],
)
def test_a_fault_is_one_line_with_key_value_and_what_is_allowed(tmp_path, cls, text, parts):
    message = refusal(tmp_path, cls, text)
    assert "faulty.yaml" in message
    assert all(part in message for part in parts), message


ARM = "task: t.yaml\narms: "


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[naive, clone, naive]", ["arms", "'naive' is named twice"]),
        ("{naive: , naive: }", ["key 'naive' is given twice"]),
        ("[residul]", ["'residul' is no arm that ships", "Did you mean 'residual'?", "sac_demos"]),
        ("{mine: }", ["'mine' is no arm that ships", "{mine: {warm_start: adaptive}}"]),
        ("{mine: {}}", ["arms.mine", "algorithm 'ppo' needs warm_start"]),
        ("{mine: {algorithm: a2c}}", ["arms.mine.algorithm = 'a2c'", "'ppo' or 'sac'"]),
        ("{mine: {weights: frozen, warm_start: adaptive}}", ["arms.mine.weights = 'frozen'", "'residual'"]),
        ("{mine: {weights: fresh, warm_start: adaptive}}", ["arms.mine", "the arm 'scratch'"]),
        ("{mine: {algorithm: sac, weights: residual}}", ["weights = 'residual' is not for algorithm 'sac'"]),
        ("{mine: {algorithm: sac, episodes: 3}}", ["episodes is for demonstrations in the batches of sac"]),
        ("{mine: {algorithm: sac, demonstrations: 0.5, dataset: d}}", ["dataset is not for algorithm 'sac'", "behind"]),
        ("{mine: {algorithm: sac, policy: p}}", ["policy is not for algorithm 'sac'"]),
        ("{mine: {warm_start: adaptive, policy: p, episodes: 3}}", ["policy excludes dataset and episodes"]),
        ("{mine: {warm_start: adaptive, episodes: 0}}", ["arms.mine.episodes = 0", "equal to 1"]),
        ("{mine: {warm_start: {learning_rate_factor: 0, clone_penalty: 1}}}", ["clone_penalty is of no use"]),
        ("{mine: {warm_start: {learning_rate_factor: 0, critic_burn_in_steps: 8}}}", ["critic_burn_in_steps is of no"]),
    ],
)
def test_a_fault_of_an_arm_is_told_by_its_name(tmp_path, text, parts):
    message = refusal(tmp_path, Finetune, ARM + text)
    assert all(part in message for part in parts), message


def test_arms_that_ship_are_named_alone_and_written_out_whole(tmp_path):
    listed, mapped = (
        validate(Finetune, {"task": "t", "arms": arms}, "c") for arms in ([*SHIPPED_ARMS], dict.fromkeys(SHIPPED_ARMS))
    )
    assert listed == mapped
    assert list(listed.arms) == ["clone", "naive", "residual", "sac", "sac_demos"]
    assert listed.arms["residual"].weights == "residual"
    assert listed.arms["clone"].warm_start.learning_rate_factor == 0
    (tmp_path / "written.yaml").write_text(to_yaml(listed))
    assert load(Finetune, tmp_path / "written.yaml") == listed


def test_several_faults_are_counted(tmp_path):
    assert "(and 2 more)" in refusal(tmp_path, TrainExpert, "task: t\nseeds: [-1, -2]\nworkers: 0\n")


def test_a_message_cannot_be_made_longer_or_broken_by_the_value(tmp_path):
    message = refusal(tmp_path, TrainExpert, f"task: t\nworkers: '{'x' * 5000}\\n\n\nerror: forged'\n")
    assert "5" in message  # its length stands there instead


# --- files that are no config ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("task: a\ntask: b\n", "key 'task' is given twice"),
        ("task: a\ntraining: {n_envs: 1, n_envs: 2}\n", "key 'n_envs' is given twice"),
        ("- a\n", "must be a mapping of settings, got list"),
        ("", "must be a mapping of settings, got NoneType"),
        ("a: [", "not valid YAML"),
        ("task: t\nd: !!timestamp 2001-01-01\n", "no number, text, list or mapping"),
        ("task: t\nd: !!binary aGk=\n", "no number, text, list or mapping"),
        ("task: t\n? [a, b]\n: 3\n", "not valid YAML"),
        ("task: t\na\0b: 3\n", "not valid YAML"),
        ("task: t\nx: " + "[" * 5000 + "]" * 5000, "not valid YAML"),
        (f"task: t\nseeds: [{'9' * 5000}]\n", "not valid YAML"),
    ],
)
def test_text_that_is_no_config_is_refused(tmp_path, text, part):
    assert part in refusal(tmp_path, TrainExpert, text)


@pytest.mark.parametrize(
    "text",
    [
        "x: !!python/object/apply:os.system ['touch {marker}']",
        "x: !!python/object/new:subprocess.Popen [['touch', '{marker}']]",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]",
    ],
)
def test_yaml_never_runs_code(tmp_path, text):
    marker = tmp_path / "was-run"
    assert "not valid YAML" in refusal(tmp_path, TrainExpert, text.replace("{marker}", str(marker)))
    assert not marker.exists()


def test_a_few_lines_of_aliases_cannot_unfold_into_gigabytes(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "aliases are not read" in refusal(tmp_path, TrainExpert, "\n".join(lines))
    assert "aliases are not read" in refusal(tmp_path, TrainExpert, "x: &x {y: *x}")


def test_a_missing_large_or_binary_file_is_refused_by_its_path(tmp_path):
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    for path, part in [
        (tmp_path / "nowhere.yaml", "no such file"),
        (tmp_path, "no such file"),
        ("\0", "no such file"),
        (large, "larger than 1000000 bytes"),
        (binary, "cannot read"),
        ("a" * 5000, "cannot read"),
    ]:
        with pytest.raises(BadInput, match=part) as caught:
            load(TrainExpert, path)
        assert len(str(caught.value)) < 400


# --- what is shipped -------------------------------------------------------------------------------------------------

TASKS = sorted(ROOT.glob("configs/tasks/*.yaml"))
OTHERS = sorted(set(ROOT.glob("configs/**/*.yaml")) - set(TASKS))


def stage_of(path: Path) -> str:
    """A config has the name of its stage; one of another name is of `main`."""
    return path.stem if path.stem in STAGE_CONFIGS else "main"


def shipped(path: Path):
    given = {"env": "CartPole-v1", "name": "cart_pole"} if stage_of(path) == "new_task" else {}
    return load(STAGE_CONFIGS[stage_of(path)], path, given)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_config_loads_and_names_existing_files(path):
    config = shipped(path)
    assert validate(type(config), to_data(config), "test") == config
    files = [file for key in ("task", "base") if (file := getattr(config, key, None))]
    if stage_of(path) == "main":  # without an expert, where the demonstrations come from elsewhere
        stages = [given for given in vars(config.stages).values() if given is not None]
        files = [given["task"] if isinstance(given, dict) else given for given in stages]
    for file in files:
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_scenario_set_that_a_shipped_config_names_is_one_of_its_task(path):
    config = shipped(path)
    training = getattr(config, "training", None)
    named = {rule.scenario_set for rule in getattr(config, "rules", ())}
    named |= {getattr(config, "scenario_set", None), getattr(training, "scenario_set", None)} - {None}
    assert not named or named <= set(load_task(ROOT / config.task).scenario_sets)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_shipped_task_loads_under_its_own_name(path):
    assert load_task(path).name == path.stem
