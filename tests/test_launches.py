"""The launches of the torch backend on an accelerator: what docs/benchmarks.md says of them stays true."""

from __future__ import annotations

import re

import pytest
from root import ROOT

from benchmarks.launches import count

DOCUMENT = ROOT / "docs" / "benchmarks.md"


def test_launches_are_as_few_as_documented():
    """Within 5 %, since torch's own operations differ by version; by memory, of the counting script's defaults."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("### Launches on an accelerator")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| [\d,]+ \| [\d,]+ \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    documented = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}
    counted = {name: list(numbers) for name, numbers in count(16, 512, 512, by_cache=False)}
    assert counted.keys() == documented.keys() and len(counted) == 6
    for name, numbers in counted.items():
        assert numbers == pytest.approx(documented[name], rel=0.05), name
