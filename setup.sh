#!/bin/sh
# setup.sh VENV REQUIREMENTS [SIZE]: makes the virtual environment and installs the pinned set, with uv if it is there.
set -eu
venv=$1 requirements=$2

if command -v uv >/dev/null 2>&1; then
    [ -x "$venv/bin/python" ] || uv venv --quiet --python '>=3.11,<3.14' "$venv"
    uv pip install --quiet --python "$venv/bin/python" -r "$requirements"
    exit
fi

fits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
if [ ! -x "$venv/bin/python" ]; then
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$fits" 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "${python:-}" ]; then
        echo "error: no Python 3.11, 3.12 or 3.13 with venv was found." >&2
        echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or install uv, which brings its own." >&2
        exit 1
    fi
    "$python" -m venv "$venv"
fi
echo "installing $requirements into $venv, once${3:+ ($3)}"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
