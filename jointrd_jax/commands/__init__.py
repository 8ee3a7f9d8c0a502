"""One file per subcommand: its flags, and one call into the library (see `cli`)."""
