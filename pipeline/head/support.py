"""Which token ids a score keeps at each position."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """Which of the model's own ids are kept at each position.

    Attributes:
        top_k: so many of the likeliest; 0 keeps none.
        mass: of these only the shortest prefix that holds this probability of the whole vocabulary; None keeps all.
        min_k: with `mass`, at least so many.
        entropies: also the entropy of each position.
    """

    top_k: int
    mass: float | None = None
    min_k: int = 1
    entropies: bool = True
