"""What docs/DROPIN.md shows, run as it stands there, each block in a namespace of its own."""

import re
from pathlib import Path

import pytest
import torch
from pretrained_families import make

DOCS = Path(__file__).parents[3] / "docs" / "DROPIN.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split()[1] for block in BLOCKS])
def test_a_block_runs(block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("bert", "eager").save_pretrained(tmp_path)
    names: dict[str, object] = {}
    exec(block.replace('"bert-base-uncased"', repr(str(tmp_path))), names)
    assert isinstance(names["model"], torch.nn.Module)
    if "print" in block:
        assert "relative_error" in capsys.readouterr().out
