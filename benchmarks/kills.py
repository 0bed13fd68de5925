"""Kills at random: each kind of command is killed, started again, and has to come to the end of an undisturbed one.

    python benchmarks/kills.py --count 500
    python benchmarks/kills.py --count 50 --kind "one rank" "shared rank" machine worker

Half of the kills come at a random moment of the time that the command takes, half just before one of its changes to
files. An episode is a command that is killed up to six times and then left to come to its end: weights, answers and
scores must be those of an undisturbed one to the bit, nothing may be missing, double or left over, and no process may
hang or end in a traceback. Counts are in results/kills.json; called again, it goes on to `--count` of the `--kind`.

Of two ranks one is killed, with DDP or (`shared rank`) FSDP 2, or both; of two machines, network namespaces with two
ranks each (Linux, as root), all of one; and of Ray's workers one at a time, which Ray replaces within the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from benchmarks.disturbed import WORKERS, WORLDS, Child, Subjects, Wrong, fresh, hub, kill_at
from benchmarks.processes import machines
from tests.tiny.ray import is_worker
from tltasks.runtime.devices import versions
from tltasks.runtime.files import write_json

RESULTS = Path(__file__).parent / "results" / "kills.json"
KINDS = (
    *("run", "predict jsonl", "two ranks", "push", "predict csv", "run", "predict parquet", "one rank", "compare"),
    *("predict jsonl", "push", "predict csv", "two ranks", "predict parquet", "tune"),
)
"""In turn, those that take long less often."""
MOST = 6
"""Kills of one episode, each on what is left: so they come the earlier, the more there were."""
SHORTER = 0.8
GONE = "another process of this run has ended"
"""What a process says whose peer is gone."""
PEERS_END = 30.0
"""Seconds in which a process ends whose peer is gone; where it still waits for the peer to come, once it is told to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--kind", nargs="+", default=KINDS, choices=sorted({*KINDS, *WORLDS, "worker"}))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, to be gone on with")
    given = parser.parse_args()
    done = (
        json.loads(given.results.read_text()) if given.results.exists() else {"kinds": {}, "wrong": [], "episodes": 0}
    )
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory(prefix="tltasks-kills-") as scratch, machines() as joined:
        if "machine" in given.kind and not joined:
            raise SystemExit("network namespaces cannot be made here")
        subjects = Subjects(Path(scratch))
        subjects.make()
        first = [] if {*given.kind} <= {*WORLDS, "worker"} else ["run"]  # others predict with what it gives
        for kind in dict.fromkeys([*first, *given.kind]):
            subjects.learn(kind)
            print(f"{kind}: {subjects.seconds[kind]:.1f} s, {subjects.operations[kind]} operations", flush=True)
        while total(done, given.kind) < given.count and time.monotonic() < end:
            draw = random.Random(done["episodes"])
            kind = given.kind[done["episodes"] % len(given.kind)]
            counts = {"episodes": 0, "kills": 0, "told": 0, "wrong": 0} | done["kinds"].get(kind, {})
            folder, kills = fresh(Path(scratch) / "episode"), list[str]()
            try:
                with hub(Path(scratch)) as url:
                    (replaced if kind == "worker" else episode)(subjects, kind, folder, draw, kills, url, counts)
            except Wrong as error:
                counts["wrong"] += 1
                done["wrong"].append({"episode": done["episodes"], "kind": kind, "kills": kills, "what": str(error)})
                print(f"WRONG {kind} after {kills}: {error}", flush=True)
            counts["episodes"] += 1
            counts["kills"] += len(kills)
            done["kinds"][kind] = counts
            done["episodes"] += 1
            done |= {"count": total(done, done["kinds"]), "versions": versions()}
            write_json(given.results, done)
            print(f"{kind}: {kills}; {total(done, given.kind)} kills", flush=True)
        print(f"{total(done, given.kind)} kills, {len(done['wrong'])} wrong", flush=True)


def total(done: dict[str, Any], kinds: Iterable[str]) -> int:
    return sum(done["kinds"].get(kind, {"kills": 0})["kills"] for kind in set(kinds))


Counts = dict[str, int]


def episode(
    subjects: Subjects, kind: str, folder: Path, draw: random.Random, kills: list[str], url: str, counts: Counts
) -> None:
    """Kill a command a few times, have it end, and compare its end."""
    output, log = subjects.output(kind, folder), folder / "log"
    cache = folder / "cache" if kind == "run" and draw.random() < 0.5 else subjects.cache
    for i in range(draw.randint(1, MOST)):
        at_operation = subjects.operations[kind] > 0 and draw.random() < 0.5
        moment = draw.random() * SHORTER ** (i + 1)
        number = 1 + int(moment * subjects.operations[kind])
        more: dict[str, Any] = {"setup": kill_at(number, folder)} if at_operation else {}
        children = subjects.begin(kind, output, log, url=url, cache=cache, **more)
        chosen = children[:1]
        if kind == "two ranks":
            chosen = children
        elif kind == "machine":
            chosen = children[:2] if at_operation or draw.random() < 0.5 else children[2:]
        elif kind in WORLDS and not at_operation:
            chosen = [draw.choice(children)]
        if at_operation:
            children[0].wait()
        else:
            children[0].wait(moment * subjects.seconds[kind])
        for child in chosen:
            child.kill()
        told = wait_for_peers(children, kind)
        counts["told"] += told
        if not any(child.status == -signal.SIGKILL for child in chosen):
            break  # it was faster
        kills.append(f"operation {number}" if at_operation else f"{moment * subjects.seconds[kind]:.2f} s")
        left = [child for child in children if child.status not in {0, -signal.SIGKILL}]
        if left and not told and GONE not in log.read_text(errors="replace"):
            raise Wrong(f"{kind}: ended with {[child.status for child in children]} and does not say why")
    subjects.complete(kind, output, log, url=url, cache=cache)
    check_end(subjects, kind, output, log, url)


def replaced(
    subjects: Subjects, kind: str, folder: Path, draw: random.Random, kills: list[str], url: str, counts: Counts
) -> None:
    """Kill workers of Ray's while a command runs; it has to come to its end by itself."""
    output, log = subjects.output(kind, folder), folder / "log"
    (child,) = subjects.begin(kind, output, log)
    for _ in range(draw.randint(1, MOST)):
        moment = draw.random() * subjects.seconds[kind] / 2
        child.wait(moment)
        while child.poll() is None and not (workers := workers_of(child.pid)):
            time.sleep(0.01)
        if child.status is not None:
            break
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(workers).kill()
            kills.append(f"{moment:.2f} s")
    if child.wait() is None:
        child.kill()
        raise Wrong(f"{kind}: hung")
    if child.status:
        raise Wrong(f"{kind}: ended with {child.status}: {child.said()[-1500:]}")
    check_end(subjects, kind, output, log, url)


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of a run that a command has Ray start, once all are there."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [child for child in psutil.Process(pid).children(recursive=True) if is_worker(child)]
    return sorted(found, key=lambda child: child.pid) if len(found) == WORKERS else []


def check_end(subjects: Subjects, kind: str, output: Path, log: Path, url: str) -> None:
    said = log.read_text(errors="replace")
    if "Traceback" in said:
        raise Wrong(f"a traceback: {said[said.index('Traceback') :][-1500:]}")
    if (found := subjects.end(kind, output, url)) != subjects.ends[kind]:
        raise Wrong(f"another end: {different(found, subjects.ends[kind])}")


def wait_for_peers(children: list[Child], kind: str) -> bool:
    """Have processes end whose peer is gone: of themselves, or by the SIGTERM that launchers send; whether by that."""
    told = False
    for child in children:
        if child.wait(PEERS_END) is None:
            os.kill(child.pid, signal.SIGTERM)
            told = True
        if child.wait(PEERS_END) is None:
            for other in children:
                other.kill()
            raise Wrong(f"{kind}: a process hangs whose peer is gone")
    return told


def different(a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        return ", ".join(
            f"{key}: {different(a.get(key), b.get(key))}" for key in a.keys() | b.keys() if a.get(key) != b.get(key)
        )
    return f"{str(a)[:300]} is not {str(b)[:300]}"


if __name__ == "__main__":
    main()
