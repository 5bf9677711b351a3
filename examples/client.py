#!/usr/bin/env python3
"""Calls a service from Python, with nothing but ctypes.

    ./client.py [NAME [TEXT]]

The library is found by the linker, or at $LIBIPC. As a module: `call("echo", b"hello")`.
"""

import ctypes
import ctypes.util
import os
import sys

FOREVER = 0xFFFFFFFF


def _load():
    path = os.environ.get("LIBIPC") or ctypes.util.find_library("ipc") or "libipc.so.0"
    lib = ctypes.CDLL(path)
    prototypes = {
        "ipc_init": [ctypes.c_void_p],
        "ipc_shutdown": [],
        "ipc_wait_service": [ctypes.c_char_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32)],
        "ipc_call": [
            ctypes.c_uint32,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.POINTER(ctypes.c_size_t),
            ctypes.c_uint32,
        ],
        "ipc_send_async": [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p],
    }
    for name, arguments in prototypes.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    lib.ipc_free.argtypes, lib.ipc_free.restype = [ctypes.c_void_p], None
    lib.ipc_strerror.argtypes, lib.ipc_strerror.restype = [ctypes.c_int], ctypes.c_char_p
    return lib


_lib = _load()


class IpcError(Exception):
    """A negative status, with what the library says about it."""

    def __init__(self, status):
        super().__init__(_lib.ipc_strerror(status).decode())
        self.status = status


def _check(status):
    if status < 0:
        raise IpcError(status)
    return status


class Service:
    """A service, by its name. Waits until somebody serves it."""

    def __init__(self, name, timeout_ms=5000):
        self._id = ctypes.c_uint32()
        _check(_lib.ipc_wait_service(name.encode(), timeout_ms, ctypes.byref(self._id)))

    def call(self, request, timeout_ms=1000):
        """Sends bytes, returns the answer's bytes."""
        response, size = ctypes.c_void_p(), ctypes.c_size_t()
        _check(
            _lib.ipc_call(
                self._id, request, len(request), ctypes.byref(response), ctypes.byref(size), timeout_ms
            )
        )
        try:
            return ctypes.string_at(response, size.value)
        finally:
            _lib.ipc_free(response)

    def send(self, message):
        """Sends bytes that nobody answers."""
        _check(_lib.ipc_send_async(self._id, message, len(message), None))


def call(name, request, timeout_ms=1000):
    """Connects, calls once, and disconnects."""
    _check(_lib.ipc_init(None))
    try:
        return Service(name).call(request, timeout_ms)
    finally:
        _lib.ipc_shutdown()


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "echo"
    text = sys.argv[2] if len(sys.argv) > 2 else "hello"
    try:
        sys.stdout.buffer.write(call(name, text.encode()) + b"\n")
    except IpcError as error:
        sys.exit(f"client.py: {error} ({error.status})")


if __name__ == "__main__":
    main()
