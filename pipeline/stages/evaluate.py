"""`evaluate`: any policy on any scenario set, as a run of its own."""

from collections.abc import Mapping

from pipeline.config.loading import load_task
from pipeline.config.stages import Evaluate
from pipeline.errors import BadInput
from pipeline.executors.players import Player, rollouts
from pipeline.names import EVAL_PREFIX, Artifact, Metric, Tag
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import summarise, summarise_by_scenario, with_intervals
from pipeline.report.clips import check_drawable, draw_episode, save_film
from pipeline.report.progress import ProgressBar
from pipeline.report.stage_pages import statistics_table
from pipeline.report.text import one_line
from pipeline.stages import StageOutcome
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage
from pipeline.tracking.groups import records_data
from pipeline.tracking.models import find_policy
from pipeline.tracking.runs import get_run
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("policy",)
MOST_SHOWN = 4  # films in the run's description; all are among its images


def run(run: StageRun, config: Evaluate, upstream: Mapping[str, str]) -> StageOutcome:
    task, reference = Task(load_task(config.task), config.environment), upstream.get("policy", "latest")
    episodes = task.episodes(config.scenario_set, config.seed, config.episodes, Purpose.EVALUATE)
    if (script := config.scripted) is not None:
        if reference != "latest":
            raise BadInput(f"policy {reference!r} and scripted.demonstrator exclude each other; give one of them")
        name, demonstrator = script.demonstrator, scripted(script.demonstrator, script.kwargs)
        run.record_config(config, task.config, {"policy": demonstrator.provenance["digest"]})
        run.json(demonstrator.provenance, "demonstrator.json")
        player = Player(name, script=script)
    else:
        policy = find_policy(run.client, reference, task.config.name, {Tag.STAGE: "pretrain"})
        run.record_config(config, task.config, {"policy": policy.digest})
        maker = {} if policy.run_id is None else get_run(run.client, policy.run_id, "policy").data.tags
        run.tag(lineage.from_policy(policy, "policy", maker))
        name = policy.reference
        player = Player(name, str(policy.folder), deterministic=config.deterministic)
    task, actor = player.seated(task)
    check_drawable(task, "pictures", config.pictures)
    warnings = tuple(f"TAINTED: {reason}" for reason in lineage.inherit_taint(run))
    with ProgressBar("evaluate", len(episodes), "episodes") as progress:
        records = rollouts(task, player, episodes, progress.add)
    table, shown = statistics_table(records), statistics_table(records, strips=True)
    figures = summarise(records)
    run.metrics({f"{EVAL_PREFIX}{figure}": value for figure, value in with_intervals(figures).items()})
    by_scenario = summarise_by_scenario(records).items()
    run.json({scenario: with_intervals(figures) for scenario, figures in by_scenario}, "evaluation_by_scenario.json")
    run.json(records_data(records), "episodes.json")
    run.text("".join(f"> **{one_line(warning)}**\n\n" for warning in warnings) + table, "statistics.md")
    films = []
    for number, episode in enumerate(episodes[: config.pictures]):
        about = f"{name} in episode {number}: {episode.scenario}, seed {episode.seed}"
        length = int(records.metrics[Metric.LENGTH][number])
        film = save_film(draw_episode(task, episode, actor, about, length), run.folder / f"episode-{number}")
        films.append(run.film(film, number))
    drawn = f"  {config.pictures} drawn: {Artifact.PLAYBACK}/ of run {run.run_id}"
    success = figures[Metric.SUCCESS_RATE]
    title = f"evaluate: {name}: success {success:.3f} on {len(episodes)} episodes of {config.scenario_set!r}"
    whole = f"  actions in bars: statistics.md of run {run.run_id}"
    lines = (title, *warnings, whole, *([drawn] if config.pictures else []))
    return StageOutcome(lines, see=" ".join(films[:MOST_SHOWN]), table=shown)
