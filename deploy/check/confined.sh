#!/usr/bin/env bash
# Runs a command as the systemd unit would confine sessiond, as far as that goes without systemd: no privilege, no capability, a user
# of its own, its system calls, and a file system of which it may write one folder.
#
#   deploy/check/confined.sh SERVER STATE COMMAND…    (COMMAND finds SERVER as /run/sessiond and STATE as /var/lib/sessiond)
#
# Left out: DynamicUser, ProtectProc, IPC, hostname and clock (seccomp forbids setting those), LockPersonality, RestrictSUIDSGID.
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
