"""Every file of tests is run by the commands that run all of them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_file_and_every_doctest_is_collected():
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-r", "s"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"^(?:SKIPPED \[1\] )?([\w/]+\.py):", listed, re.MULTILINE))
    tests = set(ROOT.glob("tests/**/test_*.py"))
    doctests = {path for path in ROOT.glob("biggraph/**/*.py") if "\n    >>> " in path.read_text()}
    assert len(tests) > 50
    assert {str(path.relative_to(ROOT)) for path in tests | doctests} - found == set()
