# Extracts a tarball from standard input with Python's tarfile, as it is.
import sys, tarfile

# Before 3.12, and the corrections of older versions, there is no other way.
options = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
    archive.extractall(sys.argv[1], numeric_owner=True, **options)
