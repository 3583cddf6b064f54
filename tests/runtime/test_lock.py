import os
import subprocess
import sys

import pytest

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.lock import NAME, Lock


def test_second_writer_is_refused_with_the_first_ones_name(tmp_path):
    lock = Lock(tmp_path / "run")
    with pytest.raises(
        UserError, match=rf"run is being written by process {os.getpid()} on .* since 20.*: wait for it"
    ):
        Lock(tmp_path / "run")
    Lock(tmp_path / "other").release()
    lock.release()
    Lock(tmp_path / "run").release()


def test_killed_process_holds_no_lock(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom cvsa_jax.runtime.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(300)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"being written by process {process.pid} on"):
            Lock(tmp_path)
        process.kill()
    # What the killed one had written is still there.
    assert str(process.pid) in (tmp_path / NAME).read_text()
    Lock(tmp_path).release()
