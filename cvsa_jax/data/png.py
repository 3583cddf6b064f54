"""What of a PNG file its pixels need: damaged or enormous metadata must not keep them from being read."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Besides the critical chunks, whose names begin with a capital: transparency, and how to turn it.
_KEPT = (b"tRNS", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_TURNING = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")  # texts that say it, too


def without_metadata(encoded: bytes, texts: bool = True) -> bytes:
    """The file without chunks that say nothing about its pixels, and without those kept of which the checksum is wrong.
    What is cut off stays so; other files are given back as they are. `texts`: keep those that say how to turn it."""
    if not encoded.startswith(SIGNATURE):
        return encoded
    parts, place, pixels = [SIGNATURE], len(SIGNATURE), False
    while place + 8 <= len(encoded):
        length, kind = struct.unpack(">I4s", encoded[place : place + 8])
        end = place + 12 + length
        pixels |= kind == b"IDAT"
        turning = texts and not pixels and kind in _TEXTS and encoded.startswith(_TURNING, place + 8)
        if kind[:1].isupper() or ((kind in _KEPT or turning) and _is_sound(encoded[place:end])):
            parts.append(encoded[place:end])
        place = end
        if kind == b"IEND":
            break
    return b"".join(parts)


def _is_sound(chunk: bytes) -> bool:
    return len(chunk) >= 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
