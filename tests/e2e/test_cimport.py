"""The core as other tools use it: a module of theirs cimports the installed .pxd files and calls in without the GIL."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import detour.core

MODULE = """
from detour.core.bitmap cimport Bitmap, bitmap_free, bitmap_init, bitmap_set
from detour.core.crc32c cimport crc32c_update
from detour.core.pdu cimport sn_lt
from detour.core.types cimport *

def checksum(bytes data):
    cdef const char* start = data
    cdef size_t length = len(data)
    cdef uint32_t crc
    with nogil:
        crc = crc32c_update(0, start, length)
    return crc

def bits():
    cdef Bitmap bitmap
    bitmap_init(&bitmap, 1000)
    answer = bitmap_set(&bitmap, 10, 20)
    bitmap_free(&bitmap)
    return answer

def before(uint32_t a, uint32_t b):
    return sn_lt(a, b)
"""

SETUP = """
import os, detour.core
from Cython.Build import cythonize
from setuptools import Extension, setup
headers = [os.path.dirname(detour.core.__file__)]
setup(ext_modules=cythonize([Extension("theirs", ["theirs.pyx"], include_dirs=headers)]))
"""


def test_another_package_cimports_the_core(tmp_path):
    (tmp_path / "theirs.pyx").write_text(MODULE)
    (tmp_path / "setup.py").write_text(SETUP)
    package = str(Path(detour.core.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": package}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tmp_path, env=env, check=True,
                   timeout=120, capture_output=True)
    done = subprocess.run([sys.executable, "-c",
                           "import theirs; print(theirs.checksum(b'123456789'), theirs.bits(), "
                           "theirs.before(2**32 - 1, 3))"],
                          cwd=tmp_path, env=env, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.split() == [str(0xE3069283), "20", "True"]
