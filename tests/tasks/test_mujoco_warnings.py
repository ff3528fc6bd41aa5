"""What MuJoCo has to say of a model is said once, however many environments are made of it."""

from pipeline.tasks.user_code import make_environment


def test_a_warning_is_printed_once_and_the_next_one_is_not_lost(capfd):
    import mujoco

    first = make_environment("HalfCheetah-v5", {}, None, None)
    first.close()
    capfd.readouterr()  # of the first, which MuJoCo may have printed itself
    mujoco.set_mju_user_warning(None)
    make_environment("HalfCheetah-v5", {}, None, None).close()  # sets it again
    capfd.readouterr()
    warn = mujoco.get_mju_user_warning()
    assert warn is not None
    for text in ("the floor is soft", "the floor is soft", "the wall too"):
        warn(text)
    assert capfd.readouterr().err == "MuJoCo: the floor is soft\nMuJoCo: the wall too\n"
    make_environment("HalfCheetah-v5", {}, None, None).close()
    make_environment("HalfCheetah-v5", {}, None, None).close()
    told = capfd.readouterr()
    assert (told.out + told.err).count("\n") <= 2 and (told.out + told.err).count("deprecated") <= 1
