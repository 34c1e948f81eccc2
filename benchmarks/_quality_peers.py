"""Train one SAE with one library, for ``quality.py``, which starts this file as a process.

Each function ``train_<library>`` runs that library's own trainer with its own defaults, on
the same shuffled rows, and imports it itself: a process has one library's environment.

    python _quality_peers.py job.json

The job's answer, with timings and versions, is written to ``<out>.json``, the weights to
``<out>.npz``, see `PlainSAE`.
"""

import copy
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from _peer_data import Batches, Lookup, Repeated, RowNumbers, import_overcomplete, warm_up
from _peers import DISTRIBUTIONS, version
from _quality_sae import PlainSAE, explained_variance, share_of_equal_rows


class Watch:
    """A clock that stops while held-out rows are evaluated.

    Parameters
    ----------
    x : Tensor of shape (n, n_features)
        Held-out rows.
    every : int
        Steps between evaluations; 0 for none.
    over_batch : bool
        Whether sparsity counts over a batch, as it does while a BatchTopK SAE trains.
    """

    def __init__(self, x, every, over_batch):
        self.x, self.every, self.over_batch = x, every, over_batch
        self.curve, self.notes = [], {}

    def begin(self):
        """Start the clock."""
        self.start, self.paused = time.perf_counter(), 0.0

    @property
    def seconds(self):
        """Seconds of training so far."""
        return time.perf_counter() - self.start - self.paused

    def tick(self, step, weights):
        """Note, after ``step`` steps, the explained variance of ``weights()``, if it is time."""
        if not self.every or step == 0 or step % self.every:
            return
        seconds, start = self.seconds, time.perf_counter()
        with torch.no_grad():
            variance = explained_variance(weights(), self.x, over_batch=self.over_batch)
        self.curve.append((step, round(seconds, 3), round(variance, 5)))
        self.paused += time.perf_counter() - start


def train_sksae(job, X, watch):
    """Fit the estimator; the only argument beside the sizes is what the job asks for."""
    from skorch.callbacks import Callback

    import sksae

    class Evaluate(Callback):
        """Evaluates between two batches."""

        def on_train_begin(self, net, **kwargs):
            self.n_steps = 0

        def on_batch_end(self, net, training=None, **kwargs):
            self.n_steps += bool(training)
            watch.tick(self.n_steps, lambda: _plain_module(net.module_, job["k"]))

    cls, sparsity = {
        "topk": (sksae.TopKSAE, "top_k"),
        "batchtopk": (sksae.BatchTopKSAE, "top_k"),
        "jumprelu": (sksae.JumpReLUSAE, "target_l0"),
        "matryoshka": (sksae.MatryoshkaSAE, "top_k"),
    }[job["variant"]]
    lr = {} if job["lr"] is None else {"lr": job["lr"]}
    watch.begin()
    sae = cls(
        nb_concepts=job["width"],
        nb_epochs=job["epochs"],
        batch_size=job["batch_size"],
        callbacks=[Evaluate()] if job["every"] else None,
        device="cpu",
        random_state=job["seed"],
        **{sparsity: job["k"]},
        **lr,
        **job["options"],
    ).fit(X.numpy())
    seconds = watch.seconds
    watch.notes["backend"] = sae.backend_
    plain = _plain_module(sae.module_, job["k"], getattr(sae, "threshold_", float("nan")))
    return plain, seconds, lambda x: torch.from_numpy(sae.inverse_transform(sae.transform(x)))


def _plain_module(module, top_k, threshold=float("nan")):
    """Read an sksae module by what it does: its pre-codes are affine in the input."""
    module = copy.deepcopy(module).double().eval()
    dictionary = module.get_dictionary().detach()
    with torch.no_grad():
        b_enc = module.encode(torch.zeros(1, dictionary.shape[1]).double())[0][0]
        W_enc = module.encode(torch.eye(dictionary.shape[1]).double())[0] - b_enc
        b_dec = module.decode(torch.zeros(1, len(dictionary)).double())[0]
    if hasattr(module, "thresholds"):
        threshold = module.thresholds.detach().exp() * module.input_scale
    weights = (w.float() for w in (W_enc, b_enc, dictionary, b_dec))
    return PlainSAE.of(*weights, top_k, threshold)


def train_overcomplete(job, X, watch):
    """Run ``train_sae`` with Adam and the mean squared error, as in its documentation."""
    library = import_overcomplete()

    watch.begin()
    over_batch = job["variant"] == "batchtopk"
    n_kept = job["k"] * job["batch_size"] if over_batch else job["k"]
    cls = library.BatchTopKSAE if over_batch else library.TopKSAE
    sae = cls(X.shape[1], nb_concepts=job["width"], top_k=n_kept)

    def plain(threshold=float("nan")):
        linear = sae.encoder.final_block[0]
        dictionary = sae.get_dictionary()
        zero = torch.zeros(X.shape[1])
        return PlainSAE.of(linear.weight.T, linear.bias, dictionary, zero, job["k"], threshold)

    class Watched(Batches):
        """Batches that are evaluated when the next one is asked for."""

        n_steps = 0

        def __iter__(self):
            for batch in super().__iter__():
                yield batch
                self.n_steps += 1
                watch.tick(self.n_steps, plain)

    library.train_sae(
        sae,
        Watched(X, job["batch_size"], job["seed"]),
        lambda x, x_hat, pre_codes, codes, dictionary: (x - x_hat).square().mean(),
        torch.optim.Adam(sae.parameters(), lr=job["lr"] or 5e-4),
        nb_epochs=job["epochs"],
        **job["options"],
    )
    seconds = watch.seconds
    sae.eval()
    return plain(getattr(sae, "running_threshold", float("nan"))), seconds, lambda x: sae(x)[2]


def train_saelens(job, X, watch):
    """Run ``SAETrainer`` with its default configuration."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    class Watched(SAETrainer):
        """A trainer that is evaluated before each step."""

        def step(self, batch):
            watch.tick(self.n_training_steps, lambda: _plain_saelens(self.sae, job["k"]))
            return super().step(batch)

    prefix = {"topk": "TopK", "batchtopk": "BatchTopK"}[job["variant"]]
    config = getattr(sae_lens, f"{prefix}TrainingSAEConfig")
    lr = job["lr"] or 3e-4
    training = {
        "total_training_samples": job["epochs"] * len(X),
        "train_batch_size_samples": job["batch_size"],
        "lr": lr,
        "lr_end": lr / 10,
    }
    watch.begin()
    sae = getattr(sae_lens, f"{prefix}TrainingSAE")(
        config(k=job["k"], d_in=X.shape[1], d_sae=job["width"])
    )
    batches = Batches(X, job["batch_size"], job["seed"]).epochs(job["epochs"])
    Watched(SAETrainerConfig(**(training | job["options"])), sae, batches).fit()
    seconds, trained = watch.seconds, _plain_saelens(sae, job["k"])
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        exported = sae_lens.SAE.load_from_disk(folder)
    return trained, seconds, exported


def _plain_saelens(sae, top_k):
    """Read a training SAE, whose codes are counted in norms of the dictionary's rows."""
    norms = sae.W_dec.norm(dim=1)
    return PlainSAE.of(
        sae.W_enc * norms,
        sae.b_enc * norms,
        sae.W_dec / norms[:, None],
        sae.b_dec,
        top_k,
        getattr(sae, "topk_threshold", float("nan")),
        pre_bias=sae.b_dec,
    )


def train_dictionary_learning(job, X, watch):
    """Run ``trainSAE`` with normalised activations, as its demonstration does."""
    from dictionary_learning import training
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    seen = SimpleNamespace(ae=None, scale=1.0)

    class Watched(TopKTrainer if job["variant"] == "topk" else BatchTopKTrainer):
        """A trainer that is evaluated before each step."""

        def update(self, step, x):
            seen.ae = self.ae
            watch.tick(step, lambda: _plain_dictionary_learning(self.ae, job, seen.scale))
            return super().update(step, x)

    norm_factor = training.get_norm_factor

    def remembered(*args, **kwargs):
        seen.scale = norm_factor(*args, **kwargs)
        return seen.scale

    training.get_norm_factor = remembered
    watch.begin()
    batches = Batches(X, job["batch_size"], job["seed"])
    steps = job["epochs"] * len(batches)
    config = {
        "trainer": Watched,
        "steps": steps,
        "activation_dim": X.shape[1],
        "dict_size": job["width"],
        "k": job["k"],
        "layer": 0,
        "lm_name": "",
        "lr": job["lr"],
        "seed": job["seed"],
        "device": "cpu",
        # The defaults, unless the run is too short for them.
        "warmup_steps": min(1000, steps // 2),
        "threshold_start_step": min(1000, steps // 2),
    }
    training.trainSAE(
        Repeated(batches, job["epochs"]),
        [config | job["options"]],
        steps=steps,
        normalize_activations=True,
        device="cpu",
    )
    return _plain_dictionary_learning(seen.ae, job), watch.seconds, seen.ae


def _plain_dictionary_learning(ae, job, scale=1.0):
    """Read an SAE that was trained on activations divided by ``scale``."""
    return PlainSAE.of(
        ae.encoder.weight.T,
        ae.encoder.bias * scale,
        ae.decoder.weight.T,
        ae.b_dec * scale,
        job["k"],
        float("nan") if job["variant"] == "topk" else float(ae.threshold),
        pre_bias=ae.b_dec * scale,
    )


def train_sparsify(job, X, watch):
    """Run ``Trainer`` on a model that looks the rows up, because it takes no activations."""
    from sparsify import SaeConfig, TrainConfig, Trainer

    if job["variant"] != "topk":
        raise ValueError("sparsify trains TopK SAEs only.")
    watch.begin()
    sequences = RowNumbers(len(X), job["epochs"], job["seed"])
    model = Lookup(X)
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "sae": SaeConfig(num_latents=job["width"], k=job["k"]),
            "batch_size": job["batch_size"] // sequences.length,
            "lr": job["lr"],
            "init_seeds": [job["seed"]],
            "hookpoints": ["rows"],
            "save_every": 10**9,
            "save_dir": folder,
            "log_to_wandb": False,
        }
        trainer = Trainer(TrainConfig(**(config | job["options"])), sequences, model)
        (sae,) = trainer.saes.values()

        def evaluate(module, args):
            watch.tick(trainer.global_step, lambda: _plain_sparsify(sae, trainer.optimizers))
            _set_mode(trainer.optimizers, "train")

        model.rows.register_forward_pre_hook(evaluate)
        trainer.fit()
    seconds = watch.seconds
    return _plain_sparsify(sae, trainer.optimizers), seconds, lambda x: sae(x).sae_out


def _plain_sparsify(sae, optimizers):
    """Read an SAE; its optimizers are left in evaluation mode."""
    _set_mode(optimizers, "eval")
    weights = (sae.encoder.weight.T, sae.encoder.bias, sae.W_dec, sae.b_dec)
    return PlainSAE.of(*weights, sae.cfg.k, pre_bias=sae.b_dec)


def _set_mode(optimizers, mode):
    """Call ``train()`` or ``eval()`` of the schedule-free ones, which average the weights."""
    for optimizer in optimizers:
        getattr(optimizer, mode, lambda: None)()


def main(path):
    """Train what the job asks for, compare with the library's own inference, and answer."""
    job = json.loads(Path(path).read_text())
    X = torch.from_numpy(np.load(job["train"])[: job["n_train"]])
    test = torch.from_numpy(np.load(job["test"]))
    warm_up()
    torch.manual_seed(job["seed"])
    watch = Watch(test[:4096], job["every"], job["variant"] == "batchtopk")
    sae, seconds, reconstruct = globals()[f"train_{job['library']}"](job, X, watch)
    with torch.no_grad():
        agreement = share_of_equal_rows(sae, test[:100], reconstruct(test[:100]))
    if agreement < 0.98:
        raise AssertionError(f"{agreement:.0%} of the rows are as {job['library']} has them.")
    sae.save(f"{job['out']}.npz")
    packages = (DISTRIBUTIONS[job["library"]], "torch", "numpy")
    answer = watch.notes | {
        "seconds": round(seconds, 2),
        "curve": watch.curve,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }
    Path(f"{job['out']}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
