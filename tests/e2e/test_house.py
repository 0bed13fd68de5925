"""benchmarks/house.py as `make house` calls it."""

import json
import subprocess
import sys

from benchmarks.house import REPOSITORY, read_house


def test_the_script_prints_every_number_and_fails_on_demand() -> None:
    def script(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "benchmarks/house.py", *flags]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)

    measures = read_house().measures()
    table, found = script(), script("--json", "--fail")
    assert all(measure.name in table.stdout for measure in measures)
    assert [entry["value"] for entry in json.loads(found.stdout)] == [measure.value for measure in measures]
    assert (table.returncode, found.returncode) == (0, int(not all(measure.holds for measure in measures)))
