"""A command as a process: what it says and when, how it is ended, and its errors, each as one message."""

from __future__ import annotations

import codecs
import errno
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Literal

from cyclopts import CycloptsError
from cyclopts.exceptions import UnknownCommandError, UnusedCliTokensError

from tltasks.errors import (
    RecipeError,
    TltasksError,
    did_you_mean,
    first_line,
    is_full_disk,
    is_of_peers,
    is_of_silent_peers,
    printable,
)
from tltasks.runtime.progress import SETTINGS

RAISED, MISUSED, PARTIAL, INTERRUPTED = 1, 2, 3, 143
"""Exit statuses besides 0. PARTIAL: all was done, but for single inputs that could not be read."""
FULL = "no space is left on the disk. Free some; the same command then goes on, `run` and `predict` with --resume."
_OF_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE}


def fail(error: Exception, commands: Sequence[str]) -> int:
    """Say what a command has raised, to the user and to other processes, and return the exit status.

    What is nobody's mistake but ours is raised again.
    """
    full = is_full_disk(error)
    text = FULL if full else _describe(error, commands)
    if not _is_of_peers(error):
        _of_peers("leave_word", text or f"{type(error).__name__}: {first_line(error)}")
    if text is None:
        raise error
    try:
        sys.stdout.flush()
    except OSError:  # it is what is full
        leave_standard_output()
    rank = os.environ.get("RANK", "0")  # processes of a launcher share a terminal
    say(f"error{f' in process {rank}' if rank not in {'', '0'} else ''}: {text}")
    return MISUSED if isinstance(error, CycloptsError | RecipeError) and not full else RAISED


def _describe(error: Exception, commands: Sequence[str]) -> str | None:
    """Text for the user instead of a traceback; None for what is nobody's mistake but ours."""
    if isinstance(error, TltasksError):
        return str(error)
    if isinstance(error, CycloptsError):
        return _explain(error, commands)
    if isinstance(error, OSError) and error.errno in _OF_PLACES and error.filename:
        return f"{error.filename}: {error.strerror}."
    if _is_of_peers(error):
        said = _of_peers("find_word")
        silent = is_of_silent_peers(error)
        why = "its machine or the network is gone, or it hangs" if silent else "what it says is why, or it was killed"
        how = f"{'does not answer' if silent else 'has ended'} ({f'it said: {said}' if said else why})"
        return f"another process of this run {how}. --resume goes on from the last checkpoint."
    return None


def _is_of_peers(error: Exception) -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1" and is_of_peers(error)


def _of_peers(name: str, *arguments: str) -> str | None:
    """Call a function of `runtime/peers.py`, where a run of several processes has imported it."""
    peers = sys.modules.get("tltasks.runtime.peers")
    found: str | None = None if peers is None else getattr(peers, name)(*arguments)
    return found


def heed_verbosity(arguments: Sequence[str]) -> list[str]:
    """Take --quiet and --verbose, which every command has, out of the arguments."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    given = [word for word in arguments[:end] if word in ("--quiet", "--verbose")]
    level: Literal["quiet", "normal", "verbose"] = "normal"
    if given:
        level = "quiet" if given[-1] == "--quiet" else "verbose"
    SETTINGS.verbosity = level
    return [word for word in arguments[:end] if word not in given] + list(arguments[end:])


def begin(text: str) -> None:
    """Say at once what a command is about; libraries take seconds to load."""
    if SETTINGS.verbosity != "quiet" and os.environ.get("RANK", "0") in {"", "0"}:
        say(text)


def write_utf8() -> None:
    """Have names of files and classes printed in any script, also where the system's encoding (Windows') has it not."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def leave_standard_output() -> None:
    """Send what Python flushes at its end nowhere, where it could only fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_at_sigterm() -> None:
    """Have SIGTERM end a command as Ctrl-C does, with a word; processes that it starts end as ever."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    own = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() == own:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


def _explain(error: CycloptsError, commands: Sequence[str]) -> str:
    command = shlex.join(["tltasks", *(error.command_chain or ())])
    text = str(error).rstrip(".")
    if isinstance(error, UnusedCliTokensError):
        text = f"{command}: more than it takes: {shlex.join(error.unused_tokens or ())}"
    if isinstance(error, UnknownCommandError):  # its own list ends after eight (cyclopts 5.5, exceptions.py)
        word = (error.unused_tokens or [""])[0]
        text = f"no command is called `{word}`{did_you_mean(word, commands) or '.'} There are: {', '.join(commands)}"
    end = "" if text.endswith("?") else "."
    return f"{text}{end} See `{command} --help`."


def say(text: str) -> None:
    """Print on standard error, where all goes that nobody has asked for."""
    print(printable(text), file=sys.stderr)  # noqa: T201
