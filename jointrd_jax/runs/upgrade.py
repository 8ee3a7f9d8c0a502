"""Configs of finished runs of earlier versions, in the fields of this one: what was trained can still be used."""

from typing import Any

RENAMED = {'on_nan': 'nan.action', 'nan_factor': 'nan.factor', 'nan_rollbacks': 'nan.rollbacks'}
FRACTIONS = {  # were in epochs, or below 1 a fraction of the run
    'mix.epochs': 'mix.fraction',
    'optimizer.warmup_epochs': 'optimizer.warmup_fraction',
    'model.anneal_epochs': 'model.anneal_fraction',
}
DROP_EVERY = 'optimizer.drop_every'
GONE = ('optimizer.nesterov', 'log.images', DROP_EVERY)


def upgraded(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config in the fields of this version; one of this version is returned as it is.

    Fields that are not in it are the caller's to add: their defaults are what earlier versions did.
    """

    def fraction(length: float) -> float:
        return length if length < 1 else min(length / flat['epochs'], 1.0)

    found = dict(flat)
    if DROP_EVERY in flat:  # of the same versions: drop_epochs were fractions too
        drops = [fraction(length) for length in found.pop('optimizer.drop_epochs')]
        if flat['optimizer.schedule'] == 'every':
            every = fraction(flat[DROP_EVERY])
            found['optimizer.schedule'], drops = 'step', [i * every for i in range(1, 1000) if i * every < 1]
        found['optimizer.drop_fractions'] = [drop for drop in drops if drop < 1]
    for old, new in FRACTIONS.items():
        if old in found:
            found[new] = fraction(found.pop(old))
    for old, new in RENAMED.items():
        if old in found:
            found[new] = found.pop(old)
    if 'model.dirac' in found:
        found['model.reparam'] = 'dirac' if found.pop('model.dirac') else 'none'
    return {name: value for name, value in found.items() if name not in GONE}
