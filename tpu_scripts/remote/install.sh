# Runs on a host, through `bash -c`: install.sh PREPARE PYTHON JAX SOURCE
# shellcheck shell=bash
set -euo pipefail
prepare=$1 python=$2 jax=$3 source=$4
cd
[[ -z $prepare ]] || bash -c "$prepare"
command -v "$python" >/dev/null || {
  echo "$(hostname): there is no $python; let setup.sh --prepare install one, or name another with --python" >&2
  exit 1
}
mkdir -p attnjax
[[ -x attnjax/venv/bin/python ]] || "$python" -m venv attnjax/venv || {
  rm -rf attnjax/venv # half a venv would pass for a whole one
  exit 1
}
# An archive stands under the home folder, whose path only the host knows.
[[ $source != attnjax/archives/* ]] || source=$PWD/$source
attnjax/venv/bin/python -m pip install --quiet --upgrade "$jax" "$source"
attnjax/venv/bin/python -c 'import attnjax, jax, socket; print(socket.gethostname(), "has attnjax, jax", jax.__version__)'
