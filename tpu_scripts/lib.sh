# What every script here shares: options, quoting, dry runs and records. Sourced, never run.
# shellcheck shell=bash

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "bash 4.4 or newer is needed; this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

# shellcheck disable=SC2034 # for the scripts that source this
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# Exit codes: 2 the command line is wrong, 1 refused or failed, else what the called tool returned.
die() {
  printf '%s: %s\n' "${0##*/}" "$2" >&2
  exit "$1"
}

# Prints the arguments as words of any POSIX shell: the only way here in which data enters a command text.
quote() {
  local word separator='' plain='^[A-Za-z0-9_./:,@+%=-]+$' single="'" escaped="'\\''"
  for word in "$@"; do
    [[ $word =~ $plain ]] || word="'${word//"$single"/"$escaped"}'"
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# Runs the command; with --dry-run prints it instead, as one could paste it.
run() {
  if [[ ${opt[dry-run]:-} ]]; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# parse_options "VALUED OPTIONS" "SWITCHES" ARGUMENTS...: fills opt, names, and command (what follows --).
declare -A opt=()
names=()
command=()
parse_options() {
  local valued=" $1 " switches=" $2 dry-run " name
  shift 2
  while (($#)); do
    name=${1#--}
    name=${name%%=*}
    if [[ $1 == --help || $1 == -h ]]; then
      usage
      exit 0
    elif [[ $1 == -- ]]; then
      shift
      command=("$@")
      return
    elif [[ $1 != -* ]]; then
      names+=("$1")
    elif [[ $1 == --"$name" && $switches == *" $name "* ]]; then
      opt[$name]=yes
    elif [[ $1 == --"$name"=* && $valued == *" $name "* ]]; then
      opt[$name]=${1#*=}
    elif [[ $1 == --"$name" && $valued == *" $name "* ]]; then
      (($# > 1)) && [[ $2 != -* ]] ||
        die 2 "--$name needs a value; one that begins with a hyphen is written --$name=-..."
      opt[$name]=$2
      shift
    else
      die 2 "no such option: $(quote "$1"); see --help"
    fi
    shift
  done
}

# Exactly one name on the command line; prints nothing, sets name.
take_name() {
  ((${#names[@]} == 1)) || die 2 "expected one NAME, got ${#names[@]}: $(quote "${names[@]}"); see --help"
  name=${names[0]}
  check name "$name" '^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$' \
    "lower case letters, digits and hyphens, from a letter to a letter or digit, 40 at most"
}

# check WHAT VALUE PATTERN RULE
check() {
  [[ $2 =~ $3 ]] || die 2 "$1 $(quote "$2") is not allowed; the rule: $4"
}

need() {
  local option
  for option in "$@"; do
    [[ ${opt[$option]:-} ]] || die 2 "--$option is needed; see --help"
  done
}

# check_number OPTION LEAST MOST
check_number() {
  local value=${opt[$1]} number='^(0|[1-9][0-9]{0,8})$'
  # First the pattern, for arithmetic executes what is no number.
  [[ $value =~ $number ]] && ((value >= $2 && value <= $3)) && return
  die 2 "--$1 $(quote "$value") is not allowed; the rule: a number from $2 to $3"
}

take_command() {
  ((${#command[@]})) || die 2 "no command: give one after --"
  [[ ${command[0]} && ${command[0]} != -* ]] || die 2 "not the name of a command: $(quote "${command[0]}")"
}

# Whether the command is `python -m train.TASK` and says nothing itself about its other processes.
must_find_others() {
  local module='^train\.[a-z_]+$' word
  [[ ${command[0]##*/} == python* && ${command[1]:-} == -m && ${command[2]:-} =~ $module ]] || return 1
  [[ ${command[2]} != train.launch ]] || return 1
  for word in "${command[@]:3}"; do
    [[ $word != --distributed* && $word != --coordinator* ]] || return 1
  done
}

# A training command that does not look for the others would train alone on every host.
find_others() {
  if must_find_others; then command+=(--distributed auto); fi
}

new_token() {
  od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}

# Records: one file a resource, of key=value lines, read as data and never sourced.
state_dir=${ATTNJAX_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/attnjax}

record_path() {
  printf '%s/%s/%s' "$state_dir" "$1" "$2"
}

# write_record KIND NAME LINES...: fails where there is one already.
write_record() {
  local path line
  path=$(record_path "$1" "$2")
  for line in "${@:3}"; do
    [[ $line != *$'\n'* ]] || die 2 "not one line, so it cannot be recorded: $(quote "$line")"
  done
  [[ ! -e $path ]] || die 1 "there is a record of $2 already: $path
What it names may be running and billed. See what it is with watch.sh, end it with delete.sh; or take another name."
  mkdir -p -- "${path%/*}"
  (
    umask 077
    set -o noclobber
    printf '%s\n' "${@:3}" >"$path"
  ) || die 1 "cannot write the record $path; nothing was created"
}

# read_record KIND NAME KEYS...: fills record, or refuses.
declare -A record=()
read_record() {
  local path key value
  path=$(record_path "$1" "$2")
  [[ -f $path ]] || die 1 "no record of $2 in $path: these scripts touch only what they created.
Created on another machine: copy its record here. Created by other means: use the tool that created it."
  while IFS='=' read -r key value; do
    record[$key]=$value
  done <"$path"
  for key in "${@:3}" token; do
    [[ ${record[$key]:-} ]] || die 1 "the record $path has no $key: refusing to go by it. Restore it from a copy."
  done
  [[ ${record[token]} =~ ^[0-9a-f]{32}$ ]] || die 1 "the token in $path is damaged. Restore the record from a copy."
}

# only_ours KIND WHAT MARK LOOK...: goes on only if LOOK prints MARK, which WHAT was given when $name was recorded.
only_ours() {
  local forget found code
  if [[ ${opt[dry-run]:-} ]]; then
    run "${@:4}"
    echo "# and only if that prints $3:"
    return
  fi
  forget="forget the record: $(quote rm -- "$(record_path "$1" "$name")")"
  found=$("${@:4}") || {
    code=$?
    echo "${0##*/}: could not look at $2; nothing was changed. If $4 says that there is none, $forget" >&2
    exit "$code"
  }
  [[ $found == "$3" ]] || die 1 "refused: $2 does not carry the mark that it was given when it was created
(expected $3, found $(quote "${found:-none}")): it ended, or something else has its name.
If that is yours, end it by other means. Then $forget"
}
