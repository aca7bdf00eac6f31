# Sourced by run and test: everything that a fresh machine with Python 3.11 needs, once.
# Quick when nothing is left to do: a stamp in the virtual environment holds the hash of what it was made from.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${FEATHERWEIGHT_VENV:-$root/.venv}

# What Qt and its web engine load on Debian and Ubuntu; a fonts package so that nothing turns to boxes.
libraries=(libgl1 libegl1 libglib2.0-0 libfontconfig1 libdbus-1-3 libxkbcommon0 libxkbcommon-x11-0 libnss3 libasound2
    libxcomposite1 libxdamage1 libxrandr2 libxtst6 libxkbfile1 libgbm1 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1
    libxcb-shape0 fonts-dejavu-core)

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    say "Featherweight needs Python 3.11, 3.12 or 3.13; none was found. Install one, or set PYTHON to its path."
    exit 2
}

# install_libraries PACKAGE…: as root installs what is missing; otherwise prints the one line that would.
install_libraries() {
    command -v dpkg-query >/dev/null 2>&1 || return 0
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            dpkg-query -W -f='${Status}' "${package}t64" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -eq 0 ]; then
        say "Installing system libraries: ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null 2>"$venv.apt.log"; then
            say "Some system libraries could not be installed:" && tail -n 3 "$venv.apt.log" >&2
        fi
        rm -f "$venv.apt.log"
    else
        say "These system libraries are missing; this line installs them:"
        say "    sudo apt-get install --no-install-recommends ${missing[*]}"
    fi
}

# make_environment [GROUP]: the virtual environment with the package and its pinned dependencies.
make_environment() {
    local group=${1:-} stamp python
    stamp=$(cat "$root/pyproject.toml" "$root/packaging/constraints.txt" "$root/packaging/setup.sh" | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$venv/.featherweight-$group" 2>/dev/null)" = "$stamp" ] && [ -x "$venv/bin/python" ]; then
        return 0
    fi
    python=$(find_python) || exit 2
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -c 'import ensurepip' 2>/dev/null || install_libraries python3-venv
        "$python" -m venv "$venv" || {
            say "The virtual environment could not be made in $venv."
            exit 2
        }
    fi
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/packaging/constraints.txt")
    say "Installing Featherweight into $venv (a few minutes the first time) …"
    # torch first and alone: the CPU build where one is at hand, so that no other package chooses a larger one.
    "${pip[@]}" "torch==2.13.0" || exit 2
    "${pip[@]}" --editable "$root" || exit 2
    if [ -n "$group" ]; then
        mapfile -t extra < <("$venv/bin/python" - "$root/pyproject.toml" "$group" <<'PY'
import sys, tomllib
print("\n".join(tomllib.load(open(sys.argv[1], "rb"))["dependency-groups"][sys.argv[2]]))
PY
        )
        "${pip[@]}" "${extra[@]}" || exit 2
    fi
    printf '%s' "$stamp" >"$venv/.featherweight-$group"
}
