"""Text that UTF-8 or a stream can hold, from names of files that are bytes of another encoding."""

from __future__ import annotations

import json
from typing import Any


def json_text(content: Any, encoding: str = "utf-8") -> str:
    """Plain values as indented strict JSON, with escapes if the text holds characters that `encoding` lacks."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(content, indent=2, allow_nan=False)
    return text


def shown(text: object) -> str:
    """Text that UTF-8 can hold: bytes of file names that are not UTF-8 become backslash escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
