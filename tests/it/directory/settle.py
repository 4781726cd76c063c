# Moves the times of a tree that lie near the middle of a millisecond: how such a one is rounded is
# decided by the floating point that Python's tarfile keeps times in.
import os, sys


def settle(name, folder):
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if 400_000 < info.st_mtime_ns % 1_000_000 < 600_000:
        times = (info.st_atime_ns, info.st_mtime_ns + 200_000)
        os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)


for _, folders, files, folder in os.fwalk(os.fsencode(sys.argv[1])):
    for name in folders + files:
        settle(name, folder)
settle(os.fsencode(sys.argv[1]), None)
