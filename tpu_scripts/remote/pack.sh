# Runs on a host, through `bash -c`: pack.sh PATH, relative to the home folder. Writes a compressed archive of it.
# shellcheck shell=bash
set -euo pipefail
cd
tar -C "$(dirname -- "$1")" -czf - -- "$(basename -- "$1")"
