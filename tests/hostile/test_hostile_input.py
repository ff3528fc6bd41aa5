"""A sample of `benchmarks/hostile_input.py`, and the proof that it would catch a reader without protection."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "benchmarks" / "hostile_input.py"
UNPROTECTED = r"""
import json, os, pickle, socket, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import hostile_input
from hostile_input import Guard, watched
import resource, signal, yaml
from pipeline.errors import BadInput

folder = Path(sys.argv[2])
(folder / "case").mkdir()
signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(hostile_input.TooLong()))
hostile_input.SECONDS, hostile_input.PATIENCE = 2.0, (0.5, 20)
guard = Guard([folder / "case"])
with guard.learning():
    pass

class Endless(BadInput):
    def __init__(self, text):
        Exception.__init__(self, text)

def refuse(text):
    raise Endless(text)

def swallow():
    try:
        os.system("true")
    except BaseException:
        pass

def spin():
    while True:
        pass

def wait():
    os.mkfifo(folder / "case" / "fifo")
    open(folder / "case" / "fifo").read()

READERS = {
    "a tag that starts a process": lambda: yaml.unsafe_load("!!python/object/apply:os.system ['true']"),
    "a process behind a broad except": swallow,
    "a pickle": lambda: pickle.loads(pickle.dumps(Path("x"))),
    "a module that data named": lambda: yaml.unsafe_load("!!python/name:hostile_canary.Thing"),
    "a connection": lambda: socket.socket().connect(("127.0.0.1", 9)),
    "a file elsewhere": lambda: (folder / "elsewhere").write_text("x"),
    "a file elsewhere by dots": lambda: (folder / "case" / ".." / "elsewhere").write_text("x"),
    "a folder elsewhere": lambda: (folder / "elsewhere").mkdir(),
    "a traceback": lambda: json.loads("{"),
    "two lines": lambda: refuse("a\nb"),
    "a line without end": lambda: refuse("x" * 7000),
    "a line that colours the terminal": lambda: refuse("\x1b[31m"),
    "no words": lambda: refuse(" "),
    "no end": spin,
    "a wait for nobody": wait,
    "memory": lambda: b"x" * (600 << 20),
    "nothing wrong": lambda: (folder / "case" / "inside").write_text("x"),
    "a plain refusal": lambda: refuse("value 3 is too large; give 2"),
}
print(json.dumps({name: watched(read, guard, "hostile_canary", False)[1] for name, read in READERS.items()}))
"""


def test_a_sample_of_hostile_files_and_parameters_is_taken_or_refused_in_one_line(tmp_path):
    command = [sys.executable, str(HARNESS), "--cases", "300", "--seed", "7", "--folder", str(tmp_path)]
    played = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert played.returncode == 0, played.stdout[-3_000:] + played.stderr[-3_000:]
    assert "300 cases, 0 failed" in played.stdout
    taken = {line[:16].strip() for line in played.stdout.splitlines() if " 0 taken" not in line and "taken" in line}
    assert {"stage config", "task file", "SB3 zip"} <= taken  # it does not refuse everything
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def caught(tmp_path_factory) -> dict[str, str | None]:
    """Reader without protection -> the fault that the harness found."""
    folder = tmp_path_factory.mktemp("unprotected")
    command = [sys.executable, "-c", UNPROTECTED, str(HARNESS.parent), str(folder)]
    played = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert played.returncode == 0, played.stderr[-3_000:]
    assert not (folder / "elsewhere").exists()
    return json.loads(played.stdout)


def test_readers_without_protection_are_caught(caught):
    expected = {
        "a tag that starts a process": "os.system",
        "a process behind a broad except": "os.system",
        "a pickle": "pickle.find_class",
        "a module that data named": "imports hostile_canary",
        "a connection": "socket.connect",
        "a file elsewhere": "writes",
        "a file elsewhere by dots": "writes",
        "a folder elsewhere": "os.mkdir",
        "a traceback": "JSONDecodeError",
        "two lines": r"a refusal with '\n'",
        "a line without end": "a refusal of 7000 characters",
        "a line that colours the terminal": r"a refusal with '\x1b'",
        "no words": "an empty refusal",
        "no end": "took longer",
        "a wait for nobody": "took longer",
        "memory": "MiB",
    }
    for name, part in expected.items():
        assert part in (caught[name] or "nothing"), (name, caught[name])
    assert caught["nothing wrong"] is None and caught["a plain refusal"] is None
