"""Runs a program on a terminal and prints what it shows there.

terminal.py PIPE MARK PROGRAM ARGUMENT...

64 KiB are put into the named pipe PIPE, which ends only when MARK has been shown."""

import os
import pty
import sys

pipe, mark, *command = sys.argv[1:]
writer = os.open(pipe, os.O_RDWR)
os.write(writer, bytes(65536))
child, terminal = pty.fork()
if child == 0:
    os.close(writer)
    os.execv(command[0], command)


def read():
    try:
        return os.read(terminal, 65536)
    except OSError:  # The other side has closed it.
        return b""


shown = b""
while mark.encode() not in shown and (more := read()):
    shown += more
os.close(writer)
while more := read():
    shown += more
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.stdout.buffer.write(shown + f"\nexit {code}\n".encode())
