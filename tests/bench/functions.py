"""Runs a program of ours and writes which of its functions are run, as patterns for the linker.

functions.py ENVIRONMENT PROGRAM SYMBOLS LIBC SECONDS OUT: the first is a file as /proc/PID/environ, the third is what `nm -S` prints, the fourth
what `nm` prints of the C library, whose functions have no sections of their own, but objects. Each function begins with a breakpoint, which goes when it is hit; so every function costs one stop, and the program runs at almost full speed.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys

TRACEME, CONT, GETREGS, SETREGS, SETOPTIONS = 0, 7, 12, 13, 0x4200
FOLLOW_AND_END_WITH_US = 2 | 4 | 8 | 0x100000
WAIT_FOR_THREADS = 0x40000000
BREAKPOINT = 0xCC
# Run before the program has moved itself to where it is.
TOO_EARLY = ("_start", "_dl_relocate_static_pie")
# Of a name, as much as tells functions apart. Hashes and references change with every version of a crate.
LONGEST = 80

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Registers(ctypes.Structure):
    names = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs"
    _fields_ = [(name, ctypes.c_ulong) for name in names.split()]


class Over(Exception):
    pass


def over(*_):
    raise Over


def started(program, environment):
    pid = os.fork()
    if pid == 0:
        libc.ptrace(TRACEME, 0, None, None)
        os.execve(program, [program, "node"], environment)
    os.waitpid(pid, 0)
    libc.ptrace(SETOPTIONS, pid, None, FOLLOW_AND_END_WITH_US)
    return pid


def functions_run(pid, program, symbols, seconds):
    with open(f"/proc/{pid}/maps") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if program in line)
    headers = subprocess.run(["readelf", "-lW", program], capture_output=True, text=True, check=True).stdout.splitlines()
    start, size = next((int(f[2], 16), int(f[5], 16)) for f in (line.split() for line in headers) if f[:1] == ["LOAD"] and "R E" in " ".join(f))
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    original = os.pread(memory, size, base + start)
    text = bytearray(original)
    for address in symbols:
        if start <= address < start + size:
            text[address - start] = BREAKPOINT
    os.pwrite(memory, bytes(text), base + start)
    hit, registers = set(), Registers()
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    libc.ptrace(CONT, pid, None, None)
    try:
        while True:
            task, status = os.waitpid(-1, WAIT_FOR_THREADS)
            if not os.WIFSTOPPED(status):
                if task == pid:
                    sys.exit(f"functions.py: the program has ended: {status}")
                continue
            pending = os.WSTOPSIG(status)
            if pending == signal.SIGTRAP and status >> 16 == 0:
                libc.ptrace(GETREGS, task, None, ctypes.addressof(registers))
                address = registers.rip - 1 - base
                if address in symbols:
                    hit.add(address)
                    os.pwrite(memory, original[address - start : address - start + 1], base + address)
                    registers.rip -= 1
                    libc.ptrace(SETREGS, task, None, ctypes.addressof(registers))
            passed_on = 0 if pending in (signal.SIGTRAP, signal.SIGSTOP) else pending
            libc.ptrace(CONT, task, None, ctypes.c_void_p(passed_on))
    except Over:
        return hit


def pattern(name):
    name = re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name)
    name = re.sub(r"B[0-9A-Za-z]{0,3}_", "B*_", name)
    return name if len(name) <= LONGEST else name[:LONGEST].rstrip("*") + "*"


def objects(listing):
    """Which objects of the C library define a name."""
    found, current = {}, None
    with open(listing) as file:
        for line in file:
            fields = line.split()
            if len(fields) == 1:
                current = fields[0].rstrip(":")
            elif len(fields) == 3 and fields[1] in "tTwWi":
                found.setdefault(fields[2], set()).add(current)
    return found


def main():
    environment_of, program, symbols_of, libc_of, seconds, out = sys.argv[1:]
    with open(environment_of, "rb") as file:
        environment = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    # Beside the node that is there already.
    environment[b"EP_HOST_STATUS"] = b"29999"
    symbols = {}
    with open(symbols_of) as file:
        for fields in (line.rstrip("\n").split(" ", 3) for line in file):
            if len(fields) == 4 and fields[2] in "tTwW" and int(fields[1], 16) > 0 and fields[3] not in TOO_EARLY:
                symbols[int(fields[0], 16)] = fields[3]
    hit = functions_run(started(program, environment), program, symbols, float(seconds))
    defined = objects(libc_of)
    patterns = set()
    for name in (symbols[address] for address in hit):
        if name.startswith("_R") or name == "main":
            patterns.add(f"*(.text*.{pattern(name)})")
        # A local name that several have says nothing.
        elif len(defined.get(name, ())) == 1:
            patterns.add(f"*libc.a:{min(defined[name])}(.text .text.*)")
    with open(out, "w") as file:
        file.writelines(f"{each}\n" for each in sorted(patterns))
    print(f"{len(hit)} functions of {len(symbols)}, in {len(patterns)} patterns", file=sys.stderr)


if __name__ == "__main__":
    main()
