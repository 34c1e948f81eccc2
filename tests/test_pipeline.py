"""Texts in, named concepts out: the steps together, as scikit-learn chains them."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from sksae import (
    BatchTopKSAE,
    ConceptPooler,
    Extractor,
    JumpReLUSAE,
    KeepRows,
    TopKInputs,
    TopKSAE,
    VanillaSAE,
)

TEXTS = [
    f"{subject} {verb} the {thing}{end}"
    for subject in ("a dog", "the cat", "no bird")
    for verb in ("sees", "eats")
    for thing in ("red house", "old tree")
    for end in (".", " today, and then leaves.")
]
QUICK = {"top_k": 4, "nb_epochs": 3, "batch_size": 64, "random_state": 0}


@pytest.fixture
def extractor(tiny_bert, bert_tokenizer):
    return Extractor(tiny_bert, "layer.1", tokenizer=bert_tokenizer)


def test_texts_to_named_concepts(extractor):
    pipe = make_pipeline(extractor, TopKSAE(48, **QUICK), TopKInputs(k=3)).fit(TEXTS)
    codes = pipe.transform(TEXTS)
    names = pipe.get_feature_names_out()
    assert codes.shape == (len(codes.rows), 48)
    assert len(names) == len(set(names)) == 48
    values, units = codes.toarray(), np.array([str(u) for u in codes.rows.units])
    for concept, found in pipe[-1].interpretations_.items():
        if found is None:
            assert not values[:, concept].any()
            continue
        top = pd.Series(values[:, concept]).groupby(units).max().nlargest(3)
        np.testing.assert_allclose(sorted(found.values()), sorted(top[top > 0]), rtol=1e-5)
        assert names[concept] == f"{concept}: {', '.join(found)}"


def test_back_to_hidden_states(extractor):
    pipe = make_pipeline(KeepRows(StandardScaler()), TopKSAE(48, **QUICK), TopKInputs())
    acts = extractor.fit_transform(TEXTS)
    pipe.fit(acts)
    back = pipe.inverse_transform(pipe.transform(acts))
    assert back.shape == acts.shape
    scaled = pipe[0].transform(acts)
    assert pipe[1].score(scaled) > 0.3


def test_score_of_a_pipeline_that_ends_in_the_sae(extractor):
    pipe = make_pipeline(extractor, TopKSAE(48, **QUICK)).fit(TEXTS)
    assert pipe.score(TEXTS) == pytest.approx(pipe[-1].score(extractor.transform(TEXTS)))


@pytest.mark.parametrize("cls", [VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE])
@pytest.mark.parametrize("sparse_output", [True, False])
def test_sparse_probing_in_one_line(extractor, cls, sparse_output):
    params = {k: v for k, v in QUICK.items() if k in cls().get_params()}
    sae = cls(48, sparse_output=sparse_output, **params)
    pipe = make_pipeline(
        extractor, sae, ConceptPooler("max"), MaxAbsScaler(), LogisticRegression(max_iter=2000)
    )
    y = ["dog" if "dog" in text else "other" for text in TEXTS]
    pipe.fit(TEXTS, y)
    assert pipe.predict(TEXTS).shape == (len(TEXTS),)
    assert pipe.score(TEXTS, y) > 0.9
    assert sparse.issparse(pipe[:3].transform(TEXTS)) is sparse_output
    assert len(pipe[:-1].get_feature_names_out()) == pipe[-1].coef_.shape[1] == 48


def test_names_reach_the_coefficients(extractor):
    pipe = make_pipeline(extractor, TopKSAE(48, **QUICK), TopKInputs(k=2), ConceptPooler())
    pipe.fit(TEXTS)
    assert list(pipe.get_feature_names_out()) == list(pipe[-2].get_feature_names_out())


def test_frames_read_as_concepts(extractor):
    sae = TopKSAE(48, sparse_output=False, **QUICK)
    pipe = make_pipeline(extractor, sae, TopKInputs(k=2)).set_output(transform="pandas")
    frame = pipe.fit(TEXTS).transform(TEXTS)
    assert frame.index.names == ["text", "start", "end"]
    assert list(frame.columns) == list(pipe.get_feature_names_out())
    assert frame.shape[1] == 48


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("by", ["object", "name"])
def test_grid_search_over_the_pipeline(extractor, tiny_bert_path, by, n_jobs):
    if by == "name":
        extractor = Extractor(tiny_bert_path, "layer.1")
    pipe = make_pipeline(extractor, TopKSAE(**QUICK))
    grid = {"topksae__nb_concepts": [8, 48], "topksae__lr": [1e-5, 3e-3]}
    search = GridSearchCV(pipe, grid, cv=KFold(3), n_jobs=n_jobs).fit(TEXTS)
    assert search.best_params_ == {"topksae__nb_concepts": 48, "topksae__lr": 3e-3}
    assert search.best_estimator_.transform(TEXTS[:2]).shape[1] == 48


def test_grid_search_on_rows_split_by_text(extractor):
    X = extractor.fit_transform(TEXTS)
    search = GridSearchCV(TopKSAE(**QUICK), {"nb_concepts": [8, 48]}, cv=GroupKFold(3))
    search.fit(X, groups=X.rows.groups)
    assert search.best_params_ == {"nb_concepts": 48}


def test_a_fitted_pipeline_survives_pickling_and_cloning(extractor):
    pipe = make_pipeline(extractor, BatchTopKSAE(48, **QUICK), TopKInputs()).fit(TEXTS)
    twin = pickle.loads(pickle.dumps(pipe))
    assert (twin.transform(TEXTS) != pipe.transform(TEXTS)).nnz == 0
    assert list(twin.get_feature_names_out()) == list(pipe.get_feature_names_out())
    fresh = clone(pipe).fit(TEXTS)
    assert (fresh.transform(TEXTS) != pipe.transform(TEXTS)).nnz == 0


def test_several_layers_side_by_side(tiny_bert, bert_tokenizer):
    acts = Extractor(tiny_bert, [0, 1], tokenizer=bert_tokenizer)
    pipe = make_pipeline(acts, TopKSAE(48, **QUICK)).fit(TEXTS)
    assert pipe[-1].components_.shape == (48, 64)


def test_a_step_that_drops_rows_says_what_to_do(extractor):
    pipe = make_pipeline(extractor, PCA(8), TopKSAE(16, **QUICK), TopKInputs())
    with pytest.raises(ValueError, match=r"wrap a scikit-learn step in between in KeepRows\(...\)"):
        pipe.fit(TEXTS)


# -- real models ------------------------------------------------------------------------------

NEWS = [
    "The central bank raised interest rates again, and shares in London fell sharply.",
    "Shares of the oil company rose after it reported record profits for the quarter.",
    "The striker scored twice as England beat Wales in the rugby and football cups.",
    "She won the final in straight sets and will play in the Wimbledon semi-final.",
    "The minister told parliament that the new tax law would be delayed until spring.",
    "Voters in the election will choose between the prime minister and his rival.",
    "The phone maker showed a new mobile with a faster chip and a better camera.",
    "Hackers used a virus to steal passwords from users of the web browser.",
] * 3
TOPICS = [["business", "sport", "politics", "tech"][i // 2] for i in range(8)] * 3


@pytest.mark.real
def test_the_real_encoder(minilm_path):
    sae = TopKSAE(256, top_k=8, nb_epochs=60, batch_size=64, random_state=0)
    pipe = make_pipeline(Extractor(minilm_path, "encoder.layer.4"), sae, TopKInputs(k=5))
    pipe.fit(NEWS)
    assert pipe[:2].score(NEWS) > 0.8
    alive = [found for found in pipe[-1].interpretations_.values() if found]
    assert len(alive) > 100
    assert any({"shares", "profits"} & set(found) for found in alive)
    probe = make_pipeline(
        Extractor(minilm_path, "encoder.layer.4"),
        clone(sae).set_params(nb_epochs=10),
        ConceptPooler("max"),
        LogisticRegression(max_iter=1000),
    )
    assert cross_val_score(probe, NEWS, TOPICS, cv=3).mean() > 0.8


@pytest.mark.real
def test_the_real_causal_model(smollm_path):
    acts = Extractor(smollm_path, 4, skip_first=1)
    sae = BatchTopKSAE(256, top_k=8, nb_epochs=60, batch_size=64, random_state=0)
    pipe = make_pipeline(acts, sae, TopKInputs(k=5)).fit(NEWS)
    assert pipe[:2].score(NEWS) > 0.8
    codes = pipe.transform(NEWS)
    assert set(codes.rows.units) >= {"bank", "London"}
    assert codes.getnnz(axis=1).mean() == pytest.approx(8, rel=0.2)


@pytest.mark.real
def test_attention_sinks_of_the_real_causal_model_do_not_set_the_units(smollm_path):
    params = {"nb_concepts": 64, "top_k": 8, "nb_epochs": 15, "batch_size": 64, "random_state": 0}
    everything = Extractor(smollm_path, 5).fit_transform(TEXTS * 3)
    first = np.diff(everything.rows.text, prepend=-1) > 0
    usual = np.asarray(everything)[~first]
    with_sinks, without = (TopKSAE(**params).fit(X) for X in (np.asarray(everything), usual))
    scales = [float(sae.module_.input_scale) for sae in (with_sinks, without)]
    assert scales[0] == pytest.approx(scales[1], rel=0.1)
    assert with_sinks.score(usual) > without.score(usual) - 0.1
