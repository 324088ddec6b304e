"""Run by tests: trains in processes that kill themselves at given moments, and resumes them.

The libraries are loaded once; each training runs in a fork, and a killed one gets SIGKILL.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

import torch
from train_models import save_bert, scored_pairs, sentences, weights_hash, write_lines

from simcse_fast import train
from simcse_fast.training import checkpoints, run, sealed, tokens, trainer

STEPS = 14  # a little over two epochs of 6


def die(*_: object, **__: object) -> None:
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: object, name: str, number: int, *, after: bool = False) -> None:
    """Die at the `number`-th call of a function, before or after it has done its work."""
    original, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == number and not after:
            die()
        result = original(*arguments, **options)
        if len(calls) == number:
            die()
        return result

    setattr(owner, name, wrapped)


def before_rename(name: str) -> None:
    """Die with everything written and the marker in place, but under the unfinished name."""
    original = sealed.publish

    def wrapped(staging: Path, target: Path) -> None:
        if target.name == name:
            die()
        original(staging, target)

    sealed.publish = wrapped


MOMENTS = {
    "tokenizing": lambda: at_call(tokens, "hashes_of", 1),
    "first-step": lambda: at_call(trainer.SimCSETrainer, "record", 1),
    "second-step": lambda: at_call(trainer.SimCSETrainer, "record", 2),
    "after-a-checkpoint": lambda: at_call(trainer.SimCSETrainer, "record", 8),
    "second-epoch": lambda: at_call(trainer.SimCSETrainer, "record", 14),
    "saving-the-model": lambda: at_call(trainer.SimCSETrainer, "_save", 2),
    "saving-the-optimizer": lambda: at_call(trainer.SimCSETrainer, "_save_rng_state", 2),
    "sealing": lambda: at_call(sealed, "seal", 4),
    "renaming": lambda: before_rename("checkpoint-10"),
    "rotating": lambda: at_call(checkpoints.Checkpoints, "rotate", 2),
    "evaluating": lambda: at_call(trainer.SimCSETrainer, "evaluate", 3, after=True),
    "saving-the-result": lambda: before_rename(run.FINAL),
}


def in_fork(work) -> int:
    """Run in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main(folder: Path) -> None:
    """Train once without interruption, and once with one for each moment."""
    model, text = folder / "bert", write_lines(folder / "text.txt", sentences(100))
    pairs = write_lines(folder / "pairs.tsv", scored_pairs(40))
    save_bert(model)
    # What is imported late, and looked through for garbage, is so once and not in every fork.
    options = {"steps": 1, "batch_size": 16, "device": "cpu", "evaluate": pairs}
    train(str(model), unsupervised=text, output=folder / "first", **options)
    gc.freeze()

    def trained(name: str, *, resume: bool, kill=None) -> int:
        def work() -> None:
            if kill is not None:
                kill()
            result = train(
                str(model),
                unsupervised=text,
                output=folder / name,
                batch_size=16,
                steps=STEPS,
                learning_rate=1e-3,
                save_steps=5,
                evaluate=pairs,
                evaluation_steps=4,
                keep_checkpoints=1,
                device="cpu",
                resume=resume,
            )
            told = {"weights": weights_hash(result.model), "steps": result.steps}
            told |= {"losses": result.history.losses, "evaluations": result.history.evaluations}
            told |= {"tokens": result.history.real_tokens, "notes": result.notes}
            last = folder / name / f"checkpoint-{STEPS}" / "model.safetensors"
            told |= {"last": sealed.digest(last)}  # the result is an earlier one, the best
            (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")

        return in_fork(work)

    statuses = {"whole": trained("whole", resume=False)}
    for name, kill in MOMENTS.items():
        killed = trained(name, resume=False, kill=kill)
        statuses[name] = [os.WTERMSIG(killed), trained(name, resume=True)]
    (folder / "statuses.json").write_text(json.dumps(statuses), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no pool of threads
    main(Path(sys.argv[1]))
