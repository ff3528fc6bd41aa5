"""Many processes at one store at once: promotions, roll backs, recordings and logging, checked against a model.

    python benchmarks/registry_race.py [--store sqlite|postgresql] [--operations 10000] [--processes 16] [--unlocked]

Every process approves, rolls back and records at random. What they report is put in the order of the moments that the
registry gave out and played again on a sequential model; every version's tags must then be what the model says, and
every recording must fall into a time in which its version was the approved one. Meanwhile a sampler reads the database
and counts the approved versions: one, at every moment. Then eight processes log to a run each, all at once.
`--unlocked` takes the lock away: the control, which must find lost updates. Exit code 1 when anything is wrong.

`postgresql` starts a server of its own in a temporary folder (Debian: `apt-get install postgresql`; Python: the extra
`postgresql`).
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from local_postgres import postgres
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from pipeline.errors import BadInput
from pipeline.names import Alias, Gate, Tag, VersionTag, registered_model
from pipeline.tracking import registry
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import connect, experiment_id

TASK = "race"
NAME = registered_model(TASK)
VERSIONS = 24
SEEDS = 8
KINDS = ("approve", "roll_back", "record")
SHARES = (4, 3, 3)
SNAPSHOT = """
SELECT a.version, t.value FROM registered_model_aliases a LEFT JOIN model_version_tags t
ON t.name = a.name AND t.version = a.version AND t.key = 'gate' WHERE a.name = :name AND a.alias = 'approved'
"""


@dataclass(frozen=True)
class Done:
    """What a process says about one operation."""

    id: str
    kind: str
    version: str
    began: str
    ended: str
    at: str | None  # the moment that the registry gave it; None: refused
    replaced: str | None = None
    refusal: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--points", type=int, default=2_000, help="that each of eight processes logs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unlocked", action="store_true", help="the control: without the registry's lock")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="race-") as folder, contextlib.ExitStack() as stack:
        uri = f"sqlite:///{folder}/mlflow.db"
        if arguments.store == "postgresql":
            uri = stack.enter_context(postgres())
        os.environ["MLFLOW_TRACKING_URI"] = uri
        os.environ["PIPELINE_SPOOL"] = f"{folder}/spool"
        faults = raced(uri, Path(folder), arguments)
        if not arguments.unlocked:
            faults += logged(SEEDS, arguments.points)
    for fault in faults[:20]:
        print(f"  WRONG: {fault}")
    print(f"{len(faults)} faults")
    return 1 if faults else 0


# --- promotions, roll backs, recordings ------------------------------------------------------------------------------


def raced(uri: str, folder: Path, arguments: argparse.Namespace) -> list[str]:
    in_a_process(prepare, folder)
    fork = multiprocessing.get_context("fork")
    stop, samples = fork.Event(), fork.SimpleQueue()
    sampler = fork.Process(target=sample, args=(uri, stop, samples))
    sampler.start()
    started = time.perf_counter()
    count = arguments.operations // arguments.processes
    workers = [
        fork.Process(target=work, args=(folder / f"{i}.jsonl", i, count, arguments.seed, arguments.unlocked))
        for i in range(arguments.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    stop.set()
    taken = samples.get()
    sampler.join()
    crashed = [f"process {i} ended with code {w.exitcode}" for i, w in enumerate(workers) if w.exitcode]
    done = [Done(**json.loads(line)) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    report(done, taken, seconds, arguments)
    bad = [f"the sampler saw {shown}, {n} times" for shown, n in taken.items() if shown != f"['{Gate.APPROVED}']"]
    return crashed + bad + in_a_process(compared, done)


def prepare(folder: Path) -> None:
    """A store with versions, the first of them approved."""
    client = connect()
    experiment_id(client, "race")
    (folder / "policy").mkdir()
    for number in range(1, VERSIONS + 1):
        registry.register_candidate(client, TASK, str(folder / "policy"), "", f"digest-{number}", True, "")
    registry.approve(client, client.get_model_version(NAME, "1"), "start", "start")


def work(path: Path, process: int, count: int, seed: int, unlocked: bool) -> None:
    """Do operations at random, one line each."""
    if unlocked:
        registry.exclusive = lambda purpose: contextlib.nullcontext()
    client, chosen = connect(), random.Random(f"{seed}-{process}")
    experiment = experiment_id(client, "race")
    with path.open("w") as out:
        for number in range(count):
            kind = chosen.choices(KINDS, SHARES)[0]
            version = str(chosen.randint(1, VERSIONS))
            done = operate(client, experiment, kind, f"{process}-{number}", version)
            out.write(json.dumps(vars(done)) + "\n")


def operate(client: MlflowClient, experiment: str, kind: str, id: str, version: str) -> Done:
    began = registry.now()
    try:
        if kind == "record":
            approved = registry.approved_version(client, TASK)
            assert approved is not None
            version = str(approved.version)
            at = registry.moment_of_use(client, approved, "recording")
            tags = {Tag.STAGE: "collect", Tag.LINEAGE_EXPERT: f"{NAME}/{version}", "recorded": at}
            run = client.create_run(experiment, tags=tags)
            client.set_terminated(run.info.run_id)
            return Done(id, kind, version, began, registry.now(), at)
        move = registry.approve if kind == "approve" else registry.roll_back
        moved = move(client, client.get_model_version(NAME, version), id, f"{kind} {id}")
        return Done(id, kind, version, began, registry.now(), moved.at, moved.replaced)
    except BadInput as error:
        return Done(id, kind, version, began, registry.now(), None, refusal=str(error))


def sample(uri: str, stop, samples) -> None:
    """Read, in one statement each time, which versions hold the alias and what their gate says."""
    seen: Counter[str] = Counter()
    engine = create_engine(uri)
    while not stop.is_set():
        with engine.connect() as connection:
            rows = connection.execute(text(SNAPSHOT), {"name": NAME}).fetchall()
        seen[str([gate for _, gate in rows])] += 1
        time.sleep(0.01)
    samples.put(seen)


def report(done: list[Done], taken: Counter[str], seconds: float, arguments: argparse.Namespace) -> None:
    kinds = Counter(f"{d.kind}{' refused' if d.at is None else ''}" for d in done)
    who = f"{len(done)} operations of {arguments.processes} processes in {seconds:.0f} s"
    print(f"{arguments.store}: {who}: {dict(kinds)}")
    print(f"approved versions at a moment, sampled: {dict(taken)}")


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass
class Version:
    """What the model knows of a version."""

    history: list[list[str | None]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Model:
    """One version after the other is approved; nobody else is there."""

    versions: dict[str, Version]
    holder: str | None = None
    held: list[tuple[str, str]] = field(default_factory=list)  # (from, version)

    def approve(self, version: str, at: str, id: str, reason: str, back: bool) -> str | None:
        """Returns the version that is replaced."""
        replaced = self.holder if self.holder != version else None
        new = self.versions[version]
        if not new.history or new.history[-1][1] is not None:
            new.history.append([at, None])
        new.tags |= {
            VersionTag.GATE: Gate.APPROVED,
            VersionTag.GATE_REASON: reason,
            VersionTag.GATE_RUN_ID: id,
            VersionTag.APPROVED_AT: at,
        }
        if replaced is not None:
            new.tags[VersionTag.REPLACED] = replaced
            old = self.versions[replaced]
            old.history[-1][1] = at
            old.tags |= {VersionTag.GATE: Gate.SUPERSEDED, VersionTag.REPLACED_BY: version}
            if back:
                old.tags[VersionTag.GATE_REASON] = reason
        self.holder = version
        self.held.append((at, version))
        return replaced

    def holders(self, began: str, ended: str) -> set[str]:
        """Who was approved at any moment of that time."""
        ends = [*(at for at, _ in self.held[1:]), "9999"]
        return {version for (at, version), until in zip(self.held, ends, strict=True) if at <= ended and until >= began}


def compared(done: list[Done]) -> list[str]:
    """Play the operations on the model and hold the store to it; returns what differs."""
    client = connect()
    first = client.get_model_version(NAME, "1")
    history = json.loads(first.tags[VersionTag.HISTORY])
    if not history:  # lost, as every update can be without the lock
        return ["version 1: its history is empty, the approval that it began with should be there"]
    start = history[0][0]
    model = Model({str(n): Version() for n in range(1, VERSIONS + 1)})
    model.approve("1", start, "start", "start", back=False)
    faults = []
    # a recording takes no time under the lock: of one millisecond it is the first
    for d in sorted((d for d in done if d.at is not None), key=lambda d: (d.at, d.kind != "record")):
        assert d.at is not None
        if d.kind == "record":
            if model.holder != d.version:
                faults.append(f"{d.id} recorded from version {d.version} at {d.at}, approved was {model.holder}")
            continue
        back = d.kind == "roll_back"
        replaced = model.approve(d.version, d.at, d.id, f"{d.kind} {d.id}", back)
        if replaced != d.replaced:
            faults.append(f"{d.id} ({d.kind} {d.version} at {d.at}) replaced {d.replaced}, should be {replaced}")
    faults += [fault for d in done if d.at is None and (fault := refused_wrongly(d, model))]
    recorded = Counter(d.at for d in done if d.kind == "record" and d.at is not None)
    return faults + differences(client, model) + recordings(client, recorded)


def refused_wrongly(d: Done, model: Model) -> str | None:
    holders = model.holders(d.began, d.ended)
    if "approved version already" in d.refusal:
        right = d.version in holders
    elif "never approved" in d.refusal:
        right = not any(version == d.version and at < d.began for at, version in model.held)
    else:
        right = "is not approved" in d.refusal and holders != {d.version}
    return None if right else f"{d.id} ({d.kind} {d.version}) was refused wrongly: {d.refusal}"


def differences(client: MlflowClient, model: Model) -> list[str]:
    """Every tag of every version, and the alias."""
    faults = []
    for number, version in model.versions.items():
        stored = client.get_model_version(NAME, number)
        if (Alias.APPROVED in stored.aliases) != (number == model.holder):
            faults.append(f"version {number} has aliases {stored.aliases}, approved is {model.holder}")
        if json.loads(stored.tags.get(VersionTag.HISTORY, "[]")) != version.history:
            faults.append(f"version {number}: its periods of approval are not the {len(version.history)} of the model")
        for key, value in version.tags.items():
            if stored.tags.get(key) != value:
                faults.append(f"version {number}: {key} is {stored.tags.get(key)}, should be {value}")
    return faults


def recordings(client: MlflowClient, expected: Counter[str | None]) -> list[str]:
    experiment = experiment_id(client, "race")
    found: Counter[str | None] = Counter()
    token = None
    while True:
        page = client.search_runs([experiment], "tags.stage = 'collect'", max_results=1_000, page_token=token)
        found.update(run.data.tags["recorded"] for run in page)
        token = page.token
        if not token:
            return (
                [] if found == expected else [f"{found.total()} recordings in the store, {expected.total()} were made"]
            )


# --- logging ---------------------------------------------------------------------------------------------------------


def logged(seeds: int, points: int) -> list[str]:
    """Processes log to a run each, all at once, through the one spool of this machine."""
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    started = time.perf_counter()
    workers = [fork.Process(target=log_points, args=(points, answers)) for _ in range(seeds)]
    for worker in workers:
        worker.start()
    got = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    calls = sorted(ms for _, ms in got for ms in ms)
    p99 = statistics.quantiles(calls, n=100)[98]
    print(
        f"{seeds} processes logged {points} points each in {seconds:.0f} s; "
        f"a call took {statistics.median(calls):.2f} ms, p99 {p99:.1f} ms, at most {calls[-1]:.0f} ms"
    )
    return in_a_process(missing_points, [run_id for run_id, _ in got], points)


def log_points(points: int, answers) -> None:
    client = connect()
    parent = StageRun(client, "", experiment_id(client, "race"), Path())
    calls = []
    with Forwarder(parent) as forwarder:
        run = forwarder.child("seed", {})
        for step in range(points // 10):
            started = time.perf_counter()
            run.metric_series([(f"m{i}", float(step), step) for i in range(10)])
            calls.append(1_000 * (time.perf_counter() - started))
        forwarder.settle(600.0)
    answers.put((run.run_id, calls))


def missing_points(run_ids: list[str], points: int) -> list[str]:
    client = connect()
    expected = [(step, float(step)) for step in range(points // 10)]
    return [
        f"run {run_id}, m{i}: not its {len(expected)} points, each once"
        for run_id in run_ids
        for i in range(10)
        if sorted((p.step, p.value) for p in client.get_metric_history(run_id, f"m{i}")) != expected
    ]


def in_a_process(function, *arguments):
    """Its answer, from a process of its own: no connection to the store exists in this one when it forks others."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    raise SystemExit(main())
