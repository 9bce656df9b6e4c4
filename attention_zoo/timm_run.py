"""Run a script that builds models with timm, with the zoo's models known to timm.

timm's own scripts (train.py, validate.py, ...) are in its repository, not in its package, and cannot import us.
"""

import importlib
import runpy
import sys
from pathlib import Path

import torch

from attention_zoo.published.weights import SETTINGS

USAGE = """\
usage: python -m attention_zoo.timm_run SCRIPT [ARGS ...]

Run SCRIPT as `python SCRIPT ARGS ...` would, after registering the zoo's models in timm.
example: python -m attention_zoo.timm_run train.py --data-dir DATA --model zoo_biformer_tiny --drop-path 0.1
         python -m attention_zoo.timm_run validate.py --data-dir DATA --model zoo_biformer_tiny --checkpoint FILE
models:  python -c "import timm, attention_zoo.timm_models; print(*timm.list_models('zoo_*'))"
"""


def main(arguments: list[str]) -> int:
    """Run a script with its arguments; its own exits and errors pass through. Return 2 if there is no such file."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if not arguments:
        print(USAGE, end="", file=sys.stderr)
        return 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"timm_run: no script {arguments[0]!r}; see python -m attention_zoo.timm_run --help", file=sys.stderr)
        return 2
    importlib.import_module("attention_zoo.timm_models")
    sys.argv = arguments
    sys.path.insert(0, str(script.resolve().parent))
    # official trainings put paths and numbers of NumPy beside the weights; timm allows argparse.Namespace alone
    with torch.serialization.safe_globals(SETTINGS):
        runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
