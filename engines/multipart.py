"""A form with files, as browsers send it: multipart/form-data (RFC 7578)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence


def form(fields: Mapping[str, object], files: Sequence[tuple[str, str, bytes]]) -> tuple[bytes, str]:
    """A form's body and its media type.

    Args:
        fields: name -> value, sent as text in UTF-8. The names are this pack's own, and plain.
        files: (name of the field, file name, a PNG); a name may come several times.
    """
    while True:
        boundary = secrets.token_hex(16)
        texts = {name: str(value).encode("utf-8") for name, value in fields.items()}
        if not any(boundary.encode() in content for content in (*texts.values(), *(file[2] for file in files))):
            break
    body = bytearray()
    for name, text in texts.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        body += text + b"\r\n"
    for name, file, content in files:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'.encode()
        body += b"Content-Type: image/png\r\n\r\n" + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return bytes(body), f"multipart/form-data; boundary={boundary}"
