"""What a run leaves on disk, and how a config becomes networks, loss and taps (`from_config`)."""
