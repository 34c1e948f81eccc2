"""Which tokens are edited: the same with and without a KV cache, padded on either side."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from sksae import Extractor
from sksae.intervention import Add, intervene
from sksae.intervention._hooks import replacing
from sksae.intervention._positions import _Reader

N_NEW = 5
EDIT = {3: Add(6.0)}
PROMPTS = [[5, 80, 60, 200, 7, 9, 290], [11, 12, 250, 40]]
WIDTH = max(map(len, PROMPTS))


def padded(side, prompts=PROMPTS, width=WIDTH):
    ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        at = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[i, at], mask[i, at] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def generated(model, inputs, **settings):
    """Generate greedily; give the tokens, and the logits that each was chosen from."""
    found = model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=N_NEW,
        max_new_tokens=N_NEW,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    return found.sequences, torch.stack(found.logits)


def is_odd(ids):
    return ids % 2 == 1


MASK = np.zeros((2, WIDTH), dtype=bool)
MASK[0, 1:3] = MASK[1, 4] = True

# For each choice, whether the token at a place in its text, behind a prompt of n, is meant.
CHOICES = {
    "None": (None, lambda at, n, column, token, i: True),
    "int": (2, lambda at, n, column, token, i: at == 2),
    "generated int": (8, lambda at, n, column, token, i: at == 8),
    "list": ([0, 3, 9], lambda at, n, column, token, i: at in (0, 3, 9)),
    "array": (np.array([1, 5]), lambda at, n, column, token, i: at in (1, 5)),
    "empty": ([], lambda at, n, column, token, i: False),
    "slice": (slice(1, None), lambda at, n, column, token, i: at >= 1),
    "steps": (slice(1, 9, 2), lambda at, n, column, token, i: at in (1, 3, 5, 7)),
    "last": ("last", lambda at, n, column, token, i: at >= n - 1),
    "prompt": ("prompt", lambda at, n, column, token, i: at < n),
    "generated": ("generated", lambda at, n, column, token, i: at >= n),
    "mask": (MASK, lambda at, n, column, token, i: column < WIDTH and MASK[i, column]),
    "tensor": (
        torch.from_numpy(MASK),
        lambda at, n, column, token, i: column < WIDTH and MASK[i, column],
    ),
    "callable": (is_odd, lambda at, n, column, token, i: token % 2 == 1),
}


def reference(model, row, ids, meant, i, n_prompt):
    """Run one text, without padding or cache, each token decided on alone; give its logits."""
    before = WIDTH - n_prompt  # columns of padding in the batch, on the left
    chosen = [
        bool(meant(at, n_prompt, before + at, token, i)) for at, token in enumerate(ids.tolist())
    ]
    push = 6.0 * torch.tensor(chosen, dtype=torch.float32)[None, :, None] * row
    with torch.no_grad(), replacing(model, 1, lambda x: x + push):
        return model(ids[None]).logits[0]


@pytest.mark.parametrize("name", CHOICES)
def test_generation_by_hand_with_and_without_a_cache(tiny_llama, sae, name):
    positions, meant = CHOICES[name]
    inputs = padded("left")
    row = sae.get_dictionary()[3]
    for use_cache in (True, False):
        with intervene(tiny_llama, 1, sae, EDIT, positions=positions):
            ids, logits = generated(tiny_llama, inputs, use_cache=use_cache)
        for i, prompt in enumerate(PROMPTS):
            text = ids[i, WIDTH - len(prompt) :]
            expected = reference(tiny_llama, row, text[:-1], meant, i, len(prompt))
            expected = expected[len(prompt) - 1 :]
            torch.testing.assert_close(logits[:, i], expected, atol=2e-4, rtol=1e-4)
            assert torch.equal(expected.argmax(dim=1), text[len(prompt) :])


def test_generation_changes(tiny_llama, sae):
    inputs = padded("left")
    plain, _ = generated(tiny_llama, inputs)
    with intervene(tiny_llama, 1, sae, {3: Add(30.0)}):
        steered, _ = generated(tiny_llama, inputs)
    assert not torch.equal(plain, steered)
    with intervene(tiny_llama, 1, sae, {}):
        again, _ = generated(tiny_llama, inputs)
    assert torch.equal(plain, again)


@pytest.mark.parametrize("use_cache", [True, False])
def test_each_prompt_of_a_block_is_a_prompt(tiny_llama, sae, use_cache):
    inputs = [padded("left"), padded("left", [[7, 8, 9, 30, 31, 32, 33, 34]], 8)]
    for positions in ("prompt", "generated", "last"):
        with intervene(tiny_llama, 1, sae, EDIT, positions=positions):
            second = [generated(tiny_llama, x, use_cache=use_cache)[1] for x in inputs][1]
        with intervene(tiny_llama, 1, sae, EDIT, positions=positions):
            alone = generated(tiny_llama, inputs[1], use_cache=use_cache)[1]
        assert torch.equal(second, alone)


def test_a_longer_prompt_is_not_a_continuation(tiny_llama, sae, state_at):
    block = tiny_llama.model.layers[1]
    first, second = torch.tensor([[5, 80, 60]]), torch.tensor([[5, 81, 60, 9]])
    with intervene(tiny_llama, 1, sae, EDIT, positions="generated"):
        for ids in (first, second):
            edited = state_at(tiny_llama, block, input_ids=ids)
            with torch.no_grad():
                assert torch.equal(edited, state_without(tiny_llama, block, ids))


def state_without(model, block, ids):
    seen = []
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(out), prepend=True)
    model(ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["beams", "static cache", "sampled", "embeddings"])
def test_other_ways_to_generate(tiny_llama, sae, kind):
    inputs = padded("left")
    more = {
        "beams": {"num_beams": 3},
        "static cache": {"cache_implementation": "static", "disable_compile": True},
        "sampled": {"num_return_sequences": 2},
        "embeddings": {},
    }[kind]
    if kind == "embeddings":
        inputs["inputs_embeds"] = tiny_llama.get_input_embeddings()(
            inputs.pop("input_ids")
        ).detach()

    def run(positions, **settings):
        torch.manual_seed(0)
        settings = {"do_sample": kind == "sampled", "min_new_tokens": N_NEW} | settings
        with intervene(tiny_llama, 1, sae, EDIT, positions=positions):
            return tiny_llama.generate(
                **inputs, **more, **settings, max_new_tokens=N_NEW, pad_token_id=0
            )

    with torch.random.fork_rng():
        # "prompt" and a slice over it are the same where both prompts have that length.
        inputs = {name: x[:1] for name, x in inputs.items()}
        same = [("prompt", slice(0, WIDTH)), ("generated", slice(WIDTH, None))]
        same.append(("last", slice(WIDTH - 1, None)))
        for named, counted in same:
            assert torch.equal(run(named), run(counted))
        if kind == "beams":
            for named, counted in same:
                assert torch.equal(run(named, use_cache=False), run(counted))


class State:
    """A cache without a length."""


@pytest.mark.parametrize(("cache", "begin"), [(None, 0), ([], 0), ((), 0), (State(), WIDTH)])
def test_only_a_state_that_comes_back_has_grown(cache, begin):
    class Model(nn.Module):
        def forward(self, input_ids, cache=None):
            return input_ids

    reader, ids = _Reader(Model()), torch.tensor(PROMPTS[:1])
    assert reader.read((ids,), {"cache": cache}).begin == 0
    assert reader.read((ids[:, :1],), {"cache": cache}).begin == begin
    assert reader.read((ids,), {"cache": State()}).begin == 0


@pytest.mark.parametrize("positions", ["generated", "last", "prompt", [WIDTH + 1]])
def test_a_state_instead_of_a_cache(sae, positions):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=3, state_size=4)
    model = MambaForCausalLM(config).eval()
    inputs = {"input_ids": torch.tensor(PROMPTS[:1]), "max_new_tokens": N_NEW, "pad_token_id": 0}
    plain = model.generate(**inputs)
    with intervene(model, 1, sae, {3: Add(60.0)}, positions=positions):
        with_state = model.generate(**inputs)
        assert torch.equal(with_state, model.generate(**inputs, use_cache=False))
    assert not torch.equal(with_state, plain)


@pytest.mark.parametrize(
    "positions", ["None", "int", "list", "slice", "last", "prompt", "callable"]
)
def test_either_side_of_padding_means_the_same(tiny_llama, sae, positions, state_at):
    chosen, _ = CHOICES[positions]
    block = tiny_llama.model.layers[1]
    states = {}
    for side in ("left", "right"):
        inputs = padded(side)
        mask = inputs["attention_mask"]
        position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
        before = state_at(tiny_llama, block, position_ids=position_ids, **inputs)
        with intervene(tiny_llama, 1, sae, EDIT, positions=chosen):
            after = state_at(tiny_llama, block, position_ids=position_ids, **inputs)
        assert torch.equal(after[mask == 0], before[mask == 0])
        states[side] = (after - before)[mask == 1]
    torch.testing.assert_close(states["left"], states["right"], atol=1e-4, rtol=1e-4)
    n_edited = int((states["left"].norm(dim=1) > 1).sum())
    n_odd = sum(token % 2 for prompt in PROMPTS for token in prompt)
    n = {"None": 11, "int": 2, "list": 4, "slice": 9, "last": 2, "prompt": 11, "callable": n_odd}
    assert n_edited == n[positions]


def test_a_cache_from_before_the_block_counts(tiny_llama, sae):
    ids = torch.tensor([PROMPTS[0]])
    # transformers 5.24 renamed the argument.
    accepted = inspect.signature(tiny_llama.forward).parameters
    name = "cache" if "cache" in accepted else "past_key_values"
    with torch.no_grad():
        for positions, expected in (([4, 6], [4, 6]), ("prompt", [4, 5, 6]), ("last", [6])):
            cache = tiny_llama(ids[:, :4], use_cache=True)[name]
            with intervene(tiny_llama, 1, sae, EDIT, positions=positions):
                found = tiny_llama(ids[:, 4:], **{name: cache}).logits
            with intervene(tiny_llama, 1, sae, EDIT, positions=expected):
                whole = tiny_llama(ids).logits[:, 4:]
            torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


def test_special_tokens_of_a_prompt_are_left_alone(tiny_llama, byte_tokenizer, sae, state_at):
    from sklearn.pipeline import make_pipeline

    acts = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer, skip_first=1).fit(["the sea"])
    special = byte_tokenizer.eos_token_id
    ids = torch.tensor([[7, 8, special, 9, special]])
    block = tiny_llama.model.layers[1]
    before = state_at(tiny_llama, block, input_ids=ids)
    with intervene(None, None, make_pipeline(acts, sae), EDIT):
        after = state_at(tiny_llama, block, input_ids=ids)
    assert (after != before).any(dim=-1).tolist() == [[False, True, False, True, False]]


def test_a_part_of_the_model_may_run(tiny_llama, sae, ids):
    with torch.no_grad(), intervene(tiny_llama, 1, sae, EDIT, positions=[2, 3]):
        whole = tiny_llama(ids).logits
        part = tiny_llama.lm_head(tiny_llama.model(ids).last_hidden_state)
    assert torch.equal(part, whole)


def test_a_decoder_knows_its_own_tokens(byte_tokenizer, sae):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(byte_tokenizer),
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config).eval()
    inputs = padded("right")
    steered = {}
    for use_cache in (True, False):
        with intervene(model, "decoder.block.1", sae, EDIT, positions=slice(2, None)):
            steered[use_cache] = generated(model, inputs, use_cache=use_cache)
    assert torch.equal(steered[True][0], steered[False][0])
    torch.testing.assert_close(steered[True][1], steered[False][1], atol=1e-4, rtol=1e-4)
    _, plain = generated(model, inputs)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(steered[True][1], plain, strict=True)]
    assert same[:2] == [True, True] and not any(same[2:])


def test_positions_that_make_no_sense_are_refused(sae, tiny_llama, ids):
    def refused(message, positions):
        with pytest.raises(ValueError, match=message):
            with intervene(tiny_llama, 1, sae, EDIT, positions=positions):
                tiny_llama(ids)

    for wrong in ("first", 1.5, [0.5], {1}, [True, False], np.zeros((1, 2, 3), dtype=bool)):
        refused("'positions' parameter of intervene must be None, one of 'last', 'prompt'", wrong)
    for behind in (-1, [0, -2], slice(-3, None), slice(0, -1)):
        refused("counts from the first token of a text, .* use 'last'", behind)
    refused("slice with step 0", slice(0, 3, 0))
    refused("mask of intervene has 3 rows, and the model runs 2 texts", np.ones((3, 7), bool))
    refused(r"bools of the shape of input_ids, \(2, 7\). Got torch.int64", lambda x: x)
    refused(r"\(2, 7\). Got torch.bool of shape \(7,\)", lambda x: x[0] > 0)
    embeddings = tiny_llama.get_input_embeddings()(ids)
    with (
        intervene(tiny_llama, 1, sae, EDIT, positions=is_odd),
        pytest.raises(ValueError, match="is given input_ids, and the model got inputs_embeds"),
    ):
        tiny_llama(inputs_embeds=embeddings)


def test_models_that_are_not_of_transformers(sae):
    layer = nn.Sequential(nn.Identity())
    x = torch.zeros(1, 4, 32)
    with torch.no_grad(), intervene(layer, "0", sae, EDIT):
        torch.testing.assert_close(layer(x)[0, 2], 6 * sae.get_dictionary()[3])
    with (
        intervene(layer, "0", sae, EDIT, positions=1),
        pytest.raises(ValueError, match="Run the model itself inside the block, or pass pos"),
    ):
        layer(x)
