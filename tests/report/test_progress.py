"""What is said while something runs: elsewhere than on a terminal a line every half minute, never more."""

from pipeline.report import progress
from pipeline.report.progress import ProgressBar


def test_a_line_says_how_much_is_done_and_comes_when_it_is_due(monkeypatch, capfd):
    with ProgressBar("collect", 1_200, "episodes") as shown:
        shown.add(300)
        assert shown.line() == "collect: 300 of 1,200 episodes (25%)"
        assert capfd.readouterr().err == ""
        monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", -1.0)
        shown.add(300, "last success rate 0.50")
        shown.add(0)
        line = "collect: 600 of 1,200 episodes (50%), last success rate 0.50\n"
        assert capfd.readouterr().err == 2 * line
        assert ProgressBar("collect", None, "episodes").line() == "collect: 0 episodes"  # nobody knows of how many
        shown.note("seed 3: goes on")
        assert capfd.readouterr().err == "collect seed 3: goes on\n"
