"""Calls everything that is public with wrong arguments, in child processes, and prints what went wrong.

    python tests/hostile/run.py --calls 100000 --seed 1
    python tests/hostile/run.py --only 4711 --seed 1     # one call, by its number, in this process

Each call is made of the seed and its number alone. A call may succeed, or be refused: by TypeError, ValueError,
MemoryError or OSError, by ImportError where an extra is absent, by KeyError where the docstring says so, or by what a
value itself raises. A call that is refused has changed nothing; one that succeeds, nothing but what it is to write.
Findings are printed as lines of JSON: [kind, number, what was called, what was wrong, what happened].
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import mmap
import os
import random
import resource
import select
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from calls import CALLS, Call
from values import IN_PLACE, Memory, Raised, shown, spoiled

import fastopt
from fastopt.cases import arrays_in

ALLOWED = (TypeError, ValueError, MemoryError, OSError, KeyboardInterrupt, ImportError, Raised)
PER_CHILD = 1000
PATIENCE = 1.0  # seconds, after which a call is interrupted
SECONDS = 30  # without a sign of life, after which a child hangs

Finding = tuple[str, int, str, list[str], str]


class TakesLong(BaseException):
    """Raised by an alarm in a call that does what it was asked for, and may be interrupted."""


class Board:
    """Where a child writes which call it makes, for when it crashes."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 1 << 16)

    def write(self, number: int, name: str, wrong: list[str]) -> None:
        text = json.dumps([number, name, wrong]).encode()[: len(self.memory) - 1]
        self.memory[: len(text) + 1] = text + b"\0"

    def read(self) -> tuple[int, str, list[str]]:
        number, name, wrong = json.loads(self.memory[:].partition(b"\0")[0] or b'[-1, "", []]')
        return number, name, wrong


# ---- One call -----------------------------------------------------------------------------------------------


def make(seed: int, number: int, only: str) -> tuple[str, Call, dict[str, Any], list[str], Memory]:
    """A call, its arguments with one or two wrong ones among them, and what is wrong."""
    rng = random.Random(f"{seed} {number}")
    memory = Memory()
    name = rng.choice([name for name in CALLS if name.startswith(only)])
    fastopt.set_num_threads(rng.choice((1, 1, 2, 3)))
    call = CALLS[name](memory, rng)
    arguments, wrong = dict(call.arguments), []
    others = [a for a in arrays_in(tuple(arguments.values())) if type(a) is np.ndarray]
    names = call.names()
    if names and others and "." in name and name[0].islower() and rng.random() < 0.05:  # fine in a call before
        try:
            call(arguments)
            change, array = rng.choice(IN_PLACE), rng.choice(others)
            change(array)
            wrong.append(f"changed in place: {change.__name__}")
        except Exception:  # which another call finds
            pass
    for key in rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
        if not wrong or rng.random() < 0.5:
            way, arguments[key] = spoiled(arguments.get(key), others, memory, rng)
            wrong.append(f"{key}: {way}")
    return name, call, arguments, wrong, memory


def written(call: Call, arguments: dict[str, Any]) -> Iterator[np.ndarray]:
    yield from call.more
    for key in call.written:
        yield from nested(arguments.get(key))


def nested(value: Any) -> Iterator[np.ndarray]:
    """The arrays of a nest."""
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from nested(item)
    else:
        yield from arrays_in((value,))


def documented(call: Call) -> tuple[type[BaseException], ...]:
    if "load_state_dict" in getattr(call.function, "__name__", ""):
        return (KeyError,)
    raises = (inspect.getdoc(call.function) or "").partition("Raises\n")[2]
    return (KeyError,) if "KeyError" in raises else ()


def examine(name: str, call: Call, arguments: dict[str, Any], memory: Memory) -> tuple[str, str] | None:
    """Make a call, and tell what is wrong with what it did, if something is."""
    before, state = memory.copy(), call.state()
    is_private = name.startswith("_kernels.")  # which may refuse as it likes
    allowed = (Exception,) if is_private else ALLOWED + documented(call)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        call(arguments)
    except allowed as error:
        if not (is_private or isinstance(error, Raised | MemoryError | KeyError)) and len(str(error)) < 8:
            return "no message", f"{error!r} at {place(error)}"
        if memory.is_changed(before, iter(())):
            return "changed though refused", repr(error)[:300]
        if call.state() != state:
            return "state changed though refused", repr(error)[:300]
    except TakesLong:
        raise
    except BaseException as error:
        return "exception", f"{error!r:.300} at {place(error)}"
    else:
        if memory.is_changed(before, written(call, arguments)):
            return "changed what is not its own", ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def place(error: BaseException) -> str:
    """Where it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fastopt/" in f.filename]
    return f"{frames[-1].filename.rpartition('/fastopt/')[2]}:{frames[-1].lineno}" if frames else "?"


# ---- Many calls ---------------------------------------------------------------------------------------------


def child(seed: int, numbers: range, only: str, board: Board, report: int) -> None:
    """Make calls; report findings, and signs of life."""
    with os.fdopen(report, "w", buffering=1) as file:
        for number in numbers:
            board.write(number, "not made", [])
            try:
                name, call, arguments, wrong, memory = make(seed, number, only)
            except Exception as error:
                print(json.dumps(["cannot be made", number, "", [], f"{error!r} at {place(error)}"]), file=file)
                continue
            board.write(number, name, wrong)
            found = None
            with contextlib.suppress(TakesLong):  # whose alarm may come late
                found = examine(name, call, arguments, memory)
            if found:
                print(json.dumps([found[0], number, name, wrong, found[1]]), file=file)
            elif number % 50 == 0:
                print(file=file)


def limit_memory() -> None:
    """So that what is too large is refused at once; not under AddressSanitizer, which reserves terabytes."""
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(seed: int, numbers: range, only: str = "") -> Iterator[Finding]:
    """The findings of calls with these numbers."""
    board, start = Board(), numbers.start
    while start < numbers.stop:
        end = min(start + PER_CHILD, numbers.stop)
        reading, writing = os.pipe()
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            status = 1
            try:
                os.close(reading)
                limit_memory()
                quiet()
                child(seed, range(start, end), only, board, os.dup2(writing, 100))
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        hung = yield from _listen(reading, process)
        _, status = os.waitpid(process, 0)
        start = end
        if status:
            number, name, wrong = board.read()
            yield ("hang" if hung else "crash", number, name, wrong, f"status {status}")
            start = number + 1


def _take_long(*_: Any) -> None:
    raise TakesLong


def quiet() -> None:
    """A child's output is its report alone (and what a sanitizer says), and its folder is an empty one."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, _take_long)
    os.chdir(tempfile.mkdtemp())
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)


def _listen(reading: int, process: int) -> Iterator[Any]:
    """Pass on a child's findings; return whether it had to be ended."""
    text = b""
    while True:
        if not select.select([reading], [], [], SECONDS)[0]:
            os.kill(process, signal.SIGKILL)
            os.close(reading)
            return True
        more = os.read(reading, 1 << 16)
        if not more:
            os.close(reading)
            return False
        *lines, text = (text + more).split(b"\n")
        for line in filter(None, lines):
            yield tuple(json.loads(line))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--only", type=int, help="the number of a call that is made alone, in this process")
    parser.add_argument("--of", default="", help="the beginning of the names of what is called")
    parser.add_argument("--self-test", action="store_true", help="call functions that go wrong")
    options = parser.parse_args()
    if options.self_test:
        import faulty

        CALLS.clear()
        CALLS.update(faulty.CALLS)
    if options.only is not None:
        limit_memory()
        name, call, arguments, wrong, _ = make(options.seed, options.only, options.of)
        print(name, wrong, {key: shown(value) for key, value in arguments.items()}, sep="\n", flush=True)
        try:
            call(arguments)
        except BaseException:
            traceback.print_exc()
        return 0
    count = 0
    for finding in run(options.seed, range(options.first, options.first + options.calls), options.of):
        print(json.dumps(finding), flush=True)
        count += 1
    print(f"{options.calls} calls, {count} findings", file=sys.stderr)
    return count > 0


if __name__ == "__main__":
    raise SystemExit(main())
