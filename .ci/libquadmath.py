"""Sees to the one system library that MXNet's wheel leaves to the system; a minimal Debian lacks it."""

import ctypes
import os
import subprocess
import sys

try:
    ctypes.CDLL("libquadmath.so.0")
except OSError:
    install = ["apt-get", "install", "-y", "libquadmath0"]
    if os.geteuid() != 0:
        sys.exit(f"MXNet, with which the tests compare, needs the system library libquadmath: {' '.join(install)}")
    print("MXNet, with which the tests compare, needs the system library libquadmath; installing it:", flush=True)
    for command in (["apt-get", "update"], install):
        print("+", *command, flush=True)
        subprocess.run(command, check=True)
