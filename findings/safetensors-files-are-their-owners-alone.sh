#!/usr/bin/env bash
# One would guess: a file that `safetensors.numpy.save_file` writes can be read by whom the umask lets read it, as one can that
# `open` or `numpy.save` writes; earlier releases made it so.
# safetensors 0.8.0 gives it the mode 0600 whatever the umask, also where it takes the place of a file that all may read.
# Seen (umask 022): "numpy.save 0o644, safetensors 0o600, in the place of a file of 0o644: 0o600".
# So weights on a shared disk are refused to colleagues and to services under another name, until their mode is set.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'safetensors==0.8.0' numpy 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
cd "$folder"
umask 022
"$folder/env/bin/python" - <<'PY'
import stat
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def mode(path: str) -> str:
    return oct(stat.S_IMODE(Path(path).stat().st_mode))


weights = np.zeros(4, np.float32)
np.save("a.npy", weights)
save_file({"a": weights}, "a.safetensors")
Path("b.safetensors").touch()
before = mode("b.safetensors")
save_file({"a": weights}, "b.safetensors")
print(f"numpy.save {mode('a.npy')}, safetensors {mode('a.safetensors')}, in the place of a file of {before}: {mode('b.safetensors')}")
if (mode("a.npy"), mode("a.safetensors"), mode("b.safetensors")) != ("0o644", "0o600", "0o600"):
    sys.exit("changed")
PY
