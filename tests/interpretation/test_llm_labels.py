import pickle
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from sksae.activations import Rows
from sksae.activations._rows import rows_frame, rows_of, with_rows
from sksae.interpretation import LLMError, LLMLabels, SamplingMethod
from sksae.interpretation._llm_examples import sample
from sksae.interpretation._llm_prompts import SYSTEM_PROMPT, clean_label

TEXTS = ["The sea is blue.", "A ship!"]
SPANS = [
    (0, 0, 3),
    (0, 3, 7),
    (0, 8, 10),
    (0, 11, 15),
    (0, 15, 16),
    (1, 0, 1),
    (1, 2, 6),
    (1, 6, 7),
]
# Four concepts; the second is dead.
VALUES = np.zeros((8, 4))
VALUES[[1, 3, 6], 0] = [4.0, 2.0, 1.0]
VALUES[[4, 7], 2] = [0.3, 0.5]
VALUES[:, 3] = np.arange(1, 9)


def rows(order=slice(None)):
    return Rows(*np.array(SPANS)[order].T, TEXTS)


def carrying(kind="csr", order=slice(None)):
    values = VALUES[order]
    if kind == "frame":
        return rows_frame(values, rows(order))
    return with_rows(sparse.csr_matrix(values) if kind == "csr" else values, rows(order))


class Recorder:
    """Answers every question by its number, and keeps the questions."""

    def __init__(self, answer="label {}", fails_on=()):
        self.answer, self.fails_on, self.asked = answer, fails_on, []

    def __call__(self, messages):
        self.asked.append(messages)
        if len(self.asked) in self.fails_on:
            raise RuntimeError("out of order")
        return self.answer.format(len(self.asked))


def examples(messages):
    return messages[1]["content"].removesuffix("\n\nWhat is the concept? Give only the label.")


def drawn(**params):
    """Give the activations that concept 0 shows, of 23 with the values 1 to 23 in mixed order."""
    values = np.random.default_rng(0).permutation(np.r_[np.arange(1.0, 24), np.zeros(9)])[:, None]
    units = [f"{v:.0f}" for v in values[:, 0]]
    shown = LLMLabels(Recorder(), **params).prompts(values, units=units)[0]
    return [int(line.split()[2]) for line in examples(shown).splitlines()]


# --- which examples


@pytest.mark.parametrize("method", ["top", "TOP", SamplingMethod.TOP])
def test_top_shows_the_largest_in_order(method):
    assert drawn(sampling_method=method, k_examples=4) == [23, 22, 21, 20]
    assert drawn(sampling_method=method) == list(range(23, 0, -1))


@pytest.mark.parametrize("method", ["quantile", "QUANTILE", SamplingMethod.QUANTILE])
def test_quantiles_are_equal_slices_and_the_last_takes_the_remainder(method):
    params = {"sampling_method": method, "k_examples": 11, "k_quantile": 5}
    seen = np.array([drawn(**params, random_state=seed) for seed in range(60)])
    slices = [set(range(23 - 4 * i, 19 - 4 * i, -1)) for i in range(4)] + [set(range(1, 8))]
    assert seen.shape == (60, 10)  # 11 // 5 of each
    for i, expected in enumerate(slices):
        assert set(seen[:, 2 * i : 2 * i + 2].ravel()) == expected
    assert all(len(set(one)) == 10 for one in seen)


@pytest.mark.parametrize("method", ["random", "RANDOM", SamplingMethod.RANDOM])
def test_random_draws_any_without_replacement(method):
    seen = [drawn(sampling_method=method, k_examples=6, random_state=seed) for seed in range(60)]
    assert all(len(set(one)) == 6 for one in seen)
    assert set(np.ravel(seen)) == set(range(1, 24))
    assert sorted(drawn(sampling_method=method)) == list(range(1, 24))


@settings(max_examples=60, deadline=None, database=None)
@given(
    values=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    k_quantile=st.integers(1, 5),
    more=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_samples_are_what_plain_python_draws(values, k_quantile, more, seed):
    k_examples = k_quantile + more
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    array = np.array(values, dtype=float)

    def found(method):
        rng = np.random.default_rng(seed)
        return sample(array, SamplingMethod(method), k_examples, k_quantile, rng).tolist()

    assert found("top") == ranked[:k_examples]
    rng = np.random.default_rng(seed)
    assert found("random") == list(rng.permutation(len(values)))[:k_examples]
    rng, size, expected = np.random.default_rng(seed), len(values) // k_quantile, []
    for i in range(k_quantile):
        part = ranked[i * size : (i + 1) * size if i < k_quantile - 1 else None]
        expected += [part[p] for p in rng.permutation(len(part))[: k_examples // k_quantile]]
    assert found("quantile") == (expected if size else ranked)


def test_examples_of_a_concept_do_not_depend_on_the_others_or_on_the_container():
    params = {"sampling_method": "random", "k_examples": 3, "random_state": 7}
    full = LLMLabels(Recorder(), **params).prompts(carrying("csr"))
    assert list(full) == [0, 2, 3]
    for kind in ("dense", "frame", "csr"):
        assert LLMLabels(Recorder(), **params).prompts(carrying(kind)) == full
        some = LLMLabels(Recorder(), **params, concepts_indices=[3]).prompts(carrying(kind))
        assert some == {3: full[3]}
    params["random_state"] = 8
    assert LLMLabels(Recorder(), **params).prompts(carrying("csr")) != full


def test_few_activations_for_the_quantiles():
    with pytest.warns(UserWarning) as caught:
        asked = LLMLabels(Recorder(), "quantile", 8, k_quantile=8).prompts(carrying())
    assert [str(w.message) for w in caught] == [
        "Fewer than k_quantile=8 rows activate concepts 0, 2. LLMLabels shows all of them."
    ]
    assert [len(examples(asked[c]).splitlines()) for c in (0, 2, 3)] == [3, 2, 8]
    with pytest.raises(ValueError) as error:
        LLMLabels(Recorder(), "quantile", k_examples=4).fit(carrying())
    assert str(error.value) == (
        "k_examples=4 is below k_quantile=5 in LLMLabels: there must be an example for each "
        "slice. Raise k_examples or lower k_quantile."
    )
    LLMLabels(Recorder(), "top", k_examples=4).fit(carrying())


# --- what is asked


def test_the_whole_question_without_context():
    llm = Recorder()
    step = LLMLabels(llm, k_examples=2, concepts_indices=0).fit(carrying())
    assert llm.asked == [
        [
            {"role": "system", "content": SYSTEM_PROMPT},
            {
                "role": "user",
                "content": "Example 1: sea (activation: 10)\n"
                "Example 2: blue (activation: 5)\n\n"
                "What is the concept? Give only the label.",
            },
        ]
    ]
    assert step.prompts(carrying()) == {0: llm.asked[0]}


IN_CONTEXT = """\
Example 1: The <<sea>> is
Activations: ("The", 0), ("sea", 10), ("is", 0)
Example 2: is <<blue>>.
Activations: ("is", 0), ("blue", 5), (".", 0)
Example 3: A <<ship>>!
Activations: ("A", 0), ("ship", 2), ("!", 0)"""


@pytest.mark.parametrize("kind", ["csr", "dense", "frame"])
@pytest.mark.parametrize("order", [slice(None), [6, 2, 7, 0, 5, 1, 4, 3]])
def test_the_whole_question_with_context(kind, order):
    step = LLMLabels(Recorder(), k_context=1, system_prompt="Name it.")
    question = step.prompts(carrying(kind, order))[0]
    assert question[0] == {"role": "system", "content": "Name it."}
    assert examples(question) == IN_CONTEXT


def test_context_of_plain_arrays_follows_the_groups():
    units = ["The", "sea", "is", "blue", ".", "A", "ship", "!"]
    step = LLMLabels(Recorder(), k_examples=1, k_context=2, concepts_indices=2)
    asked = step.prompts(VALUES, units=units, groups=[0] * 5 + [1] * 3)
    assert examples(asked[2]) == (
        'Example 1: A ship <<!>>\nActivations: ("A", 0), ("ship", 0), ("!", 10)'
    )
    interleaved = step.prompts(VALUES, units=units, groups=[0, 1] * 4)
    assert examples(interleaved[2]).startswith("Example 1: blue A <<!>>\n")
    with pytest.raises(ValueError, match=r"^LLMLabels needs to know the text of each row\."):
        step.fit(VALUES, units=units)


def test_importance_is_a_share_of_the_largest_activation_of_the_concept():
    values = np.array([[0.25], [0.75], [1.0], [0.04], [0.05]])
    asked = LLMLabels(Recorder()).prompts(values, units=list("abcde"))
    assert examples(asked[0]).splitlines() == [
        "Example 1: c (activation: 10)",
        "Example 2: b (activation: 8)",
        "Example 3: a (activation: 2)",
        "Example 4: e (activation: 0)",
        "Example 5: d (activation: 0)",
    ]


def test_importance_does_not_depend_on_what_was_drawn():
    values = np.arange(1.0, 9)[:, None]
    expected = {f"Example 1: {v} (activation: {round(10 * v / 8)})" for v in range(1, 9)}
    units = list("12345678")
    steps = [LLMLabels(Recorder(), "random", 1, random_state=seed) for seed in range(60)]
    assert {examples(step.prompts(values, units=units)[0]) for step in steps} == expected


def test_units_are_shown_in_one_line_and_white_space_is_left_out():
    units = ["deep\nblue  sea", " ", 'say "hi"', "🌊", ""]
    values = np.array([[5.0], [9.0], [4.0], [3.0], [9.0]])
    step = LLMLabels(Recorder())
    assert examples(step.prompts(values, units=units)[0]).splitlines() == [
        "Example 1: deep blue sea (activation: 10)",
        'Example 2: say "hi" (activation: 8)',
        "Example 3: 🌊 (activation: 6)",
    ]
    step.set_params(k_context=1, k_examples=1)
    assert examples(step.prompts(values, units=units, groups=[0] * 5)[0]) == (
        'Example 1: <<deep blue sea>> say "hi"\n'
        'Activations: ("deep blue sea", 10), ("say \\"hi\\"", 8)'
    )


@pytest.mark.parametrize("kind", ["csr", "dense", "frame"])
def test_rows_of_the_same_characters_are_one_unit(kind):
    # As byte-level tokenizers cut: the bytes of a wave, the first with the space before it.
    spans = np.array([[0, 0, 0, 0, 0], [0, 3, 4, 4, 5], [3, 5, 5, 5, 9]])
    rows = Rows(*spans, ["the 🌊 sea"])
    values = np.array([[0.0], [1.0], [4.0], [2.0], [2.0]])
    if kind == "frame":
        X = rows_frame(values, rows)
    else:
        X = with_rows(sparse.csr_matrix(values) if kind == "csr" else values, rows)
    step = LLMLabels(Recorder(), concepts_indices=0)
    assert examples(step.prompts(X)[0]) == (
        "Example 1: 🌊 (activation: 10)\nExample 2: sea (activation: 5)"
    )
    shown = examples(step.set_params(k_context=1).prompts(X)[0]).splitlines()
    assert shown == [
        "Example 1: the <<🌊>> sea",
        'Activations: ("the", 0), ("🌊", 10), ("sea", 5)',
        "Example 2: 🌊 <<sea>>",
        'Activations: ("🌊", 10), ("sea", 5)',
    ]


def test_special_tokens_stand_where_they_stood():
    specials = ["[CLS]", None, None, "[SEP]", "[CLS]", None, "[SEP]"]
    spans = np.array([[0, 0, 0, 0, 1, 1, 1], [0, 0, 2, 0, 0, 0, 0], [0, 2, 4, 0, 0, 1, 0]])
    X = with_rows(np.eye(7), Rows(*spans, ["seas", "A"], specials))
    asked = LLMLabels(Recorder(), k_context=3).prompts(X)
    shown = [examples(asked[c]).splitlines()[0] for c in (1, 3, 5)]
    assert shown == [
        "Example 1: [CLS] <<se>>as [SEP]",
        "Example 1: [CLS] seas <<[SEP]>>",
        "Example 1: [CLS] <<A>> [SEP]",
    ]


def test_a_dead_concept_is_never_asked_about():
    llm = Recorder()
    step = LLMLabels(llm).fit(carrying())
    assert step.interpretations_ == {0: "label 1", 1: None, 2: "label 2", 3: "label 3"}
    assert len(llm.asked) == 3
    llm.asked.clear()
    dead = LLMLabels(llm).fit(np.zeros((2, 3)), units=["a", "b"])
    assert dead.interpretations_ == {0: None, 1: None, 2: None}
    assert LLMLabels(llm).fit(np.ones((2, 1)), units=["", " "]).interpretations_ == {0: None}
    assert LLMLabels(llm).fit(-np.ones((2, 1)), units=["a", "b"]).interpretations_ == {0: None}
    assert LLMLabels(llm, concepts_indices=[]).fit(carrying()).interpretations_ == {}
    assert llm.asked == []


# --- what is answered


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("names of rivers", "names of rivers"),
        ('  "Names of rivers."\nBecause ...', "Names of rivers"),
        ("\n\n**Label:** rivers", "rivers"),
        ("Label: 'rivers'", "rivers"),
        ('The concept is "rivers".', "rivers"),
        ('"rivers" and "lakes"', '"rivers" and "lakes"'),
        ('the word "the".', 'the word "the"'),
        ("**places in the U.S.**", "places in the U.S."),
        ("- names starting with __", "names starting with __"),
        ("<think>It may be\nrivers.</think>\n\nrivers", "rivers"),
        ("<think>It may be", "(no answer)"),
        ("", "(no answer)"),
        (None, "(no answer)"),
        (' "" \n...', "(no answer)"),
        ("ünïcode 🌊", "ünïcode 🌊"),
        ("word " * 40, " ".join(["word"] * 16) + "…"),
        ("x" * 100, "x" * 80 + "…"),
    ],
)
def test_labels_are_cleaned(answer, label):
    assert clean_label(answer) == label


def test_an_unusable_answer_is_marked():
    with pytest.warns(UserWarning) as caught:
        step = LLMLabels(Recorder("?!")).fit(carrying())
    assert [str(w.message) for w in caught] == [
        "The 'llm' of LLMLabels said nothing usable about concepts 0, 2, 3. They are named "
        "'(no answer)'."
    ]
    assert caught[0].filename == __file__
    assert list(step.get_feature_names_out()) == [
        "0: (no answer)",
        "1: (dead)",
        "2: (no answer)",
        "3: (no answer)",
    ]


def test_an_error_keeps_what_was_labelled_and_a_warm_start_asks_for_the_rest():
    llm = Recorder(fails_on=[2])
    step = LLMLabels(llm)
    with pytest.raises(LLMError) as error:
        step.fit(carrying())
    assert str(error.value) == (
        "The 'llm' of LLMLabels failed on concept 2: RuntimeError: out of order. Labelled so far: "
        "1 of 3. interpretations_ keeps them, and fit with warm_start=True asks only about the "
        "others."
    )
    assert type(error.value.__cause__) is RuntimeError
    assert pickle.loads(pickle.dumps(error.value)).labels == {0: "label 1"}
    assert step.interpretations_ == {0: "label 1", 1: None, 2: "(no answer)", 3: "(no answer)"}
    step.set_params(warm_start=True).fit(carrying())
    assert step.interpretations_ == {0: "label 1", 1: None, 2: "label 3", 3: "label 4"}
    step.set_params(warm_start=False).fit(carrying())
    assert step.interpretations_[0] == "label 5"


def test_codes_of_another_width_start_anew():
    step = LLMLabels(Recorder(), warm_start=True).fit(carrying())
    step.fit(carrying("dense")[:, :3])
    assert step.interpretations_ == {0: "label 4", 1: None, 2: "label 5"}


def test_an_error_can_be_a_warning():
    with pytest.warns(UserWarning) as caught:
        step = LLMLabels(Recorder(fails_on=[1]), on_error="warn").fit(carrying())
    assert [str(w.message) for w in caught] == [
        "The 'llm' of LLMLabels failed on concept 0, the first time with: RuntimeError: out of "
        "order. Without a label: concept 0. fit with warm_start=True asks about them again."
    ]
    assert list(step.interpretations_.values()) == ["(no answer)", None, "label 2", "label 3"]


def test_five_failures_in_a_row_end_the_asking():
    llm = Recorder(fails_on=[1, 2, 3, 4, *range(6, 100)])
    with pytest.warns(UserWarning, match=r"Without a label: concepts 0, .*, 20 and 9 more\. fit"):
        LLMLabels(llm, on_error="warn").fit(np.ones((1, 30)), units=["a"])
    assert len(llm.asked) == 10


def test_an_interruption_keeps_what_was_labelled():
    def interrupted(messages):
        if "blue" not in messages[1]["content"]:
            raise KeyboardInterrupt
        return "colours"

    step = LLMLabels(interrupted)
    with pytest.raises(KeyboardInterrupt):
        step.fit(carrying())
    assert step.interpretations_ == {0: "colours", 1: None, 2: "(no answer)", 3: "(no answer)"}


def test_an_answer_that_is_no_string_is_refused():
    with pytest.raises(LLMError, match=r"TypeError: The 'llm' of LLMLabels must answer with a str"):
        LLMLabels(lambda messages: ["rivers"]).fit(carrying())


class Parallel:
    """Names the first unit it is shown, later questions sooner, from so many threads."""

    def __init__(self, max_concurrency, fails_on=None):
        self.max_concurrency, self.fails_on = max_concurrency, fails_on
        self.running, self.most, self.n_asked, self.lock = 0, 0, 0, threading.Lock()

    def __call__(self, messages):
        unit = messages[1]["content"].split()[2]
        with self.lock:
            self.running, self.n_asked = self.running + 1, self.n_asked + 1
            self.most = max(self.most, self.running)
        time.sleep(0.001 * (20 - int(unit)))
        with self.lock:
            self.running -= 1
        if unit == self.fails_on:
            raise RuntimeError("out of order")
        return f"number {unit}"


def test_threads_are_limited_and_their_order_does_not_matter():
    units = [str(i) for i in range(20)]
    one, many = (
        LLMLabels(Parallel(n)).fit(sparse.eye_array(20, format="csr"), units=units) for n in (1, 3)
    )
    assert one.interpretations_ == many.interpretations_ == {i: f"number {i}" for i in range(20)}
    assert list(many.interpretations_) == list(range(20))
    assert (one.llm.most, many.llm.most) == (1, 3)


def test_an_error_in_a_thread_stops_the_others_and_keeps_what_is_on_its_way():
    llm = Parallel(4, fails_on="3")
    step = LLMLabels(llm)
    with pytest.raises(LLMError, match="failed on concept 3: RuntimeError: out of order"):
        step.fit(np.eye(20), units=[str(i) for i in range(20)])
    assert llm.n_asked < 20
    labelled = {c for c, label in step.interpretations_.items() if label != "(no answer)"}
    assert len(labelled) == llm.n_asked - 1


# --- the contract of an interpreter


@pytest.mark.parametrize("kind", ["csr", "dense", "frame"])
def test_codes_pass_unchanged_under_their_labels(kind):
    X = carrying(kind)
    step = LLMLabels(Recorder())
    assert step.fit_transform(X, [0]) is X
    assert step.inverse_transform(X) is X
    assert rows_of(X) == rows()
    names = ["0: label 1", "1: (dead)", "2: label 2", "3: label 3"]
    assert list(step.get_feature_names_out()) == names
    if kind != "csr":
        frame = LLMLabels(Recorder()).set_output(transform="pandas").fit_transform(X)
        assert list(frame.columns) == names


def test_a_pipeline_ends_in_labels():
    units = [str(i) for i in range(8)]
    pipe = Pipeline([("labels", LLMLabels(Recorder()))])
    pipe.fit_transform(VALUES, labels__units=units, labels__groups=[0] * 8)
    assert pipe.get_feature_names_out()[0] == "0: label 1"


def test_table_of_the_labels():
    table = LLMLabels(Recorder()).fit(carrying()).to_frame()
    assert table.to_dict("list") == {
        "concept": [0, 2, 3],
        "label": ["label 1", "label 2", "label 3"],
    }
    assert list(LLMLabels(Recorder()).fit(np.zeros((1, 1)), units=["a"]).to_frame()) == [
        "concept",
        "label",
    ]


def test_clones_share_the_language_model():
    llm = Parallel(2)  # has a lock, which cannot be copied
    step = LLMLabels(llm, "random", 3, random_state=1).set_output(transform="pandas")
    copy = clone(Pipeline([("labels", step)]))[0]
    assert copy.llm is llm
    assert copy is not step
    assert copy.get_params() == step.get_params()
    assert copy._sklearn_output_config == {"transform": "pandas"}
    assert not hasattr(clone(step.fit(np.eye(2), units=["1", "2"])), "interpretations_")


def test_a_pickle_keeps_the_labels():
    step = LLMLabels(Recorder()).fit(carrying())
    back = pickle.loads(pickle.dumps(step))
    assert back.interpretations_ == step.interpretations_
    assert back.transform(VALUES) is VALUES


def test_prompts_leave_the_estimator_as_it_was():
    step = LLMLabels(Recorder())
    before = dict(vars(step))
    step.prompts(carrying())
    assert vars(step) == before
    assert step.llm.asked == []


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("llm", "gpt"),
        ("sampling_method", "best"),
        ("k_examples", 0),
        ("k_context", -1),
        ("k_quantile", 0),
        ("system_prompt", 3),
        ("concepts_indices", "some"),
        ("on_error", "ignore"),
        ("warm_start", 2),
        ("random_state", "x"),
    ],
)
def test_parameters_of_the_wrong_kind_are_refused(parameter, wrong):
    step = LLMLabels(**{"llm": Recorder(), parameter: wrong})
    for call in (step.fit, step.prompts):
        with pytest.raises(ValueError, match=rf"^The '{parameter}' parameter of LLMLabels must be"):
            call(carrying())


def test_input_that_does_not_fit_is_refused():
    broken = VALUES.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"^Found array with 0 sample\(s\)"):
        LLMLabels(Recorder()).fit(carrying("dense")[:0])
    with pytest.raises(ValueError, match="Input X contains NaN"):
        LLMLabels(Recorder()).fit(broken, units=["a"] * 8)
    with pytest.raises(ValueError, match=r"^LLMLabels needs to know the string of each row"):
        LLMLabels(Recorder()).fit(VALUES)
    with pytest.raises(ValueError, match=r"^The 'groups' of LLMLabels must have one entry per row"):
        LLMLabels(Recorder()).fit(carrying(), groups=[0])
    with pytest.raises(ValueError, match="X has 2 features, but LLMLabels is expecting 4"):
        LLMLabels(Recorder()).fit(carrying()).transform(carrying()[:, :2])


def test_many_wide_codes_take_seconds():
    rng = np.random.default_rng(0)
    n_rows, n_concepts, active = 20_000, 8192, 32
    indices = rng.integers(0, n_concepts, size=(n_rows, active), dtype=np.int32)
    indptr = np.arange(0, n_rows * active + 1, active, dtype=np.int32)
    data = rng.random(n_rows * active, dtype=np.float32)
    codes = sparse.csr_matrix((data, indices.ravel(), indptr), shape=(n_rows, n_concepts))
    units = np.char.add("unit", np.arange(n_rows).astype(str)).tolist()
    start = time.perf_counter()
    step = LLMLabels(lambda messages: "x", k_examples=10).fit(codes, units=units)
    assert time.perf_counter() - start < 20
    assert len(step.interpretations_) == n_concepts
