# Writes a folder to standard output as a tarball, with Python's tarfile: in the format of the first
# argument, the folder of the second.
import os, sys, tarfile

formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def holdable(member):
    """Leaves out what the format has no place for. A fraction of a second is what floating point makes of it."""
    if sys.argv[1] != "pax":
        member.mtime = os.lstat(os.path.join(sys.argv[2], member.name)).st_mtime_ns // 1_000_000_000
    try:
        member.tobuf(formats[sys.argv[1]], "utf-8", "surrogateescape")
    except ValueError:
        return None
    return member


with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=formats[sys.argv[1]]) as archive:
    archive.add(sys.argv[2], ".", filter=holdable)
