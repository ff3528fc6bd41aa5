"""The run of a stage: opened with its configuration on record, written to, closed with what became of it."""

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import name_utils
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import (
    MLFLOW_LOGGED_IMAGES,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)

from pipeline.config.loading import flatten, to_data, to_yaml
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput, Interrupted, disk_refusal, machine_fault, say, shortened
from pipeline.files import scratch, sqlite_file
from pipeline.names import CONFIG_PARAM_PREFIX, RUN_VARIABLE, Artifact, Tag
from pipeline.tracking import liveness, operations
from pipeline.tracking.content_key import ContentKey, content_key
from pipeline.tracking.host import environment_record, git_state
from pipeline.tracking.operations import MAX_PARAM_LENGTH, Batch, Close, Files, LoggedPolicy, Operation, Text
from pipeline.tracking.runs import points_of, search
from pipeline.tracking.spool import Spool
from pipeline.tracking.store import (
    chosen_experiment,
    connect,
    exclusive,
    local_folder,
    permitted,
    present_experiment,
    refused_as,
    unanswered,
)


@dataclass
class StageRun:
    """An open MLflow run and what can be written to it.

    With a spool nothing is written to the store here: it waits on this machine and is forwarded.
    """

    client: MlflowClient
    run_id: str
    experiment_id: str
    folder: Path  # for files on their way to the store; gone when the run closes
    spool: Spool | None = None
    continued: bool = False  # it was interrupted before, and goes on
    record: list[Operation] = field(default_factory=list)  # what it runs and takes in, for runs nested in it too
    known: Counter[tuple[str, int]] = field(default_factory=Counter)  # metrics and steps of points that the store has

    def write(self, operation: Operation) -> Any:
        """Do it to the store, or leave it in the spool; what the store made of it, None while it waits."""
        if self.spool is None:
            return operation.perform(self.client, self.run_id, again=self.continued)
        return self.spool.append(self.run_id, operation)

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Set run tags; values become text, True and False become `true` and `false`, one that is None is left out."""
        self.write(Batch(tags=operations.texts(tags)))

    def describe(self, text: str) -> None:
        """The description that the UI shows above a run, as Markdown."""
        self.tag({MLFLOW_RUN_NOTE: text})

    def link(self, run_id: str, words: str) -> str:
        """Markdown that leads to another run in the UI, wherever that is served."""
        # without the type, a browser that never saw the store shows its pages of prompts and traces beside the run
        return f"[{words}](#/experiments/{self.experiment_id}/runs/{run_id}?workflowType=machine_learning)"

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log finite figures at a step; a figure that is not finite was not measured and is left out."""
        self.metric_series([(name, value, step) for name, value in values.items()])

    def metric_series(self, points: Sequence[tuple[str, float, int]]) -> None:
        """Log `(name, value, step)` points in few requests.

        A run that goes on says again what it said before it was interrupted: as many points of a metric at a step as
        the store had then are left out.
        """
        fresh = []
        for name, value, step in points:
            self.known[name, step] -= 1
            if self.known[name, step] < 0:
                fresh.append((name, value, step))
        if fresh:
            self.write(Batch(points=operations.measured(fresh)))

    def confirmed_metrics(self, values: Mapping[str, float]) -> None:
        """Log figures that something is decided by, and read them back. Raises BadInput when the store has others."""
        points = operations.measured((name, value, 0) for name, value in values.items())
        Batch(points=points).perform(self.client, self.run_id)
        kept = self.client.get_run(self.run_id).data.metrics
        for name, value in values.items():
            if math.isfinite(value) and kept.get(name) != value:
                raise BadInput(
                    f"run {self.run_id}: the store keeps {kept.get(name)} as {name}, measured was {value}; nothing was "
                    "decided: check the store and run the stage again"
                )

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; a long one is cut, the whole stands in the config artifact."""
        self.write(_params(values))

    def text(self, content: str, path: str) -> None:
        """Store a text artifact under `path`, e.g. `diagnostics.md`."""
        self.write(Text(content=content, path=path))

    def json(self, content: Any, path: str) -> None:
        """Store an artifact as indented JSON."""
        self.text(json_text(content), path)

    def file(self, local: Path, folder: str | None = None) -> None:
        """Store a file, or all of a local folder, under an artifact folder."""
        self.write(Files(local=str(local), folder=folder))

    def film(self, film: Path, step: int) -> str:
        """Keep a film, and show the small `.webp` beside it in the UI's image grid by step.

        What `mlflow.log_image` does for still pictures, but for its made-up names: the same step twice is one. Returns
        Markdown that shows the small one in a description.
        """
        self.file(film, Artifact.PLAYBACK)
        name = f"{Artifact.PLAYBACK}+step+{step}+timestamp+0+film"
        with tempfile.TemporaryDirectory(dir=scratch()) as place:
            for ending in (".webp", "+compressed.webp"):  # when it is opened, and in the grid
                shutil.copy(film.with_suffix(".webp"), Path(place) / f"{name}{ending}")
                self.file(Path(place) / f"{name}{ending}", "images")
        self.tag({MLFLOW_LOGGED_IMAGES: True})
        # the UI's page is the root of its server, wherever that is: an address without a slash in front is below it
        return f"![film](get-artifact?path=images/{quote(name)}%2Bcompressed.webp&run_uuid={self.run_id})"

    def policy(
        self,
        folder: Path,
        name: str,
        step: int,
        figures: Mapping[str, float],
        artifact: str | None = None,
        **candidate: Any,
    ) -> str | None:
        """Log a policy folder as an MLflow model with its figures at a step; returns its URI `models:/m-...`.

        `artifact` also stores the folder under that path of the run's own artifacts. A `candidate` for a task's expert
        (`task`, `digest`, `promotable`, `description`) is registered and returned as `models:/<task>-expert/<version>`,
        which the run keeps in the tag `output.expert`. None when it waits in the spool.
        """
        points = operations.measured((figure, value, step) for figure, value in figures.items())
        made: str | None = self.write(
            LoggedPolicy(
                local=str(folder), name=name, step=step, points=points, artifact=artifact,
                experiment_id=self.experiment_id, **candidate,
            )
        )  # fmt: skip
        return made

    def write_behind(self) -> None:
        """From now on leave everything in the spool: the store does not answer."""
        self.spool = self.spool or Spool()

    def close(self, status: str) -> None:
        """End the run FINISHED, FAILED or KILLED."""
        self.write(Close(status=status, time=operations.milliseconds()))

    def record_config(self, config: Any, task: TaskConfig, inputs: Mapping[str, str]) -> None:
        """Put the resolved configuration and the content key on record before the work starts.

        `inputs` maps a role to the digest of what was read.
        """
        data = to_data(config)
        key = content_key(data, task, inputs)
        snqi = {} if task.snqi is None else vars(task.snqi)
        files = {
            Artifact.CONFIG: to_yaml(config),
            Artifact.TASK: to_yaml(task),
            **{f"{Artifact.SNQI}/{name}.json": Path(path).read_text(encoding="utf-8") for name, path in snqi.items()},
            Artifact.ENVIRONMENT: json_text(environment_record()),
        }
        settings = _params({f"{CONFIG_PARAM_PREFIX}{key}": value for key, value in flatten(data).items()})
        self.record = [*(Text(content=content, path=path) for path, content in files.items()), settings]
        for operation in self.record:
            self.write(operation)
        self.tag({Tag.TASK: task.name})
        self.record_key(key)

    def record_key(self, key: ContentKey) -> None:
        """Put on record what decides the run's content: the key to find it by, its ingredients to explain it with."""
        self.text(key.to_json(), Artifact.CONTENT_KEY)
        self.tag({Tag.CONTENT_KEY: key.digest})

    def artifact_place(self, path: str) -> str:
        """Where an artifact lies: a path for a local store, a URI for any other."""
        uri = f"{self.client.get_run(self.run_id).info.artifact_uri}/{path}"
        return local_file_uri_to_path(uri) if uri.startswith("file:") else uri


def _params(values: Mapping[str, Any]) -> Batch:
    return Batch(params={key: text[:MAX_PARAM_LENGTH] for key, text in operations.texts(values).items()})


def json_text(content: Any) -> str:
    """Indented JSON with sorted keys."""
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


_opened: list[StageRun] = []  # the runs of this process, the outermost first


@contextlib.contextmanager
def open_run(
    stage: str, experiment: str | None = None, nested: bool = False, command: str | None = None
) -> Iterator[StageRun]:
    """Open the run of a stage: one that was interrupted, the one `mlflow run` made, a nested one, or a new one.

    `command` is the digest of what is asked for: when the newest run of that command was interrupted, it goes on. A
    user's error ends it FAILED with the error's line as its description; so does any other exception. What ends it
    from outside ends it KILLED. One that a disk ended FAILED goes on like an interrupted one.
    """
    # taken out of the environment: MLflow would give the next run that is opened, a nested one too, the same id again
    run_id = None if nested else os.environ.pop(RUN_VARIABLE, None)
    database = sqlite_file(mlflow.get_tracking_uri())
    if run_id and database is not None and not database.exists():
        raise BadInput(_no_such_run(run_id))
    client = connect()
    given = _given_run(client, stage, run_id) if run_id else None
    outer = _opened[-1] if nested and _opened else None
    with permitted(stage), tempfile.TemporaryDirectory(prefix=f"{stage}-", dir=scratch()) as folder:
        run = _start(client, stage, experiment, given, outer, command, Path(folder))
        _opened.append(run)
        status, last = "FAILED", {}
        try:
            present_experiment(client, run.experiment_id)
            with liveness.beating(client, run.run_id):
                yield run
            status = "FINISHED"
        except BadInput as error:
            last = {MLFLOW_RUN_NOTE: str(error), Tag.PROCESS: _whose_end(error)}
            raise
        except (KeyboardInterrupt, Interrupted) as error:
            status = "KILLED"
            reason = f": {shortened(str(error), 500)}" if str(error) else ""
            last = {MLFLOW_RUN_NOTE: f"interrupted{reason}", Tag.PROCESS: liveness.INTERRUPTED}
            raise
        except Exception as error:
            defect = f"failed: {type(error).__name__}: {shortened(str(error), 500)}"
            last = {MLFLOW_RUN_NOTE: machine_fault(stage, error) or defect}
            if unanswered(error):
                raise BadInput(
                    f"{stage}: the tracking store {shortened(mlflow.get_tracking_uri())} stopped answering "
                    f"({shortened(str(error), 200)}); start it and give the same command again"
                ) from None
            last[Tag.PROCESS] = _whose_end(error)
            raise
        finally:
            _opened.remove(run)
            try:
                _end(run, stage, status, last)
            except Exception as error:
                # a disk that does not even take the end of a run that failed: whoever opens a run next ends it
                if status == "FINISHED" or disk_refusal(error) is None:
                    raise
            if status == "FINISHED" or last.get(Tag.PROCESS) == "":
                shutil.rmtree(checkpoint_folder(run), ignore_errors=True)


def _whose_end(error: Exception) -> str:
    """The tag `process` of a run that an error ends: it ended in order, or the disk did that from outside."""
    return "" if disk_refusal(error) is None else liveness.INTERRUPTED


def checkpoint_folder(run: StageRun) -> Path:
    """Where the trainings of a stage's run keep their checkpoints, on this machine; gone when it has ended in order."""
    return local_folder("checkpoints") / run.run_id


def _given_run(client: MlflowClient, stage: str, run_id: str) -> Run:
    """The run of MLFLOW_RUN_ID, which `mlflow run` sets. Raises BadInput when it holds a record that is not ours."""
    with refused_as(_no_such_run(run_id)):
        run = client.get_run(run_id)
    tags, status = run.data.tags, run.info.status
    works = Tag.PROCESS in tags and not liveness.is_gone(run)
    reasons = {
        "it was deleted": run.info.lifecycle_stage != "active",
        f"it has ended ({status})": status in ("FINISHED", "FAILED"),
        f"it is a run of stage {tags.get(Tag.STAGE)!r}": tags.get(Tag.STAGE, stage) != stage,
        "a process still works on it": status == "RUNNING" and works,
    }
    for reason, holds in reasons.items():
        if holds:
            raise BadInput(
                f"{RUN_VARIABLE} = {shortened(run_id)}: {reason}; unset it, and {stage} gets a run of its own"
            )
    return run


def _no_such_run(run_id: str) -> str:
    return (
        f"{RUN_VARIABLE} = {shortened(run_id)}: store {shortened(mlflow.get_tracking_uri())} has no such run; unset "
        "it, or, if `mlflow run` set it, give the file in MLFLOW_TRACKING_URI by its absolute path: stages run in the "
        "project's folder"
    )


def _start(
    client: MlflowClient,
    stage: str,
    experiment: str | None,
    given: Run | None,
    outer: StageRun | None,
    command: str | None,
    folder: Path,
) -> StageRun:
    """Close what other processes left open, and start a run or go on with one."""
    tags = operations.texts({Tag.STAGE: stage, Tag.COMMAND: command, **code_tags(), **liveness.signs_of_life()})
    with exclusive("open"):
        project = "" if given is None else given.data.tags.get(MLFLOW_SOURCE_NAME, "")
        liveness.close_stale(client, search(client, {}, status="RUNNING"), project)
        for left in local_folder("checkpoints").glob("*"):  # of a process that was killed before it had removed them
            with contextlib.suppress(MlflowException):  # a run of another store, or a deleted one: not ours to judge
                if client.get_run(left.name).info.status == "FINISHED":
                    shutil.rmtree(left, ignore_errors=True)
        asked = {} if command is None else {Tag.STAGE: stage, Tag.COMMAND: command}
        newest = search(client, asked, limit=1, status=None) if asked else []
        earlier = next((run for run in newest if run.info.status != "FINISHED" and liveness.is_gone(run)), None)
        if earlier is not None:  # from now on it is this process's
            woken = {**liveness.signs_of_life(), **liveness.idle_until_now(earlier), MLFLOW_RUN_NOTE: ""}
            Batch(tags=woken).perform(client, earlier.info.run_id)
            client.update_run(earlier.info.run_id, status="RUNNING")
    if earlier is not None:
        run_id = earlier.info.run_id
        if given is not None and given.info.run_id != run_id:
            client.set_tag(given.info.run_id, MLFLOW_RUN_NOTE, f"goes on as run {run_id}, which was interrupted")
            client.set_tag(given.info.run_id, Tag.CONTINUES, run_id)
        known = points_of(client, run_id)
        return StageRun(client, run_id, earlier.info.experiment_id, folder, continued=True, known=known)
    if given is not None:
        name = given.info.run_name or ""
        adjective, animal, number = (*name.split("-", 2), "", "", "")[:3]
        # MLflow's own: adjective-animal-123
        made_up = adjective in name_utils._GENERATOR_PREDICATES and animal in name_utils._GENERATOR_NOUNS
        client.update_run(
            given.info.run_id, status="RUNNING", name=stage if not name or (made_up and number.isdigit()) else name
        )
        Batch(tags=tags).perform(client, given.info.run_id)
        return StageRun(client, given.info.run_id, given.info.experiment_id, folder)
    if outer is not None:
        tags[MLFLOW_PARENT_RUN_ID] = outer.run_id
    inherited = outer.experiment_id if outer is not None and experiment is None else None
    chosen = inherited or chosen_experiment(client, experiment)
    created = client.create_run(chosen, tags=resolve_tags(tags), run_name=stage)
    return StageRun(client, created.info.run_id, chosen, folder)


def _end(run: StageRun, stage: str, status: str, last: Mapping[str, str]) -> None:
    """Close a run. When the store does not answer, that waits in the spool, and one line says so."""
    try:
        run.tag(last)
        run.close(status)
    except Exception as error:
        if run.spool is not None or not unanswered(error):
            raise
        run.write_behind()
        return _end(run, stage, status, last)  # which raises whatever goes wrong, now that there is a spool
    if run.spool is None:
        return
    say(
        f"{stage}: the tracking store {shortened(mlflow.get_tracking_uri())} does not answer; {run.spool.waiting()} "
        f"records wait in {run.spool.folder} (run {run.run_id}): deliver them with python -m pipeline sync",
        sys.stderr,
    )


def code_tags() -> dict[str, Any]:
    """Tags that say which code a run ran, and who, by the login at a server: MLflow asks the system alone."""
    commit, dirty = git_state()
    login = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return {Tag.CODE_COMMIT: commit, Tag.CODE_DIRTY: dirty, **({MLFLOW_USER: login} if login else {})}
