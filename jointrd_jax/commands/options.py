"""Flags that several commands have."""

from absl import flags


def recipe(values: flags.FlagValues, *, required: bool = True, help: str = '') -> None:
    """--config, with --config.FIELD=VALUE: a recipe of the package by name, or a file."""
    from ml_collections import config_flags

    help = help or 'The recipe, by name or as a file; override with --config.field=value.'
    config_flags.DEFINE_config_file('config', None, help, flag_values=values)
    if required:
        flags.mark_flag_as_required('config', flag_values=values)


def workdir(values: flags.FlagValues, help: str) -> None:
    """--workdir, which must be given."""
    flags.DEFINE_string('workdir', None, help, required=True, flag_values=values)


def which(values: flags.FlagValues) -> None:
    """--which of a run's weights: last or best."""
    flags.DEFINE_enum('which', 'last', ['last', 'best'], "Which of a run's weights.", flag_values=values)
