"""sksae in ``speed.py``: the estimator, and the bare loop of the same kernels."""

import contextlib
import math
import time

import torch
from _peer_data import Batches
from _speed_tools import Clock, Enough, forget_peak, peak, repeat

# The estimators whose sparsity has settled, one for each case, so that rounds share them.
_SETTLED = {}
_SETTLING_RATE = 2e-3


def fit(job, X, clock, backend="auto"):
    """Time ``fit`` of an estimator whose sparsity has settled, then ``transform``."""
    sae = settled(job, X, backend)
    sae.set_params(warm_start=True, nb_epochs=n_epochs(job, len(X)), lr="auto")
    with watched(clock), contextlib.suppress(Enough):
        sae.fit(X.cpu().numpy())
    seconds = _encode_seconds(job, X, sae)
    if job["device"] != "cuda":
        return _notes(sae) | peak(), seconds
    notes = {"transform_rows_per_s": round(job["b"] / seconds, 1)}
    return _notes(sae) | notes | peak(), sae.encode


def reference(job, X, clock):
    """Time the same with ``backend="reference"``."""
    return fit(job, X, clock, "reference")


def bare(job, X, clock):
    """Time what a step needs and nothing else: no skorch, no scikit-learn, no history.

    Batches, moving of outliers, forward pass, loss, gradients, optimizer, unit norms, and the
    counts by which AuxK knows the dead. On a GPU repeated from a record, as in a fit.
    """
    if job["device"] == "cuda":
        return _bare_on_cuda(job, X, clock)
    from sksae.kernels import Workspace

    sae = settled(job, X)
    net, module = sae.net_, sae.module_.train()
    for group in net.optimizer_.param_groups:
        group["lr"] = net.lr / 4  # the schedule has ended at 0
    step = _dense_step if net.stored_steps_.obstacle else _stored_step
    dead_after = _dead_after(job, len(X))
    memory = module.decoder_bias.new_empty(0 if step is _dense_step else job["b"], job["m"])
    workspace = Workspace(memory, screen=True)
    batches = Batches(X, job["b"], 0).epochs(n_epochs(job, len(X)))
    with contextlib.suppress(Enough):
        for x in clock.watch(batches):
            u = module.scale_rows(x)
            net.optimizer_.zero_grad(set_to_none=True)
            loss, fired = step(net, u, workspace)
            _descend(net, loss, workspace)
            module.count_fired(fired, len(u))
            if job["device"] == "cpu" or clock.n_requests % 16 == 0:
                module.find_dead(dead_after)
    module.eval()
    return _notes(sae) | peak(), None


def _bare_on_cuda(job, X, clock):
    from sksae.training._recorded import RecordedSteps
    from sksae.training._stored import StoredSteps

    sae = settled(job, X)
    net, module = sae.net_, sae.module_.train()
    for group in net.optimizer_.param_groups:
        group["lr"] = net.lr / 4
    net.stored_steps_ = StoredSteps(net)
    recorded, dead_after = RecordedSteps(net, len(X)), _dead_after(job, len(X))
    batches = Batches(X, job["b"], 0).epochs(n_epochs(job, len(X)))
    with contextlib.suppress(Enough):
        for x in clock.watch(batches):
            recorded.step(x, x) or net.take_step(x, x)
            if clock.n_requests % 16 == 0:
                module.find_dead(dead_after)
    net.stored_steps_.close()
    module.eval()
    return _notes(sae) | peak(), None


def _descend(net, loss, workspace):
    """Take the optimizer's step, as the net does: by rows where that is possible."""
    module = net.module_
    loss.backward()
    if module.row_gradients is not None:
        module.row_gradients.step(module.row_parameters(), net.optimizer_)
    net.optimizer_.step()
    module.after_step()
    module.row_gradients = None


def _stored_step(net, u, workspace):
    from sksae.kernels import RowGradients, steps_by_rows

    module = net.module_
    module.row_gradients = RowGradients() if steps_by_rows(net.optimizer_) else None
    codes, pre_codes, values, u_hats, error = module.forward_sparse(u, workspace, _any_number)
    loss = net.criterion_.sparse(module, u, u_hats, error, codes, pre_codes, values)
    return loss, codes.fired(values)


def _any_number(n_stored, n_all):
    """Take any number of stored codes."""


def _dense_step(net, u, workspace):
    amp = net.amp_dtype
    with torch.autocast(u.device.type, amp, enabled=amp is not None):
        pre_codes, codes, u_hat, dictionary = net.module_.forward_scaled(u)
        loss = net.criterion_(net.module_, u, u_hat, pre_codes, codes, dictionary)
    return loss, (codes != 0).any(dim=0)


def settled(job, X, backend="auto"):
    """Give a fitted estimator: concepts fire, or are known as dead, and L0 is near its target.

    At its start a Vanilla or JumpReLU SAE has thousands of active codes, and any SAE of large
    width has concepts that have never fired.
    """
    key = (*(job[name] for name in ("variant", "m", "k", "b", "d", "device")), backend)
    if key not in _SETTLED:
        _SETTLED.clear()
        sae, n_steps = _unsettled(job, len(X), backend)
        limit = Clock(0, 1, n_steps, job["settle_seconds"])
        start = time.perf_counter()
        with watched(limit), contextlib.suppress(Enough):
            sae.fit(X.cpu().numpy())
        sae.settling = {
            "settle_steps": sae.n_steps_,
            "settle_seconds": round(time.perf_counter() - start, 2),
        }
        _SETTLED[key] = sae
        forget_peak()
    return _SETTLED[key]


def _unsettled(job, n_rows, backend):
    """Give an estimator, and the number of steps in which it settles.

    At the rate that a short fit chooses, most concepts would die. A penalty needs a plan that it
    reaches its target in, at a moderate rate; others take the first steps of the long plan.
    """
    if job["variant"] in ("topk", "batchtopk"):
        return make(job, nb_epochs=n_epochs(job, n_rows), backend=backend), job["settle_steps"]
    n_steps = 4 * job["settle_steps"]
    epochs = math.ceil(n_steps / n_batches(job, n_rows))
    return make(job, nb_epochs=epochs, lr=_SETTLING_RATE, backend=backend), n_steps


def make(job, **params):
    """Make an estimator with its defaults, apart from sizes and, on a GPU, bfloat16."""
    import sksae

    cls, sparsity = {
        "topk": (sksae.TopKSAE, "top_k"),
        "batchtopk": (sksae.BatchTopKSAE, "top_k"),
        "jumprelu": (sksae.JumpReLUSAE, "target_l0"),
        "vanilla": (sksae.VanillaSAE, "target_l0"),
    }[job["variant"]]
    params |= {sparsity: job["k"], "use_amp": "bf16" if job["device"] == "cuda" else False}
    sizes = {"nb_concepts": job["m"], "batch_size": job["b"]}
    return cls(**sizes, **params, device=job["device"], random_state=0)


@contextlib.contextmanager
def watched(clock):
    """Let a clock see the requests for training batches."""
    from sksae.training import BatchIterator

    original = BatchIterator.__iter__

    def iterate(self):
        batches = original(self)
        return batches if self.generator is None else clock.watch(batches)

    BatchIterator.__iter__ = iterate
    try:
        yield
    finally:
        BatchIterator.__iter__ = original


def n_batches(job, n_rows):
    """Give the steps of one pass."""
    return math.ceil(n_rows / job["b"])


def n_epochs(job, n_rows):
    """Give the passes of a fit of the planned number of steps."""
    return math.ceil(job["planned_steps"] / n_batches(job, n_rows))


def _dead_after(job, n_rows):
    from sksae.training._schedule import Length, auto_dead_after

    return auto_dead_after(Length(n_batches(job, n_rows), n_rows, n_epochs(job, n_rows)))


def _notes(sae):
    module = sae.module_
    dead = len(module.dead_concepts) / module.nb_concepts
    return {
        "backend": sae.backend_,
        "l0": round(sae.l0_, 2),
        "dead_in_training": round(dead, 4),
        **sae.settling,
    }


def _encode_seconds(job, X, sae):
    """Give the seconds in which ``transform`` encodes a batch, from an array to CSR."""
    array = X[: 4 * job["b"]].cpu().numpy()
    seconds = repeat(lambda: sae.transform(array), min(1.0, job["seconds"]))
    return seconds * job["b"] / len(array)
