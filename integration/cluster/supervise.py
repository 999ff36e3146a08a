"""Runs one program for as long as the test process lives.

    supervise.py LOG PROGRAM [ARGUMENT...]

The test process holds the other end of standard input. A line there is the name of a signal for the program (`TERM`,
`STOP`, `CONT`, ...). When that end closes, which the kernel does however the test process dies, the program and what
it started are killed. The first line of standard output is the program's process ID; its own output goes to LOG.
The exit code is the program's, or 128 and the signal that ended it.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def die_with_supervisor():
    """On Linux, the program is killed even if this process is (SIGKILL cannot be handled)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_group(child):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def await_end(child):
    code = child.wait()
    kill_group(child)
    os._exit(code if code >= 0 else 128 - code)


def main():
    log, command = sys.argv[1], sys.argv[2:]
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, preexec_fn=die_with_supervisor,
        )
    print(child.pid, flush=True)
    waiter = threading.Thread(target=await_end, args=(child,))
    waiter.start()
    for line in sys.stdin.buffer:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, getattr(signal, "SIG" + line.decode("ascii").strip()))
    kill_group(child)
    waiter.join()


if __name__ == "__main__":
    main()
