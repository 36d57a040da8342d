"""Damages of bytes, of text, of trees of plain data, and of safetensors files."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from random import Random
from typing import Any

# A damaged value with what was done to it, in words.
Damaged = tuple[Any, str]
Path = tuple[Any, ...]

DEEP = 5_000
# Values that are of another type, at a limit, or beyond one.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    1.5,
    -0.5,
    2**31,
    2**63,
    10**20,
    10**5000,
    1e-300,
    1e38,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    " ",
    "x",
    "\x00",
    "\x1b[31mred",
    "\ud800",
    "é\n\t",
    "a/../../b",
    "~nosuch/x",
    "/dev/zero",
    "{text}",
    "{soft:3}",
    "x" * 10_000,
    [],
    [None],
    [[]],
    [1, 2],
    ["a", "a"],
    {},
    {"": ""},
    {"a": None},
    {"kind": 1},
)
_WORDS = (b"null", b"NaN", b"-Infinity", b"1e999", b"[", b"]", b"{", b"}", b'"', b"\\u0000", b"//")


def damage_bytes(raw: bytes, random: Random) -> tuple[bytes, str]:  # noqa: PLR0911  # one for each way
    """Flip, insert, remove, repeat, cut, fill, or append bytes."""
    if not raw:
        return b"\x00", "one zero byte"
    at = random.randrange(len(raw))
    end = min(len(raw), at + random.choice((1, 2, 8, 64, 512)))
    match random.randrange(10):
        case 0 | 1 | 2:
            bit = 1 << random.randrange(8)
            return raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :], f"bit {bit} of byte {at}"
        case 3:
            byte = random.randrange(256)
            return raw[:at] + bytes([byte]) + raw[at + 1 :], f"byte {at} is {byte}"
        case 4:
            more = random.choice((random.randbytes(random.choice((1, 4, 64))), *_WORDS))
            return raw[:at] + more + raw[at:], f"{more[:20]!r} inserted at {at}"
        case 5:
            return raw[:at] + raw[end:], f"bytes {at} to {end} are gone"
        case 6:
            return raw[:at] + raw[at:end] + raw[at:], f"bytes {at} to {end} twice"
        case 7:
            return raw[:at], f"cut at byte {at}"
        case 8:
            fill = random.choice((b"\x00", b"\xff", b" ", b"9"))
            return raw[:at] + fill * (end - at) + raw[end:], f"{fill!r} from {at} to {end}"
        case _:
            more = random.choice((random.randbytes(8), b"\x00" * 4096, raw, b"\n"))
            return raw + more, f"{len(more)} bytes behind the end"


def list_paths(tree: Any, before: Path = ()) -> Iterator[Path]:  # noqa: ANN401  # plain data
    """The paths of all values of a tree, the tree's own first."""
    yield before
    match tree:
        case dict():
            for key, value in tree.items():
                yield from list_paths(value, (*before, key))
        case list():
            for at, value in enumerate(tree):
                yield from list_paths(value, (*before, at))
        case _:
            pass


def _get(tree: Any, path: Path) -> Any:  # noqa: ANN401  # plain data
    for key in path:
        tree = tree[key]
    return tree


def change_value(value: Any, random: Random) -> Damaged:  # noqa: ANN401  # plain data
    """Another value near this one: of the same type, one step away."""
    match value:
        case bool():
            return not value, "the other"
        case int() | float():
            other = random.choice((value + 1, value - 1, -value, value * 2, value * 10**6))
            return other, repr_short(other)
        case str():
            changed = _change_text(value, random)
            return changed, repr(changed[:60])
        case list() if value:
            changed = list(value)
            match random.randrange(3):
                case 0:
                    random.shuffle(changed)
                case 1:
                    changed.append(random.choice(changed))
                case _:
                    changed.pop()
            return changed, repr(changed)[:60]
        case dict() if value:
            keys = list(value)
            one, other = random.choice(keys), random.choice(keys)
            return value | {one: value[other], other: value[one]}, f"{one!r} and {other!r} swapped"
        case _:
            return "x", "'x'"


def _change_text(text: str, random: Random) -> str:  # noqa: PLR0911  # one for each way
    at = random.randrange(len(text) + 1)
    match random.randrange(7):
        case 0:
            return (
                text[:at] + random.choice(("{", "}", "{{", "é", "\u0301", "\x00", " ")) + text[at:]
            )
        case 1:
            return text[:at] + text[at + 1 :]
        case 2:
            return text.swapcase()
        case 3:
            return f" {text} "
        case 4:
            return text * 2
        case 5:
            return text.replace("4", "3").replace("{soft", "{sofa", random.randrange(2))
        case _:
            return "".join(random.sample(text, len(text)))


def damage_tree(
    tree: Any,  # noqa: ANN401  # plain data
    random: Random,
    *,
    odd: tuple[Any, ...] = ODD_VALUES,
    below: Path = (),
) -> Damaged:
    """Replace, change, remove, rename or add one value of a tree, at a path below another."""
    tree = deepcopy(tree)
    paths = [path for path in list_paths(tree) if path[: len(below)] == below and path != below]
    path = random.choice(paths)
    *parents, key = path
    parent, where = _get(tree, tuple(parents)), ".".join(map(str, path))
    match random.randrange(8):
        case 0 | 1 | 2:
            parent[key] = random.choice(odd)
            return tree, f"{where} = {repr_short(parent[key])}"
        case 3 | 4 | 5:
            parent[key], what = change_value(parent[key], random)
            return tree, f"{where} = {what}"
        case 6:
            del parent[key]
            return tree, f"{where} is gone"
        case _ if isinstance(parent, dict):
            name = random.choice(("x", "", f"{key}_", str(key).upper()))
            parent[name] = parent.pop(key) if random.random() < 0.5 else random.choice(odd)  # noqa: PLR2004
            return tree, f"{name!r} beside or instead of {where}"
        case _:
            parent.insert(key, random.choice(odd))
            return tree, f"one more before {where}"


def repr_short(value: Any) -> str:  # noqa: ANN401  # plain data
    """A value in a few characters, also if it is a number of thousands of digits."""
    try:
        return repr(value)[:60]
    except ValueError:  # a number of more digits than Python writes
        return "a whole number of thousands of digits"


def dump_json(tree: Any) -> bytes:  # noqa: ANN401  # plain data
    """JSON with what Python alone writes: NaN, halves of characters, numbers without an end."""
    return _dump(tree).encode("utf-8", "surrogatepass")


def _dump(tree: Any) -> str:  # noqa: ANN401  # plain data
    match tree:
        case dict():
            inside = ", ".join(f"{json.dumps(str(k))}: {_dump(v)}" for k, v in tree.items())
            return f"{{{inside}}}"
        case list() | tuple():
            return f"[{', '.join(map(_dump, tree))}]"
        case int() if not isinstance(tree, bool) and abs(tree) > 10**400:
            return "1" + "0" * 5000
        case _:
            return json.dumps(tree)


def damage_json_file(
    raw: bytes, random: Random, *, ways: int, odd: tuple[Any, ...]
) -> tuple[bytes, str]:
    """Damage a file of JSON: its bytes and its text once in so many ways each, else its values."""
    match random.randrange(ways):
        case 0:
            return damage_bytes(raw, random)
        case 1:
            return damage_json_text(raw, random)
        case _:
            tree, what = damage_tree(json.loads(raw), random, odd=odd)
            return dump_json(tree), what


def damage_json_text(raw: bytes, random: Random) -> tuple[bytes, str]:
    """Write JSON in a way that parsers differ about."""
    text = raw.decode("utf-8", "surrogatepass")
    values = [at for at, char in enumerate(text) if char == ":"]
    at = random.choice(values) + 1 if values else 0
    end = next((i for i in range(at, len(text)) if text[i] in ",}\n"), len(text))

    def put(value: str) -> bytes:
        return (text[:at] + value + text[end:]).encode()

    changes: dict[str, Callable[[], bytes]] = {
        "NaN": lambda: put("NaN"),
        "Infinity": lambda: put("Infinity"),
        "1e999": lambda: put("1e999"),
        "a number of 5,000 digits": lambda: put("9" * 5000),
        "a text of 100,000 characters": lambda: put('"' + "x" * 100_000 + '"'),
        "half a character": lambda: put('"\\ud800"'),
        "a zero character": lambda: put('"\\u0000"'),
        "nested lists": lambda: put("[" * DEEP + "]" * DEEP),
        "nested tables": lambda: put('{"a":' * DEEP + "1" + "}" * DEEP),
        "a key twice": lambda: _repeat_key(text, random),
        "a byte order mark": lambda: b"\xef\xbb\xbf" + raw,
        "UTF-16": lambda: text.encode("utf-16", "replace"),
        "Latin-1": lambda: text.encode("latin-1", "replace"),
        "a comma behind the last": lambda: text.replace("}", ",}", 1).encode(),
        "single quotes": lambda: text.replace('"', "'").encode(),
        "a comment": lambda: b"/* x */" + raw,
        "a list around it": lambda: b"[" + raw + b"]",
        "nothing": lambda: b"",
        "two of it": lambda: raw + raw,
        "lines of Windows": lambda: text.replace("\n", "\r\n").encode(),
    }
    name = random.choice(list(changes))
    return changes[name](), f"{name} at character {at}"


def _repeat_key(text: str, random: Random) -> bytes:
    places = [at for at, char in enumerate(text) if char == "{" and '"' in text[at : at + 20]]
    if not places:
        return text.encode()
    at = random.choice(places) + 1
    key = text[text.index('"', at) :].partition(":")[0]
    return f"{text[:at]}{key}: {random.choice(('null', '1', chr(34) * 2))}, {text[at:]}".encode()


def split_safetensors(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes behind it."""
    size = struct.unpack("<Q", raw[:8])[0]
    header: dict[str, Any] = json.loads(raw[8 : 8 + size])
    return header, raw[8 + size :]


def join_safetensors(header: Mapping[str, Any] | bytes, body: bytes) -> bytes:
    """A safetensors file of a header and the bytes behind it."""
    packed = header if isinstance(header, bytes) else dump_json(header)
    return struct.pack("<Q", len(packed)) + packed + body


_TENSOR_VALUES = (
    "F16",
    "BF16",
    "F64",
    "I64",
    "U8",
    "BOOL",
    "F8_E5M2",
    "C64",
    "XX",
    0,
    1,
    2**40,
    -1,
)


def damage_safetensors(raw: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a safetensors file: its bytes, or the header that describes them."""
    match random.randrange(6):
        case 0 | 1:
            return damage_bytes(raw, random)
        case 2 | 3:
            header, body = split_safetensors(raw)
            header, what = damage_tree(header, random, odd=(*ODD_VALUES, *_TENSOR_VALUES))
            return join_safetensors(header, body), f"in the header, {what}"
        case 4:
            header, body = split_safetensors(raw)
            text, what = damage_json_text(dump_json(header), random)
            return join_safetensors(text, body), f"in the header, {what}"
        case _:
            size = random.choice((0, 1, 7, len(raw), len(raw) * 2, 2**31, 2**63, 2**64 - 1))
            return struct.pack("<Q", size) + raw[8:], f"a header of {size} bytes"
