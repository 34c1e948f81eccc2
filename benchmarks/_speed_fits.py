"""The other libraries in ``speed.py``: each trains with its own trainer and encodes.

Each function takes a job, the rows and a clock, and gives ``(notes, encode)``, of which the
latter encodes a batch as the library's users do. A library is imported by its own function
alone: a process has one library's environment.
"""

import contextlib
import math
import tempfile

import torch
from _peer_data import Batches, Lookup, Repeated, RowNumbers, import_overcomplete
from _speed_tools import Enough


class Watched:
    """Batches of which each pass is an epoch, seen by a clock."""

    def __init__(self, batches, clock):
        self.batches, self.clock = batches, clock

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return self.clock.watch(self.batches)


def _epochs(job, X):
    return math.ceil(job["planned_steps"] * job["b"] / len(X))


def overcomplete(job, X, clock):
    """Time ``train_sae``, on a GPU ``train_sae_amp``, with Adam and the mean squared error."""
    library = import_overcomplete()
    device = job["device"]
    cls, own = {
        "topk": (library.TopKSAE, {"top_k": job["k"]}),
        "batchtopk": (library.BatchTopKSAE, {"top_k": job["k"] * job["b"]}),
        "jumprelu": (library.JumpSAE, {}),
        "vanilla": (library.SAE, {}),
    }[job["variant"]]
    sae = cls(job["d"], nb_concepts=job["m"], device=device, **own)

    def mse(x, x_hat, pre_codes, codes, dictionary):
        return (x - x_hat).square().mean()

    penalised = job["variant"] in ("jumprelu", "vanilla")
    train = library.train.train_sae_amp if device == "cuda" else library.train_sae
    with contextlib.suppress(Enough):
        train(
            sae,
            Watched(Batches(X, job["b"], 0), clock),
            library.mse_l1 if penalised else mse,
            torch.optim.Adam(sae.parameters(), lr=5e-4),
            nb_epochs=_epochs(job, X),
            device=device,
        )
    return {}, _overcomplete_encode(sae, job)


def _overcomplete_encode(sae, job):
    """Give the encoder of an SAE whose training was ended."""
    if job["variant"] == "batchtopk" and sae.running_threshold is None:
        sae.running_threshold = torch.zeros((), device=job["device"])
    return sae.eval().encode


def interpreto(job, X, clock):
    """Time ``fit`` of the explainer, which makes a DataLoader of the activations.

    In float32: with ``use_amp`` its autocast refuses the device that the explainer has.
    """
    from interpreto.concepts.methods import overcomplete as methods
    from interpreto.concepts.splitters import BaseSplitter
    from torch.utils.data import DataLoader

    class Nothing(BaseSplitter):
        """What stands for the model: the activations are given."""

        def __init__(self):
            pass

        def get_latent_shape(self):
            return (1, job["d"])

    Nothing.__abstractmethods__ = frozenset()

    class WatchedLoader(DataLoader):
        def __iter__(self):
            return clock.watch(super().__iter__())

    methods.DataLoader = WatchedLoader
    name, own = {
        "topk": ("TopKSAEConcepts", {"top_k": job["k"]}),
        "batchtopk": ("BatchTopKSAEConcepts", {"top_k": job["k"] * job["b"]}),
        "jumprelu": ("JumpReLUSAEConcepts", {}),
        "vanilla": ("VanillaSAEConcepts", {}),
    }[job["variant"]]
    sizes = {"nb_concepts": job["m"], "device": job["device"]}
    explainer = getattr(methods, name)(Nothing(), **sizes, **own)
    with contextlib.suppress(Enough):
        explainer.fit(X, batch_size=job["b"], nb_epochs=_epochs(job, X))
    return {}, _overcomplete_encode(explainer.concept_model, job)


def saelens(job, X, clock):
    """Time ``SAETrainer``, on a GPU with autocast; encode with the exported SAE."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    prefix, own = {
        "topk": ("TopK", {"k": job["k"]}),
        "batchtopk": ("BatchTopK", {"k": job["k"]}),
        "jumprelu": ("JumpReLU", {}),
        "vanilla": ("Standard", {}),
    }[job["variant"]]
    config = getattr(sae_lens, f"{prefix}TrainingSAEConfig")
    sizes = {"d_in": job["d"], "d_sae": job["m"], "device": job["device"]}
    sae = getattr(sae_lens, f"{prefix}TrainingSAE")(config(**own, **sizes))
    training = SAETrainerConfig(
        total_training_samples=job["planned_steps"] * job["b"],
        train_batch_size_samples=job["b"],
        lr_end=3e-5,  # a tenth of the rate, as its runner sets it
        device=job["device"],
        autocast=job["device"] == "cuda",
    )
    batches = clock.watch(Batches(X, job["b"], 0).epochs(_epochs(job, X)))
    with contextlib.suppress(Enough):
        SAETrainer(training, sae, batches).fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        exported = sae_lens.SAE.load_from_disk(folder, device=job["device"])
    return {}, exported.encode


def dictionary_learning(job, X, clock):
    """Time ``trainSAE`` with normalised activations, on a GPU in bfloat16."""
    from dictionary_learning import training
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    cls, own = {
        "topk": (TopKTrainer, {"k": job["k"]}),
        "batchtopk": (BatchTopKTrainer, {"k": job["k"]}),
        "jumprelu": (JumpReluTrainer, {"target_l0": job["k"]}),
        "vanilla": (StandardTrainer, {}),
    }[job["variant"]]
    seen = {}

    class Remembered(cls):
        """A trainer whose SAE can be had."""

        def update(self, step, x):
            seen["ae"] = self.ae
            return super().update(step, x)

    # It would take a hundred batches.
    training.get_norm_factor = lambda data, steps: float(X[:8192].square().sum(1).mean().sqrt())
    n_steps = job["planned_steps"]
    sizes = {"steps": n_steps, "activation_dim": job["d"], "dict_size": job["m"]}
    names = {"trainer": Remembered, "layer": 0, "lm_name": "", "device": job["device"]}
    batches = Repeated(Batches(X, job["b"], 0), _epochs(job, X))
    with contextlib.suppress(Enough):
        training.trainSAE(
            Watched(batches, clock),
            [sizes | names | own],
            steps=n_steps,
            normalize_activations=True,
            device=job["device"],
            autocast_dtype=torch.bfloat16 if job["device"] == "cuda" else torch.float32,
        )
    ae = seen["ae"].float()
    if job["variant"] == "batchtopk":
        ae.threshold.fill_(0)  # -1, before step 1,000, would keep everything
    return {}, ae.encode


def sparsify(job, X, clock):
    """Time ``Trainer`` on a model that looks the rows up, because it takes no activations."""
    from sparsify import SaeConfig, TrainConfig, Trainer

    sequences = RowNumbers(len(X), _epochs(job, X), 0)
    model = Lookup(X)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        config = TrainConfig(
            sae=SaeConfig(num_latents=job["m"], k=job["k"]),
            batch_size=job["b"] // sequences.length,
            hookpoints=["rows"],
            save_every=10**9,
            save_dir=folder,
            log_to_wandb=False,
        )
        trainer = Trainer(config, sequences, model)
        (sae,) = trainer.saes.values()
        model.rows.register_forward_pre_hook(lambda module, args: clock.note(clock.now()))
        trainer.fit()
    return {}, sae.encode


def sklearn(job, X, clock):
    """Time ``partial_fit`` of MiniBatchDictionaryLearning on 256 rows, its default batch."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    learner = MiniBatchDictionaryLearning(
        n_components=job["m"],
        transform_algorithm="omp",
        transform_n_nonzero_coefs=job["k"],
        random_state=0,
    )
    clock.n_rows = min(256, job["b"])
    clock.n_dropped, clock.n_least = min(clock.n_dropped, 1), min(clock.n_least, 2)
    array = X.numpy()
    array = array - array.mean(axis=0)
    with contextlib.suppress(Enough):
        for i in clock.watch(range(job["planned_steps"])):
            start = i * clock.n_rows % (len(array) - clock.n_rows + 1)
            learner.partial_fit(array[start : start + clock.n_rows])
    return {}, lambda x: learner.transform(x.numpy()[: clock.n_rows])
