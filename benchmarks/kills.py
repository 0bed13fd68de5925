"""Kills at random: each kind of command is killed, started again, and has to come to the end of an undisturbed one.

    python benchmarks/kills.py --count 500

Half of the kills come at a random moment of the time that the command takes, half just before one of its changes to
files. An episode is a command that is killed up to six times and then left to come to its end: weights, answers and
scores must be those of an undisturbed one to the bit, nothing may be missing, double or left over, and no process may
hang or end in a traceback. Counts are in results/kills.json; called again, it goes on to `--count`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.disturbed import Child, Subjects, Wrong, fresh, hub, kill_at
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
PEERS_END = 30.0
"""Seconds in which a process ends whose peer is gone; where it still waits for the peer to come, once it is told to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--kind", action="append", choices=sorted(set(KINDS)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, to be gone on with")
    given = parser.parse_args()
    kinds = given.kind or KINDS
    done = (
        json.loads(given.results.read_text()) if given.results.exists() else {"kinds": {}, "wrong": [], "episodes": 0}
    )
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory(prefix="tltasks-kills-") as scratch:
        subjects = Subjects(Path(scratch))
        subjects.make()
        for kind in dict.fromkeys(["run", *kinds]):
            subjects.learn(kind)
            print(f"{kind}: {subjects.seconds[kind]:.1f} s, {subjects.operations[kind]} operations", flush=True)
        while total(done) < given.count and time.monotonic() < end:
            draw = random.Random(done["episodes"])
            kind = kinds[done["episodes"] % len(kinds)]
            counts = done["kinds"].setdefault(kind, {"episodes": 0, "kills": 0, "wrong": 0})
            folder = fresh(Path(scratch) / "episode")
            kills: list[str] = []
            try:
                with hub(Path(scratch)) as url:
                    episode(subjects, kind, folder, draw, kills, url)
            except Wrong as error:
                counts["wrong"] += 1
                done["wrong"].append({"episode": done["episodes"], "kind": kind, "kills": kills, "what": str(error)})
                print(f"WRONG {kind} after {kills}: {error}", flush=True)
            counts["episodes"] += 1
            counts["kills"] += len(kills)
            done["episodes"] += 1
            done |= {"count": total(done), "versions": versions()}
            write_json(given.results, done)
        print(f"{total(done)} kills in {done['episodes']} episodes, {len(done['wrong'])} wrong", flush=True)


def total(done: dict[str, Any]) -> int:
    return sum(counts["kills"] for counts in done["kinds"].values())


def episode(subjects: Subjects, kind: str, folder: Path, draw: random.Random, kills: list[str], url: str) -> None:
    """Kill a command a few times, have it end, and compare its end."""
    output, log = subjects.output(kind, folder), folder / "log"
    cache = folder / "cache" if kind == "run" and draw.random() < 0.5 else subjects.cache
    for i in range(draw.randint(1, MOST)):
        at_operation = subjects.operations[kind] > 0 and draw.random() < 0.5
        moment = draw.random() * SHORTER ** (i + 1)
        number = 1 + int(moment * subjects.operations[kind])
        more: dict[str, Any] = {"setup": kill_at(number, folder)} if at_operation else {}
        children = subjects.begin(kind, output, log, url=url, cache=cache, **more)
        chosen = children[:1] if kind != "one rank" else [draw.choice(children)]
        if kind == "two ranks":
            chosen = children
        if at_operation:
            children[0].wait()
        else:
            children[0].wait(moment * subjects.seconds[kind])
        for child in chosen:
            child.kill()
        wait_for_peers(children, kind)
        if not any(child.status == -signal.SIGKILL for child in chosen):
            break  # it was faster
        kills.append(f"operation {number}" if at_operation else f"{moment * subjects.seconds[kind]:.2f} s")
    subjects.complete(kind, output, log, url=url, cache=cache)
    said = log.read_text(errors="replace")
    if "Traceback" in said:
        raise Wrong(f"a traceback: {said[said.index('Traceback') :][-1500:]}")
    if (found := subjects.end(kind, output, url)) != subjects.ends[kind]:
        raise Wrong(f"another end: {different(found, subjects.ends[kind])}")


def wait_for_peers(children: list[Child], kind: str) -> None:
    """Have processes end whose peer is gone: of themselves, or by the SIGTERM that launchers send."""
    for child in children:
        if child.wait(PEERS_END) is None:
            os.kill(child.pid, signal.SIGTERM)
        if child.wait(PEERS_END) is None:
            for other in children:
                other.kill()
            raise Wrong(f"{kind}: a process hangs whose peer is gone")


def different(a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        return ", ".join(
            f"{key}: {different(a.get(key), b.get(key))}" for key in a.keys() | b.keys() if a.get(key) != b.get(key)
        )
    return f"{str(a)[:300]} is not {str(b)[:300]}"


if __name__ == "__main__":
    main()
