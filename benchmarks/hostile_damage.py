"""Damage to files and texts: what a careless hand, a broken disk or somebody with bad intentions would leave.

Everything follows from the `random.Random` that is given.
"""

import base64
import json
import os
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

LONG = 7_000  # characters
DEEP = 3_000  # levels
CANARY = "hostile_canary"  # a module that nobody has: whoever tries to import it took its name from data
POISON = (  # pickles that call, name or build something when they are loaded
    b"cos\nsystem\n(S'touch hostile'\ntR.",
    b'cbuiltins\neval\n(S\'__import__("os").system("touch hostile")\'\ntR.',
    f"c{CANARY}\nThing\n.".encode(),
    f"(i{CANARY}\nThing\n.".encode(),
    b"\x80\x04" + b"(" * 3_000 + b".",
    b"\x80\x04]\x94(h\x00h\x00h\x00e.",  # a list in itself
)

TEXTS = (
    "", " ", "\n", "a\nerror: b", "a\r\nb\u2028c", "\t", "'", '"', "';--", "\\", "`id`", "$(id)", "${HOME}",
    "%s%n", "{0}", "../../../etc/passwd", "/etc/passwd", "/etc/hostile", "~root", "..", ".", "/", "//",
    "a/../../b", "x\0y", "file:///etc/passwd", "con", "-rf", "--help", "*", "?", "latest", "null", "true",
    "1e400", "0x10", "007", "1_000", "-0", "NaN", "inf", "12:30:45", "\ud800", "\u202etxt.exe",
    "\x1b[31mred\x1b[0m", "\x07", "ünïcödé", "データ", "😀" * 50, "a\u0301" * 40, "\ufeff",
    "<script>alert(1)</script>", "{{ 7 * 7 }}", "[link](javascript:1)", "=1+1", "' OR '1'='1",
    "x' OR tags.a = 'b", "a" * 32, "f" * 36, "models:/x/1", "models:/walk-expert@approved",
    "runs:/" + "0" * 32 + "/policy", "s3://bucket/x", "http://127.0.0.1:9/x", "sqlite:///../x.db",
    "postgresql://u:p@127.0.0.1:9/x", f"{CANARY}:Thing", f"{CANARY}:Thing-v0", f"{CANARY}.inner:Thing",
    "os:system", "subprocess:Popen", "subprocess:run", "antigravity:fly", "builtins:eval", "pickle:loads",
    "shutil:rmtree", "pipeline.errors:BadInput", "pipeline.cli:ask", "antigravity:Fly-v0", "this:s",
    "gymnasium:Env", "gymnasium:make", "numpy:load", "torch:load", "yaml:unsafe_load", "CartPole-v1",
    "NoSuch-v99", "!!python/object/apply:os.system ['touch hostile']",
    "__import__('os').system('touch hostile')", "__class__", "__init__", "x" * LONG, "../" * 2_000, "é" * LONG,
    *(base64.b64encode(pickle).decode() for pickle in POISON),  # as SB3 keeps them in JSON
    "a b " * 1_750, "\n" * LONG, "a." * 3_500,
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**18, 10**300,
    0.0, -0.0, 0.5, 1.5, 1e-320, 1e-30, 1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
SNIPPETS = (  # put into the text of a YAML or JSON file as they are
    "!!python/object/apply:os.system ['touch hostile']", "!!python/name:os.system",
    "!!python/module:antigravity", "!!python/object/new:subprocess.Popen [['touch', 'hostile']]",
    "!!binary aGFsbG8=", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp 2001-01-01", "2001-01-01", "!unknown x",
    "!!int x", "!!float x", "!!bool maybe", "&a [*a, *a]", "*nobody", "<<: {a: 1}", "? [a]\n: b",
    "? {a: 1}\n: b", "---\nb: 1", "...", "%YAML 9.9", "@x", "\t- x", "- - - x", ": :", "{", "}", "[", "]", '"',
    "'", "|", ">-", "#", "0b" + "1" * 9_000, "0o777", "190:20:30", "1" * 5_000, "1e" + "9" * 500, "-" * 200,
    "[" * DEEP, "{a: " * DEEP, '{"a":' * DEEP, "NaN", "Infinity", "-Infinity", "\ufeff", "\x00", "\x85", "\x1b",
    "\u2028", "\\ud800", "\\u0000", "x: &x 1", '"a": 1, "a": 2,',
)  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def hostile_value(rng: random.Random) -> Any:
    """Something that JSON can say and that does not belong where it is put."""
    kind = rng.randrange(12)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind < 8:
        return rng.choice(NUMBERS)
    if kind == 8:
        return rng.choice([None, True, False, [], {}, [[]], [None], {"": ""}])
    if kind == 9:
        return _nested(rng.choice([5, 50, 200]), rng.random() < 0.5)
    if kind == 10:
        return [rng.choice(TEXTS) for _ in range(rng.choice([1, 3, 40]))]
    return {rng.choice(TEXTS): rng.choice((*TEXTS, *NUMBERS)) for _ in range(rng.choice([1, 3, 40]))}


def _nested(depth: int, mapping: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if mapping else [value]
    return value


# --- files -----------------------------------------------------------------------------------------------------------


def damage(rng: random.Random, folder: Path, files: list[str]) -> str:
    """Damage one file of a folder in one way; returns the way."""
    name = rng.choice(files)
    path = folder / name
    structured = path.suffix in (".json", ".yaml", ".yml")
    ways: list[Callable[[random.Random, Path], None]] = [*BYTES, *([*STRUCTURE] * 4 if structured else [*BYTES] * 2)]
    # tricks with the file itself are the same few for every file
    if path.suffix in (".pth", ".pkl"):
        ways += [_poison] * len(ways)
    way = rng.choice(TRICKS) if rng.random() < 0.06 else rng.choice(ways)
    way(rng, path)
    return f"{way.__name__.strip('_')} {name}"


def _flip(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        content[_place(rng, len(content))] = rng.randrange(256)
    path.write_bytes(content)


def _place(rng: random.Random, size: int) -> int:
    """Anywhere; more often at an end, where headers and directories are."""
    near = min(size, 600)
    return rng.choice([rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)])


def _cut(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(
        content[: _place(rng, len(content))] if rng.random() < 0.8 else content[_place(rng, len(content)) :]
    )


def _insert(rng: random.Random, path: Path) -> None:
    content, at = path.read_bytes(), 0
    at = _place(rng, len(content))
    path.write_bytes(content[:at] + rng.randbytes(rng.choice([1, 7, 500])) + content[at:])


def _repeat(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    start = _place(rng, len(content))
    part = content[start : start + rng.choice([1, 16, 4_000])]
    path.write_bytes(content[:start] + part * rng.choice([2, 50]) + content[start:])


def _blank(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = _place(rng, len(content))
    end = min(len(content), start + rng.choice([1, 8, 300]))
    content[start:end] = bytes([rng.choice([0, 255])]) * (end - start)
    path.write_bytes(content)


def _number(rng: random.Random, path: Path) -> None:
    """Another number where the bytes read as one: sizes in headers, figures in texts."""
    content = path.read_bytes()
    found = [match.span() for match in re.finditer(rb"\d+", content)]
    if found:
        start, end = rng.choice(found)
        content = content[:start] + str(rng.choice(NUMBERS)).encode() + content[end:]
    path.write_bytes(content)


def _poison(rng: random.Random, path: Path) -> None:
    """A pickle that would do something, alone, in front of what was there, or as the pickle inside a torch file."""
    pickle, content = rng.choice(POISON), path.read_bytes()
    kind = rng.randrange(3)
    if kind == 2 and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, pickle if name.endswith("data.pkl") else part)
    else:
        path.write_bytes(pickle if kind else pickle + content)


BYTES = (_flip, _cut, _insert, _repeat, _blank, _number)


def _value(rng: random.Random, path: Path) -> None:
    """A hostile value somewhere in the tree, sometimes in several places."""
    data = read(path)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = list(_places(data))
        if not places:
            data = hostile_value(rng)
            break
        holder, key = rng.choice(places)
        holder[key] = hostile_value(rng)
    write(path, data)


def _kind(rng: random.Random, path: Path) -> None:
    """A value as another type that looks alike: 1 as "1", true as 1, a text as a list of it."""
    data = read(path)
    places = list(_places(data))
    if places:
        holder, key = rng.choice(places)
        old = holder[key]
        holder[key] = rng.choice([str(old), [old], {"value": old}, None, not old, len(str(old)), f" {old} "])
    write(path, data)


def _key(rng: random.Random, path: Path) -> None:
    """A key that is gone, misspelt, doubled in meaning, or one too many."""
    data = read(path)
    mappings = [node for node in _nodes(data) if isinstance(node, dict) and node]
    if mappings:
        mapping = rng.choice(mappings)
        key = rng.choice(list(mapping))
        what = rng.randrange(3)
        if what == 0:
            del mapping[key]
        elif what == 1:
            mapping[rng.choice([str(key).upper(), f"{key}s", str(key)[1:], rng.choice(TEXTS)])] = mapping.pop(key)
        else:
            mapping[rng.choice(TEXTS)] = hostile_value(rng)
    write(path, data)


def _swap(rng: random.Random, path: Path) -> None:
    """Two parts of the tree in each other's place."""
    data = read(path)
    places = list(_places(data))
    if len(places) > 1:
        (one, a), (other, b) = rng.sample(places, 2)
        one[a], other[b] = json.loads(json.dumps([other[b], one[a]]))
    write(path, data)


def _snippet(rng: random.Random, path: Path) -> None:
    """Text that means something to a parser, in the place of a value or anywhere."""
    text, snippet = path.read_text(encoding="utf-8"), rng.choice(SNIPPETS)
    found = [match.span() for match in re.finditer(r"(?<=: )[^\s,{}\[\]]+", text)]
    start, end = rng.choice(found) if found and rng.random() < 0.7 else [rng.randrange(len(text) + 1)] * 2
    path.write_bytes((text[:start] + snippet + text[end:]).encode("utf-8", "surrogatepass"))


def _bomb(rng: random.Random, path: Path) -> None:
    path.write_text(BOMB + path.read_text(encoding="utf-8"), encoding="utf-8")


STRUCTURE = (_value, _value, _value, _kind, _key, _swap, _snippet, _snippet, _bomb)


def _nodes(data: Any) -> Iterator[Any]:
    yield data
    for part in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _nodes(part)


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for node in _nodes(data):
        if isinstance(node, dict):
            yield from ((node, key) for key in node)
        elif isinstance(node, list):
            yield from ((node, index) for index in range(len(node)))


def read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def write(path: Path, data: Any) -> None:
    text = json.dumps(data, indent=1) if path.suffix == ".json" else yaml.safe_dump(data, sort_keys=False)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


# --- tricks with the file itself -------------------------------------------------------------------------------------


def _gone(rng: random.Random, path: Path) -> None:
    path.unlink()


def _empty(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def _folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(rng: random.Random, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["/etc/passwd", "/dev/zero", "/dev/full", "/proc/self/mem", path.name, "nobody", "/"]))


def _noise(rng: random.Random, path: Path) -> None:
    path.write_bytes(rng.randbytes(rng.choice([1, 100, 100_000])))


TRICKS = (_gone, _empty, _folder, _fifo, _link, _noise)
