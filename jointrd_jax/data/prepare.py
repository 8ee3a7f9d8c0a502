"""Prepare TFDS datasets for training, or copy prepared ones to ArrayRecord (`jointrd prepare`)."""

import importlib.util
import json
import os
import shutil
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from jointrd_jax.errors import UserError

FORMATS = ('array_record', 'tfrecord')
EXTRA = "pip install 'jointrd_jax[prepare]'"


def prepare(spec: str, data_dir: Path, file_format: str) -> Path:
    """Download and prepare TFDS dataset `spec` (NAME, NAME/CONFIG, :VERSION) under `data_dir`; return its directory.

    Raises:
      UserError: the dataset is unknown, files that must be downloaded by hand are missing, TensorFlow is missing, or
        the download or preparation failed.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(spec, data_dir=data_dir, file_format=file_format)
    except Exception as error:
        raise UserError(f'TFDS cannot prepare {spec!r}: {first_line(error)}') from error
    directory = Path(builder.data_dir)
    if builder.is_prepared():
        print(f'{directory} is prepared already')
        return directory
    announce(builder, data_dir, file_format)
    if importlib.util.find_spec('tensorflow') is None:
        raise UserError(f'preparing a dataset needs TensorFlow, the extra [prepare]: {EXTRA}')
    check_reachable(builder.url_infos or {}, data_dir / 'downloads')
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        builder.download_and_prepare(
            download_dir=os.fspath(data_dir / 'downloads'),
            download_config=tfds.download.DownloadConfig(manual_dir=data_dir / 'downloads' / 'manual'),
        )
    except Exception as error:  # a download, an archive, the disk: TFDS raises many kinds
        raise UserError(f'preparing {spec!r} in {directory} failed: {first_line(error)}') from error
    return directory


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_reachable(urls: Iterable[str], downloads: Path) -> None:
    """Raise UserError at once if a host cannot be reached; TFDS would try again for minutes.

    Checked only before a first download, and without a proxy.
    """
    if urllib.request.getproxies() or (downloads.is_dir() and any(downloads.iterdir())):
        return
    for host in sorted({urllib.parse.urlparse(url).netloc for url in urls}):
        try:
            socket.create_connection((host.split(':')[0], 443), timeout=10).close()
        except OSError as error:
            raise UserError(f'cannot download: {host} is not reachable ({error.strerror or error})') from error


def announce(builder, data_dir: Path, file_format: str) -> None:
    """Print what will be fetched and made; raise UserError if files that must be downloaded by hand are missing."""
    manual = data_dir / 'downloads' / 'manual'
    sizes = {os.path.basename(url): info for url, info in (builder.url_infos or {}).items()}
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        missing = [name for name in sizes if not (manual / name).exists()]
        if missing or not manual.is_dir():
            files = ' and '.join(f'{name} ({sizes[name].size})' for name in missing) or 'the files its owner hands out'
            instructions = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
            name = builder.info.full_name
            raise UserError(f'{name} cannot be downloaded automatically: put {files} into {manual}. {instructions}')
        print(f'{builder.info.full_name}: reads {" and ".join(sizes) or manual}, downloads nothing')
    else:
        total = sum((info.size for info in sizes.values()), start=type(builder.info.download_size)(0))
        what = f'{total} ({len(sizes)} file{"s" * (len(sizes) > 1)})' if sizes else 'files of unknown size'
        print(f'{builder.info.full_name}: downloads {what} into {data_dir / "downloads"}')
        for url, info in (builder.url_infos or {}).items():
            print(f'  {info.size}  {url}')
    print(f'  and prepares it as {file_format} in {builder.data_dir}', flush=True)


def convert(spec: str, data_dir: Path, target_dir: Path) -> Path:
    """Copy a dataset that is prepared as TFRECORD under `data_dir` to ArrayRecord under `target_dir`.

    Every record's checksum is checked. The new directory, which is returned, appears when it is complete.

    Raises:
      UserError: the dataset is not prepared, not TFRECORD or damaged, or the target exists or cannot be written.
    """
    from jointrd_jax.data.tfds import find, read_info

    source = find(spec, os.fspath(data_dir))
    target = target_dir / source.relative_to(data_dir)
    if target.exists():
        raise UserError(f'{target} exists already; remove it or choose another --convert_to')
    info = read_info(source)
    if info.file_format.value != 'tfrecord':
        raise UserError(f'{source} is stored as {info.file_format.value}, not as tfrecord')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f'incomplete.{target.name}_', dir=target.parent))
        try:
            for split in info.splits.values():
                for number, part in enumerate(split.file_instructions, 1):
                    print(f'\r{split.name}: shard {number} of {split.num_shards}', end='', flush=True)
                    convert_shard(Path(part.filename), partial)
                print()
            copy_metadata(source, partial)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f'cannot write {error.filename or target}: {error.strerror}') from error
    return target


def convert_shard(path: Path, directory: Path) -> None:
    """Write one TFRECORD shard as ArrayRecord into `directory`, record by record."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from jointrd_jax.data.images import BadImage
    from jointrd_jax.data.tfrecord import TFRecordFiles, scan

    records = TFRecordFiles([(os.fspath(path), 0, len(scan(os.fspath(path))) - 1)])
    writer = ArrayRecordWriter(os.fspath(directory / path.name.replace('.tfrecord', '.array_record')), 'group_size:1')
    try:
        for i in range(len(records)):
            writer.write(records[i])
    except BadImage as error:
        raise UserError(f'{records.describe(i)}: {error}') from error
    finally:
        writer.close()


def copy_metadata(source: Path, target: Path) -> None:
    """Copy the files beside the shards, and write the new format into the copy of dataset_info.json."""
    for path in source.iterdir():
        if path.is_file() and '.tfrecord' not in path.name and not path.name.startswith('.'):
            shutil.copy(path, target)
    info = json.loads((source / 'dataset_info.json').read_text())
    info['fileFormat'] = 'array_record'
    for split in info['splits']:
        split['filepathTemplate'] = split.get('filepathTemplate', '').replace('.tfrecord', '.array_record')
    (target / 'dataset_info.json').write_text(json.dumps(info, indent=2))


def directory_of(directory: Path, spec: str) -> Path:
    """The data_dir that a dataset's own directory lies under."""
    return directory.parents[1 + spec.split(':')[0].count('/')]
