#!/bin/sh
# Make .venv hold exactly what a lock file names: setup.sh runtime|dev. Quick when there is nothing to do.
set -eu
cd -- "$(dirname -- "$0")/.."

case "${1:-}" in
    runtime) lock=requirements.lock ;;
    dev) lock=requirements-dev.lock ;;
    *) echo "usage: ops/setup.sh runtime|dev" >&2; exit 2 ;;
esac

# The development packages include the runtime ones, so either stamp satisfies `runtime`.
key="$PWD $(cat pyproject.toml requirements.lock requirements-dev.lock | cksum)"
if [ -x .venv/bin/python ]; then
    for stamp in "$lock" requirements-dev.lock; do
        if [ "$(cat ".venv/$stamp.stamp" 2>/dev/null)" = "$key" ]; then exit 0; fi
    done
fi

python=
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    cat >&2 <<'END'
Python 3.11 or newer is needed and was not found. To install it:
  Debian, Ubuntu:  sudo apt install python3 python3-venv     (Debian 12, Ubuntu 24.04 or newer)
  Fedora:          sudo dnf install python3
  macOS:           brew install python3
or name one: PYTHON=/path/to/python3 followed by the same command.
END
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    cat >&2 <<END
$("$python" --version) is here, but its venv module is not. To install it:
  Debian, Ubuntu:  sudo apt install python3-venv
  Fedora:          sudo dnf install python3-libs
  macOS:           brew reinstall python3
END
    exit 1
fi

echo "Setting up .venv ($1 packages of $lock; the first time takes about a minute) ..." >&2
# A virtual environment knows its folder and its interpreter: a moved or upgraded one is made again.
origin="$PWD $("$python" --version)"
if [ "$(cat .venv/origin 2>/dev/null)" != "$origin" ]; then
    "$python" -m venv --clear .venv
    echo "$origin" > .venv/origin
fi
rm -f .venv/*.stamp
install() { .venv/bin/python -m pip --disable-pip-version-check install --quiet "$@"; }
if ! install --require-hashes -r "$lock" || ! install --no-deps --no-build-isolation -e .; then
    echo "Setting up .venv failed (see above). Is the network there? Then run the same command again." >&2
    exit 1
fi
echo "$key" > ".venv/$lock.stamp"
