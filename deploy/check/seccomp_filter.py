"""Writes the system call rules of a systemd unit as two seccomp programs, as systemd would load them.

Usage: seccomp_filter.py UNIT ALLOWED FORBIDDEN. Run it with the system's own Python, which has libseccomp's bindings.
"""

import re
import socket
import subprocess
import sys

from seccomp import ALLOW, EQ, ERRNO, GT, MASKED_EQ, Arg, SyscallFilter

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
PROT_EXEC, PROT_WRITE = 4, 2
CLONE_NEW = {"NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWUSER": 0x10000000,
             "NEWPID": 0x20000000, "NEWNET": 0x40000000}


def settings(path):
    found = {}
    with open(path, encoding="utf-8") as opened:
        for key, value in re.findall(r"^(\w+)=(.*)$", opened.read(), re.MULTILINE):
            found.setdefault(key, []).append(value)
    return found


def calls(name):
    """Returns the system calls of a set, including those of nested sets."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True).stdout
    return set().union(*(calls(line.strip()) for line in listed.splitlines()[1:] if line.startswith(" ") and "#" not in line))


def allowed(unit):
    """Allows the calls in the unit's list, and those that systemd adds because no program could start without them."""
    program = SyscallFilter(ERRNO(EPERM))
    names = calls("@default") | {"execve"}
    for value in unit["SystemCallFilter"]:
        members = set().union(*(calls(name) for name in value.removeprefix("~").split()))
        names = names - members if value.startswith("~") else names | members
    for name in sorted(names):
        try:
            program.add_rule(ALLOW, name)
        except RuntimeError:
            pass  # A call of another architecture.
    return program


def forbidden(unit):
    """Forbids calls by their arguments, for MemoryDenyWriteExecute, RestrictAddressFamilies and RestrictNamespaces."""
    program = SyscallFilter(ALLOW)
    assert unit["MemoryDenyWriteExecute"] == ["yes"] and unit["RestrictNamespaces"] == ["yes"]
    both = PROT_EXEC | PROT_WRITE
    program.add_rule(ERRNO(EPERM), "mmap", Arg(2, MASKED_EQ, both, both))
    for name in ("mprotect", "pkey_mprotect"):
        program.add_rule(ERRNO(EPERM), name, Arg(2, MASKED_EQ, PROT_EXEC, PROT_EXEC))
    for flag in CLONE_NEW.values():
        for name in ("clone", "unshare"):
            program.add_rule(ERRNO(EPERM), name, Arg(0, MASKED_EQ, flag, flag))
    # The flags of clone3 are in memory, where a filter cannot see them. The C library falls back to clone.
    program.add_rule(ERRNO(ENOSYS), "clone3")
    families = {getattr(socket, name) for name in unit["RestrictAddressFamilies"][0].split()}
    for family in range(max(families)):
        if family not in families:
            program.add_rule(ERRNO(EAFNOSUPPORT), "socket", Arg(0, EQ, family))
    program.add_rule(ERRNO(EAFNOSUPPORT), "socket", Arg(0, GT, max(families)))
    return program


def main():
    unit = settings(sys.argv[1])
    for program, path in ((allowed(unit), sys.argv[2]), (forbidden(unit), sys.argv[3])):
        with open(path, "wb") as opened:
            program.export_bpf(opened)


main()
