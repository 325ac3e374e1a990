"""Runs a program of ours and writes which of its functions are run, as patterns for the linker.

functions.py ENVIRONMENT PROGRAM MAP SECONDS OUT: the first is a file as /proc/PID/environ, the third is what lld wrote with `-Map`. Each function
begins with a breakpoint, which goes when it is hit; so every function costs one stop, and the program runs at almost full speed.
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


def functions(of_map):
    """Every function's address, with the object and the section that it came in, and the section that it is in.

    A map has lines of four numbers and a name: sections, further to the right what has come into them, and still further its symbols.
    """
    found, within, output = {}, None, None
    with open(of_map) as file:
        for line in file:
            fields = re.match(r" *([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+) +[0-9]+ ( *)(.*)$", line)
            if not fields:
                continue
            address, size, depth, name = int(fields[1], 16), int(fields[2], 16), len(fields[3]), fields[4]
            if depth == 0:
                output = name
            elif depth == 8:
                within = re.match(r"(.*):\((.*)\)$", name)
            elif output.startswith(".text") and within and size > 0 and name not in TOO_EARLY:
                found[address] = (*within.groups(), output)
    return found


def pattern(file, section, _):
    """What the linker finds that section by, in this build and in later ones."""
    archive = re.match(r".*?([^/]+)\((.*)\)$", file)
    if archive and archive[1].endswith(".a"):
        return f"*{re.sub('[0-9][0-9.]*[.]a$', '*.a', archive[1])}:{archive[2]}({section})"
    if not section.startswith(".text."):
        # Assembly of ring's. The names of its objects begin with a hash.
        return f"*{re.sub('^[0-9a-f]+', '', archive[2])}({section})"
    name = section.removeprefix(".text.")
    if "_R" not in name:
        return f"*({section})"
    # Of several functions with a name all but one have a number; and which crate has had a generic one made is another in each build.
    name = re.sub(r"[.][0-9]+$", "", name)
    maker = re.match(r"(.*)(Cs[0-9A-Za-z]+_([0-9]+)([0-9A-Za-z_]+)|B[0-9A-Za-z]{0,3}_)$", name)
    if maker and (not maker[3] or int(maker[3]) == len(maker[4])):
        name = maker[1]
    name += "*"
    name = re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name)
    name = re.sub(r"B[0-9A-Za-z]{0,3}_", "B*_", name)
    return f"*(.text*.{name if len(name) <= LONGEST else name[:LONGEST].rstrip('*') + '*'})"


def main():
    environment_of, program, of_map, seconds, out = sys.argv[1:]
    with open(environment_of, "rb") as file:
        environment = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    # Beside the node that is there already.
    environment[b"ENDPOINT_STATUS"] = b"29999"
    symbols = functions(of_map)
    hit = functions_run(started(program, environment), program, symbols, float(seconds))
    patterns = {pattern(*symbols[address]) for address in hit}
    with open(out, "w") as file:
        file.writelines(f"{each}\n" for each in sorted(patterns))
    strayed = [address for address in hit if symbols[address][2] != ".text_node"]
    print(f"{len(hit)} functions of {len(symbols)}, in {len(patterns)} patterns; {len(strayed)} did not lie with the others", file=sys.stderr)


if __name__ == "__main__":
    main()
