# Prints a line for every entry of a tree, with all that a backup must keep of it. Two trees are the
# same if this prints the same of both.
import hashlib, os, stat, sys

root = os.fsencode(sys.argv[1])
options = set(sys.argv[2:])
links = {}


def data(path, size):
    """Where the data of a file with holes is: begin and end of each piece."""
    pieces = []
    with open(path, "rb") as file:
        end = 0
        while end < size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            pieces.append((begin, end))
    return pieces


def line(path, name):
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    fields = [name, oct(kind)]
    mtime = info.st_mtime_ns
    if "milliseconds" in options:
        mtime = (mtime + 500_000) // 1_000_000
    if "seconds" in options:
        mtime = mtime // 1_000_000_000
    if not (kind == stat.S_IFLNK and "no-link-times" in options):
        fields.append(f"mtime={mtime}")
    if "no-owner" not in options:
        fields.append(f"owner={info.st_uid}:{info.st_gid}")
    if kind != stat.S_IFLNK:
        fields.append(f"mode={oct(stat.S_IMODE(info.st_mode))}")
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            fields.append(hashlib.file_digest(file, "sha256").hexdigest())
        fields.append(f"size={info.st_size}")
    if kind == stat.S_IFLNK:
        fields.append(f"target={os.readlink(path)!r}")
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        fields.append(f"device={info.st_rdev}")
    if kind != stat.S_IFDIR and info.st_nlink > 1:
        fields.append(f"same-as={links.setdefault(info.st_ino, name)!r}")
    if kind == stat.S_IFREG and "holes" in options and info.st_blocks * 512 < info.st_size:
        fields.append(f"data={data(path, info.st_size)}")
    if "no-attributes" not in options:
        for key in sorted(os.listxattr(path, follow_symlinks=False)):
            fields.append(f"{key}={os.getxattr(path, key, follow_symlinks=False)!r}")
    print(*map(repr, fields))


def walk(path, name):
    line(path, name)
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for child in sorted(os.listdir(path)):
            walk(path + b"/" + child, name + b"/" + child)


sys.setrecursionlimit(10000)
walk(root, b".")
