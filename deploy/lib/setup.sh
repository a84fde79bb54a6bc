# Finds what Tidegate's scripts need, and installs what is missing through apt where it can.
# Sourced by deploy/demo.sh and tests/*.sh; nothing here runs by itself.

# say LINE...: to people, so that standard output stays free for results.
say() { printf '%s\n' "$@" >&2; }
fail() { say "error: $*"; exit 1; }

# The Debian packages that provide each thing.
declare -A packages=(
  [compiler]="gcc libc6-dev" [rabbitmq]="rabbitmq-server" [postgresql]="postgresql"
  [python]="python3 python3-venv" [sqlite]="sqlite3" [curl]="curl ca-certificates" [git]="git"
  [promtool]="prometheus" [c++]="g++" [dockerd]="docker.io iptables" [debootstrap]="debootstrap"
)

have() {
  case $1 in
    compiler) command -v cc ;;
    # Debian's servers are not in PATH, or only as wrappers that change the user.
    rabbitmq) [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] ||
      { command -v rabbitmq-server && command -v rabbitmqctl; } ;;
    postgresql) compgen -G "/usr/lib/postgresql/*/bin/initdb" || command -v initdb ;;
    python) python3 -c "import venv, ensurepip" 2>&1 ;;
    sqlite) command -v sqlite3 ;;
    *) command -v "$1" ;;
  esac >/dev/null
}

# ensure THING...: every thing is there, or the script ends and says what to install.
ensure() {
  local thing missing=() names=()
  for thing in "$@"; do
    if ! have "$thing"; then
      missing+=("$thing")
      read -ra names <<<"${names[*]} ${packages[$thing]}"
    fi
  done
  [ ${#missing[@]} -eq 0 ] && return
  if ! command -v apt-get >/dev/null; then
    fail "please install: ${missing[*]} (this machine has no apt-get, by which the script would do it)"
  elif [ "$(id -u)" -ne 0 ]; then
    fail "please install ${missing[*]}, as root: apt-get install --no-install-recommends ${names[*]}"
  fi
  say "installing ${names[*]} …"
  install_packages "${names[@]}" || fail "apt-get could not install ${names[*]}"
  for thing in "${missing[@]}"; do
    have "$thing" || fail "$thing is still missing after installing ${packages[$thing]}"
  done
}

# The servers that come with the packages are not wanted: the scripts start their own, on free ports.
# Debian's hook for that is policy-rc.d; one that is there already is left alone.
install_packages() (
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >&2
)

ensure_rust() {
  command -v cargo >/dev/null || { [ -f ~/.cargo/env ] && . ~/.cargo/env; } || true
  command -v cargo >/dev/null || fail "Rust is missing: see https://rustup.rs"
}
