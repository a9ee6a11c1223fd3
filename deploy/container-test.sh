#!/usr/bin/env bash
# Builds the Dockerfile and tests the image, on a Debian machine that cannot reach an image registry.
#
#   deploy/container-test.sh [--fresh] [--quick]
#
# The script builds substitutes for the base images. They have the names of the originals, and live in an image store of
# their own (target/container-test), so that no other build sees them. The builder is made of debootstrap and this
# machine's Rust toolchain, the final base of the Debian packages that distroless consists of. The crates come from this
# machine's cargo cache, which `cargo fetch` fills; the build itself is offline. --fresh rebuilds the substitutes,
# --quick compiles without optimisations. Needs root, and buildah, debootstrap, iproute2 and curl (installed when
# missing).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$PWD/target/container-test
builder_base=docker.io/library/rust:1-slim-bookworm
final_base=gcr.io/distroless/cc-debian12:nonroot
image=localhost/sessiond:test

export BUILDAH_ISOLATION=chroot
# Uses the kernel's overlay if it works (not on top of another overlay), else plain copies.
export STORAGE_DRIVER=${STORAGE_DRIVER:-}
try=no

say() { printf '\n== %s\n' "$*"; }
pass() { printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
b() { buildah --root "$work/$STORAGE_DRIVER" --runroot "$work/run-$STORAGE_DRIVER" "$@"; }
expect() { # expect WHAT WANTED GOT
    [[ $3 == "$2" ]] || fail "$1: expected '$2', got '$3'"
    pass "$1: $3"
}

cleanup() {
    if [[ -n ${server_pid:-} ]]; then
        kill -KILL "$server_pid" 2>/dev/null || true
        wait "$server_job" 2>/dev/null || true
    fi
    b rm --all >/dev/null 2>&1 || true
    # The storage driver mounts its folder onto itself.
    [[ $try == yes ]] || umount "$work/$STORAGE_DRIVER/overlay" 2>/dev/null || true
}
trap cleanup EXIT

install_tools() {
    local missing=() tool package
    for pair in buildah:buildah debootstrap:debootstrap ip:iproute2 unshare:util-linux curl:curl; do
        tool=${pair%%:*} package=${pair##*:}
        command -v "$tool" >/dev/null || [[ -x /usr/sbin/$tool ]] || missing+=("$package")
    done
    ((${#missing[@]} == 0)) && return
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
}

pick_storage_driver() {
    [[ -n $STORAGE_DRIVER ]] && return
    local probe=$work/probe
    mkdir -p "$probe"/{lower,upper,workdir,merged}
    if mount -t overlay overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/workdir" \
        "$probe/merged" 2>/dev/null; then
        umount "$probe/merged"
        STORAGE_DRIVER=overlay
    else
        STORAGE_DRIVER=vfs
    fi
    rm -rf "$probe"
}

# Creates an empty container: its name in $container, its root in $root.
begin() {
    container=$(b from scratch)
    root=$(b mount "$container")
}

substitute_builder() {
    begin
    debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates,netbase --cache-dir="$work/debs" \
        bookworm "$root" >"$work/debootstrap.log" 2>&1 || { tail -n 20 "$work/debootstrap.log"; fail debootstrap; }
    cp -a "$(rustc --print sysroot)"/{bin,lib} "$root/usr/local/"
    mkdir -p "$root/usr/local/cargo/registry"
    # Mirrors and similar settings, because they determine the layout of the cache.
    for file in config.toml config; do
        [[ ! -f $cargo_home/$file ]] || cp "$cargo_home/$file" "$root/usr/local/cargo/"
    done
    b config --env PATH=/usr/local/cargo/bin:/usr/local/bin:/usr/bin:/bin --env CARGO_HOME=/usr/local/cargo \
        --env CARGO_NET_OFFLINE=true "$container"
    b umount "$container" >/dev/null
    b commit -q "$container" "$builder_base" >/dev/null
}

substitute_final() {
    begin
    local package
    for package in base-files netbase tzdata ca-certificates libc6 libgcc-s1 gcc-12-base; do
        dpkg-deb --extract "$work"/debs/"${package}"_*.deb "$root"
    done
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' \
        >"$root/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"
    printf 'passwd: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
    install -d -o 65532 -g 65532 -m 700 "$root/home/nonroot"
    b config --user 65532 --workingdir /home/nonroot --env PATH=/usr/local/bin:/usr/bin:/bin "$container"
    b umount "$container" >/dev/null
    b commit -q "$container" "$final_base" >/dev/null
}

make_substitutes() {
    local stamp
    stamp="$(rustc --version) $STORAGE_DRIVER $(declare -f substitute_builder substitute_final | sha256sum)"
    if [[ $fresh == no && $(cat "$work/substitutes" 2>/dev/null) == "$stamp" ]]; then
        pass "reused from an earlier run"
        return
    fi
    rm -f "$work/substitutes"
    mkdir -p "$work/debs"
    substitute_builder
    substitute_final
    echo "$stamp" >"$work/substitutes"
    pass "$builder_base and $final_base"
}

build_image() {
    local version revision layers=true settings=()
    [[ $quick == no ]] || settings=(--build-arg CARGO_PROFILE_RELEASE_LTO=off --build-arg CARGO_PROFILE_RELEASE_OPT_LEVEL=0
        --build-arg CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16)
    # With plain copies each layer would take a gigabyte.
    [[ $STORAGE_DRIVER == overlay ]] || layers=false
    version=$(cargo pkgid --locked | sed 's/.*[#@]//')
    revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    b bud --pull-never --layers="$layers" --format docker --tag "$image" \
        --build-arg VERSION="$version" --build-arg REVISION="$revision" "${settings[@]}" \
        --volume "$cargo_home/registry:/usr/local/cargo/registry:ro" . >"$work/build.log" 2>&1 ||
        { tail -n 40 "$work/build.log"; fail "the image does not build"; }
    grep -E 'STEP|Finished|warning|Using cache' "$work/build.log" | cut -c 1-120
}

check_configuration() {
    field() { b inspect --type image --format "{{$1}}" "$image"; }
    expect user 65532:65532 "$(field .Docker.Config.User)"
    expect entrypoint '[/sessiond]' "$(field .Docker.Config.Entrypoint)"
    expect command '[serve]' "$(field .Docker.Config.Cmd)"
    expect "stop signal" SIGTERM "$(field .Docker.Config.StopSignal)"
    expect healthcheck '[CMD /sessiond health]' "$(field .Docker.Config.Healthcheck.Test)"
    expect ports 'map[50051/tcp:{} 9090/tcp:{}]' "$(field .Docker.Config.ExposedPorts)"
    local labels
    labels=$(field .Docker.Config.Labels)
    for label in title description licenses version revision; do
        [[ $labels == *"org.opencontainers.image.$label:"* ]] || fail "label $label is missing"
    done
    pass "labels"
}

# Everything below runs in its own network namespace, where the image's ports are free whatever this machine runs.

in_image() { b run "$container" -- "$@"; }

# Finds the server's process: the one that runs the image's binary in our network namespace. Chroot isolation has no PID
# namespace.
find_server() {
    local pid
    for pid in $(pgrep -f '^/sessiond serve' || true); do
        [[ $(readlink "/proc/$pid/ns/net") == "$(readlink /proc/self/ns/net)" &&
            $(readlink "/proc/$pid/exe") == */sessiond ]] && echo "$pid" && return
    done
    return 1
}

until_true() { # until_true SECONDS COMMAND…
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

start_server() { # start_server WHAT COMMAND…; waits until the server is healthy
    local what=$1
    shift
    "$@" >"$work/server.log" 2>&1 &
    server_job=$!
    until_true 20 find_server || { cat "$work/server.log"; fail "$what: the server does not start"; }
    server_pid=$(find_server)
    until_true 20 in_image /sessiond health || { cat "$work/server.log"; fail "$what: the server is not healthy"; }
    pass "$what: health exits 0"
}

stop_server() { # stop_server SIGNAL; sets $code to the exit code
    code=0
    kill -"$1" "$server_pid"
    wait "$server_job" || code=$?
    server_pid=
}

code_of() { "$@" >/dev/null 2>&1 && echo 0 || echo $?; }

try_image() {
    ip link set lo up
    container=$(b from --pull-never "$image")
    root=$(b mount "$container")

    local shells
    shells=$(cd "$root" && find . -regextype posix-extended -regex '.*/(ba|da|a|z|k|c|tc)?sh|.*/busybox.*' -perm /111)
    expect "shells in the image" "" "$shells"
    [[ $(code_of in_image /bin/sh -c true) != 0 ]] || fail "the image has a shell"
    expect "health without a server fails" yes "$([[ $(code_of in_image /sessiond health) == 0 ]] && echo no || echo yes)"

    local before after
    before=$(cd "$root" && find . -xdev -type f -printf '%p %s %T@\n' | sort)
    start_server "defaults" in_image /sessiond serve
    expect "uid and gid" "65532 65532" "$(awk '/^[UG]id:/ { printf "%s%s", s, $3; s = " " }' "/proc/$server_pid/status")"
    expect "capabilities" 0000000000000000 "$(awk '/^CapEff:/ { print $2 }' "/proc/$server_pid/status")"

    expect "create exits" 0 "$(code_of in_image /sessiond create 42 -7)"
    expect "has exits" 0 "$(code_of in_image /sessiond has 42)"
    expect "has of a missing one exits" 1 "$(code_of in_image /sessiond has 42 43)"
    expect "destroy exits" 0 "$(code_of in_image /sessiond destroy 42)"
    expect "has of a destroyed one exits" 1 "$(code_of in_image /sessiond has 42)"
    for path in live ready metrics; do
        expect "/$path" 200 "$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:9090/$path")"
    done

    local begun=$SECONDS
    stop_server TERM
    expect "SIGTERM: exits" 0 "$code"
    ((SECONDS - begun <= 11)) || fail "the drain took $((SECONDS - begun)) s"
    after=$(cd "$root" && find . -xdev -type f -printf '%p %s %T@\n' | sort)
    expect "files that the server wrote" "" "$(diff <(echo "$before") <(echo "$after") || true)"
    try_read_only
    try_file
    printf 'size  binary %s, image %s\n' "$(stat -c %s "$root/sessiond" | numfmt --to=iec)" \
        "$(b images --format '{{.Size}}' "$image")"
}

# Chroot isolation has no --read-only. So the image's root is mounted read-only by hand, in a mount namespace that ends
# with the server.
try_read_only() {
    # shellcheck disable=SC2016 # For the inner shell.
    start_server "read-only root" unshare --mount --propagation private -- bash -euc 'mount --bind "$1" "$1"
        mount -o remount,bind,ro "$1" && mount -t proc proc "$1/proc"
        exec chroot --userspec=65532:65532 "$1" /sessiond serve' - "$root"
    expect "read-only root: file system" ro "$(awk '$5 == "/" { print substr($6, 1, 2) }' "/proc/$server_pid/mountinfo" | tail -n 1)"
    expect "read-only root: create exits" 0 "$(code_of in_image /sessiond create 42)"
    stop_server TERM
    expect "read-only root: SIGTERM: exits" 0 "$code"
}

# Checks that a registry in a volume survives a killed server.
try_file() {
    expect "owner of /var/lib/sessiond" 65532:65532 "$(stat -c %u:%g "$root/var/lib/sessiond")"
    rm -rf "$work/volume"
    install -d -o 65532 -g 65532 "$work/volume"
    local serve=(b run --volume "$work/volume:/var/lib/sessiond" "$container" -- /sessiond serve
        --storage file:/var/lib/sessiond/registry)
    start_server "file storage" "${serve[@]}"
    expect "file storage: create exits" 0 "$(code_of in_image /sessiond create 42)"
    stop_server KILL
    start_server "file storage after SIGKILL" "${serve[@]}"
    expect "file storage after SIGKILL: has exits" 0 "$(code_of in_image /sessiond has 42)"
    stop_server TERM
    expect "file storage after SIGKILL: SIGTERM: exits" 0 "$code"
}

fresh=no quick=no
for argument in "$@"; do
    case $argument in
        --fresh) fresh=yes ;;
        --quick) quick=yes ;;
        --try) try=yes ;; # used by this script for its second half
        *) fail "unknown argument $argument: deploy/container-test.sh [--fresh] [--quick]" ;;
    esac
done
cargo_home=${CARGO_HOME:-$HOME/.cargo}
PATH=$PATH:/usr/sbin:/sbin

if [[ $try == yes ]]; then
    try_image
    exit
fi
((EUID == 0)) || fail "run as root: this script mounts file systems"
mkdir -p "$work"
install_tools
pick_storage_driver
say "Substitutes for the base images ($STORAGE_DRIVER)"
make_substitutes
say "Build"
cargo fetch --locked --quiet
build_image
say "Configuration"
check_configuration
say "Run"
unshare --net -- "${BASH_SOURCE[0]}" --try
say "The image works (${SECONDS} s)"
