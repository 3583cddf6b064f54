"""Files that are never half-written: a command killed at any moment leaves the old file or the new one."""

import errno
import json
import os
import uuid
from pathlib import Path

from cvsa_jax.errors import UserError


def write_atomically(path: Path, write) -> None:
    """Calls `write(file)` on a temporary file beside `path` and renames it; of two that write the same file the later
    one wins.

    Raises:
        UserError: the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left to write {path}. What is finished is kept: make room and give the same command again"
        ) from None


def write_text_atomically(path: Path, text: str) -> None:
    """`text` as UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json_atomically(path: Path, content: dict) -> None:
    """`content` as JSON."""
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")
