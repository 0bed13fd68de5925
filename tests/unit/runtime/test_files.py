import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.tiny.disk import no_room
from tests.unit.config.test_recipe import BASE
from tltasks.config.loading import load_recipe, write_recipe
from tltasks.config.recipe import plan_run, recipe_sha256
from tltasks.errors import RecipeError, is_full_disk
from tltasks.inference.prediction_writer import check_output
from tltasks.runs.refusals import refuse_loss, refuse_occupied
from tltasks.runtime.files import (
    append,
    check_place,
    content_of,
    locked,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)


@pytest.fixture
def digest(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)
    return recipe_sha256(load_recipe(path))


@pytest.fixture
def begun(tmp_path: Path, digest: str) -> Path:
    """The results folder of a run that has been begun."""
    output = tmp_path / "outputs" / "x"
    write_recipe(load_recipe(tmp_path / "r.yaml"), output / "recipe.yaml")
    return output


# ------------------------------------------------------------------------------------- occupied folders


def test_what_a_run_begins_with_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(BASE)
    (tmp_path / "run" / "model").mkdir(parents=True)
    plan = plan_run(load_recipe(tmp_path / "r.yaml", {"model.name": str(tmp_path / "run/model")}), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"--overwrite: would remove .*model, in output .*run; choose another"):
        refuse_loss(plan)
    refuse_loss(dataclasses.replace(plan, output=tmp_path / "other"))
    monkeypatch.chdir(tmp_path / "run" / "model")
    with pytest.raises(RecipeError, match="would remove the working directory"):
        refuse_loss(plan_run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run"))


@pytest.mark.parametrize("resume", [True, False])
def test_new_and_empty_folders_are_free(tmp_path: Path, digest: str, resume: bool) -> None:
    refuse_occupied(tmp_path / "new", digest, resume=resume)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".lock").touch()
    refuse_occupied(tmp_path / "empty", digest, resume=resume)
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_overwritten(begun: Path, digest: str) -> None:
    with pytest.raises(RecipeError, match=r"is not empty\. Go on with that run with --resume, or name another folder"):
        refuse_occupied(begun, digest, resume=False)
    refuse_occupied(begun, digest, resume=True)


def test_another_recipe_does_not_resume_a_run(begun: Path, digest: str) -> None:
    with pytest.raises(RecipeError, match=rf"was begun with another recipe \({digest[:12]}, now 0123456789ab\)"):
        refuse_occupied(begun, "0123456789abcdef", resume=True)


def test_other_folders_are_not_resumed(tmp_path: Path, digest: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(RecipeError, match=r"holds no run to resume \(no recipe\.yaml\)"):
        refuse_occupied(tmp_path / "photos", digest, resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_a_file_is_no_folder(tmp_path: Path, digest: str, resume: bool) -> None:
    with pytest.raises(RecipeError, match="is a file; name a folder with --output"):
        refuse_occupied(tmp_path / "r.yaml", digest, resume=resume)


def test_a_damaged_recipe_is_shown_with_its_place(begun: Path, digest: str) -> None:
    (begun / "recipe.yaml").write_text("task: [\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:2:1  "):
        refuse_occupied(begun, digest, resume=True)


# --------------------------------------------------------------------------------------------- lock

HOLD = (
    "import sys; from pathlib import Path; from tltasks.runtime.files import locked\nwith locked(Path(sys.argv[1])): {}"
)


def test_a_second_run_is_kept_out(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD.format("print('held', flush=True); sys.stdin.read()"), str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match="another run is writing to it"), locked(tmp_path / "out"):
            pass
        other.kill()  # leaves the file, but not the lock
    assert (tmp_path / "out" / ".lock").exists()
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / ".lock").exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_fails_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "out"):
        raise ZeroDivisionError
    with locked(tmp_path / "out"):
        pass


def test_the_lock_of_the_next_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes the lock as soon as it is given back keeps its file."""
    import tltasks.runtime.files

    class Lock(tltasks.runtime.files.FileLock):  # type: ignore[misc]
        def release(self, force: bool = False) -> None:
            super().release(force)
            (tmp_path / "out" / ".lock").write_text("the next run's")

    monkeypatch.setattr(tltasks.runtime.files, "FileLock", Lock)
    with locked(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / ".lock").read_text() == "the next run's"


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RecipeError, match=r"/file is a file; choose another place"),
        locked(tmp_path / "file/x"),
    ):
        pass


# --------------------------------------------------------------------------------------- whole or not


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with whole_folder(folder) as place:
        (place / "new").write_text("1")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def fail_half_way() -> None:
        with whole_folder(folder) as place:
            (place / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert [path.name for path in folder.iterdir()] == ["old"]
    with whole_folder(folder) as place:
        assert list(place.iterdir()) == [], "what an earlier attempt has left is gone"
        (place / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "note.txt"
    write_text(path, "eins\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "eins\n"
    write_text(path, "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["note.txt"]


def test_json_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"ä": [1, None]}
    assert "ä" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_says(tmp_path: Path, umask: int) -> None:
    """safetensors writes 0600 whatever the umask."""
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "a.safetensors") as place:
            save_file({"a": np.zeros(2)}, place)
        with whole_folder(tmp_path / "model") as folder:
            save_file({"a": np.zeros(2)}, folder / "b.safetensors")
            (folder / "run.sh").touch(mode=0o777)
        write_text(tmp_path / "c.txt", "c")
    finally:
        os.umask(before)
    for name in ("a.safetensors", "model/b.safetensors", "c.txt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask, name
    assert stat.S_IMODE((tmp_path / "model" / "run.sh").stat().st_mode) == 0o777 & ~umask
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.safetensors", "b.safetensors", "c.txt", "model", "run.sh"]


def test_where_there_is_no_room_the_earlier_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "earlier")
    with no_room(4096), pytest.raises(OSError, match="File too large") as caught:
        write_text(path, "x" * 8192)
    assert is_full_disk(caught.value)
    assert path.read_text() == "earlier"
    with no_room(4096), pytest.raises(Exception, match="os error 27") as told, whole_folder(tmp_path / "m") as folder:
        save_file({"a": np.zeros(2000)}, folder / "a.safetensors")
    assert is_full_disk(told.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_is_added_is_added_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append(path, "x" * 4000 + "\n")
    with no_room(4096), pytest.raises(OSError, match="File too large"):
        append(path, "y" * 200 + "\n")
    assert path.read_text() == "x" * 4000 + "\n"
    append(path, "z\n")
    assert path.read_text().endswith("x\nz\n")


def test_what_a_killed_run_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".result.json.7.tmp").touch()
    (tmp_path / "stages" / "a" / ".model.tmp").mkdir(parents=True)
    (tmp_path / "stages" / "a" / "result.json").touch()
    with locked(tmp_path):
        assert sorted(p.name for p in tmp_path.rglob("*")) == [".lock", "a", "result.json", "stages"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("n" * 5000, "more than 255 bytes; choose a shorter one"),
        ("é" * 200, "more than 255 bytes"),
        ("/".join(["n" * 200] * 30), "File name too long; choose another place"),
        ("file/x/y", "/file is a file"),
    ],
)
def test_places_where_nothing_can_be_made(tmp_path: Path, digest: str, name: str, said: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=said):
        refuse_occupied(tmp_path / name, digest, resume=False)
    with pytest.raises(RecipeError, match=said):
        check_output(tmp_path / f"{name}.csv", resume=False, flags={})


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to any
    with pytest.raises(RecipeError, match="cannot be written to; choose another place"):
        check_place(tmp_path / "new" / "folder")


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, ".hidden", "two words"])
def test_places_where_something_can_be_made(tmp_path: Path, name: str) -> None:
    with locked(tmp_path / name):
        write_text(tmp_path / name / ("m" * 255), "long")
    assert (tmp_path / name / ("m" * 255)).read_text() == "long"


# ------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("whole", [True, False])
def test_a_change_in_the_middle_of_a_file_is_seen_and_a_copy_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    if not whole:
        monkeypatch.setattr("tltasks.runtime.files.READ_WHOLE", 2**10)
        monkeypatch.setattr("tltasks.runtime.files.BLOCK", 2**8)
    lines = [f'{{"text": "row {i:05}", "label": {i % 2}}}\n'.encode() for i in range(5000)]
    shards = [tmp_path / f"train-{i}.jsonl" for i in range(2)]
    for shard in shards:
        shard.write_bytes(b"".join(lines))
    before = content_of(shards)
    (tmp_path / "copies").mkdir()
    for shard in shards:
        (tmp_path / "copies" / shard.name).write_bytes(shard.read_bytes())
    assert content_of(sorted((tmp_path / "copies").iterdir())) == before
    assert content_of(["https://example.org/a.parquet"]) != content_of(["https://example.org/b.parquet"])
    changed = [lines[2500].replace(b'"label": 0', b'"label": 1')] if whole else lines[2000:2100][::-1]
    at = 2500 if whole else 2000
    shards[0].write_bytes(b"".join([*lines[:at], *changed, *lines[at + len(changed) :]]))
    assert shards[0].stat().st_size == shards[1].stat().st_size
    assert content_of(shards) != before
