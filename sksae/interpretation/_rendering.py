"""Examples of concepts as a page of HTML, and as lines of a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

# Shades of a page in light and in dark: red, green and blue of the strongest activation, and
# the colors of paper and ink. Ink on the strongest shade has a contrast above 5 in both.
_STYLE = """
.sksae-examples { --shade: 255 150 40; --ink: #1b1b1b; --paper: #fff; --faint: #666; }
@media (prefers-color-scheme: dark) {
  .sksae-examples { --shade: 150 70 0; --ink: #eee; --paper: #161616; --faint: #999; }
}
.sksae-examples { color: var(--ink); background: var(--paper); padding: .5em 1em;
  font: 14px/1.6 system-ui, sans-serif; }
.sksae-examples h2 { font-size: 1.1em; margin: 1em 0 .3em; }
.sksae-examples table { border-collapse: collapse; }
.sksae-examples td { padding: .1em .8em .1em 0; vertical-align: top; text-align: start;
  background: none; color: inherit; }
.sksae-examples td:not(:last-child) { color: var(--faint); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.sksae-examples span { border-radius: 3px; background: rgb(var(--shade) / var(--a)); }
.sksae-examples b { text-decoration: underline; }
"""

_VISIBLE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥", " ": "␣"})
# Characters that would steer a terminal or be invalid on a page.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")


class Piece(NamedTuple):
    """Characters of a context; the activation is None between units."""

    string: str
    activation: float | None
    is_peak: bool


def visible(unit: str) -> str:
    """Give a unit of white space alone by signs that stand for it, others as they are."""
    return unit if unit.strip() else unit.translate(_VISIBLE)


def pieces(example: Any) -> list[Piece]:
    """Cut a context into its units and what is between them.

    Units that share characters, such as the bytes of one emoji, are one piece with the
    largest of their activations.
    """
    found: list[Piece] = []
    cursor = 0
    units = zip(example.units, example.spans, example.activations, strict=True)
    for i, (unit, (start, end), activation) in enumerate(units):
        is_peak = i == example.peak
        if start < cursor and end > start:
            last = found.pop()
            string = last.string + example.context[cursor:end]
            strongest = max(activation, last.activation or 0.0)
            found.append(Piece(string, strongest, is_peak or last.is_peak))
        else:
            if start > cursor:
                found.append(Piece(example.context[cursor:start], None, False))
            # A special token stands for no characters.
            string = example.context[start:end] if end > start else unit
            string = visible(string) if activation > 0 else string
            found.append(Piece(string, activation, is_peak))
        cursor = max(cursor, end)
    return found


Named = Iterable[tuple[str, Sequence[Any] | None]]


def html_page(named: Named) -> str:
    """Give a whole page that needs nothing else."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Concepts</title><style>:root { color-scheme: light dark; } body { margin: 0; }"
        f"</style></head>\n<body>{html_fragment(named)}</body></html>\n"
    )


def html_fragment(named: Named) -> str:
    """Give what goes into a page or the cell of a notebook, its style included."""
    concepts = "".join(_concept(name, examples) for name, examples in named)
    return f'<div class="sksae-examples"><style>{_STYLE}</style>\n{concepts}</div>'


def _concept(name: str, examples: Sequence[Any] | None) -> str:
    head = f"<section><h2>{_escaped(name)}</h2>"
    if examples is None:
        return f"{head}<p>No unit activates this concept.</p></section>\n"
    examples = list(examples)
    strongest = max(example.activation for example in examples)
    lines = "".join(_line(example, strongest) for example in examples)
    return f"{head}<table>{lines}</table></section>\n"


def _line(example: Any, strongest: float) -> str:
    shown = "".join(_shaded(piece, strongest) for piece in pieces(example))
    return (
        f"<tr><td>{_escaped(example.quantile)}</td><td>{example.activation:.3g}</td>"
        f'<td dir="auto">{shown}</td></tr>\n'
    )


def _shaded(piece: Piece, strongest: float) -> str:
    string = _escaped(piece.string)
    if piece.is_peak:
        string = f"<b>{string}</b>"
    share = _share(piece, strongest)
    if not share:
        return string
    return f'<span style="--a:{share:.2f}" title="{piece.activation:.3g}">{string}</span>'


def _escaped(string: str) -> str:
    return html.escape(string.translate(_CONTROLS))


def _share(piece: Piece, strongest: float) -> float:
    """Give an activation beside the strongest one, 0 where there is none above 0."""
    return min(1.0, max(0.0, piece.activation or 0.0) / strongest)


def plain_text(named: Named, ansi: bool = False) -> str:
    """Give lines of text: shaded by codes that terminals know, or with brackets."""
    return "\n".join(line for name, examples in named for line in _lines(name, examples, ansi))


def _lines(name: str, examples: Sequence[Any] | None, ansi: bool) -> Iterator[str]:
    yield _on_one_line(name)
    if examples is None:
        return
    examples = list(examples)
    strongest = max(example.activation for example in examples)
    width = max(len(example.quantile) for example in examples)
    for example in examples:
        mark = (lambda piece: _ansi(piece, strongest)) if ansi else _bracketed
        shown = "".join(mark(piece) for piece in pieces(example))
        yield f"  {example.quantile:<{width}} {example.activation:8.3g}  {shown}"


def _bracketed(piece: Piece) -> str:
    string = _on_one_line(piece.string)
    if not _share(piece, 1.0):
        return string
    return f"[[{string}]]" if piece.is_peak else f"[{string}]"


def _ansi(piece: Piece, strongest: float) -> str:
    string, share = _on_one_line(piece.string), _share(piece, strongest)
    if not share:
        return string
    # Black on a shade between cream and orange, so that it reads on any terminal.
    green, blue = round(240 - 90 * share), round(210 - 170 * share)
    weight = "1;4;" if piece.is_peak else ""
    return f"\x1b[{weight}38;2;0;0;0;48;2;255;{green};{blue}m{string}\x1b[0m"


def _on_one_line(string: str) -> str:
    return re.sub(r"\s+", " ", string.translate(_CONTROLS))
