"""Images by folder: a folder for each class, read with Pillow, which comes with matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data.sets import Dataset, from_arrays
from jaxfl.errors import InputError, require

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TRAIN, TESTS = "train", ("test", "val", "valid", "validation")


def from_image_folder(
    folder: str | Path,
    size: int | tuple[int, int] | None = None,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Images `[N, h, w, channels]` in [0, 1] from `folder/CLASS/*.png`; `class_names` are the folders, sorted.

    >>> import numpy as np, pathlib, tempfile, jaxfl as fl
    >>> from matplotlib.image import imsave
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for i, name in enumerate(["cats", "cats", "cats", "dogs", "dogs"]):
    ...     (folder / name).mkdir(exist_ok=True)
    ...     imsave(folder / name / f"{i}.png", np.full((8, 8, 3), i / 5))
    >>> d = fl.data.from_image_folder(folder)
    >>> d.x.shape, d.class_names
    ((4, 8, 8, 3), ['cats', 'dogs'])

    `folder/train/CLASS` and `folder/test/CLASS` are a train and a test set; without them a part is split off. Channels
    are 3, or 1 where all images are grey; transparency is dropped. Files beside the class folders, hidden ones and
    those that are no image by their ending are left out.

    Args:
        folder: holds the class folders.
        size: (height, width), or one number for both, to which images are resized; needed where they differ.
        test_fraction: as in `from_arrays`.
        seed: of the split.
        name: of the data set, by default that of the folder.

    Raises:
        InputError: no such folder, fewer than two classes, a class without images, a damaged file, sizes that differ
            without `size`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder is {folder}, but there is no such folder.")
    inside = {p.name: p for p in _folders(folder)}
    rest = next((inside[t] for t in TESTS if t in inside), None)
    split = TRAIN in inside and len(inside) == 1 + (rest is not None)
    classes = sorted(p.name for p in (_folders(inside[TRAIN]) if split else inside.values()))
    if len(classes) < 2:
        raise InputError(f"{folder} holds {len(classes)} class folders, but must hold two or more of images.")
    x, y = _images(inside[TRAIN] if split else folder, classes, size)
    test_x, test_y = _images(rest, classes, size) if split and rest is not None else (None, None)
    parts = x if test_x is None else x + test_x
    first = parts[0]
    for path, a in parts:
        if a.shape[:2] != first[1].shape[:2]:
            (h, w), (h0, w0) = a.shape[:2], first[1].shape[:2]
            raise InputError(
                f"{path} has {h} x {w} pixels, but {first[0]} has {h0} x {w0}: sizes must be one, or size (on the "
                "command line --image-size) resizes all."
            )
    colours = max(a.shape[2] for _, a in parts)
    scaled = [
        p and np.stack([np.broadcast_to(a, (*a.shape[:2], colours)) for _, a in p]) / np.float32(255)
        for p in (x, test_x)
    ]
    known: dict[str, Any] = {"classes": len(classes), "class_names": classes, "name": name or folder.resolve().name}
    return from_arrays(scaled[0], y, scaled[1], test_y, test_fraction=test_fraction, seed=seed, **known)


def pixels(image: Any, size: int | tuple[int, int] | None = None) -> np.ndarray:
    """A picture of Pillow as uint8 `[h, w, 1]` where it is grey, else `[h, w, 3]`; resized, bilinearly, to `size`."""
    from PIL import Image

    deep = image.mode[0] in "IF"  # 16 or 32 bits, of an unknown range
    if deep:
        raise InputError(f"an image has the mode {image.mode}, but must have 8 bits a channel: convert it.")
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        require("size", min(height, width), least=1)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    a = np.asarray(image)
    return a[:, :, None] if a.ndim == 2 else a


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]


def _images(
    folder: Path, classes: list[str], size: int | tuple[int, int] | None
) -> tuple[list[tuple[Path, np.ndarray]], list[int]]:
    """Files with their pixels, and their labels, class by class."""
    from PIL import Image

    if odd := sorted({p.name for p in _folders(folder)} - set(classes)):
        raise InputError(f"{folder} holds the class {odd[0]!r}, which the train folder does not have.")
    found, labels = [], []
    for label, name in enumerate(classes):
        inside = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
        files = [p for p in inside if p.suffix.lower() in ENDINGS and p.is_file() and not p.name.startswith(".")]
        if not files and folder.name not in TESTS:
            raise InputError(f"{folder / name} holds no image, by the endings {', '.join(ENDINGS)}.")
        for path in files:
            try:
                with Image.open(path) as image:
                    found.append((path, pixels(image, size)))
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            except Exception as error:  # Pillow has many
                raise InputError(f"{path} cannot be read as an image ({str(error).rstrip('.')}).") from error
        labels += [label] * len(files)
    return found, labels
