"""The same recipe on one process, several, two machines of two, and with weights shared out: losses and final weights.

    python benchmarks/processes.py                      # every task, every arrangement
    python benchmarks/processes.py --worlds 8 64        # what a step costs besides the model, by a fake process group
    python benchmarks/processes.py --speed 1            # rows a second of 1, 2, 4 processes, as `doctor` expects

Tiny models, three steps of plain SGD in fp32, in forks of this process that talk over gloo. The two machines are
network namespaces joined by a pair of virtual devices (Linux, as root); where these cannot be made, that line is left
out.
"""
# ruff: noqa: E402 (variables come before the libraries that read them)

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"OMP_NUM_THREADS": "1", "TLTASKS_CORES": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}

from tests.e2e.training.test_processes import classifier, contrast, gpt2, several_classes, t5, wav2vec2, whisper
from tests.tiny.runs import FSDP, largest_difference, weights
from tltasks.cli.commands import main as tltasks_main
from tltasks.training.tracking import read_metrics

RESULT = Path(__file__).parent / "results" / "processes.json"
TASKS: dict[str, Callable[[Path], Path]] = {
    "image-classification": classifier,
    "contrastive-image": contrast,
    "automatic-speech-recognition (Whisper)": whisper,
    "automatic-speech-recognition (wav2vec 2.0)": wav2vec2,
    "summarization (T5)": t5,
    "summarization (GPT-2)": gpt2,
    "text-classification (several classes)": several_classes,
}
MACHINES = tuple(f"tltasks-{os.getpid()}-{name}" for name in "ab")
DEVICES = tuple(f"tl{os.getpid()}{name}" for name in "ab")
ADDRESS = "10.77.0."


@dataclass(frozen=True)
class Arm:
    """An arrangement of processes; after `begun`, where it goes on with what that has begun."""

    name: str
    processes: int
    shared: bool = False
    machines: int = 1
    ray: bool = False
    begun: Arm | None = None


ONE = Arm("1 process", 1)
RAY = Arm("Ray, 2 workers", 2, ray=True)
ARMS = (
    *(ONE, Arm("2 processes", 2), Arm("4 processes", 4), Arm("2 machines x 2", 4, machines=2)),
    *(Arm("FSDP 2 on 2", 2, shared=True), Arm("FSDP 2 on 4", 4, shared=True)),
    RAY,
    Arm("from 2 on 4", 4, begun=Arm("", 2)),
    Arm("from FSDP 2 on 2 on 1", 1, begun=Arm("", 2, shared=True)),
)


# --------------------------------------------------------------------------------------------- processes


def start(arm: Arm, recipe: Path, output: Path, *flags: str, stop_after: int | None = None, core: int = 0) -> list[int]:
    """Fork the processes of an arm, each with what torchrun would set; told to stop after so many steps.

    Each has a core, the first `core`, and they share them where there are fewer. Of Ray's it is the command alone.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    local = arm.processes // arm.machines
    if arm.ray:
        flags = (*flags, "--engine", "ray", "--workers", str(arm.processes))
    sys.stdout.flush()
    pids = []
    for rank in range(1 if arm.ray else arm.processes):
        if pid := os.fork():
            pids.append(pid)
            continue
        status = 70
        try:
            log = os.open(f"{output}-{rank}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1), os.dup2(log, 2)
            if arm.processes > 1 and not arm.ray:
                os.environ |= {
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(arm.processes)},
                    **{"LOCAL_WORLD_SIZE": str(local), "RANK": str(rank), "LOCAL_RANK": str(rank % local)},
                }
            if not arm.ray:
                os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[(core + rank) % os.cpu_count()]})
            if arm.shared:
                os.environ |= FSDP
            if arm.machines > 1:
                enter(rank // local)
            if stop_after is not None:
                stop_at(stop_after)
            status = tltasks_main(["run", str(recipe), "--output", str(output), *flags])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    return pids


def wait(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def stop_at(step: int) -> None:
    """Have this process be told to stop when it has made so many steps."""
    from tltasks.runtime import devices

    polls = iter(range(1, 10**6))

    @contextlib.contextmanager
    def stopping() -> Iterator[Callable[[], bool]]:
        yield lambda: next(polls) >= step

    devices.stop_on_signals = stopping


def run(arm: Arm, recipe: Path, output: Path, *flags: str) -> None:
    if arm.begun is not None:
        wait(start(arm.begun, recipe, output, *flags, stop_after=1))
        flags = (*flags, "--resume")
    statuses = wait(start(arm, recipe, output, *flags))
    if any(statuses):
        logs = "\n".join(path.read_text()[-1500:] for path in sorted(output.parent.glob(f"{output.name}-*.log")))
        raise SystemExit(f"{arm.name}: ended with {statuses}:\n{logs}")


# --------------------------------------------------------------------------------------------- machines


@contextlib.contextmanager
def machines() -> Iterator[bool]:
    """Two network namespaces that see each other; False where they cannot be made."""
    made = [
        *([*["ip", "netns", "add"], name] for name in MACHINES),
        ["ip", "link", "add", DEVICES[0], "type", "veth", "peer", "name", DEVICES[1]],
        *(f"ip link set {d} netns {n}".split() for d, n in zip(DEVICES, MACHINES, strict=True)),
        *(
            f"ip -n {n} addr add {ADDRESS}{i + 1}/24 dev {d}".split()
            for i, (d, n) in enumerate(zip(DEVICES, MACHINES, strict=True))
        ),
        *(f"ip -n {n} link set {d} up".split() for n, d in zip(MACHINES, DEVICES, strict=True)),
        *(f"ip -n {n} link set lo up".split() for n in MACHINES),
    ]
    try:
        works = shutil.which("ip") is not None and all(
            subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in made
        )
        yield works
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def enter(machine: int) -> None:
    """Move this process into a namespace; process 0's is where all meet."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{MACHINES[machine]}") as place:  # noqa: PTH123
        if libc.setns(place.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")
    os.environ |= {"MASTER_ADDR": f"{ADDRESS}1", "GLOO_SOCKET_IFNAME": DEVICES[machine]}


# ----------------------------------------------------------------------------------------------- measures


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.jsonl") if row["split"] == "train"]


def table(tasks: list[str], arms: list[str], place: Path, *, namespaces: bool) -> dict[str, Any]:
    """Print and return how far losses and weights of each arm are from those of one process."""
    found: dict[str, Any] = {}
    print(f"{'task':45} {'arrangement':24} {'losses':>8} {'weights':>8}")
    for task in tasks:
        folder = place / str(len(found))
        folder.mkdir()
        recipe, first = TASKS[task](folder), folder / "0"
        flags = () if task == "contrastive-image" else ("--set", "stages.0.micro_batch=2")
        for number, arm in enumerate(ARMS):
            if (arm.machines > 1 and not namespaces) or (arms and arm is not ONE and arm.name not in arms):
                continue
            output = folder / str(number)
            run(arm, recipe, output, *flags)
            pairs = zip(losses(first), losses(output), strict=True)
            apart = {"losses": max(abs(a - b) / max(1, abs(a)) for a, b in pairs)}
            apart["weights"] = largest_difference(weights(first), weights(output))
            found.setdefault(task, {})[arm.name] = apart
            print(f"{task:45} {arm.name:24} {apart['losses']:8.1e} {apart['weights']:8.1e}", flush=True)
        shutil.rmtree(folder)
    return found


def costs(world: int, place: Path) -> dict[str, float]:
    """Time of a step that is neither the model's, the optimiser's nor the reading of rows, and its collectives."""
    import torch
    import torch.distributed as dist
    from accelerate import DistributedType, PartialState
    from datasets import concatenate_datasets
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run
    from tltasks.runs import story
    from tltasks.runs.stage import adapt_model, make_job
    from tltasks.training import loop

    stage = f"{{stage: transfer, steps: 60, batch_size: {8 * world}, learning_rate: 1e-3, adapt: full, keep: last}}"
    recipe = classifier(place, stage)
    context, (item,) = story.open_stages(plan_run(load_recipe(recipe, []), place / "out"))
    model, head = adapt_model(item, item.task.build(item.plan.kind))
    rows = item.encoded["train"].rows
    item.encoded["train"] = type(item.encoded["train"])(
        **{**vars(item.encoded["train"]), "rows": concatenate_datasets([rows] * (1 + 20 * 8 * world // len(rows)))}
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    state = context.accelerator.state
    PartialState._shared_state |= {"num_processes": world, "distributed_type": DistributedType.MULTI_CPU}
    state.__dict__ |= {"num_processes": world, "distributed_type": DistributedType.MULTI_CPU}
    spent, calls = {"others": 0.0}, {"collectives": 0, "buckets of gradients": 0}

    def timed(function: Callable[..., Any], key: str = "others") -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **more)
            finally:
                spent[key] += time.process_time() - began

        return call

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls["collectives"] += 1
            return function(*arguments, **more)

        return call

    for name in ("all_reduce", "all_gather", "broadcast", "barrier", "reduce_scatter", "all_gather_into_tensor"):
        setattr(dist, name, counted(getattr(dist, name)))
    (place / "out").mkdir()
    # what others say is nobody's
    loop.readable = lambda state, folder: contextlib.nullcontext(folder)  # type: ignore[attr-defined]
    loop._unreached = lambda *of_all: set()  # nor is any pass of DDP's answered before there is `exchange`
    job = make_job(context, item, head)
    task = type(job.task)
    task.loss, task.collate_train = timed(task.loss), timed(task.collate_train)
    context.accelerator.backward = timed(context.accelerator.backward)
    torch_step = loop.build_optimizer  # type: ignore[attr-defined]

    def build(*arguments: Any, **more: Any) -> Any:
        optimizer = torch_step(*arguments, **more)
        optimizer.step = timed(optimizer.step)
        return optimizer

    loop.build_optimizer = build  # type: ignore[attr-defined]
    training = loop._Training(context.accelerator, job, model)

    def exchange(_, bucket):  # type: ignore[no-untyped-def]  # torch would want annotations that are no strings
        calls["buckets of gradients"] += 1
        future = torch.futures.Future[torch.Tensor]()
        future.set_result(bucket.buffer())
        return future

    training.wrapped.register_comm_hook(None, exchange)  # DDP's own waits for an answer that the fake never gives
    spent["others"], calls["collectives"], steps = 0.0, 0, 0
    began = time.process_time()
    for rows_of_step, batches, own in training.read_steps():
        rate = training.set_learning_rate()
        done = training.step(rows_of_step, batches, own)
        assert done is not None
        training.log("train", loss=done[0], learning_rate=rate)
        training.agree(False, False)
        steps += 1
    ours = (time.process_time() - began - spent["others"]) / steps
    return {
        "steps": steps,
        "ours_ms": 1000 * ours,
        "share_of_300_ms": ours / 0.3,
        "collectives": calls["collectives"] / steps,
        "buckets": calls["buckets of gradients"] / steps,
    }


def subjects(place: Path) -> dict[str, Path]:
    """Recipes of models that are large enough for a step of about a second on one core, in epochs of many steps."""
    from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTForImageClassification

    from tests.tiny import images, texts

    stage = "{stage: %s, steps: 5, batch_size: %d, learning_rate: 1e-3, adapt: full, keep: last, evaluate_every: 100}"
    found = {}
    for name in ("vit", "t5"):
        folder = place / name
        folder.mkdir()
        if name == "vit":
            model = images.save_model(folder / "model")
            config = ViTConfig.from_pretrained(model)
            config.hidden_size, config.intermediate_size, config.num_hidden_layers = 256, 1024, 6
            config.num_attention_heads = 4
            ViTForImageClassification(config).save_pretrained(model)
            data = images.save_data(folder / "data", splits={"train": 2048, "validation": 4, "test": 4})
            found[name] = images.write_recipe(folder / "r.yaml", model, data, stage=stage % ("transfer", 256))
        else:
            model, data = texts.save_model(folder / "model", "t5"), texts.save_data(folder / "data", rows=4096)
            for split in ("validation", "test"):
                path = data / f"{split}.jsonl"
                path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
            config = T5Config.from_pretrained(model)
            config.d_model, config.d_ff, config.d_kv, config.num_heads = 256, 1024, 64, 4
            config.num_layers = config.num_decoder_layers = 4
            T5ForConditionalGeneration(config).save_pretrained(model)
            found[name] = texts.write_recipe(folder / "r.yaml", model, data, stage=stage % ("finetune", 128))
    return found


def in_fork(action: Callable[[], Any]) -> Any:
    """What an action gives as JSON, in a process of its own."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        status = 70
        try:
            os.write(writing, json.dumps(action()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as file:
        return json.loads(file.read())


def loopback() -> tuple[float, float]:
    """Bytes a second, and seconds of latency, between two processes of this machine that talk over gloo."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def exchange(rank: int) -> list[float]:
        import torch
        import torch.distributed as dist

        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % os.cpu_count()]})
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        medians = []
        for numbers, times in ((1, 200), (LOOPBACK // 4, 9)):
            tensor, seconds = torch.ones(numbers), []
            for _ in range(times):
                began = time.perf_counter()
                dist.all_reduce(tensor)
                seconds.append(time.perf_counter() - began)
            medians.append(sorted(seconds)[times // 2])
        return medians

    if (other := os.fork()) == 0:
        exchange(1)
        os._exit(0)
    small, large = in_fork(lambda: exchange(0))
    wait([other])
    return LOOPBACK / (large - small), small / 2


LOOPBACK = 2**25
"""Bytes that are exchanged to see how fast that is."""


def expected(recipe: Path, bandwidth: float, latency: float) -> dict[str, Any]:
    """What `tltasks doctor` tells of a recipe on one core."""
    place = recipe.with_suffix(".json")

    def examine() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.dup2(os.open(place, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
        flags = ["--json", "--bandwidth", str(bandwidth / 1e9), "--latency", str(latency * 1e6)]
        return tltasks_main(["doctor", str(recipe), *flags])

    assert in_fork(examine) == 0
    return json.loads(place.read_text())["stages"][0]


def rows_per_second(output: Path) -> float:
    """Rows of all steps but the first by their time."""
    rows = [row for row in read_metrics(output / "metrics.jsonl") if row["split"] == "train"][1:]
    return len(rows) / sum(1 / row["examples_per_second"] for row in rows)


def speed(place: Path, rounds: int, names: list[str]) -> dict[str, Any]:
    """Rows a second of 2 and 4 processes as multiples of one with one core, in turn, beside what `doctor` expects.

    Two runs that know nothing of each other, each with a core, tell how much slower cores are side by side: by that
    much longer are steps expected to take.
    """
    bandwidth, latency = loopback()
    found: dict[str, Any] = {"GB/s": round(bandwidth / 1e9, 3), "latency, us": round(latency * 1e6, 1)}
    print(found, flush=True)
    recipes = subjects(place)
    for name in names:
        recipe = recipes[name]
        told = expected(recipe, bandwidth, latency)
        lines = found[name] = {"expected alone, rows/s": round(told["ddp"][0]["rows_per_second"], 1), "rounds": []}
        for number in range(rounds):
            rates = {}
            for arm in (ONE, Arm("beside another", 1), Arm("2 processes", 2), Arm("4 processes", 4)):
                output = place / f"{name}-{number}-{arm.name}"
                beside = Path(f"{output}-b")
                both = start(ONE, recipe, beside, stop_after=4, core=1) if arm.name == "beside another" else []
                wait([*start(arm, recipe, output, stop_after=4), *both])
                rates[arm.name] = rows_per_second(output)
            slower, line = rates[ONE.name] / rates["beside another"], {"alone, rows/s": round(rates[ONE.name], 1)}
            line["slower side by side"] = round(slower, 3)
            for processes in (2, 4):
                step = next(step for step in told["ddp"] if step["devices"] == processes)
                rate = step["rows_per_second_here"] / slower
                line[f"{processes} processes"] = {
                    "measured": round(rates[f"{processes} processes"] / rates[ONE.name], 3),
                    "expected": round(rate / told["ddp"][0]["rows_per_second"], 3),
                }
            lines["rounds"].append(line)
            print(name, json.dumps(line), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS), metavar="TASK")
    parser.add_argument("--arms", nargs="*", default=[], help="arrangements beside one process; all by default")
    parser.add_argument("--worlds", type=int, nargs="+", help="only measure steps among so many processes")
    parser.add_argument(
        "--speed", type=int, metavar="ROUNDS", help="only compare speed with one process's, and doctor's"
    )
    parser.add_argument("--subjects", nargs="+", default=["vit", "t5"], help="of --speed")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file; what is measured is put into it")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        if options.worlds:
            found = {"worlds": {}}
            for world in options.worlds:
                (place / str(world)).mkdir()
                found["worlds"][str(world)] = in_fork(partial(costs, world, place / str(world)))
                print(world, found["worlds"][str(world)], flush=True)
        elif options.speed:
            found = {"speed": speed(place, options.speed, options.subjects)}
        else:
            found = {
                "differences": table(options.tasks, options.arms, place, namespaces=stack.enter_context(machines()))
            }
    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    for key, value in found.items():
        known[key] = {**known.get(key, {}), **value}
    options.output.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
