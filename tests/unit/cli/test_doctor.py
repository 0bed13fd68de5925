"""The table about this machine, and what it says of the login."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, close_session

from tests.hub_server import HubServer
from tltasks.cli import doctor


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "get_token", lambda: None)
    monkeypatch.setattr(doctor.constants, "HF_HOME", str(tmp_path / "not" / "yet"))
    assert doctor.examine() == 0
    printed = capsys.readouterr().out
    for expected in (
        "cpu: ",
        f"torch {torch.__version__.partition('+')[0]}",
        "GiB free",
        "not logged in",
        "fast formats",
    ):
        assert expected in printed
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(("free", "little"), [(doctor.FEW_BYTES - 1, True), (doctor.FEW_BYTES, False)])
def test_little_disk_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: int, little: bool
) -> None:
    monkeypatch.setattr(doctor, "get_token", lambda: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    doctor.examine()
    assert ("(little)" in capsys.readouterr().out) == little


@pytest.mark.parametrize(
    ("token", "listens", "offline", "said"),
    [
        (HubServer.token, True, False, "logged in as ada"),
        ("hf_of_nobody", True, False, "the stored token is refused"),
        (HubServer.token, True, True, "offline mode is on"),
        (HubServer.token, False, False, "cannot be reached"),
    ],
)
def test_the_login(
    monkeypatch: pytest.MonkeyPatch, token: str, listens: bool, offline: bool, said: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with HubServer() as server:
        endpoint = server.url if listens else "http://127.0.0.1:9"
        monkeypatch.setattr(doctor, "whoami", HfApi(endpoint=endpoint).whoami)
        answer = doctor._login()
        close_session()
    assert said in answer
    assert token not in answer
