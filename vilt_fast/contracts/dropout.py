"""Which random words keep an element, and what it is multiplied by: `dropout` on both sides."""


def keep_rule(p: float) -> tuple[int, float]:
    """(threshold, scale): a uint32 word keeps its element where word >= threshold; scale makes up for the others.

    Args:
        p: probability of dropping an element.

    Raises:
        ValueError: p outside 0 to 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p: got {p}, wanted 0 <= p <= 1")
    # Not p * 2**32, which it is: torch.compile, for one p after another, would go on with the first one's threshold.
    numerator, denominator = p.as_integer_ratio()
    return round(numerator * 2**32 / denominator), 1 / (1 - p) if p < 1 else 0.0
