# Sourced by every tool: sets up all that can be set up, once, and says what it cannot.
# After it, $EEP_PYTHON is the interpreter of a virtual environment with the product installed.
# A second start only compares checksums (well under a second).

eep_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
eep_venv=${EEP_VENV:-$eep_root/.venv}
EEP_PYTHON=$eep_venv/bin/python
export EEP_PYTHON PYTHONPATH="$eep_root${PYTHONPATH:+:$PYTHONPATH}"
PATH=$eep_venv/bin:$PATH
cd "$eep_root" || exit 1

eep_say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }
eep_fail() { printf 'tools: %s\n' "$*" >&2; exit 69; }  # EX_UNAVAILABLE

eep_find_python() {
    local candidate
    for candidate in "${EEP_BASE_PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { printf '%s' "$candidate"; return; }
    done
    eep_fail "no Python ≥ 3.11 found. Remedy: sudo apt-get install python3 python3-venv python3-dev"
}

# Runs a long command with its output in a file and a clock on the terminal.
eep_run() {
    local what=$1 log=$eep_venv/setup.log started=$SECONDS; shift
    printf '\033[2m%s …\033[0m' "$what" >&2
    "$@" >>"$log" 2>&1 &
    local child=$!
    while kill -0 "$child" 2>/dev/null; do
        [ -t 2 ] && printf '\r\033[2m%s … %d s\033[0m' "$what" $((SECONDS - started)) >&2
        sleep 0.2
    done
    if ! wait "$child"; then
        printf '\n' >&2; tail -n 30 "$log" >&2
        eep_fail "\"$what\" failed; the whole output is in $log"
    fi
    printf '\r\033[2m%s: %d s    \033[0m\n' "$what" $((SECONDS - started)) >&2
}

eep_locks() {
    if [ "${EEP_ENGINE:-cpu}" = cpu ]; then printf '%s\n' tools/locks/engine-cpu.txt; fi
    printf '%s\n' tools/locks/runtime.txt tools/locks/dev.txt
}

eep_setup() {
    local base stamp wanted
    if [ ! -x "$EEP_PYTHON" ]; then
        base=$(eep_find_python) || exit 69
        "$base" -c 'import ensurepip, venv' 2>/dev/null \
            || eep_fail "$base has no venv module. Remedy: sudo apt-get install python3-venv"
        eep_say "virtual environment: $eep_venv"
        "$base" -m venv "$eep_venv" || eep_fail "could not create $eep_venv"
    fi
    stamp=$eep_venv/.eep-packages
    # shellcheck disable=SC2046
    wanted=$(cat $(eep_locks) | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        # shellcheck disable=SC2046
        eep_run "Python packages (about 2 GB, some minutes the first time)" \
            "$EEP_PYTHON" -m pip install --no-deps --disable-pip-version-check $(eep_locks | sed 's/^/-r /')
        "$EEP_PYTHON" -c 'import torch' >>"$eep_venv/setup.log" 2>&1 \
            || eep_run "torch's own libraries" "$EEP_PYTHON" -m pip install --disable-pip-version-check torch==2.13.0
        printf '%s' "$wanted" >"$stamp"
    fi
    stamp=$eep_venv/.eep-native
    wanted=$( { find native -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.txt' -o -name '*.cmake' \) -print0 \
        | sort -z | xargs -0 sha256sum; sha256sum pyproject.toml; } | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 \
            || eep_fail "no C++ compiler found. Remedy: sudo apt-get install g++"
        "$EEP_PYTHON" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
            || eep_fail "Python.h is missing. Remedy: sudo apt-get install python3-dev"
        eep_run "native extension" "$EEP_PYTHON" -m pip install --no-deps --no-build-isolation --disable-pip-version-check -e .
        printf '%s' "$wanted" >"$stamp"
    fi
}

eep_setup
