"""What the kernel takes from the process that opens files: system calls (seccomp) and the file system (Landlock)."""

import ctypes
import os
import platform
import struct
from pathlib import Path

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x10000
X32 = 0x40000000
"""System calls from here on are x86-64's second set of numbers for the same calls."""
NUMBERS = {  # machine -> its audit architecture; name -> number of the calls that take a look at their argument
    "x86_64": (0xC000003E, {"clone": 56, "tgkill": 234, "prlimit64": 302, "ioctl": 16}),
    "aarch64": (0xC00000B7, {"clone": 220, "tgkill": 131, "prlimit64": 261, "ioctl": 29}),
}
CLONE3 = 435
SET_FLAGS = (0x40086602, 0x401C5820)
"""ioctl requests that change a file's attributes, such as immutable: FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR."""
FORBIDDEN = {
    "x86_64": (
        *(41, 57, 58, 59, 322),  # socket, fork, vfork, execve, execveat
        *(62, 129, 200, 297, 424),  # kill, rt_sigqueueinfo, tkill, rt_tgsigqueueinfo, pidfd_send_signal
        *(101, 310, 311, 434, 438),  # ptrace, process_vm_readv, process_vm_writev, pidfd_open, pidfd_getfd
        *(90, 91, 268, 452),  # chmod, fchmod, fchmodat, fchmodat2: Landlock does not see these,
        *(92, 93, 94, 260),  # nor chown, fchown, lchown, fchownat,
        *(132, 235, 261, 280),  # nor utime, utimes, futimesat, utimensat,
        *(188, 189, 190, 463, 197, 198, 199, 466),  # nor setxattr and removexattr, in all their kinds
        425,  # io_uring_setup: a way round all the others
    ),
    "aarch64": (
        *(198, 221, 281),  # socket, execve, execveat; there is no fork and no vfork
        *(129, 138, 130, 240, 424),
        *(117, 270, 271, 434, 438),
        *(52, 53, 452),  # fchmod, fchmodat, fchmodat2
        *(54, 55),  # fchownat, fchown
        88,  # utimensat
        *(5, 6, 7, 463, 14, 15, 16, 466),  # setxattr, removexattr
        425,
    ),
}
LOAD, EQUAL, AT_LEAST, ANY_BIT, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENT, SECOND = 0, 4, 16, 24
"""Offsets in struct seccomp_data; of the first two arguments, their lower halves."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Landlock version -> how many rights on files it knows; 16 from version 5 on."""
HIDDEN = ("proc", "sys")
"""Entries of / that cannot be read: other processes' memory and environment, the kernel's settings."""


class Instruction(ctypes.Structure):
    """One instruction of the kernel's packet filter (struct sock_filter)."""

    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32)]


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction))]


def system_call(number: int, *arguments) -> int:
    """The call's result. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    whole = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(number), *whole)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def when(test: int, value: int, then: list[tuple]) -> list[tuple]:
    """Instructions: do `then` if what was loaded passes the test, else go on behind it."""
    return [(test, 0, len(then), value), *then]


def filter_code(machine: str, pid: int) -> list[tuple]:
    """The filter: FORBIDDEN calls are 'not permitted', nor are new processes, signals to others, limits of others.

    clone3 hides its flags from a filter, so it is 'not there', and the C library turns to clone.
    """
    architecture, numbers = NUMBERS[machine]
    deny, allow = [(ANSWER, 0, 0, REFUSE | EPERM)], [(ANSWER, 0, 0, ALLOW)]
    first = (LOAD, 0, 0, ARGUMENT)
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), *deny, (LOAD, 0, 0, NUMBER)]
    code += when(AT_LEAST, X32, deny) + when(EQUAL, CLONE3, [(ANSWER, 0, 0, REFUSE | ENOSYS)])
    for call in FORBIDDEN[machine]:
        code += when(EQUAL, call, deny)
    code += when(EQUAL, numbers["clone"], [first, *when(ANY_BIT, CLONE_THREAD, allow), *deny])
    code += when(EQUAL, numbers["tgkill"], [first, *when(EQUAL, pid, allow), *deny])  # abort() is a signal to oneself
    code += when(EQUAL, numbers["prlimit64"], [first, *when(EQUAL, 0, allow), *deny])
    attributes = [line for request in SET_FLAGS for line in when(EQUAL, request, deny)]
    code += when(EQUAL, numbers["ioctl"], [(LOAD, 0, 0, SECOND), *attributes, *allow])
    return code + allow


def forbid_system_calls() -> None:
    """Put the filter on this thread and those that it starts. Raises OSError where the kernel or the machine cannot."""
    if platform.machine() not in NUMBERS:
        raise OSError(ENOSYS, f"no list of system calls for {platform.machine()}; there are: {', '.join(NUMBERS)}")
    code = [Instruction(*line) for line in filter_code(platform.machine(), os.getpid())]
    program = Program(len(code), (Instruction * len(code))(*code))
    give_up_privileges()
    if ctypes.CDLL(None).prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ENOSYS, "this kernel has no seccomp filter")


def give_up_privileges() -> None:
    """No program can give this process more rights: what seccomp and Landlock ask for first."""
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def landlock_version() -> int:
    """Version of the kernel's Landlock interface, 0 where there is none."""
    try:
        return system_call(CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def forbid_files() -> bool:
    """Leave this thread, and those that it starts, reading files outside HIDDEN; False where there is no Landlock.

    Nothing can be written, made, renamed or removed (version 2 and below still truncate), no TCP port opened (from
    version 4 on), and from version 6 on no signal reaches another process by way of a file's owner either.
    """
    version = landlock_version()
    if not version:
        return False
    every = (1 << RIGHTS.get(version, 16)) - 1
    handled = struct.pack("<QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)  # files, network, scopes
    rules = system_call(CREATE_RULESET, handled, len(handled), 0)
    for entry in Path("/").iterdir():
        if entry.name in HIDDEN or entry.is_symlink():  # what a link leads to lies below another entry
            continue
        place = os.open(entry, os.O_PATH | os.O_CLOEXEC)
        rights = READ_FILE | READ_DIR if entry.is_dir() else READ_FILE
        system_call(ADD_RULE, rules, 1, struct.pack("<Qi", rights, place), 0)
        os.close(place)
    give_up_privileges()
    system_call(RESTRICT_SELF, rules, 0)
    os.close(rules)
    return True
