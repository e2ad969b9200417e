from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_ranks_that_differ_in_pictures_agree_under_zero_3() -> None:
    program = Path(__file__).with_name("zero3_encoders.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0 and done.stdout.count("ok") == 2, done.stdout[-2000:] + done.stderr[-4000:]
