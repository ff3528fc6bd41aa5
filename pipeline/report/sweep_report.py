"""The report of a sweep: who won and what for, every trial in a table, and Optuna's own pictures of the study."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import optuna

from pipeline.config.sweep import Sweep
from pipeline.names import Metric
from pipeline.report.text import markdown_page, number
from pipeline.sweep.objectives import Contender, winner
from pipeline.sweep.study import TrialRecord

PICTURE_INCHES: Final = (9.0, 5.0)


@dataclass(frozen=True)
class SweepReport:
    """What a sweep came to."""

    config: Sweep
    maximise: bool
    budget: int  # environment steps of every training
    trials: tuple[TrialRecord, ...]
    contenders: tuple[Contender, ...]  # the best k trials, and the default

    @property
    def winner(self) -> Contender | None:
        return winner(self.contenders, self.maximise)

    @property
    def default(self) -> Contender | None:
        return next((c for c in self.contenders if c.trial is None), None)

    @property
    def gain(self) -> float | None:
        """Winner minus default on the same fresh seeds; positive is better whatever the direction."""
        best, default = (None if c is None else c.fresh_value for c in (self.winner, self.default))
        return None if best is None or default is None else (best - default) * (1 if self.maximise else -1)

    def seed_gains(self) -> tuple[float, ...]:
        """The gain on every fresh seed: a few seeds show a spread, and prove nothing."""
        if self.winner is None or self.default is None:
            return ()
        pairs = [(a.value, b.value) for a, b in zip(self.winner.fresh, self.default.fresh, strict=True)]
        return tuple((a - b) * (1 if self.maximise else -1) for a, b in pairs if a is not None and b is not None)

    def counts(self) -> dict[str, int]:
        """`{"feasible": 12, "infeasible": 3, "pruned": 4, "failed": 1}`; lost attempts were trained again."""
        kinds = Counter(trial.kind for trial in self.trials)
        return {name: kinds[name] for name in ("feasible", "infeasible", "pruned", "failed")}

    def goal(self) -> str:
        """`best_checkpoint of success_rate, maximised`."""
        objective = self.config.objective
        n = f" (n = {objective.n})" if objective.n else ""
        return f"{objective.name}{n} of {objective.figure}, {'maximised' if self.maximise else 'minimised'}"

    def lines(self) -> tuple[str, ...]:
        """What a person reads at the end."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        lines = [f"sweep: study {self.config.study_name!r}, {self.goal()}: {counts}"]
        if self.winner is None:
            fault = "none of the best trials is feasible on every fresh seed"
            if not any(c.trial is not None for c in self.contenders):
                fault = "no trial is complete and feasible"
            return (*lines, f"  no winner: {fault}; loosen the constraints, or train longer")
        lines.append(
            f"  winner: {self.winner.name}: {number(self.winner.fresh_value)} on fresh seeds "
            f"({number(self.winner.sweep_value)} in the sweep)"
        )
        if self.gain is not None and self.default is not None:
            unsafe = "" if self.default.eligible else ", where it is infeasible"
            low, high = min(self.seed_gains()), max(self.seed_gains())
            lines.append(
                f"  default: {number(self.default.fresh_value)} on the same seeds{unsafe}; gain {self.gain:+.3g}, "
                f"from seed to seed {low:+.3g} to {high:+.3g}"
            )
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, with what follows from it."""
        data = {
            "study": self.config.study_name, "objective": asdict(self.config.objective), "maximise": self.maximise,
            "constraints": self.config.constraints, "budget": self.budget,
            "counts": self.counts(), "gain": self.gain, "seed_gains": self.seed_gains(),
            "winner": None if self.winner is None else self.winner.name,
            "trials": [{**asdict(t), "kind": t.kind, "violation": t.violation} for t in self.trials],
            "contenders": [
                {**asdict(c), "name": c.name, "fresh_value": c.fresh_value, "excess": c.excess, "eligible": c.eligible}
                for c in self.contenders
            ],
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(data))
        return plain


def sweep_markdown(report: SweepReport, missing: Sequence[str]) -> str:
    """The whole report as Markdown; `missing` says why a picture is."""
    kinds = ("feasible", "infeasible", "pruned", "failed")

    def place(trial: TrialRecord) -> tuple[float, ...]:
        order = kinds.index(trial.kind) if trial.kind in kinds else len(kinds)
        violation = (trial.violation or 0.0) if trial.kind == "infeasible" else 0.0
        value = float("inf") if trial.value is None else -trial.value if report.maximise else trial.value
        return (order, violation, value, trial.number)

    def setting(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)

    return markdown_page(
        "sweep",
        report=report,
        figures=list(dict.fromkeys([*report.config.constraints, Metric.SUCCESS_RATE, Metric.COLLISION_RATE])),
        trials=sorted(report.trials, key=place),
        keys=list(dict.fromkeys(key for trial in report.trials for key in trial.values)),
        setting=setting,
        missing=missing,
    )


def sweep_pictures(report: SweepReport, study: optuna.Study, folder: Path) -> list[str]:
    """Draw Optuna's own plots as PNG files in a folder; returns why one is missing.

    Value is set against the first constraint, else collisions, else time: what was measured in every complete trial.
    """
    import matplotlib

    matplotlib.use("Agg")  # no screen, whatever the machine has
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    name, missing = report.config.objective.figure, []
    complete = [trial for trial in report.trials if trial.state == "complete"]
    measured = [trial.notes.get("figures", {}) for trial in complete]
    others = [
        f for f in (*report.config.constraints, Metric.COLLISION_RATE) if f != name and all(f in m for m in measured)
    ]
    other = others[0] if others else "seconds"
    both = optuna.create_study(directions=["maximize" if report.maximise else "minimize", "minimize"])
    for trial in complete:
        against = {**trial.notes, **trial.notes.get("figures", {})}[other]
        both.add_trial(optuna.create_trial(values=[trial.value or 0.0, against]))
    drawings = {
        "optimization_history": partial(plots.plot_optimization_history, study, target_name=name),
        "parameter_importance": partial(plots.plot_param_importances, study, target_name=name),
        "parallel_coordinate": partial(plots.plot_parallel_coordinate, study, target_name=name),
        "pareto": partial(plots.plot_pareto_front, both, target_names=[name, other]),
    }
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        drawings["intermediate_values"] = partial(plots.plot_intermediate_values, study)
    for picture, draw in drawings.items():
        try:
            axes: Any = draw()
            figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
            figure.set_size_inches(*PICTURE_INCHES)
            figure.savefig(folder / f"{picture}.png", dpi=110, bbox_inches="tight")
        except (ValueError, RuntimeError) as error:  # Optuna's word for too few trials, or all of them alike
            missing.append(f"{picture}: {' '.join(str(error).split())}")
        finally:
            pyplot.close("all")
    return missing
