"""What the benchmarks share."""

import subprocess


def commit() -> str:
    """The commit that is measured, with `-dirty` where files differ from it."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"
