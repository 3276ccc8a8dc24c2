"""Damage for files: bytes flipped and cut, and the lies that a format's own rules let one tell."""

import gzip
import io
import json
import lzma
import struct
import tarfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 7, 2**31, 2**63, 10**9, -(10**9), 10**40, 0.5, 4.0, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "1", "../x", "\0", "\ud800", "\x1b[31m", "A" * 5_000),
    *([], [1], [[]], {}, {"x": 1}),
)
"""What may stand in the place of a JSON value."""

LINES = ("", " ", "\0", "\r", "\x1b[2J", "\u2028", "<pad>", "<unk>", "x" * 50_000, "good", "déjà 1 2", "1 2 3 4")
"""What may stand in the place of a line."""


def damage_bytes(content: bytes, random: Random) -> bytes:
    """Flip, overwrite, cut out, repeat, put in, cut off; once to three times."""
    damaged = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        start, end = sorted(random.randrange(len(damaged) + 1) for _ in range(2))
        end = min(end, start + random.choice((1, 1, 4, 64, 4_096)))
        match random.randrange(7):
            case 0 if start < len(damaged):
                damaged[start] ^= 1 << random.randrange(8)
            case 1 if start < len(damaged):
                damaged[start] = random.choice((0, 1, 127, 128, 255, 10, 34, 48))
            case 2:
                del damaged[start:end]
            case 3:
                damaged[start:start] = damaged[start:end]
            case 4:
                damaged[start:start] = random.randbytes(random.choice((1, 4, 64)))
            case 5:
                damaged[start:end] = bytes(end - start)
            case _:
                del damaged[start:]
    return bytes(damaged)


def damage_json(content: bytes, random: Random) -> bytes:
    """Tell lies in values, keys and structure; sometimes damage how they are written."""
    tree = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        tree = _with_lie(tree, random)
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5, indent=random.choice((None, 2)))
    match random.randrange(16):
        case 0:
            text = text.replace("{", '{"x": ' + "[" * 100_000 + "]" * 100_000 + ", ", 1)
        case 1:
            text = text.replace("{", '{"x": ' + "9" * random.choice((20, 400, 5_000)) + ", ", 1)
        case 2:  # each key twice
            text = text.replace("{", "{" + text.strip()[1:-1] + ", ", 1) if len(text) > 2 else text
        case 3:
            return text.encode(random.choice(("utf-16", "utf-8-sig", "utf-32-le")), "surrogatepass")
        case 4:
            text += random.choice(("}", "{}", "\0", "//"))
        case 5:
            text = random.choice(("[" * 100_000, '{"a":' * 100_000, "null", "[]", "3", '""', "", "NaN", "{}"))
        case 6 | 7:
            return damage_bytes(text.encode("utf-8", "surrogatepass"), random)
    return text.encode("utf-8", "surrogatepass")


def _with_lie(tree: Any, random: Random) -> Any:
    """Put something else in the place of one node, chosen by a walk from the root."""
    if not isinstance(tree, dict | list) or not tree or random.random() < 0.02:
        if isinstance(tree, int | float) and random.random() < 0.4:
            return random.choice((tree + 1, tree - 1, 2 * tree, -tree, str(tree), [tree], float(tree)))
        return random.choice(WRONG)
    if isinstance(tree, list):
        place = random.randrange(len(tree))
        return [*tree[:place], _with_lie(tree[place], random), *tree[place + random.choice((1, 1, 2)) :]]
    key = random.choice(list(tree))
    match random.randrange(8):
        case 0:
            return {name: value for name, value in tree.items() if name != key}
        case 1:
            return {
                random.choice((f"{key}x", "", "\ud800", key.upper())) if k == key else k: v for k, v in tree.items()
            }
        case 2:
            return tree | {random.choice(("extra", "kind", "model")): random.choice(WRONG)}
        case _:
            return tree | {key: _with_lie(tree[key], random)}


def damage_safetensors(content: bytes, random: Random) -> bytes:
    """Lie in the header of a safetensors file, or about its length; or write a sound file of other tensors."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    match random.randrange(10):
        case 0:
            return damage_bytes(content, random)
        case 1:
            lie = random.choice((0, 1, size - 1, size + 1, len(content), 10**8, 10**9, 2**63, 2**64 - 1))
            return struct.pack("<Q", lie) + content[8:]
        case 2:
            header = damage_json(header, random)
        case 3 | 4:
            entries = json.loads(header)
            name = random.choice([name for name in entries if name != "__metadata__"])
            field = random.choice(("dtype", "shape", "data_offsets"))
            if field == "dtype":
                lies = ("F64", "F16", "I8", "BOOL", "F8_E4M3", "U64", "C64", "x", None)
            else:
                lies = ([], [0], [0, 0], [-1], [2**63], [2**32, 2**32], [10**9], [4, 2**62], [0, len(data) + 8], "x")
            entries[name][field] = random.choice(lies)
            header = json.dumps(entries).encode()
        case 5:
            data = damage_bytes(data, random)
        case _:
            return save(_other_tensors(load(content), random))
    return struct.pack("<Q", len(header)) + header + data


def _other_tensors(tensors: dict[str, torch.Tensor], random: Random) -> dict[str, torch.Tensor]:
    """Change one tensor in a way that safetensors sees nothing wrong in."""
    name = random.choice(list(tensors))
    tensor = tensors.pop(name)
    flat = tensor.flatten()
    match random.randrange(8):
        case 0:
            return tensors
        case 1:
            return tensors | {f"{name}.x": tensor}
        case 2:
            return tensors | {name: tensor, random.choice(("x", "", "../x", "step", ".exp_avg")): torch.zeros(2)}
        case 3:
            dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
            return tensors | {name: tensor.to(random.choice(dtypes))}
        case 4:
            return tensors | {name: random.choice((flat, flat[:1], flat[:0], tensor[None], torch.zeros(()), flat[1:]))}
        case 5:
            return tensors | {name: torch.full_like(tensor, random.choice((127, -1, 0)))}
        case _:
            if tensor.is_floating_point() and tensor.numel():
                flat = flat.clone()
                wrong = random.choice((float("nan"), float("inf"), float("-inf"), 1e38, -1e38))
                flat[random.randrange(len(flat))] = wrong
            return tensors | {name: flat.reshape(tensor.shape)}


def damage_lines(content: bytes, random: Random) -> bytes:
    """Repeat, drop, swap and replace lines, or damage bytes."""
    lines = content.decode().split("\n")
    for _ in range(random.choice((1, 1, 2))):
        one, other = (random.randrange(len(lines)) for _ in range(2))
        match random.randrange(7):
            case 0:
                lines.insert(one, lines[other])
            case 1 if len(lines) > 1:
                del lines[one]
            case 2:
                lines[one], lines[other] = lines[other], lines[one]
            case 3:
                lines[one] += random.choice(("\r", "\0", " 1", " nan", " 1e999", "\ud800", " x"))
            case _:
                lines[one] = random.choice(LINES)
    text = random.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines).encode("utf-8", "surrogatepass")
    return damage_bytes(text, random) if random.random() < 0.3 else text


MEMBERS = (
    *("../x", "/tmp/x", "aclImdb/../../x", "aclImdb/train/pos/../../../../x", "x" * 300, "aclImdb/train/pos/0_9.txt"),
    *("aclImdb/train/pos/1_9.txt/", "./aclImdb/train/neg/3_1.txt", "aclImdb/train/pos/9_9.txt\0.exe", "a/" * 2_000),
    *("aclImdb/train/neg/\u0661_1.txt", "aclImdb/train/pos/" + "9" * 90 + "_9.txt", "\udcff/x", "con", ""),
)
"""Names that may lead out of a folder, stand twice, or break a parser."""

LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)

TEXTS = (b"", b" ", b"\xff\xfe", b"\0", "\u2028".encode(), b"good film", b"x" * 100_000, b"<br />", b'"')


def damage_archive(content: bytes, random: Random) -> bytes:
    """Put evil members among those of a .tar, then damage headers, content or the compressed file."""
    file = io.BytesIO()
    kind = random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as whole,
        tarfile.open(fileobj=file, mode="w", format=kind, errors="surrogateescape") as tar,
    ):
        members = whole.getmembers()
        evil = {random.randrange(len(members)) for _ in range(random.choice((0, 1, 1, 2)))}
        for place, member in enumerate(members):
            if place in evil:
                _add_evil(tar, random)
            if place not in evil or random.random() < 0.5:
                tar.addfile(member, whole.extractfile(member))
    damaged = file.getvalue()
    if random.random() < 0.4:
        damaged = _with_header_lie(damaged, random) if random.random() < 0.7 else damage_bytes(damaged, random)
    packed = random.choice((gzip.compress, lzma.compress))(damaged)
    match random.randrange(8):
        case 0 | 1:
            return damage_bytes(packed, random)
        case 2:
            return random.choice(
                (damaged, packed + b"\0" * 9, packed + packed, gzip.compress(packed), b"", packed[:-1])
            )
    return packed


def _add_evil(tar: tarfile.TarFile, random: Random) -> None:
    member = tarfile.TarInfo(random.choice(MEMBERS))
    content = random.choice(TEXTS)
    if random.random() < 0.4:
        member.type, member.linkname, content = random.choice(LINKS), random.choice(("/etc/passwd", "../x", "")), b""
    member.size = len(content)
    member.mode = 0o7777
    tar.addfile(member, io.BytesIO(content))


def _with_header_lie(content: bytes, random: Random) -> bytes:
    """Change a field of one member's header and put its checksum right again."""
    damaged = bytearray(content)
    start = 512 * random.choice(range(len(content) // 512))
    sizes = (
        b"77777777777\0",
        b"-0000000001\0",
        b"00000000000\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"zzzzzzzzzzzz",
    )
    place, value = random.choice(
        (
            *((124, size) for size in sizes),
            *((156, kind) for kind in (b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"D", b"\xff")),
            (0, b"../../../x\0"),
            (136, b"\xff" * 12),
            (257, b"xxxxxxxx"),
        )
    )
    damaged[start + place : start + place + len(value)] = value
    damaged[start + 148 : start + 156] = b" " * 8
    damaged[start + 148 : start + 156] = b"%06o\0 " % sum(damaged[start : start + 512])
    return bytes(damaged)


def damage_array(content: bytes, random: Random) -> bytes:
    """Damage a .npy file, or write a sound one of another shape or dtype."""
    if random.random() < 0.5:
        return damage_bytes(content, random)
    values = np.load(io.BytesIO(content))
    file = io.BytesIO()
    others = (values[..., :-1], values[None], values.astype(float), values.astype("S3"), values + 10**6, values * -1)
    np.save(file, random.choice(others))
    return file.getvalue()


Damage = Callable[[bytes, Random], bytes]
