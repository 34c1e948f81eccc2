import pickle
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.pipeline import Pipeline

from sksae import TopKSAE, TransformerActivationExtractor
from sksae.activations import Rows
from sksae.activations._rows import rows_frame, rows_of, with_rows
from sksae.interpretation import MaxActivatingExamples
from sksae.interpretation._rendering import pieces

TEXTS = ["the ship sails", "", "a sea, a ship", "rock"]
# the ship sails / a sea , a ship / rock
ROWS = Rows(
    [0, 0, 0, 2, 2, 2, 2, 2, 3],
    [0, 4, 9, 0, 2, 5, 7, 9, 0],
    [3, 8, 14, 1, 5, 6, 8, 13, 4],
    TEXTS,
)
VALUES = np.zeros((9, 3))
VALUES[[1, 2, 4, 7], 0] = [3.0, 0.5, 2.0, 2.5]
VALUES[8, 2] = 1.0


def carrying(kind):
    if kind == "frame":
        return rows_frame(VALUES, ROWS).set_axis(["a", "b", "c"], axis=1)
    return with_rows(sparse.csr_matrix(VALUES) if kind == "csr" else VALUES.copy(), ROWS)


def top_only(**params):
    return MaxActivatingExamples(n_per_quantile=0, **params)


def random_codes(rows, n_concepts=12, density=0.2, seed=0):
    """Give codes with many equal activations."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 6, (len(rows), n_concepts)).astype(np.float32)
    values *= rng.random(values.shape) < density
    values[:, 3] = 0
    return with_rows(sparse.csr_matrix(values), rows)


def units_by_loops(rows):
    """Give the units of each text, in reading order, as (start, end, row numbers)."""
    units = {}
    for row, (t, s, e) in enumerate(zip(rows.text, rows.start, rows.end, strict=True)):
        listed = units.setdefault(int(t), [])
        if listed and listed[-1][:2] == (s, e) and e > s:
            listed[-1][2].append(row)
        else:
            listed.append((int(s), int(e), [row]))
    return units


def top_by_loops(column, rows, n_top, reach):
    """Give (text, context, units, activations, peak) of the best unit of each text."""
    found = []
    for text, units in units_by_loops(rows).items():
        values = [max(column[r] for r in members) for _, _, members in units]
        best = max(values)
        if best > 0:
            at = values.index(best)
            near = range(max(0, at - reach), min(len(units), at + reach + 1))
            strings = [rows.units[units[i][2][0]] for i in near]
            whole = rows.texts[text]
            spans = [units[i][:2] for i in near]
            context = whole[min(s for s, _ in spans) : max(e for _, e in spans)].strip()
            kept = tuple(float(values[i]) for i in near)
            found.append((best, text, context, tuple(strings), kept, at - near[0]))
    found.sort(key=lambda one: (-one[0], one[1]))
    return [one[1:] for one in found[:n_top]]


@pytest.mark.parametrize("kind", ["dense", "csr", "frame"])
def test_examples_that_are_known_beforehand(kind):
    found = top_only(context=1).fit(carrying(kind)).interpretations_
    first, second = found[0]
    assert (first.text, first.start, first.end, first.context) == (0, 0, 14, "the ship sails")
    assert (first.units, first.activations) == (("the", "ship", "sails"), (0.0, 3.0, 0.5))
    assert (first.unit, first.activation, first.peak, first.quantile) == ("ship", 3.0, 1, "top")
    assert (second.context, second.units, second.peak) == ("a ship", ("a", "ship"), 1)
    assert found[1] is None
    assert [e.context for e in found[2]] == ["rock"]
    assert [e.text for e in top_only(n_top=1).fit(carrying(kind)).interpretations_[0]] == [0]


@pytest.mark.parametrize("kind", ["dense", "csr", "frame"])
def test_names_are_the_units_of_the_top_examples(kind):
    X = carrying(kind)
    step = top_only()
    assert step.fit_transform(X, [1]) is X
    assert list(step.get_feature_names_out()) == ["0: ship", "1: (dead)", "2: rock"]
    some = top_only(concepts_indices=[2]).fit(X)
    assert list(some.get_feature_names_out()) == ["0", "1", "2: rock"]
    assert rows_of(step.transform(X)) == ROWS


SENTENCES = [
    "The sea is blue, and the sky above the sea is blue too.",
    "Models don't read texts; they read tokens 😀🎉 naïvely.",
    "",
    "the the the",
    "日本語 and <b>markup</b> & more",
    "sea",
]


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_gpt2"])
@pytest.mark.parametrize("reach", [0, 2, 50])
def test_top_examples_are_what_loops_give(model, reach, request):
    tokenizer = request.getfixturevalue(
        "bert_tokenizer" if model == "tiny_bert" else "byte_tokenizer"
    )
    acts = TransformerActivationExtractor(
        request.getfixturevalue(model), 0, tokenizer=tokenizer
    ).fit_transform(SENTENCES)
    codes = random_codes(acts.rows)
    found = top_only(n_top=3, context=reach).fit(codes).interpretations_
    dense = codes.toarray()
    for concept, examples in found.items():
        expected = top_by_loops(dense[:, concept], acts.rows, 3, reach)
        # White space at the end may be a unit of its own.
        given = [
            (e.text, e.context.strip(), e.units, e.activations, e.peak) for e in examples or ()
        ]
        assert given == expected
    assert found[3] is None
    dense_found = (
        top_only(n_top=3, context=reach)
        .fit(np.asarray(dense), units=acts.rows.units, groups=acts.rows.text)
        .interpretations_
    )
    assert [c for c, e in dense_found.items() if e] == [c for c, e in found.items() if e]


def many_rows(n_texts=30, n_units=20):
    text = np.repeat(np.arange(n_texts), n_units)
    start = np.tile(np.arange(n_units) * 3, n_texts)
    texts = [
        " ".join(f"{chr(97 + t % 26)}{u % 10}" for u in range(n_units)) for t in range(n_texts)
    ]
    return Rows(text, start, start + 2, texts)


def test_quantiles_are_parts_of_equal_size_of_the_ranked_units():
    rows = many_rows()
    codes = random_codes(rows, n_concepts=5, density=0.3)
    codes.data += np.random.default_rng(1).random(codes.nnz).astype(np.float32) / 2  # no ties
    step = MaxActivatingExamples(4, n_quantiles=3, n_per_quantile=5, random_state=0).fit(codes)
    for concept, examples in step.interpretations_.items():
        if examples is None:
            continue
        ranked = np.sort(codes.toarray()[:, concept])[::-1]
        ranked = ranked[ranked > 0]
        n = len(ranked)
        places = {(e.text, e.start + e.spans[e.peak][0]) for e in examples}
        assert len(places) == len(examples) == 4 + 15
        labels = [e.quantile for e in examples]
        assert labels == ["top"] * 4 + ["3/3"] * 5 + ["2/3"] * 5 + ["1/3"] * 5
        for label, (a, b) in {
            "3/3": (0, n // 3),
            "2/3": (n // 3, 2 * n // 3),
            "1/3": (2 * n // 3, n),
        }.items():
            drawn = [e for e in examples if e.quantile == label]
            assert len({e.text for e in drawn}) == 5
            activations = [e.activation for e in drawn]
            assert activations == sorted(activations, reverse=True)
            assert set(activations) <= set(ranked[a:b].tolist())


def test_every_unit_of_a_part_can_be_drawn():
    """With one unit a text, each of the five of a part comes up in a fifth of the draws."""
    codes = np.arange(1.0, 12.0)[:, None]
    units = [f"u{i}" for i in range(11)]
    drawn = [
        e.unit
        for seed in range(300)
        for e in MaxActivatingExamples(1, n_quantiles=2, n_per_quantile=1, random_state=seed)
        .fit(codes, units=units)
        .interpretations_[0][1:]
    ]
    counts = pd.Series(drawn).value_counts()
    assert set(counts.index) == {f"u{i}" for i in range(10)}  # the top one is not drawn again
    # 11 ranked units: 5 in the upper half, its top one shown, and 6 in the lower one.
    assert counts[[f"u{i}" for i in range(6, 10)]].between(45, 105).all()
    assert counts[[f"u{i}" for i in range(6)]].between(25, 80).all()


def test_fewer_units_than_asked_for():
    step = MaxActivatingExamples(10, n_quantiles=5, n_per_quantile=4, random_state=0)
    found = step.fit(carrying("csr")).interpretations_
    assert [(e.quantile, e.activation) for e in found[0]] == [
        ("top", 3.0),
        ("top", 2.5),
        ("2/5", 2.0),
        ("1/5", 0.5),
    ]
    one = MaxActivatingExamples(random_state=0).fit(np.ones((1, 1)), units=["x"])
    assert [e.quantile for e in one.interpretations_[0]] == ["top"]


def test_a_concept_s_examples_do_not_depend_on_the_other_concepts():
    codes = random_codes(many_rows())
    whole = MaxActivatingExamples(random_state=3).fit(codes).interpretations_
    again = (
        MaxActivatingExamples(random_state=3)
        .fit(codes.toarray(), units=codes.rows.units, groups=codes.rows.text)
        .interpretations_
    )
    some = MaxActivatingExamples(random_state=3, concepts_indices=[7, 2]).fit(codes)
    other = MaxActivatingExamples(random_state=4).fit(codes).interpretations_
    assert list(some.interpretations_) == [7, 2]
    assert some.interpretations_ == {c: whole[c] for c in (7, 2)}
    assert again == whole
    assert other != whole


def test_the_order_of_the_rows_does_not_matter():
    codes = random_codes(many_rows(8))
    shuffled = codes[np.random.default_rng(0).permutation(codes.shape[0])]
    found = MaxActivatingExamples(random_state=0).fit(codes).interpretations_
    assert MaxActivatingExamples(random_state=0).fit(shuffled).interpretations_ == found


def test_windows_of_a_long_text_do_not_repeat_tokens(tiny_bert, bert_tokenizer):
    words = [f"sea {i}" for i in range(40)]
    texts = [", ".join(words), "the sea"]
    params = {"tokenizer": bert_tokenizer, "granularity": "all_tokens", "long_text": "windows"}
    acts = TransformerActivationExtractor(tiny_bert, 0, max_length=16, **params)
    codes = with_rows(np.ones((len(acts.fit_transform(texts)), 1)), acts.transform(texts).rows)
    example = top_only(context=1000).fit(codes).interpretations_[0][0]
    assert example.context == texts[0]
    assert (example.units[0], example.units[-1]) == ("[CLS]", "[SEP]")
    assert "".join(example.units[1:-1]) == texts[0].replace(" ", "")
    assert "".join(p.string for p in pieces(example)) == f"[CLS]{texts[0]}[SEP]"


def test_tokens_that_share_characters_are_one_unit(tiny_gpt2, byte_tokenizer):
    texts = ["a 😀 b"]
    acts = TransformerActivationExtractor(tiny_gpt2, 0, tokenizer=byte_tokenizer)
    rows = acts.fit_transform(texts).rows
    assert list(rows.units).count("😀") > 1
    codes = with_rows(np.arange(1.0, len(rows) + 1)[:, None], rows)
    example = top_only().fit(codes).interpretations_[0][0]
    last_of_emoji = max(i for i, unit in enumerate(rows.units) if unit == "😀")
    assert example.units.count("😀") == 1
    assert example.activations[example.units.index("😀")] == last_of_emoji + 1
    assert "".join(p.string for p in pieces(example)).replace("␣", " ") == texts[0]


def test_a_space_before_the_first_token_of_an_emoji_is_no_character_of_its_own():
    # As the tokenizers of GPT-2 and SmolLM cut.
    rows = Rows([0] * 5, [0, 3, 4, 4, 5], [3, 5, 5, 5, 9], ["the 🌊 sea"])
    codes = with_rows(np.array([[0.0], [1.0], [4.0], [2.0], [3.0]]), rows)
    example = top_only(context=1).fit(codes).interpretations_[0][0]
    assert example.units == ("the", "🌊", "sea")
    assert (example.activations, example.unit) == ((0.0, 4.0, 3.0), "🌊")
    assert example.context == "the 🌊 sea"


def test_spans_that_overlap_in_part_show_each_character_once():
    rows = Rows([0, 0, 0], [0, 2, 6], [4, 5, 8], ["abcdefgh"])
    example = (
        top_only().fit(with_rows(np.array([[1.0], [2.0], [0.5]]), rows)).interpretations_[0][0]
    )
    assert [tuple(p) for p in pieces(example)] == [
        ("abcde", 2.0, True),
        ("f", None, False),
        ("gh", 0.5, False),
    ]


def test_units_and_groups_stand_for_texts():
    units = ["the", "sea", "", "a", "ship"]
    X = np.array([[0.0], [1.0], [0.0], [0.5], [2.0]])
    found = top_only().fit(X, units=units, groups=[7, 7, 7, 2, 2]).interpretations_[0]
    assert [(e.text, e.context, e.unit) for e in found] == [
        (2, "a ship", "ship"),
        (7, "the sea ", "sea"),
    ]
    mixed = top_only().fit(X, units=units, groups=[7, 2, 7, 2, 7]).interpretations_[0]
    assert [(e.text, e.units) for e in mixed] == [(7, ("the", "", "ship")), (2, ("sea", "a"))]
    alone = top_only().fit(X, units=units).interpretations_[0]
    assert [(e.text, e.units) for e in alone] == [(4, ("ship",)), (1, ("sea",)), (3, ("a",))]


def test_units_win_over_the_strings_of_the_rows():
    step = top_only().fit(carrying("csr"), units=list("abcdefghi"))
    assert step.interpretations_[0][0].context == "a b c"
    frame = carrying("frame")
    frame.attrs.clear()
    with pytest.raises(ValueError, match="know the numbers of their texts but not the texts"):
        top_only().fit(frame)
    found = top_only().fit(frame, units=list("abcdefghi")).interpretations_[0]
    assert [e.context for e in found] == ["a b c", "d e f g h"]


def test_negative_activations_are_not_active():
    found = top_only().fit(np.array([[-1.0, -2.0], [1.0, -1.0]]), units=["a", "b"])
    assert [e.unit for e in found.interpretations_[0]] == ["b"]
    assert found.interpretations_[1] is None


def test_units_of_white_space_have_a_visible_name():
    rows = Rows([0, 0, 1], [0, 1, 0], [1, 2, 1], ["a\n", " "])
    step = top_only().fit(with_rows(np.array([[0.0], [2.0], [1.0]]), rows))
    assert list(step.get_feature_names_out()) == ["0: ↵, ␣"]
    assert step.to_text().splitlines()[1:] == ["  top        2  a[[↵]]", "  top        1  [[␣]]"]


class Content(HTMLParser):
    """Collects what a page shows, and the elements that it is made of."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.cells, self.shades = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        if tag == "td":
            self.cells.append("")
        if tag == "span":
            self.shades.append(dict(attrs)["style"])
        assert not {"src", "href", "onclick"} & {name for name, _ in attrs}

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data.rstrip("\n")


NASTY = ["<script>alert('x')</script> & \"more\" 日本 😀 é", "plain words here"]


def nasty():
    spans = [(0, 8), (8, 18), (18, 27), (28, 29), (30, 36), (37, 39), (40, 41), (42, 43)]
    starts, ends = zip(*spans, strict=True)
    rows = Rows([0] * 8 + [1], [*starts, 0], [*ends, 5], NASTY)
    values = np.array([[4.0, 0, 1.0, 0, 0, 2.0, 1.0, 0, 3.0]]).T
    return top_only(context=20).fit(with_rows(values, rows))


def test_pages_escape_and_show_the_whole_context():
    page = nasty().to_html()
    content = Content(page)
    assert "script" not in content.elements
    assert {"html", "style", "table", "span", "b"} <= content.elements
    assert content.cells == ["top", "4", NASTY[0], "top", "3", "plain"]
    assert content.shades == [f"--a:{a}" for a in ("1.00", "0.25", "0.50", "0.25", "0.75")]
    assert "&lt;script&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page and "url(" not in page and "@import" not in page


def luminance(rgb):
    values = np.array(rgb) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize(
    ("shade", "ink"), [((255, 150, 40), (27, 27, 27)), ((150, 70, 0), (238, 238, 238))]
)
def test_ink_is_readable_on_the_strongest_shade(shade, ink):
    page = nasty().to_html()
    assert f"--shade: {' '.join(map(str, shade))};" in page
    light, dark = sorted([luminance(shade), luminance(ink)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG AA


def test_terminals_get_brackets_or_shades():
    step = nasty()
    lines = step.to_text().splitlines()
    assert lines[0] == "0: <script>, plain"
    assert lines[1] == (
        "  top        4  [[<script>]]alert('x')[</script>] & \"more\" [日本] [😀] é"
    )
    shaded = step.to_text(0, ansi=True)
    assert "\x1b[1;4;38;2;0;0;0;48;2;255;150;40m<script>\x1b[0m" in shaded
    assert "[[" not in shaded


def test_control_characters_of_texts_do_not_reach_the_terminal():
    step = top_only().fit(np.ones((1, 1)), units=["a\x1b[2J\x9bb\nc\x00"])
    for shown in (step.to_text(), step.to_html(), repr(step.show(0))):
        assert not set(shown) & {"\x1b", "\x9b", "\x00"}
    assert len(step.to_text().splitlines()) == 2


def test_what_notebooks_show():
    step = top_only(context=1).fit(carrying("csr"))
    display = step.show([2, 1])
    assert repr(display).splitlines() == ["2: rock", "  top        1  [[rock]]", "1: (dead)"]
    fragment = display._repr_html_()
    assert fragment.startswith('<div class="sksae-examples">')
    assert "No unit activates this concept." in fragment
    assert "ship" not in fragment
    assert "ship" in step.to_html() and "rock" in step.to_html()
    assert "sk-" in step._repr_html_()  # scikit-learn's own


def test_table():
    table = top_only(context=0).fit(carrying("csr")).to_frame()
    expected = pd.DataFrame(
        {
            "concept": [0, 0, 2],
            "quantile": ["top"] * 3,
            "activation": [3.0, 2.5, 1.0],
            "unit": ["ship", "ship", "rock"],
            "context": ["ship", "ship", "rock"],
            "text": [0, 2, 3],
            "start": [4, 9, 0],
            "end": [8, 13, 4],
        }
    )
    pd.testing.assert_frame_equal(table, expected)
    nothing = top_only().fit(np.zeros((1, 1)), units=["a"]).to_frame()
    assert list(nothing.columns) == list(expected.columns)
    assert len(nothing) == 0


def test_examples_are_a_sequence():
    step = MaxActivatingExamples(random_state=0).fit(random_codes(many_rows()))
    examples = step.interpretations_[0]
    assert examples[-1] == list(examples)[-1]
    assert examples[:2] == [examples[0], examples[1]]
    with pytest.raises(IndexError):
        examples[len(examples)]
    with pytest.raises(AttributeError):
        examples[0].text = 1
    assert pickle.loads(pickle.dumps(step)).interpretations_ == step.interpretations_
    assert repr(examples) == repr(list(examples))


def test_pandas_output_has_the_names():
    step = top_only().set_output(transform="pandas")
    assert list(step.fit_transform(carrying("dense")).columns) == [
        "0: ship",
        "1: (dead)",
        "2: rock",
    ]
    with pytest.raises(ValueError, match="got sparse codes but set_output asks for pandas"):
        step.fit_transform(carrying("csr"))


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [("n_top", 0), ("n_quantiles", 0), ("n_per_quantile", -1), ("context", -1), ("context", 1.5)],
)
def test_parameters_of_the_wrong_kind_are_refused(parameter, wrong):
    message = rf"^The '{parameter}' parameter of MaxActivatingExamples must be"
    with pytest.raises(ValueError, match=message):
        MaxActivatingExamples(**{parameter: wrong}).fit(carrying("dense"))


def test_input_that_cannot_be_used():
    with pytest.raises(
        ValueError, match=r"^MaxActivatingExamples needs to know the string of each"
    ):
        top_only().fit(VALUES)
    with pytest.raises(TypeError, match=r"^The 'units' of MaxActivatingExamples must be strings"):
        top_only().fit(VALUES, units=range(9))
    with pytest.raises(ValueError, match=r"^The 'groups' of MaxActivatingExamples must have one"):
        top_only().fit(VALUES, units=["a"] * 9, groups=[0])
    with pytest.raises(ValueError, match="contains NaN"):
        top_only().fit(np.full((1, 1), np.nan), units=["a"])
    with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
        top_only().fit(np.zeros((0, 2)), units=[])
    with pytest.raises(ValueError) as error:
        top_only(concepts_indices=[0]).fit(carrying("csr")).show(2)
    assert str(error.value) == (
        "Concept 2 was not interpreted by this MaxActivatingExamples. Choose from "
        "interpretations_, or fit with concepts_indices='all'."
    )


@pytest.mark.real
def test_examples_of_a_real_encoder_are_where_they_say(minilm_path):
    texts = [
        "The sea was calm, and the ships sailed at dawn 🌅 towards the islands.",
        "Shares fell by 3.2% on Monday; analysts had expected a rise.",
        "She scored twice in the second half,\n\nand the crowd sang.",
        "The new phone's battery lasts two days, the maker says.",
        "Ministers met in Brussels to discuss the fishing quotas at sea.",
    ]
    steps = [
        ("acts", TransformerActivationExtractor(minilm_path, "encoder.layer.3")),
        ("sae", TopKSAE(32, top_k=4, nb_epochs=3, random_state=0)),
        ("shown", MaxActivatingExamples(n_top=3, context=4, random_state=0)),
    ]
    codes = Pipeline(steps).fit_transform(texts)
    rows, dense = codes.rows, codes.toarray()
    row_of = {key: i for i, key in enumerate(zip(rows.text, rows.start, rows.end, strict=True))}
    table, found = steps[-1][1].to_frame(), steps[-1][1].interpretations_
    live = [c for c in range(32) if dense[:, c].any()]
    assert [c for c, examples in found.items() if examples] == live
    assert len(table) > 3 * len(live)
    for concept in live:
        assert found[concept][0].activation == dense[:, concept].max()
        for e in found[concept]:
            assert e.context == texts[e.text][e.start : e.end]
            at = [row_of[e.text, e.start + s, e.start + t] for s, t in e.spans]
            assert at == list(range(at[0], at[-1] + 1))
            assert list(e.activations) == dense[at, concept].tolist()
            assert [rows.units[i] for i in at] == list(e.units)
