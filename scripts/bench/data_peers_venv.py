"""The environment of the peers: made once, with the versions that the figures in docs/performance.md are of.

What peers and we both use (torch, Pillow, numpy, transformers, webdataset ...) comes in our own versions, so that
neither side has the faster JPEG decoder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("megatron-energon==7.4.1", "trl==1.16.0", "datasets==5.2.0", "webdataset", "transformers", "pillow", "numpy")


def python_of(folder: Path) -> str:
    """The Python of the peers' environment, which is made if there is none."""
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"installing the peers into {folder} (2 GB)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "torch"], check=True)  # first: what depends on it must not choose another
        subprocess.run([*pip, *PEERS], check=True)
        (folder / "made").touch()
    return str(python)
