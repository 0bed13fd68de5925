"""Surroundings that a command may meet: variables of the environment, names, full disks, damaged files, signals.

Each is either without effect, or one message with what to do; nothing ends in a traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny.host import Job, shared_host
from tests.tiny.images import save_data, save_model, write_recipe
from tests.tiny.runs import equal, weights

STAGE = "{stage: transfer, steps: 2, batch_size: 8, learning_rate: 5e-3, optimizer: sgd, keep: last}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robust")
    model, data = save_model(folder / "vit"), save_data(folder / "data", rows=24)
    write_recipe(folder / "r.yaml", model, data, stage=STAGE)
    run(folder, "whole", status=0)
    return folder


def run(place: Path, name: str, *words: object, status: int, code: str = "", **variables: str) -> str:
    """What a run says that ends with a status."""
    log = place / f"{name}.log"
    output = place / name
    log.unlink(missing_ok=True)
    words = ("run", place / "r.yaml", "--output", output, *words)
    job = shared_host().start(log, *words, code=code, variables=variables)
    return ended(job, status)


def ended(job: Job, status: int) -> str:
    found, said = job.wait(), job.said()
    assert found == status, said[-2000:]
    assert "Traceback" not in said, said[-2000:]
    assert sum(line.startswith("error") for line in said.splitlines()) == (status in {1, 2}), said
    return said


# --------------------------------------------------------------------------------------- the environment

WITHOUT_EFFECT = {
    "what accelerate launch sets": {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "max-autotune",
        "ACCELERATE_USE_CPU": "True",
        "OMP_NUM_THREADS": "1",
    },
    "a pod of its own": {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"},
    "what is meant for sharding that is off": {
        "ACCELERATE_USE_FSDP": "false",
        "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DOWNCAST_BF16": "1",
        "NVIDIA_TF32_OVERRIDE": "1",
    },
}


@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in WITHOUT_EFFECT)]
)
def test_variables_that_change_no_number(place: Path, name: str) -> None:
    chosen = WITHOUT_EFFECT.values() if name == "all" else [WITHOUT_EFFECT[name]]
    run(place, name, status=0, **{variable: value for values in chosen for variable, value in values.items()})
    assert equal(weights(place / "whole"), weights(place / name))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "), and set stages.N.batch_size",
        ),
        ({"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "set stages.N.compile: true"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "this run computes in fp32. Set `precision`"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "ACCELERATE_MIXED_PRECISION=fp8"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1 is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "LOCAL_RANK": "0"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "is not supported"),
        ({"WORLD_SIZE": "2"}, "but no RANK, LOCAL_RANK, MASTER_ADDR"),
        ({"WORLD_SIZE": "8", "RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "but no LOCAL_RANK"),
        ({"WORLD_SIZE": "many", "RANK": "0"}, "WORLD_SIZE=many in the environment is no number"),
        ({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, "set precision: bf16"),
        ({"ACCELERATE_TORCH_DEVICE": "toaster"}, "cannot be opened"),
    ],
)
def test_variables_that_are_refused(place: Path, variables: dict[str, str], said: str) -> None:
    assert said in run(place, "refused", status=2, **variables)
    assert not (place / "refused").exists()


def test_the_error_of_another_rank_is_heard(place: Path) -> None:
    assert "error in process 1: " in run(place, "heard", "--set", "stages.0.epoch=2", status=2, RANK="1")


FAULTS = {
    "an error of one process": (
        1,
        "import tltasks.training.loop as m; from tltasks.errors import TrainingError\n"
        "def fault(*_): raise TrainingError('stage a: out of memory')\nm._Training.step = fault",
        {0: "another process of this run has ended", 1: "error in process 1: stage a: out of memory"},
    ),
    "a full disk": (
        0,
        "import tltasks.training.checkpoint as m; from safetensors import SafetensorError\n"
        "def fault(*_): raise SafetensorError('I/O error: No space left on device (os error 28)')\nm.save_file = fault",
        {0: "error: no space is left", 1: "error in process 1: no space is left"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_no_process_waits_for_one_that_has_failed(place: Path, name: str) -> None:
    where, fault, said = FAULTS[name]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    jobs = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        code = f"{fault}\n{MAIN}" if rank == where else MAIN
        log = place / f"{name}-{rank}.log"
        words = ("run", place / "r.yaml", "--output", place / name)
        variables = {**own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        jobs.append(shared_host().start(log, *words, code=code, variables=variables))
    for rank, job in enumerate(jobs):
        assert said[rank] in ended(job, 1)


# ---------------------------------------------------------------------------------------- odd places

MAIN = "import os, sys; from tltasks.cli.commands import main\nos._exit(main(sys.argv[1:]))\n"
LONG = "n" * 5000


@pytest.mark.parametrize(
    "words",
    [
        ("run", "r.yaml", "--output", LONG),
        ("run", "r.yaml", "--output", "r.yaml/below/a/file"),
        ("run", "r.yaml", "--output", "/proc/nothing"),
        ("run", "r.yaml", "--output", "s3://bucket/run"),
        ("run", "r.yaml", "--set", "output=file:///run"),
        ("predict", "whole", "data/test.parquet", "--output", "s3://bucket/a.parquet"),
        ("predict", "whole", "data/test.parquet", "--output", f"{LONG}.csv"),
        ("predict", "whole", "data/test.parquet", "--output", "r.yaml/a.csv"),
        ("range-test", "r.yaml", "--output", LONG),
        ("range-test", "r.yaml", "--output", "r.yaml/below"),
        ("export", "whole", "--output", LONG),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_places_that_cannot_be_written_to(place: Path, words: tuple[str, ...]) -> None:
    job = shared_host().start(place / "odd.log", *words, folder=place)
    (place / "odd.log").write_text("")
    assert "choose" in ended(job, 2)


def test_standard_output_that_is_full(place: Path) -> None:
    code = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n" + MAIN
    words = ("predict", "whole", "data/test.parquet")
    assert "no space is left" in ended(shared_host().start(place / "full.log", *words, code=code, folder=place), 1)


# ------------------------------------------------------------------------------------- damaged files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_text("{}")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size) + b"\n")


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("stages/transfer/result.json", cut, "Remove this folder: --resume then carries the stage out again"),
        ("stages/transfer/result.json", blank, "Remove this folder"),
        ("stages/transfer/result.json", other, "Remove this folder"),
        ("stages/transfer/examples.json", cut, "Remove this folder"),
        ("stages/transfer/examples.json", Path.unlink, "Remove this folder"),
        ("metrics.jsonl", zeroed, "metrics.jsonl: line 1 is damaged"),
        ("recipe.yaml", blank, "recipe.yaml"),
        ("recipe.yaml", zeroed, "recipe.yaml"),
    ],
)
def test_a_damaged_file_is_named(place: Path, name: str, how: Callable[[Path], None], said: str) -> None:
    output = place / "damaged"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(place / "whole", output)
    how(output / name)
    assert said in run(place, "damaged", "--resume", status=2 if name == "recipe.yaml" else 1)


@pytest.mark.parametrize("left", ["cut metrics", "temporary files", "a lock", "no result", "checkpoints"])
def test_what_a_kill_leaves_does_no_harm(place: Path, left: str) -> None:
    output = place / left
    shutil.copytree(place / "whole", output)
    if left == "cut metrics":
        with (output / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "transf')
    elif left == "temporary files":
        shutil.rmtree(output)
        (output / "stages").mkdir(parents=True)
        (output / ".recipe.yaml.1.tmp").write_text("task: image-cl")
        shutil.rmtree(output / "stages")
    elif left == "checkpoints":
        (output / "checkpoints" / "transfer" / "step-000000002").mkdir(parents=True)
    elif left == "a lock":
        (output / ".lock").touch()
    else:
        (output / "result.json").unlink()
    run(place, left, "--resume", status=0)
    assert equal(weights(place / "whole"), weights(output))
    assert json.loads((output / "result.json").read_text())["stages"]
    assert not [path for path in output.rglob(".*") if path.is_file()]
    assert not list(output.glob("checkpoints/*"))
    assert os.stat(output / "model" / "model.safetensors").st_mode & 0o777 == 0o666 & ~umask()  # noqa: PTH116


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


# ------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_told_to_stop_while_data_are_prepared(place: Path, number: str) -> None:
    fault = (
        "import signal, tltasks.runs.story as m\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"m.prepare_stages = lambda *_: signal.raise_signal(signal.{number})\n"
    )
    said = run(place, f"stopped-{number}", code=fault + MAIN, status=143)
    assert "stopped. Go on with: tltasks run " in said
    assert "--resume" in said
    run(place, f"stopped-{number}", "--resume", status=0)
    assert equal(weights(place / "whole"), weights(place / f"stopped-{number}"))
