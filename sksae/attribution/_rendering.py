"""Texts shaded by signed scores: as HTML, and as lines of a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..activations import Rows
from ..interpretation._rendering import _escaped, _on_one_line, visible

# Shades in light and in dark: red, green and blue of the strongest score above and below 0.
_STYLE = """
.sksae-scores { --up: 255 150 40; --down: 90 160 255; --ink: #1b1b1b; --paper: #fff;
  --faint: #666; }
@media (prefers-color-scheme: dark) {
  .sksae-scores { --up: 150 70 0; --down: 20 80 170; --ink: #eee; --paper: #161616;
    --faint: #999; }
}
.sksae-scores { color: var(--ink); background: var(--paper); padding: .5em 1em;
  font: 14px/1.6 system-ui, sans-serif; }
.sksae-scores h2 { font-size: 1.1em; margin: 1em 0 .3em; }
.sksae-scores table { border-collapse: collapse; }
.sksae-scores td { padding: .1em .8em .1em 0; vertical-align: top; text-align: start;
  background: none; color: inherit; white-space: pre-wrap; }
.sksae-scores td:first-child { color: var(--faint); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.sksae-scores span { border-radius: 3px; }
.sksae-scores .up { background: rgb(var(--up) / var(--a)); }
.sksae-scores .down { background: rgb(var(--down) / var(--a)); }
"""

# Units, and for each concept its name, the activation in each text, the score of each unit.
Shown = tuple[Rows, list[tuple[str, np.ndarray, np.ndarray]]]


class Piece(NamedTuple):
    """Characters of a text; the score is None between units."""

    string: str
    score: float | None


def pieces(rows: Rows, scores: np.ndarray, i: int) -> list[Piece]:
    """Cut a text into its units and what is between them.

    Units that share characters, such as the bytes of one emoji, are one piece with the sum
    of their scores.

    Examples
    --------
    >>> rows = Rows([0, 0], [0, 3], [2, 8], ["An apple!"])
    >>> [tuple(piece) for piece in pieces(rows, [0.5, -1.0], 0)]
    [('An', 0.5), (' ', None), ('apple', -1.0), ('!', None)]
    """
    assert rows.texts is not None
    text, cursor = rows.texts[i], 0
    found: list[Piece] = []
    for k in range(*np.searchsorted(rows.text, [i, i + 1]).tolist()):
        start, end, score = int(rows.start[k]), int(rows.end[k]), float(scores[k])
        if start < cursor and found and found[-1].score is not None:
            last = found.pop()
            found.append(Piece(last.string + text[cursor:end], (last.score or 0.0) + score))
        else:
            # The space that byte-level tokenizers count to a word is between words.
            solid = text[start:end].lstrip()
            start = max(cursor, end - len(solid)) if solid else start
            if start > cursor:
                found.append(Piece(text[cursor:start], None))
            found.append(Piece(text[start:end], score))
        cursor = max(cursor, end)
    return [*found, Piece(text[cursor:], None)] if cursor < len(text) else found


def html_page(shown: Shown) -> str:
    """Give a whole page that needs nothing else."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Attribution</title><style>:root { color-scheme: light dark; } body { margin: 0; }"
        f"</style></head>\n<body>{html_fragment(shown)}</body></html>\n"
    )


def html_fragment(shown: Shown) -> str:
    """Give what goes into a page or the cell of a notebook, its style included."""
    rows, concepts = shown
    sections = []
    for name, values, scores in concepts:
        lines = "".join(_row(rows, value, scores, i) for i, value in enumerate(values))
        sections.append(f"<section><h2>{_escaped(name)}</h2><table>{lines}</table></section>\n")
    return f'<div class="sksae-scores"><style>{_STYLE}</style>\n{"".join(sections)}</div>'


def _row(rows: Rows, value: float, scores: np.ndarray, i: int) -> str:
    cut = pieces(rows, scores, i)
    strongest = max((abs(piece.score or 0.0) for piece in cut), default=0.0)
    shown = "".join(_shaded(piece, strongest) for piece in cut)
    return f'<tr><td>{value:.3g}</td><td dir="auto">{shown}</td></tr>\n'


def _shaded(piece: Piece, strongest: float) -> str:
    if not piece.score or not np.isfinite(strongest):
        return _escaped(piece.string)
    side, share = "up" if piece.score > 0 else "down", abs(piece.score) / strongest
    string = _escaped(visible(piece.string))
    return f'<span class="{side}" style="--a:{share:.2f}" title="{piece.score:.3g}">{string}</span>'


def plain_text(shown: Shown) -> str:
    """Give lines of text, each unit with its score in brackets."""
    return "\n".join(_lines(shown))


def _lines(shown: Shown) -> Iterator[str]:
    rows, concepts = shown
    for name, values, scores in concepts:
        yield _on_one_line(name)
        for i, value in enumerate(values):
            line = "".join(_bracketed(piece) for piece in pieces(rows, scores, i))
            yield f"  {value:8.3g}  {line}"


def _bracketed(piece: Piece) -> str:
    if not piece.score:
        return _on_one_line(piece.string)
    return f"[{_on_one_line(visible(piece.string))}|{piece.score:+.2g}]"
