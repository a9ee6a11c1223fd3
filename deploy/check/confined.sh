#!/usr/bin/env bash
# Runs a command confined as the systemd unit confines sessiond, as far as possible without systemd: no privileges, no
# capabilities, its own user, the unit's system calls, and a file system with one writable folder.
#
#   deploy/check/confined.sh SERVER STATE COMMAND…    (COMMAND sees SERVER as /run/sessiond and STATE as /var/lib/sessiond)
#
# Not covered: DynamicUser, ProtectProc, IPC, hostname and clock (seccomp forbids setting those), LockPersonality,
# RestrictSUIDSGID.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
server=$1 state=$2
shift 2
filters=$(mktemp -d)
trap 'rm -rf "$filters"' EXIT
/usr/bin/python3 "$here/seccomp_filter.py" "$here/../systemd/sessiond.service" "$filters/allowed" "$filters/forbidden"
exec {allowed}<"$filters/allowed" {forbidden}<"$filters/forbidden"
rm -rf "$filters"
umask 0077
exec bwrap --die-with-parent --new-session --unshare-user --uid 65532 --gid 65532 --cap-drop ALL \
    --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp --tmpfs /home --tmpfs /root --tmpfs /run --tmpfs /var/lib \
    --ro-bind "$server" /run/sessiond --bind "$state" /var/lib/sessiond --chdir / \
    --add-seccomp-fd "$allowed" --add-seccomp-fd "$forbidden" -- "$@"
