"""Five story lines that the families of the zoo play: who is made from whom, by what, and how far it moves."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataset.zoo_plan import Family

HALF, HALF16 = "bfloat16", "float16"


def _drift(family: "Family") -> None:
    """A root that was not annealed, children that move very little and very much, and a run that goes on."""
    root = family.root(140, schedule="constant", keep_state=True)
    family.tune(root, 1, 0.002)
    small = family.tune(root, 2, 0.015)
    family.tune(root, 3, 0.05, schedule="constant")
    family.tune(root, 3, 0.1)
    large = family.tune(root, 4, 0.25)
    family.tune(root, 1, 0.6, schedule="constant", decay=0.1)
    later = family.go_on(root, 40, keep=True)
    family.go_on(later, 60)
    family.tune(small, 4, 0.03)
    family.tune(small, 0, 0.25)
    family.tune(large, 2, 0.02)


def _optimizers(family: "Family") -> None:
    """An annealed root and a child by every optimizer."""
    root = family.root(260)
    plain = family.tune(root, 1, 0.03)
    family.tune(root, 2, 0.08, decay=0.1)
    decayed = family.tune(root, 3, 0.15, decay=1.0, schedule="constant")
    momentum = family.tune(root, 4, 0.03, optimizer="sgd", schedule="constant")
    family.tune(root, 1, 0.1, optimizer="adafactor")
    signed = family.tune(root, 2, 0.06, optimizer="lion", decay=0.1)
    spectral = family.tune(root, 3, 0.12, optimizer="muon")
    family.tune(plain, 4, 0.1)
    family.tune(momentum, 2, 0.04, optimizer="sgd")
    family.tune(signed, 0, 0.015)
    family.tune(spectral, 1, 0.3, optimizer="muon", schedule="constant")
    family.lora(decayed, 2, 4)


def _precision(family: "Family", small: bool = False) -> None:
    """Training in half precision, casts, pruning and grids of few bits."""
    root = family.root(60 if small else 200)
    half = family.tune(root, 1, 0.04, train_dtype=HALF, dtype=HALF)
    sparse = family.made(root, "prune", share=0.3)
    family.tune(sparse, 2, 0.03, keep_mask=True)
    cast = family.made(root, "cast", dtype=HALF)
    family.reward(cast, 3, 3e-6)
    family.made(root, "quantize", scheme="int8-block-64", dtype="float32")
    if small:
        return
    family.tune(root, 2, 0.03, train_dtype=HALF16, dtype=HALF16)
    steered = family.reward(half, 3, 5e-6)
    family.reward(steered, 4, 1e-5)
    family.tune(half, 4, 0.06)
    full = family.tune(root, 3, 0.1)
    family.made(full, "cast", dtype=HALF16, keep_vectors=True)
    family.made(full, "quantize", scheme="int8-row", dtype=HALF)
    family.made(root, "prune", share=0.6)
    family.made(
        root, "quantize", scheme=str(family.rng.choice(["int4-block-64", "nf4-block", "int4-block-32"])), dtype=HALF
    )
    family.tune(cast, 1, 0.02)


def _merges(family: "Family", small: bool = False) -> None:
    """LoRA of all ranks, merges of all kinds, and their descendants."""
    root = family.root(60 if small else 200)
    one = family.lora(root, 1, 1 if small else 2, 0.04)
    two = family.tune(root, 2, 0.04)
    three = family.tune(root, 3, 0.1)
    scaled = family.merge("linear", (one, two), HALF, coefficients=[0.6, 0.4])
    family.merge("ties", (two, three), HALF16, root, density=0.5)
    family.merge("slerp", (two, three), "float32", t=0.3)
    family.tune(scaled, 1, 0.05)
    if small:
        family.lora(root, 2, 8, dora=True)
        family.merge("arithmetic", (one, three), HALF, root, scales=[0.8, 0.7])
        family.made(two, "copy", prefix="module.")
        return
    four = family.lora(root, 4, 16, 0.06, dtype=HALF16)
    stacked = family.lora(one, 2, 4, 0.03, dtype=HALF, targets="attention")
    family.lora(root, 3, 1, 0.02, targets="one")
    family.lora(root, 1, 8, 0.06, dora=True)
    family.merge("linear", (one, two, three), HALF16, coefficients=[0.5, 0.3, 0.2])
    family.merge("linear", (one, two, three, four), HALF, coefficients=[0.2, 0.3, 0.1, 0.4])
    family.merge("linear", (one, two, three, four, stacked), "float32", coefficients=[0.2, 0.3, 0.2, 0.2, 0.1])
    family.merge("dare", (two, three), HALF, root, density=0.6)
    sum_of = family.merge("arithmetic", (one, three), "float32", root, scales=[0.8, 0.7])
    family.merge("passthrough", (two, three), "float32", split=1)
    family.lora(family.lora(sum_of, 4, 8, 0.04), 1, 2, 0.03)


def _gaps(family: "Family") -> None:
    """Parents that nobody published, other names, frozen parts, and a root that hardly learned."""
    root = family.root(int(family.rng.integers(5, 21)), schedule="constant")
    hidden = family.tune(root, 1, 0.12, absent=True)
    family.tune(hidden, 2, 0.05)
    family.tune(hidden, 3, 0.15)
    family.lora(hidden, 4, 8, 0.05)
    first = family.tune(root, 2, 0.08, frozen="first-half")
    family.tune(root, 3, 0.2, frozen="embeddings")
    again = {"vocabulary": 144} if family.has_vocabulary else {"new_head": True}
    family.tune(first, 4, 0.05, **({} if family.architecture in ("unet", "clip") else again))
    family.tune(first, 1, 0.03)
    prefix = str(family.rng.choice(["module.", "model.", "net.", "_orig_mod."]))
    family.made(first, "copy", prefix=prefix)
    lost = family.root(120, absent=True)
    found = family.tune(lost, 1, 0.06)
    family.made(found, "copy", shards=True)
    family.tune(lost, 2, 0.1, optimizer="lion")
    family.tune(found, 3, 0.04)


PLOTS = {"drift": _drift, "optimizers": _optimizers, "precision": _precision, "merges": _merges, "gaps": _gaps}
