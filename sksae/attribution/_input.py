"""From a concept back to the words: which parts of a text make it active."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from .._sklearn import Interval, StrOptions, validate_parameter_constraints
from ..activations._extractor import vocabulary_size
from ..activations._layers import evaluating
from ..interpretation._parts import Parts
from ._activation import ConceptActivation, find_baseline
from ._cases import find_concepts, given_names, read
from ._methods import METHODS, Method, Settings, captum_attr, find_method
from ._result import InputAttribution
from ._run import Run

_OWNER = "input_concept_attribution"
_N_SAMPLES = {True: 50, False: 512}

_CONSTRAINTS: dict[str, list[Any]] = {
    "granularity": [StrOptions({"token", "word", "sentence"})],
    "reduction": [StrOptions({"sum", "max"}), Integral],
    "baseline": [None, StrOptions({"mask", "pad", "eos", "zero"}), Integral],
    "n_steps": [Interval(Integral, 1, None, closed="left")],
    "n_samples": [None, Interval(Integral, 1, None, closed="left")],
    "noise": [Interval(Real, 0, None, closed="left")],
    "max_length": [None, Interval(Integral, 1, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}


def input_concept_attribution(
    pipe_or_sae,
    inputs,
    concept,
    *,
    attribution_method="integrated_gradients",
    granularity="token",
    reduction="sum",
    baseline=None,
    n_steps=50,
    n_samples=None,
    noise=0.15,
    model=None,
    layer=None,
    tokenizer=None,
    max_length=None,
    batch_size=32,
    random_state=None,
    verbose=False,
):
    """Score how much each token, word or sentence of texts makes a concept active.

    What is explained is one number for each text: the concept's activation, as ``transform``
    of the pipeline gives it, summed over the rows of the text (``reduction``). The methods are
    those of captum; the model runs no further than its layer.

    Parameters
    ----------
    pipe_or_sae : Pipeline or BaseSAE
        A fitted pipeline of a `TransformerActivationExtractor`, steps that treat each row by
        itself, and an SAE; steps after the SAE are ignored. A fitted SAE, or a pipeline
        without an extractor, needs ``model`` and ``layer``; its rows are then tokens.
    inputs : sequence of str, or of lists of str
        Texts, or texts split into words.
    concept : int, str or list of these
        The number of a concept, or its name: of the SAE's ``get_feature_names_out``, or as the
        interpreter behind it names it. A list gives one column of scores for each.
    attribution_method : str or type, default="integrated_gradients"
        "saliency", "input_x_gradient", "integrated_gradients", "gradient_shap",
        "smooth_grad", "square_grad", "var_grad" (by gradients); "occlusion", "lime",
        "kernel_shap" (by perturbation). See the notes. A class of captum or interpreto stands
        for the method of its name. interpreto's Sobol has no counterpart in captum.
    granularity : {"token", "word", "sentence"}, default="token"
        What a unit, which gets one score, is; as of the extractor. Special tokens are in no
        unit and always stay as they are.
    reduction : {"sum", "max"} or int, default="sum"
        How the activations of a text's rows are made one number: their sum, the largest, or
        that of one row, counted from 0 or negatively from the end.
    baseline : {"mask", "pad", "eos", "zero"} or int, default=None
        What stands for an absent unit: the embedding of the mask, padding or end-of-text token
        or of the token of this id, or zeros. None takes the first of the four that there is.
        Used by all methods but saliency, input x gradient and those with noise. Zeros suit
        few models: near them a layer that normalises changes abruptly.
    n_steps : int, default=50
        Of integrated gradients: points on the way from the baseline to the text.
    n_samples : int, default=None
        Of the random methods: draws for each text. None takes 50 for gradients and 512 for
        LIME and kernel SHAP, which need at least a few times the number of units.
    noise : float, default=0.15
        Of SmoothGrad, SquareGrad and VarGrad: standard deviation of the noise, as a share of
        that of the values of the text's embeddings.
    model : str, path or torch.nn.Module, default=None
        None takes the extractor's. An object is used where and as it is.
    layer : str, int or list of these, default=None
        As the extractor takes it. None takes the extractor's.
    tokenizer : str, path or PreTrainedTokenizerFast, default=None
        None takes the extractor's, or the one that goes with the model's name.
    max_length : int, default=None
        Tokens after which a text is truncated, special ones included. None takes the
        extractor's, and warns where that truncates. Windows are not run.
    batch_size : int, default=32
        Sequences run at once: texts, points on their ways, or perturbed copies of them.
    random_state : int, RandomState instance or None, default=None
        Of the random methods. A text's draws do not depend on ``batch_size``.
    verbose : bool or int, default=False
        Whether to show a bar that counts texts.

    Returns
    -------
    InputAttribution
        ``scores`` of the units of all texts end to end, ``rows`` that tell where they are, the
        ``values`` that are explained; ``[i]`` gives the scores of text i.

    Raises
    ------
    ImportError
        If captum is not installed: ``pip install 'sksae[attribution]'``.
    ValueError
        If the concept, the method or the row of ``reduction`` is not there, if the model names
        no input embeddings, or if a gradient is asked for through a step that has none.

    Warns
    -----
    UserWarning
        If texts are truncated, or if all concepts asked for are off in all texts.

    Notes
    -----
    With f the concept's activation, x the embeddings of a text and x' those of the baseline:

    ==================== ==================================================================
    saliency             Euclidean norm of the gradient of f over the unit's embeddings [1]_:
                         how steeply f can change, not in which direction.
    input_x_gradient     x times the gradient, summed over the unit [2]_.
    integrated_gradients (x - x') times the mean gradient on the way from x' to x, summed
                         over the unit [3]_.
    gradient_shap        the same with random points on the way, ``n_samples`` of them [4]_.
    smooth_grad          saliency of the mean gradient at x with noise [5]_.
    square_grad          mean square of such gradients, summed over the unit [6]_.
    var_grad             variance of such gradients, summed over the unit [7]_.
    occlusion            f(x) minus f with the unit replaced by the baseline [8]_.
    lime                 coefficients of a linear regression of f on which units are
                         present, copies near the text weighing more [9]_.
    kernel_shap          Shapley values of the units: exact where ``n_samples`` admits all
                         2**n_units coalitions, else estimated from random ones [4]_.
    ==================== ==================================================================

    The scores of integrated gradients, gradient SHAP and kernel SHAP sum to ``f(x) - f(x')``,
    up to ``delta``. With a `VanillaSAE`, whose codes are continuous, the delta of integrated
    gradients is the error of taking ``n_steps`` points and goes to 0 as they grow. The codes of
    `TopKSAE`, `BatchTopKSAE` and `JumpReLUSAE` jump between 0 and a threshold where a concept is
    selected, and no gradient sees a jump: ``-delta`` then holds the sum of the jumps on the
    way, however many the points, which is credit that no unit gets. Where it is large beside
    ``values``, take kernel SHAP, which gives all credit away, or occlusion.

    Gradients are those of the code that was selected: 0 where the concept is off (by ReLU, by
    its threshold, or as it is not among the ``top_k``), and blind to what would turn it on.
    So where the concept is off in a text, saliency and input x gradient are 0; methods with a
    baseline or noise need not be: their scores tell what keeps it off. Where it is off
    everywhere, in the text and in all its copies, all scores are 0.

    Scores are in units of the activation, saliency and SmoothGrad in such units for each unit
    of length in the embedding, SquareGrad and VarGrad in squares of that. They tell what this
    number depends on, given the baseline, not what the concept means; units that only matter
    together share their score or, with occlusion, each get all of it. In a causal model,
    later tokens have no say in a row before them.

    References
    ----------
    .. [1] Simonyan et al. (2014), arXiv:1312.6034, section 3.
    .. [2] Shrikumar et al. (2017), arXiv:1605.01713, section 2.
    .. [3] Sundararajan et al. (2017), arXiv:1703.01365, section 3.
    .. [4] Lundberg and Lee (2017), arXiv:1705.07874, section 4.1.
    .. [5] Smilkov et al. (2017), arXiv:1706.03825, section 2.
    .. [6] Hooker et al. (2019), arXiv:1806.10758, section 4.
    .. [7] Adebayo et al. (2018), arXiv:1810.03307, section 2.
    .. [8] Zeiler and Fergus (2014), arXiv:1311.2901, section 4.
    .. [9] Ribeiro et al. (2016), arXiv:1602.04938, section 3.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sksae import Extractor, TopKSAE
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "sea": 2}, "[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    >>> config = LlamaConfig(vocab_size=3, hidden_size=8, intermediate_size=8,
    ...                      num_hidden_layers=2, num_attention_heads=2)
    >>> extractor = Extractor(LlamaModel(config), 0, tokenizer=tokenizer)
    >>> texts = ["blue sea", "sea blue blue"]
    >>> pipe = make_pipeline(extractor, TopKSAE(8, top_k=8, random_state=0)).fit(texts)
    >>> found = input_concept_attribution(pipe, texts, [0, 3], attribution_method="occlusion")
    >>> len(found), found.scores.shape, list(found.rows.units)
    (2, (5, 2), ['blue', 'sea', 'sea', 'blue', 'blue'])
    >>> bool(np.allclose(found.values[0], pipe.transform(texts[:1])[:, [0, 3]].sum(axis=0)))
    True
    """
    given = {"model": model, "layer": layer, "tokenizer": tokenizer, "max_length": max_length}
    checked = {name: value for name, value in locals().items() if name in _CONSTRAINTS}
    validate_parameter_constraints(_CONSTRAINTS, checked, _OWNER)
    name = find_method(attribution_method, _OWNER)
    method, captum = METHODS[name], captum_attr()
    parts = Parts.of(pipe_or_sae, _OWNER)
    if method.gradient:
        _check_gradients(parts, name)
    sae_names = parts.sae.get_feature_names_out()
    names = given_names(pipe_or_sae, parts.nb_concepts)
    concepts = find_concepts(concept, sae_names, names, _OWNER)
    reader, cases = read(parts, inputs, granularity, reduction, given)
    n_samples = n_samples or _N_SAMPLES[method.gradient]
    settings = Settings(n_steps, n_samples, float(noise), batch_size)
    seeds = _seeds(method, random_state, cases.n_texts)
    with torch.inference_mode(False), evaluating(reader._loaded()[0]):
        f = ConceptActivation(parts, reader, concepts, reduction, batch_size)
        token = find_baseline(baseline, f.tokenizer, vocabulary_size(f.model), _OWNER)
        run = Run(f, cases, method, settings, captum, f.embed_token(token))
        scores, values, absent = run.all(seeds, verbose)
    names = sae_names if names is None else names
    _warn_if_off(values, names[concepts])
    is_list = not isinstance(concept, str | Integral)
    return InputAttribution._of(
        [scores, values, absent] if is_list else [scores[:, 0], values[:, 0], absent[:, 0]],
        rows=cases.rows,
        concept=concepts if is_list else int(concepts[0]),
        names=[str(one) for one in names[concepts]],
        method=name,
        granularity=granularity,
        reduction=reduction,
        baseline="zero" if token is None else f.tokenizer.convert_ids_to_tokens(token),
        sums_up=method.sums_up,
    )


def _check_gradients(parts: Parts, method: str) -> None:
    """Refuse a gradient method where something on the way has no gradient."""
    way_out = ", ".join(f"'{name}'" for name, other in METHODS.items() if not other.gradient)
    if parts.between:
        kinds = ", ".join(type(step).__name__ for step in parts.between)
        raise ValueError(
            f"attribution_method='{method}' needs gradients, and the steps between the extractor "
            f"and the SAE have none: {kinds}. Use one of {way_out}, or a pipeline without these."
        )
    if not parts.sae.has_differentiable_concept_encoder:
        raise ValueError(
            f"attribution_method='{method}' needs gradients, and the encoder of "
            f"{type(parts.sae).__name__} has none. Use one of {way_out}."
        )


def _seeds(method: Method, random_state: Any, n_texts: int) -> list[int | None]:
    """Give the seed of each text; random methods draw one for each, others none."""
    if not method.random:
        return [None] * n_texts
    return check_random_state(random_state).randint(2**31 - 1, size=n_texts).tolist()


def _warn_if_off(values: np.ndarray, names: Sequence[Any]) -> None:
    if values.any():
        return
    are, them = ("s are", "them") if len(names) > 1 else (" is", "it")
    shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    warnings.warn(
        f"The concept{are} off in all {len(values)} inputs, so that scores tell at most what "
        f"keeps {them} off: {shown}.",
        UserWarning,
        stacklevel=3,
    )
