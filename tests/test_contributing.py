"""The worked example of the contributor's guide is code that works."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import torch

GUIDE = Path(__file__).parent.parent / ".github" / "CONTRIBUTING.md"


def test_the_example_variant_is_an_sae(monkeypatch):
    from sklearn.utils.estimator_checks import check_estimator

    example = types.ModuleType("example_variant")
    monkeypatch.setitem(sys.modules, "example_variant", example)
    example.torch = torch
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL):
        exec(block, vars(example))
    X = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    sae = example.ThresholdSAE(16, threshold=0.7, nb_epochs=2, random_state=0).fit(X)
    codes = sae.transform(X)
    assert codes.data.min() > 0.7 * sae.module_.input_scale.item()
    assert "random_state" in sae.get_params()
    check_estimator(example.ThresholdSAE(), on_skip=None)
