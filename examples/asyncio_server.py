#!/usr/bin/env python3
"""Serves a name in an asyncio loop, with nothing but ctypes: one coroutine for each request.

    ./asyncio_server.py [NAME]      serves NAME ("echo" unless given), until SIGINT or SIGTERM

The library is found as by client.py, which lies beside.
"""

import asyncio
import ctypes
import signal
import sys

from client import IpcError, _check, _lib

REQUEST = 0


class Message(ctypes.Structure):
    """The first members of an ipc_message_t; the library makes them, we only look."""

    _fields_ = [
        ("message_id", ctypes.c_uint64),
        ("source_service_id", ctypes.c_uint32),
        ("dest_service_id", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
        ("timestamp", ctypes.c_uint64),
        ("payload_size", ctypes.c_uint32),
        ("payload", ctypes.c_void_p),
    ]


Handler = ctypes.CFUNCTYPE(None, ctypes.POINTER(Message), ctypes.c_void_p)
_message = ctypes.POINTER(Message)
_lib.ipc_message_retain.argtypes, _lib.ipc_message_retain.restype = [_message], _message
_lib.ipc_message_release.argtypes, _lib.ipc_message_release.restype = [_message], None
_lib.ipc_reply.argtypes = [_message, ctypes.c_char_p, ctypes.c_size_t]
_lib.ipc_receive_async.argtypes = [ctypes.c_uint32, Handler]
_lib.ipc_register_service.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32)]


class Server:
    """Has `answer`, a coroutine from bytes to bytes, answer whatever comes."""

    def __init__(self, name, answer):
        self._answer = answer
        self._tasks = set()
        self.served = 0
        # Kept: the library calls it as long as it is registered.
        self._handler = Handler(self._on_message)
        _check(_lib.ipc_init(None))
        _check(_lib.ipc_receive_async(0, self._handler))
        _check(_lib.ipc_register_service(name.encode(), ctypes.byref(ctypes.c_uint32())))
        self._fd = _check(_lib.ipc_fd())
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def _on_readable(self):
        # Runs the handlers that are due, and never waits.
        _check(_lib.ipc_poll(0))

    def _on_message(self, message, _user_data):
        if message.contents.type != REQUEST:
            return
        # Beyond this function it lives only if it is kept.
        task = asyncio.ensure_future(self._reply(_lib.ipc_message_retain(message)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, message):
        try:
            request = ctypes.string_at(message.contents.payload, message.contents.payload_size)
            response = await self._answer(request)
            _check(_lib.ipc_reply(message, response, len(response)))
            self.served += 1
        except IpcError as error:
            print(f"asyncio_server.py: the caller is gone: {error}", file=sys.stderr)
        finally:
            # Without an answer, the caller hears so now.
            _lib.ipc_message_release(message)

    def close(self):
        asyncio.get_running_loop().remove_reader(self._fd)
        _lib.ipc_shutdown()


async def upper(request):
    await asyncio.sleep(0.01)  # the loop goes on meanwhile
    return request.upper()


async def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "echo"
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = Server(name, upper)
    print(f"serving {name!r}", flush=True)
    await stopped.wait()
    server.close()
    print(f"{server.served} calls served")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except IpcError as error:
        sys.exit(f"asyncio_server.py: {error} ({error.status})")
