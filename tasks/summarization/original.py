"""Multi-News in its published layout: per part, the articles and the summaries, one example per line.

    <folder>/train.src  train.tgt  val.src  val.tgt  test.src  test.tgt           also .src.cleaned, .src.txt, .tgt.txt

A line of ``.src`` holds the news articles on one event, with ``|||||`` (``story_separator_special_tag`` in the
preprocessed release) after each; ``NEWLINE_CHAR`` stands for the line breaks inside. The same line of ``.tgt`` is the
summary. The split is the authors' (44,972 / 5,622 / 5,622 examples).

Source: A. Fabbri et al., "Multi-News: a Large-Scale Multi-Document Summarization Dataset and Abstractive Hierarchical
Model", ACL 2019, arXiv:1906.01749; the repository Alex-Fabbri/Multi-News, whose README links the files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from tasks.contract import Split
from tasks.published import MULTI_NEWS
from tasks.sources import DataUnavailable
from tasks.summarization.data import Article
from tasks.summarization.tokens import words

NAME = "multi_news"
DESCRIPTION = "Multi-News (Fabbri et al., ACL 2019): news articles on one event, and a summary by an editor"
LICENCE = "text of newser.com and of the cited outlets, for research only; not redistributed here"
STORY_SEPARATOR = "|||||"

_PARTS: Mapping[Split, str] = {"train": "train", "validation": "val", "test": "test"}
_SOURCE_ENDINGS = (".src.cleaned", ".src", ".src.txt")
_TARGET_ENDINGS = (".tgt", ".tgt.txt")
_SEPARATORS = re.compile(r"\s*(?:\|\|\|\|\||story_separator_special_tag)\s*")


def read(folder: Path) -> Mapping[Split, list[Article]]:
    """The three parts. Training examples whose articles also stand in another part are left out.

    Raises:
        DataUnavailable: a file is missing.
        ValueError: a file is not UTF-8, files of a part differ in their number of lines, or a line is empty.
    """
    if not any(folder.glob("train.*")):
        MULTI_NEWS.into(folder)
    parts = {split: _read_part(folder, stem) for split, stem in _PARTS.items()}
    held_out = {article.key for article in (*parts["validation"], *parts["test"])}
    kept = [article for article in parts["train"] if article.key not in held_out]
    if not kept:
        raise ValueError(f"{folder}: every training example also stands in the validation or test part")
    return {**parts, "train": kept}


def _read_part(folder: Path, stem: str) -> list[Article]:
    source_path, target_path = _find(folder, stem, _SOURCE_ENDINGS), _find(folder, stem, _TARGET_ENDINGS)
    sources, targets = _lines(source_path), _lines(target_path)
    if len(sources) != len(targets):
        raise ValueError(f"{target_path} has {len(targets)} lines, and {source_path.name} has {len(sources)}")
    if not sources:
        raise ValueError(f"{source_path} is empty")
    articles = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1):
        text, summary = _text(source), " ".join(target.replace("NEWLINE_CHAR", " ").split())
        for path, content in ((source_path, text.replace(STORY_SEPARATOR, "")), (target_path, summary)):
            if not words(content):
                raise ValueError(f"{path}, line {number}: no words; take the line out of both files")
        articles.append(Article(hashlib.sha256(text.encode()).hexdigest(), text, summary))
    return articles


def _find(folder: Path, stem: str, endings: tuple[str, ...]) -> Path:
    for ending in endings:
        if (folder / f"{stem}{ending}").is_file():
            return folder / f"{stem}{ending}"
    wanted = " or ".join(f"{stem}{ending}" for ending in endings)
    raise DataUnavailable(
        f"Multi-News: no {wanted} in {folder}; put the files that github.com/Alex-Fabbri/Multi-News links there"
        " (another folder: task.data_root=FOLDER)"
    )


def _lines(path: Path) -> list[str]:
    """Split at line feeds only: news text holds other characters that Python takes for line breaks."""
    try:
        content = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}: corrupt, or not the published file") from error
    return content.removesuffix("\n").split("\n") if content else []


def _text(line: str) -> str:
    """The articles with their line breaks, ``|||||`` on a line of its own between them."""
    stories = _SEPARATORS.split(line.replace("NEWLINE_CHAR", "\n"))
    return f"\n{STORY_SEPARATOR}\n".join(story.strip() for story in stories if story.strip())
