"""Damage every kind of file and parameter that the product reads, and watch what it does with them.

    python benchmarks/hostile_input.py --cases 10000 [--seed 0] [--folder /tmp/hostile] [--only 1234]

Every case takes an undamaged sample of one door (`hostile_doors.py`), damages it (`hostile_damage.py`) and has the
product read it. It must be taken, or refused with one printable line of bounded length, within 5 s of processor time
and 512 MiB, and nothing may be left behind. An audit hook watches what the interpreter does meanwhile: a process, a
connection, an unpickled class, a module that data named (but at the doors that are for code), or a file written outside
the case's own folders fails the case, whoever catches the exception.

A case follows from its seed and number alone (`--only` repeats one). Cases run in a child process: one that dies takes
its case with it, and the next child goes on behind it. Exit code 1 when a case failed. Needs Linux.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECONDS = 5.0  # of processor time a case
PATIENCE = (20.0, 3)  # seconds on the clock, and how often they may pass: a stopped process misses all but one
MEBIBYTES = 512  # of memory a case
LARGEST_FILE = 256 << 20  # bytes that a case may write
LONGEST_LINE = 2_000  # characters of a refusal
PROCESSES = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"}
)
CONNECTIONS = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostby",
    "urllib.",
    "ftplib.",
)
WRITES = {  # event -> (place of a path, place of the folder it is relative to) among its arguments
    "os.mkdir": ((0, 2),), "os.rename": ((0, 2), (1, 3)), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.chmod": ((0, 2),), "os.truncate": ((0, None),),
    "os.utime": ((0, 3),), "sqlite3.connect": ((0, None),),
}  # fmt: skip
BROKEN = 3  # exit code of a child that cannot go on
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """What the interpreter was about to do must not happen. No `except Exception` catches it."""


class TooLong(BaseException):
    """The case used up its processor time."""


class Guard:
    """Watches one case after the other. The hook cannot be taken away again: use it in a process of its own."""

    def __init__(self, writable: Sequence[Path]) -> None:
        self._writable = tuple(os.path.realpath(path) for path in writable)
        self._known: set[str] = set()
        self._learning = False
        self._named = ""  # all that the case's data says
        self._code = False
        self._active = False
        self.faults: list[str] = []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """What is imported now, or looked for, is what the product imports anyway, early or late."""
        self._learning = True
        yield
        self._learning = False
        self._known |= {name.partition(".")[0] for name in sys.modules}

    @contextlib.contextmanager
    def watching(self, named: str, code: bool) -> Iterator[None]:
        """`named`: the text of the data; `code`: may it name modules."""
        self._named, self._code, self.faults, self._active = named, code, [], True
        try:
            yield
        finally:
            self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._learning and event == "import":
            self._known.add(str(arguments[0]).partition(".")[0])
        if not self._active:
            return
        self._active = False  # what is looked up here is no event of the case
        try:
            fault = self._fault(event, arguments)
        finally:
            self._active = True
        if fault is not None:
            self.faults.append(fault)
            raise Forbidden(fault)

    def _fault(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event in PROCESSES or event.startswith(CONNECTIONS) or event == "pickle.find_class":
            return f"{event} {arguments!r}"[:300]
        if event == "import" and not self._code:
            name = str(arguments[0])
            new = name.partition(".")[0] not in self._known
            if new or ("." in name and name in self._named):
                return f"imports {name}"
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITING if isinstance(flags, int) else isinstance(mode, str) and set(mode) & set("wax+")
            if writes and not self._allowed(path if isinstance(path, int) else os.path.realpath(path)):
                return f"writes {path!r}"[:300]
        elif event in WRITES:
            for place, relative_to in WRITES[event]:
                if not self._allowed(arguments[place], -1 if relative_to is None else arguments[relative_to]):
                    return f"{event} {arguments[place]!r}"[:300]
        return None

    def _allowed(self, path: Any, relative_to: int = -1) -> bool:
        if isinstance(path, int) or path in (":memory:", "/dev/null"):
            return True
        base = os.getcwd() if relative_to == -1 else os.readlink(f"/proc/self/fd/{relative_to}")
        folder, name = os.path.split(os.path.join(base, os.fsdecode(path)))
        place = os.path.join(os.path.realpath(folder), name)
        return f"{place}{os.sep}".startswith(tuple(f"{writable}{os.sep}" for writable in self._writable))


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    number: int
    door: str
    damage: str
    said: str  # "taken", or the line of the refusal
    fault: str | None

    @property
    def taken(self) -> bool:
        return self.said == "taken"


def watched(read: Callable[[], None], guard: Guard, named: str, code: bool) -> tuple[str, str | None]:
    """Have something read under guard and limits: what was said ("taken", or a refusal), and the fault or None."""
    from pipeline.errors import BadInput

    Path("/proc/self/clear_refs").write_text("5")  # the highest point of memory is counted anew
    before, started = _peak(), time.process_time()
    said, fault = "taken", None
    late = Counter[str]()

    def too_late(*_: Any) -> None:
        late["ticks"] += 1
        if late["ticks"] > PATIENCE[1]:
            raise TooLong

    try:
        signal.signal(signal.SIGALRM, too_late)
        signal.setitimer(signal.ITIMER_PROF, SECONDS, 0.5)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE[0], PATIENCE[0])
        with guard.watching(named, code):
            read()
    except BadInput as error:
        said = str(error)
        fault = _fault_of_line(said)
    except TooLong:
        fault = f"took longer than {SECONDS:g} s of processor time, or waited for nobody"
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"[:400] + _place(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if guard.faults:
        fault = guard.faults[0]
    if fault is None and time.process_time() - started > SECONDS:
        fault = f"took {time.process_time() - started:.1f} s"
    if fault is None and _peak() - before > MEBIBYTES:
        fault = f"took {_peak() - before} MiB"
    return said, fault


def _fault_of_line(line: str) -> str | None:
    if not line.strip():
        return "an empty refusal"
    if len(line) > LONGEST_LINE:
        return f"a refusal of {len(line)} characters: {line[:200]!r}"
    strange = [character for character in line if not character.isprintable()]
    return f"a refusal with {strange[0]!r}: {line[:300]!r}" if strange else None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/pipeline/" in frame.filename] or frames
    return f" [{'/'.join(ours[-1].filename.split('/')[-2:])}:{ours[-1].lineno}]" if ours else ""


def _peak() -> int:
    """MiB of memory that this process needed at most since that was last counted anew."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def _too_long(*_: Any) -> None:
    raise TooLong


# --- cases -----------------------------------------------------------------------------------------------------------


class Cases:
    """All doors with their samples below a folder, and the guard: for one process."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._case, self._temporary = folder / "case", folder / "temporary"
        for place in (self._temporary, folder / "store"):
            place.mkdir(parents=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/store/mlflow.db"
        os.environ["TMPDIR"] = tempfile.tempdir = str(self._temporary)
        sys.dont_write_bytecode = True
        from hostile_doors import ROOT, doors

        os.chdir(ROOT)
        self.doors = doors(folder / "samples")
        self.guard = Guard((self._case, self._temporary, folder / "store"))
        with self.guard.learning():
            self._warm_up()
        self._kept = set(self._temporary.iterdir())  # goes when this process ends
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), resource.RLIM_INFINITY))
        # a copy of /dev/zero must not fill the disk, whoever makes it
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        signal.signal(signal.SIGPROF, _too_long)

    def _warm_up(self) -> None:
        """Every undamaged sample once: all that is imported late is imported; a sound one that is refused is a bug."""
        from pipeline.errors import BadInput

        for door in self.doors:
            for sample in door.samples:
                self._copy(sample)
                try:
                    door.read(self._case)
                except BadInput:
                    if door.sound:
                        raise
                else:
                    if not door.sound and door.name == "command line":
                        raise RuntimeError(f"{sample} was to end at what is not there")

    def _copy(self, sample: Path) -> None:
        if self._case.exists():
            shutil.rmtree(self._case)
        shutil.copytree(sample, self._case, symlinks=True)

    def play(self, number: int) -> Outcome:
        from hostile_damage import damage
        from hostile_doors import damaged_files

        rng = random.Random(f"{self._seed}:{number}")
        door = rng.choices(self.doors, [door.weight for door in self.doors])[0]
        sample = rng.choice(door.samples)
        self._copy(sample)
        what = damage(rng, self._case, damaged_files(door, sample))
        if door.seal is not None and rng.random() < 0.6:
            door.seal(self._case)
            what += ", sealed"
        said, fault = watched(lambda: door.read(self._case), self.guard, _text(self._case), door.code)
        left = set(self._temporary.iterdir()) - self._kept
        if left:
            fault = fault or f"left {min(left).name} behind"
            self._kept |= left
        return Outcome(number, door.name, f"{sample.name}: {what}", said, fault)


def _text(folder: Path) -> str:
    """What the files of a case say, as far as they are text."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return "\n".join(path.read_bytes()[:200_000].decode("latin-1") for path in files)


def play_all(numbers: Sequence[int], seed: int, folder: Path) -> Iterator[Outcome]:
    """Play cases in child processes, one after the other; a child that dies fails the case it was at."""
    waiting, child = list(numbers), 0
    while waiting:
        child += 1
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(waiting, seed, folder / f"child{child}", writer)
        os.close(writer)
        with os.fdopen(reader) as lines:
            for line in lines:
                data = json.loads(line)
                if "door" in data:
                    waiting.remove(data["number"])
                    yield Outcome(**data)
        _, status = os.waitpid(pid, 0)
        shutil.rmtree(folder / f"child{child}", ignore_errors=True)
        if status != 0:
            if not waiting or os.waitstatus_to_exitcode(status) == BROKEN:
                raise RuntimeError("the cases cannot be played")
            fault = f"the process ended with {os.waitstatus_to_exitcode(status)}"
            yield Outcome(waiting.pop(0), "?", "?", "", fault)


def _child(numbers: Sequence[int], seed: int, folder: Path, writer: int) -> None:
    """Play cases and write a line for each; ends the process."""
    try:
        cases = Cases(folder, seed)
        with os.fdopen(writer, "w") as lines:
            for number in numbers:
                lines.write(json.dumps(asdict(cases.play(number))) + "\n")
                lines.flush()
    except BaseException:  # a fault of these files, not of the product
        traceback.print_exc()
        os._exit(BROKEN)
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where samples and cases are written; default: a temporary folder")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of single cases, told in full")
    known = parser.parse_args()
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=known.folder) as folder:
        numbers = known.only or range(known.cases)
        outcomes = []
        for outcome in play_all(numbers, known.seed, Path(folder)):
            outcomes.append(outcome)
            if outcome.fault or known.only:
                print(f"case {outcome.number} ({outcome.door}; {outcome.damage}): {outcome.fault or outcome.said}")
                sys.stdout.flush()
    seconds = time.process_time() - started + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    counts = Counter((o.door, "failed" if o.fault else "taken" if o.taken else "refused") for o in outcomes)
    for door in sorted({o.door for o in outcomes}):
        print(f"{door:16}" + "".join(f"{counts[door, what]:7} {what}" for what in ("refused", "taken", "failed")))
    longest = max((len(o.said) for o in outcomes), default=0)
    failed = sum(o.fault is not None for o in outcomes)
    print(
        f"{len(outcomes)} cases, {failed} failed; longest line {longest} characters; {seconds:.0f} s of processor time"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
