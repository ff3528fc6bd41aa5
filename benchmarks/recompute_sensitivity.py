"""Computes the sensitivity table of a comparison again from its report.json, without any code of the product.

    python benchmarks/recompute_sensitivity.py report.json       # exit code 1 and the rows that differ

For every row: when each run first met the target for so many evaluations in a row, the ratio of the mean times, and its
95 % interval by Student's t of the logarithm with a jackknife standard error, widened by the grid of evaluations. What
other evaluation episodes add to the variance is taken from the report: the episodes stand in the runs, not in it.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from scipy.stats import t as student


def time_to_target(run: dict[str, Any], target: dict[str, Any], patience: int, nth: int) -> tuple[int, int, bool]:
    """(counted steps, steps at which it certainly had not met it, whether it never did); met at once: one interval."""
    steps = run["steps"][::nth]
    good = [True] * len(steps)
    for figure, bound in target.items():
        for index, value in enumerate(run["figures"][figure][::nth]):
            low, high = bound["min"], bound["max"]
            inside = value is not None and (low is None or value >= low) and (high is None or value <= high)
            good[index] = good[index] and inside
    for index in range(len(steps) - patience + 1):
        if all(good[index : index + patience]):
            return (steps[index], steps[index - 1], False) if index else (steps[min(1, len(steps) - 1)], 0, False)
    return steps[-1], steps[-1], True


def recomputed(row: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """`value`, `low`, `high` and `reached` of a row of the table."""
    settings = comparison["settings"]
    target = {figure: dict(bound) for figure, bound in settings["target"].items()}
    patience = int(row["level"]) if row["varied"] == "patience" else settings["patience"]
    nth = int(row["level"]) if row["varied"] == "every nth evaluation" else 1
    if row["varied"] in target:
        target[row["varied"]]["min" if row["sign"] == ">=" else "max"] = row["level"]
    times = {
        arm: [time_to_target(run, target, patience, nth) for run in comparison["arms"][arm]["runs"]]
        for arm in ("scratch", "pretrained")
    }
    ours, theirs = ([steps for steps, _, _ in times[arm]] for arm in ("pretrained", "scratch"))
    n, value = len(ours), sum(ours) / sum(theirs)
    without = [math.log((sum(ours) - o) / (sum(theirs) - b)) for o, b in zip(ours, theirs, strict=True)]
    mean = sum(without) / n
    error = math.sqrt((n - 1) / n * sum((one - mean) ** 2 for one in without))
    added, episodes = row["from_episodes"]["variance"], row["from_episodes"]["episodes"]
    variance = error**2 + added
    parts = error**4 / (n - 1) + added**2 / max(1, episodes - 1)
    reach = math.exp(student.ppf(0.975, variance**2 / parts) * math.sqrt(variance)) if variance > 1e-24 else 1.0
    least = sum(after for _, after, _ in times["pretrained"]) / sum(ours)
    earliest = sum(after or steps for steps, after, _ in times["scratch"])  # at the floor it stays one interval
    return {
        "value": value,
        "low": value / reach * least,
        "high": value * reach * sum(theirs) / earliest,
        "reached": {arm: sum(not never for _, _, never in of_arm) for arm, of_arm in times.items()},
    }


def differences(report: dict[str, Any]) -> list[str]:
    """A line for every row that is not what its evaluations say."""
    found = []
    for row in report["comparison"]["sensitivity"]:
        again = recomputed(row, report["comparison"])
        pairs = [(again[key], row["ratio"][key]) for key in ("value", "low", "high")]
        equal = all(
            a == b or (None not in (a, b) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)) for a, b in pairs
        )
        if not equal or again["reached"] != {arm: row["reached"][arm] for arm in again["reached"]}:
            found.append(f"{row['varied']} {row['sign']} {row['level']}: report {row['ratio']}, recomputed {again}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    report = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))
    wrong = differences(report)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(
        f"{len(report['comparison']['sensitivity']) - len(wrong)} rows are what the evaluations say, {len(wrong)} not"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
