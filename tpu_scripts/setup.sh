#!/usr/bin/env bash
# Installs attnjax on every host of a queued resource.
set -euo pipefail
# shellcheck source=slices.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/slices.sh"

usage() {
  cat <<'USAGE'
setup.sh NAME (--git URL --ref REF | --archive FILE)

Installs attnjax with its training extra into ~/attnjax/venv on every host of NAME. Run it again to change the
version. Several hosts: `ssh-add ~/.ssh/google_compute_engine` first, for gcloud asks for nothing then.

  --git URL          https://... or ssh://..., which every host can read
  --ref REF          branch, tag or commit
  --archive FILE     instead: a wheel, or an archive such as `git archive --prefix=attnjax/ -o attnjax.tar.gz HEAD` makes
  --jax REQUIREMENT  jax to install; default: jax[tpu]>=0.10,<0.13
  --python PROGRAM   Python 3.11 to 3.13 on the hosts; default: python3.11
  --prepare COMMAND  shell command that runs first on every host, in bash and the home folder, such as one that
                     installs Python, or mounts the file system for --run-dir
  --dry-run          print the commands, run nothing
  --help             this text
USAGE
}

parse_options "git ref archive jax python prepare" "" "$@"
take_name
: "${opt[jax]:=jax[tpu]>=0.10,<0.13}" "${opt[python]:=python3.11}"
check --jax "${opt[jax]}" '^[A-Za-z0-9]' "a requirement for pip, which begins with a name"
check --python "${opt[python]}" '^[A-Za-z0-9_./][A-Za-z0-9_./-]*$' "a program: letters, digits and _ . / -"
if [[ ${opt[archive]:-} ]]; then
  [[ ! ${opt[git]:-} && ! ${opt[ref]:-} ]] || die 2 "give --archive, or --git and --ref, not both"
  [[ -f ${opt[archive]} ]] || die 2 "no such file: $(quote "${opt[archive]}")"
  archive=$(cd -- "$(dirname -- "${opt[archive]}")" && pwd)/${opt[archive]##*/}
  [[ $archive != *:* ]] || die 2 "gcloud would take what precedes the colon in $(quote "$archive") for a host; move the file"
  check "the archive's name" "${archive##*/}" '^[A-Za-z0-9][A-Za-z0-9._+-]*\.(whl|zip|tar\.gz)$' \
    "letters, digits and . _ + -, ending in .whl, .zip or .tar.gz, for pip goes by it"
  source="attnjax/archives/${archive##*/}[train]"
else
  need git ref
  check --git "${opt[git]}" '^(https|ssh)://[A-Za-z0-9._~:/@%+-]+$' "an https:// or ssh:// address without special characters"
  check --ref "${opt[ref]}" '^[A-Za-z0-9][A-Za-z0-9._/-]*$' "a branch, tag or commit: letters, digits and . _ / -"
  archive=''
  source="attnjax[train] @ git+${opt[git]}@${opt[ref]}"
fi
find_slices

install() {
  if [[ $archive ]]; then
    on_hosts "$1" all "mkdir -p attnjax/archives"
    copy_to_hosts "$1" "$archive" attnjax/archives
  fi
  on_hosts "$1" all "$(remote_text install.sh "${opt[prepare]:-}" "${opt[python]}" "${opt[jax]}" "$source")"
}
on_every_slice install
