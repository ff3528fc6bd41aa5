"""The report of a sweep: who won and what for, every trial in a table, and Optuna's own pictures of the study."""

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.config.sweep import Objective
from pipeline.names import Metric
from pipeline.report.text import NOT_MEASURED, markdown_table, number, one_line
from pipeline.sweep.objectives import Contender

if TYPE_CHECKING:
    import optuna

    from pipeline.sweep.study import TrialRecord

PICTURE_WIDTH: Final = 9.0  # inches
PICTURE_HEIGHT: Final = 5.0


@dataclass(frozen=True)
class SweepReport:
    """What a sweep came to."""

    study: str
    objective: Objective
    maximise: bool
    constraints: Mapping[str, float]  # figure -> largest feasible value
    budget: int  # environment steps of every training
    trials: "tuple[TrialRecord, ...]"
    contenders: tuple[Contender, ...]  # the best k trials, and the default
    winner: Contender | None

    @property
    def default(self) -> Contender | None:
        return next((c for c in self.contenders if c.trial is None), None)

    @property
    def gain(self) -> float | None:
        """Winner minus default on the same fresh seeds; positive is better whatever the direction."""
        values = [None if c is None else c.fresh_value for c in (self.winner, self.default)]
        if values[0] is None or values[1] is None:
            return None
        return (values[0] - values[1]) * (1 if self.maximise else -1)

    def seed_gains(self) -> tuple[float, ...]:
        """The gain on every fresh seed: a few seeds show a spread, and prove nothing."""
        if self.winner is None or self.default is None:
            return ()
        pairs = zip(self.winner.fresh, self.default.fresh, strict=True)
        values = [(a.value, b.value) for a, b in pairs]
        return tuple((a - b) * (1 if self.maximise else -1) for a, b in values if a is not None and b is not None)

    def counts(self) -> dict[str, int]:
        """`{"feasible": 12, "infeasible": 3, "pruned": 4, "failed": 1}`; lost attempts were trained again."""
        kinds = Counter(kind(trial) for trial in self.trials)
        return {name: kinds[name] for name in ("feasible", "infeasible", "pruned", "failed")}

    def goal(self) -> str:
        """`best_checkpoint of success_rate, maximised`."""
        n = f" (n = {self.objective.n})" if self.objective.n else ""
        return f"{self.objective.name}{n} of {self.objective.figure}, {'maximised' if self.maximise else 'minimised'}"

    def lines(self) -> tuple[str, ...]:
        """What a person reads at the end."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        lines = [f"sweep: study {self.study!r}, {self.goal()}: {counts}"]
        if self.winner is None:
            return (*lines, f"  no winner: {self.why_no_winner()}")
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

    def why_no_winner(self) -> str:
        if not any(c.trial is not None for c in self.contenders):
            return "no trial is complete and feasible; loosen the constraints, or train longer"
        return "none of the best trials is feasible on every fresh seed; loosen the constraints, or train longer"

    def to_json(self) -> dict[str, Any]:
        trials = [{**asdict(t), "kind": kind(t), "violation": t.violation} for t in self.trials]
        contenders = [
            {**asdict(c), "name": c.name, "fresh_value": c.fresh_value, "excess": c.excess, "eligible": c.eligible}
            for c in self.contenders
        ]
        data = {
            "study": self.study, "objective": asdict(self.objective), "maximise": self.maximise,
            "constraints": dict(self.constraints), "budget": self.budget, "counts": self.counts(),
            "winner": None if self.winner is None else self.winner.name,
            "gain": self.gain, "seed_gains": self.seed_gains(),
            "trials": trials, "contenders": contenders,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(data))
        return plain


def kind(trial: "TrialRecord") -> str:
    """feasible, infeasible, pruned, failed, lost, running or waiting."""
    if trial.state == "complete":
        return "feasible" if trial.feasible else "infeasible"
    return trial.state


def sweep_markdown(report: SweepReport) -> str:
    """The whole report as Markdown."""
    limits = ", ".join(f"{figure} <= {limit:g}" for figure, limit in report.constraints.items()) or "none"
    counts = report.counts()
    parts = [
        f"# Sweep {one_line(report.study)}",
        f"Objective: {report.goal()}. Constraints: {limits}. Every training: {report.budget:,} environment steps.",
        markdown_table(list(counts), [[str(count) for count in counts.values()]], 0),
        "\n".join(f"- {one_line(line)}" for line in report.lines()[1:]),
    ]
    if report.contenders:
        parts += ["## Trained again on fresh seeds", _contenders_table(report), _CAUTION]
    parts += ["## Trials", _trials_table(report)]
    return "\n\n".join(parts) + "\n"


_CAUTION = (
    "The best of many noisy trials is not as good as it looked: compare the two columns. The winner is the best on "
    "the fresh seeds; a constraint must hold on each of them."
)


def _contenders_table(report: SweepReport) -> str:
    figures = list(dict.fromkeys([*report.constraints, Metric.SUCCESS_RATE, Metric.COLLISION_RATE]))
    rows = []
    for c in report.contenders:
        values = [r.value for r in c.fresh if r.value is not None]
        spread = f"{number(min(values))} to {number(max(values))}" if values else NOT_MEASURED
        reasons = [r.reason for r in c.fresh if r.reason]
        state = reasons[0] if reasons else ("feasible" if c.eligible else "infeasible")
        rows.append(
            [
                c.name + (" (winner)" if c == report.winner else ""), state,
                number(c.sweep_value), number(c.fresh_value), spread,
                *(number(_mean([r.figures.get(figure) for r in c.fresh])) for figure in figures),
            ]
        )  # fmt: skip
    return markdown_table(["", "", "in the sweep", "fresh seeds", "from seed to seed", *figures], rows, 2)


def _trials_table(report: SweepReport) -> str:
    keys = list(dict.fromkeys(key for trial in report.trials for key in trial.values))
    sign = -1 if report.maximise else 1
    order = {"feasible": 0, "infeasible": 1, "pruned": 2, "failed": 3}

    def place(trial: "TrialRecord") -> tuple[float, ...]:
        value = float("inf") if trial.value is None else sign * trial.value
        return (order.get(kind(trial), 4), value, trial.number)

    rows = [
        [
            str(trial.number), kind(trial), number(trial.value), number(trial.violation),
            *(number(trial.notes.get("figures", {}).get(f)) for f in report.constraints),
            number(trial.notes.get("steps")), number(trial.notes.get("seconds")),
            *(_shown(trial.values[key]) if key in trial.values else NOT_MEASURED for key in keys),
            trial.reason or "",
        ]
        for trial in sorted(report.trials, key=place)
    ]  # fmt: skip
    header = ["trial", "", "value", "violation", *report.constraints, "steps", "seconds"]
    return markdown_table([*header, *(key.removeprefix("training.") for key in keys), "reason"], rows, 2)


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured and len(measured) == len(values) else None


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if not isinstance(value, str) else value


def sweep_pictures(report: SweepReport, study: "optuna.Study") -> tuple[dict[str, bytes], tuple[str, ...]]:
    """File name -> PNG of Optuna's own plots, and why one is missing."""
    import optuna

    drawn: dict[str, bytes] = {}
    missing = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for name, draw in _plots(report, study).items():
            try:
                drawn[f"{name}.png"] = _png(draw)
            except (ValueError, RuntimeError) as error:  # Optuna's word for too few trials, or all of them alike
                missing.append(f"{name}: {' '.join(str(error).split())}")
    return drawn, tuple(missing)


def _plots(report: SweepReport, study: "optuna.Study") -> dict[str, Callable[[], Any]]:
    from optuna.visualization import matplotlib as plots

    name = report.objective.figure
    curves = {"intermediate_values": lambda: plots.plot_intermediate_values(study)}
    reported = any(trial.intermediate_values for trial in study.get_trials(deepcopy=False))
    return {
        **(curves if reported else {}),
        "optimization_history": lambda: plots.plot_optimization_history(study, target_name=name),
        "parameter_importance": lambda: plots.plot_param_importances(study, target_name=name),
        "parallel_coordinate": lambda: plots.plot_parallel_coordinate(study, target_name=name),
        "pareto": lambda: plots.plot_pareto_front(
            _trade_off(report, study), target_names=[name, _other_figure(report)]
        ),
    }


def _other_figure(report: SweepReport) -> str:
    """What the objective is weighed against: the first constraint, else collisions, else time."""
    figures = [*report.constraints, Metric.COLLISION_RATE]
    measured = [trial.notes.get("figures", {}) for trial in report.trials if trial.state == "complete"]
    able = [f for f in figures if f != report.objective.figure and measured and all(f in m for m in measured)]
    return able[0] if able else "seconds"


def _trade_off(report: SweepReport, study: "optuna.Study") -> "optuna.Study":
    """The complete trials as a study of two objectives, which is what Optuna's Pareto plot takes."""
    import optuna

    other = _other_figure(report)
    both = optuna.create_study(directions=["maximize" if report.maximise else "minimize", "minimize"])
    by_number = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    for record in report.trials:
        if record.state == "complete" and record.value is not None:
            trial = by_number[record.number]
            against = record.notes.get("figures", {}).get(other, record.notes.get("seconds"))
            both.add_trial(
                optuna.create_trial(
                    params=trial.params, distributions=trial.distributions, values=[record.value, against]
                )
            )
    if not both.get_trials(deepcopy=False):
        raise ValueError("there is no complete trial")
    return both


def _png(draw: Callable[[], Any]) -> bytes:
    """Draw without a screen, whatever the machine has, and leave no figure behind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    try:
        axes = draw()
        figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        figure.set_size_inches(PICTURE_WIDTH, PICTURE_HEIGHT)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
        return file.getvalue()
    finally:
        pyplot.close("all")
