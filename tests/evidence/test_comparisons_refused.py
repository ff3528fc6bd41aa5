"""A comparison whose arms are unknown, unfinished, unmatched or differently configured does not happen."""

import pytest
from project import GROUP

from pipeline.cli import BAD_INPUT, DONE, stage_main
from pipeline.names import Tag
from pipeline.tracking.liveness import this_process
from pipeline.tracking.store import connect


@pytest.fixture
def refusal(copied, capsys):
    """Compare a group that must be refused; gives the one line that says why."""

    def refuse(group: str) -> str:
        capsys.readouterr()
        assert stage_main("compare", ["--config", str(copied.configs["compare"]), "--group", group]) == BAD_INPUT
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return refuse


def test_an_unknown_group_is_named(refusal):
    assert "group 'never_trained' has no finished baseline of task 'social_nav'" in refusal("never_trained")


def test_a_group_with_quotes_is_refused(refusal):
    assert "a group is letters, digits, - and _" in refusal("x' or '1'='1")


def test_a_group_without_fine_tuning_says_which_stage_is_missing(refusal, copied):
    assert stage_main("baseline", ["--config", str(copied.configs["finetune"]), "--group", "half", *TINY]) == DONE
    assert "group 'half' has no finished finetune" in refusal("half")


def test_an_unfinished_training_is_named_with_arm_seed_and_status(refusal, runs):
    run_id = runs("finetune_seed", 2)[0]
    connect().update_run(run_id, status="RUNNING")
    connect().set_tag(run_id, Tag.PROCESS, this_process())  # which lives
    said = refusal(GROUP)
    assert run_id in said and "seed 2" in said and "RUNNING, not FINISHED" in said


def test_seeds_that_one_arm_lacks_are_named(refusal, copied):
    # all of it is there already, but the newest baseline is one of two seeds
    command = ["--config", str(copied.configs["finetune"]), "--group", GROUP, "--seeds", "[1, 2]"]
    assert stage_main("baseline", command) == DONE
    said = refusal(GROUP)
    assert "seeds are not matched: only from scratch [], only pre-trained [3]" in said


def test_a_setting_in_which_the_arms_differ_is_named_with_both_values(refusal, copied):
    command = ["--config", str(copied.configs["finetune"]), "--group", GROUP, *TINY, "--training.ppo.n_epochs", "1"]
    assert stage_main("baseline", command) == DONE
    said = refusal(GROUP)
    assert "its arms differ in more than initial weights" in said
    assert "training.ppo.n_epochs: 1 and 2" in said and "control_timesteps: 0 and 512" in said


def test_a_training_whose_evaluations_are_gone_is_named(refusal, runs, tmp_path):
    run_id = runs("baseline_seed", 1)[0]
    client = connect()
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    # the run's artifact folder as it is when somebody emptied it
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (copy.as_uri(), run_id))
    assert client.get_run(run_id).info.artifact_uri == copy.as_uri()
    said = refusal(GROUP)
    assert run_id in said and "evaluations.json" in said


TINY = ("--seeds", "[1]", "--control_timesteps", "0")
