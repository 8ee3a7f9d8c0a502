"""Class and probability of images, by a run or by an export of one (`jointrd predict`)."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from rich.console import Console
from rich.progress import track

from jointrd_jax.data import images as images_lib
from jointrd_jax.data.sources import IMAGE_SUFFIXES
from jointrd_jax.deploy.export import RECORD
from jointrd_jax.deploy.runner import Runner
from jointrd_jax.errors import UserError
from jointrd_jax.runs import predictions, run_directory
from jointrd_jax.system import buckets, files

PREFERRED = ('onnx', 'tflite', 'safetensors', 'stablehlo', 'int8', 'int8_tflite')  # of an export's files
DESCRIBED = ('.onnx', '.tflite')  # have metadata
KEYS = ('classes', 'mean', 'std', 'input')  # that a file's metadata must have


class Classifier(NamedTuple):
    """What turns images into logits, and how they are prepared for it.

    Attributes:
      logits: [B, H, W, C] float32 -> [B, classes].
      classes: names.
      image_shape: (H, W, C).
      mean: per channel, of images scaled to 0..1.
      std: the same.
      resize: as `data.base.Dataset.resize`.
      pixels: whether the network takes pixels 0..255 and normalises them itself.
      batch: images per call; None: any number.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    resize: int | None
    pixels: bool
    batch: int | None

    def prepared(self, path: Path) -> np.ndarray:
        """The image file as evaluation would prepare it: pixels [H, W, C] uint8.

        A network of images of one size takes them as they are; those of another size are cut like the streamed ones.

        Raises:
          BadImage: it cannot be read.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise images_lib.BadImage(f'cannot be read ({error.strerror})') from error
        height, width, channels = self.image_shape
        if self.resize is None:
            image = images_lib.Encoded(content)
            if (image.height, image.width) == (height, width) or height != width:
                return images_lib.whole(content, self.image_shape)
        return images_lib.centre_crop(content, height, self.resize or height, channels)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities [B, classes] of prepared images [B, H, W, C]."""
        count, entry = len(pixels), pixels.astype(np.float32)
        if not self.pixels:
            entry = (entry / 255 - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        size = self.batch or count
        entry = np.pad(entry, [(0, -count % size), (0, 0), (0, 0), (0, 0)])
        parts = [self.logits(entry[start : start + size]) for start in range(0, len(entry), size)]
        return predictions.probabilities(np.concatenate(parts)[:count])


@contextlib.contextmanager
def classifier(path: Path, which: str, batch: int) -> Iterator[Classifier]:
    """The run or export at `path`, ready to be called.

    Raises:
      UserError: neither, an export that does not say how images are prepared, or `which` given for an export.
    """
    if (path / run_directory.CONFIG).is_file():
        yield of_run(run_directory.load(path, which), batch)
        return
    if buckets.is_remote(path):
        raise UserError(f'{path} is not a run; copy an export from the bucket to this machine first')
    file, about = described(path)
    if which != 'last':
        raise UserError(f'--which={which} is for a run; {path} is an export, of the weights that it was made with')
    shape = about.get('image_shape') or [*about['input_size'], len(about['mean'])]
    fixed = about.get('batch', 'dynamic')
    with Runner(file) as runner:

        def logits(images: np.ndarray) -> np.ndarray:
            try:
                return runner(images)
            except RuntimeError as error:
                raise UserError(f'{file} does not run: {error}') from error

        yield Classifier(
            logits, about['classes'], tuple(shape), about['mean'], about['std'], about.get('resize'),
            about['input'].startswith('pixels') and file.suffix != '.safetensors',
            None if fixed == 'dynamic' else int(fixed),
        )  # fmt: skip


def of_run(run: run_directory.Run, batch: int) -> Classifier:
    import jax

    apply, variables = jax.jit(run.network.apply), jax.device_put(run.variables)
    about, settings = run.data, run.config.dataset
    resize = about.resize
    if resize is None and settings.name == 'folder' and settings.image_size == about.image_shape[0]:
        resize = settings.resize  # of a run that is older than this field
    return Classifier(
        lambda images: np.asarray(apply(variables, images).logits), list(about.classes), about.image_shape,
        list(about.mean), list(about.std), resize, False, batch,
    )  # fmt: skip


def described(path: Path) -> tuple[Path, dict[str, Any]]:
    """An export's file, and the description of its input and classes in the export.json beside it or in its metadata.

    The export.json counts for the very files that it was written for.

    Raises:
      UserError: there is no such file, or no such description.
    """
    if not path.exists():
        raise UserError(f'{path}: no such run or export')
    file, record = path, {}
    beside = (path if path.is_dir() else path.parent) / RECORD
    if beside.is_file():
        record = files.read_json(beside)
        held = record.get('artifacts') if isinstance(record, dict) else None
        if not isinstance(held, dict) or not isinstance(record.get('data'), dict):
            raise UserError(f'{beside} is damaged: not the record of an export')
        if path.is_dir():
            names = [name for name in PREFERRED if name in held]
            if not names:
                raise UserError(f'{path} holds none of {", ".join(PREFERRED)}')
            file = path / held[names[0]]['file']
        sha256 = {made.get('file'): made.get('sha256') for made in held.values()}
        if file.name in sha256:
            if not file.is_file():
                raise UserError(f'{file} is not here, though {beside} names it: export it again')
            if files.sha256(file) == sha256[file.name]:
                return file, {**record['data'], 'input': record['input'], 'batch': record['batch']}
            if file.suffix not in DESCRIBED:
                raise UserError(f'{file} is not the file that {beside} describes: export it again')
    if file.is_dir():
        raise UserError(f'{path} is neither a run directory (no config.json) nor an export (no export.json)')
    about = metadata(file)
    if missing := [key for key in KEYS if key not in about]:
        raise UserError(
            f'{file} does not say how its images are prepared (no {", ".join(missing)} in its metadata): it was not '
            'written by jointrd export, or its export.json is not beside it'
        )
    return file, about


def metadata(file: Path) -> dict[str, Any]:
    """The metadata in an .onnx or .tflite file.

    Raises:
      UserError: another kind of file, or a damaged one.
    """
    from jointrd_jax.errors import require

    try:
        if file.suffix == '.onnx':
            properties = require('onnx', 'onnx').load(file, load_external_data=False).metadata_props
            return {entry.key: loaded(entry.value) for entry in properties}
        if file.suffix == '.tflite':
            from jointrd_jax.deploy import tflite

            tflite.check_installed()
            return tflite.read_metadata(file.read_bytes())
    except UserError:
        raise
    except Exception as error:  # any bytes may be in there
        raise UserError(f'{file} is not a {file.suffix} file, or a damaged one') from error
    raise UserError(f'{file} is neither a run nor an export; give a run directory, an export, or its .onnx or .tflite')


def loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def listed(places: Sequence[str]) -> list[Path]:
    """The image files that are named, and those in and below the folders that are.

    Raises:
      UserError: one is not there, or a folder without images.
    """
    found: list[Path] = []
    for text in places:
        if buckets.is_remote(text):
            raise UserError(f'{text}: images are read from the disk; copy them here first')
        place = buckets.place(text)
        if place.is_dir():
            held = sorted(
                Path(root, name)
                for root, folders, names in os.walk(place)
                if not folders.sort() and not any(part.startswith('.') for part in Path(root).relative_to(place).parts)
                for name in names
                if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
            )
            if not held:
                raise UserError(f'{place} holds no images ({", ".join(IMAGE_SUFFIXES)})')
            found += held
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f'{place}: no such image or folder')
    return found


Row = dict[str, Any]  # 'image', and 'class' and 'probability' of each of the likeliest, or 'error'


def rows(network: Classifier, paths: Sequence[Path], top: int, batch: int) -> Iterator[Row]:
    """A row for each image, in order; images are read a batch at a time."""

    def prepared(path: Path) -> np.ndarray | str:
        try:
            return network.prepared(path)
        except images_lib.BadImage as error:
            return str(error)

    size = network.batch or batch
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), size):
            part = paths[start : start + size]
            read = list(pool.map(prepared, part))
            good = [image for image in read if not isinstance(image, str)]
            chances = iter(network(np.stack(good)) if good else [])
            for path, image in zip(part, read):
                if isinstance(image, str):
                    yield {'image': str(path), 'error': image}
                    continue
                found = next(chances)
                order = np.argsort(-found, kind='stable')[:top]
                likeliest = [{'class': network.classes[i], 'probability': float(found[i])} for i in order]
                yield {'image': str(path), **likeliest[0]} | ({'likeliest': likeliest} if top > 1 else {})


def write(found: Iterator[Row], form: str, out: TextIO, top: int) -> int:
    """Print rows as they come, and return how many images could not be read."""
    bad, first = 0, True
    if form == 'csv':
        out.write(csv_line(['image', 'class', 'probability', *(['rank'] if top > 1 else []), 'error']))
    for row in found:
        bad += 'error' in row
        likeliest = row.get('likeliest', [row])
        if form == 'json':
            out.write(('[\n' if first else ',\n') + json.dumps(row))
        elif form == 'csv':
            for rank, entry in enumerate(likeliest, 1):
                chance = f'{entry["probability"]:.6f}' if 'probability' in entry else ''
                ranked = [rank] if top > 1 else []
                out.write(csv_line([row['image'], entry.get('class', ''), chance, *ranked, row.get('error', '')]))
        elif 'error' in row:
            out.write(f'{row["image"]}  error: {row["error"]}\n')
        else:
            shown = '  '.join(f'{entry["class"]} {100 * entry["probability"]:.2f} %' for entry in likeliest)
            out.write(f'{row["image"]}  {shown}\n')
        first = False
    if form == 'json':
        out.write('[]\n' if first else '\n]\n')
    out.flush()
    return bad


def csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator='\n').writerow(cells)
    return line.getvalue()


def run(
    path: str | Path, places: Sequence[str], *, which: str = 'last', top: int = 1, form: str = 'table', batch: int = 32
) -> None:
    """Print the classes that the run or export at `path` predicts for the images at `places`; 'table', 'csv' or 'json'.

    Raises:
      UserError: nothing to predict with, no images, or, after all others were printed, images that cannot be read.
    """
    import sys

    paths = listed(places)
    with classifier(buckets.place(path), which, batch) as network:
        console = Console(stderr=True)
        hidden = not console.is_terminal or sys.stdout.isatty()  # a bar between printed rows helps nobody
        found = track(
            rows(network, paths, top, batch), 'predicting', len(paths), console=console, transient=True, disable=hidden
        )
        if bad := write(iter(found), form, sys.stdout, top):
            raise UserError(f'{bad} of {len(paths)} images could not be read; their rows say why')
