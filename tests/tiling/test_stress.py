"""The scripts of tests/stress, run for a short while; see there for what they check."""

import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parents[1] / "stress"


def stress(script, *arguments):
    command = [sys.executable, str(STRESS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_killed_at_any_moment_and_resumed_gives_the_same_bytes():
    said = stress("kill_tiling.py", 5, 2)
    assert "4 × SIGKILL" in said and "1 × SIGTERM" in said
    assert "× rounds, all stores equal" in said and "× while a slide was half written" in said


def test_damaged_slides_end_with_a_reason_and_the_job_lives(data):
    said = stress("mutate_slides.py", 20, 3)
    assert "20 mutants" in said and "'failed'" in said and "'done'" in said


def test_a_slide_of_one_level_needs_little_memory():
    said = stress("one_level.py", 9000, 256)
    assert "'tissue_covered': 1.0" in said and "'done'" in said
