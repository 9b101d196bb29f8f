"""Published rates are for batches of 64 images; here they follow the number of images that came."""

PUBLISHED_BATCH = 64


def weight_of(images: int, published: float) -> float:
    """Weight of some new images in a running figure, from the `published` one of 64: 1 - (1 - w)^(n / 64).

    >>> round(weight_of(64, 0.1), 6), round(weight_of(128, 0.1), 6), round(weight_of(1, 0.1), 6)
    (0.1, 0.19, 0.001645)
    """
    kept: float = (1 - published) ** (images / PUBLISHED_BATCH)
    return 1 - kept
