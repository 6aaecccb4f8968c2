import os
import subprocess
import sys

import pytest

MAPPED_BLOCKS = """
import ctypes
from udmlss import keep_freed_memory


class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd b c d e f".split()]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Memory
libc.malloc.restype = ctypes.c_void_p
before = libc.mallinfo2()
libc.free(ctypes.c_void_p(libc.malloc(1 << 28)))
print(libc.mallinfo2().arena - before.arena > 1 << 27)
print(keep_freed_memory())
pointer = libc.malloc(1 << 28)
print(libc.mallinfo2().hblks - before.hblks)
libc.free(ctypes.c_void_p(pointer))
print(libc.mallinfo2().arena - before.arena > 1 << 27)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "confstr"), reason="the allocator of glibc")
def test_freed_memory_is_kept_by_the_allocator():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", MAPPED_BLOCKS], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.split() == ["False", "True", "0", "True"]  # a large block is mapped and returned, then kept
