#!/usr/bin/env python3
"""Speaks to the service of shelf.rs with nothing but libipc and the .proto file.

    ./shelf.py [NAME]

What a .proto file says, and protobuf's encoding, fit on a page (`Proto`), so this needs no package.
With one, `protoc --python_out` makes the messages, and `Stub` is all that is left. `docs/rpc.md`
has the bytes. The library is found by the linker, or at $LIBIPC.
"""

import pathlib
import re
import struct
import sys

import client

NEXT = 1
SCALARS = {
    "bool", "bytes", "double", "fixed32", "fixed64", "float", "int32", "int64", "sfixed32",
    "sfixed64", "sint32", "sint64", "string", "uint32", "uint64",
}  # fmt: skip
FIXED = {"double": "<d", "fixed64": "<Q", "sfixed64": "<q", "float": "<f", "fixed32": "<I", "sfixed32": "<i"}


class Fault(Exception):
    """What a service answers with instead of a message."""

    def __init__(self, status, text, flags):
        super().__init__(f"{text} ({status})")
        self.status = status
        self.may_repeat = bool(flags & 12)


class Proto:
    """The messages and services of a .proto file: no imports, no maps, no groups."""

    def __init__(self, text):
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
        self.package = re.search(r"\bpackage\s+([\w.]+)\s*;", text)[1]
        self.messages = {}
        for name, body in re.findall(r"\bmessage\s+(\w+)\s*\{([^}]*)\}", text):
            fields = re.findall(r"(repeated\s+|optional\s+)?([\w.]+)\s+(\w+)\s*=\s*(\d+)", body)
            self.messages[name] = {
                int(number): (field, kind, label.strip()) for label, kind, field, number in fields
            }
        self.methods = {}
        for service, body in re.findall(r"\bservice\s+(\w+)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text):
            for method, request, stream, answer in re.findall(
                r"\brpc\s+(\w+)\s*\(\s*(\w+)\s*\)\s*returns\s*\(\s*(stream\s+)?(\w+)\s*\)", body
            ):
                self.methods[f"/{self.package}.{service}/{method}"] = request, answer, bool(stream)

    def encode(self, message, values):
        out = b""
        for number, (field, kind, label) in self.messages[message].items():
            given = values.get(field)
            for value in given if label == "repeated" and given else [given]:
                # A field with its default value is left out, but not one of many.
                if value is not None and (value or label):
                    out += self._field(number, kind, value)
        return out

    def _field(self, number, kind, value):
        if kind in FIXED:
            packed = struct.pack(FIXED[kind], value)
            return _varint(number << 3 | (1 if len(packed) == 8 else 5)) + packed
        if kind in ("string", "bytes") or kind in self.messages:
            if kind in self.messages:
                value = self.encode(kind, value)
            elif kind == "string":
                value = value.encode()
            return _varint(number << 3 | 2) + _varint(len(value)) + value
        if kind in ("sint32", "sint64"):
            value = value * 2 if value >= 0 else -value * 2 - 1
        return _varint(number << 3) + _varint(int(value) & 0xFFFFFFFFFFFFFFFF)

    def decode(self, message, data):
        fields = self.messages[message]
        values = {
            field: [] if label == "repeated" else None if label or kind not in SCALARS else _zero(kind)
            for field, kind, label in fields.values()
        }
        at = 0
        while at < len(data):
            tag, at = _read_varint(data, at)
            wire = tag & 7
            if wire == 0:
                raw, at = _read_varint(data, at)
            else:
                size = {1: 8, 5: 4}.get(wire)
                if wire == 2:
                    size, at = _read_varint(data, at)
                if size is None or at + size > len(data):
                    raise ValueError("no message")
                raw, at = data[at : at + size], at + size
            # A field that this file does not know is passed over.
            if tag >> 3 in fields:
                self._store(values, fields[tag >> 3], wire, raw)
        return values

    def _store(self, values, field, wire, raw):
        name, kind, label = field
        if label != "repeated":
            values[name] = self._value(kind, raw)
        elif wire == 2 and kind not in ("string", "bytes") and kind not in self.messages:
            at = 0
            while at < len(raw):
                if kind in FIXED:
                    size = struct.calcsize(FIXED[kind])
                    one, at = raw[at : at + size], at + size
                else:
                    one, at = _read_varint(raw, at)
                values[name].append(self._value(kind, one))
        else:
            values[name].append(self._value(kind, raw))

    def _value(self, kind, raw):
        if kind in FIXED:
            return struct.unpack(FIXED[kind], raw)[0]
        if kind in self.messages:
            return self.decode(kind, raw)
        if kind in ("string", "bytes"):
            return raw.decode() if kind == "string" else raw
        if kind in ("sint32", "sint64"):
            return raw >> 1 if raw & 1 == 0 else -(raw >> 1) - 1
        if kind in ("int32", "int64") and raw >> 63:
            return raw - (1 << 64)
        return bool(raw) if kind == "bool" else raw


def _zero(kind):
    return {"string": "", "bytes": b"", "bool": False}.get(kind, 0)


def _varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _read_varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("no message")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def method_id(path):
    """32 bits of FNV-1a."""
    value = 0x811C9DC5
    for byte in path.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


class Stub:
    """Calls the methods of a service."""

    def __init__(self, service, proto, name, timeout_ms=1000):
        self._service, self._proto, self._timeout = service, proto, timeout_ms
        self._path = f"/{proto.package}.{name}/"

    def _exchange(self, method, body):
        sent = struct.pack("<IBBH", method, 1, 0, 0) + body
        answer = self._service.call(sent, self._timeout)
        status, version, flags, _ = struct.unpack_from("<iBBH", answer)
        if version != 1:
            raise ValueError(f"an answer of version {version}")
        if status != 0:
            raise Fault(status, answer[8:].decode(), flags)
        return flags, answer[8:]

    def call(self, method, **values):
        """The answer of a method that has one."""
        request, answer, _ = self._proto.methods[self._path + method]
        body = self._proto.encode(request, values)
        return self._proto.decode(answer, self._exchange(method_id(self._path + method), body)[1])

    def stream(self, method, **values):
        """The answers of a method that has many, fetched as they are needed."""
        request, answer, _ = self._proto.methods[self._path + method]
        body = self._proto.encode(request, values)
        flags, body = self._exchange(method_id(self._path + method), body)
        while True:
            stream, at = body[:8], 8
            while at < len(body):
                size, at = _read_varint(body, at)
                yield self._proto.decode(answer, body[at : at + size])
                at += size
            if not flags & 2:
                return
            flags, body = self._exchange(NEXT, stream)


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "shelf"
    proto = Proto((pathlib.Path(__file__).parent / "proto/shelf.proto").read_text())
    client._check(client._lib.ipc_init(None))
    shelf = Stub(client.Service(name), proto, "Shelf")
    for number in range(300):
        title = f"Volume {number}"
        place = shelf.call("Put", title=title, year=-number, authors=["Anonymous", "Ämilie"], first_page=b"\0" * number)
        print(f"{title} stands at {place['index']}")
    book = shelf.call("Find", title="Volume 200")
    print(book["title"], "is of", book["year"], "by", " and ".join(book["authors"]), "with", len(book["first_page"]))
    try:
        shelf.call("Find", title="Ulysses")
    except Fault as fault:
        print(fault)
    books = list(shelf.stream("List"))
    print(sum(book["title"].startswith("Volume") for book in books), "volumes in a stream")
    client._lib.ipc_shutdown()


if __name__ == "__main__":
    main()
