#!/bin/sh
# Creates .venv where there is none and installs this project into it, at the versions of lock.txt.
#   sh requirements/install.sh EXTRAS [PYTHON]
set -eu
cd "$(dirname "$0")/.."
extras=$1
candidates=${2:-python3 python3.13 python3.12 python3.11}
log=.venv/install.log
# The stamp appears only after pip has succeeded, so an interrupted installation is taken up again.
stamp=.venv/installed-$extras
shown='^ *(Downloading|Using cached) .*[0-9]{2}\.[0-9] MB|^Installing collected packages'

find_python() {
  for newest in 13 99; do # a tested Python first, else a newer one
    for candidate in $candidates; do
      check="import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))"
      if "$candidate" -c "$check" 2>/dev/null; then
        echo "$candidate"
        return
      fi
    done
  done
  echo "error: Python 3.11 or newer is needed, and none was found among: $candidates." \
    "Install one, or name it: make install PYTHON=/path/to/python3.12" >&2
  return 1
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  echo "Creating .venv with $("$python" --version)"
  "$python" -m venv --clear .venv
fi

echo "Installing [$extras] into .venv: some minutes the first time. The whole log is in $log."
rm -f "$stamp"
{
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off \
    -c requirements/lock.txt -e ".[$extras]" && touch "$stamp"
} 2>&1 | tee "$log" | grep --line-buffered -oE "$shown" || true

if [ ! -e "$stamp" ]; then
  grep -v '^WARNING' "$log" | tail -n 20 >&2
  echo "error: the installation failed, see above; run the same command again to go on" >&2
  exit 1
fi
