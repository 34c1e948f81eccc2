"""Finding layers, and running a model no further than they need."""

import re
import threading
import time

import pytest
import torch
from torch import nn

from sksae.activations._layers import (
    evaluating,
    find_layer,
    find_layers,
    hidden_states,
    probe,
    run_to,
)


def error(model, layer, kind=ValueError):
    with pytest.raises(kind) as caught:
        find_layers(model, layer)
    return str(caught.value)


class Block(nn.Module):
    def __init__(self, n_calls=None):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return (None, torch.zeros(2), self.lin(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.unused = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.pool = nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)
        self.fail = False

    def forward(self, x):
        for block in self.blocks:
            x = block(x)[2]
            if self.fail:
                raise RuntimeError("boom")
        return self.pool(self.again(self.again(x))[:, 0])


@pytest.fixture
def net():
    return Net()


# Lookup


def test_paths_ends_and_numbers(tiny_bert, tiny_gpt2, tiny_llama):
    assert find_layer(tiny_bert, "encoder.layer.1") == "encoder.layer.1"
    assert find_layer(tiny_bert, "layer.1") == "encoder.layer.1"
    assert find_layer(tiny_bert, "1.attention.self") == "encoder.layer.1.attention.self"
    assert find_layer(tiny_bert, "embeddings") == "embeddings"
    assert find_layer(tiny_bert, 0) == "encoder.layer.0"
    assert find_layer(tiny_bert, -1) == "encoder.layer.1"
    assert find_layer(tiny_gpt2, -2) == "h.0"
    assert find_layer(tiny_llama, 2) == "model.layers.2"
    assert list(find_layers(tiny_llama, [-1, "layers.0.mlp"])) == [
        "model.layers.2",
        "model.layers.0.mlp",
    ]


def test_numbers_count_the_outer_blocks():
    experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(9)])
    model = nn.ModuleDict({"side": nn.ModuleList([nn.Linear(2, 2)])})
    model["blocks"] = nn.ModuleList([nn.ModuleDict({"experts": experts}) for _ in range(3)])
    assert find_layer(model, -1) == "blocks.2"


def test_unknown_layers_suggest_the_nearest(tiny_gpt2, tiny_bert, tiny_llama):
    assert error(tiny_gpt2, "blocks.1") == (
        "No module named 'blocks.1' in GPT2Model; did you mean 'h.1'?"
    )
    assert error(tiny_gpt2, "transformer.h.1") == (
        "No module named 'transformer.h.1' in GPT2Model; did you mean 'h.1'?"
    )
    assert error(tiny_bert, "encoder.layers.1") == (
        "No module named 'encoder.layers.1' in BertModel; did you mean 'encoder.layer.1'?"
    )
    assert "did you mean 'model.layers.1.mlp'" in error(tiny_llama, "model.layer.1.mlp")
    assert "did you mean 'encoder.layer.1.attention'" in error(tiny_bert, "layer.1.atention")
    assert error(tiny_bert, "zzz") == (
        "No module named 'zzz' in BertModel; its modules are 'embeddings', 'encoder', 'pooler', "
        "and those inside them."
    )
    assert "No module named ''" in error(tiny_bert, "")
    assert error(nn.Linear(2, 2), "h") == "No module named 'h' in Linear; it has no modules."


def test_ambiguous_ends_list_all_matches(tiny_bert):
    assert error(tiny_bert, "intermediate") == (
        "layer='intermediate' is ambiguous in BertModel: it fits 'encoder.layer.0.intermediate', "
        "'encoder.layer.1.intermediate'. Give more of the path."
    )
    many = nn.ModuleList([nn.ModuleDict({"end": nn.Identity()}) for _ in range(11)])
    assert "'6.end', '7.end' and 3 more. Give more of the path." in error(many, "end")


def test_numbers_out_of_range(tiny_bert, net):
    for number in (2, -3):
        assert error(tiny_bert, number) == (
            f"layer={number} is out of range for the 2 blocks 'encoder.layer' of BertModel. "
            "Give an int from -2 to 1."
        )
    del net.blocks
    assert error(net, 0) == (
        "layer=0 needs a list of blocks and Net has none. Give the path of a module, such as "
        "'unused', 'again', 'pool', 'drop'."
    )


def test_lists_of_layers(tiny_bert):
    assert error(tiny_bert, []) == "layer=[] names no layer. Give at least one."
    assert error(tiny_bert, [0, "layer.0"]) == (
        "layer=[0, 'layer.0'] names 'encoder.layer.0' more than once."
    )
    for wrong in ([1.5], [True], [None]):
        message = error(tiny_bert, wrong, TypeError)
        assert message == f"A layer must be a str or an int. Got {wrong[0]!r} instead."


# Outputs


def test_hidden_states_are_the_first_tensor_of_three_dimensions():
    good, bad = torch.zeros(1, 2, 3), torch.zeros(1, 2)
    assert hidden_states(good) is good
    assert hidden_states((bad, None, good, good.clone())) is good
    assert hidden_states({"a": bad, "b": good}) is good
    for output in (bad, (bad,), None, "x", torch.zeros(1, 1, 1, 1)):
        assert hidden_states(output) is None


# Running


def test_the_forward_pass_stops_at_the_last_layer(net):
    x = torch.ones(1, 2, 4)
    out = run_to(net, find_layers(net, [1, 0]), {"x": x})
    assert list(out) == ["blocks.1", "blocks.0"]
    assert [block.calls for block in net.blocks] == [1, 1, 0]
    torch.testing.assert_close(out["blocks.0"], net.blocks[0].lin(x))
    torch.testing.assert_close(out["blocks.1"], net.blocks[1].lin(out["blocks.0"]))


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_no_hook_is_left_behind(net):
    net.again.register_forward_hook(lambda *args: None)
    before, layers, x = hooks(net), find_layers(net, [0, "blocks.2.lin"]), torch.ones(1, 2, 4)
    run_to(net, layers, {"x": x})
    probe(net, layers, {"x": x})
    assert hooks(net) == before
    net.fail = True
    for run in (run_to, probe):
        with pytest.raises(RuntimeError, match="boom"):
            run(net, layers, {"x": x})
        assert hooks(net) == before


def test_hooks_of_the_user_see_their_call_and_come_first(net):
    net.blocks[0].register_forward_hook(lambda m, a, out: (out[2] + 1,))
    x = torch.ones(1, 2, 4)
    out = run_to(net, find_layers(net, 0), {"x": x})
    torch.testing.assert_close(out["blocks.0"], net.blocks[0].lin(x) + 1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("unused", "Module 'unused' does not run in the forward pass of Net."),
        (
            "blocks",
            "Module 'blocks' does not run in the forward pass of Net. Inside it are 'blocks.0', "
            "'blocks.1', 'blocks.2'.",
        ),
        (
            "again",
            "Module 'again' runs 2 times in one forward pass of Net, so that it has no single "
            "output. Choose a module that runs once.",
        ),
        (
            "pool",
            "Module 'pool' of Net gives no tensor of shape (texts, tokens, features). Got a tensor "
            "of shape (1, 2) instead.",
        ),
    ],
)
def test_layers_without_one_output_are_refused(net, layer, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        probe(net, find_layers(net, layer), {"x": torch.ones(1, 2, 4)})


def test_a_failure_behind_the_last_layer_does_not_matter(net):
    net.pool = nn.Linear(7, 7)
    assert probe(net, find_layers(net, 1), {"x": torch.ones(1, 2, 4)})["blocks.1"].shape[2] == 4


def test_evaluating_gives_every_flag_back(net):
    net.train()
    net.blocks[1].eval()
    before = [module.training for module in net.modules()]
    with evaluating(net):
        assert not any(module.training for module in net.modules())
        assert not net.pool(torch.ones(1, 4)).requires_grad
    assert [module.training for module in net.modules()] == before
    with pytest.raises(RuntimeError), evaluating(net):
        raise RuntimeError
    assert [module.training for module in net.modules()] == before


def test_threads_take_turns_on_one_model(net):
    inside, most = [], []

    def work():
        with evaluating(net):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
