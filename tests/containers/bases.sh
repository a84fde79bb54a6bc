# The images that ours are built on and run beside, made on this machine from Debian's packages: no registry of
# images is needed. Sourced by tests/containers.sh; nothing here runs by itself.

# What goes into each is in tests/containers/images; a suite of Debian is made once and kept (docker image rm
# tidegate-test/debian:bookworm has it made again).
bases() {
  debian bookworm
  debian trixie
  say "building the base images …"
  toolchain
  simple runtime:bookworm runtime
  simple rabbitmq:4.0 rabbitmq --build-arg DEBIAN=trixie
  simple rabbitmq:3.10 rabbitmq --build-arg DEBIAN=bookworm
  simple postgres:15 postgres
  docker compose version >/dev/null 2>&1 || simple compose:2 compose
}

# debian SUITE: the smallest Debian that apt works in.
debian() {
  local image=tidegate-test/debian:$1 folder
  ! docker image inspect "$image" >/dev/null 2>&1 || return 0
  [ "$(id -u)" -eq 0 ] || fail "$image can only be made by root, with debootstrap"
  ensure debootstrap
  say "making $image …"
  folder=$(mktemp -d)
  debootstrap --variant=minbase --include=ca-certificates "$1" "$folder" >"$folder.log" 2>&1 ||
    { tail -n 5 "$folder.log" >&2; fail "debootstrap could not make $1; its log is $folder.log"; }
  rm -f "$folder"/var/cache/apt/archives/*.deb
  tar -C "$folder" -c . | docker import - "$image" >/dev/null
  rm -rf "$folder" "$folder.log"
}

# simple TAG DOCKERFILE OPTION...
simple() {
  local tag=$1 file=tests/containers/images/$2.Dockerfile
  shift 2
  quietly docker build --file "$file" --tag "tidegate-test/$tag" "$@" tests/containers/images
}

# This machine's compiler, and its roots: whatever lets cargo fetch crates here has to do so in there.
toolchain() {
  local folder sysroot
  sysroot=$(rustc --print sysroot)
  folder=$(mktemp -d)
  cp tests/containers/images/build.Dockerfile "$folder/Dockerfile"
  cp /etc/ssl/certs/ca-certificates.crt "$folder/roots.crt"
  mkdir "$folder/sysroot"
  cp -a "$sysroot/bin" "$sysroot/lib" "$folder/sysroot/"
  [ ! -d "$sysroot/libexec" ] || cp -a "$sysroot/libexec" "$folder/sysroot/"
  quietly docker build --tag tidegate-test/build:bookworm "$folder"
  rm -rf "$folder"
}

# quietly COMMAND...: what it says is shown only when it fails.
quietly() {
  local log
  log=$(mktemp)
  "$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2; fail "$* failed; all that it said is in $log"; }
  rm -f "$log"
}
