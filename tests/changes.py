"""Strategies that change the content of files: trees of JSON, bytes, and headers with sizes and checksums."""

import ast
import copy
import gzip
import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Json = Any
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf]
    ),
    st.sampled_from(["", "x", "a.b", "../x", "/x", "\x1b[2J", "\ud800", "2018", "NaN", "float32", "9" * 999]),
    st.builds(list),
    st.builds(dict),
    st.just([[1], [1, 2]]),
    st.just({"a": {"a": None}}),
    st.sampled_from([60, 150, 300]).map(lambda depth: json.loads("[" * depth + "]" * depth)),
).map(copy.deepcopy)  # later changes may change what was drawn


def places(tree: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values below the whole."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, tree: Json) -> Json:
    """Draw the tree with up to three changes: a value is replaced, removed, repeated or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(tree))
        if not found:
            return draw(VALUES)
        *parents, key = draw(st.sampled_from(found))
        parent = tree
        for part in parents:
            parent = parent[part]
        match draw(st.sampled_from(["replace", "remove", "repeat", "exchange", "whole"])):
            case "replace":
                parent[key] = draw(VALUES)
            case "remove":
                del parent[key]
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case "repeat":
                parent[draw(st.sampled_from([*parent, "new", ""]))] = copy.deepcopy(parent[key])
            case "exchange":
                other = draw(st.sampled_from([*parent] if isinstance(parent, dict) else range(len(parent))))
                parent[key], parent[other] = parent[other], parent[key]
            case "whole" if draw(st.integers(0, 9)) == 0:
                return draw(VALUES)
    return tree


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """Draw the text: mostly as it is, sometimes without its end or with one changed byte."""
    place = draw(st.integers(0, max(len(text) - 1, 0)))
    match draw(st.sampled_from(["whole"] * 6 + ["cut", "byte"])):
        case "cut":
            return text[:place]
        case "byte":
            return text[:place] + bytes([draw(st.integers(0, 255))]) + text[place + 1 :]
    return text


def as_text(tree: Json) -> bytes:
    """Return a tree as JSON."""
    return json.dumps(tree, indent=1).encode(errors="surrogatepass")


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file with up to three changes, each of a byte, a number, the length or a part."""
    for _ in range(draw(st.integers(1, 3))):
        end = len(content)
        place = draw(
            st.one_of(st.integers(0, min(end, 64)), st.integers(0, min(end, 1024)), st.integers(0, end))
        )
        match draw(st.sampled_from(["byte", "byte", "number", "number", "cut", "longer", "part", "empty"])):
            case "byte":
                content = (
                    content[:place]
                    + bytes([draw(st.integers(0, 255) | st.integers(32, 126))])
                    + content[place + 1 :]
                )
            case "number":  # sizes and offsets are numbers of 1 to 8 bytes
                width = draw(st.sampled_from([1, 2, 4, 8]))
                number = draw(st.sampled_from([0, 1, 2**31, 2**40, 2**62, -1, -2])) % 256**width
                packed = number.to_bytes(width, draw(st.sampled_from(["little", "big"])))
                content = content[:place] + packed + content[place + width :]
            case "cut":
                content = content[:place]
            case "longer":
                content += draw(st.sampled_from([b"\0", b"\n", content, bytes(4096), b"x" * 2**20]))
            case "part":
                other = draw(st.integers(0, end))
                content = content[:place] + content[other : other + 64] + content[place + 64 :]
            case "empty" if draw(st.integers(0, 9)) == 0:
                content = b""
    return content


NUMBERS = st.sampled_from([0, 1, 2, 511, 512, 513, 2**20, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
"""Sizes and offsets that a header may state."""

TAR_NUMBERS = {"mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "major": (329, 8)}
"""Offset and width of some numbers of a tar's header."""
TAR_RECORDS = ("path", "size", "mtime", "hdrcharset", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major")


def _tar_headers(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [member.offset for member in archive]


def _with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


@st.composite
def changed_tar(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a tar with one changed or one additional header; in 9 of 10 draws its checksum is correct."""
    start = draw(st.sampled_from(_tar_headers(content)))
    header, before = content[start : start + 512], b""
    match draw(st.sampled_from(["number", "number", "type", "name", "extended", "extended", "magic"])):
        case "number":
            at, width = draw(st.sampled_from(list(TAR_NUMBERS.values())))
            number = draw(NUMBERS | st.integers(-3, 2**20))
            octal = b"%o" % max(number, 0)
            if draw(st.booleans()) and len(octal) < width:
                field = octal.rjust(width - 1, b"0") + b"\0"
            else:  # base 256
                field = (number % 256**width).to_bytes(width, "big")
                field = bytes([0xFF if number < 0 else 0x80]) + field[1:]
            header = header[:at] + field + header[at + width :]
        case "type":
            header = (
                header[:156]
                + draw(st.sampled_from([b"%c" % c for c in b"0123457xgXLKSDVMN\0"]))
                + header[157:]
            )
        case "name":
            name = draw(st.binary(max_size=100) | st.just(header[:100].rstrip(b"\0") + b"/"))
            header = name.ljust(100, b"\0") + header[100:]
        case "magic":
            header = header[:257] + draw(st.binary(min_size=8, max_size=8)) + header[265:]
        case "extended":
            before = draw(_extended_tar_header(header))
    if draw(st.integers(0, 9)):
        header = _with_checksum(header)
    return content[:start] + before + header + content[start + 512 :]


@st.composite
def _extended_tar_header(draw: st.DrawFn, header: bytes) -> bytes:
    """Draw a header of pax or GNU with its content, whose lengths may be wrong."""
    name, value = (
        draw(st.sampled_from(TAR_RECORDS)),
        str(draw(NUMBERS | st.sampled_from([-1, "x", "\0", "1,2"]))),
    )
    text = f" {name}={value}\n".encode()
    length = len(text) + len(str(len(text) + 2))
    stated = draw(st.just(length) | st.just(length) | NUMBERS | st.sampled_from([-1, length - 1, length + 1]))
    text = (b"%d" % stated + text) * draw(st.sampled_from([1, 1, 2, 100]))
    size = draw(st.just(len(text)) | st.just(len(text)) | NUMBERS.filter(lambda each: each < 8**11))
    kind = draw(st.sampled_from([b"x", b"x", b"g", b"L", b"K", b"X"]))
    before = header[:124] + b"%011o\0" % size + header[136:156] + kind + header[157:]
    return _with_checksum(before) + text + bytes(-len(text) % 512)


@st.composite
def changed_gzip(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a gzipped tar with changed content and the correct checksum of gzip."""
    return gzip.compress(draw(changed_tar(gzip.decompress(content))), 1)


ZIP_NUMBERS = {
    b"PK\3\4": ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\1\2": (
        (6, 2),
        (8, 2),
        (10, 2),
        (16, 4),
        (20, 4),
        (24, 4),
        (28, 2),
        (30, 2),
        (32, 2),
        (38, 4),
        (42, 4),
    ),
    b"PK\5\6": ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}
"""Offsets and widths of the numbers of local headers, of the directory's entries and of its end."""


@st.composite
def changed_zip(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a zip whose headers have other numbers, or with headers of zip64."""
    end = content.rindex(b"PK\5\6")
    match draw(st.sampled_from(["number", "number", "extra", "extra", "end"])):
        case "number":
            for _ in range(draw(st.integers(1, 3))):
                kind = draw(st.sampled_from(list(ZIP_NUMBERS)))
                places = [at for at in range(len(content)) if content.startswith(kind, at)]
                at, width = draw(st.sampled_from(ZIP_NUMBERS[kind]))
                at += draw(st.sampled_from(places))
                number = draw(NUMBERS | st.integers(0, 99)) % 256**width
                content = content[:at] + number.to_bytes(width, "little") + content[at + width :]
        case "extra":  # zip64 sizes and offset of the first entry, in the place of those of 4 bytes
            at = content.index(b"PK\1\2")
            numbers = draw(st.lists(NUMBERS | st.integers(0, 2**12), max_size=4))
            field = b"".join(number.to_bytes(8, "little") for number in numbers)
            stated = draw(st.just(len(field)) | st.sampled_from([0, 7, 2**16 - 1]))
            field = b"\1\0" + stated.to_bytes(2, "little") + field
            entry = bytearray(content[at : at + 46 + int.from_bytes(content[at + 28 : at + 30], "little")])
            for place in draw(st.sets(st.sampled_from([20, 24, 42]))):
                entry[place : place + 4] = b"\xff" * 4
            entry[30:32] = len(field).to_bytes(2, "little")
            size = int.from_bytes(content[end + 12 : end + 16], "little") + len(field)
            tail = content[end : end + 12] + size.to_bytes(4, "little") + content[end + 16 :]
            content = content[:at] + bytes(entry) + field + content[at + len(entry) : end] + tail
        case "end":
            numbers = [draw(NUMBERS | st.integers(0, 2**12)) for _ in range(6)]
            record = b"PK\6\6" + b"".join(number.to_bytes(8, "little") for number in numbers) + bytes(4)
            place = draw(st.just(end) | NUMBERS)
            locator = b"PK\6\7" + bytes(4) + place.to_bytes(8, "little") + b"\1\0\0\0"
            content = content[:end] + record + locator + content[end:]
    return content


SAFETENSORS_BITS = {"F64": 64, "I64": 64, "F32": 32, "U32": 32, "F16": 16, "BF16": 16, "U8": 8, "BOOL": 8,
                    "F8_E4M3": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F4": 4, "C64": 64}  # fmt: skip


@st.composite
def changed_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a safetensors file with another header: other values, or another type of the same size."""
    end = 8 + int.from_bytes(content[:8], "little")
    tree = json.loads(content[8:end])
    metadata = tree.get("__metadata__", {})
    texts = [name for name, text in metadata.items() if text.startswith("{")]
    match draw(st.sampled_from(["values", "values", "type", "metadata"])):
        case "type":
            tensor = tree[draw(st.sampled_from([name for name in tree if name != "__metadata__"]))]
            tensor["dtype"] = draw(st.sampled_from(list(SAFETENSORS_BITS)))
            first, last = tensor["data_offsets"]
            count = (last - first) * 8 // SAFETENSORS_BITS[tensor["dtype"]]
            tensor["shape"] = draw(st.sampled_from([tensor["shape"], [count], [1, count], [0, 2**40]]))
        case "metadata" if texts:
            name = draw(st.sampled_from(texts))
            metadata[name] = draw(damaged(as_text(draw(changed(json.loads(metadata[name])))))).decode(
                errors="replace"
            )
        case _:
            tree = draw(changed(tree))
    header = draw(damaged(as_text(tree)))
    length = draw(st.sampled_from([len(header)] * 8 + [len(header) + 1, len(header) - 1])) if header else 0
    length = draw(st.sampled_from([length] * 9 + [draw(NUMBERS)]))
    return length.to_bytes(8, "little") + header + content[end:]


DESCRS = (
    "<f4",
    ">f4",
    "<f8",
    "<f2",
    "|O",
    "<M8[h]",
    "<U9999999",
    "|V4",
    "<i4,<i4",
    "q",
    [("a", "<f4")],
    None,
)


@st.composite
def changed_npy(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw an npy file with another header."""
    end = 10 + int.from_bytes(content[8:10], "little")
    fields: dict[Any, Any] = ast.literal_eval(content[10:end].decode())
    match draw(st.sampled_from(["descr", "shape", "fortran_order", "other", "lost"])):
        case "descr":
            fields["descr"] = draw(st.sampled_from(DESCRS))
        case "shape":
            size = NUMBERS | st.integers(-2, 9) | st.sampled_from([True, 1.5, None, "x"])
            fields["shape"] = draw(
                st.lists(size, max_size=5).map(tuple) | size | st.just(fields["shape"][::-1])
            )
        case "other":
            fields[draw(st.sampled_from(["new", 7, "shape "]))] = 1
        case "lost":
            del fields[draw(st.sampled_from(list(fields)))]
        case _:
            fields["fortran_order"] = draw(st.sampled_from([True, 0, 1, "no", None]))
    text = draw(damaged(repr(fields).encode() + b"\n"))
    text = draw(st.sampled_from([text] * 6 + [b"(" * 9000, b"9" * 9000, b"-" * 9000 + b"1", b"L\n"]))
    version = draw(st.sampled_from([1, 1, 1, 2, 3, 9]))
    width = 2 if version == 1 else 4
    length = draw(st.sampled_from([len(text)] * 6 + [len(text) + 1, 2**15, draw(NUMBERS)])) % 256**width
    return content[:6] + bytes([version, 0]) + length.to_bytes(width, "little") + text + content[end:]


HEADERS = {
    ".tar": changed_tar,
    ".gz": changed_gzip,
    ".zip": changed_zip,
    ".safetensors": changed_safetensors,
    ".npy": changed_npy,
}
"""Strategies by the suffix of a file."""


@st.composite
def changed_file(draw: st.DrawFn, path: Path) -> bytes:
    """Draw a changed form of a file: JSON by its values, others by their bytes or headers."""
    content = path.read_bytes()
    if path.suffix == ".json" or path.name in (".zarray", ".zattrs", ".zgroup"):
        return draw(damaged(as_text(draw(changed(json.loads(content))))))
    if path.suffix in HEADERS and draw(st.booleans()):
        return draw(HEADERS[path.suffix](content))
    return draw(changed_bytes(content))
