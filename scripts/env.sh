# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The environment of quickstart.sh, test.sh and CI; sourced, not run. Variables a caller may set:
#   PYTHON           interpreter that makes the virtual environment (default python3)
#   SGLANG_HSA_VENV  its folder, which several clones may share (default .venv in the repository, or .venv-RELEASE)
#   SGLANG_HSA_RELEASE  the release of upstream.lock to build and use; scripts also take it as --release RELEASE

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_env_place_venv() { VENV=${SGLANG_HSA_VENV:-$ROOT/.venv${SGLANG_HSA_RELEASE:+-$SGLANG_HSA_RELEASE}}; }
_env_place_venv
TREE=$ROOT/sglang
# Free space that a first installation takes: the environment, and the downloads that pip keeps until it is done.
INSTALL_GB=12
DOWNLOAD_GB=5

die() {
    echo "$(basename "$0"): error: $*" >&2
    exit 1
}

# env_release ARGUMENTS...: take --release RELEASE off the front of the arguments; the others are ARGUMENTS then.
env_release() {
    case "${1:-}" in
    --release)
        [ -n "${2:-}" ] || die "--release needs the name of a release of upstream.lock"
        SGLANG_HSA_RELEASE=$2
        shift 2
        ;;
    --release=*)
        SGLANG_HSA_RELEASE=${1#*=}
        shift
        ;;
    esac
    if [ -n "${SGLANG_HSA_RELEASE:-}" ]; then export SGLANG_HSA_RELEASE=v${SGLANG_HSA_RELEASE#v}; fi
    _env_place_venv
    # shellcheck disable=SC2034 # for the script that sources this file
    ARGUMENTS=("$@")
}

# env_python: choose the interpreter, or end with one line. A virtual environment made earlier brings its own.
env_python() {
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=python3
        [ ! -x "$VENV/bin/python" ] || PYTHON=$VENV/bin/python
    fi
    command -v "$PYTHON" >/dev/null || die "$PYTHON was not found; install Python 3.10 or later, or set PYTHON"
    # A version manager's stand-in may be there without the Python that it stands for.
    "$PYTHON" -c '' >/dev/null 2>&1 || die "$PYTHON does not run; install Python 3.10 or later, or set PYTHON"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$("$PYTHON" -V 2>&1) ($PYTHON) is too old; set PYTHON to a Python 3.10 or later"
    export PYTHON
}

# env_apply: build the patched tree, or bring it up to date.
env_apply() {
    env_python
    "$ROOT/scripts/apply_overlay.sh" || exit 1
}

# env_key: what decides which packages are installed. The lock also names every patch, which changes no package.
env_key() {
    local project=$TREE/python/pyproject.toml
    [ -e "$project" ] || project=$(echo "$TREE"/python/sglang-*.dist-info/METADATA)
    cat "$project" "$TREE/pyproject.toml" "$ROOT/overlay/_sglang_build.py" | sha256sum | cut -c1-16
}

# env_install [REQUIREMENTS...]: make the virtual environment, install the tree and the requirement files into it.
env_install() {
    _env_make_venv
    local key installed='' tree=''
    key=$(env_key)
    read -r installed tree 2>/dev/null <"$VENV/.sglang-hsa" || true
    # A shared environment serves many clones: its packages count, and PYTHONPATH picks the tree.
    [ -z "${SGLANG_HSA_VENV:-}" ] || tree=$TREE
    if [ "$installed $tree" = "$key $TREE" ]; then
        echo "environment: $VENV is up to date, pip install skipped"
    else
        _env_need_space
        echo "environment: installing the patched SGLang and its packages into $VENV (log: $VENV/install.log)"
        _env_pip --editable "$TREE"
        echo "$key $TREE" >"$VENV/.sglang-hsa"
    fi

    local file name stamp
    for file in "$@"; do
        name=${file#"$ROOT"/}
        stamp="$VENV/.sglang-hsa-${name//\//-}"
        if cmp -s "$file" "$stamp"; then
            echo "environment: $name is installed, skipped"
        else
            echo "environment: installing $name"
            _env_pip --requirement "$file"
            cp "$file" "$stamp"
        fi
    done
}

# env_enter: use the environment, and this clone's tree whatever tree the environment was made for.
env_enter() {
    export PATH="$VENV/bin:$PATH" VIRTUAL_ENV="$VENV"
    export PYTHONPATH="$TREE/python${PYTHONPATH:+:$PYTHONPATH}"
    export HF_HUB_OFFLINE=1
    # A server is several processes, and each of them would compile the tree's sources again.
    unset PYTHONDONTWRITEBYTECODE
    # A server is several processes: OpenMP threads that spin for a busy core cost far more than they bring.
    local cores
    cores=$(getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 3 ? cores / 2 : 1))}"
}

_env_make_venv() {
    [ ! -x "$VENV/bin/python" ] || return 0
    if [ -e "$VENV" ] && [ -n "$(ls -A "$VENV" 2>/dev/null || echo file)" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
        die "$VENV exists and is not a virtual environment; remove it or set SGLANG_HSA_VENV to another folder"
    fi
    echo "environment: creating $VENV"
    if ! "$PYTHON" -m venv "$VENV" >/dev/null; then
        rm -rf "$VENV"
        die "$PYTHON cannot make a virtual environment; on Debian and Ubuntu install python3-venv"
    fi
}

_env_need_space() {
    [ ! -e "$VENV/.sglang-hsa" ] || return 0
    local free_kb need=$INSTALL_GB
    free_kb=$(df -Pk "$VENV" | awk 'NR == 2 { print $4 }')
    [ "$(stat -c %d "$VENV")" != "$(stat -c %d "${TMPDIR:-/tmp}")" ] || need=$((need + DOWNLOAD_GB))
    [ "$free_kb" -ge $((need << 20)) ] ||
        die "$VENV has $((free_kb >> 20)) GB free and the installation takes $need; set SGLANG_HSA_VENV to another disk"
}

_env_pip() {
    if ! "$VENV/bin/python" -m pip install --progress-bar off --disable-pip-version-check "$@" >"$VENV/install.log" 2>&1; then
        grep -E '^ *(ERROR|error)' "$VENV/install.log" | tail -3 >&2 || true
        die "pip install $* failed; see $VENV/install.log"
    fi
}
