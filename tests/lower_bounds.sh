#!/usr/bin/env bash
# Run the default tests with the oldest versions that pyproject.toml allows, in a new environment: tests/lower_bounds.sh
# Arguments go to pytest. The tools of the tests themselves are the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT   # it is 6 GB
python3 -m venv "$venv"
python3 - > "$venv/constraints.txt" << 'PYTHON'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["sweeps"], *extras["dense"]]:
    if not requirement.startswith("attention-zoo"):
        print(requirement.replace(">=", "=="))
PYTHON
cat "$venv/constraints.txt"
"$venv/bin/pip" install -q -e '.[test]' -c "$venv/constraints.txt"
PATH="$venv/bin:$PATH" "$venv/bin/pytest" -n auto "$@"
