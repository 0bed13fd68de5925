#!/usr/bin/env bash
# One would guess: a FLAC file whose header leaves its length open (zero, which the format allows and every encoder writes to
# a pipe) is read to its end by `soundfile.read`, or at least block by block, as players do.
# soundfile 0.14.0 with libsndfile 1.2.2: `frames` is 9223372036854775807, `read` asks for as much memory, and reading block by
# block fails in the last block, whose samples are lost, because soundfile seeks after every read of a file that can be sought in.
# The same file is read whole through a SoundFile whose `seekable` says no.
# Seen: "read: ValueError", "blocks: 40960 of 48000, then Internal psf_fseek() failed.", "not seekable: 48000 of 48000".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'soundfile==0.14.0' 'numpy==2.4.6' 2>"$folder/pip.log" \
    || { cat "$folder/pip.log"; exit 2; }
cat >"$folder/read.py" <<'PY'
import io
import sys

import numpy as np
import soundfile

samples = (0.5 * np.sin(np.arange(48000) / 7)).astype(np.float32)
target = io.BytesIO()
soundfile.write(target, samples, 16000, format="FLAC")
content = bytearray(target.getvalue())
content[21] &= 0xF0  # the 36 bits of the number of samples, in the first block of metadata
content[22:26] = bytes(4)


class Stream(soundfile.SoundFile):
    def seekable(self):
        return False


def count(kind):
    n = 0
    try:
        with kind(io.BytesIO(content)) as file:
            while len(block := file.read(8192, dtype="float32")):
                n += len(block)
    except soundfile.SoundFileError as error:
        return f"{n} of {len(samples)}, then {error}"
    return f"{n} of {len(samples)}"


try:
    soundfile.read(io.BytesIO(content))
    whole = "all"
except (MemoryError, ValueError, soundfile.SoundFileError) as error:
    whole = type(error).__name__
blocks, stream = count(soundfile.SoundFile), count(Stream)
print(f"read: {whole}\nblocks: {blocks}\nnot seekable: {stream}")
if whole == "all" or "then" not in blocks or stream != "48000 of 48000":
    sys.exit("changed: soundfile reads such files otherwise now")
PY
"$folder/env/bin/python" "$folder/read.py"
