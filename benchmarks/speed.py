"""Compare the speed and memory of sksae with other SAE libraries, on one machine in one run.

What is compared: each library trains with its own trainer as its users call it, fed from memory.
A step is the time from one request of the trainer for a batch to the next; the first ones are
dropped, the median counts. Encoding is each library's own call for a batch of rows (sksae:
``transform``, from an array to CSR, on a GPU ``encode``, from rows on the device to dense codes;
the others give dense codes, sparsify the top ones). The
competitors take turns, round by round, each in a process of its own that stays. Before and after
each measurement the same process times the encoder's product alone (b x d by d x m, float32,
written to the same memory): results are ratios to it, and ratios to sksae within a round.

- sksae: the estimator with its defaults, ``backend="auto"``, trained for --settle-steps before, so
  that L0 is near its target and concepts fire; "dead" is the share that AuxK works on;
- sksae-reference: the same with ``backend="reference"``;
- sksae-bare: a loop over the same kernels with what a step needs and nothing else: against it,
  sksae's step is the overhead of skorch, scikit-learn and the history;
- overcomplete (``train_sae``), interpreto (``fit`` of its explainers), saelens (``SAETrainer``),
  dictionary_learning (``trainSAE``) and sparsify (``Trainer``): none of them works on dead concepts
  in so few steps;
- sklearn: MiniBatchDictionaryLearning at 1,024 concepts, steps of 256 rows scaled to the batch.

Memory is the peak of the process (resident, with the library and the rows) during training. "floor"
is the product and Adam's memory traffic, at the speed of a copy.

Hardware: a CPU or one NVIDIA GPU (bfloat16); results name it. The other libraries are installed as
in ``quality.py``, 7 GB each; ``--envs here`` takes those that the calling interpreter has::

    python benchmarks/speed.py --threads 2 --save benchmarks/results/speed-cpu.json   # 10 minutes
    python benchmarks/speed.py --threads 2 --quick                                    # 2 minutes
    python benchmarks/speed.py --cases full --threads 2                               # hours
    python benchmarks/speed.py --cases growth overhead --libraries sksae sksae-bare
    python benchmarks/speed.py --cases topk:m=8192,k=64,b=2048,d=384 --data FOLDER
    python benchmarks/speed.py --device cuda --envs here                  # below 8 minutes
    python benchmarks/speed.py --memory                  # transform of 1,000,000 rows from disk

It prints a JSON line for each measurement, a table for each case, and one of sksae alone.
``OMP_WAIT_POLICY=PASSIVE`` in the environment keeps waiting threads from slowing others on shared
cores.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _peers import CACHE, interpreter, machine
from _speed_cases import COMPETITORS, can, entries
from _speed_table import summary, table

HERE = Path(__file__).parent
DEFAULT_CASES = {"cpu": ["topk", "variants", "sklearn"], "cuda": ["cuda"]}
N_ROWS = 32_768
GENERATED = {
    "cpu": "64 directions of falling variance, and noise",
    "cuda": "32 active of 16,384 features of falling frequency",
}


class Worker:
    """The process of one competitor.

    Parameters
    ----------
    competitor : str
    python : str
        The interpreter that has it.
    threads : int
    device : str
    """

    def __init__(self, competitor, python, threads, device):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, str(HERE / "_speed_worker.py"), competitor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | environment(threads, device),
        )

    def ask(self, job, timeout):
        """Give the answer to a job."""
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": self.last_words()}
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        if not ready:
            self.end()
            return {"error": f"no answer within {timeout:.0f} s"}
        return json.loads(
            self.process.stdout.readline() or json.dumps({"error": self.last_words()})
        )

    def last_words(self):
        """Give the end of what the process printed."""
        self.log.seek(0)
        return self.log.read()[-2000:] or "the process ended"

    def end(self):
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            stream.close()


def environment(threads, device):
    """Give the variables that a competitor's process has beside the caller's."""
    n = str(threads)
    variables = {"OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n}
    variables |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if device == "cpu":
        # Triton's kernels need a GPU; sparsify's trainer would take the first that it sees.
        variables |= {"SPARSIFY_DISABLE_TRITON": "1", "CUDA_VISIBLE_DEVICES": ""}
    return variables


def job_of(case, args):
    """Give what a competitor is told to do."""
    own = {name: getattr(case, name) for name in ("variant", "m", "k", "b", "d")}
    names = ("threads", "device", "seconds", "drop", "least", "settle_steps", "settle_seconds")
    return (
        own
        | {name: getattr(args, name) for name in names}
        | {
            "n_rows": max(N_ROWS, 4 * case.b) if args.rows is None else args.rows,
            "planned_steps": 5000,
            "data": str(args.data) if args.data else None,
        }
    )


def run(args, workers, report):
    """Measure every case in rounds; pass each result on."""
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    if args.device == "cuda":  # all at once, where there are cores for it
        named = {c for _, able in entries(args.cases, args.libraries) for c in able}
        for competitor in sorted(named):
            start(workers, competitor, args)
    for case, competitors in entries(args.cases, args.libraries):
        for turn in range(args.rounds):
            for competitor in competitors:
                if not can(competitor, case):
                    continue
                left = deadline - time.monotonic()
                if left < 10:
                    result = {"error": f"left out: {args.minutes} minutes are over"}
                else:
                    timeout = min(left, args.timeout)
                    result = ask(workers, competitor, job_of(case, args), timeout, args)
                report({"case": str(case), "competitor": competitor, "round": turn} | result)


def ask(workers, competitor, job, timeout, args):
    """Ask a competitor's process, which is started if need be."""
    worker = workers.get(competitor)
    if worker is None or worker.process.poll() is not None:
        worker = start(workers, competitor, args)
    return {"error": "not installed"} if worker is None else worker.ask(job, timeout)


def start(workers, competitor, args):
    """Start a competitor's process, which imports its library; give None if it is not there."""
    python = interpreter(competitor, args.envs)
    if python is None:
        return None
    workers[competitor] = Worker(competitor, python, args.threads, args.device)
    return workers[competitor]


def about(args):
    """Describe the run."""
    return {
        "command": "python " + " ".join(sys.argv),
        "commit": commit(),
        "machine": machine(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": args.threads,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "load_at_start": [round(x, 2) for x in os.getloadavg()],
        "python": sys.version.split()[0],
        "data": str(args.data) if args.data else GENERATED[args.device],
    }


def commit():
    """Name the state of the sources, if git knows it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def parse(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cases", nargs="+", help="groups (see _speed_cases.py) or single cases")
    parser.add_argument("--libraries", nargs="+", choices=COMPETITORS, default=COMPETITORS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="one case, one short round")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with train.npy")
    parser.add_argument("--rows", type=int, help="training rows; by default 32,768 or more")
    parser.add_argument("--seconds", type=float, help="timed steps of a measurement, at least")
    parser.add_argument("--drop", type=int, default=4, help="steps at the start not counted")
    parser.add_argument("--least", type=int, default=5, help="timed steps, at least")
    parser.add_argument("--settle-steps", type=int, default=60, help="of sksae, before the first")
    parser.add_argument("--settle-seconds", type=float, default=30, help="at most")
    parser.add_argument("--minutes", type=float, help="after which nothing new is measured")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds of a measurement")
    parser.add_argument("--envs", default=CACHE, help="virtual environments, or 'here'")
    parser.add_argument("--save", type=Path)
    memory = parser.add_argument_group("peak memory of transform")
    memory.add_argument("--memory", action="store_true", help="measure this alone")
    memory.add_argument("--memory-sizes", type=int, nargs=4, metavar=("N", "D", "M", "K"),
                        default=[1_000_000, 384, 16384, 32])  # fmt: skip
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    _fill(args)
    return args


def _fill(args):
    """Choose what was not given."""
    on_cuda = args.device == "cuda"
    if args.cases is None:
        args.cases = ["quick"] if args.quick else DEFAULT_CASES[args.device]
    if args.rounds is None:
        args.rounds = 1 if args.quick or on_cuda else 2
    if args.seconds is None:
        args.seconds = 1.0 if args.quick or on_cuda else 2.0
    if on_cuda:
        args.minutes = min(args.minutes or 7.0, 7.0)
        args.timeout = min(args.timeout, 60)
        args.settle_seconds = min(args.settle_seconds, 5)


def main(arguments=None):
    """Do what the command line says."""
    args = parse(arguments)
    if args.memory:
        from _speed_memory import measure

        found = about(args) | measure(*args.memory_sizes, args.threads)
        print(json.dumps(found))
        if args.save:
            args.save.write_text(json.dumps(found, indent=1) + "\n")
        return
    run_info, results, workers = about(args), [], {}

    def report(result):
        results.append(result)
        print(json.dumps(result), flush=True)
        if args.save:
            args.save.write_text(json.dumps(run_info | {"results": results}, indent=1) + "\n")

    try:
        run(args, workers, report)
    finally:
        for worker in workers.values():
            worker.end()
    print(table(results))
    print(summary(results))


if __name__ == "__main__":
    main()
