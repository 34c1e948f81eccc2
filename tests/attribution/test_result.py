"""What an attribution can be asked for, and how it shows itself."""

import numpy as np
import pytest

from sksae.activations import Rows
from sksae.attribution import InputAttribution

TEXTS = ["An <apple>", "", "Sea\x1b[31m sky"]


def made(scores, values, **labels):
    rows = Rows([0, 0, 2, 2], [0, 3, 0, 8], [2, 10, 3, 12], TEXTS)
    shown = {
        "rows": rows,
        "delta": None,
        "baseline_values": np.zeros_like(values),
        "method": "occlusion",
        "granularity": "word",
        "reduction": "sum",
        "baseline": "[MASK]",
    }
    return InputAttribution(scores=np.array(scores), values=np.array(values), **(shown | labels))


@pytest.fixture
def one():
    return made([1.0, -2.0, 0.5, 0.0], [3.0, 0.0, 0.25], concept=7, names=["<b>fruit"])


@pytest.fixture
def two():
    scores = [[1.0, 0], [-2.0, 1], [0.5, 2], [0.0, 3]]
    return made(scores, np.ones((3, 2)), concept=np.array([7, 9]), names=["fruit", "water"])


def test_a_sequence_of_texts(one, two):
    assert len(one) == 3
    assert [list(scores) for scores in one] == [[1.0, -2.0], [], [0.5, 0.0]]
    assert one[-1].tolist() == [0.5, 0.0]
    assert two[2].tolist() == [[0.5, 2], [0.0, 3]]
    with pytest.raises(IndexError, match="There are 3 texts, and text 3 is none of them."):
        one[3]
    with pytest.raises(TypeError):
        one["a"]


def test_an_array(one):
    assert np.asarray(one) is one.scores
    assert np.array(one) is not one.scores
    assert np.asarray(one, dtype=np.float32).dtype == np.float32
    assert np.mean(one) == pytest.approx(-0.125)


def test_frames(one, two):
    frame = one.to_frame()
    assert list(frame.columns) == ["text", "start", "end", "unit", "score"]
    assert frame["unit"].tolist()[:3] == ["An", "<apple>", "Sea"]
    long = two.to_frame()
    assert long["concept"].tolist() == [7] * 4 + [9] * 4
    assert long["score"].tolist() == [1.0, -2.0, 0.5, 0.0, 0.0, 1.0, 2.0, 3.0]


def test_pages_escape_what_they_show(one, two):
    page = one.to_html()
    assert "&lt;b&gt;fruit" in page
    assert '<span class="down" style="--a:1.00" title="-2">&lt;apple&gt;</span>' in page
    assert '<span class="up" style="--a:0.50" title="1">An</span>' in page
    assert "\x1b" not in page
    assert one._repr_html_() in page
    assert two._repr_html_().count("<section>") == 2


def test_a_notebook_shows_the_beginning():
    n = 30
    found = made(
        np.ones((4, 9)),
        np.ones((n, 9)),
        concept=np.arange(9),
        names=list("abcdefghi"),
        rows=Rows([0, 1, 2, 29], [0] * 4, [1] * 4, ["x"] * n),
    )
    assert found._repr_html_().count("<tr>") == 5 * 20
    assert found.to_html().count("<tr>") == 9 * n
    assert repr(found) == "InputAttribution(a, b, c, ...; occlusion, 30 texts, 4 words)"


def test_no_units_at_all():
    found = made(
        np.zeros((0, 2)),
        np.zeros((1, 2)),
        concept=[0, 1],
        names=["a", "b"],
        rows=Rows([], [], [], [""]),
    )
    assert len(found) == 1
    assert found[0].shape == (0, 2)
    assert found.to_text().splitlines() == ["a", "         0  ", "b", "         0  "]
    assert found.to_frame().empty
    assert "<section>" in found._repr_html_()


def test_lines(one):
    assert one.to_text().splitlines()[:3] == [
        "<b>fruit",
        "         3  [An|+1] [<apple>|-2]",
        "         0  ",
    ]
    assert "\x1b" not in one.to_text()
    assert repr(one) == "InputAttribution(<b>fruit; occlusion, 3 texts, 4 words)"


def test_units_that_share_characters_are_shown_once():
    rows = Rows([0, 0, 0], [0, 1, 1], [1, 2, 2], ["a😀!"])
    found = InputAttribution(
        scores=np.array([0.0, 1.0, -0.25]),
        rows=rows,
        values=np.ones(1),
        baseline_values=np.zeros(1),
        delta=None,
        concept=0,
        names=["x"],
        method="lime",
        granularity="token",
        reduction="max",
        baseline="zero",
    )
    assert found.to_text().endswith("a[😀|+0.75]!")
