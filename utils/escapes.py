"""JSON that an encoding can hold, also of names of files that are bytes of another one."""

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
