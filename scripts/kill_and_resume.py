"""Kill a run of a recipe with SIGKILL in the middle of every stage, let it resume, and compare its scores.

    python scripts/kill_and_resume.py recipes/nano.yaml runs/nano runs/nano-killed

The first folder holds a run that nobody interrupted: how long its stages took says where their middle is, and its
scores are what the killed run must come to. Exits with 1 when a score differs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from compress.stages import STAGES

MEASURED = ("peak_memory_bytes", "tokens_per_second", "units_per_second")


def stage_seconds(run: Path) -> dict[str, float]:
    """How long each stage of a finished run took."""
    records = {stage: run / "stages" / f"{stage}.done.json" for stage in STAGES}
    return {stage: json.loads(file.read_text())["seconds"] for stage, file in records.items() if file.is_file()}


def kill_in(stage: str, after: float, command: list[str], killed: Path) -> str:
    """Start the run and kill it `after` seconds into a stage; says what came of it."""
    started, done = (killed / "stages" / f"{stage}.{state}.json" for state in ("started", "done"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not started.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(after)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "already done" if done.exists() else "killed in it"


def scores(run: Path) -> list[dict]:
    """All rows of a run's report, without what depends on how fast the machine was."""
    rows = json.loads((run / "evaluate" / "report" / "report.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def main(recipe: str, whole: Path, killed: Path) -> int:
    command = [str(Path(sys.executable).with_name("deepcode-compress")), "run", recipe, "--out", str(killed)]
    for stage, seconds in stage_seconds(whole).items():
        print(f"{stage}: {kill_in(stage, seconds / 2, command, killed)} after {seconds / 2:.1f} s", flush=True)
    subprocess.run(command, check=True)
    different = [
        f"{expected['model']}: {key}"
        for expected, found in zip(scores(whole), scores(killed), strict=True)
        for key in expected
        if expected[key] != found[key]
    ]
    print("\n".join(different) or "every score is the same")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
