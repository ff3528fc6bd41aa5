"""What MuJoCo has to say of a model is said once, however many environments are made of it."""

import subprocess
import sys

from pipeline.config.loading import load_task
from pipeline.tasks import Task

FIRST = """
from pipeline.config.loading import load_task
from pipeline.tasks import Task
for _ in range(2):
    Task(load_task("configs/tasks/half_cheetah.yaml")).make_env("default").close()
"""


def test_a_process_says_it_once_from_its_first_environment_on(in_repository):
    told = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True)
    lines = [line for line in (told.stdout + told.stderr).splitlines() if line]
    assert told.returncode == 0 and len(lines) <= 1 and all(line.startswith("MuJoCo: ") for line in lines), lines


def test_a_warning_is_printed_once_and_the_next_one_is_not_lost(capfd, in_repository):
    import mujoco

    task = Task(load_task("configs/tasks/half_cheetah.yaml"))
    task.make_env("default").close()
    capfd.readouterr()
    mujoco.set_mju_user_warning(None)
    task.make_env("default").close()  # sets it again
    capfd.readouterr()
    warn = mujoco.get_mju_user_warning()
    assert warn is not None
    for text in ("the floor is soft", "the floor is soft", "the wall too"):
        warn(text)
    assert capfd.readouterr().err == "MuJoCo: the floor is soft\nMuJoCo: the wall too\n"
    task.make_env("default").close()
    task.make_env("default").close()
    told = capfd.readouterr()
    assert (told.out + told.err).count("\n") <= 2 and (told.out + told.err).count("deprecated") <= 1
