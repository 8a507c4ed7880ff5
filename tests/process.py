"""Python in a process of its own, without the test run's shape checks."""

import subprocess
import sys
import textwrap


def run_python(program):
    """What the program prints. Its errors are shown, and raise."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
