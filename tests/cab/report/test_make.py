"""The written files: same bytes, problems named, nothing from the network, the verb's errors."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cab.report.make import make_report, report, top_of_each_pattern
from cab.report.terminal import print_costs
from cab.schema import Report as Config

NS = "noncausal_self"
VOID = {"meta", "link", "br", "path", "use", "input"}


def written(folder: Path) -> dict[str, bytes]:
    names = ("leaderboard.md", "index.html", "summary.txt", "records.csv", "records.parquet")
    files = [folder / name for name in names]
    files += [path for part in ("figures", "tables") for path in sorted((folder / part).iterdir())]
    return {path.name: path.read_bytes() for path in files}


def test_same_records_same_bytes(folder: Any, fill_folder: Any) -> None:
    fill_folder(folder, ["causal_self"])
    first = make_report(folder.path)
    once = written(folder.path)
    for path in (folder.path / "figures").iterdir():
        path.unlink()  # so that every figure is drawn anew
    make_report(folder.path)
    assert written(folder.path) == once
    make_report(folder.path)
    assert written(folder.path) == once
    assert {path.name for path in first.paths} == once.keys() - {"inputs.json"}


def small(folder: Any) -> Any:
    folder.certificate("sdpa", {NS: "certified"}, exact=True)
    folder.task("recall", [NS])
    folder.quality("sdpa", NS, "recall", np.linspace(0.8, 1.0, 30))
    return folder


def test_torn_and_repeated_lines_are_named_and_not_counted(folder: Any) -> None:
    small(folder)
    path = next(folder.store.records_folder.glob("*.jsonl"))
    line = path.read_text().strip().splitlines()[0]
    path.write_text(f'{line}\n{line}\n["not", "a", "row"]\n{line[:50]}')
    made = make_report(folder.path)
    assert [problem.split(": ")[0] for problem in made.problems] == [
        f"records/{path.name}:3",
        f"records/{path.name}:4",
        f"records/{path.name}:2",
    ]
    assert f"repeats {path.name}:1" in made.problems[2]
    assert len(pd.read_parquet(folder.path / "records.parquet")) == 1
    page = (folder.path / "index.html").read_text()
    assert all(f"{path.name}:{number}" in page for number in (2, 3, 4))


def test_torn_json_beside_the_records_is_named(folder: Any) -> None:
    small(folder)
    (folder.path / "certificates" / "torn.json").write_text('{"format": 1,')
    (folder.path / "plan.json").write_text('{"not": "a list"}')
    made = make_report(folder.path)
    assert any("certificates/torn.json" in problem for problem in made.problems)
    assert any("plan.json" in problem for problem in made.problems)


def test_a_rebuild_without_figures_keeps_the_old_ones_and_says_so(folder: Any) -> None:
    folder.certificate("linear", {NS: "certified"})
    folder.cost("linear", NS, 512, "ratio", 0.6, baseline="sdpa")
    make_report(folder.path)
    figure = folder.path / "figures" / "cost-length-NS.svg"
    before = figure.read_bytes()
    folder.cost("linear", NS, 4096, "ratio", 0.2, baseline="sdpa")
    make_report(folder.path, figures=False)
    assert figure.read_bytes() == before
    assert "drawn from earlier records" in (folder.path / "index.html").read_text()
    make_report(folder.path)
    assert figure.read_bytes() != before
    assert "drawn from earlier records" not in (folder.path / "index.html").read_text()


class Page(HTMLParser):
    """Collects what a well-formed page must agree on: nesting, ids, links, what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.scopes: list[str | None] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.links.append(str(values["href"]))
        if tag == "th":
            self.scopes.append(values.get("scope"))
        if tag != "a":
            self.loads += [str(values[name]) for name in ("src", "href", "xlink:href") if values.get(name)]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(filled: Any) -> None:
    filled.certificate("<b>evil</b>", {NS: "failed"})
    evil, newer = "</script><script>alert(1)</script>", "2026-02-01T00:00:00+00:00"
    filled.failed_quality("linear", "causal_self", "lm", "error", evil, metric="perplexity", started_at=newer)
    make_report(filled.path)
    text = (filled.path / "index.html").read_text()
    assert "alert(1)" in text
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(target.startswith(("#", "data:")) for target in page.loads)
    assert not re.search(r"url\((?!#)", text)
    assert set(page.scopes) == {"row", "col"}
    assert "<b>evil" not in text
    assert "<script>alert" not in text
    assert text.count("<svg") == 8
    assert len(text.encode()) < 1_500_000
    packed = text.split('id="details">')[1].split("</script>")[0]
    texts, cells = json.loads(zlib.decompress(base64.b64decode(packed)))
    numbers = {int(number) for number in re.findall(r'data-details="(\d+)"', text)}
    assert numbers == set(range(len(cells)))
    assert {place for cell in cells for place in cell} == set(range(len(texts)))
    assert any(evil in texts[place] for cell in cells for place in cell)


def test_markdown_tables_keep_their_shape(filled: Any) -> None:
    filled.failed_quality("linear", "causal_self", "lm", "error", "a | b\nc", metric="perplexity",
                          started_at="2026-02-01T00:00:00+00:00")  # fmt: skip
    make_report(filled.path, figures=False)
    lines = (filled.path / "leaderboard.md").read_text().splitlines()
    widths: list[int] = []
    for line in lines:
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(widths)) <= 1
            widths = []
    assert any("error: a \\| b c" in line for line in lines)


def test_top_lines_name_each_pattern(filled: Any) -> None:
    text = top_of_each_pattern(make_report(filled.path, figures=False))
    assert [line[:2] for line in text.splitlines() if not line.startswith(" ")] == ["NS", "CS", "NC", "CC"]
    assert "1=  sdpa: recall 0.98" in text


def test_the_verb_reports_every_folder(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small(folder)
    results = folder.path.parent.parent
    made = report(Config(results=str(results)))
    assert [item.folder for item in made] == [folder.path]
    assert str(folder.path / "index.html") in capsys.readouterr().out
    assert report(Config(results=str(results), dry_run=True)) == []


def test_no_records_is_one_line(tmp_path: Path) -> None:
    for config in (
        Config(results=str(tmp_path)),
        Config(folder=str(tmp_path)),
        Config(folder=str(tmp_path / "missing")),
    ):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
            report(config)
        assert "\n" not in str(caught.value)


def test_the_terminal_shows_what_was_timed_by_its_whole_name(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder.certificate("sdpa[impl=math]", {NS: "certified"})
    for replicate in range(3):
        folder.cost("sdpa[impl=math]", NS, 256, "ratio", 1.5, replicate=replicate, baseline="sdpa")
    folder.cost("softmax", NS, 256, "peak_extra_bytes", 1024.0)  # a baseline's memory alone
    print_costs(make_report(folder.path, figures=False))
    told = capsys.readouterr().out
    assert "sdpa[impl=math]" in told
    assert "softmax" not in told


def test_a_line_that_contradicts_an_earlier_one_is_named(folder: Any) -> None:
    small(folder)
    path = next(folder.store.records_folder.glob("*.jsonl"))
    row = json.loads(path.read_text().strip().splitlines()[0])
    later = {"value": row["value"] / 2, "started_at": "2030-01-01T00:00:00+00:00"}
    (path.parent / "z.jsonl").write_text(json.dumps(row | later) + "\n")
    (problem,) = [found for found in make_report(folder.path).problems if "z.jsonl" in found]
    assert problem.startswith(f"records/z.jsonl:1: {row['metric']} of run {row['run_key']} is {row['value'] / 2}")
    assert f"{path.name}:2" in problem


def test_lines_of_another_machine_are_named(folder: Any) -> None:
    small(folder)
    path = next(folder.store.records_folder.glob("*.jsonl"))
    row = json.loads(path.read_text().strip().splitlines()[0])
    (path.parent / "z.jsonl").write_text(json.dumps(row | {"hardware": "elsewhere", "run_key": "k"}) + "\n")
    assert any("1 of" in found and "hardware elsewhere" in found for found in make_report(folder.path).problems)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cards/task-recall.json", {"name": "recall", "metrics": 5}),
        ("certificates/sdpa.json", {"setting": "sdpa", "patterns": 3}),
        ("certificates/sdpa.json", None),
    ],
)
def test_a_file_of_another_form_is_left_out_and_named(folder: Any, name: str, content: Any) -> None:
    small(folder)
    (folder.path / name).write_text(json.dumps(content))
    assert any(found.startswith(f"{name}: not of the form") for found in make_report(folder.path).problems)
