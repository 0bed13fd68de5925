"""What is drawn for a row is the same in every process, whatever its hashes of strings begin with."""

import hashlib
import json
import subprocess
import sys

from tests.tiny.host import REPOSITORY
from tests.unit.tasks.image.test_decoding import ALL, augmented
from tltasks.tasks.image.augmentation import draw_mix


def digests(rows: list[int]) -> dict[int, str]:
    found = {}
    for row in rows:
        mix = draw_mix(ALL, rows=99, seed=7, epoch=2, row=row)
        content = augmented(ALL, row, seed=7, epoch=2).numpy().tobytes() + repr(mix).encode()
        found[row] = hashlib.sha256(content).hexdigest()
    return found


def test_another_process_draws_the_same() -> None:
    code = "import json; from tests.e2e.test_draws import digests; print(json.dumps(digests([5, 3, 0])))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert {int(row): digest for row, digest in json.loads(done.stdout).items()} == digests([0, 3, 5])
