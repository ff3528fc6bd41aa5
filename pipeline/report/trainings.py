"""What trainings came to, in a line an arm."""

from collections.abc import Sequence

from pipeline.data.observations import unscaled
from pipeline.learning.jobs import TrainingResult
from pipeline.names import Metric
from pipeline.play.evaluation import point_figures
from pipeline.tasks import Task


def input_warnings(task: Task) -> tuple[str, ...]:
    """What is to be said of observations that learning has a hard time with."""
    return tuple(
        f"  WARNING: {part} reaches the network as it is, in large numbers; scale it: "
        "pipeline.envs.scaling:ScaleObservation in environment.wrappers of the task"
        for part in unscaled(task.observation_space)
    )


def trainings_summary(
    stage: str, arms: Sequence[str], results: Sequence[TrainingResult], reused: Sequence[str] = ()
) -> tuple[str, ...]:
    """`finetune: pretrained: 5 seeds, final success 0.97 (0.96 to 0.98 over seeds), 1,003,520 steps`.

    `reused` names trainings that the store already had: `pretrained seed 1`.
    """
    lines = []
    if reused:
        lines.append(
            f"{stage}: {len(reused)} trainings with an equal content key were finished before and are not trained "
            f"again: {', '.join(reused)}"
        )
    for arm in dict.fromkeys(arms):
        chosen = [result for name, result in zip(arms, results, strict=True) if name == arm]
        success = [point_figures(result.final)[Metric.SUCCESS_RATE] for result in chosen]
        steps = sum(result.environment_steps for result in chosen)
        lines.append(
            f"{stage}: {arm}: {len(chosen)} seeds, success of the best checkpoint on fresh episodes "
            f"{sum(success) / len(success):.3f} ({min(success):.3f} to {max(success):.3f} over seeds), {steps:,} steps"
        )
    return tuple(lines)
