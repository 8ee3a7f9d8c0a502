"""Files, processes, signals and hosts: what every command stands on."""
